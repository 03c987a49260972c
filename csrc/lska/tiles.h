// The tile kernels of the cascade's forward as functions: each cuda_tiles_*.cu has those of one layout and
// dtype.
#pragma once

#include "csrc/lska/kernels_tile.cuh"

namespace lska_ops {

using LskaTileForwardKernel = void (*)(LskaTileForwardArguments);

// By their numbers in kForwardNhwc and kForwardNchw.
template <class T>
LskaTileForwardKernel lska_tile_fwd_nhwc(int shape);
template <class T>
LskaTileForwardKernel lska_tile_fwd_nchw(int shape);

}  // namespace lska_ops
