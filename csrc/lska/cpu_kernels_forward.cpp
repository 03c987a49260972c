// LSKA's cascade on CPU, forward: plane by plane where that is faster, else a group of channels at a time.
#include "csrc/lska/cpu_cascade.h"
#include "csrc/lska/cpu_kernels_parts.h"
#include "csrc/lska/cpu_paths.h"
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

template <typename T, int I>
ForwardKernel<T> plane_kernel() {
  constexpr int K0 = kLskaSplits[I].k0, K1 = kLskaSplits[I].k1, D = kLskaSplits[I].dilation;
  return {plane_workspace_bytes<T, K0, K1, D>, lska_plane_fwd_kernel<T, T, K0, K1, D>,
          lska_plane_fwd_kernel<T, Acc<T>, K0, K1, D>};
}
template <typename T>
ForwardKernel<T> forward_kernel_for(const LskaShape& shape) {
  const int split = lska_plane_split(shape, kVectorBytes, int(sizeof(Acc<T>)));
  if (split == 0) return plane_kernel<T, 0>();
  if (split == 1) return plane_kernel<T, 1>();
  if (split == 2) return plane_kernel<T, 2>();
  if constexpr (kVectorBytes == 64) {
    if (split == 3) return plane_kernel<T, 3>();
    if (split == 4) return plane_kernel<T, 4>();
    if (split == 5) return plane_kernel<T, 5>();
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
