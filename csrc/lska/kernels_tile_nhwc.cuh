// Tiles of channels_last maps: a block has a sector's channels of one or more, a thread two of them, so that
// a warp's accesses are whole sectors and its addresses one pointer and constants.
#pragma once

#include "csrc/lska/kernels_tile.cuh"

namespace lska_ops {

// A row of x in global memory, and of the floats behind both horizontal convolutions in shared memory.
template <class T, class S, int CHANNELS, int ACROSS, bool WHOLE>
struct RowOfPairs {
  const T* x;
  float* to;
  int step;  // elements from one column to the next
  Around<ACROSS, 1, WHOLE> around;
  Two<T> raw[S::INPUTS];

  LSKA_DEVICE void fetch(int m) {
    raw[m] = Two<T>{};
    if (around.inside(m - S::REACH)) raw[m] = read_global(reinterpret_cast<const Two<T>*>(x));
    x += step;
  }
  LSKA_DEVICE Float2 value(int m) const { return to_floats(raw[m]); }
  LSKA_DEVICE void put(int o, Float2 v) const { *reinterpret_cast<Float2*>(to + o * CHANNELS) = v; }
};

// A column of those floats, or of one residue of it, and of s.
template <class T, class S, int DOWN, int STEP, bool WHOLE, int PITCH>
struct ColumnOfPairs {
  const float* from;
  T* s;
  int64_t step;  // elements from one output to the next
  Around<DOWN, STEP, WHOLE> around;
  int residue;

