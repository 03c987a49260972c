// Two convolutions of a line, the second dilated, by one thread that walks along it: both windows and all
// taps are in registers, and everything a loop would count is known to the compiler. Rows and columns, both
// layouts, and one value or two side by side (Float2: two channels, or two columns) take the same walk, and
// add in the same order.
#pragma once

#include "csrc/common/portable.cuh"

namespace lska_ops {

LSKA_DEVICE Float2 multiply_add(Float2 tap, Float2 v, Float2 sum) {
  return {multiply_add(tap.x, v.x, sum.x), multiply_add(tap.y, v.y, sum.y)};
}
LSKA_DEVICE Float2 multiply_add(float tap, Float2 v, Float2 sum) {
  return {multiply_add(tap, v.x, sum.x), multiply_add(tap, v.y, sum.y)};
}

// OUT outputs, STEP places apart, of 1 x K0 and then 1 x K1 with dilation D. STEP is 1 or D: lines are then
// shared out among D threads by the residue of a place, so that none computes what another one has.
template <int K0, int K1, int D, int STEP, int OUT>
struct Steps {
  static_assert(K0 % 2 == 1 && K1 % 2 == 1 && D % STEP == 0);
  static constexpr int R0 = K0 / 2, R1 = K1 / 2 * D, REACH = R0 + R1;
  static constexpr int BACK = (K1 - 1) * (D / STEP);  // middle values from an output's first to its last
  static constexpr int MIDDLES = OUT + BACK;
  static constexpr int INPUTS = (MIDDLES - 1) * STEP + K0;
};

// What a walk knows of the map around its places: `before` places precede the first one, `after` follow it
// and itself, and SURE of these do wherever a walk begins. WHOLE: the walk has the whole line, or one of D
// residues of it, so that at most STEP - 1 places precede its first one, and LENGTH follow.
template <int LENGTH, int STEP, bool WHOLE>
struct Around {
  static constexpr int SURE = LENGTH - STEP + 1;
  int before, after;
  // Places `at` are known to the compiler, from the walk's first one.
  static constexpr LSKA_BOTH bool never(int at) { return WHOLE && (at <= -STEP || at >= LENGTH); }
  LSKA_DEVICE bool inside(int at) const {
    if (never(at)) return false;
    return at < 0 ? before >= -at : at < SURE || at < after;
  }
};

// What a walk asks of a line: fetch(m) starts reading input m, AHEAD inputs before value(m), zero beyond the
// map, is wanted; around says where the map is: beyond it the second convolution reads zeros; put(o, v) takes
// output o. Input m lies at place m - REACH, output o at place o STEP.
//
// In registers are either the middle values that an output needs, or, where they are fewer, the outputs that
// a middle value adds to. Both add in the same order.
template <int K0, int K1, int D, int STEP, int OUT, int AHEAD, class Value, class Line, class First,
          class Second>
LSKA_DEVICE void walk(Line& line, const First& first, const Second& second, Value first_bias,
                      Value second_bias) {
  using S = Steps<K0, K1, D, STEP, OUT>;
  constexpr int APART = D / STEP;  // middle values from one tap of an output to the next
  constexpr bool SCATTER = OUT < S::BACK;
  Value x[S::INPUTS], middle[S::MIDDLES], sum[OUT];
#pragma unroll
  for (int m = 0; m < AHEAD; ++m) line.fetch(m);
#pragma unroll
  for (int m = 0; m < S::INPUTS; ++m) {
    if (m + AHEAD < S::INPUTS) line.fetch(m + AHEAD);
    x[m] = line.value(m);
    if (m < K0 - 1 || (m - K0 + 1) % STEP != 0) continue;
    const int j = (m - K0 + 1) / STEP, last = j - S::BACK;  // the output that is complete with middle value j
    middle[j] = Value{};
    if (SCATTER && j < OUT) sum[j] = second_bias;
    if (line.around.inside(j * STEP - S::R1)) {
      middle[j] = first_bias;
#pragma unroll
      for (int n = 0; n < K0; ++n)
        if (!line.around.never(j * STEP - S::R1 + n - S::R0))
          middle[j] = multiply_add(first[n], x[j * STEP + n], middle[j]);
      if constexpr (SCATTER) {
#pragma unroll
        for (int n = 0; n < K1; ++n) {
          const int o = j - n * APART;
          if (o >= 0 && o < OUT) sum[o] = multiply_add(second[n], middle[j], sum[o]);
        }
      }
    }
    if (last < 0) continue;
    if constexpr (!SCATTER) {
      sum[last] = second_bias;
#pragma unroll
      for (int n = 0; n < K1; ++n)
        if (!line.around.never(last * STEP + n * D - S::R1))
          sum[last] = multiply_add(second[n], middle[last + n * APART], sum[last]);
    }
    line.put(last, sum[last]);
  }
}

}  // namespace lska_ops
