// The gradients of the shift's composite weights by products on tensor cores: pixels are what is summed over.
// For eight outputs, of one dim of eight heads or of two dims of four, the left operand's rows are grad_y at
// two taps' pixels, its right one's columns the dims' maps of q, k or v: fifteen products for sixteen pixels.
#pragma once

#include "csrc/acmix/kernels_products_tile.cuh"
#include "csrc/acmix/plan_products_shift_backward.h"

namespace lska_ops {

// A map that is read where it lies, in NCHW or channels_last; strides in elements.
struct AcmixMap {
  const void* at;
  int64_t image, row;
  int channel, pixel;
  bool vectors, quads;  // 16 bytes of a pixel's channels at a time, or 8 bytes of a row
};

struct AcmixShiftWeightsArguments {
  AcmixMap qkv, grad_y;  // [B, 3, C, H, W] and [B, C, H, W] of T
  float* parts;          // [groups, D, G, 3 G, 9]
  int C, D, H, W;
  AcmixShiftWeightsLayout layout;
};

// Pixels of a map that are staged: `rows` of `cols` from (top, left) on, zero beyond the map.
struct StagedPixels {
  int top, left, rows, cols, row_pitch;  // bytes from a row to the next, 16 from a pixel to the next
  Divisor by_cols, by_quads;             // quads: of the aligned ones that cover a row
};

// For each octet of a block's outputs, `units` of them, eight numbers of each pixel: those of the channels
// channel(unit, 0 .. 7). An octet's begin at to + unit * unit_pitch.
template <class T, class Channel>
LSKA_DEVICE void stage_octets(const AcmixMap& map, const T* from, const StagedPixels& p, int H, int W,
                              int units, Divisor by_units, int unit_pitch, int to, const Channel& channel) {
  if (map.quads) {  // neighbours in memory are a row's pixels: four of them, of eight channels, at a time
    const int aligned = p.left & ~3, quads = int(p.by_quads.d);
#pragma unroll 1
    for (int i = thread_index(); i < p.rows * quads * units; i += thread_count()) {
      // Two quads of four octets are in different banks.
      const int rest = quotient(i / 2, by_units), unit = i / 2 - rest * units, nth = 2 * rest + i % 2;
      const int row = quotient(nth, p.by_quads), y = p.top + row, x = aligned + 4 * (nth - row * quads);
      const bool inside = uint32_t(y) < uint32_t(H) && uint32_t(x) < uint32_t(W);
      Bits8Bytes v[8] = {};
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (inside)
          v[j] = read_global(reinterpret_cast<const Bits8Bytes*>(from + int64_t(y) * map.row + x +
                                                                 int64_t(channel(unit, j)) * map.channel));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int col = x + k - p.left;
        if (uint32_t(col) >= uint32_t(p.cols)) continue;
        *reinterpret_cast<Bits16Bytes*>(
            shared_bytes_at(to + unit * unit_pitch + row * p.row_pitch + 16 * col)) = {
            pick_halves(v[0], v[1], k), pick_halves(v[2], v[3], k), pick_halves(v[4], v[5], k),
            pick_halves(v[6], v[7], k)};
      }
    }
    return;
  }
  const int pixels = p.rows * p.cols;
#pragma unroll 1
  for (int unit = thread_index() / kWarp; unit < units; unit += thread_count() / kWarp)
#pragma unroll 1
    for (int i = thread_index() % kWarp; i < pixels; i += kWarp) {
      const int row = quotient(i, p.by_cols), col = i - row * p.cols, y = p.top + row, x = p.left + col;
      T v[8] = {};
      if (uint32_t(y) < uint32_t(H) && uint32_t(x) < uint32_t(W)) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          v[j] = read_global(from + int64_t(y) * map.row + int64_t(x) * map.pixel +
                             int64_t(channel(unit, j)) * map.channel);
      }
      memcpy(shared_bytes_at(to + unit * unit_pitch + row * p.row_pitch + 16 * col), v, 16);
    }
}

