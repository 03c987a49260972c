"""The seeded bugs in the tiles of LSKA's cascade, forward and backward, that mutants.py tries."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from seeded import Mutant  # noqa: E402

WALK, NHWC, NCHW = "lska/walk.cuh", "lska/kernels_tile_nhwc.cuh", "lska/kernels_tile_nchw.cuh"
TILES = [
    Mutant(
        "tiles: middle value beyond the map",
        WALK,
        "if (line.around.inside(j * STEP - S::R1)) {",
        "if (j >= 0) {",
    ),
    Mutant(
        "tiles: last tap of the second convolution dropped",
        WALK,
        "for (int n = 0; n < K1; ++n)\n        if (!line.around.never(last",
        "for (int n = 0; n + 1 < K1; ++n)\n        if (!line.around.never(last",
    ),
    Mutant(
        "tiles: a middle value added to one output less",
        WALK,
        "if (o >= 0 && o < OUT) sum[o]",
        "if (o > 0 && o < OUT) sum[o]",
    ),
    Mutant(
        "tiles: a whole line is taken to begin at its residue",
        WALK,
        "at <= -STEP || at >= LENGTH",
        "at < 0 || at >= LENGTH",
    ),
    Mutant(
        "tiles: one place more is sure to be in the map",
        WALK,
        "SURE = LENGTH - STEP + 1;",
        "SURE = LENGTH + 1;",
    ),
    Mutant(
        "tiles: no barrier between rows and columns, channels_last",
        NHWC,
        "  barrier();\n  if (c < a.map.C)\n    columns_of_pairs",
        "  if (c < a.map.C)\n    columns_of_pairs",
    ),
    Mutant(
        "tiles: no barrier behind the staged rows, NCHW",
        NCHW,
        "  wait_for_copies();\n  barrier();\n",
        "  wait_for_copies();\n",
    ),
    Mutant(
        "tiles: every plane has the first one's taps",
        NCHW,
        "const int plane = quotient(row, a.tile.by_rows), left",
        "const int plane = 0 * quotient(row, a.tile.by_rows), left",
    ),
    Mutant(
        "tiles: the last tile does not overlap",
        "lska/kernels_tile.cuh",
        "p.left = min(x * a.tile.cols, a.map.W - a.tile.cols);",
        "p.left = min(x * a.tile.cols, a.map.W - a.tile.cols) / 4 * 4;",
    ),
    Mutant(
        "tiles: bias along columns as in the middle",
        "lska/kernels_tile.cuh",
        "if (uint32_t(column + (n - K1 / 2) * D) < uint32_t(W))",
        "if (uint32_t(W) > 0u)",
    ),
    Mutant(
        "tiles: channels beyond the last group of a block",
        NHWC,
        "if (first + 2 * mine >= a.map.C) break;",
        "if (first + 2 * mine + 2 >= a.map.C) break;",
    ),
    Mutant(
        "tiles: a residue writes beyond its part",
        NHWC,
        "residue + o * STEP < DOWN",
        "residue + o * STEP <= DOWN",
    ),
]
BACK, WALK_BACK = "lska/kernels_tile_backward.cuh", "lska/walk_backward.cuh"
BACKWARD_TILES = [
    Mutant(
        "backward tiles: a gradient beyond the map",
        WALK_BACK,
        "if (s >= map) v = V{};",
        "if (s > map) v = V{};",
    ),
    Mutant(
        "backward tiles: windows shifted by one place too few",
        WALK_BACK,
        "for (int k = 0; k < 2 * R0; ++k) f[k] = f[k + BODY];",
        "for (int k = 0; k < 2 * R0; ++k) f[k] = f[k + BODY - 1];",
    ),
    Mutant(
        "backward tiles: taps not turned around",
        WALK_BACK,
        "v = multiply_add(p.w1[i], g[s + 2 * R1 - i * D], v);",
        "v = multiply_add(p.w1[i], g[s + i * D], v);",
    ),
    Mutant(
        "backward tiles: no barrier between columns and the last rows",
        BACK,
        "  barrier();\n\n  load_pair(0);",
        "  load_pair(0);",
    ),
    Mutant(
        "backward tiles: columns beside the tile count as its own",
        BACK,
        "column(i < before ? tile.first_col + i : tile.left + tile.cols + i - before, Constant<0>{}, V{});",
        "column(i < before ? tile.first_col + i : tile.left + tile.cols + i - before, Constant<1>{}, V{});",
    ),
    Mutant(
        "backward tiles: what conv0v's bias meets begins at the tile",
        BACK,
        "const int from = max(0, -shift - tile.left)",
        "const int from = max(0, -shift)",
    ),
    Mutant(
        "backward tiles: the next body's inputs asked for one body too far",
        WALK_BACK,
        "inputs.ask(map - R0 - BODY);\n    const auto",
        "inputs.ask(map - R0);\n    const auto",
    ),
    Mutant(
        "backward tiles: a body without tests goes beyond the map",
        WALK_BACK,
        "BODY + (In::FAR ? 0 : R0) <= map",
        "0 <= map",
    ),
    Mutant(
        "backward tiles: a line begins one place late",
        WALK_BACK,
        "from.take(k - BEFORE >= -before)",
        "from.take(k - BEFORE > -before)",
    ),
    Mutant(
        "backward tiles: the columns with the rows' taps",
        BACK,
        "  load_pair(2);",
        "  load_pair(0);",
    ),
    Mutant(
        "backward tiles: one bias for four channels",
        BACK,
        "bias[j][LAST ? i : 0]",
        "bias[j][0]",
    ),
    Mutant(
        "backward tiles: slots of a channel lost",
        BACK,
        "(LAST ? of : of * a.slots);",
        "(LAST ? of : of * (a.slots - 1));",
    ),
    Mutant(  # survives its test, to which a tap that is NaN as PyTorch's is right: it needs a stricter one
        "backward tiles: NaN times the zeros beside the map",
        BACK,
        "const bool exact = not_finite != 0.f;",
        "const bool exact = not_finite > 0.f;",
        "pass_nan",
    ),
]
