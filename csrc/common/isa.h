// Which instruction set the CPU kernels use: every kernel file is compiled once for each, the choice is made
// here. For launchers only: an inline function that a kernel file saw could be linked with that file's
// instructions.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lska_ops {

enum class Isa { baseline, avx2, avx512 };

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know its name.
inline bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// What this machine can run; the build flags of csrc/*/cpu_kernels.cpp list the same features.
inline Isa best_isa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return Isa::baseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  return Isa::avx2;
#else
  return Isa::baseline;
#endif
}

// The set in use. Tests lower it, through the op lska_ops::set_cpu_isa, to run the code of older machines.
inline Isa& current_isa() {
  static Isa isa = best_isa();
  return isa;
}

}  // namespace lska_ops
