// Neighbouring vectors shifted against each other in registers: what a load between the two would read.
#pragma once

#include "csrc/common/lanes.h"
#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

template <int First, typename Up>
struct LanesFrom;
template <int First, int... I>
struct LanesFrom<First, Lanes<I...>> {
  using type = Lanes<First + I...>;
};

// Lanes S, S + 1, ... of a, followed by the first S lanes of b.
template <typename A, int S>
inline Vec<A> shifted(Vec<A> a, Vec<A> b) {
  constexpr int L = kLanes<A>;
  static_assert(0 <= S && S < L);
#if defined(__AVX512F__)  // the compiler's own choice needs a vector of indices in a register
  if constexpr (S > 0 && kVectorBytes == 64) {
    constexpr int unit = sizeof(A) == 8 ? 2 : 1;
    return Vec<A>(_mm512_alignr_epi32(__m512i(b), __m512i(a), S * unit));
  }
#endif
  return shuffled<A>(a, b, typename LanesFrom<S, typename LanesUpTo<L>::type>::type{});
}

}  // namespace lska_ops::LSKA_OPS_ISA
