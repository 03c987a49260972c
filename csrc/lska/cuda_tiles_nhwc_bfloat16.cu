// The cascade's forward in tiles of channels_last maps of bfloat16.
#include "csrc/lska/tiles_nhwc.cuh"

template lska_ops::LskaTileForwardKernel lska_ops::lska_tile_fwd_nhwc<lska_ops::BFloat16>(int);
