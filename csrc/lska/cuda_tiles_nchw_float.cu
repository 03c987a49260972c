// The cascade's forward in tiles of NCHW maps of float.
#include "csrc/lska/tiles_nchw.cuh"

template lska_ops::LskaTileForwardKernel lska_ops::lska_tile_fwd_nchw<float>(int);
