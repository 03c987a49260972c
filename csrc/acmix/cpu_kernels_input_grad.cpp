#include "csrc/acmix/cpu_input_grad.h"
#include "csrc/acmix/cpu_kernels_parts.h"

namespace lska_ops::LSKA_OPS_ISA {
namespace {

// One vector of pixels of a block of query rows, all at (row yo + r, pixels [x, x + lanes)) of one head.
template <typename A>
struct QueryTile {
  const A *q, *grad, *k, *v;
  A *weights, *logit_grads, *grad_q;
  int64_t yo, x, rows;
};

// The query's side of attention's backward.
// Owns: a tile. Reads: q, grad_y, lse and the lines of keys and values. Writes: grad_q, and for the keys'
// side the tile's logit_grads and rate1 * weights. Keeps: the same two, K * K vectors each. Adds to the sums
// of conv_p and rate1. The reference: the backward of attention(); delta = sum over the window of weights *
// grad of weights.
template <typename A>
[[gnu::noinline]] void query_grad(const AcmixSizes& s, const InputGradScratch<A>& f, const QueryTile<A>& at,
                                  const A* lse, A rate1, Vec<A>& rate1_sum) {
  constexpr int V = kLanes<A>;
  const Window<A>& w = f.window;
  const int64_t tap = w.x_pitch, row = w.taps * tap, sums_row = s.D * V;
  const int lanes = int(smaller(V, s.Wo - at.x));
  const A scale = inverse_root<A>(s.D);
  window_dots(w, s, at.q, w.x_pitch, at.k, at.rows, at.logit_grads, row, tap);
  window_dots(w, s, at.grad, w.x_pitch, at.v, at.rows, at.weights, row, tap);
  const auto inside = first_lanes<A>(lanes);
  memset(f.sums, 0, at.rows * sums_row * sizeof(A));
  Slopes<A> slope_grads[kRows];
  for (int64_t r = 0; r < at.rows; ++r) {
    A *logit_grads = at.logit_grads + r * row, *weights = at.weights + r * row;
    const A* q = at.q + r * s.D * w.x_pitch;
    const A* dy = w.dy + (at.yo + r) * w.K;
    const Vec<A> row_lse = load(lse + (at.yo + r) * s.Wo + at.x, lanes);
    Vec<A> delta = {};
    for_logits(w, logit_grads, tap, w.dx + at.x, dy, slopes(q, w.x_pitch, f.conv_p, s.D), scale,
               [&](int64_t i, Vec<A> logit) {
                 // lanes beyond the map hold no query: whatever they read must not reach the keys
                 const Vec<A> weight = inside ? exp_of_nonpositive<A>(logit - row_lse) : Vec<A>{};
                 const Vec<A> grad = inside ? load(weights + i * tap) : Vec<A>{};
                 delta += weight * grad;
                 store(logit_grads + i * tap, weight);
                 store(weights + i * tap, grad);
               });
    rate1_sum += delta;
    Slopes<A> slope = {};
    for (int64_t i = 0; i < w.K; ++i) {
      Vec<A> of_row = {};
      for (int64_t t = 0; t < w.K; ++t) {
        const int64_t j = (i * w.K + t) * tap;
        const Vec<A> weight = load(logit_grads + j) * rate1;
        const Vec<A> grad = weight * (load(weights + j) - delta) * scale;
        of_row += grad;
        slope.x += grad * load(w.dx + t * w.x_pitch + at.x);
        store(logit_grads + j, grad);
        store(weights + j, weight);
      }
      slope.y += of_row * dy[i];
    }
    slope_grads[r] = slope;
    for (int64_t d = 0; d < s.D; ++d) {
      A *x_sum = f.conv_p_sums + d * V, *y_sum = x_sum + s.D * V;
      const Vec<A> of_d = load(q + d * w.x_pitch);
      store(x_sum, load(x_sum) + of_d * slope.x);
      store(y_sum, load(y_sum) + of_d * slope.y);
    }
  }
  window_sums(w, s, at.logit_grads, row, tap, f.weight_offset, at.k, at.rows, f.sums, sums_row, V);
  for (int64_t r = 0; r < at.rows; ++r) {
    A* out = at.grad_q + r * s.stride * w.row_pitch;
    for (int64_t d = 0; d < s.D; ++d) {
      const Vec<A> of_keys = load(f.sums + r * sums_row + d * V);
      store(out + d * w.line.pitch,
            of_keys + (slope_grads[r].x * f.conv_p[2 * d] + slope_grads[r].y * f.conv_p[2 * d + 1]));
    }
  }
}

// The keys' side: every key of the padded map adds up what the queries of a block, whose windows it is in,
// send it. weights [rows][K * K][x_pitch], from [rows][D] lines; plane: lines of the block's first row of
// keys.
template <typename A>
void key_grad(const AcmixSizes& s, const InputGradScratch<A>& f, const A* weights, const A* from,
              int64_t rows, A* plane) {
  const Window<A>& w = f.window;
  const int64_t row = w.taps * w.x_pitch, keys = rows + w.K - 1;
  for (int64_t phase = 0; phase < s.stride; ++phase) {
    const Phase& p = f.phases[phase];
    for (int64_t x = 0; p.taps > 0 && x < p.width; x += kLanes<A>) {
      for (int64_t i0 = 0; i0 < keys; i0 += kRows) {
        for (int64_t r = 0; r < rows;) {
          const auto first_key = [&](int64_t q) { return larger(i0, q); };
          const auto last_key = [&](int64_t q) { return smaller(smaller(i0 + kRows, keys), q + w.K); };
          const int64_t i = first_key(r), count = last_key(r) - i;
          int64_t end = r + 1;
          while (end < rows && first_key(end) == i && last_key(end) == i + count) ++end;
          if (count > 0) {
            TapSums<A> sums;
            sums.p = weights + r * row + (i - r) * w.K * w.x_pitch + w.lead + x;
            sums.p_i = row - w.K * w.x_pitch;
            sums.p_row = w.K * w.x_pitch;
            sums.p_offset = p.weight_offset;
            sums.v = from + r * s.D * w.x_pitch + w.lead + x;
            sums.v_i = s.D * w.x_pitch;
            sums.v_dim = w.x_pitch;
            sums.v_offset = p.query_offset;
            sums.n = end - r;
            sums.taps = p.taps;
            sums.sum = plane + i * s.dilation * w.row_pitch + phase * w.line.phase + p.from + x;
            sums.sum_row = s.dilation * w.row_pitch;
            sums.sum_dim = w.line.pitch;
            tap_sums(sums, s.D, count);
          }
          r = end;
        }
      }
    }
  }
}

// Adds row y of the padded map, beyond the border, to the row that it repeats; top is the row the planes
// begin with.
template <typename A>
void fold_row(const AcmixSizes& s, const InputGradScratch<A>& f, int64_t top, int64_t y) {
  const int64_t pitch = f.window.row_pitch;
  for (int m = 1; m < 3; ++m) {
    const A* from = f.planes[m] + (y - top) * pitch;
    A* to = f.planes[m] + (folded(y, s.H) - top) * pitch;
    for (int64_t j = 0; j < pitch; ++j) to[j] += from[j];
  }
}

// What the border columns of rows [first, last) gathered belongs to the pixels they repeat.
template <typename A>
void fold_columns(const AcmixSizes& s, const InputGradScratch<A>& f, int64_t top, int64_t first,
                  int64_t last) {
  const Window<A>& w = f.window;
  for (int m = 1; m < 3; ++m) {
    A* line = f.planes[m] + (first - top) * w.row_pitch;
    for (int64_t i = 0; i < (last - first) * s.D; ++i, line += w.line.pitch) {
      for (int64_t j = 0; j < 2 * w.reach; ++j) line[w.folds[j].pixel] += line[w.folds[j].border];
    }
  }
}

// grad_qkv of head g at row y and pixels [x, x + lanes) of q, k or v (m = 0, 1, 2), dim d: what attention
// left in the planes, if there is attention, and what the shift branch sends.
template <typename T, typename A = Acc<T>>
inline void write_pixels(const AcmixSizes& s, const InputGradScratch<A>& f, int64_t m, int64_t g, int64_t d,
                         int64_t top, int64_t y, int64_t x, Vec<A> both, T* grad_qkv) {
  const int lanes = int(smaller(kLanes<A>, s.W - x));
  if (f.planes[m]) {
    const LineShape& line = f.window.line;
    const A* attended = f.planes[m] + (y - top) * f.window.row_pitch + d * line.pitch;
    if (s.stride == 1) {
      both += load(attended + line.pad + x);
    } else {
      for (int i = 0; i < lanes; ++i) both[i] += attended[line.index(x + i)];
    }
  }
  T* out = grad_qkv + ((m * s.C + g * s.D + d) * s.H + y) * s.W + x;
  if (lanes == kLanes<A>) {
    store(out, both);
  } else {
    store(out, both, lanes);
  }
}

// Lines of the rows [y, y + rows) of grad_y's dim d, all heads, and of the rows around that the shift branch
// reaches.
template <typename T, typename A = Acc<T>>
void fill_grad_lines(const AcmixSizes& s, const InputGradScratch<A>& f, const T* grad_y, int64_t d, int64_t y,
                     int64_t rows) {
  const int64_t reach = s.kernel_conv / 2;
  for (int64_t o = 0; o < s.G; ++o) {
    const T* from = grad_y + (d * s.G + o) * s.Ho * s.Wo;
    A* to = f.shift.lines + o * f.shift.rows * f.shift.line.pitch;
    for (int64_t i = 0; i < rows + 2 * reach; ++i, to += f.shift.line.pitch) {
      const int64_t at = y + i - reach;
      if (at < 0 || at >= s.H || at % s.stride != 0) {
        memset(to, 0, f.shift.line.pitch * sizeof(A));
      } else if (s.stride == 1) {
        fill_line(to, f.shift.line, from + at * s.Wo, s.Wo);
      } else {
        const T* row = from + at / s.stride * s.Wo;
        for (int64_t x = 0; x < s.Wo; ++x) to[f.shift.line.index(x * s.stride)] = to_acc(row[x]);
      }
    }
  }
}

// Adds the shift branch's gradient to the planes' and writes the sum: rows [first, last) of grad_qkv of head
// g.
template <typename T, typename A = Acc<T>>
[[gnu::noinline]] void write_input_grad(const AcmixSizes& s, const InputGradScratch<A>& f, const T* grad_y,
                                        const A* composite, A rate2, int64_t g, int64_t top, int64_t first,
                                        int64_t last, T* grad_qkv) {
  const int64_t n = f.shift.n;
  for (int64_t d = 0; d < s.D; ++d) {
    for (int64_t y = first; y < last; y += kBand) {
      Convolution<A> c;
      c.rows = smaller(kBand, last - y);
      fill_grad_lines(s, f, grad_y, d, y, c.rows);
      c.lines = f.shift.lines;
      c.row_step = f.shift.line.pitch;
      c.width = s.W;
      c.offset = f.shift.offset;
      c.n = n;
      convolve(c, composite + (d * s.G + g) * 3 * n, 3, [&](int64_t m, int64_t r, int64_t x, Vec<A> sum) {
        write_pixels(s, f, m, g, d, top, y + r, x, sum * rate2, grad_qkv);
      });
    }
  }
}

// The same without the shift branch: the planes as they are.
template <typename T, typename A = Acc<T>>
void write_planes(const AcmixSizes& s, const InputGradScratch<A>& f, int64_t g, int64_t top, int64_t first,
                  int64_t last, T* grad_qkv) {
  for (int64_t m = 0; m < 3; ++m) {
    for (int64_t d = 0; d < s.D; ++d) {
      for (int64_t y = first; y < last; ++y) {
        for (int64_t x = 0; x < s.W; x += kLanes<A>)
          write_pixels(s, f, m, g, d, top, y, x, Vec<A>{}, grad_qkv);
      }
    }
  }
}

template <typename A>
A lane_sum(Vec<A> v) {
  A total = 0;
  for (int i = 0; i < kLanes<A>; ++i) total += v[i];
  return total;
}

// Attention's gradients of a band of query rows, added to the planes, whose first row is yo * stride - reach
// of the padded map; returns the sum for rate1.
template <typename T, typename A = Acc<T>>
Vec<A> attention_grad(const AcmixSizes& s, const InputGradScratch<A>& f, const T* q, const T* grad_y,
                      const A* lse, A rate1, int64_t yo, int64_t rows) {
  const Window<A>& w = f.window;
  Vec<A> rate1_sum = {};
  const int64_t top = yo * s.stride - w.reach, key_rows = (rows - 1) * s.stride + 2 * w.reach + 1;
  fill_reflected(f.keys, w.line, q + s.C * s.H * s.W, s.D, s.H, s.W, top, key_rows, w.reach, w.folds);
  fill_reflected(f.values, w.line, q + 2 * s.C * s.H * s.W, s.D, s.H, s.W, top, key_rows, w.reach, w.folds);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t to = (r * s.D + d) * w.x_pitch + w.lead;
      convert_strided(f.queries + to, q + (d * s.H + (yo + r) * s.stride) * s.W, s.Wo, s.stride);
      convert_row(f.grads + to, grad_y + (d * s.Ho + yo + r) * s.Wo, s.Wo);
    }
  }
  for (int64_t r = 0; r < rows; r += w.block) {
    const int64_t queries = r * s.D * w.x_pitch, in_block = smaller(w.block, rows - r);
    const int64_t plane = r * s.stride * w.row_pitch;
    for (int64_t x = 0; x < s.Wo; x += kLanes<A>) {
      const int64_t at = queries + w.lead + x, key = plane + x;
      const QueryTile<A> tile = {f.queries + at,
                                 f.grads + at,
                                 f.keys + key,
                                 f.values + key,
                                 f.weights + w.lead + x,
                                 f.logit_grads + w.lead + x,
                                 f.planes[0] + plane + w.reach * w.row_pitch + w.line.index(0) + x,
                                 yo + r,
                                 x,
                                 in_block};
      query_grad(s, f, tile, lse, rate1, rate1_sum);
    }
    key_grad(s, f, f.logit_grads, f.queries + queries, in_block, f.planes[1] + plane);
    key_grad(s, f, f.weights, f.grads + queries, in_block, f.planes[2] + plane);
  }
  return rate1_sum;
}