// The maps of a block's dims at the tile's pixels: of q, then k, then v an octet has its dims' heads.
template <class T, int G>
LSKA_DEVICE void stage_shift_maps(const AcmixShiftWeightsArguments& a, const T* from, int dim, int row,
                                  int col) {
  const AcmixShiftWeightsLayout& l = a.layout;
  if (!a.qkv.vectors) {
    const StagedPixels pixels{row, col, l.rows, l.cols, l.map_row, l.by_cols, l.by_quads};
#pragma unroll 1
    for (int part = 0; part < 3; ++part)
      stage_octets(a.qkv, from, pixels, a.H, a.W, l.units, l.by_units, l.unit_pitch, part * l.map_part,
                   [&](int unit, int j) LSKA_INLINE {
                     const int d = G == 4 ? 2 * unit + j / 4 : unit;
                     return part * a.C + j % G * a.D + dim + d;
                   });
    return;
  }
  const int octets = l.dims / 8;
#pragma unroll 1
  for (int i = thread_index(); i < l.rows * l.cols * octets; i += thread_count()) {
    const int pixel = octets == 2 ? i / 2 : i, octet = octets == 2 ? i % 2 : 0;
    const int down = quotient(pixel, l.by_cols), y = row + down, x = col + pixel - down * l.cols;
    const bool inside = y < a.H && x < a.W;
    const T* at = from + int64_t(y) * a.qkv.row + int64_t(x) * a.qkv.pixel + dim + 8 * octet;
    int to = octet * G * l.unit_pitch + 16 * pixel;
#pragma unroll 1
    for (int part = 0; part < 3; ++part, at += a.C, to += l.map_part) {
#pragma unroll 1
      for (int head = 0; head < G; head += 4) {  // more do not fit registers beside the sums
        Bits16Bytes v[4] = {};
#pragma unroll
        for (int g = 0; g < 4; ++g)
          if (inside) v[g] = read_global(reinterpret_cast<const Bits16Bytes*>(at + (head + g) * a.D));
#pragma unroll
        for (int j = 0; j < G; ++j) {  // octets of outputs
          char* const there = shared_bytes_at(to + j * l.unit_pitch + 2 * head);
          if constexpr (G == 4)
            *reinterpret_cast<Bits16Bytes*>(there) = {
                low_halves(v[0].words[j], v[1].words[j]), low_halves(v[2].words[j], v[3].words[j]),
                high_halves(v[0].words[j], v[1].words[j]), high_halves(v[2].words[j], v[3].words[j])};
          else
            *reinterpret_cast<Bits8Bytes*>(there) =
                j % 2 ? Bits8Bytes{high_halves(v[0].words[j / 2], v[1].words[j / 2]),
                                   high_halves(v[2].words[j / 2], v[3].words[j / 2])}
                      : Bits8Bytes{low_halves(v[0].words[j / 2], v[1].words[j / 2]),
                                   low_halves(v[2].words[j / 2], v[3].words[j / 2])};
        }
      }
    }
  }
}

// grad_y of a block's outputs at the tile's pixels and one around them.
template <class T, int G>
LSKA_DEVICE void stage_shift_grads(const AcmixShiftWeightsArguments& a, const T* from, int channel, int row,
                                   int col) {
  const AcmixShiftWeightsLayout& l = a.layout;
  const int cols = l.cols + 2;
  if (!a.grad_y.vectors) {
    const StagedPixels pixels{row - 1,    col - 1,        l.rows + 2,     cols,
                              l.grad_row, l.by_grad_cols, l.by_grad_quads};
    stage_octets(a.grad_y, from, pixels, a.H, a.W, l.units, l.by_units, l.unit_pitch, l.grads_at,
                 [&](int unit, int j) LSKA_INLINE { return channel + 8 * unit + j; });
    return;
  }
#pragma unroll 1
  for (int i = thread_index(); i < (l.rows + 2) * cols * l.units; i += thread_count()) {
    const int pixel = quotient(i, l.by_units), unit = i - pixel * l.units;
    const int down = quotient(pixel, l.by_grad_cols), y = row - 1 + down, x = col - 1 + pixel - down * cols;
    Bits16Bytes* const to =
        reinterpret_cast<Bits16Bytes*>(shared_bytes_at(l.grads_at + unit * l.unit_pitch + 16 * pixel));
    if (uint32_t(y) < uint32_t(a.H) && uint32_t(x) < uint32_t(a.W))
      copy_to_shared(to,
                     reinterpret_cast<const Bits16Bytes*>(from + int64_t(y) * a.grad_y.row +
                                                          int64_t(x) * a.grad_y.pixel + channel + 8 * unit));
    else
      *to = Bits16Bytes{};
  }
}

