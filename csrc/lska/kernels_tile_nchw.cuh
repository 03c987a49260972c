// Tiles of NCHW maps: a block has some planes, or a part of one. x waits in shared memory as it is; in rows
// the lanes of a warp have different rows, whose pitch is odd, in columns neighbouring pairs of columns.
#pragma once

#include "csrc/lska/kernels_tile.cuh"

namespace lska_ops {

// Four neighbours in a row, as one access takes them: 8 bytes of half, 16 of float.
template <class T>
struct Chunk {
  Bits8Bytes bits;
  LSKA_DEVICE float at(int i) const {
    const Float2 two = to_floats(Two<T>{bits.words[i / 2]});
    return i % 2 ? two.y : two.x;
  }
};
template <>
struct Chunk<float> {
  Bits16Bytes bits;
  LSKA_DEVICE float at(int i) const {
    float v;
    memcpy(&v, &bits.words[i], 4);
    return v;
  }
};

template <class T, class S, int ALONG, bool WHOLE>
struct RowOfChunks {
  static constexpr int AHEAD = (S::REACH + kForwardChunk - 1) / kForwardChunk,
                       SHIFT = AHEAD * kForwardChunk - S::REACH;
  const Chunk<T>* x;  // the walk's first place
  Float2* to;
  Around<ALONG, 1, WHOLE> around;
  Chunk<T> raw[(S::INPUTS + SHIFT + kForwardChunk - 1) / kForwardChunk];
  float even;

  LSKA_DEVICE void fetch(int m) {
    if (m > 0 && (m + SHIFT) % kForwardChunk) return;
    const int chunk = (m + SHIFT) / kForwardChunk;
    raw[chunk] = Chunk<T>{};
    if (around.inside((chunk - AHEAD) * kForwardChunk)) raw[chunk] = x[chunk - AHEAD];
  }
  LSKA_DEVICE float value(int m) const {
    return raw[(m + SHIFT) / kForwardChunk].at((m + SHIFT) % kForwardChunk);
  }
  LSKA_DEVICE void put(int o, float v) {
    if (o % 2)
      to[o / 2] = {even, v};
    else
      even = v;
  }
};

template <class T, class S, int DOWN, int STEP, bool WHOLE>
struct TwoColumns {
  const Float2* from;  // the walk's first input
  T* s;
  int pitch, step;  // Float2 from one row to the next, elements from one output to the next
  Around<DOWN, STEP, WHOLE> around;
  int residue;

