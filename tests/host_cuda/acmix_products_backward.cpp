// What csrc/acmix/cuda_products_backward.cu is for GPUs, for a CPU.
#include "csrc/acmix/cuda_products_backward.cu"
