// The files that share the table of kernels out among themselves.
#pragma once

#include "csrc/common/with_dtype.h"
#include "csrc/lska/cpu_kernels.h"

namespace lska_ops::LSKA_OPS_ISA {

void add_forward(Dtype dtype, LskaCpuKernels& kernels);
void add_backward(Dtype dtype, LskaCpuKernels& kernels);
void add_gate(Dtype dtype, LskaCpuKernels& kernels);

}  // namespace lska_ops::LSKA_OPS_ISA
