#include "csrc/lska/cpu_kernels.h"

#include "csrc/lska/cpu_kernels_parts.h"

namespace lska_ops::LSKA_OPS_ISA {

LskaCpuKernels lska_cpu_kernels(Dtype dtype) {
  LskaCpuKernels kernels;
  add_forward(dtype, kernels);
  add_backward(dtype, kernels);
  add_gate(dtype, kernels);
  return kernels;
}

}  // namespace lska_ops::LSKA_OPS_ISA
