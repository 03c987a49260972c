// How ACmix's rows are cut into bands on a CPU, from sizes alone: the kernels, their launcher and
// lska_ops._plan ask here. Every function is static, as in csrc/lska/cpu_paths.h.
#pragma once

#include <stdint.h>

namespace lska_ops {

// Output rows whose keys, values and results stay in a 512 KiB cache at 64x80x80.
constexpr int64_t kAcmixLargestBand = 9;
constexpr int64_t kAcmixQueryRows = 3;  // that share a row of keys in registers
constexpr int64_t kAcmixShiftRows = 8;  // outputs whose lines are filled at a time for the shift's weights

// Output rows in a band of the forward pass: as many bands as keep all threads equally busy.
static inline int64_t acmix_forward_band(int64_t B, int64_t Ho, int64_t threads) {
  int64_t common = B, rest = threads;
  while (rest) {
    const int64_t next = common % rest;
    common = rest;
    rest = next;
  }
  const int64_t wanted = threads / common;
  const int64_t bands = wanted * ((Ho + wanted * kAcmixLargestBand - 1) / (wanted * kAcmixLargestBand));
  return (Ho + bands - 1) / bands;
}

// Query rows in a band of the gradient of q, k and v. A row beyond the border is added to its reflection when
// its last query has passed, so that has to be at hand.
static inline int64_t acmix_grad_band(int64_t H, int64_t Ho, int64_t reach, int64_t rows) {
  return H > reach && rows < Ho ? rows : Ho;
}

}  // namespace lska_ops
