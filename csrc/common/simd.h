// Vectors as wide as the instruction set this file is compiled for. A kernel file that includes it is
// compiled once per instruction set, with LSKA_OPS_ISA as the name of its namespace. Everything must stay
// inside of that namespace: an inline function shared between two of them would be linked once, with either's
// instructions. For the same reason kernel files include no C++ standard header that defines functions.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lska_ops::LSKA_OPS_ISA {

#if defined(LSKA_OPS_VECTOR_BYTES)  // tests run the 64-byte code on machines without AVX-512
constexpr int kVectorBytes = LSKA_OPS_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// fp16 and bf16 are computed in fp32.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using Acc = typename Accumulate<T>::type;

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vec = typename VectorOf<A>::type;
template <typename A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));

// The integer as wide as A.
template <typename A>
struct IntegerOf {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

template <typename A>
inline Vec<A> broadcast(A a) {
  return a - Vec<A>{};  // + would have to turn -0 into 0, and so be computed
}

#if !defined(__F16C__) && !defined(__aarch64__)
// float16 from and to float32 where no instruction does it: exact, to nearest even, NaN stays NaN. _Float16
// is not known to every compiler, and calls libgcc for every number. A lane of the integers has a Half's
// bits. Subnormal floats appear nowhere, so that it is no matter whether the processor flushes them to zero.
typedef int32_t HalfBits __attribute__((vector_size(kVectorBytes)));

inline Vec<float> half_to_float(HalfBits half) {
  const HalfBits magnitude = half & 0x7fff, sign = (half - magnitude) << 16;
  const HalfBits of_infinity = (magnitude >= 0x7c00) & 0x38000000;  // its exponent is the largest in both
  const HalfBits normal = (magnitude << 13) + 0x38000000 + of_infinity;
  const Vec<float> subnormal = __builtin_convertvector(magnitude, Vec<float>) * 0x1p-24f;
  HalfBits bits;
  memcpy(&bits, &subnormal, sizeof bits);
  bits = (magnitude < 0x400 ? bits : normal) | sign;
  Vec<float> out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

inline HalfBits float_to_half(Vec<float> a) {
  HalfBits bits;
  memcpy(&bits, &a, sizeof bits);
  const HalfBits magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  const HalfBits normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  Vec<float> sum;
  memcpy(&sum, &magnitude, sizeof sum);
  sum += 0.5f;  // its last place is that of subnormal halves
  HalfBits subnormal;
  memcpy(&subnormal, &sum, sizeof subnormal);
  subnormal -= 0x3f000000;
  const HalfBits infinity = HalfBits{} + 0x7c00, nan = ((magnitude >> 13) & 0x1ff) + 0x7e00;
  HalfBits half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude < 0x47800000 ? half : infinity;  // what rounds up to 2^16 is infinity already
  return (magnitude > 0x7f800000 ? nan : half) | sign;
}
#endif

inline float to_acc(float a) { return a; }
inline double to_acc(double a) { return a; }
inline float to_acc(BFloat16 a) {
  const uint32_t bits = uint32_t(a.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline float to_acc(Half a) {
#if defined(__F16C__)
  return _cvtsh_ss(a.bits);
#elif defined(__aarch64__)
  __fp16 h;
  memcpy(&h, &a.bits, 2);
  return h;
#else
  return half_to_float(HalfBits{} + a.bits)[0];
#endif
}

template <typename T>
inline T from_acc(Acc<T> a);
template <>
inline float from_acc<float>(float a) {
  return a;
}
template <>
inline double from_acc<double>(double a) {
  return a;
}
template <>
inline BFloat16 from_acc<BFloat16>(float a) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &a, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline Half from_acc<Half>(float a) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT))};
#elif defined(__aarch64__)
  const __fp16 h = __fp16(a);
  Half out;
  memcpy(&out.bits, &h, 2);
  return out;
#else
  return {uint16_t(float_to_half(broadcast(a))[0])};
#endif
}

// Unaligned loads and stores of kLanes<Acc<T>> elements, converting where T is a half type.
template <typename T>
inline Vec<Acc<T>> load(const T* p) {
  Vec<Acc<T>> v;
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    memcpy(&v, p, sizeof v);
  } else {
    for (int i = 0; i < kLanes<float>; ++i) v[i] = to_acc(p[i]);
  }
  return v;
}
template <typename T>
inline void store(T* p, Vec<Acc<T>> v) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    memcpy(p, &v, sizeof v);
  } else {
    for (int i = 0; i < kLanes<float>; ++i) p[i] = from_acc<T>(v[i]);
  }
}

#if defined(__F16C__) && defined(__AVX2__)
template <>
inline Vec<float> load<Half>(const Half* p) {
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; i += 8) {
    const __m256 part = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i)));
    memcpy(reinterpret_cast<float*>(&v) + i, &part, 32);
  }
  return v;
}
template <>
inline void store<Half>(Half* p, Vec<float> v) {
  for (int i = 0; i < kLanes<float>; i += 8) {
    __m256 part;
    memcpy(&part, reinterpret_cast<const float*>(&v) + i, 32);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i), _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT));
  }
}
#elif defined(__aarch64__)  // compilers would convert lane by lane
template <>
inline Vec<float> load<Half>(const Half* p) {
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; i += 4) {
    const float32x4_t part = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p[i].bits)));
    memcpy(reinterpret_cast<float*>(&v) + i, &part, 16);
  }
  return v;
}
template <>
inline void store<Half>(Half* p, Vec<float> v) {
  for (int i = 0; i < kLanes<float>; i += 4) {
    float32x4_t part;
    memcpy(&part, reinterpret_cast<const float*>(&v) + i, 16);
    vst1_u16(&p[i].bits, vreinterpret_u16_f16(vcvt_f16_f32(part)));
  }
}
#elif !defined(__F16C__)
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

template <>
inline Vec<float> load<Half>(const Half* p) {
  Halves halves;
  memcpy(&halves, p, sizeof halves);
  return half_to_float(__builtin_convertvector(halves, HalfBits));
}
template <>
inline void store<Half>(Half* p, Vec<float> v) {
  const Halves halves = __builtin_convertvector(float_to_half(v), Halves);
  memcpy(p, &halves, sizeof halves);
}
#endif

// The first n < kLanes elements; the other lanes read as zero and are not written.
template <typename T>
inline Vec<Acc<T>> load(const T* p, int n) {
  T part[kLanes<Acc<T>>] = {};
  memcpy(part, p, n * sizeof(T));
  return load(part);
}
template <typename T>
inline void store(T* p, Vec<Acc<T>> v, int n) {
  T part[kLanes<Acc<T>>];
  store(part, v);
  memcpy(p, part, n * sizeof(T));
}

}  // namespace lska_ops::LSKA_OPS_ISA
