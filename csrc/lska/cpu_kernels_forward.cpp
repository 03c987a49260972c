// LSKA's cascade on CPU, forward: plane by plane where that is faster, else a group of channels at a time.
#include "csrc/lska/cpu_cascade.h"
#include "csrc/lska/cpu_kernels_parts.h"
#include "csrc/lska/cpu_plane.h"

namespace lska_ops::LSKA_OPS_ISA {

// reference: cascade(x)
// owns    kLanes channels of one image
// reads   x [C, H, W] or [H, W, C], the taps
// writes  s, of the same layout, of T or of A
// keeps   one plane of vectors (after the horizontal pair) and one strip of it
template <typename T, typename S>
void lska_cascade_fwd_kernel(const LskaShape& shape, const LskaTaps& taps, const T* x, const T* end, S* s,
                             int block, void* workspace) {
  using A = Acc<T>;
  Arena<A> arena{static_cast<Vec<A>*>(workspace)};
  Cascade<T> cascade(arena, shape, taps, block);
  const Strips<A>& strips = cascade.strips;
  const auto in = channels_of<const T>(shape, x, end, block, kLanes<A>);
  for (int64_t y = 0; y < shape.H; ++y) {
    load_row<T>(in, y, cascade.x_row);
    cascade.horizontal(y);
  }
  for (int i = 0; i < strips.count; ++i) {
    Vec<A>* plane = cascade.plane + i * strips.pitch;
    cascade.vertical(i);
    conv_line<A>(cascade.down(cascade.strip, cascade.conv_spatial_v, cascade.k1, cascade.d,
                              cascade.conv_spatial_v_bias),
                 plane);
  }
  const auto out = channels_of<S>(shape, s, nullptr, block, kLanes<A>);
  const int64_t* column = cascade.column;
  for (int64_t y = 0; y < shape.H; ++y) {
    const Vec<A>* row = cascade.plane + y * strips.V;
    store_row<S>(
        out, y, [&](int64_t i) { return row[column[i]]; }, [](Vec<A> v, int64_t, int, int) { return v; });
  }
}

template <int N>
struct Number {
  static constexpr int value = N;
};
template <typename T>
struct ForwardKernel {
  size_t (*workspace_bytes)(const LskaShape&);
  void (*to_t)(const LskaShape&, const LskaTaps&, const T*, const T*, T*, int, void*);
  void (*to_a)(const LskaShape&, const LskaTaps&, const T*, const T*, Acc<T>*, int, void*);
};
template <typename T>
size_t group_workspace_bytes(const LskaShape& shape) {
  Arena<Acc<T>> arena{nullptr};
  Cascade<T>(arena, shape, {}, 0);
  return arena.used * kVectorBytes;
}
template <typename T, int K0, int K1, int D>
size_t plane_workspace_bytes(const LskaShape& shape) {
  Arena<Acc<T>> arena{nullptr};
  PlaneCascade<T, K0, K1, D>(arena, shape);
  return arena.used * kVectorBytes;
}

// Plane by plane against a group of channels, in time, on Zen 4. 32-byte vectors: 0.6-0.9 at k_size 7 to 23,
// 1.05 at 35, 1.2 at 53. 64-byte vectors at 80 columns: 0.6 at 7, 0.86 at 35, 0.9 at 53; the more of a row's
// last vector is beyond W the worse, 1.1 at 40 columns and 53 (cpu.cpp then takes 32-byte vectors for few
// taps).
template <typename T>
ForwardKernel<T> forward_kernel_for(const LskaShape& shape) {
  const auto plane = [](auto k0, auto k1, auto d) {
    constexpr int K0 = decltype(k0)::value, K1 = decltype(k1)::value, D = decltype(d)::value;
    return ForwardKernel<T>{plane_workspace_bytes<T, K0, K1, D>, lska_plane_fwd_kernel<T, T, K0, K1, D>,
                            lska_plane_fwd_kernel<T, Acc<T>, K0, K1, D>};
  };
  const auto is = [&](int k0, int k1, int d) {
    return shape.k0 == k0 && shape.k1 == k1 && shape.dilation == d;
  };
  const int64_t row = whole<Acc<T>>(shape.W), beyond = row - shape.W;
  if (!shape.channels_last && beyond * 2 <= row) {
    if (is(3, 3, 2)) return plane(Number<3>{}, Number<3>{}, Number<2>{});
    if (is(3, 5, 2)) return plane(Number<3>{}, Number<5>{}, Number<2>{});
    if (is(5, 7, 3)) return plane(Number<5>{}, Number<7>{}, Number<3>{});
    if constexpr (kVectorBytes == 64)
      if (beyond * 8 <= row) {
        if (is(5, 11, 3)) return plane(Number<5>{}, Number<11>{}, Number<3>{});
        if (is(5, 13, 3)) return plane(Number<5>{}, Number<13>{}, Number<3>{});
        if (is(5, 17, 3)) return plane(Number<5>{}, Number<17>{}, Number<3>{});
      }
  }
  return {group_workspace_bytes<T>, lska_cascade_fwd_kernel<T, T>, lska_cascade_fwd_kernel<T, Acc<T>>};
}

void add_forward(Dtype dtype, LskaCpuKernels& kernels) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    kernels.lanes = kLanes<A>;
    kernels.fwd_workspace_bytes = [](const LskaShape& shape) {
      return forward_kernel_for<T>(shape).workspace_bytes(shape);
    };
    kernels.cascade_fwd = [](const LskaShape& shape, const LskaTaps& taps, const void* x, const void* end,
                             void* s, bool accumulate, int block, void* workspace) {
      const ForwardKernel<T> kernel = forward_kernel_for<T>(shape);
      const T *from = static_cast<const T*>(x), *to = static_cast<const T*>(end);
      if (accumulate)
        kernel.to_a(shape, taps, from, to, static_cast<A*>(s), block, workspace);
      else
        kernel.to_t(shape, taps, from, to, static_cast<T*>(s), block, workspace);
    };
  });
}

}  // namespace lska_ops::LSKA_OPS_ISA
