// What the CPU launchers of both ops stand on: a tensor's dtype for the kernels' tables, and memory. For
// launchers only, as isa.h is.
#pragma once

#include <initializer_list>
#include <memory>
#include <new>

#include "csrc/common/check.h"
#include "csrc/common/dtype.h"

namespace lska_ops {

using headeronly::ScalarType;
using stable::Tensor;

inline Dtype dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " has dtype ", headeronly::toString(t.scalar_type()),
                      "; expected float32, float64, float16 or bfloat16");
  }
}

inline Tensor empty_of(std::initializer_list<int64_t> shape, ScalarType dtype) {
  return stable::empty({shape.begin(), shape.size()}, dtype, std::nullopt,
                       stable::Device(headeronly::DeviceType::CPU));
}

// Kernels' own memory, from the start of a cache line.
struct FreeScratch {
  void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
};
using Scratch = std::unique_ptr<char, FreeScratch>;

inline Scratch new_scratch(int64_t bytes) {
  return Scratch(static_cast<char*>(::operator new(size_t(bytes), std::align_val_t(64))));
}

}  // namespace lska_ops
