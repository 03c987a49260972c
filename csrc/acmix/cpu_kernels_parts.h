// The files that share the table of kernels out among themselves.
#pragma once

#include "csrc/acmix/cpu_kernels.h"
#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

void add_forward(Dtype dtype, AcmixCpuKernels& kernels);
void add_input_grad(Dtype dtype, AcmixCpuKernels& kernels);
void add_shift(Dtype dtype, AcmixCpuKernels& kernels);

// Calls f with a value of the dtype's type.
template <typename F>
inline void with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f64:
      return f(double{});
    case Dtype::f16:
      return f(Half{});
    case Dtype::bf16:
      return f(BFloat16{});
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
