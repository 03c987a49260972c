// The shift's backward by products on tensor cores, of 3 x 3 taps and stride 1.
//
// What maps hear back is a device function for whatever kernel has a tile of inputs:
//
//   shift_back_tile<T, G>(source, tile, sums)
//
// For `parts` of q, k, v from `part` on, `heads` heads from `head` on and all D dims it leaves the maps'
// gradients, rate2 and all, in the tile's float sums in shared memory. It stages `layout.dims` dims of grad_y
// at a time, around the tile, in layout.shared_bytes at `staging`; the sums must not lie there. All of the
// block's threads call it; it begins with a barrier, and whoever reads the sums has one behind it.
#pragma once

#include "csrc/acmix/kernels_products_shift.cuh"
#include "csrc/acmix/plan_products_shift_backward.h"

namespace lska_ops {

// What is the same for all blocks.
struct ShiftBackSource {
  const void* grad_y;  // [B, C, H, W] of T; in elements:
  int64_t image, row;  // from an image to the next, from a row to the next
  int channel, pixel;
  bool vectors, quads;     // 16 bytes of a pixel's channels at a time, or 8 bytes of a row
  const uint32_t* table;   // of acmix_shift_back_table_kernel: a dim's words as kShiftBackWords counts them
  const float* composite;  // as in kernels_tile.cuh
  const void* rate2;       // [1] of T
  int G, D, H, W;
  AcmixShiftBackLayout layout;  // of acmix_shift_back_layout
};

// A tile of inputs, layout.rows x layout.cols.
struct ShiftBackTile {
  int64_t image;
  int row, col;     // the first pixel
  int head, heads;  // of the maps
  int part, parts;  // 0, 1, 2: q, k, v
  int staging;      // where grad_y comes to lie, in bytes of shared memory: a multiple of 16
};

// Where the sum of a pixel, part, head and dim is: at + (row * cols + col) * pixel + (nth part) * part +
// (nth head) * head + 4 * dim. `pixel` at odd multiples of 16 makes the fewest conflicts; all are multiples
// of 8.
struct ShiftBackSums {
  int at, pixel, part, head;
};

// A dim's table: for q, k and v, each product and lane its words as a right operand, first parts before
// second ones: 8 columns are the heads' maps at two neighbouring inputs, of 8 heads at one and then the
// other; 16 rows are of four pixels' outputs. Then, per map, what undoes the power of two, or NaN as in the
// forward's.
template <int G>
constexpr int kShiftBackSteps = 3 * G / 4;  // products of 8 columns
template <int G>
constexpr int kShiftBackWords = 3 * (G / 4 * kShiftBackSteps<G> * kWarp * 4 + G);

struct AcmixShiftBackTableArguments {
  const float* composite;  // as in kernels_tile.cuh
  uint32_t* table;
  int D;
};

// A block makes one dim's table.
template <class T, int G>
LSKA_KERNEL(256)
acmix_shift_back_table_kernel(const AcmixShiftBackTableArguments a) {
  constexpr int kMaps = 3 * G, kOfMap = G * 9, kRows = G / 4;
  const int dim = int(block_x());
  float *weights = shared_floats(), *undoes = weights + kMaps * kOfMap;  // [q, k, v][heads][outputs][taps]
  for (int i = thread_index(); i < kMaps * kOfMap; i += thread_count()) {
    const int map = i / kOfMap, part = map / G, head = map - part * G;
    weights[i] =
        read_global(a.composite + (int64_t(head * 3 + part) * a.D + dim) * kOfMap + i - map * kOfMap);
  }
  barrier();
  uint32_t* const table = a.table + int64_t(dim) * kShiftBackWords<G>;
  for (int map = thread_index(); map < kMaps; map += thread_count()) {
    float most = 0.f, least = 3.4e38f;
    for (int i = 0; i < kOfMap; ++i) {
      const float v = max_magnitude(weights[map * kOfMap + i], 0.f);
      most = max_magnitude(most, v);
      if (v > 0.f) least = min(least, v);
    }
    undoes[map] = undo_of_weights<T>(most, least);
    write_global(table + kShiftBackWords<G> - kMaps + map, bits_of(undoes[map]));
  }
  barrier();
  for (int i = thread_index(); i < 3 * kRows * kShiftBackSteps<G> * kWarp * 2; i += thread_count()) {
    const int upper = i % 2, lane = i / 2 % kWarp, rest = i / 2 / kWarp, step = rest % kShiftBackSteps<G>,
              n = rest / kShiftBackSteps<G> % kRows, part = rest / kShiftBackSteps<G> / kRows, g = lane / 4;
    const int input = G == 4 ? g / 4 : n, map = part * G + g % G;
    // Rows of pixels go down, and pixels in them to the right, from the last tap to the first.
    const int k = step % kRows * 16 + 2 * (lane % 4) + 8 * upper, out = k % G, dx = input + 2 - k / G,
              tap = 3 * (2 - step / kRows) + dx;
    const float undo = undoes[map], times = undo == undo ? 1.f / undo : 0.f;
    const float* at = weights + map * kOfMap + out * 9 + tap;
    const bool seen = dx >= 0 && dx < 3;
    const float first = seen ? at[0] * times : 0.f, second = seen ? at[9] * times : 0.f;
    const uint32_t high = pack<T>(first, second);
    uint32_t* to = table + (i / 2) * 4 + upper;
    write_global(to, high);
    write_global(to + 2, pack<T>(first - first_of<T>(high), second - second_of<T>(high)));
  }
}

// Dims in shared memory at once are 2 to the power of these.
LSKA_DEVICE int dim_bits(const AcmixShiftBackLayout& l) { return l.dims == 16 ? 4 : 3; }

// grad_y of `layout.dims` dims from `dim` on around the tile, zero beyond the map.
template <class T, int G>
LSKA_DEVICE void stage_shift_back(const ShiftBackSource& s, const ShiftBackTile& tile, int dim) {
  const AcmixShiftBackLayout& l = s.layout;
  const T* const from = static_cast<const T*>(s.grad_y) + tile.image * s.image + int64_t(dim) * G * s.channel;
  const int rows = l.rows + 2, cols = l.cols + 2;
  if (s.vectors) {  // neighbours in memory are a pixel's channels: an octet at a time
    const int bits = dim_bits(l) - (G == 4 ? 1 : 0);
#pragma unroll 1
    for (int i = thread_index(); i < rows * cols << bits; i += thread_count()) {
      const int octet = i & ((1 << bits) - 1), pixel = i >> bits, row = quotient(pixel, l.by_cols),
                col = pixel - row * cols, y = tile.row - 1 + row, x = tile.col - 1 + col;
      const T* const at = from + int64_t(y) * s.row + int64_t(x) * s.pixel + 8 * octet;
      const int to = tile.staging + row * l.row_pitch + col * 2 * G;
      const bool inside = uint32_t(y) < uint32_t(s.H) && uint32_t(x) < uint32_t(s.W);
      if constexpr (G == 4) {
#pragma unroll
        for (int d = 0; d < 2; ++d) {
          Bits8Bytes* const there =
              reinterpret_cast<Bits8Bytes*>(shared_bytes_at(to + (2 * octet + d) * l.dim_pitch));
          if (inside)
            copy_to_shared(there, reinterpret_cast<const Bits8Bytes*>(at + 4 * d));
          else
            *there = Bits8Bytes{};
        }
      } else {
        Bits16Bytes* const there = reinterpret_cast<Bits16Bytes*>(shared_bytes_at(to + octet * l.dim_pitch));
        if (inside)
          copy_to_shared(there, reinterpret_cast<const Bits16Bytes*>(at));
        else
          *there = Bits16Bytes{};
      }
    }
    return;
  }
  const auto put = [&](int d, int row, int col, const uint32_t(&v)[G / 2]) LSKA_INLINE {
    char* const there = shared_bytes_at(tile.staging + d * l.dim_pitch + row * l.row_pitch + col * 2 * G);
    if constexpr (G == 4)
      *reinterpret_cast<Bits8Bytes*>(there) = {v[0], v[1]};
    else
      *reinterpret_cast<Bits16Bytes*>(there) = {v[0], v[1], v[2], v[3]};
  };
  if (s.quads) {  // neighbours in memory are a row's pixels: four of them, of a dim's outputs, at a time
    const int quads = l.cols / 4 + 2, all = rows * quads;
#pragma unroll 1
    for (int i = thread_index(); i < (all + 3) / 4 * 4 * l.dims; i += thread_count()) {
      const int d = (i >> 2) & (l.dims - 1), nth = (i >> (2 + dim_bits(l))) * 4 + i % 4,
                row = quotient(nth, l.by_quads), quad = nth - row * quads, y = tile.row - 1 + row,
                x = tile.col - 4 + 4 * quad;
      if (nth >= all) continue;
      const bool inside = uint32_t(y) < uint32_t(s.H) && uint32_t(x) < uint32_t(s.W);
      Bits8Bytes v[G] = {};
#pragma unroll
      for (int g = 0; g < G; ++g)
        if (inside)
          v[g] = read_global(reinterpret_cast<const Bits8Bytes*>(from + int64_t(y) * s.row + x +
                                                                 int64_t(d * G + g) * s.channel));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int col = 4 * quad - 3 + k;
        if (uint32_t(col) >= uint32_t(cols)) continue;
        uint32_t words[G / 2];
#pragma unroll
        for (int g = 0; g < G; g += 2) words[g / 2] = pick_halves(v[g], v[g + 1], k);
        put(d, row, col, words);
      }
    }
    return;
  }
#pragma unroll 1
  for (int d = thread_index() / kWarp; d < l.dims; d += thread_count() / kWarp)
#pragma unroll 1
    for (int i = thread_index() % kWarp; i < rows * cols; i += kWarp) {
      const int row = quotient(i, l.by_cols), col = i - row * cols, y = tile.row - 1 + row,
                x = tile.col - 1 + col;
      T v[G] = {};
      if (uint32_t(y) < uint32_t(s.H) && uint32_t(x) < uint32_t(s.W)) {
#pragma unroll
        for (int g = 0; g < G; ++g)
          v[g] =
              read_global(from + int64_t(y) * s.row + int64_t(x) * s.pixel + int64_t(d * G + g) * s.channel);
      }
      uint32_t words[G / 2];
      memcpy(words, v, sizeof words);
      put(d, row, col, words);
    }
}

