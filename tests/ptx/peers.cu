// What LSKA costs without fused kernels, for the same judge: kernels written as PyTorch's CUDA sources are
// described (one thread an output, every index by division, every tap tested, no shared memory), and a copy
// as the least a map can cost. Without kNchw neighbours are channels.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace peers {

struct Sizes {
  int32_t B, C, H, W;
};
struct ConvArguments {
  const void *in, *weight, *bias;
  void* out;
  Sizes size;
  int32_t total, rows, cols, step;  // of the filter, its dilation
};

template <class T>
__device__ float wide(T v) {
  return float(v);
}
template <>
__device__ float wide(__half v) {
  return __half2float(v);
}
template <>
__device__ float wide(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
template <class T>
__device__ T narrow(float v) {
  return T(v);
}
template <>
__device__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// Where a thread's output lies, and the start of its plane: in channels_last neighbours along W are C apart.
template <bool kNchw>
struct Place {
  int n, c, h, w, plane, next;
  __device__ Place(int i, const Sizes& s) {
    if (kNchw) {
      const int row = i / s.W, map = row / s.H;
      w = i - row * s.W;
      h = row - map * s.H;
      n = map / s.C;
      c = map - n * s.C;
    } else {
      const int pixel = i / s.C, row = pixel / s.W;
      c = i - pixel * s.C;
      w = pixel - row * s.W;
      n = row / s.H;
      h = row - n * s.H;
    }
    plane = kNchw ? (n * s.C + c) * s.H * s.W : n * s.H * s.W * s.C + c;
    next = kNchw ? 1 : s.C;
  }
};

template <class T, bool kNchw>
__global__ void depthwise_fwd_kernel(ConvArguments a) {
  const T *in = static_cast<const T*>(a.in), *weight = static_cast<const T*>(a.weight);
  const int top = a.rows / 2 * a.step, left = a.cols / 2 * a.step;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < a.total; i += blockDim.x * gridDim.x) {
    const Place<kNchw> p(i, a.size);
    float sum = wide(static_cast<const T*>(a.bias)[p.c]);
    int tap = p.c * a.rows * a.cols;
    for (int y = 0; y < a.rows; ++y)
      for (int x = 0; x < a.cols; ++x, ++tap) {
        const int h = p.h - top + y * a.step, w = p.w - left + x * a.step;
        if (h >= 0 && h < a.size.H && w >= 0 && w < a.size.W)
          sum += wide(weight[tap]) * wide(in[p.plane + (h * a.size.W + w) * p.next]);
      }
    static_cast<T*>(a.out)[i] = narrow<T>(sum);
  }
}

// The gradient of the input: as above, with a division by the stride (a variable there) at every tap.
struct InputGradArguments {
  ConvArguments conv;
  int32_t stride;
};
template <class T, bool kNchw>
__global__ void depthwise_bwd_kernel(InputGradArguments given) {
  const ConvArguments& a = given.conv;
  const T *in = static_cast<const T*>(a.in), *weight = static_cast<const T*>(a.weight);
  const int top = a.rows / 2 * a.step, left = a.cols / 2 * a.step;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < a.total; i += blockDim.x * gridDim.x) {
    const Place<kNchw> p(i, a.size);
    float sum = 0;
    int tap = p.c * a.rows * a.cols;
    for (int y = 0; y < a.rows; ++y)
      for (int x = 0; x < a.cols; ++x, ++tap) {
        const int from_h = p.h + top - y * a.step, from_w = p.w + left - x * a.step;
        const int h = from_h / given.stride, w = from_w / given.stride;
        if (h * given.stride == from_h && w * given.stride == from_w && h >= 0 && h < a.size.H && w >= 0 &&
            w < a.size.W)
          sum += wide(weight[tap]) * wide(in[p.plane + (h * a.size.W + w) * p.next]);
      }
    static_cast<T*>(a.out)[i] = narrow<T>(sum);
  }
}

