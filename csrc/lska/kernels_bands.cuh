// The cascade as banded products on tensor cores. Rows and columns commute, so that per channel S = V X H^T,
// and what biases add: V and H are both convolutions of a direction, composed, exact at the borders.
//
// A warp has 16 columns. columns' [16, 8 rows] = H [16, inputs] x^T [inputs, 8], of which H is in registers,
// and it keeps the columns' of all rows; then out^T [16, 8 rows] = columns' [16, inputs] V^T [inputs, 8],
// since where a product leaves its sums is where the next one wants its left operand. Weights and columns'
// are sums of 16-bit parts, whose products of any weight are taken: what is lost is about float32's rounding.
#pragma once

#include "csrc/lska/kernels_bands_tables.cuh"

namespace lska_ops {

struct LskaBandsArguments {
  const void* x;  // [B, C, H, W] of T
  void* s;        // the same
  const uint32_t* tables;
  LskaWeightPointers weights;
  LskaStages stages;
  int B, C, H, W, images, chunk, pitch, x_bytes;
  Divisor across;  // copies of a row
  int rows_at_once;
};

template <class Bits>
LSKA_DEVICE void copy_bits(int to, const void* from) {
  copy_to_shared(reinterpret_cast<Bits*>(shared_bytes_at(to)), static_cast<const Bits*>(from));
}

template <class Bits>
LSKA_DEVICE void put_bits(void* to, int from) {
  write_global(static_cast<Bits*>(to), *reinterpret_cast<const Bits*>(shared_bytes_at(from)));
}

// A plane from global to shared memory, or back: a thread copies some places of every few rows.
template <bool BACK, class T>
LSKA_DEVICE void copy_plane(const LskaBandsArguments& a, T* plane, int before) {
  const int across = int(a.across.d), rows = a.rows_at_once, first = quotient(thread_index(), a.across);
  const int column = (thread_index() - first * across) * a.chunk;
  if (first >= rows) return;  // no whole row is left for it
  T* there = plane + first * a.W + column;
  int here = 2 * (first * a.pitch + before + column);
#pragma unroll 1
  for (int row = first; row < a.H; row += rows) {
    if constexpr (BACK) {
      if (a.chunk == 8)
        put_bits<Bits16Bytes>(there, here);
      else if (a.chunk == 4)
        put_bits<Bits8Bytes>(there, here);
      else
        put_bits<uint32_t>(there, here);
    } else {
      if (a.chunk == 8)
        copy_bits<Bits16Bytes>(here, there);
      else if (a.chunk == 4)
        copy_bits<Bits8Bytes>(here, there);
      else
        copy_bits<uint32_t>(here, there);
    }
    there += rows * a.W;
    here += 2 * rows * a.pitch;
  }
}

// One output by the definition: four nested sums, no product with what is not on the map.
template <class T>
LSKA_DEVICE float exact_output(const LskaBandsArguments& a, const T* x, int row, int column) {
  const LskaStages& g = a.stages;
  const int c = int(block_x()), W = a.W, H = a.H;
  const auto weight = [&](const void* from, const LskaStage& s, int i) {
    return load(static_cast<const T*>(from) + int64_t(c) * s.k + s.skip + i);
  };
  const auto bias = [&](const void* from) { return from ? load(static_cast<const T*>(from) + c) : 0.f; };
  const float h0_bias = bias(a.weights.h0_bias), v0_bias = bias(a.weights.v0_bias),
              h1_bias = bias(a.weights.h1_bias);
  float out = bias(a.weights.v1_bias);
  const int taps = max(g.v1.used, 1), across = max(g.h1.used, 1);
#pragma unroll 1
  for (int i = 0; i < taps; ++i) {
    const int y1 = row + (i - taps / 2) * g.v1.dilation;
    if (uint32_t(y1) >= uint32_t(H)) continue;
    float h1 = h1_bias;
#pragma unroll 1
    for (int j = 0; j < across; ++j) {
      const int x1 = column + (j - across / 2) * g.h1.dilation;
      if (uint32_t(x1) >= uint32_t(W)) continue;
      float v0 = v0_bias;
#pragma unroll 1
      for (int m = 0; m < g.v0.used; ++m) {
        const int y0 = y1 + m - g.v0.used / 2;
        if (uint32_t(y0) >= uint32_t(H)) continue;
        float h0 = h0_bias;
#pragma unroll 1
        for (int n = 0; n < g.h0.used; ++n) {
          const int x0 = x1 + n - g.h0.used / 2;
          if (uint32_t(x0) < uint32_t(W))
            h0 = multiply_add(weight(a.weights.h0, g.h0, n), load(x + y0 * W + x0), h0);
        }
        v0 = multiply_add(weight(a.weights.v0, g.v0, m), h0, v0);
      }
      h1 = a.weights.h1 ? multiply_add(weight(a.weights.h1, g.h1, j), v0, h1) : v0;
    }
    out = a.weights.v1 ? multiply_add(weight(a.weights.v1, g.v1, i), h1, out) : h1;
  }
  return out;
}

// A warp's outputs, to shared memory.
template <class T>
LSKA_DEVICE void put_exact_outputs(const LskaBandsArguments& a, const T* x, int before) {
  const int lane = thread_index() % 32, column = thread_index() / 32 * 16 + lane % 16;
  if (column >= a.W) return;
#pragma unroll 1
  for (int row = lane / 16; row < a.H; row += 2)
    round_to(exact_output<T>(a, x, row, column),
             reinterpret_cast<T*>(shared_bytes_at(2 * before))[row * a.pitch + column]);
}

template <int COUNT, class F>
LSKA_DEVICE void for_each_number(const F& f) {
  if constexpr (COUNT > 0) {
    for_each_number<COUNT - 1>(f);
    f(Constant<COUNT - 1>{});
  }
}

// A warp's matrices of H, and the products with them and with V.
template <class T>
struct BandsWarp {
  static constexpr int P = kParts<T>, KH = kBandsProducts, TILES = kBandsTiles, PAIRS = TILES / 2;
  static constexpr uint32_t kSmall = 120u << 23;  // the bits of 2^-7, of which 2^-25 is 2^-18
  uint32_t h[KH][P][4];
  float sums[PAIRS][2][4];                 // columns', of 8 rows each
  uint32_t high[PAIRS][4], low[PAIRS][4];  // the same, scaled, in two parts