  LSKA_DEVICE void fetch(int) const {}
  LSKA_DEVICE Float2 value(int m) const {
    if (!around.inside(m - S::REACH)) return {};
    return *reinterpret_cast<const Float2*>(from + (m - S::REACH) * PITCH);
  }
  LSKA_DEVICE void put(int o, Float2 v) {
    Two<T> out;
    round_to(v, out);
    if (o * STEP + STEP <= DOWN || residue + o * STEP < DOWN) write_global(reinterpret_cast<Two<T>*>(s), out);
    s += step;
  }
};

// Taps of CHANNELS channels, a multiple of 8: two floats more let neighbouring taps fall into other banks.
template <int CHANNELS>
constexpr int kTapPitch = CHANNELS + 2;
template <int CHANNELS>
LSKA_DEVICE Float2 pair_of(const float* taps, int n, int pair) {
  return *reinterpret_cast<const Float2*>(taps + n * kTapPitch<CHANNELS> + 2 * pair);
}
template <int CHANNELS, int K>
struct TapsOfPair {
  Float2 taps[K];
  LSKA_DEVICE TapsOfPair(const float* from, int pair) {
#pragma unroll
    for (int n = 0; n < K; ++n) taps[n] = pair_of<CHANNELS>(from, n, pair);
  }
  LSKA_DEVICE Float2 operator[](int n) const { return taps[n]; }
};

// map[row][column][channel] = H1(H0 x + b0) of the rows p.first_row ...; taps as TileTaps has them.
template <class T, int K0, int K1, int D, int CHANNELS, int ACROSS, bool WHOLE, int AHEAD>
LSKA_DEVICE void rows_of_pairs(const LskaTileForwardArguments& a, const TilePlace& p, const float* taps,
                               int pair, int c, float* map) {
  using S = Steps<K0, K1, D, 1, ACROSS>;
  using Taps = TileTaps<K0, K1>;
  constexpr int PITCH = (ACROSS | 1) * CHANNELS;
  const TapsOfPair<CHANNELS, K0> w0(taps + Taps::H0 * kTapPitch<CHANNELS>, pair);
  const TapsOfPair<CHANNELS, K1> w1(taps + Taps::H1 * kTapPitch<CHANNELS>, pair);
  const Float2 bias = pair_of<CHANNELS>(taps, Taps::H0 + K0, pair);
  const T* x = static_cast<const T*>(a.x) + int64_t(block_z()) * a.map.H * a.map.W * a.map.C + c;
#pragma unroll 1
  for (int row = thread_index() >> a.tile.pair_bits; row < p.rows;
       row += thread_count() >> a.tile.pair_bits) {
    RowOfPairs<T, S, CHANNELS, ACROSS, WHOLE> line;
    line.x = x + (int64_t(p.first_row + row) * a.map.W + p.left - S::REACH) * a.map.C;
    line.to = map + row * PITCH + 2 * pair;
    line.step = a.map.C;
    line.around = {p.left, a.map.W - p.left};
    walk<K0, K1, D, 1, ACROSS, AHEAD>(line, w0, w1, bias, Float2{});
  }
}

template <class T, int K0, int K1, int D, int CHANNELS, int ACROSS, int DOWN, int STEP, bool WHOLE>
LSKA_DEVICE void columns_of_pairs(const LskaTileForwardArguments& a, const TilePlace& p, const float* taps,
                                  const float* constants, const float* map, int pair, int c) {
  constexpr int OUT = (DOWN + STEP - 1) / STEP, PITCH = (ACROSS | 1) * CHANNELS;
  using S = Steps<K0, K1, D, STEP, OUT>;
  using Taps = TileTaps<K0, K1>;
  const TapsOfPair<CHANNELS, K0> w0(taps + Taps::V0 * kTapPitch<CHANNELS>, pair);
  const TapsOfPair<CHANNELS, K1> w1(taps + Taps::V1 * kTapPitch<CHANNELS>, pair);
  const Float2 bias = pair_of<CHANNELS>(taps, Taps::V1 + K1, pair);
  const int items = a.tile.rows / DOWN * STEP * ACROSS;
  T* s = static_cast<T*>(a.s) + int64_t(block_z()) * a.map.H * a.map.W * a.map.C + c;
#pragma unroll 1
  for (int item = thread_index() >> a.tile.pair_bits; item < items;
       item += thread_count() >> a.tile.pair_bits) {
    const int part = item / ACROSS, column = item - part * ACROSS;
    ColumnOfPairs<T, S, DOWN, STEP, WHOLE, PITCH> line;
    line.residue = part % STEP;
    const int row = p.top + part / STEP * DOWN + line.residue;
    const int before = row - p.first_row;
    line.around = {before, p.rows - before};
    line.from = map + before * PITCH + column * CHANNELS + 2 * pair;
    line.s = s + (int64_t(row) * a.map.W + p.left + column) * a.map.C;
    line.step = int64_t(STEP) * a.map.W * a.map.C;
    walk<K0, K1, D, STEP, OUT, 0>(line, w0, w1, pair_of<CHANNELS>(constants, column, pair), bias);
  }
}

// A block owns tile.rows x ACROSS pixels of 2^(pair_bits + 1) channels of one image, CHANNELS at most;
// columns are walked in parts of DOWN rows, or WHOLE, by residue of the dilation if STEP is D; where DOWN is
// ACROSS, rows are WHOLE as well. Reads x with the halo its taps reach, keeps a float for each pixel of the
// tile and of the rows above and below, writes s. It is reference.cascade.
template <class T, int K0, int K1, int D, int CHANNELS, int ACROSS, int DOWN, int STEP, bool WHOLE,
          int THREADS>
LSKA_KERNEL_FEW_BLOCKS(THREADS)
lska_tile_fwd_nhwc_kernel(const LskaTileForwardArguments a) {
  using Taps = TileTaps<K0, K1>;
  constexpr int AHEAD = K1 > 3 ? 2 : 8;
  const TilePlace p = place_of(a, K0 / 2 + K1 / 2 * D);
  float* taps = shared_floats();
  float* constants = taps + Taps::COUNT * kTapPitch<CHANNELS>;  // [ACROSS, kTapPitch]
  float* map = constants + ACROSS * kTapPitch<CHANNELS>;        // [rows, ACROSS | 1, CHANNELS]
  const int pairs = 1 << a.tile.pair_bits, pair = thread_index() & (pairs - 1);
  const int first = int(block_x()) << (a.tile.pair_bits + 1), c = first + 2 * pair;

  stage_taps<T, K0, K1>(a.weights, first, min(2 * pairs, a.map.C - first), a.map.C,
                        [&](int i, int n, float v) { taps[n * kTapPitch<CHANNELS> + i] = v; });
  barrier();
  constexpr bool ROWS_WHOLE = WHOLE && DOWN == ACROSS;
  if (c < a.map.C) rows_of_pairs<T, K0, K1, D, CHANNELS, ACROSS, ROWS_WHOLE, AHEAD>(a, p, taps, pair, c, map);
  // By the last threads, which may have no row.
  const int last = thread_count() - 1 - thread_index(), mine = last & (pairs - 1);
  for (int column = last >> a.tile.pair_bits; column < ACROSS; column += thread_count() >> a.tile.pair_bits) {
    if (first + 2 * mine >= a.map.C) break;
    const TapsOfPair<CHANNELS, K1> h1(taps + Taps::H1 * kTapPitch<CHANNELS>, mine);
    const Float2 v0_bias = pair_of<CHANNELS>(taps, Taps::V0 + K0, mine);
    const Float2 h1_bias = pair_of<CHANNELS>(taps, Taps::H1 + K1, mine);
    *reinterpret_cast<Float2*>(constants + column * kTapPitch<CHANNELS> + 2 * mine) =
        column_constant<K1, D>(h1.taps, v0_bias, h1_bias, p.left + column, a.map.W);
  }
  barrier();
  if (c < a.map.C)
    columns_of_pairs<T, K0, K1, D, CHANNELS, ACROSS, DOWN, STEP, WHOLE>(a, p, taps, constants, map, pair, c);
}

}  // namespace lska_ops