// What an input hears back by the definition, where products would carry what is not finite to its
// neighbours. `from`: where the first of the 3 x 3 pixels around it is in shared memory.
template <class T, int G>
LSKA_DEVICE float exact_shift_back(const ShiftBackSource& s, int dim, int part, int head, int y, int x,
                                   int from) {
  float sum = 0.f;
#pragma unroll 1
  for (int out = 0; out < G; ++out) {
    const float* weights = s.composite + ((int64_t(head * 3 + part) * s.D + dim) * G + out) * 9;
#pragma unroll 1
    for (int tap = 0; tap < 9; ++tap) {
      const int down = 2 - tap / 3, right = 2 - tap % 3;
      if (uint32_t(y - 1 + down) >= uint32_t(s.H) || uint32_t(x - 1 + right) >= uint32_t(s.W)) continue;
      const int at = from + down * s.layout.row_pitch + right * 2 * G + 2 * out;
      sum = multiply_add(read_weight(weights + tap),
                         to_float(*reinterpret_cast<const T*>(shared_bytes_at(at))), sum);
    }
  }
  return sum;
}

// What two neighbouring dims' maps of q, k or v hear back, from `dim` on, which is dim number `staged` in
// shared memory; by one warp. A row of a product's left operand is four pixels of grad_y, and walks down
// kShiftBackWalk inputs; the warp takes every `shares`-th 16 of the walks.
template <class T, int G>
LSKA_DEVICE void shift_back_walks(const ShiftBackSource& s, const ShiftBackTile& tile,
                                  const ShiftBackSums& sums, int dim, int staged, int part, int share,
                                  int shares, float rate2) {
  constexpr int kSteps = kShiftBackSteps<G> / 3, kWalk = kShiftBackWalk;
  const AcmixShiftBackLayout& l = s.layout;
  const int lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  const int from = tile.staging + staged * l.dim_pitch;
#pragma unroll 1
  for (int n = 0; n < G / 4; ++n) {  // of 8 columns of a product's outcome
    const uint32_t* const table = s.table + int64_t(dim) * kShiftBackWords<G>;
    const auto read = [&](int d, int step) LSKA_INLINE {
      return read_weight(reinterpret_cast<const Bits16Bytes*>(
          table + d * kShiftBackWords<G> +
          (((part * (G / 4) + n) * kShiftBackSteps<G> + step) * kWarp + lane) * 4));
    };
    constexpr bool kHeld = G == 4;  // else they are too many for registers
    Bits16Bytes weights[2][kHeld ? kShiftBackSteps<G> : 1];
#pragma unroll
    for (int d = 0; d < 2; ++d)
#pragma unroll
      for (int i = 0; kHeld && i < kShiftBackSteps<G>; ++i) weights[d][i] = read(d, i);
    const int input = G == 4 ? t / 2 : n, head = G == 4 ? 2 * (t % 2) : 2 * t;  // as an outcome
    float times[2][2];
#pragma unroll
    for (int d = 0; d < 2; ++d)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        times[d][i] =
            rate2 * float_of(read_weight(table + (d + 1) * kShiftBackWords<G> - 3 * G + part * G + head + i));
    const int nth = head - tile.head;
    const int to = sums.at + input * sums.pixel + (part - tile.part) * sums.part + nth * sums.head + 4 * dim;
    const auto put = [&](int at, float first, float second)
                         LSKA_INLINE { *reinterpret_cast<Float2*>(shared_bytes_at(at)) = {first, second}; };
#pragma unroll 1
    for (int first = 16 * share; first < l.walks; first += 16 * shares) {
      // A lane's walk of 16; beyond the last one the last one again, of which nothing is written.
      const int walk = min(first + lane % 16, l.walks - 1), band = quotient(walk, l.by_pairs),
                pair = walk - band * l.pairs;
      const int begin = from + lane / 16 * 16 + band * kWalk * l.row_pitch + pair * 4 * G;
      const int place = (band * kWalk * l.cols + 2 * pair) * sums.pixel;
      float sum[2][kWalk][4] = {};
      const auto add = [&](float(&to_sum)[4], const uint32_t(&grads)[4], const Bits16Bytes& w) LSKA_INLINE {
        mma_16x8x16<T>(to_sum, grads[0], grads[1], grads[2], grads[3], w.words[0], w.words[1]);
        mma_16x8x16<T>(to_sum, grads[0], grads[1], grads[2], grads[3], w.words[2], w.words[3]);
      };
      uint32_t grads[4];
      if constexpr (kHeld) {
#pragma unroll
        for (int d = 0; d < 2; ++d)
#pragma unroll
          for (int row = 0; row < kWalk + 2; ++row) {
            load_matrices(begin + d * l.dim_pitch + row * l.row_pitch, grads);
#pragma unroll
            for (int j = 0; j < kWalk; ++j)
              if (const int dy = row - j; dy >= 0 && dy < 3) add(sum[d][j], grads, weights[d][dy]);
          }
      } else {
#pragma unroll
        for (int d = 0; d < 2; ++d)
#pragma unroll 1
          for (int i = 0; i < kShiftBackSteps<G>; ++i) {
            const int dy = i / kSteps, step = i % kSteps;
            const Bits16Bytes w = read(d, i);
#pragma unroll
            for (int j = 0; j < kWalk; ++j) {
              load_matrices(begin + d * l.dim_pitch + (j + dy) * l.row_pitch + step * 32, grads);
              add(sum[d][j], grads, w);
            }
          }
      }
      float all = 0.f;
#pragma unroll
      for (int d = 0; d < 2; ++d)
#pragma unroll
        for (int j = 0; j < kWalk; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) all += absolute(sum[d][j][i] *= times[d][i % 2]);
      const bool lost = warp_any(!(all < kLargestFinite));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int there = to + shuffle_from(place, g + 8 * r);
        if (first + g + 8 * r >= l.walks) continue;
        if (lost) {
          const int of = first + g + 8 * r, down = quotient(of, l.by_pairs), right = of - down * l.pairs;
#pragma unroll 1
          for (int j = 0; j < kWalk; ++j)
#pragma unroll 1
            for (int i = 0; i < 2; ++i) {
              if (uint32_t(nth + i) >= uint32_t(tile.heads)) continue;
              const int row = down * kWalk + j, col = 2 * right + input;
              const auto exact = [&](int d) LSKA_INLINE {
                return rate2 *
                       exact_shift_back<T, G>(s, dim + d, part, head + i, tile.row + row, tile.col + col,
                                              from + d * l.dim_pitch + row * l.row_pitch + col * 2 * G);
              };
              put(there + j * l.cols * sums.pixel + i * sums.head, exact(0), exact(1));
            }
          continue;
        }
#pragma unroll
        for (int j = 0; j < kWalk; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (uint32_t(nth + i) < uint32_t(tile.heads))
              put(there + j * l.cols * sums.pixel + i * sums.head, sum[0][j][2 * r + i],
                  sum[1][j][2 * r + i]);
      }
    }
  }
}

