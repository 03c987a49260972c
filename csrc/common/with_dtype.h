// From a dtype known at run time to the type the kernels are templates of.
#pragma once

#include "csrc/common/dtype.h"
#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

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
