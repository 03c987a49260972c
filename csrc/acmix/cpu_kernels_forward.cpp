#include "csrc/acmix/cpu_kernels_parts.h"
#include "csrc/acmix/cpu_shift.h"
#include "csrc/acmix/cpu_window.h"

namespace lska_ops::LSKA_OPS_ISA {
namespace {

template <typename A>
struct ForwardScratch {
  Window<A> window;
  ShiftLines<A> shift;
  int64_t tile_pitch, key_rows;
  A *keys, *values, *queries;  // lines of one head
  A* tile;                     // [C, band, tile_pitch]: the shift branch of a band, all channels; or null
  A* weights;                  // [block, K * K, lanes]: logits, then exp(logit - largest)
  A* sums;                     // [block, D, lanes]
  A* conv_p;                   // [D, 2]
  int32_t* weight_offset;      // [K]
};

template <typename A>
ForwardScratch<A> lay_out(const AcmixSizes& s, int64_t band, Arena& arena) {
  constexpr int V = kLanes<A>;
  ForwardScratch<A> f = {};
  if (s.kernel_conv) f.shift = make_shift_lines<A>(3 * s.G, s.kernel_conv, s.W, s.Wo, s.stride, band, arena);
  if (!s.kernel_att) return f;
  f.window = make_window<A>(s, arena, false);
  f.tile_pitch = round_up(s.Wo, V);
  f.key_rows = (band - 1) * s.stride + 2 * f.window.reach + 1;
  const int64_t lines = f.key_rows * f.window.row_pitch, queries = band * s.D * f.window.x_pitch;
  f.keys = arena.take_cleared<A>(lines);
  f.values = arena.take_cleared<A>(lines);
  f.queries = arena.take_cleared<A>(queries);
  if (s.kernel_conv) f.tile = arena.take<A>(s.C * band * f.tile_pitch);
  f.weights = arena.take<A>(f.window.block * f.window.taps * V);
  f.sums = arena.take<A>(f.window.block * s.D * V);
  f.conv_p = arena.take<A>(2 * s.D);
  f.weight_offset = arena.take<int32_t>(f.window.K);
  if (!arena.base) return f;
  for (int64_t t = 0; t < f.window.K; ++t) f.weight_offset[t] = int32_t(t * V);
  return f;
}

template <typename T, typename A = Acc<T>>
inline void store_pixels(T* to, Vec<A> values, int64_t lanes) {
  if (lanes == kLanes<A>) {
    store(to, values);
  } else {
    store(to, values, int(lanes));
  }
}

// Attention of a block of query rows at one vector of pixels.
// Owns: rows [yo, yo + rows), pixels [x, x + lanes) of head g. Reads: lines of queries, keys and values, the
// tile unless it is null. Writes: y = tile + rate1 * attention, and lse. Keeps: weights and sums, in L1. The
// reference: `weights = (q * (windows(k) + p_offset)).sum(1).softmax(1)` to the return of acmix().
template <typename T, typename A = Acc<T>>
[[gnu::noinline]] void attend(const AcmixSizes& s, const ForwardScratch<A>& f, const A* q, const A* k,
                              const A* v, int64_t yo, int64_t x, int64_t rows, const A* tile,
                              int64_t tile_dim, A rate1, T* y, A* lse) {
  constexpr int V = kLanes<A>;
  const Window<A>& w = f.window;
  const int64_t weights_row = w.taps * V, sums_row = s.D * V, lanes = smaller(V, s.Wo - x);
  window_dots(w, s, q, w.x_pitch, k, rows, f.weights, weights_row, V);
  const A scale = inverse_root<A>(s.D);
  Vec<A> inverse[kRows];
  for (int64_t r = 0; r < rows; ++r) {
    A* weights = f.weights + r * weights_row;
    const Slopes<A> slope = slopes(q + r * s.D * w.x_pitch, w.x_pitch, f.conv_p, s.D);
    Vec<A> largest = broadcast(-A(__builtin_huge_val())), sum = {};
    for_logits(w, weights, V, w.dx + x, w.dy + (yo + r) * w.K, slope, scale, [&](int64_t i, Vec<A> logit) {
      largest = logit > largest ? logit : largest;
      store(weights + i * V, logit);
    });
    for (int64_t i = 0; i < w.taps; ++i) {
      const Vec<A> weight = exp_of_nonpositive<A>(load(weights + i * V) - largest);
      store(weights + i * V, weight);
      sum += weight;
    }
    inverse[r] = A(1) / sum;
    store(lse + (yo + r) * s.Wo + x, largest + log_of_normal<A>(sum), int(lanes));
  }
  memset(f.sums, 0, rows * sums_row * sizeof(A));
  window_sums(w, s, f.weights, weights_row, V, f.weight_offset, v, rows, f.sums, sums_row, V);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < s.D; ++d) {
      const Vec<A> attended = load(f.sums + r * sums_row + d * V) * inverse[r];
      const Vec<A> shifted = tile ? load(tile + d * tile_dim + r * f.tile_pitch + x) : Vec<A>{};
      store_pixels(y + (d * s.Ho + yo + r) * s.Wo + x, shifted + attended * rate1, lanes);
    }
  }
}