// `parts` of what is staged, dims from `dim` on.
template <class T, int G>
LSKA_DEVICE void shift_back_staged(const ShiftBackSource& s, const ShiftBackTile& tile,
                                   const ShiftBackSums& sums, int dim) {
  const int twos = s.layout.dims / 2, warp = thread_index() / kWarp, warps = thread_count() / kWarp;
  const float rate2 = load(static_cast<const T*>(s.rate2));
#pragma unroll 1
  for (int part = tile.part; part < tile.part + tile.parts; ++part)
#pragma unroll 1
    for (int two = warp % twos; two < twos; two += warps)
      shift_back_walks<T, G>(s, tile, sums, dim + 2 * two, 2 * two, part, warp / twos,
                             warps_that_share(warps, two, twos), rate2);
}

template <class T, int G>
LSKA_DEVICE void shift_back_tile(const ShiftBackSource& s, const ShiftBackTile& tile,
                                 const ShiftBackSums& sums) {
#pragma unroll 1
  for (int dim = 0; dim < s.D; dim += s.layout.dims) {
    barrier();
    stage_shift_back<T, G>(s, tile, dim);
    wait_for_copies();
    barrier();
    shift_back_staged<T, G>(s, tile, sums, dim);
  }
}

struct AcmixShiftMapsArguments {
  ShiftBackSource source;
  void* out;                   // [B, 3, C, H, W] of T
  int64_t out_image, out_row;  // in elements
  int out_channel, out_pixel;
  bool vectors, quads;  // 16 bytes of a pixel's channels at a time, or four of a row's pixels
  int B, C;
  AcmixShiftMapsLayout layout;
};

