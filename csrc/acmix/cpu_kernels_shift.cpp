#include "csrc/acmix/cpu_kernels_parts.h"
#include "csrc/acmix/cpu_shift.h"
#include "csrc/common/simd_exp.h"

namespace lska_ops::LSKA_OPS_ISA {
namespace {

constexpr int64_t kBand = kAcmixShiftRows;
constexpr int kColumns = 3;  // taps of a row that share the loads of grad_y

template <typename A>
struct ComposeScratch {
  A *fc, *plain;  // [Kc * Kc, 3G], [G, Kc * Kc, 3G]
};

template <typename A>
ComposeScratch<A> lay_out_compose(const AcmixSizes& s, Arena& arena) {
  const int64_t n = s.kernel_conv * s.kernel_conv * 3 * s.G;
  ComposeScratch<A> c;
  c.fc = arena.take<A>(n);
  c.plain = arena.take<A>(s.G * n);
  return c;
}

template <typename T, typename A = Acc<T>>
void compose(const AcmixSizes& s, const AcmixWeights& weights, bool transposed, void* composite,
             int64_t first, int64_t last, void* scratch) {
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  const ComposeScratch<A> c = lay_out_compose<A>(s, arena);
  const int64_t maps = 3 * s.G, taps = s.kernel_conv * s.kernel_conv, n = maps * taps;
  convert_fc<T>(s, weights.fc, c.fc);
  A* out = static_cast<A*>(composite) + first * s.G * n;
  for (int64_t d = first; d < last; ++d) {
    compose_dim(s, static_cast<const T*>(weights.dep_conv), c.fc, d, c.plain);
    if (transposed) {  // for each head its q, k and v, from the G outputs; the taps turned around
      for (int64_t head = 0; head < s.G; ++head) {
        for (int64_t i = 0; i < s.G * taps; ++i) {
          const A* from = c.plain + (i / taps * taps + taps - 1 - i % taps) * maps;
          for (int64_t m = head; m < maps; m += s.G) *out++ = from[m];
        }
      }
      continue;
    }
    for (int64_t o = 0; o < s.G; o += kOutputs) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t g = o; g < smaller(o + kOutputs, s.G); ++g) {
          *out++ = c.plain[(g * taps + i % taps) * maps + i / taps];
        }
      }
    }
  }
}

template <typename A>
struct ShiftGradScratch {
  ShiftLines<A> shift;
  int64_t grad_pitch;
  A* grads;   // [G, kBand, grad_pitch]: grad_y of one dim, zero beyond the map
  A* sums;    // [G, 3G * Kc * Kc, lanes]: partial sums of the gradient of the composite weights
  A* totals;  // [G, Kc * Kc, 3G]
  A* fc;      // [Kc * Kc, 3G]
  A* plain;   // [G, Kc * Kc, 3G]
};

template <typename A>
ShiftGradScratch<A> lay_out(const AcmixSizes& s, Arena& arena) {
  ShiftGradScratch<A> f;
  f.shift = make_shift_lines<A>(3 * s.G, s.kernel_conv, s.W, s.Wo, s.stride, kBand, arena);
  f.grad_pitch = round_up(s.Wo, kLanes<A>);
  f.grads = arena.take<A>(s.G * kBand * f.grad_pitch);
  f.sums = arena.take<A>(s.G * f.shift.n * kLanes<A>);
  f.totals = arena.take<A>(s.G * f.shift.n);
  f.fc = arena.take<A>(f.shift.n);
  f.plain = arena.take<A>(s.G * f.shift.n);
  if (arena.base) memset(f.grads, 0, s.G * kBand * f.grad_pitch * sizeof(A));
  return f;
}

template <bool b>
struct Is {
  static constexpr bool value = b;
};

