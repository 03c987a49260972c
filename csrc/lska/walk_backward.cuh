// A pair of convolutions along one line and its backward, for kernels_tile_backward.cuh: the windows and taps
// of a line are in one thread's registers, of one channel or of two neighbouring ones.
#pragma once

#include <type_traits>

#include "csrc/lska/kernels_backward.cuh"

namespace lska_ops {

// The values of two neighbouring channels, which a thread walks along together in channels_last.
struct alignas(8) ChannelPair {
  float first = 0.f, second = 0.f;
  LSKA_DEVICE ChannelPair& operator+=(const ChannelPair& v) {
    first += v.first, second += v.second;
    return *this;
  }
};
LSKA_DEVICE ChannelPair multiply_add(const ChannelPair& a, const ChannelPair& b, const ChannelPair& c) {
  return {multiply_add(a.first, b.first, c.first), multiply_add(a.second, b.second, c.second)};
}
LSKA_DEVICE float from_lane(float v, int mask) { return shuffle_xor(v, mask); }
LSKA_DEVICE ChannelPair from_lane(const ChannelPair& v, int mask) {
  return {shuffle_xor(v.first, mask), shuffle_xor(v.second, mask)};
}
// `with` becomes NaN where v is not finite.
LSKA_DEVICE void poison(float v, float& with) { with = multiply_add(v, 0.f, with); }
LSKA_DEVICE void poison(const ChannelPair& v, float& with) { poison(v.first, with), poison(v.second, with); }

// What is read of a map in global memory, in registers that no move takes apart: a value's bits, or those of
// a ChannelPair's neighbours.
template <class T>
struct Word {
  uint32_t bits;
};
template <class T>
struct alignas(2 * sizeof(T)) Neighbours {
  uint32_t words[sizeof(T) / 2];
};
template <class T, class V>
using Stored = std::conditional_t<sizeof(V) == sizeof(float), Word<T>, Neighbours<T>>;
template <class T>
LSKA_DEVICE Word<T> read_stored(const Word<T>* p) {
  return {read_word(reinterpret_cast<const T*>(p))};
}
template <class T>
LSKA_DEVICE Neighbours<T> read_stored(const Neighbours<T>* p) {
  return read_global(p);
}
template <class T>
LSKA_DEVICE float value_of(const T& v) {
  return to_float(v);
}
template <class T>
LSKA_DEVICE float value_of(const Word<T>& v) {
  T value;
  memcpy(&value, &v.bits, sizeof value);
  return to_float(value);
}
template <class T>
LSKA_DEVICE ChannelPair value_of(const Neighbours<T>& v) {
  T both[2];
  memcpy(both, v.words, sizeof both);
  return {to_float(both[0]), to_float(both[1])};
}
LSKA_DEVICE ChannelPair value_of(const ChannelPair& v) { return v; }

// A pair of convolutions along one line: K0 taps, then K1 taps D apart; of one channel or two.
template <int K0_, int K1_, int D_>
struct LskaPair {
  static constexpr int K0 = K0_, K1 = K1_, D = D_, R0 = K0 / 2, R1 = K1 / 2 * D;
  static constexpr int BODY = (K1 > 13             ? 1
                               : K1 > 7 || K1 == 5 ? 2
                                                   : 4) *
                              D;  // steps between two shifts of the windows
  // In channels_last a thread walks along two channels together, where its windows leave room for both.
  static constexpr bool TOGETHER = lska_plan::walked_together(K1);
};
template <class P, class V>
struct LskaPairTaps {
  V w0[P::K0], w1[P::K1];
};

// Sums of one thread's lines.
template <class P, class V>
struct LskaPairSums {
  V w0[P::K0] = {}, w1[P::K1] = {}, between{}, out{};  // taps; gradients behind the first and the second
};

// Both walks go along one line, of which [0, n) is the thread's own; the map has `before` places in front of
// it and `after` behind. A cursor stands at a place: take(here) reads there, if `here`, and goes on to the
// next; else it is 0. They go in bodies of P::BODY steps. A body is compiled twice: where all that it does is
// known to be inside of the map it asks nothing, so that nothing keeps its steps from being interleaved.
//
// What the bodies take of a cursor; if it is FAR, asked for one body ahead.
template <int BODY, class Cursor>
struct Bodies {
  Cursor& from;
  typename Cursor::Raw next[BODY];
  // Of the next body, whose first place is `inside` places before the map ends.
  LSKA_DEVICE void ask(int inside) {
    if constexpr (Cursor::FAR) {
      if (inside >= BODY) {
#pragma unroll
        for (int s = 0; s < BODY; ++s) next[s] = from.take(true);
      } else {
#pragma unroll
        for (int s = 0; s < BODY; ++s) next[s] = from.take(s < inside);
      }
    }
  }
  // The next body begins: `window` gets its values.
  template <class V>
  LSKA_DEVICE void turn(V* window) {
    if constexpr (Cursor::FAR) {
#pragma unroll
      for (int s = 0; s < BODY; ++s) window[s] = value_of(next[s]);
    }
  }
  // Its next step.
  template <class V>
  LSKA_DEVICE void step(V& v, bool here) {
    if constexpr (!Cursor::FAR) v = value_of(from.take(here));
  }
};

// The values around a line's first place, BEFORE of them in front of it; the cursor stands at the first of
// all.
template <int BEFORE, int ALL, class Cursor, class V>
LSKA_DEVICE void take_around(Cursor& from, int before, int inside, V (&values)[ALL]) {
  if (before > 0) {
#pragma unroll
    for (int k = 0; k < BEFORE; ++k) values[k] = value_of(from.take(k - BEFORE >= -before));
  } else {
    from.skip(BEFORE);
#pragma unroll
    for (int k = 0; k < BEFORE; ++k) values[k] = V{};
  }
  if (inside >= ALL - BEFORE) {
#pragma unroll
    for (int k = BEFORE; k < ALL; ++k) values[k] = value_of(from.take(true));
  } else {
#pragma unroll
    for (int k = BEFORE; k < ALL; ++k) values[k] = value_of(from.take(k - BEFORE < inside));
  }
}

// out gets sum over taps of w1 middle[o + ...] for o in [0, n), where middle = w0 in + bias inside of the
// map. `in` begins at -R0 - R1.
template <class P, class V, class In, class Out>
LSKA_DEVICE void walk_pair(const LskaPairTaps<P, V>& p, int n, int before, int after, V bias, In in, Out out,
                           float& not_finite) {
  constexpr int K0 = P::K0, K1 = P::K1, D = P::D, R0 = P::R0, R1 = P::R1, BODY = P::BODY;
  V middle[2 * R1 + BODY], a[2 * R0 + BODY], early[2 * R1 + 2 * R0];
  Bodies<BODY, In> inputs{in};
  // Else what tests say is kept for all lines, in bits.
  n = hidden(n), before = hidden(before), after = hidden(after);
  const auto first = [&](const V* from) LSKA_INLINE {
    V m = bias;
#pragma unroll
    for (int i = 0; i < K0; ++i) m = multiply_add(p.w0[i], from[i], m);
    return m;
  };
  take_around<R0 + R1>(in, before, n + after, early);
  inputs.ask(n + after - R1 - R0);
#pragma unroll
  for (int k = 0; k < R1; ++k) middle[k] = V{};
  if (before > 0) {
#pragma unroll
    for (int k = 0; k < R1; ++k) middle[k] = k - R1 >= -before ? first(early + k) : V{};
  }
#pragma unroll
  for (int k = R1; k < 2 * R1; ++k) middle[k] = k - R1 < n + after ? first(early + k) : V{};
#pragma unroll
  for (int k = 0; k < 2 * R0; ++k) a[k] = early[2 * R1 + k];
  // `at` is the place whose output is made; the last middle that it takes in is R1 further.
#pragma unroll 1
  for (int at = hidden(0); at < n; at += BODY) {
    const int rest = n - at, map = rest + after - R1;
    inputs.turn(a + 2 * R0);
    if (rest > BODY) inputs.ask(map - R0 - BODY);
    const auto body = [&](auto sure) LSKA_INLINE {
      constexpr bool SURE = decltype(sure)::value != 0;
#pragma unroll
      for (int s = 0; s < BODY; ++s) {
        if (!SURE && s >= rest) break;
        inputs.step(a[2 * R0 + s], SURE || s + R0 < map);
        const V m = first(a + s);
        middle[2 * R1 + s] = SURE || s < map ? m : V{};
        V v{};
#pragma unroll
        for (int i = 0; i < K1; ++i) v = multiply_add(p.w1[i], middle[s + i * D], v);
        poison(v, not_finite);
        out.put(v);
      }
    };
    if (BODY <= rest && BODY + (In::FAR ? 0 : R0) <= map)
      body(Constant<1>{});
    else
      body(Constant<0>{});
#pragma unroll
    for (int k = 0; k < 2 * R1; ++k) middle[k] = middle[k + BODY];
#pragma unroll
    for (int k = 0; k < 2 * R0; ++k) a[k] = a[k + BODY];
  }
}

// The second taps' sums of walk_pair_back where a middle is not finite: it is not multiplied with the zeros
// outside of the map. gradient(i) is read inside of the map only, in(i) is 0 outside.
template <class P, class V, class Gradient, class In>
LSKA_DEVICE void sums_of_not_finite(const LskaPairTaps<P, V>& p, int n, int before, int after, V bias,
                                    V (&sums)[P::K1], const Gradient& gradient, const In& in) {
#pragma unroll 1
  for (int place = 0; place < n; ++place) {
    V m = bias;
#pragma unroll
    for (int i = 0; i < P::K0; ++i) m = multiply_add(p.w0[i], in(place + i - P::R0), m);
#pragma unroll
    for (int i = 0; i < P::K1; ++i) {
      const int at = place + P::R1 - i * P::D;
      if (at >= -before && at < n + after) sums[i] = multiply_add(m, gradient(at), sums[i]);
    }
  }
}

// The pair's backward: from gradients and, with SUMS, from the inputs, put() gets the gradient of each input.
// The sums take in what the places [0, n) behind the first convolution meet. `gradient` begins at -R0 - R1,
// `in` at -R0.
template <bool SUMS, class P, class V, class Gradient, class In, class Out>
LSKA_DEVICE void walk_pair_back(const LskaPairTaps<P, V>& p, int n, int before, int after, V bias,
                                LskaPairSums<P, V>& sums, Gradient gradient, In in, Out out) {
  constexpr int K0 = P::K0, K1 = P::K1, D = P::D, R0 = P::R0, R1 = P::R1, BODY = P::BODY;
  constexpr bool TWICE = K1 <= 13 || Gradient::FAR || In::FAR;  // else registers do not last for both bodies
  Bodies<BODY, Gradient> gradients{gradient};
  Bodies<BODY, In> inputs{in};
  // Of a body that begins at place `at`: g[k] at + k - R1, a[k] at + k - R0, f[k] (between the two) at + k -
  // 2 R0.
  V g[2 * R1 + BODY], a[2 * R0 + BODY], f[2 * R0 + BODY], first[R0];
  // The last gradient that is asked for and no further: a tile has no more. Hidden, else what tests say is
  // kept for all lines, in bits.
  n = hidden(n), before = hidden(before);
  after = hidden(min(after, R0 + R1));
  V around_first[R0 + 2 * R1];
  take_around<R0 + R1>(gradient, before, n + after, around_first);
#pragma unroll
  for (int k = 0; k < R0; ++k) first[k] = around_first[k];
#pragma unroll
  for (int k = 0; k < 2 * R1; ++k) g[k] = around_first[R0 + k];
  gradients.ask(n + after - R1);
  if constexpr (SUMS) {
    V around_in[2 * R0];
    take_around<R0>(in, before, n + after, around_in);
#pragma unroll
    for (int k = 0; k < 2 * R0; ++k) a[k] = around_in[k];
    inputs.ask(n + after - R0);
  }
#pragma unroll
  for (int k = 0; k < 2 * R0; ++k) f[k] = V{};
  if (before > 0) {
#pragma unroll
    for (int k = 0; k < R0; ++k) {  // place k - R0
#pragma unroll
      for (int i = 0; i < K1; ++i) {
        const int j = k - R0 + 2 * R1 - i * D;
        f[R0 + k] = multiply_add(p.w1[i], j < 0 ? first[j + R0] : g[j], f[R0 + k]);
      }
      if (k - R0 < -before) f[R0 + k] = V{};
    }
  }
#pragma unroll 1
  for (int at = hidden(0); at < n + R0; at += BODY) {
    const int rest = n - at, map = rest + after;
    gradients.turn(g + 2 * R1);
    if (rest + R0 > BODY) gradients.ask(map - R1 - BODY);
    if constexpr (SUMS) {
      inputs.turn(a + 2 * R0);
      if (rest > BODY) inputs.ask(map - R0 - BODY);
    }
    const auto body = [&](auto sure) LSKA_INLINE {
      constexpr bool SURE = decltype(sure)::value != 0;
#pragma unroll
      for (int s = 0; s < BODY; ++s) {
        gradients.step(g[2 * R1 + s], SURE || s + R1 < map);
        V v{};
#pragma unroll
        for (int i = 0; i < K1; ++i) v = multiply_add(p.w1[i], g[s + 2 * R1 - i * D], v);
        if (SURE || s < rest) {
          if constexpr (SUMS) {
            inputs.step(a[2 * R0 + s], SURE || s + R0 < map);
            V m = bias;
#pragma unroll
            for (int i = 0; i < K0; ++i) m = multiply_add(p.w0[i], a[s + i], m);
#pragma unroll
            for (int i = 0; i < K0; ++i)  // NaN is not multiplied with the zeros outside of the map
              if ((i >= R0 || s + i >= R0 || at + s + i - R0 >= -before) &&
                  (SURE || i <= R0 || s + i - R0 < map))
                sums.w0[i] = multiply_add(v, a[s + i], sums.w0[i]);
            sums.between += v;
            sums.out += g[s + R1];
#pragma unroll
            for (int i = 0; i < K1; ++i) sums.w1[i] = multiply_add(m, g[s + 2 * R1 - i * D], sums.w1[i]);
          }
        } else {
          if (s >= rest + R0) break;
          if (s >= map) v = V{};
        }
        f[2 * R0 + s] = v;
        V o{};
#pragma unroll
        for (int i = 0; i < K0; ++i) o = multiply_add(p.w0[i], f[s + 2 * R0 - i], o);
        if (s >= R0 || at > 0) out.put(o);
      }
    };
    if (TWICE && BODY <= rest && (Gradient::FAR ? 0 : BODY + R1) <= map && (SUMS ? BODY + R0 : 0) <= map)
      body(Constant<1>{});
    else
      body(Constant<0>{});
#pragma unroll
    for (int k = 0; k < 2 * R1; ++k) g[k] = g[k + BODY];
#pragma unroll
    for (int k = 0; k < 2 * R0; ++k) f[k] = f[k + BODY];
    if constexpr (SUMS) {
#pragma unroll
      for (int k = 0; k < 2 * R0; ++k) a[k] = a[k + BODY];
    }
  }
}

// Cursors over a map in global memory, FAR away, and in shared memory.
template <class T, class V>
struct GlobalCursor {
  static constexpr bool FAR = true;
  using Raw = Stored<T, V>;
  const T* p;
  int step;
  LSKA_DEVICE Raw take(bool here) {
    Raw v{};
    if (here) v = read_stored(reinterpret_cast<const Raw*>(p));
    p += step;
    return v;
  }
  LSKA_DEVICE void skip(int places) { p += int64_t(places) * step; }
};
template <class T, class V>
struct SharedCursor {
  static constexpr bool FAR = false;
  using Raw = std::conditional_t<std::is_same_v<std::remove_const_t<T>, float>, V, std::remove_const_t<T>>;
  T* p;
  int step;
  LSKA_DEVICE Raw take(bool here) {
    Raw v{};
    if (here) v = *reinterpret_cast<const Raw*>(p);
    p += step;
    return v;
  }
  LSKA_DEVICE void skip(int places) { p += places * step; }
  LSKA_DEVICE void put(const V& v) {
    *reinterpret_cast<V*>(p) = v;
    p += step;
  }
};

}  // namespace lska_ops
