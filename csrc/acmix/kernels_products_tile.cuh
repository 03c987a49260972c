// What kernels by products on tensor cores have around them: the call, a block's place, its maps in shared
// memory, and its tile's sums.
#pragma once

#include "csrc/acmix/kernels_tile.cuh"
#include "csrc/acmix/plan_products.h"
#include "csrc/common/quotient.cuh"
#include "csrc/common/warp.cuh"

namespace lska_ops {

constexpr float kLargestFinite = 3.4e38f;

struct AcmixProductsArguments {
  const void* qkv;     // [B, 3, C, H, W] of T: q, k, v; in elements:
  int64_t image, row;  // from an image to the next, from a row to the next
  int channel, pixel;
  void* y;  // [B, C, Ho, Wo] of T
  int64_t y_image, y_row;
  int y_channel, y_pixel;
  const float* initial;  // contiguous, of y's shape, what another kernel has computed; null for nothing
  float* lse;            // [B, G, Ho, Wo]
  const void *conv_p, *rate1, *rate2;  // [D, 2], [1], [1] of T
  const float* composite;              // as in kernels_tile.cuh
  const uint32_t* table;               // of the shift, a dim's words as shift_words has them
  bool vectors;                        // 16 bytes of a pixel's channels at a time
  bool quads;                          // or 8 bytes of a row
  int B, C, G, D, H, W, Ho, Wo;
  float scale, step_x, step_y;  // of logits; of a pixel in coordinates
  AcmixProductsLayout layout;
};

LSKA_DEVICE uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
LSKA_DEVICE uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }
// Number i of four of each.
LSKA_DEVICE uint32_t pick_halves(const Bits8Bytes& a, const Bits8Bytes& b, int i) {
  return i % 2 ? high_halves(a.words[i / 2], b.words[i / 2]) : low_halves(a.words[i / 2], b.words[i / 2]);
}

// Of an image, what a block reads and writes.
template <class T>
struct ProductsImage {
  const T* qkv;
  int64_t image;
  int head;      // the first one
  int row, col;  // of the tile's first output
};

// Blocks of a tile's heads are neighbours, so that they find in the cache what they share.
template <class T>
LSKA_DEVICE ProductsImage<T> products_image(const AcmixProductsArguments& a, int64_t block) {
  const AcmixProductsLayout& l = a.layout;
  ProductsImage<T> of;
  of.image = int64_t(block_y()) * blocks_z() + block_z();
  const int shares = a.G / l.heads, place = int(block) / shares, down = quotient(place, l.by_tiles_x);
  of.head = (int(block) - place * shares) * l.heads;
  of.row = down * l.rows, of.col = (place - down * l.tiles_x) * l.cols;
  of.qkv = static_cast<const T*>(a.qkv) + of.image * a.image;
  return of;
}

// How many of `warps` do the nth of `tasks`, which they take in turns; one, where tasks are more.
LSKA_DEVICE int warps_that_share(int warps, int nth, int tasks) {
  return max((warps - nth + tasks - 1) / tasks, 1);
}

// A warp's lanes on `octets` of 8 numbers at each of some places: so many lanes, a power of two, share a
// place.
struct LanesOnPlaces {
  int first, step;    // octets of a lane
  int place, places;  // a lane's first place, and how far it is to its next
  LSKA_DEVICE explicit LanesOnPlaces(int octets) {
    int bits = 0;
    while (bits < 5 && 1 << bits < octets) ++bits;
    const int lane = thread_index() % kWarp;
    step = 1 << bits, first = lane & (step - 1);
    place = lane >> bits, places = kWarp >> bits;
  }
};

// Maps of one image in global memory, from the first channel of the block's heads on; in elements.
template <class T>
struct MapsInMemory {
  const T* from;
  int64_t row;
  int channel, pixel, H, W;
  int second;  // channels to a second map, if two are staged
  bool vectors, quads;
};

// A rectangle of pixels, every kStep-th, in shared memory; in bytes, but for what counts pixels. `top` and
// `left` are pixels of the map.
struct MapsInShared {
  int to, pitch, row_pitch, rows, cols, top, left;
};

// What a pixel beyond the map is: one that reflection names, the last one again, or zero.
enum class Beyond { reflects, repeats, zero };

