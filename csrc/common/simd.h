// Vectors as wide as the instruction set this file is compiled for. A kernel file that includes it is
// compiled once per instruction set, with LSKA_OPS_ISA as the name of its namespace. Everything must stay
// inside of that namespace: an inline function shared between two of them would be linked once, with either's
// instructions. For the same reason kernel files include no C++ standard header that defines functions.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
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
#else
  _Float16 h;
  memcpy(&h, &a.bits, 2);
  return float(h);
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
#else
  const _Float16 h = _Float16(a);
  Half out;
  memcpy(&out.bits, &h, 2);
  return out;
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