// What a warp adds up: [pairs of taps][q, k, v], each 16 x 8 as products leave them.
using ShiftWeightsSums = float[5][3][4];

// A strip of eight columns, two rows at a time: a row's lower half is grad_y around the first row, its upper
// one around the second, so that each row of grad_y is read once for the three rows of inputs that it meets.
template <class T>
LSKA_DEVICE void add_strip(const AcmixShiftWeightsLayout& l, int unit, int strip, int rows,
                           ShiftWeightsSums& sum) {
  const int lane = thread_index() % kWarp, matrix = lane / 8, pixel = 8 * strip + lane % 8;
  const int begin = unit * l.unit_pitch;
  // q and k of two rows; and of a row grad_y at three columns, and v.
  int maps = begin + matrix / 2 * l.map_part + matrix % 2 * l.map_row + 16 * pixel;
  const int step = matrix < 3 ? l.grad_row : l.map_row;
  int grads =
      begin + (matrix < 3 ? l.grads_at + 16 * (pixel + matrix) : 2 * l.map_part - 2 * l.map_row + 16 * pixel);
  uint32_t around[4][4];  // four rows of grad_y: at three columns; the last one is v of the row above
  // Of the first two rows v is not there: what is read in its place is not used.
  load_turned_matrices(matrix < 3 ? grads : begin, around[2]);
  load_turned_matrices(matrix < 3 ? grads + step : begin, around[3]);
#pragma unroll 1
  for (int row = 0; row < rows; row += 2) {
    uint32_t qk[4];
    grads += 2 * step;
#pragma unroll
    for (int i = 0; i < 3; ++i) around[0][i] = around[2][i], around[1][i] = around[3][i];
    load_turned_matrices(maps, qk);
    load_turned_matrices(grads, around[2]);
    load_turned_matrices(grads + step, around[3]);
    maps += 2 * l.map_row;
    // An input's tap ty, tx is of the output one row and column further less these.
    const auto lower = [&](int tap) LSKA_INLINE { return around[2 - tap / 3][2 - tap % 3]; };
    const auto upper = [&](int tap) LSKA_INLINE { return around[3 - tap / 3][2 - tap % 3]; };
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      const int first = 2 * i, second = min(2 * i + 1, 8);
#pragma unroll
      for (int part = 0; part < 3; ++part)
        mma_16x8x16<T>(sum[i][part], lower(first), lower(second), upper(first), upper(second),
                       part < 2 ? qk[2 * part] : around[2][3], part < 2 ? qk[2 * part + 1] : around[3][3]);
    }
  }
}

// One sum by the definition, over the block's tiles: products carry what is not finite into sums that do not
// have it, as 0 times it.
template <class T>
LSKA_DEVICE float exact_weight(const AcmixShiftWeightsArguments& a, int output, int map, int tap) {
  const AcmixShiftWeightsLayout& l = a.layout;
  float sum = 0.f;
#pragma unroll 1
  for (int tile = block_y(); tile < l.tiles; tile += l.groups) {
    const int image = tile / l.of_image, nth = tile - image * l.of_image;
    const int top = nth / l.tiles_x * l.rows, left = nth % l.tiles_x * l.cols;
    const T* grads =
        static_cast<const T*>(a.grad_y.at) + image * a.grad_y.image + int64_t(output) * a.grad_y.channel;
    const T* maps = static_cast<const T*>(a.qkv.at) + image * a.qkv.image + int64_t(map) * a.qkv.channel;
#pragma unroll 1
    for (int y = top; y < min(top + l.rows, a.H); ++y)
#pragma unroll 1
      for (int x = left; x < min(left + l.cols, a.W); ++x) {
        const int at_y = y + 1 - tap / 3, at_x = x + 1 - tap % 3;
        if (uint32_t(at_y) >= uint32_t(a.H) || uint32_t(at_x) >= uint32_t(a.W)) continue;
        sum = multiply_add(load(grads + int64_t(at_y) * a.grad_y.row + int64_t(at_x) * a.grad_y.pixel),
                           load(maps + int64_t(y) * a.qkv.row + int64_t(x) * a.qkv.pixel), sum);
      }
  }
  return sum;
}

