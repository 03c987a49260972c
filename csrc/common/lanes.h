// Lane numbers as types, for shuffles whose pattern is computed.
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

}  // namespace lska_ops::LSKA_OPS_ISA
