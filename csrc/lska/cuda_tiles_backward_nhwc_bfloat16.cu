// The cascade's backward in tiles of channels_last maps of bfloat16.
#include "csrc/lska/tiles_backward.cuh"

template lska_ops::LskaTileBackwardKernel lska_ops::lska_tile_bwd_nhwc<lska_ops::BFloat16>(int);
