// ACmix's kernels for tensor cores as a CPU runs them, for acmix_ops.cpp: what csrc/acmix/cuda_products.cu is
// for GPUs.
#include "csrc/acmix/cuda_products.cu"
