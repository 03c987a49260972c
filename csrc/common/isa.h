// Which instruction set the CPU kernels use: every kernel file is compiled once for each, the choice is made
// here. For launchers only: an inline function that a kernel file saw could be linked with that file's
// instructions.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lska_ops {

enum class Isa { baseline, avx2, avx512 };

// What this machine can run; the build flags of csrc/*/cpu_kernels.cpp list the same features. The processor
// is asked itself: of the compilers' __builtin_cpu_supports clang 14's does not know f16c, and that of clang
// for Windows as zig has it says no to everything.
inline Isa best_isa() {
#if defined(__x86_64__)
  unsigned a, b, c, d, features, c7, d7;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a, &features, &c7, &d7))
    return Isa::baseline;
  if (!(c & bit_OSXSAVE)) return Isa::baseline;
  unsigned kept, high;  // the registers that the operating system keeps for each thread
  asm volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
  const unsigned ymm = 0x06, zmm = 0xe6;  // these bits of it: SSE's and AVX's; masks' and AVX-512's too
  const auto has = [](unsigned word, unsigned bits) { return (word & bits) == bits; };
  if (!has(kept, ymm) || !has(c, bit_AVX | bit_FMA | bit_F16C) || !has(features, bit_AVX2))
    return Isa::baseline;
  const unsigned avx512 = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
  return has(kept, zmm) && has(features, avx512) ? Isa::avx512 : Isa::avx2;
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
