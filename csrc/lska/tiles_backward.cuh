// The backward's tile kernels of one layout and dtype, for the file that is to have them.
#pragma once

#include <utility>

#include "csrc/lska/tiles_backward.h"

namespace lska_ops {

template <class T, bool LAST, size_t... N>
LskaTileBackwardKernel lska_tile_bwd_of(int pair, std::index_sequence<N...>) {
  using lska_plan::kPairs;
  static const LskaTileBackwardKernel kernels[] = {
      lska_tile_bwd_kernel<T, LskaPair<kPairs[N].k0, kPairs[N].k1, kPairs[N].dilation>, LAST>...};
  return kernels[pair];
}
template <class T>
LskaTileBackwardKernel lska_tile_bwd_nhwc(int pair) {
  return lska_tile_bwd_of<T, true>(pair, std::make_index_sequence<std::size(lska_plan::kPairs)>());
}
template <class T>
LskaTileBackwardKernel lska_tile_bwd_nchw(int pair) {
  return lska_tile_bwd_of<T, false>(pair, std::make_index_sequence<std::size(lska_plan::kPairs)>());
}

}  // namespace lska_ops
