// The only file that knows nvcc from a host compiler. Kernels written with what is here also compile with a
// host compiler, where tests/host_cuda/runner.h runs each thread as a fiber: barriers and shuffles are real
// there, shared memory is an exact heap block, and the bytes that cross global memory are counted.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LSKA_DEVICE __device__ __forceinline__
#define LSKA_BOTH __host__ __device__ __forceinline__
#define LSKA_KERNEL(threads) __global__ void __launch_bounds__(threads)
// Kernels for tensor cores: on GPUs whose plans never choose them they are empty.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800
#define LSKA_ON_TENSOR_CORES 1
#else
#define LSKA_ON_TENSOR_CORES 0
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define LSKA_BEFORE_80 true
#else
#define LSKA_BEFORE_80 false
#endif
// For kernels whose shared memory leaves room for few blocks: no register is saved for more.
#define LSKA_KERNEL_FEW_BLOCKS(threads) __global__ void __launch_bounds__(threads, 1)
// For those where it leaves room for two, which registers have to do as well.
#define LSKA_KERNEL_TWO_BLOCKS(threads) __global__ void __launch_bounds__(threads, 2)
// For lambdas, which a call would send to the stack with what they hold.
#define LSKA_INLINE __attribute__((always_inline))
#else
#define LSKA_ON_TENSOR_CORES 1
#define LSKA_BEFORE_80 false
#include <math.h>
#include <string.h>

#include "runner.h"
#define LSKA_DEVICE inline
#define LSKA_BOTH inline
#define LSKA_KERNEL(threads) inline void
#define LSKA_KERNEL_FEW_BLOCKS(threads) inline void
#define LSKA_KERNEL_TWO_BLOCKS(threads) inline void
#define LSKA_INLINE
#endif

namespace lska_ops {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct alignas(8) Bits8Bytes {
  uint32_t words[2];
};
struct alignas(16) Bits16Bytes {
  uint32_t words[4];
};
struct alignas(8) Float2 {
  float x, y;
};

// Two neighbours in memory as one access takes them.
template <class T>
struct Two {
  uint32_t bits;
};
template <>
struct Two<float> {
  Float2 bits;
};

#if defined(__CUDACC__)

LSKA_DEVICE int thread_index() { return int(threadIdx.x); }
// The same, and what is computed of it is computed again: no register is kept for it until then.
LSKA_DEVICE int thread_index_again() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
LSKA_DEVICE int thread_count() { return int(blockDim.x); }
LSKA_DEVICE int64_t block_x() { return int64_t(blockIdx.x); }
// The same, as if it were not known yet: what is computed from it is not kept in registers until it is
// needed.
LSKA_DEVICE int64_t block_x_again() {
  unsigned x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return int64_t(x);
}
LSKA_DEVICE int block_y() { return int(blockIdx.y); }
LSKA_DEVICE int block_z() { return int(blockIdx.z); }
LSKA_DEVICE int blocks_y() { return int(gridDim.y); }
LSKA_DEVICE int blocks_z() { return int(gridDim.z); }
LSKA_DEVICE void barrier() { __syncthreads(); }
LSKA_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
LSKA_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
LSKA_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
LSKA_DEVICE float exponential(float v) { return expf(v); }
// 2 to the power of v, to two units of float32's last place; 0 below 2^-126.
LSKA_DEVICE float power_of_two(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
LSKA_DEVICE float logarithm(float v) { return logf(v); }
// To 2^-22, of itself where that is more; of one over v, to a unit of the last place.
LSKA_DEVICE float logarithm_to_two(float v) {
  float out;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
LSKA_DEVICE float reciprocal(float v) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
LSKA_DEVICE float absolute(float v) { return fabsf(v); }
LSKA_DEVICE int shuffle_from(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
LSKA_DEVICE float square_root(float v) { return sqrtf(v); }
// p + offset in one instruction, if `bytes`, which is sizeof(T), is a kernel's argument: with a factor that
// is known it would be two, and what sums have in common be kept in registers.
template <class T>
LSKA_DEVICE T* element_of(T* p, uint32_t offset, uint32_t bytes) {
  T* at;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(at) : "r"(offset), "r"(bytes), "l"(p));
  __builtin_assume(__isGlobal(at));
  return at;
}
// A number that the compiler knows nothing about: it makes no copy of a loop for its first round.
LSKA_DEVICE int hidden(int v) {
  asm("" : "+r"(v));
  return v;
}
LSKA_DEVICE float* shared_floats() {
  extern __shared__ float4 lska_ops_shared[];
  return reinterpret_cast<float*>(lska_ops_shared);
}

// From global to shared memory, at addresses that are multiples of sizeof(V), 4, 8 or 16: without a register
// on the way and without waiting where the architecture can. Complete for the thread after wait_for_copies(),
// for the block after the barrier behind it.
template <class V>
LSKA_DEVICE void copy_to_shared(V* shared, const V* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
               :
               : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)),
                 "n"(sizeof(V))
               : "memory");
#else
  *shared = *global;
#endif
}
LSKA_DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}
// The larger magnitude, NaN if either is.
LSKA_DEVICE float max_magnitude(float a, float b) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(fabsf(a)), "f"(fabsf(b)));
  return out;