// What one of q, k and v of the block's dims has in shared memory, rounded once.
template <class T, int G>
LSKA_DEVICE void write_shift_maps(const AcmixShiftMapsArguments& a, const ShiftBackTile& tile, int dim) {
  const AcmixShiftBackLayout& l = a.source.layout;
  const AcmixShiftMapsLayout& m = a.layout;
  const int D = a.source.D, H = a.source.H, W = a.source.W, channels = G * l.dims, pixels = l.rows * l.cols;
  const int64_t first = tile.image * a.out_image + (int64_t(tile.part) * a.C + dim) * a.out_channel;
  const auto sums_at = [&](int pixel) LSKA_INLINE {
    return reinterpret_cast<const float*>(shared_bytes_at(m.sums_at + pixel * m.sum_pitch));
  };
  const auto of_channel = [&](int channel) LSKA_INLINE {
    const int head = channel >> dim_bits(l);
    return first + int64_t(head * D + channel - head * l.dims) * a.out_channel;
  };
  const auto place = [&](int row, int col) LSKA_INLINE {
    return int64_t(tile.row + row) * a.out_row + int64_t(tile.col + col) * a.out_pixel;
  };
  const int bits = dim_bits(l) + (G == 4 ? 2 : 3), t = thread_index();  // of channels
  if (a.vectors) {
    const int octet = t & ((1 << (bits - 3)) - 1);
    T* const out = static_cast<T*>(a.out) + of_channel(8 * octet);
#pragma unroll 1
    for (int pixel = t >> (bits - 3); pixel < pixels; pixel += thread_count() >> (bits - 3)) {
      const int row = quotient(pixel, m.by_cols), col = pixel - row * l.cols;
      if (tile.row + row >= H || tile.col + col >= W) continue;
      const EightFloats v = *reinterpret_cast<const EightFloats*>(sums_at(pixel) + 8 * octet);
      store_vector(out + place(row, col), v.v);
    }
    return;
  }
  if (a.quads) {  // a sector of four quads, of eight channels, by a warp
    const int channel = (t >> 2) & (channels - 1);
    const int64_t from = of_channel(channel);
#pragma unroll 1
    for (int quad = (t >> (bits + 2)) * 4 + t % 4; quad < pixels / 4;
         quad += (thread_count() >> (bits + 2)) * 4) {
      const int row = quotient(4 * quad, m.by_cols), col = 4 * quad - row * l.cols;
      if (tile.row + row >= H || tile.col + col >= W) continue;
      float v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = sums_at(4 * quad + k)[channel];
      write_global(reinterpret_cast<Bits8Bytes*>(static_cast<T*>(a.out) + from + place(row, col)),
                   Bits8Bytes{pack<T>(v[0], v[1]), pack<T>(v[2], v[3])});
    }
    return;
  }
#pragma unroll 1
  for (int channel = thread_index() / kWarp; channel < channels; channel += thread_count() / kWarp)
    for (int pixel = thread_index() % kWarp; pixel < pixels; pixel += kWarp) {
      const int row = quotient(pixel, m.by_cols), col = pixel - row * l.cols;
      if (tile.row + row >= H || tile.col + col >= W) continue;
      store(static_cast<T*>(a.out) + of_channel(channel) + place(row, col), sums_at(pixel)[channel]);
    }
}