// The gradient of one tap by one block: its warps take images by turns, its lanes walk over pixels.
struct WeightGradArguments {
  const void *in, *grad;
  void* out;
  Sizes size;
  int32_t rows, cols, step;
};
template <class T, bool kNchw>
__global__ void depthwise_weight_kernel(WeightGradArguments a) {
  __shared__ float sums[32];
  const T *in = static_cast<const T*>(a.in), *grad = static_cast<const T*>(a.grad);
  const int tap = blockIdx.x % (a.rows * a.cols), c = blockIdx.x / (a.rows * a.cols);
  const int y = tap / a.cols, x = tap % a.cols, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = 0;
  for (int n = warp; n < a.size.B; n += blockDim.x / 32)
    for (int i = lane; i < a.size.H * a.size.W; i += 32) {
      const int row = i / a.size.W, col = i - row * a.size.W, next = kNchw ? 1 : a.size.C;
      const int plane =
          kNchw ? (n * a.size.C + c) * a.size.H * a.size.W : n * a.size.H * a.size.W * a.size.C + c;
      const int h = row + (y - a.rows / 2) * a.step, w = col + (x - a.cols / 2) * a.step;
      if (h >= 0 && h < a.size.H && w >= 0 && w < a.size.W)
        sum += wide(grad[plane + i * next]) * wide(in[plane + (h * a.size.W + w) * next]);
    }
  for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < int(blockDim.x) / 32; ++i) sum += sums[i];
    static_cast<T*>(a.out)[blockIdx.x] = narrow<T>(sum);
  }
}

// Elementwise, sixteen bytes at a time: copy, product, sum, and the product with a bias of channels added
// before.
struct MapArguments {
  const void *a, *b, *bias;
  void* out;
  Sizes size;
  int32_t vectors;
};
template <class T>
struct alignas(16) Vector {
  T v[16 / sizeof(T)];
};
template <class T, class F>
__device__ void each(const MapArguments& m, bool two, F f) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= m.vectors) return;
  const Vector<T> a = static_cast<const Vector<T>*>(m.a)[i];
  Vector<T> b = a, out;
  if (two) b = static_cast<const Vector<T>*>(m.b)[i];
#pragma unroll
  for (int k = 0; k < int(16 / sizeof(T)); ++k) out.v[k] = narrow<T>(f(wide(a.v[k]), wide(b.v[k])));
  static_cast<Vector<T>*>(m.out)[i] = out;
}
template <class T>
__global__ void copy_kernel(MapArguments m) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < m.vectors) static_cast<uint4*>(m.out)[i] = static_cast<const uint4*>(m.a)[i];
}
template <class T>
__global__ void multiply_kernel(MapArguments m) {
  each<T>(m, true, [](float a, float b) { return a * b; });
}
template <class T>
__global__ void add_kernel(MapArguments m) {
  each<T>(m, true, [](float a, float b) { return a + b; });
}
template <class T, bool kNchw>
__global__ void bias_kernel(MapArguments m) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = 16 / sizeof(T);
  if (i >= m.vectors) return;
  const int c = kNchw ? i * n / (m.size.H * m.size.W) % m.size.C : i * n % m.size.C;
  each<T>(m, false, [&](float a, float) { return a + wide(static_cast<const T*>(m.bias)[c]); });
}
// The sum of each channel's pixels: a block a channel.
template <class T, bool kNchw>
__global__ void bias_grad_kernel(MapArguments m) {
  __shared__ float sums[32];
  const T* in = static_cast<const T*>(m.a);
  float sum = 0;
  const int pixels = m.size.H * m.size.W, c = blockIdx.x;
  for (int i = threadIdx.x; i < m.size.B * pixels; i += blockDim.x) {
    const int n = i / pixels, p = i - n * pixels;
    sum += wide(in[kNchw ? (n * m.size.C + c) * pixels + p : i * m.size.C + c]);
  }
  for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < int(blockDim.x) / 32; ++i) sum += sums[i];
    static_cast<T*>(m.out)[c] = narrow<T>(sum);
  }
}

#define PEERS(T)                                             \
  PEERS_OF_LAYOUT(T, true)                                   \
  PEERS_OF_LAYOUT(T, false)                                  \
  template __global__ void copy_kernel<T>(MapArguments);     \
  template __global__ void multiply_kernel<T>(MapArguments); \
  template __global__ void add_kernel<T>(MapArguments);
#define PEERS_OF_LAYOUT(T, nchw)                                                  \
  template __global__ void depthwise_fwd_kernel<T, nchw>(ConvArguments);          \
  template __global__ void depthwise_bwd_kernel<T, nchw>(InputGradArguments);     \
  template __global__ void depthwise_weight_kernel<T, nchw>(WeightGradArguments); \
  template __global__ void bias_kernel<T, nchw>(MapArguments);                    \
  template __global__ void bias_grad_kernel<T, nchw>(MapArguments);
PEERS(float)
PEERS(__half)
PEERS(__nv_bfloat16)

}  // namespace peers
