// The elementwise passes around the 1x1 product, and the sums of partial gradients in their fixed order.
#include "csrc/lska/cpu_kernels_parts.h"

namespace lska_ops::LSKA_OPS_ISA {

// f(i, n) over [0, n) in whole vectors (n = kLanes, a constant after inlining) and one shorter one.
template <typename A, typename F>
inline void for_vectors(int64_t n, const F& f) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= n; i += L) f(i, L);
  if (i < n) f(i, int(n - i));
}
template <typename T>
inline Vec<Acc<T>> load_n(const T* p, int n) {
  return n == kLanes<Acc<T>> ? load(p) : load(p, n);
}
template <typename T>
inline void store_n(T* p, Vec<Acc<T>> v, int n) {
  if (n == kLanes<Acc<T>>)
    store(p, v);
  else
    store(p, v, n);
}

// reference: x * conv1(s), behind the product
// owns    a block of pixels of one image
// reads   x of T, the product and bias [C] of A
// writes  y of T, rounded once
// keeps   nothing
template <typename T, typename A = Acc<T>>
void lska_gate_fwd_kernel(const GateBlock& block, const T* x, const A* product, const A* bias, T* y) {
  for (int64_t r = 0; r < block.rows;
       ++r, x += block.stride, y += block.stride, product += block.product_stride) {
    const Vec<A> row_bias = broadcast<A>(block.channels_in_rows ? bias[r] : A(0));
    for_vectors<A>(block.cols, [&](int64_t i, int n) {
      const Vec<A> b = block.channels_in_rows ? row_bias : load_n(bias + i, n);
      __builtin_prefetch(x + i + block.stride);  // rows are short and far apart: the hardware sees no pattern
      store_n(y + i, load_n(x + i, n) * (load_n(product + i, n) + b), n);
    });
  }
}

// reference: the gradient of x * conv1(s) with respect to conv1(s)
// owns    a block of pixels of one image
// reads   grad_y, x of T
// writes  grad_product = grad_y * x of A, and sums [C] of it over the block's pixels
// keeps   nothing
template <typename T, typename A = Acc<T>>
void lska_gate_bwd_kernel(const GateBlock& block, const T* grad_y, const T* x, A* grad_product, A* sums) {
  if (!block.channels_in_rows)
    for (int64_t c = 0; c < block.cols; ++c) sums[c] = A(0);
  for (int64_t r = 0; r < block.rows; ++r) {
    Vec<A> total{};
    for_vectors<A>(block.cols, [&](int64_t i, int n) {
      const Vec<A> v = load_n(grad_y + i, n) * load_n(x + i, n);
      store_n(grad_product + i, v, n);
      if (block.channels_in_rows)
        total += v;
      else
        store_n(sums + i, load_n(sums + i, n) + v, n);
    });
    if (block.channels_in_rows) {
      A sum = 0;
      for (int j = 0; j < kLanes<A>; ++j) sum += total[j];
      sums[r] = sum;
    }
    x += block.stride;
    grad_y += block.stride;
    grad_product += block.product_stride;
  }
}

template <typename T, typename A = Acc<T>>
void to_accumulate(const T* in, A* out, int64_t n) {
  for_vectors<A>(n, [&](int64_t i, int m) { store_n(out + i, load_n(in + i, m), m); });
}

template <typename A>
void add(A* sum, const A* part, int64_t n) {
  for_vectors<A>(n, [&](int64_t i, int m) { store_n(sum + i, load_n(sum + i, m) + load_n(part + i, m), m); });
}

template <typename T, typename A = Acc<T>>
void sum_parts(const A* parts, int64_t count, int64_t stride, int64_t n, T* out) {
  for_vectors<A>(n, [&](int64_t i, int m) {
    Vec<A> total{};
    for (int64_t p = 0; p < count; ++p) total += load_n(parts + p * stride + i, m);
    store_n(out + i, total, m);
  });
}

void add_gate(Dtype dtype, LskaCpuKernels& kernels) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    kernels.gate_fwd = [](const GateBlock& block, const void* x, const void* product, const void* bias,
                          void* y) {
      lska_gate_fwd_kernel<T>(block, static_cast<const T*>(x), static_cast<const A*>(product),
                              static_cast<const A*>(bias), static_cast<T*>(y));
    };
    kernels.gate_bwd = [](const GateBlock& block, const void* grad_y, const void* x, void* grad_product,
                          void* sums) {
      lska_gate_bwd_kernel<T>(block, static_cast<const T*>(grad_y), static_cast<const T*>(x),
                              static_cast<A*>(grad_product), static_cast<A*>(sums));
    };
    kernels.to_accumulate = [](const void* in, void* out, int64_t n) {
      to_accumulate<T>(static_cast<const T*>(in), static_cast<A*>(out), n);
    };
    kernels.add = [](void* sum, const void* part, int64_t n) {
      add<A>(static_cast<A*>(sum), static_cast<const A*>(part), n);
    };
    kernels.sum_parts = [](const void* parts, int64_t count, int64_t stride, int64_t n, void* out) {
      sum_parts<T>(static_cast<const A*>(parts), count, stride, n, static_cast<T*>(out));
    };
  });
}

}  // namespace lska_ops::LSKA_OPS_ISA
