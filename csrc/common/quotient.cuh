// Division by what divisor.h has made.
#pragma once

#include "csrc/common/divisor.h"
#include "csrc/common/portable.cuh"

namespace lska_ops {

// n / d for n d < 2^32, without a division.
LSKA_DEVICE int quotient(int n, Divisor q) {
  return q.d == 1 ? n : int(multiply_high(uint32_t(n), q.inverse));
}

}  // namespace lska_ops
