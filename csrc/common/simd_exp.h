// exp and log of vectors, within about one unit in the last place; libm has them for single numbers only, and
// its vector library is not on every system.
#pragma once

#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

template <typename A>
struct Exponent;  // how a float is laid out, and ln 2 in two parts, so that n * kLn2High is exact
template <>
struct Exponent<float> {
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23;
  static constexpr int32_t kOne = 0x3f800000, kSqrtHalf = 0x3f3504f3;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kRound =
      12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  static constexpr float kSmallest = -87.f;
  static constexpr int kExpTerms = 7, kLogTerms = 5;
};
template <>
struct Exponent<double> {
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52;
  static constexpr int64_t kOne = 0x3ff0000000000000, kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kRound = 6755399441055744.;
  static constexpr double kSmallest = -708.;
  static constexpr int kExpTerms = 13, kLogTerms = 11;
};

// True in the first n lanes.
template <typename A>
inline typename Exponent<A>::Bits first_lanes(int n) {
  typename Exponent<A>::Bits lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = i < n ? -1 : 0;
  return lane;
}

template <typename A>
struct InverseFactorials {
  A at[Exponent<A>::kExpTerms + 1] = {1};
  constexpr InverseFactorials() {
    A factorial = 1;
    for (int i = 1; i <= Exponent<A>::kExpTerms; ++i) at[i] = A(1) / (factorial *= A(i));
  }
};

// exp(x) for x <= 1, the softmax's range. What would be subnormal is zero; NaN stays NaN.
template <typename A>
inline Vec<A> exp_of_nonpositive(Vec<A> x) {
  using E = Exponent<A>;
  using Bits = typename E::Bits;
  const Vec<A> rounded = x * E::kLog2e + E::kRound;
  const Vec<A> n = rounded - E::kRound;
  const Vec<A> r = (x - n * E::kLn2High) - n * E::kLn2Low;  // |r| <= ln(2) / 2
  constexpr InverseFactorials<A> inverse;
  Vec<A> series = broadcast(inverse.at[E::kExpTerms]);
#pragma GCC unroll 16
  for (int i = E::kExpTerms - 1; i >= 0; --i) series = series * r + inverse.at[i];
  Bits bits;
  memcpy(&bits, &rounded, sizeof bits);
  bits = (bits << E::kMantissa) + E::kOne;
  Vec<A> power;  // 2^n
  memcpy(&power, &bits, sizeof power);
  return x < E::kSmallest ? Vec<A>{} : series * power;
}

// log(x) for normal x > 0; NaN and infinity give NaN.
template <typename A>
inline Vec<A> log_of_normal(Vec<A> x) {
  using E = Exponent<A>;
  typename E::Bits bits;
  memcpy(&bits, &x, sizeof bits);
  const typename E::Bits exponent = (bits - E::kSqrtHalf) >> E::kMantissa;
  bits -= exponent << E::kMantissa;
  Vec<A> m;  // in [sqrt(1/2), sqrt(2)), so that log(m) = 2 atanh(f) needs few terms
  memcpy(&m, &bits, sizeof m);
  const Vec<A> f = (m - A(1)) / (m + A(1)), ff = f * f;
  Vec<A> series = broadcast(A(2) / A(2 * E::kLogTerms + 1));
#pragma GCC unroll 16
  for (int i = E::kLogTerms - 1; i >= 1; --i) series = series * ff + A(2) / A(2 * i + 1);
  const Vec<A> n = __builtin_convertvector(exponent, Vec<A>);
  const Vec<A> log_m = f * A(2) + f * ff * series;
  return n * E::kLn2High + (n * E::kLn2Low + log_m) + (x - x);
}

}  // namespace lska_ops::LSKA_OPS_ISA