// The shift branch of a band: tile [C, band, tile_pitch] = rate2 * shift_aggregate(q, k, v); without
// attention it is written to y, a picture's [C, Ho, Wo].
template <typename T, typename A = Acc<T>>
[[gnu::noinline]] void shift_band(const AcmixSizes& s, const ForwardScratch<A>& f, const T* qkv,
                                  const A* composite, A rate2, int64_t yo, int64_t rows, int64_t band, T* y) {
  Convolution<A> c;
  c.lines = f.shift.lines;
  c.row_step = s.stride * f.shift.line.pitch;
  c.rows = rows;
  c.width = s.Wo;
  c.offset = f.shift.offset;
  c.n = f.shift.n;
  for (int64_t d = 0; d < s.D; ++d) {
    fill_shift_lines(s, f.shift, qkv, d, yo, rows);
    if (!f.tile) {
      T* out = y + (d * s.G * s.Ho + yo) * s.Wo;
      convolve(c, composite + d * s.G * c.n, s.G, [&](int64_t g, int64_t r, int64_t x, Vec<A> sum) {
        store_pixels(out + (g * s.Ho + r) * s.Wo + x, sum * rate2, smaller(kLanes<A>, s.Wo - x));
      });
      continue;
    }
    A* tile = f.tile + d * s.G * band * f.tile_pitch;
    convolve(c, composite + d * s.G * c.n, s.G, [&](int64_t g, int64_t r, int64_t x, Vec<A> sum) {
      store(tile + (g * band + r) * f.tile_pitch + x, sum * rate2);
    });
  }
}

// Attention of a band, head by head; y, a picture's [C, Ho, Wo], lse [G, Ho, Wo].
template <typename T, typename A = Acc<T>>
void attend_band(const AcmixSizes& s, const ForwardScratch<A>& f, const T* qkv, A rate1, int64_t yo,
                 int64_t rows, int64_t band, T* y, A* lse) {
  const Window<A>& w = f.window;
  for (int64_t g = 0; g < s.G; ++g, y += s.D * s.Ho * s.Wo, lse += s.Ho * s.Wo) {
    const T* q = qkv + g * s.D * s.H * s.W;
    const int64_t key_rows = (rows - 1) * s.stride + 2 * w.reach + 1, top = yo * s.stride - w.reach;
    fill_reflected(f.keys, w.line, q + s.C * s.H * s.W, s.D, s.H, s.W, top, key_rows, w.reach, w.folds);
    fill_reflected(f.values, w.line, q + 2 * s.C * s.H * s.W, s.D, s.H, s.W, top, key_rows, w.reach, w.folds);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = 0; d < s.D; ++d) {
        convert_strided(f.queries + (r * s.D + d) * w.x_pitch, q + (d * s.H + (yo + r) * s.stride) * s.W,
                        s.Wo, s.stride);
      }
    }
    for (int64_t r = 0; r < rows; r += w.block) {
      const A* tile = f.tile ? f.tile + (g * s.D * band + r) * f.tile_pitch : nullptr;
      const int64_t top_key = r * s.stride * w.row_pitch;
      for (int64_t x = 0; x < s.Wo; x += kLanes<A>) {
        attend<T>(s, f, f.queries + r * s.D * w.x_pitch + x, f.keys + top_key + x, f.values + top_key + x,
                  yo + r, x, smaller(w.block, rows - r), tile, band * f.tile_pitch, rate1, y, lse);
      }
    }
  }
}

template <typename T, typename A = Acc<T>>
void forward(const AcmixSizes& s, const AcmixWeights& weights, const AcmixForward& io, int64_t band,
             int64_t first, int64_t last, void* scratch) {
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  const auto f = lay_out<A>(s, band, arena);
  const A rate1 = rate_of<T>(weights.rate1), rate2 = rate_of<T>(weights.rate2);
  if (s.kernel_att) convert_row(f.conv_p, static_cast<const T*>(weights.conv_p), 2 * s.D);
  const int64_t bands = (s.Ho + band - 1) / band, map = s.C * s.H * s.W, out_map = s.Ho * s.Wo;
  for (int64_t i = first; i < last; ++i) {
    const int64_t b = i / bands, yo = i % bands * band, rows = smaller(band, s.Ho - yo);
    const T* qkv = static_cast<const T*>(io.qkv) + b * 3 * map;
    T* y = static_cast<T*>(io.y) + b * s.C * out_map;
    if (s.kernel_conv) shift_band(s, f, qkv, static_cast<const A*>(io.composite), rate2, yo, rows, band, y);
    if (s.kernel_att)
      attend_band(s, f, qkv, rate1, yo, rows, band, y, static_cast<A*>(io.lse) + b * s.G * out_map);
  }
}

template <typename T>
int64_t forward_scratch(const AcmixSizes& s, int64_t band) {
  Arena arena{0};
  lay_out<Acc<T>>(s, band, arena);
  return arena.used;
}

}  // namespace

void add_forward(Dtype dtype, AcmixCpuKernels& kernels) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    kernels.forward_scratch = forward_scratch<T>;
    kernels.forward = forward<T>;
  });
}

}  // namespace lska_ops::LSKA_OPS_ISA
