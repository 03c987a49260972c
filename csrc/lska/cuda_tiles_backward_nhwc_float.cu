// The cascade's backward in tiles of channels_last maps of float.
#include "csrc/lska/tiles_backward.cuh"

template lska_ops::LskaTileBackwardKernel lska_ops::lska_tile_bwd_nhwc<float>(int);
