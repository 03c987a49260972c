// Host checks in words. Python has checked already, with better exception types; these protect the kernels.
#pragma once

#include <initializer_list>
#include <sstream>
#include <string>

#include "csrc/common/torch_api.h"

namespace lska_ops {

inline std::string in_words(headeronly::IntHeaderOnlyArrayRef shape) {
  std::ostringstream out;
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "[") << shape[i];
  out << (shape.size() ? "]" : "[]");
  return out.str();
}

inline void check_shape(const char* op, const char* name, const stable::Tensor& t,
                        std::initializer_list<int64_t> expected) {
  const headeronly::IntHeaderOnlyArrayRef want(expected.begin(), expected.size());
  bool same = t.dim() == int64_t(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = t.size(int64_t(i)) == want[i];
  STD_TORCH_CHECK(same, op, ": ", name, " has shape ", in_words(t.sizes()), "; expected ", in_words(want));
}

inline std::string where(const stable::Tensor& t) {
  if (t.is_cpu()) return "the CPU";
  return t.is_cuda() ? "cuda:" + std::to_string(t.device().index()) : "neither the CPU nor a CUDA device";
}

inline void check_beside(const char* op, const char* name, const stable::Tensor& t, const char* its_name,
                         const stable::Tensor& x) {
  STD_TORCH_CHECK(t.device() == x.device(), op, ": ", name, " is on ", where(t), "; expected it where ",
                  its_name, " is, on ", where(x));
}

inline void check_like(const char* op, const char* name, const stable::Tensor& t, const stable::Tensor& x) {
  STD_TORCH_CHECK(t.is_cpu(), op, ": ", name, " is on ", where(t), "; expected it where x is, on the CPU");
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " has dtype ",
                  headeronly::toString(t.scalar_type()), "; expected x's, ",
                  headeronly::toString(x.scalar_type()));
}

}  // namespace lska_ops
