// A square of kLanes vectors transposed in registers: first inside of each 16 bytes, then the 16-byte pieces.
#pragma once

#include "csrc/common/lanes.h"
#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

// Lane e of a result takes lane `pick(e)` of the two vectors laid end to end (b starts at lane L).
// Inside of 16 bytes (Unit lanes): pairs of `Width` lanes are interleaved, taken from the lower or the upper
// half.
template <int L, int Unit, int Width, bool Upper>
constexpr int interleaved(int e) {
  const int piece = e / Unit * Unit, at = e % Unit;
  return piece + (Upper ? Unit / 2 : 0) + at / (2 * Width) * Width + at % Width + (at / Width % 2 ? L : 0);
}
// Blocks of `Width` lanes: the lower (or upper) of every two blocks of a, beside the same one of b.
template <int L, int Width, bool Upper>
constexpr int exchanged(int e) {
  return e / Width % 2 ? L + e - (Upper ? 0 : Width) : e + (Upper ? Width : 0);
}

template <typename A, int Unit, int Width, int... I>
inline void interleave(Vec<A>& a, Vec<A>& b, Lanes<I...>) {
  const Vec<A> lower = shuffled<A>(a, b, Lanes<interleaved<sizeof...(I), Unit, Width, false>(I)...>{});
  b = shuffled<A>(a, b, Lanes<interleaved<sizeof...(I), Unit, Width, true>(I)...>{});
  a = lower;
}
template <typename A, int Width, int... I>
inline void exchange(Vec<A>& a, Vec<A>& b, Lanes<I...>) {
  const Vec<A> lower = shuffled<A>(a, b, Lanes<exchanged<sizeof...(I), Width, false>(I)...>{});
  b = shuffled<A>(a, b, Lanes<exchanged<sizeof...(I), Width, true>(I)...>{});
  a = lower;
}

template <typename A, int Width>
inline void exchange_all(Vec<A>* m) {
  constexpr int L = kLanes<A>;
  if constexpr (Width < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (!(i & Width)) exchange<A, Width>(m[i], m[i + Width], typename LanesUpTo<L>::type{});
    exchange_all<A, 2 * Width>(m);
  }
}

template <typename A>
inline void transpose(Vec<A> (&m)[kLanes<A>]) {
  constexpr int L = kLanes<A>, Unit = 16 / int(sizeof(A));
  const typename LanesUpTo<L>::type lanes;
#pragma GCC unroll 16
  for (int i = 0; i < L; i += Unit) {
    if constexpr (Unit == 2) {
      interleave<A, 2, 1>(m[i], m[i + 1], lanes);
    } else {
      interleave<A, 4, 1>(m[i], m[i + 1], lanes);
      interleave<A, 4, 1>(m[i + 2], m[i + 3], lanes);
      interleave<A, 4, 2>(m[i], m[i + 2], lanes);
      interleave<A, 4, 2>(m[i + 1], m[i + 3], lanes);
      const Vec<A> row1 = m[i + 2];
      m[i + 2] = m[i + 1];
      m[i + 1] = row1;
    }
  }
  exchange_all<A, Unit>(m);
}

}  // namespace lska_ops::LSKA_OPS_ISA
