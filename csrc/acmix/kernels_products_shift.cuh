// The shift by products on tensor cores. For each dim, a row of four pixels' maps, 12 or 24 numbers each, is
// a product's left operand, and the composite weights of two neighbouring outputs are its right one: three
// rows of pixels make 2 x heads outputs. Weights are sums of two parts of 16 bits, times a power of two per
// output.
#pragma once

#include "csrc/acmix/kernels_products_tile.cuh"

namespace lska_ops {

// A dim's table: for each product and lane its words as a right operand, first parts before second ones: 8
// columns are two neighbouring outputs of 4 heads, or an output of 8 heads and then its neighbour's; 16 rows
// are of four pixels' maps. Then, per output, what undoes the power of two, or NaN where small weights beside
// large ones would lose digits.
template <int G>
constexpr int kShiftSteps = 3 * (12 * G / 16);  // products of 8 columns
template <int G>
constexpr int kShiftWords = G / 4 * kShiftSteps<G> * kWarp * 4 + G;

template <class T>
constexpr float kLeastWeight = 0.f;
template <>
inline constexpr float kLeastWeight<Half> = 4.8e-7f;

// What undoes the power of two that makes the largest of some weights 2^14 to 2^15; in halves, what is 2^-21
// of that is still right to 2^-18 of itself. NaN where the least one would lose digits.
template <class T>
LSKA_DEVICE float undo_of_weights(float most, float least) {
  const int exponent = int(bits_of(most) >> 23);
  const bool plain = exponent >= 15 && exponent <= 240 && least >= most * kLeastWeight<T>;
  return most == 0.f ? 1.f : float_of(plain ? uint32_t(exponent - 14) << 23 : 0x7fc00000u);
}

struct AcmixShiftTableArguments {
  const void *fc, *dep_conv;
  float* composite;
  uint32_t* table;
  int G, D;
};

// A block makes one dim's composite weights, and the table of them.
template <class T, int G>
LSKA_KERNEL(256)
acmix_shift_table_kernel(const AcmixShiftTableArguments a) {
  const int dim = int(block_x()), maps = 3 * G;
  float* weights = shared_floats();  // [G outputs][9 taps][3 G maps]
  const T *fc = static_cast<const T*>(a.fc), *dep_conv = static_cast<const T*>(a.dep_conv);
  for (int i = thread_index(); i < G * 9 * maps; i += thread_count()) {
    const int out = i / (9 * maps), rest = i - out * 9 * maps, tap = rest / maps, m = rest - tap * maps;
    float sum = 0.f;
    for (int p = 0; p < 9; ++p)
      sum = multiply_add(load(dep_conv + (int64_t(dim * G + out) * 9 + p) * 9 + tap), load(fc + p * maps + m),
                         sum);
    weights[i] = sum;
    const int part = m / G, head = m - part * G;
    write_global(a.composite + ((int64_t(head * 3 + part) * a.D + dim) * G + out) * 9 + tap, sum);
  }
  barrier();
  uint32_t* const table = a.table + int64_t(dim) * kShiftWords<G>;
  for (int out = thread_index(); out < G; out += thread_count()) {
    float most = 0.f, least = 3.4e38f;
    for (int i = 0; i < 9 * maps; ++i) {
      const float v = max_magnitude(weights[out * 9 * maps + i], 0.f);
      most = max_magnitude(most, v);
      if (v > 0.f) least = min(least, v);
    }
    const float undo = undo_of_weights<T>(most, least);
    weights[G * 9 * maps + out] = undo;
    write_global(table + kShiftWords<G> - G + out, bits_of(undo));
  }
  barrier();
  for (int i = thread_index(); i < G / 4 * kShiftSteps<G> * kWarp * 2; i += thread_count()) {
    const int half = i % 2, lane = i / 2 % kWarp, step = i / 2 / kWarp % kShiftSteps<G>,
              n = i / 2 / kWarp / kShiftSteps<G>, g = lane / 4;
    const int seen = G == 4 ? g / 4 : n, out = G == 4 ? g % 4 : g;
    const int k = step % (kShiftSteps<G> / 3) * 16 + 2 * (lane % 4) + 8 * half, dx = k / maps - seen;
    const float undo = weights[G * 9 * maps + out], times = undo == undo ? 1.f / undo : 0.f;
    const float* at = weights + (out * 9 + step / (kShiftSteps<G> / 3) * 3 + dx) * maps + k % maps;
    const bool tap = dx >= 0 && dx < 3;
    const float first = tap ? at[0] * times : 0.f, second = tap ? at[1] * times : 0.f;
    const uint32_t high = pack<T>(first, second);
    uint32_t* to = table + (i / 2) * 4 + half;
    write_global(to, high);
    write_global(to + 2, pack<T>(first - first_of<T>(high), second - second_of<T>(high)));
  }
}

// The maps of `octets` times 8 dims, from `dim` on, at the tile's pixels and what surrounds them, zero beyond
// the map: for each dim and pixel the heads' q, their k, their v.
template <class T, int G, int kStride>
LSKA_DEVICE void stage_shift(const AcmixProductsArguments& a, const ProductsImage<T>& of, int dim, int octets,
                             int to) {
  const AcmixProductsLayout& l = a.layout;
  const int items = l.shift_rows * l.shift_cols * octets;
  if (a.quads) {  // neighbours in memory are a row's pixels: 4 of them, of a dim of all heads, at a time
    const int quads = l.cols / 4 + 2, lane = thread_index() % kWarp, warps = thread_count() / kWarp;
#pragma unroll 1
    for (int row = thread_index() / kWarp; row < l.shift_rows; row += warps) {
      const int y = of.row - 1 + row;
#pragma unroll 1
      for (int i = lane; i < quads * 8 * octets; i += kWarp) {
        const int octet = i >= quads * 8, d = i % 8 + octet * 8, quad = i / 8 - octet * quads,
                  x = of.col - 4 + 4 * quad;
        const bool inside = uint32_t(y) < uint32_t(a.H) && uint32_t(x) < uint32_t(a.W);
        const T* from = of.qkv + int64_t(y) * a.row + x + int64_t(dim + d) * a.channel;
        const int at = to + d / 8 * (8 * l.shift_pitch + 64) + d % 8 * l.shift_pitch +
                       row * l.shift_row_pitch + (4 * quad - 3) * 6 * G;
#pragma unroll
        for (int part = 0; part < 3; ++part) {
          Bits8Bytes v[G] = {};
#pragma unroll
          for (int g = 0; g < G; ++g)
            if (inside)
              v[g] = read_global(reinterpret_cast<const Bits8Bytes*>(
                  from + (int64_t(part) * a.C + int64_t(g) * a.D) * a.channel));
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (uint32_t(4 * quad - 3 + j) >= uint32_t(l.shift_cols)) continue;
            char* const there = shared_bytes_at(at + j * 6 * G + part * 2 * G);
            if constexpr (G == 4)
              *reinterpret_cast<Bits8Bytes*>(there) = {pick_halves(v[0], v[1], j),
                                                       pick_halves(v[2], v[3], j)};
            else
              *reinterpret_cast<Bits16Bytes*>(there) = {
                  pick_halves(v[0], v[1], j), pick_halves(v[2], v[3], j), pick_halves(v[4], v[5], j),
                  pick_halves(v[6], v[7], j)};
          }
        }
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = thread_index(); i < items; i += thread_count()) {
    const int pixel = octets == 2 ? i / 2 : i, octet = octets == 2 ? i % 2 : 0;
    const int row = quotient(pixel, l.by_shift_cols), col = pixel - row * l.shift_cols;
    const int y = of.row * kStride - 1 + row, x = of.col * kStride - 1 + col;
    const bool inside = uint32_t(y) < uint32_t(a.H) && uint32_t(x) < uint32_t(a.W);
    const T* from = of.qkv + int64_t(y) * a.row + x * a.pixel + int64_t(dim + 8 * octet) * a.channel;
    int at = to + octet * (8 * l.shift_pitch + 64) + row * l.shift_row_pitch + col * 6 * G;
#pragma unroll 1
    for (int part = 0; part < 3; ++part, at += 2 * G, from += int64_t(a.C) * a.channel) {
      uint32_t v[G][4];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        T parts[8] = {};
        if (inside && a.vectors) {
          const Bits16Bytes bits = read_global(reinterpret_cast<const Bits16Bytes*>(from + g * a.D));
          memcpy(parts, &bits, 16);
        } else if (inside) {
#pragma unroll
          for (int j = 0; j < 8; ++j) parts[j] = read_global(from + (int64_t(g) * a.D + j) * a.channel);
        }
        memcpy(v[g], parts, 16);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        uint32_t words[G / 2];
#pragma unroll
        for (int g = 0; g < G; g += 2)
          words[g / 2] =
              j % 2 ? high_halves(v[g][j / 2], v[g + 1][j / 2]) : low_halves(v[g][j / 2], v[g + 1][j / 2]);
        if constexpr (G == 4)
          *reinterpret_cast<Bits8Bytes*>(shared_bytes_at(at + j * l.shift_pitch)) = {words[0], words[1]};
        else
          *reinterpret_cast<Bits16Bytes*>(shared_bytes_at(at + j * l.shift_pitch)) = {words[0], words[1],
                                                                                      words[2], words[3]};
      }
    }
  }
}

// An output by the definition, where products would carry what is not finite to its neighbours. `from`: where
// the first of its 3 x 3 pixels is in shared memory.
template <class T, int G>
LSKA_DEVICE float exact_shift(const AcmixProductsArguments& a, int dim, int out, int from) {
  float sum = 0.f;
#pragma unroll 1
  for (int m = 0; m < 3 * G; ++m) {
    const float* weights = a.composite + ((int64_t(m % G * 3 + m / G) * a.D + dim) * G + out) * 9;
#pragma unroll 1
    for (int tap = 0; tap < 9; ++tap) {
      const int at = from + tap / 3 * a.layout.shift_row_pitch + tap % 3 * 6 * G + 2 * m;
      sum = multiply_add(read_weight(weights + tap),
                         to_float(*reinterpret_cast<const T*>(shared_bytes_at(at))), sum);
    }
  }
  return sum;
}

// Outputs of one dim by one warp; its maps are at `from` in shared memory. A row of a product's left operand
// walks down some outputs, so that what it reads serves every output that sees it: 16 walks, of which
// the warp takes every `shares`-th.
template <class T, int G, int kStride>
LSKA_DEVICE void shift_walks(const AcmixProductsArguments& a, int local, int dim, int from, int share,
                             int shares, float rate2) {
  constexpr int kSteps = kShiftSteps<G> / 3, kWalk = kShiftWalk<G>;
  const AcmixProductsLayout& l = a.layout;
  const int lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  const int head = local * G / a.D, channel = head * l.dims + local * G - head * a.D;
  const uint32_t* table = a.table + int64_t(dim) * kShiftWords<G>;
#pragma unroll 1
  for (int n = 0; n < G / 4; ++n) {  // of 8 columns of a product's outcome
    const auto read = [&](int i) LSKA_INLINE {
      return read_weight(
          reinterpret_cast<const Bits16Bytes*>(table + ((n * kShiftSteps<G> + i) * kWarp + lane) * 4));
    };
    constexpr bool kHeld = G == 4;  // else they are too many for registers
    Bits16Bytes weights[kHeld ? kShiftSteps<G> : 1];
#pragma unroll
    for (int i = 0; kHeld && i < kShiftSteps<G>; ++i) weights[i] = read(i);
    const int pixel = G == 4 ? t / 2 : n, out = G == 4 ? 2 * (t % 2) : 2 * t;  // as an outcome
    const float times[] = {rate2 * float_of(read_weight(table + kShiftWords<G> - G + out)),
                           rate2 * float_of(read_weight(table + kShiftWords<G> - G + out + 1))};
    const int sums = l.sums_at + pixel * l.sum_pitch + 4 * (channel + out);
    bool lost = false;
#pragma unroll 1
    for (int first = 16 * share; first < l.walks; first += 16 * shares) {
      // A lane's walk of 16; beyond the last one the last one again, of which nothing is written.
      const int walk = min(first + lane % 16, l.walks - 1), band = quotient(walk, l.by_pairs),
                pair = walk - band * l.pairs;
      const int begin = from + lane / 16 * 16 + band * kWalk * kStride * l.shift_row_pitch + pair * 12 * G;
      const int place = band * kWalk * l.cols * l.sum_pitch + pair * l.pair_pitch;
      float sum[kWalk][4] = {};
      const auto add = [&](int j, const uint32_t(&maps)[4], const Bits16Bytes& w) LSKA_INLINE {
        mma_16x8x16<T>(sum[j], maps[0], maps[1], maps[2], maps[3], w.words[0], w.words[1]);
        mma_16x8x16<T>(sum[j], maps[0], maps[1], maps[2], maps[3], w.words[2], w.words[3]);
      };
      uint32_t maps[4];
      if constexpr (kHeld) {
#pragma unroll
        for (int row = 0; row < (kWalk - 1) * kStride + 3; ++row)
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            load_matrices(begin + row * l.shift_row_pitch + step * 32, maps);
#pragma unroll
            for (int j = 0; j < kWalk; ++j)
              if (const int dy = row - j * kStride; dy >= 0 && dy < 3)
                add(j, maps, weights[dy * kSteps + step]);
          }
      } else {
#pragma unroll 1
        for (int i = 0; i < kShiftSteps<G>; ++i) {
          const int dy = i / kSteps, step = i % kSteps;
          const Bits16Bytes w = read(i);
#pragma unroll
          for (int j = 0; j < kWalk; ++j) {
            load_matrices(begin + (j * kStride + dy) * l.shift_row_pitch + step * 32, maps);
            add(j, maps, w);
          }
        }
      }
      float all = 0.f;
#pragma unroll
      for (int j = 0; j < kWalk; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) all += absolute(sum[j][i] *= times[i % 2]);
      lost = lost || !(all < kLargestFinite);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int there = shuffle_from(place, g + 8 * r);
        if ((kStride > 1 && pixel > 0) || first + g + 8 * r >= l.walks) continue;
#pragma unroll
        for (int j = 0; j < kWalk; ++j)
          *reinterpret_cast<Float2*>(shared_bytes_at(sums + there + j * l.cols * l.sum_pitch)) = {
              sum[j][2 * r], sum[j][2 * r + 1]};
      }
    }
    if (!warp_any(lost) || (kStride > 1 && pixel > 0)) continue;
#pragma unroll 1
    for (int walk = 16 * share + g; walk < l.walks; walk += walk % 16 < 8 ? 8 : 16 * shares - 8) {
      const int band = quotient(walk, l.by_pairs), pair = walk - band * l.pairs;
#pragma unroll 1
      for (int j = 0; j < kWalk; ++j) {
        const int row = band * kWalk + j;
        const int at = from + row * kStride * l.shift_row_pitch + (2 * pair + pixel) * 6 * G;
        *reinterpret_cast<Float2*>(
            shared_bytes_at(sums + row * l.cols * l.sum_pitch + pair * l.pair_pitch)) = {
            rate2 * exact_shift<T, G>(a, dim, out, at), rate2 * exact_shift<T, G>(a, dim, out + 1, at)};
      }
    }
  }
}

// What the shift gives to the channels of the block's heads, as the tile's sums.
template <class T, int G, int kStride>
LSKA_DEVICE void shift_tile(const AcmixProductsArguments& a, const ProductsImage<T>& of) {
  const AcmixProductsLayout& l = a.layout;
  const int first = of.head * a.D / G, maps = l.sums_at + l.rows * l.cols * l.sum_pitch;
  const float rate2 = load(static_cast<const T*>(a.rate2));
  const int warps = thread_count() / kWarp, warp = thread_index() / kWarp;
#pragma unroll 1
  for (int dim = 0; dim < l.shift_dims; dim += l.shift_at_once) {
    if (dim) barrier();
    stage_shift<T, G, kStride>(a, of, first + dim, l.shift_at_once / 8, maps);
    barrier();
#pragma unroll 1
    for (int d = warp % l.shift_at_once; d < l.shift_at_once; d += warps) {
      const int from = maps + d * l.shift_pitch + d / 8 * 64;
      shift_walks<T, G, kStride>(a, dim + d, first + dim + d, from, warp / l.shift_at_once,
                                 warps_that_share(warps, d, l.shift_at_once), rate2);
    }
  }
}

}  // namespace lska_ops
