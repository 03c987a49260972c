// The tile kernels of the cascade's backward as functions: each cuda_tiles_backward_*.cu has those of one
// layout and dtype.
#pragma once

#include "csrc/lska/kernels_tile_backward.cuh"

namespace lska_ops {

using LskaTileBackwardKernel = void (*)(LskaTileBackwardArguments);

// By their numbers in lska_plan::kPairs.
template <class T>
LskaTileBackwardKernel lska_tile_bwd_nhwc(int pair);
template <class T>
LskaTileBackwardKernel lska_tile_bwd_nchw(int pair);

inline LskaTileBackwardArguments lska_tile_backward_arguments(const LskaTileBackwardPlan& p,
                                                              const LskaSize& s) {
  LskaTileBackwardArguments a{};
  a.C = int(s.C), a.H = int(s.H), a.W = int(s.W);
  a.tile_rows = p.tile_rows, a.tile_cols = p.tile_cols, a.tiles_x = p.tiles_x;
  a.channels = p.channels, a.slots = p.slots;
  a.row_pitch = p.row_pitch, a.channel_pitch = p.channel_pitch;
  a.staged_pitch = p.staged_pitch, a.staged_channel = p.staged_channel;
  a.staged_ds_channel = p.staged_ds_channel;
  return a;
}

}  // namespace lska_ops
