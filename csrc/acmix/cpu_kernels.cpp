#include "csrc/acmix/cpu_kernels.h"

#include "csrc/acmix/cpu_kernels_parts.h"

namespace lska_ops::LSKA_OPS_ISA {

AcmixCpuKernels acmix_cpu_kernels(Dtype dtype) {
  AcmixCpuKernels kernels;
  add_forward(dtype, kernels);
  add_input_grad(dtype, kernels);
  add_shift(dtype, kernels);
  return kernels;
}

}  // namespace lska_ops::LSKA_OPS_ISA
