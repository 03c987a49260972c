// The shift's backward for tensor cores as a CPU runs it, for acmix_ops.cpp: what
// csrc/acmix/cuda_products_shift.cu is for GPUs.
#include "csrc/acmix/cuda_products_shift.cu"