  // From rows of x, `tile_bytes` for eight of them; this lane's row begins at `line`, its words of H at
  // `words`.
  LSKA_DEVICE void columns(int line, int tile_bytes, int words) {
#pragma unroll
    for (int i = 0; i < PAIRS * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0.f;
#pragma unroll
    for (int i = 0; i < KH * P; ++i) {
      const Bits16Bytes bits = *reinterpret_cast<const Bits16Bytes*>(shared_bytes_at(words + 512 * i));
#pragma unroll
      for (int n = 0; n < 4; ++n) h[i / P][i % P][n] = bits.words[n];
    }
    // Two tiles at a time, so that their products do not wait for each other, and no more, as all of x would
    // take too many registers.
    constexpr int AT_ONCE = P * KH < 10 ? 2 : 1;
#pragma unroll
    for (int tile = 0; tile < TILES; tile += AT_ONCE) {
      warp_barrier();
#pragma unroll
      for (int k = 0; k < KH; k += 2) {
        uint32_t in[AT_ONCE][4];
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
          const int from = line + (tile + n) * tile_bytes + 32 * k;
          if (k + 1 < KH) {
            load_matrices(from, in[n]);
          } else {
            uint32_t two[2];
            load_matrices(from, two);
            in[n][0] = two[0], in[n][1] = two[1];
          }
        }
#pragma unroll
        for (int i = k; i < k + 2 && i < KH; ++i)
#pragma unroll
          for (int part = 0; part < P; ++part)
#pragma unroll
            for (int n = 0; n < AT_ONCE; ++n) {
              const uint32_t(&m)[4] = h[i][part];
              mma_16x8x16<T>(sums[tile / 2][(tile + n) % 2], m[0], m[1], m[2], m[3], in[n][2 * (i - k)],
                             in[n][2 * (i - k) + 1]);
            }
      }
    }
  }

