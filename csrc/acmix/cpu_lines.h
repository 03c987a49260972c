// Rows of a map as the ACmix kernels want them: in the accumulation type, padded, and split by stride, so
// that a tap of neighbouring outputs is one unaligned vector load for every stride and dilation.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "csrc/acmix/cpu_kernels.h"
#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Where a tap falls that reaches over the border: reflection that goes on reflecting.
inline int64_t folded(int64_t i, int64_t length) {
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  const int64_t m = ((i % period) + period) % period;
  return m < length ? m : period - m;
}

// Hands out parts of one thread's scratch; from address 0 it only measures. Under AddressSanitizer what lies
// between two parts may not be touched.
struct Arena {
  uintptr_t base;
  int64_t used = 0;
  template <typename E>
  E* take(int64_t n) {
    const uintptr_t at = base + uintptr_t(used);
    const int64_t bytes = n * int64_t(sizeof(E));
    used += round_up(bytes, 64);
#if defined(__SANITIZE_ADDRESS__)
    used += 64;
    if (base)
      __asan_poison_memory_region(reinterpret_cast<void*>(at + bytes), size_t(base + used - at - bytes));
#endif
    return reinterpret_cast<E*>(at);
  }
  template <typename E>
  E* take_cleared(int64_t n) {
    E* part = take<E>(n);
    if (base) memset(part, 0, n * sizeof(E));
    return part;
  }
};

// Pixel x in [-pad, ...) of a line stands at index(x): the lines of the `stride` phases one after the other.
struct LineShape {
  int64_t stride, pad, phase, pitch;
  int64_t index(int64_t x) const { return (x + pad) % stride * phase + (x + pad) / stride; }
};

template <typename A>
inline LineShape line_shape(int64_t W, int64_t Wo, int64_t reach, int64_t stride) {
  LineShape s;
  s.stride = stride;
  s.pad = round_up(reach, stride);
  // the last tap of the last pixel, and room for a whole vector that begins there
  const int64_t read_to = (s.pad + reach) / stride + Wo + kLanes<A> - 1;
  s.phase = larger((W - 1 + reach + s.pad) / stride + 1, read_to);
  s.pitch = s.phase * stride;
  return s;
}

template <typename T>
inline void convert_row(Acc<T>* to, const T* from, int64_t n) {
  constexpr int V = kLanes<Acc<T>>;
  if (n < V) {
    for (int64_t x = 0; x < n; ++x) to[x] = to_acc(from[x]);
    return;
  }
  for (int64_t x = 0; x < n - V; x += V) store(to + x, load(from + x));
  store(to + n - V, load(from + n - V));  // overlaps the one before
}

// Every stride-th pixel of a row.
template <typename T>
inline void convert_strided(Acc<T>* to, const T* from, int64_t n, int64_t stride) {
  if (stride == 1) return convert_row(to, from, n);
  for (int64_t x = 0; x < n; ++x) to[x] = to_acc(from[x * stride]);
}

template <typename T>
inline void fill_line(Acc<T>* line, const LineShape& s, const T* row, int64_t W) {
  if (s.stride == 1) return convert_row(line + s.pad, row, W);
  for (int64_t x = 0; x < W; ++x) line[s.index(x)] = to_acc(row[x]);
}

// A column of the reflected border: where it stands in a line, and the pixel it repeats.
struct Fold {
  int32_t border, pixel;
};

// folds [2 * reach]: all of them, left ones first.
inline void make_folds(Fold* folds, const LineShape& s, int64_t W, int64_t reach) {
  for (int64_t i = 0; i < 2 * reach; ++i) {
    const int64_t x = i < reach ? i - reach : W + i - reach;
    folds[i] = {int32_t(s.index(x)), int32_t(s.index(folded(x, W)))};
  }
}

// Lines [rows][planes][pitch] of the map rows y, y + 1, ... with their reflections; from [planes, H, W].
template <typename T>
inline void fill_reflected(Acc<T>* lines, const LineShape& s, const T* from, int64_t planes, int64_t H,
                           int64_t W, int64_t y, int64_t rows, int64_t reach, const Fold* folds) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = from + folded(y + r, H) * W;
    for (int64_t d = 0; d < planes; ++d, lines += s.pitch) {
      fill_line(lines, s, row + d * H * W, W);
      for (int64_t i = 0; i < 2 * reach; ++i) lines[folds[i].border] = lines[folds[i].pixel];
    }
  }
}

// Lines [rows][pitch] of one plane's rows y, y + 1, ..., zero outside of the map. The padding columns are
// never written: they are zero since the scratch was cleared.
template <typename T>
inline void fill_zero_padded(Acc<T>* lines, const LineShape& s, const T* plane, int64_t H, int64_t W,
                             int64_t y, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r, lines += s.pitch) {
    if (y + r < 0 || y + r >= H) {
      memset(lines, 0, s.pitch * sizeof(Acc<T>));
    } else {
      fill_line(lines, s, plane + (y + r) * W, W);
    }
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
