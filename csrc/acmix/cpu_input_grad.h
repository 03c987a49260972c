// What a thread keeps while it computes the gradient of q, k and v, and how it is laid out.
#pragma once

#include "csrc/acmix/cpu_paths.h"
#include "csrc/acmix/cpu_shift.h"
#include "csrc/acmix/cpu_window.h"

namespace lska_ops::LSKA_OPS_ISA {

constexpr int64_t kBand =
    kRows;  // query rows whose lines are filled at a time; more of them only take more cache

// Taps of one phase of a line, as TapSums wants them when keys gather from their queries.
struct Phase {
  int64_t taps, from, width;  // [from, from + width) of the phase is what they reach
  int32_t *weight_offset, *query_offset;
};

template <typename A>
struct InputGradScratch {
  Window<A> window;
  ShiftLines<A> shift;
  Phase* phases;       // [stride]
  int64_t band;        // query rows in a band
  int64_t plane_rows;  // rows of the padded map that a band and what follows it may still change
  A* planes[3];        // grad_q, grad_k, grad_v of one head: [plane_rows][D] lines; null without attention
  A *keys, *values;    // lines of the band's windows
  A *queries, *grads;  // [band][D] lines of q and grad_y, zero around the map
  A* logit_grads;  // [block, K * K, x_pitch]: products q . k, then softmax weights, then the gradient of the
                   // logits
  A* weights;      // [block, K * K, x_pitch]: products grad_y . v, then rate1 * softmax weights
  A* sums;         // [block, D, lanes]
  A* conv_p;       // [D, 2]
  A* conv_p_sums;  // [2, D, lanes]
  int32_t* weight_offset;  // [K]
};

template <typename A>
void set_phases(const AcmixSizes& s, const InputGradScratch<A>& f, int32_t* offsets) {
  const Window<A>& w = f.window;
  for (int64_t phase = 0; phase < s.stride; ++phase) {
    Phase& p = f.phases[phase];
    p = {0, 0, 0, offsets, offsets + w.K};
    offsets += 2 * w.K;
    int64_t last = 0;
    for (int64_t t = 0; t < w.K; ++t) {
      if (w.offset[t] / w.line.phase != phase) continue;
      const int64_t at = w.offset[t] % w.line.phase;
      if (p.taps == 0) p.from = at;
      last = at;
      p.weight_offset[p.taps] = int32_t(t * w.x_pitch - (at - p.from));
      p.query_offset[p.taps++] = int32_t(p.from - at);
    }
    p.width = last - p.from + s.Wo;
  }
}

template <typename A>
InputGradScratch<A> lay_out(const AcmixSizes& s, Arena& arena) {
  constexpr int V = kLanes<A>;
  InputGradScratch<A> f = {};
  if (s.kernel_conv) f.shift = make_shift_lines<A>(s.G, s.kernel_conv, s.W, s.W, 1, kBand, arena);
  if (!s.kernel_att) return f;
  f.window = make_window<A>(s, arena, true);
  const Window<A>& w = f.window;
  f.phases = arena.take<Phase>(s.stride);
  int32_t* offsets = arena.take<int32_t>(2 * s.stride * w.K);
  f.weight_offset = arena.take<int32_t>(w.K);
  f.band = acmix_grad_band(s.H, s.Ho, w.reach, kBand);
  const int64_t key_rows = (f.band - 1) * s.stride + 2 * w.reach + 1;
  f.plane_rows = larger(key_rows, f.band * s.stride + w.reach);
  for (A*& plane : f.planes) plane = arena.take<A>(f.plane_rows * w.row_pitch);
  f.conv_p = arena.take<A>(2 * s.D);
  f.conv_p_sums = arena.take<A>(2 * s.D * V);
  f.sums = arena.take<A>(w.block * s.D * V);
  const int64_t lines = key_rows * w.row_pitch, queries = f.band * s.D * w.x_pitch;
  f.keys = arena.take_cleared<A>(lines);
  f.values = arena.take_cleared<A>(lines);
  f.queries = arena.take_cleared<A>(queries);
  f.grads = arena.take_cleared<A>(queries);
  f.logit_grads = arena.take_cleared<A>(w.block * w.taps * w.x_pitch);
  f.weights = arena.take_cleared<A>(w.block * w.taps * w.x_pitch);
  if (!arena.base) return f;
  for (int64_t t = 0; t < w.K; ++t) f.weight_offset[t] = int32_t(t * w.x_pitch);
  set_phases(s, f, offsets);
  return f;
}

}  // namespace lska_ops::LSKA_OPS_ISA
