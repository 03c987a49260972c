// The tile kernels as a CPU runs them, for ops.cpp: what csrc/lska/cuda_tiles_*.cu are for GPUs.
#include "csrc/lska/tiles_nchw.cuh"
#include "csrc/lska/tiles_nhwc.cuh"

namespace lska_ops {

template LskaTileForwardKernel lska_tile_fwd_nhwc<float>(int);
template LskaTileForwardKernel lska_tile_fwd_nhwc<Half>(int);
template LskaTileForwardKernel lska_tile_fwd_nhwc<BFloat16>(int);
template LskaTileForwardKernel lska_tile_fwd_nchw<float>(int);
template LskaTileForwardKernel lska_tile_fwd_nchw<Half>(int);
template LskaTileForwardKernel lska_tile_fwd_nchw<BFloat16>(int);

}  // namespace lska_ops
