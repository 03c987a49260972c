"""The seeded bugs in LSKA's products on tensor cores that mutants.py tries."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from seeded import Mutant  # noqa: E402

KERNEL, TABLES = "lska/kernels_bands.cuh", "lska/kernels_bands_tables.cuh"
WITHIN = "bands_within_bound"
BANDS = [
    Mutant(
        "bands: the border's intermediates are not left out",
        TABLES,
        "? composed[tap] - beyond(i, j) : composed[tap];",
        "? composed[tap] : composed[tap];",
        WITHIN,
    ),
    Mutant(
        "bands: the last intermediate beyond the map is forgotten",
        TABLES,
        "through(i, -1 - n, j) + through(i, length + n, j)",
        "through(i, -1 - n, j) + through(i, length + n + 1, j)",
        WITHIN,
    ),
    Mutant("bands: weights in one part", KERNEL, "v[n].words[2], v[n].words[3]);", "0, 0);", WITHIN),
    Mutant(
        "bands: columns in one part",
        KERNEL,
        "mma_16x8x16<Half>(sum[n], b[0], b[1], b[2], b[3],",
        "mma_16x8x16<Half>(sum[n], 0, 0, 0, 0,",
        WITHIN,
    ),
    Mutant(
        "bands: no barrier behind the outputs",
        KERNEL,
        "    barrier();\n    copy_plane<true>(",
        "    copy_plane<true>(",
        WITHIN,
    ),
    Mutant(
        "bands: what is not finite is multiplied like the rest",
        KERNEL,
        "return bits < 0x7f800000u && ",
        "return ",
        "pass_nan",
    ),
    Mutant(
        "bands: what is lost beside a large number",
        KERNEL,
        "warp_max(uint32_t(small)) < 4;",
        "true;",
        "small_beside",
    ),
    Mutant(
        "bands: a power of two that is none",
        KERNEL,
        " && -exponent - of_weights <= 127;",
        ";",
        "bfloat16_holds",
    ),
    Mutant(
        "bands: outputs below the least power of two",
        KERNEL,
        "bands.split(126 - of_weights, exponent)",
        "bands.split(1000, exponent)",
        "bfloat16_holds",
    ),
    Mutant("bands: taps that vanish", TABLES, " && !vanishes(h) && !vanishes(v);", ";", "bfloat16_holds"),
    Mutant(
        "bands: one scale for all magnitudes",
        KERNEL,
        "exponent = min(min(141 - int(bits >> 23), 100), most_exponent);",
        "exponent = 8;",
        "scale_with_x",
    ),
]
