// What the banded products need of the weights, once a call: the taps of both directions composed, in the
// words that lanes hold of a matrix; what they are where a border cuts them off; and the biases along rows
// and columns.
#pragma once

#include "csrc/common/warp.cuh"
#include "csrc/lska/kernels_line.cuh"
#include "csrc/lska/plan_bands.h"

namespace lska_ops {

constexpr int kBandTableThreads = 128, kBandTableBlocks = 8;  // of a channel
constexpr int kMostBand = 2 * kBandsBefore + 1;               // taps of a composed band

// float32 as a sum of T: three bfloat16, or two halves of numbers that are scaled to be well above the
// smallest.
template <class T>
constexpr int kParts = 2;
template <>
constexpr int kParts<BFloat16> = 3;

// A channel's table, in words: its numbers; for columns the biases and the matrices of H; for rows the
// biases, two numbers each, and the matrices of V. Matrices are in the order in which lanes hold them, 4
// words of each lane for a product of 16 inputs.
struct LskaBandTables {
  int column_bias, h, row_bias, v, size;
};
// bands_first and its like as constants, which devices can have.
template <int TILE>
constexpr int kBandsFirst = bands_first(TILE);
template <int TILE, int K>
constexpr bool kBandsProductIs = bands_product_is(TILE, K);
template <int TILE, int K = 0>
constexpr int kBandsProductsBefore = bands_products_before(TILE, K);

template <class T>
LSKA_BOTH LskaBandTables lska_band_tables(int W) {
  LskaBandTables t{};
  t.column_bias = 4;  // behind the exponents of both scales, and whether the tables hold all weights
  t.h = t.column_bias + (W + 15) / 16 * 16;
  t.row_bias = t.h + (W + 15) / 16 * kBandsProducts * kParts<T> * 128;
  t.v = t.row_bias + 16 * kBandsTiles;
  t.size = t.v + kBandsProductsBefore<kBandsTiles> * 128;
  return t;
}

struct LskaBandTableArguments {
  LskaWeightPointers weights;
  uint32_t* tables;  // [C, size]
  LskaStages stages;
  int H, W;
  signed char tile[64], first[64];  // of V's matrices: the outputs' tile, the first of the inputs, in 16s
};

// One direction: its taps, the second convolution's with the zeros between them, and both composed, all in
// shared memory.
struct BandTaps {
  float *w0, *w1, *spread, *composed, *magnitudes;
  int used0, used1, d, near, far, length;

