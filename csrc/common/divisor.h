// A number that kernels divide by, made on the host.
#pragma once

#include <stdint.h>

namespace lska_ops {

struct Divisor {
  uint32_t d, inverse;
};
inline Divisor divisor(int64_t d) {
  return {uint32_t(d), d > 1 ? uint32_t((1ull << 32) / uint64_t(d) + 1) : 0};
}

}  // namespace lska_ops