// One head of one map, band by band of query rows: the planes hold the rows of the padded map that are not
// complete yet, and every row is written as soon as it is. write(top, first, last) does it.
template <typename T, typename Write, typename A = Acc<T>>
Vec<A> head_grad(const AcmixSizes& s, const InputGradScratch<A>& f, const T* q, const T* grad_y, const A* lse,
                 A rate1, const Write& write) {
  const int64_t reach = f.window.reach, pitch = f.window.row_pitch;
  Vec<A> rate1_sum = {};
  for (A* plane : f.planes) memset(plane, 0, f.plane_rows * pitch * sizeof(A));
  for (int64_t yo = 0; yo < s.Ho; yo += f.band) {
    const int64_t rows = smaller(f.band, s.Ho - yo), top = yo * s.stride - reach;
    const bool at_end = yo + rows == s.Ho;
    rate1_sum += attention_grad(s, f, q, grad_y, lse, rate1, yo, rows);
    const int64_t complete = at_end ? s.H : top + rows * s.stride;
    for (int64_t y = top; y < smaller(0, complete); ++y) fold_row(s, f, top, y);
    if (at_end) {
      for (int64_t y = s.H; y <= (s.Ho - 1) * s.stride + reach; ++y) fold_row(s, f, top, y);
    }
    const int64_t first = larger(top, 0);
    if (first < complete) {
      fold_columns(s, f, top, first, complete);
      write(top, first, complete);
    }
    if (at_end) break;
    const int64_t kept = f.plane_rows - rows * s.stride;
    for (A* plane : f.planes) {
      memmove(plane, plane + rows * s.stride * pitch, kept * pitch * sizeof(A));
      memset(plane + kept * pitch, 0, rows * s.stride * pitch * sizeof(A));
    }
  }
  return rate1_sum;
}

