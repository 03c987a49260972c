// The cascade's backward in tiles of NCHW maps of half.
#include "csrc/lska/tiles_backward.cuh"

template lska_ops::LskaTileBackwardKernel lska_ops::lska_tile_bwd_nchw<lska_ops::Half>(int);