// sums[g][j] += sum over rows and pixels of grads[g] * lines[offset[j]], for NG heads and NJ taps of a row.
template <int NG, int NJ, typename A>
void correlate_block(const ShiftGradScratch<A>& f, const AcmixSizes& s, const A* grads, const A* lines,
                     const int32_t* offset, int64_t rows, A* sums) {
  constexpr int V = kLanes<A>;
  Vec<A> sum[NG][NJ];
  for (int g = 0; g < NG; ++g) {
    for (int j = 0; j < NJ; ++j) sum[g][j] = load(sums + (g * f.shift.n + j) * V);
  }
  const A* at[NJ];
  for (int j = 0; j < NJ; ++j) at[j] = lines + offset[j];
  const int64_t last = (s.Wo - 1) / V * V;
  const auto inside = first_lanes<A>(int(s.Wo - last));
  const auto add = [&](const A* grads_at, int64_t pixel, auto masked) {
    Vec<A> grad[NG];
#pragma GCC unroll 8
    for (int g = 0; g < NG; ++g) grad[g] = load(grads_at + g * kBand * f.grad_pitch);
#pragma GCC unroll 8
    for (int j = 0; j < NJ; ++j) {
      Vec<A> pixels = load(at[j] + pixel);
      if constexpr (decltype(masked)::value) pixels = inside ? pixels : Vec<A>{};
#pragma GCC unroll 8
      for (int g = 0; g < NG; ++g) sum[g][j] += grad[g] * pixels;
    }
  };
  for (int64_t r = 0; r < rows; ++r) {
    const A* grads_row = grads + r * f.grad_pitch;
    const int64_t row = r * s.stride * f.shift.line.pitch;
    for (int64_t x = 0; x < last; x += V) add(grads_row + x, row + x, Is<false>{});
    add(grads_row + last, row + last,
        Is<true>{});  // grad is zero beyond the map, but 0 times infinity is not
  }
  for (int g = 0; g < NG; ++g) {
    for (int j = 0; j < NJ; ++j) store(sums + (g * f.shift.n + j) * V, sum[g][j]);
  }
}

template <int NG, typename A>
void correlate(const ShiftGradScratch<A>& f, const AcmixSizes& s, int64_t g, int64_t rows) {
  static_assert(kColumns == 3);
  const A* grads = f.grads + g * kBand * f.grad_pitch;
  A* sums = f.sums + g * f.shift.n * kLanes<A>;
  for (int64_t i = 0; i < f.shift.n; i += s.kernel_conv) {
    for (int64_t j = i; j < i + s.kernel_conv; j += kColumns) {
      const int32_t* offset = f.shift.offset + j;
      A* to = sums + j * kLanes<A>;
      switch (smaller(kColumns, i + s.kernel_conv - j)) {
        case 1:
          correlate_block<NG, 1>(f, s, grads, f.shift.lines, offset, rows, to);
          break;
        case 2:
          correlate_block<NG, 2>(f, s, grads, f.shift.lines, offset, rows, to);
          break;
        default:
          correlate_block<NG, 3>(f, s, grads, f.shift.lines, offset, rows, to);
      }
    }
  }
}

// totals [G, Kc * Kc, 3G] = d y / d composite of dim d at rate2 = 1, over the whole batch.
template <typename T, typename A = Acc<T>>
void composite_grad(const AcmixSizes& s, const ShiftGradScratch<A>& f, const AcmixShiftGrad& io, int64_t d) {
  constexpr int V = kLanes<A>;
  const int64_t maps = 3 * s.G, taps = s.kernel_conv * s.kernel_conv;
  memset(f.sums, 0, s.G * f.shift.n * V * sizeof(A));
  for (int64_t b = 0; b < s.B; ++b) {
    const T* qkv = static_cast<const T*>(io.qkv) + b * 3 * s.C * s.H * s.W;
    const T* grad_y = static_cast<const T*>(io.grad_y) + (b * s.C + d * s.G) * s.Ho * s.Wo;
    for (int64_t yo = 0; yo < s.Ho; yo += kBand) {
      const int64_t rows = smaller(kBand, s.Ho - yo);
      fill_shift_lines(s, f.shift, qkv, d, yo, rows);
      for (int64_t g = 0; g < s.G; ++g) {
        for (int64_t r = 0; r < rows; ++r) {
          convert_row(f.grads + (g * kBand + r) * f.grad_pitch, grad_y + (g * s.Ho + yo + r) * s.Wo, s.Wo);
        }
      }
      int64_t g = 0;
      for (; g + 4 <= s.G; g += 4) correlate<4>(f, s, g, rows);
      for (; g + 2 <= s.G; g += 2) correlate<2>(f, s, g, rows);
      for (; g < s.G; ++g) correlate<1>(f, s, g, rows);
    }
  }
  for (int64_t g = 0; g < s.G; ++g) {
    for (int64_t i = 0; i < f.shift.n; ++i) {
      const A* lanes = f.sums + (g * f.shift.n + i) * V;
      A total = 0;
      for (int j = 0; j < V; ++j) total += lanes[j];
      f.totals[(g * taps + i % taps) * maps + i / taps] = total;
    }
  }
}