// A block owns a tile of an image's inputs and some dims of all heads: it reads grad_y of these dims' outputs
// at the tile and a pixel around it, and writes the gradients of q, then k, then v.
template <class T, int G>
LSKA_KERNEL_FEW_BLOCKS(512)
acmix_shift_maps_kernel(const AcmixShiftMapsArguments a) {
  if constexpr (kHasProducts<T>) {
    const AcmixShiftBackLayout& l = a.source.layout;
    const AcmixShiftMapsLayout& m = a.layout;
    const int shares = a.source.D / l.dims, nth = int(block_x()) / shares,
              dim = (int(block_x()) - nth * shares) * l.dims, down = nth / m.tiles_x;
    ShiftBackTile tile{int64_t(block_y()) * blocks_z() + block_z()};
    if (tile.image >= a.B) return;
    tile.row = down * l.rows, tile.col = (nth - down * m.tiles_x) * l.cols;
    tile.heads = G, tile.parts = 1;
    stage_shift_back<T, G>(a.source, tile, dim);
    wait_for_copies();
#pragma unroll 1
    for (tile.part = 0; tile.part < 3; ++tile.part) {
      barrier();
      shift_back_staged<T, G>(a.source, tile, {m.sums_at - 4 * dim, m.sum_pitch, 0, 4 * l.dims}, dim);
      barrier();
      write_shift_maps<T, G>(a, tile, dim);
    }
  }
}

}  // namespace lska_ops