  LSKA_DEVICE int composed_taps() const { return 2 * (near + far) + 1; }
  LSKA_DEVICE void prepare() {
    for (int i = thread_index(); i <= 2 * (near + far); i += thread_count()) {
      float sum = 0.f, magnitude = 0.f;
      for (int t = 0; t < used1; ++t) {
        const int tap = i - t * d;  // place 0 of w1 is at -far
        if (uint32_t(tap) >= uint32_t(used0)) continue;
        sum += w0[tap] * w1[t];
        magnitude += fabsf(w0[tap] * w1[t]);
      }
      composed[i] = sum;
      magnitudes[i] = magnitude;
    }
    for (int i = thread_index(); i <= 2 * far; i += thread_count()) spread[i] = i % d == 0 ? w1[i / d] : 0.f;
  }
  // What output i takes of input j through intermediate m.
  LSKA_DEVICE float through(int i, int m, int j) const {
    const int first = j - m + near, second = m - i + far;
    return uint32_t(first) < uint32_t(used0) && uint32_t(second) <= uint32_t(2 * far)
               ? w0[first] * spread[second]
               : 0.f;
  }
  // What of that goes through intermediates beyond the map.
  LSKA_DEVICE float beyond(int i, int j) const {
    float sum = 0.f;
    for (int n = 0; n < near; ++n) sum += through(i, -1 - n, j) + through(i, length + n, j);
    return sum;
  }
  // What output i takes of input j.
  LSKA_DEVICE float operator()(int i, int j) const {
    const int tap = j - i + near + far;
    if (uint32_t(tap) > uint32_t(2 * (near + far)) || uint32_t(i) >= uint32_t(length) ||
        uint32_t(j) >= uint32_t(length))
      return 0.f;
    return j < near || j >= length - near ? composed[tap] - beyond(i, j) : composed[tap];
  }
  // The sums of output i's part of the second convolution on the map, and of its composed part.
  LSKA_DEVICE void sums(int i, float& inside, float& all) const {
    float total = 0.f;
    for (int n = 0; n < used0; ++n) total += w0[n];
    inside = all = 0.f;
    for (int t = 0; t < used1; ++t) {
      const int m = i + t * d - far;
      if (uint32_t(m) >= uint32_t(length)) continue;
      inside += w1[t];
      float some = total;
      if (m < near || m >= length - near) {
        some = 0.f;
        for (int n = 0; n < used0; ++n)
          if (uint32_t(m + n - near) < uint32_t(length)) some += w0[n];
      }
      all += w1[t] * some;
    }
  }
};

LSKA_DEVICE float power_of_two(int exponent) { return float_of(uint32_t(127 + exponent) << 23); }

#if LSKA_ON_TENSOR_CORES
// The largest magnitude of `count` floats, or a NaN.
LSKA_DEVICE float largest(const float* from, int count) {
  float most = 0.f;
  for (int i = thread_index() % 32; i < count; i += 32) most = max_magnitude(most, from[i]);
  return float_of(warp_max(bits_of(most)));
}
// The power of two that brings a band's largest entry, wherever it is cut off, below 2^14.
LSKA_DEVICE int band_exponent(const BandTaps& taps) {
  const int exponent = int(bits_of(largest(taps.magnitudes, taps.composed_taps())) >> 23);
  return exponent == 0 ? 0 : min(13 - (exponent - 127), 100);
}
// Whether composed taps are too small for that, below 2^-87, though taps are not all zero.
LSKA_DEVICE bool vanishes(const BandTaps& taps) {
  return largest(taps.magnitudes, taps.composed_taps()) < power_of_two(-87) &&
         largest(taps.w0, taps.used0) > 0.f && largest(taps.w1, taps.used1) > 0.f;
}
#endif

// The largest part of two numbers, which is taken away from them.
template <class T>
LSKA_DEVICE uint32_t take_part(float& one, float& two) {
  const uint32_t word = pack<T>(one, two);
  one -= first_of<T>(word);
  two -= second_of<T>(word);
  return word;
}

// Blocks share the words of a channel's table.
template <class T>
LSKA_KERNEL(kBandTableThreads)
lska_band_tables_kernel(const LskaBandTableArguments a) {
#if LSKA_ON_TENSOR_CORES
  float* memory = shared_floats();
  const int c = int(block_x()), t = thread_index(), count = thread_count();
  const int first = block_y() * count + t, step = blocks_y() * count;  // of the words
  const LskaBandTables at = lska_band_tables<T>(a.W);
  uint32_t* table = a.tables + int64_t(c) * at.size;
  const auto taps_of = [&](const void* first, const void* second, const LskaStage& s0, const LskaStage& s1,
                           int length, float* to) {
    BandTaps taps{to,      to + kMostBand,  to + 2 * kMostBand, to + 3 * kMostBand, to + 4 * kMostBand,
                  s0.used, max(s1.used, 1), s1.dilation,        s0.reach,           s1.reach,
                  length};
    for (int i = t; i < s0.used; i += count)
      taps.w0[i] = load(static_cast<const T*>(first) + int64_t(c) * s0.k + s0.skip + i);
    for (int i = t; i < taps.used1; i += count)
      taps.w1[i] = second ? load(static_cast<const T*>(second) + int64_t(c) * s1.k + s1.skip + i) : 1.f;
    return taps;
  };
  BandTaps h = taps_of(a.weights.h0, a.weights.h1, a.stages.h0, a.stages.h1, a.W, memory);
  BandTaps v = taps_of(a.weights.v0, a.weights.v1, a.stages.v0, a.stages.v1, a.H, memory + 5 * kMostBand);
  barrier();
  h.prepare();
  v.prepare();
  barrier();
  const int h_exponent = kParts<T> == 3 ? 0 : band_exponent(h), v_exponent = band_exponent(v);
  const float h_scale = power_of_two(h_exponent), v_scale = power_of_two(v_exponent);
  const auto bias = [&](const void* p) { return p ? load(static_cast<const T*>(p) + c) : 0.f; };
  const float h0 = bias(a.weights.h0_bias), h1 = bias(a.weights.h1_bias), v0 = bias(a.weights.v0_bias),
              v1 = bias(a.weights.v1_bias);
  // An entry is NaN or infinite if a tap is; and so is a sum of biases, made of magnitudes. Then, and where
  // taps vanish, the channel is computed by the definition.
  if (first < 32) {
    float most = fabsf(h0) + fabsf(h1) + fabsf(v0) + fabsf(v1);
    most = max_magnitude(most, largest(h.magnitudes, h.composed_taps()));
    most = max_magnitude(most, largest(v.magnitudes, v.composed_taps()));
    const bool held = bits_of(most) < 0x7f800000u && !vanishes(h) && !vanishes(v);
    if (first < 4)
      write_global(table + first, first == 0   ? uint32_t(h_exponent)
                                  : first == 1 ? uint32_t(v_exponent)
                                               : uint32_t(held));
  }

  for (int i = first; i < 8 * kBandsTiles; i += step) {
    float inside = 0.f, all = 0.f;
    if (i < a.H) v.sums(i, inside, all);
    write_global(table + at.row_bias + 2 * i, bits_of(h0 * all + v0 * inside));
    write_global(table + at.row_bias + 2 * i + 1, bits_of(h1 * inside + v1));
  }
  for (int i = first; i < (a.W + 15) / 16 * 16; i += step) {
    float inside = 0.f, all = 0.f;
    if (i < a.W) h.sums(i, inside, all);
    write_global(table + at.column_bias + i, bits_of(inside));
  }
  // Of a matrix of 16 columns and 16 inputs lane 4 g + t has columns g, g + 8, g, g + 8 and inputs 2 t, 2 t,
  // 2 t + 8, 2 t + 8, and the next of each. A thread has the same word of all matrices.
  static_assert(kBandTableThreads == 128);
  {
    const int row = t / 16 + t % 2 * 8, in = 2 * (t / 4 % 4) + t / 2 % 2 * 8 - kBandsBefore;
    const int products = (a.W + 15) / 16 * kBandsProducts;
    for (int product = block_y(); product < products; product += blocks_y()) {
      const int block = product / kBandsProducts, k = product % kBandsProducts;
      const int out = 16 * block + row, from = 16 * (block + k) + in;
      float one = h(out, from) * h_scale, two = h(out, from + 1) * h_scale;
      for (int part = 0; part < kParts<T>; ++part)
        write_global(table + at.h + (product * kParts<T> + part) * 128 + t, take_part<T>(one, two));
    }
  }
  // Of one of 16 inputs and 8 rows it has row g, inputs 2 t and 2 t + 8: first parts, then second ones.
  {
    const int row = t / 8 % 8, in = 2 * (t / 2 % 4) + t % 2 * 8, products = (at.size - at.v) / 128;
    for (int product = 2 * block_y() + t / 64; product < products; product += 2 * blocks_y()) {
      const int out = 8 * a.tile[product] + row, from = 16 * a.first[product] + in;
      float one = v(out, from) * v_scale, two = v(out, from + 1) * v_scale;
      for (int part = 0; part < 2; ++part)
        write_global(table + at.v + product * 128 + t % 64 / 2 * 4 + 2 * part + t % 2,
                     take_part<Half>(one, two));
    }
  }
#endif
}

}  // namespace lska_ops