#else
  a = fabsf(a), b = fabsf(b);
  return a != a || a > b ? a : b;
#endif
}
LSKA_DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
LSKA_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

LSKA_DEVICE float to_float(float v) { return v; }
LSKA_DEVICE float to_float(Half v) { return __half2float(__ushort_as_half(v.bits)); }
LSKA_DEVICE float to_float(BFloat16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
LSKA_DEVICE void round_to(float v, float& out) { out = v; }
LSKA_DEVICE void round_to(float v, Half& out) { out.bits = __half_as_ushort(__float2half_rn(v)); }
LSKA_DEVICE void round_to(float v, BFloat16& out) { out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
LSKA_DEVICE Float2 to_floats(Two<Half> v) {
  __half2 both;
  memcpy(&both, &v.bits, 4);
  const float2 out = __half22float2(both);
  return {out.x, out.y};
}
LSKA_DEVICE Float2 to_floats(Two<BFloat16> v) {
  return {__uint_as_float(v.bits << 16), __uint_as_float(v.bits & 0xffff0000u)};
}
LSKA_DEVICE void round_to(Float2 v, Two<Half>& out) {
  const __half2 both = __floats2half2_rn(v.x, v.y);
  memcpy(&out.bits, &both, 4);
}
LSKA_DEVICE void round_to(Float2 v, Two<BFloat16>& out) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(v.x, v.y);
  memcpy(&out.bits, &both, 4);
}

template <class T>
LSKA_DEVICE T read_global(const T* p) {
  return *p;
}
// The bits of a value in a register of its own: of halves on their way a compiler puts two into one register,
// and waits for them to do so.
LSKA_DEVICE uint32_t read_word(const float* p) { return __float_as_uint(*p); }
template <class T>
LSKA_DEVICE uint32_t read_word(const T* p) {
  uint32_t word;
  asm("ld.global.u16 %0, [%1];" : "=r"(word) : "l"(p));
  return word;
}
// The same for weights, which all blocks read: counted apart, as they stay in the cache.
template <class T>
LSKA_DEVICE T read_weight(const T* p) {
  return *p;
}
template <class T>
LSKA_DEVICE void write_global(T* p, T v) {
  *p = v;
}

#else

template <class N>
inline N min(N a, N b) {
  return b < a ? b : a;
}
template <class N>
inline N max(N a, N b) {
  return a < b ? b : a;
}
inline int thread_index() { return host_cuda::thread_index(); }
inline int thread_index_again() { return host_cuda::thread_index(); }
inline int thread_count() { return host_cuda::thread_count(); }
inline int64_t block_x() { return host_cuda::block().x; }
inline int64_t block_x_again() { return block_x(); }
inline int block_y() { return int(host_cuda::block().y); }
inline int block_z() { return int(host_cuda::block().z); }
inline int blocks_y() { return int(host_cuda::grid().y); }
inline int blocks_z() { return int(host_cuda::grid().z); }
inline void barrier() { host_cuda::barrier(); }
inline float shuffle_xor(float v, int mask) { return host_cuda::shuffle_xor(v, mask); }
inline float multiply_add(float a, float b, float c) { return a * b + c; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline float exponential(float v) { return ::expf(v); }
inline float power_of_two(float v) { return ::exp2f(v); }
inline float logarithm(float v) { return ::logf(v); }
inline float logarithm_to_two(float v) { return ::log2f(v); }
inline float reciprocal(float v) { return 1.f / v; }
inline float absolute(float v) { return ::fabsf(v); }
inline int shuffle_from(int v, int lane) {
  const uint32_t mine = uint32_t(v);
  return int(host_cuda::exchange(&mine, 1)(lane, 0));
}
inline float square_root(float v) { return ::sqrtf(v); }
template <class T>
inline T* element_of(T* p, uint32_t offset, uint32_t) {
  return p + offset;
}
inline int hidden(int v) { return v; }
inline float* shared_floats() { return static_cast<float*>(host_cuda::shared_memory()); }

template <class V>
inline void copy_to_shared(V* shared, const V* global) {
  host_cuda::count_load(global, sizeof(V));
  *shared = *global;
}
inline void wait_for_copies() {}
inline float max_magnitude(float a, float b) {
  a = fabsf(a), b = fabsf(b);
  return a != a || a > b ? a : b;
}
inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

inline float to_float(float v) { return v; }
inline float to_float(Half v) {
  _Float16 half;
  memcpy(&half, &v.bits, 2);
  return float(half);
}
inline float to_float(BFloat16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
inline void round_to(float v, float& out) { out = v; }
inline void round_to(float v, Half& out) {
  const _Float16 half = _Float16(v);
  memcpy(&out.bits, &half, 2);
}
inline void round_to(float v, BFloat16& out) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  out.bits = uint16_t(v != v ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
inline T read_global(const T* p) {
  host_cuda::count_load(p, sizeof(T));
  return *p;
}
template <class T>
inline uint32_t read_word(const T* p) {
  const T v = read_global(p);
  uint32_t word = 0;
  memcpy(&word, &v, sizeof v);
  return word;
}
template <class T>
inline T read_weight(const T* p) {
  host_cuda::count_weight(p, sizeof(T));
  return *p;
}
template <class T>
inline void write_global(T* p, T v) {
  host_cuda::count_store(p, sizeof(T));
  *p = v;
}

inline Float2 to_floats(Two<Half> v) {
  return {to_float(Half{uint16_t(v.bits)}), to_float(Half{uint16_t(v.bits >> 16)})};
}
inline Float2 to_floats(Two<BFloat16> v) {
  return {to_float(BFloat16{uint16_t(v.bits)}), to_float(BFloat16{uint16_t(v.bits >> 16)})};
}
template <class T>
inline void round_to(Float2 v, Two<T>& out) {
  T x, y;
  round_to(v.x, x), round_to(v.y, y);
  out.bits = uint32_t(x.bits) | uint32_t(y.bits) << 16;
}

#endif

LSKA_DEVICE Float2 to_floats(Two<float> v) { return v.bits; }
LSKA_DEVICE void round_to(Float2 v, Two<float>& out) { out.bits = v; }

// For which architecture the kernel that runs was compiled, 80 for 8.0: a library without machine code for
// this GPU runs PTX of an older one, in which the kernel may be empty. 0 if that cannot be known.
template <class Arguments>
int compiled_for(void (*kernel)(Arguments)) {
#if defined(__CUDACC__)
  cudaFuncAttributes found{};
  if (cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(kernel)) == cudaSuccess)
    return found.ptxVersion;
  cudaGetLastError();  // or the next launch would be told
  return 0;
#else
  (void)kernel;
  return 80;
#endif
}

// Starts kernel(arguments) on a grid of x * y * z blocks; returns what went wrong, or null. `most_shared` is
// what a block of this device may have: the kernel is always given leave for that, so that two threads that
// launch it with different sizes do not take each other's leave away.
struct LaunchGrid {
  int64_t x, y, z;
};
template <class Arguments>
const char* launch(void (*kernel)(Arguments), LaunchGrid grid, int threads, int64_t shared_bytes,
                   int64_t most_shared, void* stream, const Arguments& arguments) {
#if defined(__CUDACC__)
  if (shared_bytes > 48 << 10) {  // more has to be asked for
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(most_shared));
    if (error != cudaSuccess) {
      cudaGetLastError();  // or whoever asks next would be told again
      return cudaGetErrorString(error);
    }
  }
  kernel<<<dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)), threads, size_t(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(arguments);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  (void)stream, (void)most_shared;
  host_cuda::launch(kernel, {grid.x, grid.y, grid.z}, threads, shared_bytes, arguments);
  return nullptr;
#endif
}

template <class T>
constexpr int kVector = 16 / int(sizeof(T));  // elements of one 16-byte access

template <class T>
LSKA_DEVICE float load(const T* p) {
  return to_float(read_global(p));
}
template <class T>
LSKA_DEVICE void store(T* p, float v) {
  T out;
  round_to(v, out);
  write_global(p, out);
}

// 16 bytes from an address that is a multiple of 16.
template <class T>
LSKA_DEVICE void load_vector(const T* p, float (&v)[kVector<T>]) {
  const Bits16Bytes bits = read_global(reinterpret_cast<const Bits16Bytes*>(p));
  T parts[kVector<T>];
  memcpy(parts, &bits, 16);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) v[i] = to_float(parts[i]);
}
template <class T>
LSKA_DEVICE void store_vector(T* p, const float (&v)[kVector<T>]) {
  T parts[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) round_to(v[i], parts[i]);
  Bits16Bytes bits;
  memcpy(&bits, parts, 16);
  write_global(reinterpret_cast<Bits16Bytes*>(p), bits);
}

}  // namespace lska_ops
