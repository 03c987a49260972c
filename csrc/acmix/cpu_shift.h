// The shift branch, fc and dep_conv, as one convolution of each dim's 3G maps: its weights and its lines.
#pragma once

#include "csrc/acmix/cpu_products.h"

namespace lska_ops::LSKA_OPS_ISA {

// q, k, v of all heads of dim d: map m of 3G.
inline int64_t channel_of(const AcmixSizes& s, int64_t m, int64_t d) {
  return m / s.G * s.C + m % s.G * s.D + d;
}

// plain [G][Kc * Kc][3G]: sum over p of dep_conv[d * G + g, p, tap] * fc[p, m]; fc [Kc * Kc, 3G] in A.
template <typename T, typename A = Acc<T>>
void compose_dim(const AcmixSizes& s, const T* dep_conv, const A* fc, int64_t d, A* plain) {
  const int64_t taps = s.kernel_conv * s.kernel_conv, maps = 3 * s.G;
  for (int64_t g = 0; g < s.G; ++g) {
    const T* dep = dep_conv + (d * s.G + g) * taps * taps;
    for (int64_t tap = 0; tap < taps; ++tap, plain += maps) {
      for (int64_t m = 0; m < maps; ++m) plain[m] = 0;
      for (int64_t p = 0; p < taps; ++p) {
        const A weight = to_acc(dep[p * taps + tap]);
        for (int64_t m = 0; m < maps; ++m) plain[m] += weight * fc[p * maps + m];
      }
    }
  }
}

// Lines [maps][rows][pitch] and where the taps of an output read in them.
template <typename A>
struct ShiftLines {
  LineShape line;
  int64_t rows, n;
  A* lines;
  int32_t* offset;  // [maps * Kc * Kc]
};

// For `band` output rows; the outputs stand `stride` apart on a map W wide.
template <typename A>
ShiftLines<A> make_shift_lines(int64_t maps, int64_t kernel_conv, int64_t W, int64_t Wo, int64_t stride,
                               int64_t band, Arena& arena) {
  ShiftLines<A> l;
  const int64_t reach = kernel_conv / 2;
  l.line = line_shape<A>(W, Wo, reach, stride);
  l.rows = (band - 1) * stride + kernel_conv;
  l.n = maps * kernel_conv * kernel_conv;
  l.lines = arena.take<A>(maps * l.rows * l.line.pitch);
  l.offset = arena.take<int32_t>(l.n);
  if (!arena.base) return l;
  memset(l.lines, 0, maps * l.rows * l.line.pitch * sizeof(A));
  int32_t* offset = l.offset;
  for (int64_t m = 0; m < maps; ++m) {
    for (int64_t i = 0; i < kernel_conv; ++i) {
      for (int64_t j = 0; j < kernel_conv; ++j) {
        *offset++ = int32_t((m * l.rows + i) * l.line.pitch + l.line.index(j - reach));
      }
    }
  }
  return l;
}

// The 3G maps of dim d for the output rows [yo, yo + band).
template <typename T>
void fill_shift_lines(const AcmixSizes& s, const ShiftLines<Acc<T>>& l, const T* qkv, int64_t d, int64_t yo,
                      int64_t band) {
  const int64_t rows = (band - 1) * s.stride + s.kernel_conv;
  for (int64_t m = 0; m < 3 * s.G; ++m) {
    fill_zero_padded(l.lines + m * l.rows * l.line.pitch, l.line, qkv + channel_of(s, m, d) * s.H * s.W, s.H,
                     s.W, yo * s.stride - s.kernel_conv / 2, rows);
  }
}

template <typename T>
void convert_fc(const AcmixSizes& s, const void* fc, Acc<T>* to) {
  convert_row(to, static_cast<const T*>(fc), s.kernel_conv * s.kernel_conv * 3 * s.G);
}

}  // namespace lska_ops::LSKA_OPS_ISA