  // Splits them, scaled so that their largest magnitude is below 2^15; says by which power of two, at most
  // `most_exponent`, and whether that holds them all: what is not finite it does not, nor what lies so far
  // below the largest that its second part is lost. A few numbers by themselves are so small where positive
  // and negative ones meet; a column that is so has four in each of its lanes.
  LSKA_DEVICE bool split(int most_exponent, int& exponent) {
    float most = 0.f;
#pragma unroll
    for (int i = 0; i < PAIRS * 8; ++i) most = max_magnitude(most, sums[i / 8][i / 4 % 2][i % 4]);
    const uint32_t bits = warp_max(bits_of(most));
    exponent = min(min(141 - int(bits >> 23), 100), most_exponent);
    const float scale = power_of_two(exponent);
    int small = 0;
#pragma unroll
    for (int i = 0; i < PAIRS * 4; ++i) {
      const float* pair = &sums[i / 4][i / 2 % 2][i % 2 * 2];
      const float first = pair[0] * scale, second = pair[1] * scale;
      small += (bits_of(fabsf(first)) - 1 < kSmall) + (bits_of(fabsf(second)) - 1 < kSmall);  // but no zeros
      const uint32_t rounded = pack<Half>(first, second);
      high[i / 4][i % 4] = rounded;
      low[i / 4][i % 4] = pack<Half>(first - first_of<Half>(rounded), second - second_of<Half>(rounded));
    }
    return bits < 0x7f800000u && warp_max(uint32_t(small)) < 4;
  }

  // sum = columns' V^T for eight rows, twice, whose matrices of V are at `words` for this lane.
  template <int PAIR>
  LSKA_DEVICE void rows(int words, float (&sum)[2][4]) const {
    constexpr int FIRST = kBandsFirst<2 * PAIR>;
    static_assert(FIRST == kBandsFirst<2 * PAIR + 1>);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] = 0.f;
    for_each_number<kBandsProducts>([&](auto constant) LSKA_INLINE {
      constexpr int k = decltype(constant)::value;
      if constexpr (kBandsProductIs<2 * PAIR, k>) {
        constexpr int ONE = kBandsProductsBefore<2 * PAIR, k>, OTHER = kBandsProductsBefore<2 * PAIR + 1, k>;
        const uint32_t(&a)[4] = high[FIRST + k], (&b)[4] = low[FIRST + k];
        Bits16Bytes v[2];
#pragma unroll
        for (int n = 0; n < 2; ++n)
          v[n] = *reinterpret_cast<const Bits16Bytes*>(shared_bytes_at(words + 512 * (n ? OTHER : ONE)));
#pragma unroll
        for (int n = 0; n < 2; ++n)
          mma_16x8x16<Half>(sum[n], b[0], b[1], b[2], b[3], v[n].words[0], v[n].words[1]);
#pragma unroll
        for (int n = 0; n < 2; ++n)
          mma_16x8x16<Half>(sum[n], a[0], a[1], a[2], a[3], v[n].words[2], v[n].words[3]);
#pragma unroll
        for (int n = 0; n < 2; ++n)
          mma_16x8x16<Half>(sum[n], a[0], a[1], a[2], a[3], v[n].words[0], v[n].words[1]);
      }
    });
  }
};

// Where a thread stands; asked anew where it is used, so that no register is kept for it in between.
struct BandsLane {
  int lane, warp, g, t;
  LSKA_DEVICE BandsLane() {
    const int thread = thread_index_again();
    lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  }
};

