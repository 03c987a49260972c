// Converts what it reads with csrc/common/simd.h; test_simd.py compiles it, and compares with numpy.
//
//     simd_half to_float < halves > floats      simd_half to_half < floats > halves
//
// Writes all numbers six times: by whole vectors, by parts of vectors and one by one, then once more where
// the processor flushes subnormal floats to zero, as torch.set_flush_denormal has it.
#include <cstdio>
#include <cstring>
#include <vector>

#include "csrc/common/simd.h"

using namespace lska_ops::LSKA_OPS_ISA;

constexpr int kV = kLanes<float>;

void flush_subnormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(control | 1 << 24));
#endif
}

template <typename To, typename From>
void vectors(const From* in, To* out, size_t n) {
  for (size_t i = 0; i < n; i += kV) store(out + i, load(in + i));
}

// 1 to kV numbers at a time.
template <typename To, typename From>
void parts(const From* in, To* out, size_t n) {
  for (size_t i = 0, turn = 0; i < n; ++turn) {
    const size_t wanted = turn % kV + 1, size = wanted < n - i ? wanted : n - i;
    store(out + i, load(in + i, int(size)), int(size));
    i += size;
  }
}

template <typename To, typename From>
void singles(const From* in, To* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = from_acc<To>(to_acc(in[i]));
}

template <typename To, typename From>
int convert() {
  std::vector<From> in;
  From buffer[4096];
  for (size_t n; (n = std::fread(buffer, sizeof(From), 4096, stdin));)
    in.insert(in.end(), buffer, buffer + n);
  const size_t n = in.size();
  if (n % kV) return std::fprintf(stderr, "got %zu numbers; expected a multiple of %d\n", n, kV), 1;
  for (const bool flushed : {false, true}) {
    if (flushed) flush_subnormals();
    for (const auto by : {vectors<To, From>, parts<To, From>, singles<To, From>}) {
      std::vector<To> out(n);
      std::memset(static_cast<void*>(out.data()), 0xff, n * sizeof(To));
      by(in.data(), out.data(), n);
      if (std::fwrite(out.data(), sizeof(To), n, stdout) != n) return 1;
    }
  }
  return 0;
}

int main(int count, char** words) {
  if (count == 2 && !std::strcmp(words[1], "to_float")) return convert<float, Half>();
  if (count == 2 && !std::strcmp(words[1], "to_half")) return convert<Half, float>();
  return std::fprintf(stderr, "usage: simd_half to_float|to_half\n"), 1;
}