template <typename T, typename A = Acc<T>>
void input_grad(const AcmixSizes& s, const AcmixWeights& weights, const AcmixInputGrad& io, int64_t first,
                int64_t last, void* scratch) {
  constexpr int V = kLanes<A>;
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  const InputGradScratch<A> f = lay_out<A>(s, arena);
  const A rate1 = rate_of<T>(weights.rate1), rate2 = rate_of<T>(weights.rate2);
  if (s.kernel_att) convert_row(f.conv_p, static_cast<const T*>(weights.conv_p), 2 * s.D);
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t b = unit / s.G, g = unit % s.G, map = s.H * s.W, out_map = s.Ho * s.Wo;
    const T* grad_y = static_cast<const T*>(io.grad_y) + b * s.C * out_map;
    T* grad_qkv = static_cast<T*>(io.grad_qkv) + b * 3 * s.C * map;
    const auto write = [&](int64_t top, int64_t y0, int64_t y1) {
      if (!s.kernel_conv) return write_planes(s, f, g, top, y0, y1, grad_qkv);
      write_input_grad(s, f, grad_y, static_cast<const A*>(io.composite), rate2, g, top, y0, y1, grad_qkv);
    };
    if (!s.kernel_att) {
      write(0, 0, s.H);
      continue;
    }
    memset(f.conv_p_sums, 0, 2 * s.D * V * sizeof(A));
    const Vec<A> rate1_sum =
        head_grad(s, f, static_cast<const T*>(io.qkv) + (b * 3 * s.C + g * s.D) * map,
                  grad_y + g * s.D * out_map, static_cast<const A*>(io.lse) + unit * out_map, rate1, write);
    static_cast<A*>(io.rate1_parts)[unit] = lane_sum<A>(rate1_sum);
    for (int64_t i = 0; i < 2 * s.D; ++i) {
      static_cast<A*>(io.conv_p_parts)[unit * 2 * s.D + i] = lane_sum<A>(load(f.conv_p_sums + i * V));
    }
  }
}

template <typename A>
int64_t input_grad_scratch(const AcmixSizes& s) {
  Arena arena{0};
  lay_out<A>(s, arena);
  return arena.used;
}

}  // namespace

void add_input_grad(Dtype dtype, AcmixCpuKernels& kernels) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    kernels.input_grad_scratch = input_grad_scratch<Acc<T>>;
    kernels.input_grad = input_grad<T>;
  });
}

}  // namespace lska_ops::LSKA_OPS_ISA
