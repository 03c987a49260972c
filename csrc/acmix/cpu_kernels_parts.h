// The files that share the table of kernels out among themselves.
#pragma once

#include "csrc/acmix/cpu_kernels.h"
#include "csrc/common/with_dtype.h"

namespace lska_ops::LSKA_OPS_ISA {

void add_forward(Dtype dtype, AcmixCpuKernels& kernels);
void add_input_grad(Dtype dtype, AcmixCpuKernels& kernels);
void add_shift(Dtype dtype, AcmixCpuKernels& kernels);

}  // namespace lska_ops::LSKA_OPS_ISA