// A rectangle of kMaps maps, of the block's heads: for a pixel its heads' dims of the first one, then of the
// second; dims that fill a head up are zero. `offsets`: what reflection makes of the columns.
template <int kMaps, Beyond kBeyond, int kStep, class T>
LSKA_DEVICE void stage_maps(const AcmixProductsLayout& l, int D, const MapsInMemory<T>& m,
                            const MapsInShared& s, const int* offsets = nullptr) {
  const int channels = l.heads * l.dims, octets = kMaps * channels / 8;
  const int warp = thread_index() / kWarp, warps = thread_count() / kWarp;
  const LanesOnPlaces lanes(octets);
  int to = s.to + warp * s.row_pitch;
#pragma unroll 1
  for (int row = warp; row < s.rows; row += warps, to += warps * s.row_pitch) {
    int y = s.top + row * kStep;
    bool there = true;
    if constexpr (kBeyond == Beyond::reflects) y = reflected(y, m.H);
    if constexpr (kBeyond == Beyond::repeats) y = min(y, m.H - 1);
    if constexpr (kBeyond == Beyond::zero) there = uint32_t(y) < uint32_t(m.H);
    const T* line = m.from + int64_t(y) * m.row;
    // Where a column's pixel is, or below 0 for zero.
    const auto column = [&](int col) LSKA_INLINE {
      if constexpr (kBeyond == Beyond::reflects) return offsets[col];
      const int x = s.left + col * kStep;
      if constexpr (kBeyond == Beyond::repeats) return min(x, m.W - 1) * m.pixel;
      return there && uint32_t(x) < uint32_t(m.W) ? x * m.pixel : -1;
    };
    if (m.vectors) {  // neighbours in memory are a pixel's channels: 16 bytes at a time
#pragma unroll 1
      for (int octet = lanes.first; octet < octets; octet += lanes.step) {
        const T* from = line + 8 * octet + (octet >= channels / 8 ? m.second - channels : 0);
        for (int col = lanes.place; col < s.cols; col += lanes.places) {
          auto* into = reinterpret_cast<Bits16Bytes*>(shared_bytes_at(to + col * s.pitch + 16 * octet));
          const int at = column(col);
          if (kBeyond == Beyond::zero && at < 0)
            *into = {};
          else
            copy_to_shared(into, reinterpret_cast<const Bits16Bytes*>(from + at));
        }
      }
      continue;
    }
    // Element by element: columns up to one, and from another on; all, or what is beyond the map.
    int to_col = s.cols, beyond = s.cols;
    if (m.quads) {  // neighbours in memory are a row's pixels: 4 of them, of 8 channels, at a time
      const int aligned = s.left & ~3, quads = (s.left + s.cols - aligned + 3) / 4;
      to_col = kBeyond == Beyond::reflects ? max(0, -s.left) : 0;
      if (kBeyond == Beyond::reflects) beyond = min(s.cols, m.W - s.left);
      const LanesOnPlaces fewer(8);  // 32 bytes of a row are four lanes' then
#pragma unroll 1
      for (int octet = fewer.first; octet < octets; octet += fewer.step) {
        const int64_t channel = 8 * octet + (octet >= channels / 8 ? m.second - channels : 0);
        for (int quad = fewer.place; quad < quads; quad += fewer.places) {
          const int x = aligned + 4 * quad;
          const bool inside = there && uint32_t(x) < uint32_t(m.W);
          if (kBeyond == Beyond::reflects && !inside) continue;
          Bits8Bytes v[8] = {};
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (inside)
              v[i] = read_global(reinterpret_cast<const Bits8Bytes*>(line + (channel + i) * m.channel + x));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int col = x + i - s.left;
            if (uint32_t(col) >= uint32_t(s.cols)) continue;
            *reinterpret_cast<Bits16Bytes*>(shared_bytes_at(to + col * s.pitch + 16 * octet)) = {
                pick_halves(v[0], v[1], i), pick_halves(v[2], v[3], i), pick_halves(v[4], v[5], i),
                pick_halves(v[6], v[7], i)};
          }
        }
      }
      if (to_col == 0 && beyond == s.cols) continue;
    }
#pragma unroll 1
    for (int octet = 0; octet < octets; ++octet) {
      const int map = octet / (channels / 8), first = 8 * (octet - map * (channels / 8));
      const int head = first / l.dims, dim = first - head * l.dims;
      const T* from = line + (int64_t(map) * m.second + head * D + dim) * m.channel;
      for (int i = thread_index() % kWarp; i < to_col + s.cols - beyond; i += kWarp) {
        const int col = i < to_col ? i : i - to_col + beyond, at = column(col);
        T v[8] = {};
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (dim + j < D && (kBeyond != Beyond::zero || at >= 0))
            v[j] = read_global(from + at + int64_t(j) * m.channel);
        memcpy(shared_bytes_at(to + col * s.pitch + 16 * octet), v, 16);
      }
    }
  }
}

