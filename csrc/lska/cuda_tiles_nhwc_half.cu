// The cascade's forward in tiles of channels_last maps of half.
#include "csrc/lska/tiles_nhwc.cuh"

template lska_ops::LskaTileForwardKernel lska_ops::lska_tile_fwd_nhwc<lska_ops::Half>(int);
