"""The seeded bugs in ACmix's backward by products that mutants.py tries; each names the cases that have to tell."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from seeded import Mutant  # noqa: E402

KERNEL, TILE = "acmix/kernels_products_backward.cuh", "acmix/kernels_products_backward_tile.cuh"
MAPS, WEIGHTS = "acmix/kernels_products_shift_backward.cuh", "acmix/kernels_products_shift_weights.cuh"
LAUNCH, LAUNCH_SHIFT = "acmix/launch_products_backward.h", "acmix/launch_products_shift_backward.h"
PLAN, PLAN_SHIFT = "acmix/plan_products_backward.h", "acmix/plan_products_shift_backward.h"
# Of attention and shift.
DIMS = "products_backward_within_bound[dims and -bf16-contiguous"
EIGHT = "products_backward_within_bound[eight and -bf16-contiguous"
MASKS = "products_backward_logits_beyond"
# Of the shift alone.
OCTETS = "shift_backward_within_bound[dims and three and -bf16-contiguous-contiguous"
OCTETS_LAST = "shift_backward_within_bound[dims and three and -bf16-channels_last-channels_last"
PRODUCTS_BACKWARD = [
    Mutant(
        "products back: weights and gradients in one part",
        KERNEL,
        "parts[2 + r] = pack<T>(first - first_of<T>(parts[r]), second - second_of<T>(parts[r]));",
        "parts[2 + r] = 0;",
        DIMS,
    ),
    Mutant(
        "products back: a lane has a power of its own",
        KERNEL,
        "      most[n][r] = max_magnitude(most[n][r], shuffle_xor(most[n][r], 2));\n",
        "",
        EIGHT,
    ),
    Mutant(
        "products back: logits near the mask, and infinite ones of no weight, are taken for others",
        KERNEL,
        "if (!masks_hold<T, kTiles>(s)) return false;",
        "",
        "products_backward_infinite or products_backward_logits_near",
    ),
    Mutant(
        "products back: where a key is from the tile on",
        KERNEL,
        "multiply_add(sums[j / 2], float(own) / kSlopeScale, of_lane(along[j], again & ~3))",
        "of_lane(along[j], again & ~3)",
        "products_backward_steep and busy-eight",
    ),
    Mutant(
        "products back: delta of half a row's keys",
        KERNEL,
        "      delta[r] += shuffle_xor(delta[r], 2);\n",
        "",
        EIGHT,
    ),
    Mutant(
        "products back: queries that fill up are counted",
        KERNEL,
        "8 * i + 8 > kKeys && 8 * i + 2 * t >= kKeys;",
        "8 * i + 8 < kKeys && 8 * i + 2 * t >= kKeys;",
        EIGHT,
    ),
    Mutant(
        "products back: the last repeated keys count once",
        KERNEL,
        "y + 3 * l.unit >= a.H - 1 - reach",
        "y + 3 * l.unit > a.H - 1 - reach",
        EIGHT,
    ),
    Mutant(
        "products back: dilated keys lie in neighbouring rows",
        KERNEL,
        "y = -float(at.y + (g / 4 + 2 * r) * l.unit)",
        "y = -float(at.y + g / 4 + 2 * r)",
        "products_backward_within_bound[dilated-bf16-contiguous",
    ),
    Mutant(
        "products back: conv_p along y in steps of x",
        KERNEL,
        "along[2 * r + 1] * a.step_y * kSlopeScale",
        "along[2 * r + 1] * a.step_x * kSlopeScale",
        EIGHT,
    ),
    Mutant(
        "products back: rate1 hears of products alone",
        KERNEL,
        "deltas += exact_queries<T, kSide>(a, task);",
        "exact_queries<T, kSide>(a, task);",
        MASKS,
    ),
    Mutant(
        "products back: what is not finite is left out",
        KERNEL,
        "done[task] = all;",
        "done[task] = true;",
        "products_backward_what_is_not_finite and q-nan-bf16",
    ),
    Mutant(
        "products back: maps over grad_y that the shift reads",
        KERNEL,
        "        shift_back_tile<T, 8>(a.back, tile, sums);\n      barrier();",
        "        shift_back_tile<T, 8>(a.back, tile, sums);",
        DIMS,
    ),
    Mutant(
        "products back: a key hears of a column more",
        TILE,
        "query < key || query >= key + kTaps",
        "query < key || query > key + kTaps",
        EIGHT,
    ),
    Mutant(
        "products back: a slope's second part is lost",
        TILE,
        "low_halves(y_two >> 16, y_third)",
        "low_halves(0u, y_third)",
        EIGHT,
    ),
    Mutant(
        "products back: exact queries' keys not reflected",
        TILE,
        "float(x - reflected(x - reach + j * l.unit, a.W))",
        "float(reach - j * l.unit)",
        MASKS,
    ),
    Mutant(
        "products back: exact keys without the shift",
        TILE,
        "of_key[d] = l.shift ? of_key[d] : 0.f,",
        "of_key[d] = 0.f,",
        "products_backward_what_is_not_finite and q-nan-bf16",
    ),
    Mutant(
        "products back: the shift's weights in one part",
        MAPS,
        "write_global(to + 2, pack<T>(first - first_of<T>(high), second - second_of<T>(high)));",
        "write_global(to + 2, 0u);",
        OCTETS,
    ),
    Mutant(
        "products back: an octet's second dim is its first",
        MAPS,
        "reinterpret_cast<const Bits8Bytes*>(at + 4 * d)",
        "reinterpret_cast<const Bits8Bytes*>(at)",
        OCTETS_LAST,
    ),
    Mutant(
        "products back: the last walks are left out",
        MAPS,
        "for (int first = 16 * share; first < l.walks;",
        "for (int first = 16 * share; first + 15 < l.walks;",
        OCTETS,
    ),
    Mutant(
        "products back: exact columns are not turned round",
        MAPS,
        "right = 2 - tap % 3;",
        "right = tap % 3;",
        "shift_backward_what_is_not_finite and nan-grad_y-bf16",
    ),
    Mutant(
        "products back: the last columns are left out",
        WEIGHTS,
        "strips = (min(l.cols, a.W - col) + 7) / 8;",
        "strips = min(l.cols, a.W - col) / 8;",
        OCTETS,
    ),
    Mutant(
        "products back: maps are read below the last row",
        WEIGHTS,
        "const bool inside = y < a.H && x < a.W;",
        "const bool inside = x < a.W;",
        OCTETS_LAST,
    ),
    Mutant(
        "products back: an exact sum is of one tile",
        WEIGHTS,
        "tile < l.tiles; tile += l.groups) {\n    const int image",
        "tile < l.groups; tile += l.groups) {\n    const int image",
        "shift_backward_what_is_not_finite and nan-qkv-bf16",
    ),
    Mutant(
        "products back: grad_y is read as qkv lies",
        LAUNCH,
        "a.grad_vectors = reads_vectors(s, grad_y)",
        "a.grad_vectors = reads_vectors(s, call.qkv)",
        "shift_backward_with_attention and eight and bf16",
    ),
    Mutant(
        "products back: the key pass's shift is the queries'",
        LAUNCH,
        "a.layout = p.layout, a.back.layout = p.back;",
        "a.layout = p.layout, a.back.layout = plans[0].back;",
        EIGHT,
    ),
    Mutant(
        "products back: four pixels at a time of any width",
        LAUNCH_SHIFT,
        "!last && aligned && W % 4 == 0",
        "!last && aligned",
        OCTETS,
    ),
    Mutant(
        "products back: windows three apart",
        PLAN,
        "if (s.dilation > 2) return {};",
        "if (s.dilation > 3) return {};",
        "products_backward_within_bound[dilated and widely-bf16-contiguous",
    ),
    Mutant(
        "products back: grad_y's last quad is not staged",
        PLAN_SHIFT,
        "l.by_grad_quads = divisor(cols / 4 + 2);",
        "l.by_grad_quads = divisor(cols / 4 + 1);",
        "shift_backward_reads_each_map and contiguous-contiguous",
    ),
]