// Map `part` of q, k and v, and the next one.
template <class T>
LSKA_DEVICE MapsInMemory<T> maps_of_qkv(const AcmixProductsArguments& a, const ProductsImage<T>& of,
                                        int part) {
  return {of.qkv + (int64_t(part) * a.C + of.head * a.D) * a.channel,
          a.row,
          a.channel,
          a.pixel,
          a.H,
          a.W,
          a.C,
          a.vectors,
          a.quads};
}
// The rectangles of a block: its tile, a pixel's maps `pitch` apart, and that with what surrounds it.
template <class T>
LSKA_DEVICE MapsInShared tile_in_shared(const AcmixProductsLayout& l, const ProductsImage<T>& of, int to,
                                        int stride) {
  return {to, l.query_pitch, l.cols * l.query_pitch, l.rows, l.cols, of.row * stride, of.col * stride};
}
template <class T>
LSKA_DEVICE MapsInShared region_in_shared(const AcmixProductsLayout& l, const ProductsImage<T>& of, int to,
                                          int stride, int reach) {
  return {to,
          l.key_pitch,
          l.key_row_pitch,
          l.region_rows,
          l.region_cols,
          of.row * stride - reach,
          of.col * stride - reach};
}

struct alignas(16) EightFloats {
  float v[8];
};

// The tile's sums, rounded once; of y's `maps` maps the one of number `part`.
template <class T>
LSKA_DEVICE void write_tile(const AcmixProductsArguments& a, const ProductsImage<T>& of, int part, int maps,
                            int sums_from) {
  const AcmixProductsLayout& l = a.layout;
  const int pixels = l.rows * l.cols, octets = l.heads * l.dims / 8;
  T* const y = static_cast<T*>(a.y) + of.image * a.y_image + int64_t(part) * a.C * a.y_channel;
  const auto sums_at = [&](int pixel) LSKA_INLINE {
    return reinterpret_cast<const float*>(shared_bytes_at(sums_from + pixel * l.sum_pitch));
  };
  if (a.vectors && !a.initial) {
    const LanesOnPlaces lanes(octets);
    const int per_round = thread_count() / kWarp * lanes.places;
#pragma unroll 1
    for (int octet = lanes.first; octet < octets; octet += lanes.step)
      for (int pixel = thread_index() / kWarp * lanes.places + lanes.place; pixel < pixels;
           pixel += per_round) {
        const int row = quotient(pixel, l.by_cols), col = pixel - row * l.cols;
        if (of.row + row >= a.Ho || of.col + col >= a.Wo) continue;
        const EightFloats* from = reinterpret_cast<const EightFloats*>(sums_at(pixel) + 8 * octet);
        const EightFloats v = *from;
        store_vector(
            y + int64_t(of.row + row) * a.y_row + (of.col + col) * a.y_pixel + of.head * a.D + 8 * octet,
            v.v);
      }
    return;
  }
  if (a.quads && !a.initial) {
    const LanesOnPlaces lanes(8);
    const int per_round = thread_count() / kWarp * lanes.places;
#pragma unroll 1
    for (int quad = thread_index() / kWarp * lanes.places + lanes.place; quad < pixels / 4;
         quad += per_round) {
      const int row = quotient(4 * quad, l.by_cols), col = 4 * quad - row * l.cols;
      if (of.row + row >= a.Ho || of.col + col >= a.Wo) continue;
      T* const to = y + int64_t(of.row + row) * a.y_row + of.col + col;
      for (int channel = lanes.first; channel < 8 * octets; channel += lanes.step) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = sums_at(4 * quad + i)[channel];
        write_global(reinterpret_cast<Bits8Bytes*>(to + int64_t(of.head * a.D + channel) * a.y_channel),
                     Bits8Bytes{pack<T>(v[0], v[1]), pack<T>(v[2], v[3])});
      }
    }
    return;
  }
#pragma unroll 1
  for (int channel = thread_index() / kWarp; channel < l.heads * l.dims; channel += thread_count() / kWarp) {
    const int head = channel / l.dims, dim = channel - head * l.dims;
    if (dim >= a.D) continue;
    const int out = of.head * a.D + head * a.D + dim;
    const float* initial =
        a.initial ? a.initial + ((of.image * maps + part) * a.C + out) * a.Ho * a.Wo : nullptr;
    for (int pixel = thread_index() % kWarp; pixel < pixels; pixel += kWarp) {
      const int row = of.row + quotient(pixel, l.by_cols), col = of.col + pixel - (row - of.row) * l.cols;
      if (row >= a.Ho || col >= a.Wo) continue;
      float v = sums_at(pixel)[channel];
      if (initial) v += read_global(initial + row * a.Wo + col);
      store(y + int64_t(row) * a.y_row + col * a.y_pixel + int64_t(out) * a.y_channel, v);
    }
  }
}

}  // namespace lska_ops
