// Scratch memory of the kernels, as vectors.
#pragma once

#include "csrc/common/simd.h"
#include "csrc/lska/cpu_line.h"

namespace lska_ops::LSKA_OPS_ISA {

// Vectors handed out one after another; from a null base it only counts.
template <typename A>
struct Arena {
  Vec<A>* base;
  size_t used = 0;
  Vec<A>* take(int64_t n) {
    Vec<A>* p = base ? base + used : nullptr;
    used += size_t(n);
    return p;
  }
  Vec<A>* take_line(int64_t n, int64_t pad = kPad) {
    Vec<A>* p = take(n + 2 * pad);
    if (!p) return p;
    for (int64_t i = 0; i < pad; ++i) p[i] = p[pad + n + i] = Vec<A>{};
    return p + pad;
  }
};

}  // namespace lska_ops::LSKA_OPS_ISA
