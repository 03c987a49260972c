// Rows of the map in and out of vectors whose lanes are channels. In NCHW that is a transposition in
// registers of kLanes pixels of kLanes channels; in channels_last it is a plain load.
#pragma once

#include "csrc/common/transpose.h"
#include "csrc/lska/cpu_kernels.h"
#include "csrc/lska/cpu_line.h"

namespace lska_ops::LSKA_OPS_ISA {

// kLanes channels of one image. T* points at channel `first` of the image.
template <typename T>
struct Channels {
  T* data;
  const T* end;  // of the whole tensor: up to here a load may run past the row's end
  int64_t H, W, C;
  int live;  // channels that exist
  bool channels_last;
  int64_t offset(int64_t y) const { return y * W * (channels_last ? C : 1); }
};

template <typename T>
Channels<T> channels_of(const LskaShape& shape, T* image, const T* end, int block, int lanes) {
  const int64_t first = int64_t(block) * lanes, plane = int64_t(shape.H) * shape.W;
  const int live = shape.C - first < lanes ? int(shape.C - first) : lanes;
  return {image + first * (shape.channels_last ? 1 : plane),
          end,
          shape.H,
          shape.W,
          shape.C,
          live,
          shape.channels_last};
}

// line[0 ... W) = row y. Afterwards up to kPad vectors behind the row are zero again.
template <typename T, typename A = Acc<T>>
void load_row(const Channels<const T>& x, int64_t y, Vec<A>* line) {
  constexpr int L = kLanes<A>;
  const T* row = x.data + x.offset(y);
  if (x.channels_last) {
    for (int64_t i = 0; i < x.W; ++i, row += x.C) line[i] = row + L <= x.end ? load(row) : load(row, x.live);
    return;
  }
  const int64_t plane = x.H * x.W;
  for (int64_t i = 0; i < x.W; i += L) {
    Vec<A> m[L];
    if (x.live == L && row + i + (L - 1) * plane + L <= x.end) {
#pragma GCC unroll 16
      for (int c = 0; c < L; ++c) m[c] = load(row + i + c * plane);
    } else {  // the last channels, or the end of the tensor
      for (int c = 0; c < L; ++c) {
        const T* p = row + i + c * plane;
        m[c] = c >= x.live ? Vec<A>{} : p + L <= x.end ? load(p) : load(p, int(x.W - i < L ? x.W - i : L));
      }
    }
    transpose<A>(m);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) line[i + j] = m[j];
  }
  for (int j = 0; j < L; ++j) line[x.W + j] = Vec<A>{};
}

// Row y = finish(column(0 ... W)). A whole vector is written wherever the plane goes on behind the row: those
// pixels belong to the rows below, which are written after it.
template <typename T, typename Column, typename Finish, typename A = Acc<T>>
void store_row(const Channels<T>& out, int64_t y, const Column& column, const Finish& finish) {
  constexpr int L = kLanes<A>;
  const int64_t row = out.offset(y);
  if (out.channels_last) {
    for (int64_t i = 0; i < out.W; ++i) {
      const int64_t at = row + i * out.C;
      const Vec<A> v = finish(column(i), at, out.live, -1);
      if (out.live == L)
        store(out.data + at, v);
      else
        store(out.data + at, v, out.live);
    }
    return;
  }
  const int64_t plane = out.H * out.W;
  for (int64_t i = 0; i < out.W; i += L) {
    Vec<A> m[L];
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) m[j] = column(i + j);
    transpose<A>(m);
    const int n = plane - row - i < L ? int(plane - row - i) : L;
    if (out.live == L && n == L) {
#pragma GCC unroll 16
      for (int c = 0; c < L; ++c) {
        const int64_t at = c * plane + row + i;
        store(out.data + at, finish(m[c], at, L, c));
      }
    } else {
      for (int c = 0; c < out.live; ++c) {
        const int64_t at = c * plane + row + i;
        store(out.data + at, finish(m[c], at, n, c), n);
      }
    }
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
