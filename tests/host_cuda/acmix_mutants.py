"""ACmix's part of the seeded bugs that mutants.py tries: what could go wrong in a tile."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from seeded import Mutant  # noqa: E402

TILE, SHIFT, FORWARD = "acmix/kernels_tile.cuh", "acmix/kernels_shift.cuh", "acmix/kernels_forward.cuh"
QUERY, KEY = "acmix/kernels_query.cuh", "acmix/kernels_key.cuh"
GRADIENTS, TILES, SUMS = "gradients_within_bound", "tiles_within_bound", "weight_gradients_of"
IN_PLACE = "reads_and_writes_channels_last_in_place"
ACMIX = [
    Mutant(
        "multiplicity left out at corners",
        FORWARD,
        "const float times = count * w.count_x(x, tap_x);",
        "const float times = w.count_x(x, tap_x) > 1.f && count > 1.f ? 1.f : count * w.count_x(x, tap_x);",
    ),
    Mutant(
        "reflection repeats the border pixel",
        TILE,
        "const int period = 2 * (length - 1);\n  at = at < 0 ? -at : at;",
        "const int period = 2 * (length - 1);\n  at = at < 0 ? -at - 1 : at;",
    ),
    Mutant(
        "reflected only once",
        TILE,
        "at = at < period ? at : at % period;",
        "at = at < period ? at : 0;",
    ),
    Mutant(
        "a window's last column dropped",
        TILE,
        "for (int t = 0; t < K; ++t) sum[i][t] = multiply_add(q[i], w[4 + i + t - K / 2], sum[i][t]);",
        "for (int t = 0; t + 1 < K; ++t) sum[i][t] = multiply_add(q[i], w[4 + i + t - K / 2], sum[i][t]);",
    ),
    Mutant(
        "a window one column aside",
        TILE,
        "sum[d][i] = multiply_add(p[i], v[d][4 + i + t - K / 2], sum[d][i]);",
        "sum[d][i] = multiply_add(p[i], v[d][4 + i + t - K / 2 - (i == 3 && t > 0)], sum[d][i]);",
    ),
    Mutant(
        "log-sum-exp without the largest logit",
        FORWARD,
        "top + logarithm(sum));",
        "logarithm(sum));",
        GRADIENTS,
    ),
    Mutant(
        "log-sum-exp off by the scale",
        KEY,
        "exponential(scale * (weight + rises) - query[0]);",
        "exponential(scale * (weight + rises - query[0]));",
        GRADIENTS,
    ),
    Mutant(
        "attention's channels in the shift's order",
        FORWARD,
        "const int channel = h * a.D + dim + first + d;",
        "const int channel = (dim + first + d) * a.G + h;",
    ),
    Mutant(
        "shift's channels in attention's order",
        SHIFT,
        "float* out = total + ((dim + d) * a.G + g) * pixels + run.place;",
        "float* out = total + (g * (a.C / a.G) + dim + d) * pixels + run.place;",
    ),
    Mutant(
        "fc's inputs head by head",
        SHIFT,
        "const int64_t m = map % 3 * a.G + map / 3;",
        "const int64_t m = map;",
    ),
    Mutant(
        "position from the other side",
        TILE,
        "kKey ? there * a.stride - own : own * a.stride - there;",
        "kKey ? there * a.stride - own : there - own * a.stride;",
    ),
    Mutant(
        "query gradient without delta",
        QUERY,
        "weight *= rate1 * scale * (products[(tap_y * l.taps + tap_x) * band + n] - delta);",
        "weight *= rate1 * scale * products[(tap_y * l.taps + tap_x) * band + n];",
        GRADIENTS,
    ),
    Mutant(
        "key gradient counts a pair once",
        KEY,
        "const float p = rate1 * times * exponential",
        "const float p = rate1 * (times > 0.f ? 1.f : 0.f) * exponential",
        GRADIENTS,
    ),
    Mutant(
        "missing barrier before the softmax",
        FORWARD,
        "      barrier();\n      softmax<T>",
        "      softmax<T>",
    ),
    Mutant(
        "missing barrier before the next head is staged",
        FORWARD,
        "      const int dims = min(l.dims, a.D - t.dim);\n      barrier();",
        "      const int dims = min(l.dims, a.D - t.dim);",
        TILES,
    ),
    Mutant(
        "a region one row short",
        "acmix/plan.h",
        "(l.rows - 1) * scale + 1 + 2 * y, span",
        "(l.rows - 1) * scale + 1 + 2 * y - (y > 0), span",
    ),
    Mutant(
        "a column that is never loaded",
        "acmix/plan.h",
        "l.regular ? x - y : 0,",
        "l.regular && y ? x - y + 1 : 0,",
    ),
    Mutant(
        "a column that two rows share and both need",
        "acmix/plan.h",
        "overlaps && 2 * spare >= kAcmixRun",
        "overlaps && spare > 0",
    ),
    Mutant(
        "shift's taps not turned around",
        SHIFT,
        "const int tap = kTransposed ? 8 - 3 * dy - dx : 3 * dy + dx;",
        "const int tap = 3 * dy + dx;",
        GRADIENTS,
    ),
    Mutant(
        "weights' gradient counts pixels beyond the tile",
        SHIFT,
        "            if (x + i >= col + cols) continue;\n",
        "",
        "wide_maps",
    ),
    Mutant(
        "one thread's share of a sum lost",
        SHIFT,
        "for (int s = 0; s < a.splits; ++s) total",
        "for (int s = 0; s < max(1, a.splits - 1); ++s) total",
        GRADIENTS,
    ),
    Mutant(
        "weights' gradient by the query pass: taps not turned around",
        SHIFT,
        "multiply_add(grad[kAcmixAhead + 1 + j - tap], v[j], sum[part][tap]);",
        "multiply_add(grad[kAcmixAhead - 1 + j + tap], v[j], sum[part][tap]);",
        SUMS,
    ),
    Mutant(
        "weights' gradient by the query pass: a row of taps too many",
        SHIFT,
        "if (uint32_t(run.y - dy) >= uint32_t(a.Ho)) continue;",
        "if (run.y - dy < 0) continue;",
        SUMS,
    ),
    Mutant(
        "weights' gradient by the query pass: every image begins anew",
        SHIFT,
        "if (fast || tap == 0) out[part * a.G * taps + tap] += sum[part][tap];",
        "if (fast || tap == 0) out[part * a.G * taps + tap] = sum[part][tap];",
        SUMS,
    ),
    Mutant(
        "weights' gradient by the query pass: another head's place",
        SHIFT,
        "* 3 * a.G + head) * taps + line",
        "* 3 * a.G + a.G - 1 - head) * taps + line",
        SUMS,
    ),
    Mutant(
        "query pass: the last image of a block left out",
        QUERY,
        "for (; t.image < a.B; t.image += l.images) {",
        "for (; t.image < a.B - (a.B > 2); t.image += l.images) {",
        SUMS,
    ),
    Mutant(
        "rate2's gradient with rate2",
        SHIFT,
        "store(static_cast<T*>(a.grad_rate2), sum);",
        "store(static_cast<T*>(a.grad_rate2), rate2 * sum);",
        GRADIENTS,
    ),
    Mutant(
        "conv_p's gradient of the first band only",
        QUERY,
        "if (lane == 0) sums[2 * dim + i] += sum;",
        "if (lane == 0) sums[2 * dim + i] = sum;",
        GRADIENTS,
    ),
    Mutant(
        "pixels between the queries keep what was there",
        QUERY,
        "dx < a.stride && (run.x + i) * a.stride + dx < a.W; ++dx) {\n        const int64_t at",
        "dx < 1 && (run.x + i) * a.stride + dx < a.W; ++dx) {\n        const int64_t at",
        "writes_every_element",
    ),
    Mutant(
        "int32 index of a plane",
        FORWARD,
        "static_cast<const T*>(a.qkv) + t.image * 3 * a.C * a.H * a.W + h * a.D * of_maps.plane;",
        "static_cast<const T*>(a.qkv) + int(t.image * 3 * a.C * a.H * a.W + h * a.D * of_maps.plane);",
        "offsets_beyond",
    ),
    Mutant(
        "channels_last: a pixel of one map's channels",
        FORWARD,
        "of_maps(a.last, 3 * a.C, a.H, a.W)",
        "of_maps(a.last, a.C, a.H, a.W)",
        IN_PLACE,
    ),
    Mutant(
        "channels_last: the spare columns are staged",
        TILE,
        "col = at - row * cols + r.spare, y = top + row",
        "col = at - row * cols, y = top + row",
        IN_PLACE,
    ),
    Mutant(
        "channels_last: the first dims of all heads",
        FORWARD,
        "+ t.image * a.Ho * a.Wo * a.C + t.dim * a.G;",
        "+ t.image * a.Ho * a.Wo * a.C;",
        IN_PLACE,
    ),
    Mutant(
        "channels_last: v's gradient where k's is",
        KEY,
        "(at * 3 + part) * a.C + channel",
        "(at * 3 + 1) * a.C + channel",
        IN_PLACE,
    ),
    Mutant(
        "channels_last: the shift's part of q's gradient is the first dim's",
        QUERY,
        "((image * 3 * a.C + channel + d) * a.H + y)",
        "((image * 3 * a.C + channel) * a.H + y)",
        IN_PLACE,
    ),
    Mutant(
        "channels_last: neighbouring dims for one of all heads",
        TILE,
        "stage_pixels<1>(maps, pixel, between, map_width",
        "stage_pixels<1>(maps, pixel, 1, map_width",
        IN_PLACE,
    ),
    Mutant(
        "channels_last: grad_y taken to lie as qkv does",
        "acmix/launch_backward.h",
        "call.arguments.grad_last = channels_last_in_memory(grad_y);",
        "call.arguments.grad_last = last;",
        IN_PLACE,
    ),
]
