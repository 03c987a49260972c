// Lane numbers as types, and the shuffles whose pattern they are.
#pragma once

#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  using type = Lanes<I...>;
};

// Lane i of the result is lane I[i] of the two vectors laid end to end.
template <typename A, int... I>
inline Vec<A> shuffled(Vec<A> a, Vec<A> b, Lanes<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  typedef typename IntegerOf<A>::type Numbers __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Numbers{I...});
#endif
}

}  // namespace lska_ops::LSKA_OPS_ISA
