// Which way a cascade goes on a CPU, from sizes alone: the kernels, their launcher and lska_ops._plan ask
// here.
//
// Every function is static: a file has a copy of its own. One that kernel files shared would be linked once,
// with the instructions of whichever file it was taken from.
#pragma once

#include "csrc/lska/cpu_kernels.h"

namespace lska_ops {

// The published kernels: a plane kernel is compiled for each, those of many taps for 64-byte vectors only.
struct LskaSplit {
  int k0, k1, dilation;
};
constexpr LskaSplit kLskaSplits[] = {{3, 3, 2}, {3, 5, 2}, {5, 7, 3}, {5, 11, 3}, {5, 13, 3}, {5, 17, 3}};
constexpr int kLskaSplitsOfFewTaps = 3;
constexpr int kLskaFewTaps = 7;  // of a convolution of the dilated pair

// Lanes of a row's last vector that lie beyond W, and of all its vectors.
struct LskaRow {
  int64_t beyond, all;
};
static inline LskaRow lska_row(int64_t W, int64_t lanes) {
  const int64_t all = (W + lanes - 1) / lanes * lanes;
  return {all - W, all};
}

// Which of kLskaSplits' plane kernels a cascade takes, or -1: then a group of channels at a time.
//
// Plane by plane against a group of channels, in time, on Zen 4. 32-byte vectors: 0.6-0.9 at k_size 7 to 23,
// 1.05 at 35, 1.2 at 53. 64-byte vectors at 80 columns: 0.6 at 7, 0.86 at 35, 0.9 at 53; the more of a row's
// last vector is beyond W the worse, 1.1 at 40 columns and 53.
static inline int lska_plane_split(const LskaShape& shape, int vector_bytes, int accumulate) {
  const LskaRow row = lska_row(shape.W, vector_bytes / accumulate);
  if (shape.channels_last || row.beyond * 2 > row.all) return -1;
  const bool many = vector_bytes == 64 && row.beyond * 8 <= row.all;
  for (int i = 0; i < (many ? int(sizeof kLskaSplits / sizeof *kLskaSplits) : kLskaSplitsOfFewTaps); ++i)
    if (shape.k0 == kLskaSplits[i].k0 && shape.k1 == kLskaSplits[i].k1 &&
        shape.dilation == kLskaSplits[i].dilation)
      return i;
  return -1;
}

// Few taps along narrow rows: where an eighth of the 64-byte vectors would lie beyond W, those of 32 bytes
// are faster (1.25 times at 40 columns, 1.2 at 20).
static inline bool lska_prefers_32_bytes(const LskaShape& shape, int accumulate) {
  const LskaRow row = lska_row(shape.W, 64 / accumulate);
  return !shape.channels_last && shape.k1 <= kLskaFewTaps && row.beyond * 8 > row.all;
}

// Rows of a plane, `pitch` bytes each, that stay in L1 between the two convolutions along them.
static inline int lska_plane_band(int64_t pitch) { return int(12 * 1024 / pitch + 1); }
// A row with the zeros behind it, in elements.
static inline int64_t lska_plane_pitch(int64_t W, int64_t reach, int64_t lanes) {
  return lska_row(W, lanes).all + lska_row(reach, lanes).all;
}
// Rows at a plane's end behind which it has no room for a whole vector.
static inline int64_t lska_spilled_rows(int64_t W, int64_t lanes) {
  return (lska_row(W, lanes).beyond + W - 1) / W;
}

// Columns of a strip of a group's plane: all where the plane stays in L1, else one block of conv_line.
static inline int lska_strip_columns(const LskaShape& shape, int vector_bytes) {
  constexpr int kNarrow = 8;
  constexpr int64_t kWholeBytes = 24 * 1024;
  const bool whole = shape.W <= kNarrow || int64_t(shape.H) * shape.W * vector_bytes <= kWholeBytes;
  return whole ? shape.W : kNarrow;
}

}  // namespace lska_ops