  LSKA_DEVICE void fetch(int) const {}
  LSKA_DEVICE Float2 value(int m) {
    Float2 v{};
    if (around.inside(m - S::REACH)) v = *from;
    from += pitch;
    return v;
  }
  LSKA_DEVICE void put(int o, Float2 v) {
    Two<T> out;
    round_to(v, out);
    if (o * STEP + STEP <= DOWN || residue + o * STEP < DOWN) write_global(reinterpret_cast<Two<T>*>(s), out);
    s += step;
  }
};

// map[plane and row][column] = H1(H0 x + b0) of the region's rows; taps[plane] as TileTaps has them.
template <class T, int K0, int K1, int D, int ALONG, bool WHOLE>
LSKA_DEVICE void rows_of_planes(const LskaTileForwardArguments& a, const TilePlace& p, int planes,
                                const float* taps, const Chunk<T>* x, int first_column, Float2* map) {
  using S = Steps<K0, K1, D, 1, ALONG>;
  using Taps = TileTaps<K0, K1>;
  const int lanes = int(a.tile.by_lines.d), items = lanes * (a.tile.cols / ALONG);
#pragma unroll 1
  for (int item = thread_index(); item < items; item += thread_count()) {
    const int part = quotient(item, a.tile.by_lines), row = item - part * lanes;
    if (row >= planes * p.rows) continue;
    const int plane = quotient(row, a.tile.by_rows), left = p.left + part * ALONG;
    const float* mine = taps + plane * (Taps::COUNT | 1);
    float w0[K0], w1[K1];
#pragma unroll
    for (int n = 0; n < K0; ++n) w0[n] = mine[Taps::H0 + n];
#pragma unroll
    for (int n = 0; n < K1; ++n) w1[n] = mine[Taps::H1 + n];
    RowOfChunks<T, S, ALONG, WHOLE> line;
    line.x = x + row * a.tile.x_pitch + (left - first_column) / kForwardChunk;
    line.to = map + row * a.tile.map_pitch + part * (ALONG / 2);
    line.around = {left, a.map.W - left};
    walk<K0, K1, D, 1, ALONG, kForwardChunk>(line, w0, w1, mine[Taps::H0 + K0], 0.f);
  }
}

template <class T, int K0, int K1, int D, int DOWN, int STEP, bool WHOLE>
LSKA_DEVICE void columns_of_planes(const LskaTileForwardArguments& a, const TilePlace& p, int planes,
                                   const float* taps, const float* constants, const Float2* map, T* s) {
  constexpr int OUT = (DOWN + STEP - 1) / STEP;
  using S = Steps<K0, K1, D, STEP, OUT>;
  using Taps = TileTaps<K0, K1>;
  const int pairs = int(a.tile.by_pairs.d), parts = int(a.tile.by_parts.d), items = planes * parts * pairs;
#pragma unroll 1
  for (int item = thread_index(); item < items; item += thread_count()) {
    const int rest = quotient(item, a.tile.by_pairs), pair = item - rest * pairs;
    const int plane = quotient(rest, a.tile.by_parts), part = rest - plane * parts;
    const float* mine = taps + plane * (Taps::COUNT | 1);
    float w0[K0], w1[K1];
#pragma unroll
    for (int n = 0; n < K0; ++n) w0[n] = mine[Taps::V0 + n];
#pragma unroll
    for (int n = 0; n < K1; ++n) w1[n] = mine[Taps::V1 + n];
    TwoColumns<T, S, DOWN, STEP, WHOLE> line;
    line.residue = part % STEP;
    const int row = p.top + part / STEP * DOWN + line.residue;
    const int before = row - p.first_row;
    line.around = {before, p.rows - before};
    line.pitch = a.tile.map_pitch;
    line.from = map + (plane * p.rows + before - S::REACH) * line.pitch + pair;
    line.s = s + (int64_t(plane) * a.map.H + row) * a.map.W + p.left + 2 * pair;
    line.step = STEP * a.map.W;
    const Float2 constant = reinterpret_cast<const Float2*>(constants)[plane * pairs + pair];
    const float bias = mine[Taps::V1 + K1];
    walk<K0, K1, D, STEP, OUT, 0>(line, w0, w1, constant, Float2{bias, bias});
  }
}

// The chunks of x's region: every thread has one column of them.
template <class T>
LSKA_DEVICE void stage_chunks(const LskaTileForwardArguments& a, const T* x, int rows, int chunks,
                              Chunk<T>* shared) {
  const int first = quotient(thread_index(), a.tile.by_chunks),
            chunk = thread_index() - first * int(a.tile.by_chunks.d);
  const int step = quotient(thread_count(), a.tile.by_chunks);
  if (chunk >= chunks || first >= step) return;
  const Chunk<T>* from = reinterpret_cast<const Chunk<T>*>(x + int64_t(first) * a.map.W) + chunk;
  Chunk<T>* to = shared + first * a.tile.x_pitch + chunk;
  const int from_step = step * a.map.W / kForwardChunk, to_step = step * a.tile.x_pitch;
#pragma unroll 4
  for (int row = first; row < rows; row += step, from += from_step, to += to_step) copy_to_shared(to, from);
}

// A block owns tile.planes whole planes, or tile.rows x tile.cols pixels of one; rows are walked in parts of
// ALONG columns, columns in parts of DOWN rows, by residue of the dilation if STEP is D. WHOLE: a plane is
// one part. Keeps x with the halo its taps reach as it is, and a float for each pixel of the tile and of the
// rows above and below. It is reference.cascade.
template <class T, int K0, int K1, int D, int ALONG, int DOWN, int STEP, bool WHOLE, int THREADS>
LSKA_KERNEL_FEW_BLOCKS(THREADS)
lska_tile_fwd_nchw_kernel(const LskaTileForwardArguments a) {
  using Taps = TileTaps<K0, K1>;
  constexpr int REACH = K0 / 2 + K1 / 2 * D,
                HALO = (REACH + kForwardChunk - 1) / kForwardChunk * kForwardChunk;
  const TilePlace p = place_of(a, REACH);
  const int64_t first_plane = block_x() * a.tile.planes;
  const int planes = int(min(int64_t(a.tile.planes), a.map.planes - first_plane)), C = a.map.C;
  const int first_column = max(0, p.left - HALO), end_column = min(a.map.W, p.left + a.tile.cols + HALO);
  float* taps = shared_floats();
  float* constants = taps + (a.tile.planes * (Taps::COUNT | 1) + 3) / 4 * 4;  // [planes, cols]
  Float2* map = reinterpret_cast<Float2*>(constants + a.tile.planes * a.tile.cols);
  Chunk<T>* staged = reinterpret_cast<Chunk<T>*>(map + (a.tile.by_lines.d * a.tile.map_pitch + 1) / 2 * 2);

  const T* x = static_cast<const T*>(a.x) + (first_plane * a.map.H + p.first_row) * a.map.W + first_column;
  stage_chunks(a, x, planes * p.rows, (end_column - first_column) / kForwardChunk, staged);
  stage_taps<T, K0, K1>(a.weights, int(first_plane % C), planes, C,
                        [&](int i, int n, float v) { taps[i * (Taps::COUNT | 1) + n] = v; });
  wait_for_copies();
  barrier();
  rows_of_planes<T, K0, K1, D, ALONG, WHOLE>(a, p, planes, taps, staged, first_column, map);
  for (int i = thread_index(); i < planes * a.tile.cols; i += thread_count()) {
    const int plane = quotient(i, a.tile.by_cols), column = i - plane * a.tile.cols;
    const float* mine = taps + plane * (Taps::COUNT | 1);
    float h1[K1];
#pragma unroll
    for (int n = 0; n < K1; ++n) h1[n] = mine[Taps::H1 + n];
    constants[i] =
        column_constant<K1, D>(h1, mine[Taps::V0 + K0], mine[Taps::H1 + K1], p.left + column, a.map.W);
  }
  barrier();
  T* s = static_cast<T*>(a.s) + first_plane * a.map.H * a.map.W;
  columns_of_planes<T, K0, K1, D, DOWN, STEP, WHOLE>(a, p, planes, taps, constants, map, s);
}

}  // namespace lska_ops
