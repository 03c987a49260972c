// The backward's tile kernels as a CPU runs them: what csrc/lska/cuda_tiles_backward_*.cu are for GPUs.
#include "csrc/lska/tiles_backward.cuh"

namespace lska_ops {

template LskaTileBackwardKernel lska_tile_bwd_nhwc<float>(int);
template LskaTileBackwardKernel lska_tile_bwd_nhwc<Half>(int);
template LskaTileBackwardKernel lska_tile_bwd_nhwc<BFloat16>(int);
template LskaTileBackwardKernel lska_tile_bwd_nchw<float>(int);
template LskaTileBackwardKernel lska_tile_bwd_nchw<Half>(int);
template LskaTileBackwardKernel lska_tile_bwd_nchw<BFloat16>(int);

}  // namespace lska_ops
