// Largest error of csrc/common/simd_exp.h in units in the last place, against long double; test_simd.py
// compiles and runs it, `simd_exp 16` with a sixteenth of the arguments. Prints one line "<function> <type>
// <error> <where>" each, and "wrong ..." for a special value gone wrong.
#include "csrc/common/simd_exp.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>

using namespace lska_ops::LSKA_OPS_ISA;

template <typename A>
struct Check {
  const char* type;
  static constexpr int V = kLanes<A>;

  // |got - exact| in units in the last place of exact.
  static long double ulps(A got, long double exact) {
    if (exact == 0) return got == 0 ? 0 : std::numeric_limits<long double>::infinity();
    const int digits = std::numeric_limits<A>::digits;
    return std::fabs((long double)(got)-exact) / std::ldexp(1.L, std::ilogb(exact) - digits + 1);
  }

  template <typename Fast, typename Exact, typename Draw>
  void compare(const char* name, const Fast& fast, const Exact& exact, int vectors, const Draw& draw) const {
    long double worst = -1;
    A where = 0;
    for (int n = 0; n < vectors; ++n) {
      Vec<A> x;
      for (int i = 0; i < V; ++i) x[i] = draw(n * V + i);
      const Vec<A> got = fast(x);
      for (int i = 0; i < V; ++i) {
        const long double error = ulps(got[i], exact((long double)(x[i])));
        if (!(error <= worst)) worst = error, where = x[i];
      }
    }
    std::printf("%s %s %.3Lf %.17g\n", name, type, worst, double(where));
  }

  template <typename Fast>
  void expect(const char* name, const Fast& fast, A x, A wanted) const {
    const A got = fast(broadcast<A>(x))[V - 1];
    if (!(got == wanted || (got != got && wanted != wanted))) {
      std::printf("wrong %s %s(%g) = %g, expected %g\n", type, name, double(x), double(got), double(wanted));
    }
  }

  void run(int vectors) const {
    const A infinity = std::numeric_limits<A>::infinity(), nan = std::numeric_limits<A>::quiet_NaN();
    const A smallest = Exponent<A>::kSmallest;
    std::mt19937_64 random(1);
    const auto uniform = [&](A from, A to) {
      return A(std::uniform_real_distribution<double>(from, to)(random));
    };
    const auto e = [](Vec<A> x) { return exp_of_nonpositive<A>(x); };
    const auto l = [](Vec<A> x) { return log_of_normal<A>(x); };
    const auto exact_exp = [](long double x) { return std::exp(x); };
    const auto exact_log = [](long double x) { return std::log(x); };

    // The whole range, thick where softmax weights count, and down to arguments that vanish beside 1.
    compare("exp", e, exact_exp, vectors, [&](int i) {
      if (i % 3 == 0) return uniform(smallest, 1);
      if (i % 3 == 1) return uniform(-4, 1);
      return A(std::copysign(std::exp2(uniform(-60, 0)), A(i % 2) - A(0.5)));
    });
    // A sum of softmax weights lies in [1, K * K]; then all normal numbers.
    compare("log", l, exact_log, vectors, [&](int i) {
      if (i % 2 == 0) return uniform(1, 128);
      return A(
          std::exp2(uniform(std::numeric_limits<A>::min_exponent - 1, std::numeric_limits<A>::max_exponent)));
    });
    // Beside 1, where the result is as small as its error.
    compare("log_near_1", l, exact_log, vectors,
            [&](int) { return A(1) + A(std::exp2(uniform(-Exponent<A>::kMantissa, -2))); });

    expect("exp", e, 0, 1);
    expect("exp", e, A(-0.), 1);
    expect("exp", e, -infinity, 0);
    expect("exp", e, std::nextafter(smallest, -infinity), 0);
    expect("exp", e, -std::numeric_limits<A>::max(), 0);
    expect("exp", e, nan, nan);
    expect("log", l, 1, 0);
    expect("log", l, nan, nan);
    expect("log", l, infinity, nan);
  }
};

int main(int count, char** words) {
  const int part = count > 1 ? std::atoi(words[1]) : 1;
  Check<float>{"float"}.run((1 << 17) / part);
  Check<double>{"double"}.run((1 << 16) / part);
}
