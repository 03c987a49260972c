// What the CPU launchers of LSKA stand on: the checked problem, scratch memory, and the vendor library's
// product.
#pragma once

#include <vector>

#include "csrc/common/box.h"
#include "csrc/common/cpu_host.h"
#include "csrc/common/isa.h"
#include "csrc/lska/cpu_kernels.h"

namespace lska_ops {

// The depthwise weights as the ops receive them.
struct LskaWeights {
  Tensor conv0h;
  MaybeTensor conv0h_bias;
  Tensor conv0v;
  MaybeTensor conv0v_bias, conv_spatial_h, conv_spatial_h_bias, conv_spatial_v, conv_spatial_v_bias;
};

inline bool is_channels_last(const Tensor& x) {
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
  const auto fits = [&](int64_t dim, int64_t stride) { return x.size(dim) == 1 || x.stride(dim) == stride; };
  return fits(1, 1) && fits(3, C) && fits(2, W * C) && fits(0, H * W * C);
}

// t itself where its memory is in the wanted order, else a copy that is.
inline Tensor in_order(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  Tensor copy = stable::empty(
      t.sizes(), t.scalar_type(), std::nullopt, t.device(), std::nullopt,
      channels_last ? headeronly::MemoryFormat::ChannelsLast : headeronly::MemoryFormat::Contiguous);
  return stable::copy_(copy, t);
}

// Memory of one thread that outlives the call: mapping it anew costs as much as a small cascade. One for each
// Slot, for the calling thread holds s while it computes like the others.
template <int Slot = 0>
inline void* workspace(size_t bytes) {
  thread_local Scratch memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    memory = new_scratch(int64_t(bytes));
    size = bytes;
  }
  return memory.get();
}

// parallel_for that enters a parallel region even for one item, so that the vendor library always multiplies
// on one thread: its result must not depend on how many there are.
template <typename F>
void for_each(int64_t n, const F& f) {
  if (n == 0) return;
  parallel_for(0, n > 1 ? n : 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && i < n; ++i) f(i);
  });
}

// A strided matrix in someone else's memory.
struct Matrix {
  char* data;
  int64_t rows, cols, row_stride, col_stride;
  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  Tensor tensor(ScalarType dtype) const {
    const int64_t sizes[] = {rows, cols}, strides[] = {row_stride, col_stride};
    return stable::from_blob(data, {sizes, 2}, {strides, 2}, stable::Device(headeronly::DeviceType::CPU),
                             dtype);
  }
};

// out = a b, by the vendor library.
inline void multiply(const Matrix& a, const Matrix& b, const Matrix& out, ScalarType dtype) {
  multiply(a.tensor(dtype), b.tensor(dtype), out.tensor(dtype));
}

}  // namespace lska_ops
