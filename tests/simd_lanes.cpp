// Loads, stores and shuffles of csrc/common/ by their definition, lane by lane; test_simd.py compiles and
// runs it. Prints "wrong ..." for what is not as defined, and at the end "checked <lanes>".
#include <cstdio>

#include "csrc/common/lanes.h"
#include "csrc/common/shifted.h"
#include "csrc/common/transpose.h"

using namespace lska_ops::LSKA_OPS_ISA;

int checked = 0;

void expect(const char* what, int number, int lane, double got, double wanted) {
  ++checked;
  if (got != wanted)
    std::printf("wrong %s %d: lane %d is %g, expected %g\n", what, number, lane, got, wanted);
}

template <typename T>
struct Check {
  using A = Acc<T>;
  static constexpr int L = kLanes<A>;

  static T number(int i) { return from_acc<T>(A(i)); }

  // The first n lanes and no byte more, with room in front so that no address is aligned.
  void load_and_store() const {
    for (int n = 1; n <= L; ++n) {
      T in[L + 1], out[L + 2];
      for (int i = 0; i <= L; ++i) in[i] = number(i);
      for (T& t : out) t = number(-1);
      const Vec<A> v = n == L ? load(in + 1) : load(in + 1, n);
      for (int i = 0; i < L; ++i) expect("load", n, i, v[i], i < n ? i + 1 : 0);
      n == L ? store(out + 1, v) : store(out + 1, v, n);
      for (int i = 0; i < L + 2; ++i) expect("store", n, i, to_acc(out[i]), i >= 1 && i <= n ? i : -1);
    }
  }

  template <int S = 0>
  void shift() const {
    Vec<A> a, b;
    for (int i = 0; i < L; ++i) a[i] = A(i), b[i] = A(L + i);
    const Vec<A> v = shifted<A, S>(a, b);
    for (int i = 0; i < L; ++i) expect("shifted", S, i, v[i], S + i);
    if constexpr (S + 1 < L) shift<S + 1>();
  }

  void square() const {
    Vec<A> m[L];
    for (int i = 0; i < L; ++i)
      for (int j = 0; j < L; ++j) m[i][j] = A(i * L + j);
    transpose<A>(m);
    for (int i = 0; i < L; ++i)
      for (int j = 0; j < L; ++j) expect("transpose", i, j, m[i][j], j * L + i);
  }
};

int main() {
  Check<float>{}.load_and_store();
  Check<double>{}.load_and_store();
  Check<Half>{}.load_and_store();
  Check<BFloat16>{}.load_and_store();
  Check<float>{}.shift();
  Check<double>{}.shift();
  Check<float>{}.square();
  Check<double>{}.square();
  std::printf("checked %d\n", checked);
}