// A block owns `dims` dims and every groups-th tile of all images: it reads its dims' maps and, of the
// outputs of these dims, grad_y and a pixel around it, and writes its part of their weights' gradients. A
// warp has eight outputs, whose sums stay in registers; where there are more warps they share the strips.
template <class T, int G>
LSKA_KERNEL_FEW_BLOCKS(512)
acmix_shift_weights_kernel(const AcmixShiftWeightsArguments a) {
  if constexpr (kHasProducts<T>) {
    const AcmixShiftWeightsLayout& l = a.layout;
    const int dim = int(block_x()) * l.dims, warp = thread_index() / kWarp, warps = thread_count() / kWarp;
    const int unit = warp % l.units, share = warp / l.units, shares = warps / l.units;
    ShiftWeightsSums sum = {};
#pragma unroll 1
    for (int tile = block_y(); tile < l.tiles; tile += l.groups) {
      const int image = tile / l.of_image, nth = tile - image * l.of_image;
      const int down = nth / l.tiles_x, row = down * l.rows, col = (nth - down * l.tiles_x) * l.cols;
      barrier();
      stage_shift_grads<T, G>(a, static_cast<const T*>(a.grad_y.at) + image * a.grad_y.image, dim * G, row,
                              col);
      stage_shift_maps<T, G>(a, static_cast<const T*>(a.qkv.at) + image * a.qkv.image, dim, row, col);
      wait_for_copies();
      barrier();
      const int rows = min(l.rows, a.H - row), strips = (min(l.cols, a.W - col) + 7) / 8;
#pragma unroll 1
      for (int strip = share; strip < strips; strip += shares) add_strip<T>(l, unit, strip, rows, sum);
    }
    // Through shared memory, one of q, k and v at a time: [warp][output][map of eight][tap].
    constexpr int kOfWarp = kShiftOutputs * 8 * 9;
    const int g = thread_index() % kWarp / 4, t = thread_index() % 4;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      float* const mine = shared_floats() + warp * kOfWarp + (g * 8 + 2 * t) * 9;
      barrier();
#pragma unroll
      for (int i = 0; i < 5; ++i)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (2 * i + n / 2 < 9) mine[n % 2 * 9 + 2 * i + n / 2] = sum[i][part][n];
      barrier();
      // Of these the sums of maps and outputs of the same dim: [dim][output][head][tap] of the block.
#pragma unroll 1
      for (int i = thread_index(); i < l.dims * G * G * 9; i += thread_count()) {
        const int output = i / (G * 9), rest = i - output * G * 9, head = rest / 9, tap = rest - head * 9;
        const int column = G == 4 ? output / 4 % 2 * 4 + head : head;
        const float* from = shared_floats() + output / 8 * kOfWarp + (output % 8 * 8 + column) * 9 + tap;
        float v = 0.f;
        for (int s = 0; s < shares; ++s) v += from[s * l.units * kOfWarp];
        if (!(absolute(v) < kLargestFinite))
          v = exact_weight<T>(a, dim * G + output, part * a.C + head * a.D + dim + output / G, tap);
        write_global(
            a.parts + ((int64_t(block_y()) * a.D * G + dim * G + output) * 3 * G + part * G + head) * 9 + tap,
            v);
      }
    }
  }
}

}  // namespace lska_ops
