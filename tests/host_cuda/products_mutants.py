"""The seeded bugs in ACmix's products on tensor cores that mutants.py tries; each names the cases that have to tell."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from seeded import Mutant  # noqa: E402

KERNEL, TILE = "acmix/kernels_products.cuh", "acmix/kernels_products_tile.cuh"
WINDOW = "acmix/kernels_products_window.cuh"
SHIFT, PLAN, LAUNCH = "acmix/kernels_products_shift.cuh", "acmix/plan_products.h", "acmix/launch_products.h"
LARGE = "within_bound[large and -f16-contiguous"  # of NCHW element by element, of a window whose last product is filled up
P5, P5_LAST = "within_bound[p5-f16-contiguous", "within_bound[p5-f16-channels_last"
ANY_DIMS = "within_bound[dims and -f16-contiguous"
EIGHT, STRIDE = "within_bound[eight and -f16-contiguous", "within_bound[every and -f16-contiguous"
NOT_FINITE = "windows[q-nan"
DILATED, LSE = "within_bound[dilated-f16-contiguous", "backward_of_their_lse"
PRODUCTS = [
    Mutant(
        "products: a query sees a column more",
        WINDOW,
        "if (tap < 0 || tap >= kTapsOf<kSide>) entry[q]",
        "if (tap < 0 || tap > kTapsOf<kSide>) entry[q]",
        LARGE,
    ),
    Mutant(
        "products: a slope's third part is lost",
        WINDOW,
        "with[i] = t < 2 ? one : t == 2 ? two : third;",
        "with[i] = t < 2 ? one : t == 2 ? two : 0;",
        "steep_slopes",
    ),
    Mutant(
        "products: softmax's weights in one part",
        KERNEL,
        "for (int part = 0; part < 4; part += 2) {",
        "for (int part = 0; part < 2; part += 2) {",
        "within_bound[large and bf16-contiguous",
    ),
    Mutant(
        "products: keys beyond the map are the border's",
        KERNEL,
        "offsets[i] = reflected(of.col * kStrideOf<kSide> - reach + i, a.W) * a.pixel;",
        "offsets[i] = min(max(of.col * kStrideOf<kSide> - reach + i, 0), a.W - 1) * a.pixel;",
        LARGE,
    ),
    Mutant(
        "products: rows beyond the map reflected one aside",
        TILE,
        "if constexpr (kBeyond == Beyond::reflects) y = reflected(y, m.H);",
        "if constexpr (kBeyond == Beyond::reflects) y = reflected(y - (row == 0), m.H);",
        LARGE,
    ),
    Mutant(
        "products: positions are not reflected",
        WINDOW,
        "const int there = reflected(tile - reach + first + l.unit * key, is_row ? a.H : a.W);",
        "const int there = tile - reach + first + l.unit * key;",
        LARGE,
    ),
    Mutant(
        "products: keys that fill up are counted",
        KERNEL,
        "const bool filled = 8 * i + 8 > kKeys &&",
        "const bool filled = 8 * i + 8 < kKeys &&",
        P5,
    ),
    Mutant(
        "products: lse without what positions add",
        KERNEL,
        "multiply_add(position[r], a.scale / kSlopeScale, of_sum * kLogOfTwo)",
        "of_sum * kLogOfTwo",
        LSE,
    ),
    Mutant(
        "products: lse's position of a warp's lower rows",
        WINDOW,
        "along[2 + r] * float((down + 2 * r * l.unit) * kStrideOf<kSide>)",
        "along[2 + r] * float((down + 2 * r) * kStrideOf<kSide>)",
        LSE,
    ),
    Mutant(
        "products: a key that is not seen has the largest logit",
        KERNEL,
        "if (!masks_hold<T, kTiles>(s)) slopes[0]",
        "if (false) slopes[0]",
        "logits_near_the_mask",
    ),
    Mutant(
        "products: attention that is not finite is left so",
        KERNEL,
        "if (warp_any(!(all < kLargestFinite))) {",
        "if (warp_any(false)) {",
        "windows[k-nan",
    ),
    Mutant(  # survives its test since masks_hold tells them too: the guard goes, or gets a test of its own
        "products: slopes above what masks reach",
        KERNEL,
        "!(absolute(top[r]) < kLargestLogit)",
        "absolute(top[r]) != absolute(top[r])",
        "slopes_beyond",
    ),
    Mutant(
        "products: the shift is forgotten where attention is computed again",
        KERNEL,
        "to[d] = l.shift ? to[d] : 0.f;",
        "to[d] = 0.f;",
        NOT_FINITE,
    ),
    Mutant(
        "products: dilated windows lie in neighbouring columns",
        WINDOW,
        "to[0] = l.unit * (y * l.key_row_pitch + x * l.key_pitch) + 16 * half;",
        "to[0] = l.unit * y * l.key_row_pitch + x * l.key_pitch + 16 * half;",
        DILATED,
    ),
    Mutant(
        "products: dilated queries lie in neighbouring rows",
        WINDOW,
        "g.y = u == 1 ? 4 * down : down / u * 4 * u + down % u;",
        "g.y = 4 * down;",
        DILATED,
    ),
    Mutant(
        "products: values are the next heads' keys",
        TILE,
        "const T* from = line + 8 * octet + (octet >= channels / 8 ? m.second - channels : 0);",
        "const T* from = line + 8 * octet;",
        P5_LAST,
    ),
    Mutant(
        "products: NCHW: columns beyond the right border are not read",
        TILE,
        "if (kBeyond == Beyond::reflects) beyond = min(s.cols, m.W - s.left);",
        "",
        P5,
    ),
    Mutant(
        "products: outputs beyond the map's width",
        TILE,
        "      if (row >= a.Ho || col >= a.Wo) continue;\n      float v",
        "      if (row >= a.Ho) continue;\n      float v",
        LARGE,
    ),
    Mutant(
        "products: what the other kernel computed is not added",
        TILE,
        "if (initial) v += read_global(initial + row * a.Wo + col);",
        "",
        "within_bound[another and -f16-contiguous",
    ),
    Mutant(
        "products: the shift's weights in one part",
        SHIFT,
        "        mma_16x8x16<T>(sum[j], maps[0], maps[1], maps[2], maps[3], w.words[2], w.words[3]);\n",
        "",
        ANY_DIMS,
    ),
    Mutant(
        "products: the shift's small weights beside large ones",
        SHIFT,
        "exponent <= 240 && least >= most * kLeastWeight<T>;",
        "exponent <= 240;",
        "weights_far_apart",
    ),
    Mutant(
        "products: a shift that is not finite is left so",
        SHIFT,
        "lost = lost || !(all < kLargestFinite);",
        "",
        NOT_FINITE,
    ),
    Mutant(
        "products: half of the walks are not computed again",
        SHIFT,
        "walk += walk % 16 < 8 ? 8 : 16 * shares - 8)",
        "walk += 16 * shares)",
        NOT_FINITE,
    ),
    Mutant(
        "products: the last walk is the one before it",
        SHIFT,
        "const int walk = min(first + lane % 16, l.walks - 1),",
        "const int walk = min(first + lane % 16, l.walks - 2),",
        ANY_DIMS,
    ),
    Mutant(
        "products: the shift's next maps over those in use",
        SHIFT,
        "    if (dim) barrier();\n",
        "",
        NOT_FINITE,
    ),
    Mutant(
        "products: attention's maps over the shift's in use",
        KERNEL,
        "      barrier();\n      for (int i = thread_index(); i < l.region_cols;",
        "      for (int i = thread_index(); i < l.region_cols;",
        NOT_FINITE,
    ),
    Mutant(
        "products: every other pixel's shift begins at the pixel itself",
        SHIFT,
        "x = of.col * kStride - 1 + col;",
        "x = of.col * kStride - (kStride == 1) + col;",
        STRIDE,
    ),
    Mutant(
        "products: eight heads' walks are four's",
        PLAN,
        "return heads == 4 ? kShiftWalk<4> : kShiftWalk<8>;",
        "return kShiftWalk<4>;",
        EIGHT,
    ),
    Mutant(
        "products: four pixels at a time of any width",
        LAUNCH,
        "s.W % 4 == 0 &&",
        "",
        LARGE,
    ),
]