// A block owns planes of one channel, one after the other; a warp 16 columns. Reads x once, and the channel's
// table; writes s from where x was in shared memory. It is reference.cascade.
template <class T>
LSKA_KERNEL_FEW_BLOCKS(384)  // of two or three blocks together
lska_cascade_fwd_bands_kernel(const LskaBandsArguments a) {
#if LSKA_ON_TENSOR_CORES
  constexpr int BEFORE = kBandsBefore, TILES = kBandsTiles;
  const int first = block_y() * a.images, end = min(a.B, first + a.images);
  const LskaBandTables at = lska_band_tables<T>(a.W);
  const uint32_t* table = a.tables + block_x() * at.size;
  const auto plane = [&](int image) LSKA_INLINE { return (int64_t(image) * a.C + block_x()) * (a.H * a.W); };

  {
    Bits16Bytes* to = reinterpret_cast<Bits16Bytes*>(shared_bytes_at(0));
#pragma unroll 4
    for (int i = thread_index(); i < a.x_bytes / 16; i += thread_count()) to[i] = Bits16Bytes{};
  }
#pragma unroll 4
  for (int i = thread_index(); i < (at.size - at.h) / 4; i += thread_count())
    copy_bits<Bits16Bytes>(a.x_bytes + 16 * i, table + at.h + 4 * i);
  barrier();
  copy_plane<false>(a, static_cast<const T*>(a.x) + plane(first), BEFORE);

  BandsWarp<T> bands;
#pragma unroll 1
  for (int image = first; image < end; ++image) {
    wait_for_copies();
    barrier();
    {
      const BandsLane p;
      bands.columns(2 * (p.lane % 8 * a.pitch + 16 * p.warp + 8 * (p.lane / 8)), 16 * a.pitch,
                    a.x_bytes + 512 * p.warp * kBandsProducts * kParts<T> + 16 * p.lane);
    }
    // Of both scales of the weights; the product of all is a float's power of two, or all is exact.
    const Bits16Bytes numbers = read_weight(reinterpret_cast<const Bits16Bytes*>(table));
    const int of_weights = int(numbers.words[0] + numbers.words[1]);
    int exponent;
    const bool held = bands.split(126 - of_weights, exponent);
    barrier();
    const bool by_products = held && numbers.words[2] != 0 && -exponent - of_weights <= 127;
    const float scale = power_of_two(-exponent - of_weights);
    const BandsLane now;
    const int column = 16 * now.warp + 2 * now.t, out = 2 * (now.g * a.pitch + BEFORE + column);
    const int row_bias = a.x_bytes + 4 * (at.row_bias - at.h) + 16 * now.t;
    const int words = a.x_bytes + 4 * (at.v - at.h) + 16 * now.lane;
    const uint32_t* column_bias = table + at.column_bias + 16 * now.warp + now.g;
    const float across[2] = {float_of(read_weight(column_bias)), float_of(read_weight(column_bias + 8))};
    if (!by_products) {
      put_exact_outputs<T>(a, static_cast<const T*>(a.x) + plane(image), BEFORE);
    } else {
      for_each_number<TILES / 2>([&](auto constant) LSKA_INLINE {
        constexpr int PAIR = decltype(constant)::value;
        float sum[2][4];
        bands.template rows<PAIR>(words, sum);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Bits16Bytes bias =
              *reinterpret_cast<const Bits16Bytes*>(shared_bytes_at(row_bias + 64 * (2 * PAIR + n)));
          uint32_t pairs[2];  // of 8 columns each
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float one = multiply_add(across[i], float_of(bias.words[0]), float_of(bias.words[1]));
            const float two = multiply_add(across[i], float_of(bias.words[2]), float_of(bias.words[3]));
            pairs[i] = turn_matrix(pack<T>(multiply_add(sum[n][2 * i], scale, one),
                                           multiply_add(sum[n][2 * i + 1], scale, two)));
          }
          // Where x was. Beside and behind the map may be anything finite: H and V have zeros there.
          uint32_t* to = reinterpret_cast<uint32_t*>(shared_bytes_at(out + 16 * (2 * PAIR + n) * a.pitch));
          to[0] = pairs[0];
          to[4] = pairs[1];
        }
      });
    }
    barrier();
    copy_plane<true>(a, static_cast<T*>(a.s) + plane(image), BEFORE);
    if (image + 1 == end) break;
    barrier();
    copy_plane<false>(a, static_cast<const T*>(a.x) + plane(image + 1), BEFORE);
  }
#endif
}

}  // namespace lska_ops
