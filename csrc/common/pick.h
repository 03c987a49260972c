// From a value known at run time to a compile-time constant, without macros.
#pragma once

#include "csrc/common/portable.cuh"

namespace lska_ops {

template <int N>
struct Constant {
  static constexpr int value = N;
};

// f(Constant<k>) if k is one of the Values; says whether it was.
template <int... Values, class F>
LSKA_DEVICE bool pick(int k, const F& f) {
  return ((k == Values ? (f(Constant<Values>{}), true) : false) || ...);
}

}  // namespace lska_ops
