// What a warp does together on tensor cores, with a host branch where its lanes exchange words through
// runner.h. Shared memory is addressed in bytes from its begin.
#pragma once

#include "csrc/common/portable.cuh"

namespace lska_ops {

// Two numbers of 16 bits in a word, the first one in the low half.
template <class T>
LSKA_DEVICE uint32_t pack(float first, float second);
template <class T>
LSKA_DEVICE float first_of(uint32_t pair) {
  return to_float(T{uint16_t(pair)});
}
template <class T>
LSKA_DEVICE float second_of(uint32_t pair) {
  return to_float(T{uint16_t(pair >> 16)});
}

#if defined(__CUDACC__)

template <>
LSKA_DEVICE uint32_t pack<Half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
LSKA_DEVICE uint32_t pack<BFloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
#else

template <class T>
inline uint32_t pack(float first, float second) {
  T a, b;
  round_to(first, a);
  round_to(second, b);
  return uint32_t(a.bits) | uint32_t(b.bits) << 16;
}
#endif

LSKA_DEVICE char* shared_bytes_at(int at) { return reinterpret_cast<char*>(shared_floats()) + at; }

#if defined(__CUDACC__)

LSKA_DEVICE uint32_t shared_address(int at) {
  return uint32_t(__cvta_generic_to_shared(shared_floats())) + uint32_t(at);
}
LSKA_DEVICE void warp_barrier() { __syncwarp(); }
LSKA_DEVICE bool warp_any(bool v) { return __any_sync(0xffffffffu, v); }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
LSKA_DEVICE uint32_t warp_max(uint32_t v) { return __reduce_max_sync(0xffffffffu, v); }
#endif

// Whether this architecture has products of T: a kernel of others is empty.
template <class T>
constexpr bool kHasProducts = false;
template <>
inline constexpr bool kHasProducts<Half> = true;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
inline constexpr bool kHasProducts<BFloat16> = true;
#endif

// d[16, 8] += a[16, 16] b[16, 8]; lane 4 g + t holds a[g, 2 t], a[g + 8, 2 t], a[g, 2 t + 8], a[g + 8, 2 t +
// 8], b[2 t, g], b[2 t + 8, g], each with the next of its k, and d[g, 2 t], d[g, 2 t + 1], d[g + 8, ..].
template <class T>
LSKA_DEVICE void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                             uint32_t b1);
template <>
LSKA_DEVICE void mma_16x8x16<Half>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                   uint32_t b0, uint32_t b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
LSKA_DEVICE void mma_16x8x16<BFloat16>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                       uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// Matrices of 8 rows of 16 bytes: lane 8 i + r says where row r of matrix i is. Lane 4 g + t gets elements 2
// t and 2 t + 1 of row g of each.
LSKA_DEVICE void load_matrices(int row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
LSKA_DEVICE void load_matrices(int row, uint32_t (&to)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(shared_address(row))
               : "memory");
}
// The same, but lane 4 g + t gets elements g of rows 2 t and 2 t + 1.
LSKA_DEVICE void load_turned_matrices(int row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
// Elements 2 t and 2 t + 1 of row g of a matrix become those of column g.
LSKA_DEVICE uint32_t turn_matrix(uint32_t pair) {
  uint32_t turned;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
  return turned;
}

#else

template <class T>
constexpr bool kHasProducts = true;
inline void warp_barrier() { host_cuda::exchange(nullptr, 0); }
inline bool warp_any(bool v) {
  const uint32_t mine = v;
  const host_cuda::WarpWords all = host_cuda::exchange(&mine, 1);
  for (int lane = 0; lane < host_cuda::kWarp; ++lane) v = v || all(lane, 0);
  return v;
}
inline uint32_t warp_max(uint32_t v) {
  const host_cuda::WarpWords all = host_cuda::exchange(&v, 1);
  for (int lane = 0; lane < host_cuda::kWarp; ++lane) v = max(v, all(lane, 0));
  return v;
}

template <class T>
inline void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                        uint32_t b1) {
  const uint32_t mine[] = {a0, a1, a2, a3, b0, b1};
  const host_cuda::WarpWords all = host_cuda::exchange(mine, 6);
  const int g = thread_index() % host_cuda::kWarp / 4, t = thread_index() % 4;
  for (int n = 0; n < 4; ++n) {
    const int row = g, column = 2 * t + n % 2;
    float sum = 0;
    for (int k = 0; k < 16; k += 2) {
      const uint32_t a = all(4 * row + k / 2 % 4, n / 2 + k / 8 * 2),
                     b = all(4 * column + k / 2 % 4, 4 + k / 8);
      sum += first_of<T>(a) * first_of<T>(b) + second_of<T>(a) * second_of<T>(b);
    }
    d[n] += sum;
  }
}

template <int N>
inline void load_any_matrices(int row, uint32_t (&to)[N]) {
  const uint32_t mine = uint32_t(row);
  const host_cuda::WarpWords all = host_cuda::exchange(&mine, 1);
  const int g = thread_index() % host_cuda::kWarp / 4, t = thread_index() % 4;
  for (int n = 0; n < N; ++n) {
    if (all(8 * n + g, 0) % 16) throw std::runtime_error("a matrix's row that is not aligned");
    memcpy(&to[n], shared_bytes_at(int(all(8 * n + g, 0)) + 4 * t), 4);
  }
}
inline void load_matrices(int row, uint32_t (&to)[4]) { load_any_matrices(row, to); }
inline void load_matrices(int row, uint32_t (&to)[2]) { load_any_matrices(row, to); }
inline void load_turned_matrices(int row, uint32_t (&to)[4]) {
  const uint32_t mine = uint32_t(row);
  const host_cuda::WarpWords all = host_cuda::exchange(&mine, 1);
  const int g = thread_index() % host_cuda::kWarp / 4, t = thread_index() % 4;
  for (int n = 0; n < 4; ++n) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int from = int(all(8 * n + 2 * t + j, 0));
      if (from % 16) throw std::runtime_error("a matrix's row that is not aligned");
      memcpy(&pair[j], shared_bytes_at(from) + 2 * g, 2);
    }
    to[n] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
  }
}
inline uint32_t turn_matrix(uint32_t pair) {
  const host_cuda::WarpWords all = host_cuda::exchange(&pair, 1);
  const int g = thread_index() % host_cuda::kWarp / 4, t = thread_index() % 4;
  const auto element = [&](int lane) { return all(lane, 0) >> 16 * (g % 2) & 0xffff; };
  return element(8 * t + g / 2) | element(8 * t + 4 + g / 2) << 16;
}

#endif

}  // namespace lska_ops
