// Which instruction set the CPU kernels use: every kernel file is compiled once for each, the choice is made
// here. For launchers only: an inline function that a kernel file saw could be linked with that file's
// instructions.
#pragma once

namespace lska_ops {

enum class Isa { baseline, avx2, avx512 };

// What this machine can run; the build flags of csrc/*/cpu_kernels.cpp list the same features.
inline Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::baseline;
}

// The set in use. Tests lower it, through the op lska_ops::set_cpu_isa, to run the code of older machines.
inline Isa& current_isa() {
  static Isa isa = best_isa();
  return isa;
}

}  // namespace lska_ops
