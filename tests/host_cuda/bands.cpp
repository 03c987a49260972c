// The tensor cores' kernels as a CPU runs them, for ops.cpp: what csrc/lska/cuda_bands.cu is for GPUs.
#include "csrc/lska/cuda_bands.cu"