// Gradients of the shift branch's weights.
// Owns: dim d of dep_conv over the whole batch. Reads: grad_y and the 3G maps of d. Writes: grad_dep_conv of
// d, d's share of grad_fc and grad_rate2. Keeps: lines of a band and the sums, a vector each. The reference:
// the backward of `rate2 * shift_aggregate(q, k, v, fc, dep_conv)`.
template <typename T, typename A = Acc<T>>
void shift_grad(const AcmixSizes& s, const AcmixWeights& weights, const AcmixShiftGrad& io, int64_t first,
                int64_t last, void* scratch) {
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  const ShiftGradScratch<A> f = lay_out<A>(s, arena);
  const int64_t maps = 3 * s.G, taps = s.kernel_conv * s.kernel_conv;
  const A rate2 = to_acc(*static_cast<const T*>(weights.rate2));
  const T* dep_conv = static_cast<const T*>(weights.dep_conv);
  convert_fc<T>(s, weights.fc, f.fc);
  for (int64_t d = first; d < last; ++d) {
    composite_grad<T>(s, f, io, d);
    compose_dim(s, dep_conv, f.fc, d, f.plain);
    A grad_rate2 = 0;
    for (int64_t i = 0; i < s.G * f.shift.n; ++i) grad_rate2 += f.totals[i] * f.plain[i];
    static_cast<A*>(io.rate2_parts)[d] = grad_rate2;

    A* grad_fc = static_cast<A*>(io.fc_parts) + d * taps * maps;
    memset(grad_fc, 0, taps * maps * sizeof(A));
    for (int64_t g = 0; g < s.G; ++g) {
      for (int64_t p = 0; p < taps; ++p) {
        const int64_t at = ((d * s.G + g) * taps + p) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) {
          const A* total = f.totals + (g * taps + tap) * maps;
          const A dep = to_acc(dep_conv[at + tap]) * rate2;
          A grad_dep = 0;
          for (int64_t m = 0; m < maps; ++m) {
            grad_dep += total[m] * f.fc[p * maps + m];
            grad_fc[p * maps + m] += total[m] * dep;
          }
          static_cast<T*>(io.grad_dep_conv)[at + tap] = from_acc<T>(grad_dep * rate2);
        }
      }
    }
  }
}

template <typename T, typename A = Acc<T>>
void sum_parts(const void* parts, int64_t count, int64_t n, bool transposed, void* out) {
  const A* from = static_cast<const A*>(parts);
  for (int64_t i = 0; i < n; ++i) {
    A total = 0;
    for (int64_t j = 0; j < count; ++j) total += from[j * n + i];
    static_cast<T*>(out)[transposed ? i % (n / 2) * 2 + i / (n / 2) : i] = from_acc<T>(total);
  }
}

template <typename A>
int64_t compose_scratch(const AcmixSizes& s) {
  Arena arena{0};
  lay_out_compose<A>(s, arena);
  return arena.used;
}

template <typename A>
int64_t shift_grad_scratch(const AcmixSizes& s) {
  Arena arena{0};
  lay_out<A>(s, arena);
  return arena.used;
}

}  // namespace

void add_shift(Dtype dtype, AcmixCpuKernels& kernels) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    kernels.compose_scratch = compose_scratch<Acc<T>>;
    kernels.compose = compose<T>;
    kernels.shift_grad_scratch = shift_grad_scratch<Acc<T>>;
    kernels.shift_grad = shift_grad<T>;
    kernels.sum_parts = sum_parts<T>;
  });
}

}  // namespace lska_ops::LSKA_OPS_ISA
