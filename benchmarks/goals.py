"""What we want to reach on two CPU cores in fp32 and on a GPU, and what a run reached of it.

Nothing is rounded up. What computes another function (role "another function") counts nowhere.
"""

import math
from typing import NamedTuple


class Goal(NamedTuple):
    text: str
    kind: str
    metric: str  # a name in METRICS
    limit: float
    cases: tuple
    B: tuple = (1,)


def _per_level(text, kind, metric, limits, **options):
    """One goal each for yolo11n's P3, P4 and P5."""
    return [
        Goal(f"{text}, P{level}", kind, metric, limit, (f"yolo11n_p{level}",), **options)
        for level, limit in zip((3, 4, 5), limits, strict=True)
    ]


N = ("yolo11n_p3", "yolo11n_p4", "yolo11n_p5")
X = ("yolo11x_p3",)
GOALS = (
    *_per_level("LSKA cascade forward, B=1", "lska_cascade_fwd", "x eager", (12, 9, 5)),
    *_per_level("LSKA cascade forward, B=1", "lska_cascade_fwd", "x best", (4.5, 5, 3.5)),
    Goal("LSKA cascade forward, B=1, 384x80x80", "lska_cascade_fwd", "x eager", 9, X),
    Goal("LSKA cascade forward, B=1, 384x80x80", "lska_cascade_fwd", "x best", 5, X),
    *_per_level("LSKA forward+backward, B=4", "lska_fwd_bwd", "x eager", (6, 4.5, 2), B=(4,)),
    *_per_level("LSKA forward+backward, B=4", "lska_fwd_bwd", "x best", (4.5, 3.5, 1.7), B=(4,)),
    *_per_level("ACmix forward, B=1", "acmix_fwd", "x eager", (30, 22, 10)),
    *_per_level("ACmix forward, B=1", "acmix_fwd", "x best", (6, 6, 4)),
    *_per_level("ACmix forward+backward, B=2", "acmix_fwd_bwd", "x eager", (20, 15, 10), B=(2,)),
    Goal("LSKA forward / (its cascade + its 1x1 product)", "lska_fwd", "over parts", 1.15, N + X, (1, 4)),
    Goal("LSKA saved for backward, maps", "lska_fwd_bwd", "saved maps", 2, N + X, (1, 4)),
    Goal("ACmix saved for backward, maps besides log-sum-exp", "acmix_fwd_bwd", "saved maps", 5, N, (2,)),
    Goal("ACmix forward+backward, peak memory of eager / ours", "acmix_fwd_bwd", "peak ratio", 25, N, (2,)),
)
N_AND_X = (*N, "yolo11x_p3", "yolo11x_p4", "yolo11x_p5")
GPU_GOALS = (  # on an H200, for each of the 16-bit dtypes; for float32 below
    *(
        Goal(f"{text}, B={B}", kind, metric, limit, cases, (B,))
        for B in (16, 64)
        for text, kind, metric, limit, cases in (
            ("LSKA forward, n shapes", "lska_fwd", "x eager", 6, N),
            ("LSKA forward, n shapes", "lska_fwd", "x compile", 4, N),
            ("LSKA forward, x shapes", "lska_fwd", "x eager", 3, N_AND_X[3:]),
            ("LSKA forward+backward", "lska_fwd_bwd", "x eager", 8, N_AND_X),
            ("LSKA forward+backward", "lska_fwd_bwd", "x compile", 6, N_AND_X),
            ("LSKA cascade, percent of a copy", "lska_cascade_fwd", "% copy", 70, N_AND_X),
            ("LSKA cascade, time at k=53 / at k=7", "lska_cascade_fwd", "k53/k7", 1.4, N_AND_X),
        )
    ),
    Goal("LSKA forward, B=1 in a graph, microseconds", "lska_fwd", "graph us", 6, N),
    *(
        goal
        for B in (16, 64)
        for op, kind, limit in (("LSKA", "lska_fwd", 3), ("ACmix", "acmix_fwd", 15))
        for goal in (
            Goal(f"{op} forward by Triton, n shapes, B={B}", kind, "x eager by triton", limit, N, (B,)),
            Goal(f"{op} forward by Triton, time at cuda's, B={B}", kind, "triton/cuda", 1.5, N, (B,)),
        )
    ),
    *(
        Goal(f"{text}, B={B}", kind, metric, limit, N, (B,))
        for B in (16, 64)
        for text, kind, metric, limit in (
            ("ACmix forward, n shapes", "acmix_fwd", "x eager", 40),
            ("ACmix forward, n shapes", "acmix_fwd", "x compile", 6),
            ("ACmix forward, n shapes", "acmix_fwd", "x flex", 4),
            ("ACmix forward+backward, n shapes", "acmix_fwd_bwd", "x eager", 20),
            ("ACmix forward+backward, peak of eager / ours", "acmix_fwd_bwd", "peak ratio", 30),
        )
    ),
)
GPU_GOALS_FP32 = tuple(
    Goal(f"ACmix forward, n shapes, B={B}", "acmix_fwd", "x eager", 20, N, (B,)) for B in (16, 64)
)
YOLO_GOALS = (  # on two CPU cores; `case` is the network without ACmix
    Goal("yolo11n-ACmix training step, 640 px, B=2", "train", "x reference", 3.5, ("yolo11n",), (2,)),
    Goal("its peak memory above plain's, ours / reference", "train", "above plain", 0.1, ("yolo11n",), (2,)),
)
PEAK_NOISE = 50e6  # bytes; the peaks of one network were up to 45 MB apart from run to run
HEADS = 4  # ACmix's default, which the benchmark runs
FLEX = "FlexAttention (exact)"


def times(lines):
    """{provider: ms} of one row's lines, those that have a time."""
    return {line["provider"]: float(line["ms"]) for line in lines if line["ms"] not in ("", None)}


def line_of(lines, role):
    """The fastest line with that role, or None."""
    timed = [line for line in lines if line["role"] == role and line["ms"] not in ("", None)]
    return min(timed, key=lambda line: float(line["ms"]), default=None)


def x_eager(lines):
    ours, found = line_of(lines, "ours"), times(lines)
    return found["eager"] / float(ours["ms"]) if ours and "eager" in found else None


def x_eager_by_triton(lines):
    found = times(lines)
    return found["eager"] / found["triton"] if {"eager", "triton"} <= found.keys() else None


def triton_over_cuda(lines):
    found = times(lines)
    return found["triton"] / found["cuda"] if {"cuda", "triton"} <= found.keys() else None


def x_best(lines):
    ours, best = line_of(lines, "ours"), line_of(lines, "pytorch")
    return float(best["ms"]) / float(ours["ms"]) if ours and best else None


def x_compile(lines):
    """torch.compile at its best."""
    ours = line_of(lines, "ours")
    found = [ms for provider, ms in times(lines).items() if provider.startswith("torch.compile")]
    return min(found) / float(ours["ms"]) if ours and found else None


def x_flex(lines):
    """Exact FlexAttention, ACmix alone."""
    ours, found = line_of(lines, "ours"), times(lines)
    return found[FLEX] / float(ours["ms"]) if ours and FLEX in found else None


def percent_of_copy(lines):
    ours, found = line_of(lines, "ours"), times(lines)
    return 100 * found["copy"] / float(ours["ms"]) if ours and "copy" in found else None


def graph_us(lines):
    ours = line_of(lines, "ours")
    return 1000 * float(ours["graph_ms"]) if ours and ours["graph_ms"] not in ("", None) else None


def k53_k7(lines):
    """Of the lines of one shape at all its k."""
    by_k = {int(row[0]["k"]): line_of(row, "ours") for row in by_row(lines).values()}
    small, large = by_k.get(7), by_k.get(53)
    return float(large["ms"]) / float(small["ms"]) if small and large else None


def over_parts(lines):
    ours, found = line_of(lines, "ours"), times(lines)
    parts = [found.get("1x1 product"), found.get(f"{ours['provider']} cascade") if ours else None]
    return float(ours["ms"]) / sum(parts) if None not in parts else None


def saved_maps(lines):
    """Saved bytes in maps [B, C, H, W]; ACmix's float32 log-sum-exp [B, HEADS, H, W] is not counted."""
    ours = line_of(lines, "ours")
    if not ours or ours["saved_bytes"] in ("", None):
        return None
    B, C, H, W = (int(ours[name]) for name in "BCHW")
    lse = 4 * B * HEADS * H * W if ours["kind"].startswith("acmix") else 0
    element = 8 if ours["dtype"] == "float64" else 4 if ours["dtype"] == "float32" else 2
    return (int(ours["saved_bytes"]) - lse) / (B * C * H * W * element)


def peak_ratio(lines):
    ours, eager = line_of(lines, "ours"), next((line for line in lines if line["provider"] == "eager"), None)
    if not ours or not eager or not (ours["peak_bytes"] and eager["peak_bytes"]):
        return None
    return int(eager["peak_bytes"]) / int(ours["peak_bytes"])


def x_reference(lines):
    """Of a network with one module: how many times faster ours is than the reference backend."""
    ours, reference = line_of(lines, "ours"), line_of(lines, "reference")
    return float(reference["ms"]) / float(ours["ms"]) if ours and reference else None


def above_plain(lines):
    """Peak memory beyond that of the plain network, ours as a part of the reference's.

    None where the reference's own is within what two runs of one network differ by.
    """
    found = {line["role"]: line["peak_bytes"] for line in lines}
    if any(found.get(role) in ("", None) for role in ("plain", "ours", "reference")):
        return None
    plain, ours, reference = (int(found[role]) for role in ("plain", "ours", "reference"))
    return (ours - plain) / (reference - plain) if reference - plain > PEAK_NOISE else None


# metric -> (value of one row, whether large is good)
METRICS = {
    "x eager": (x_eager, True),
    "x eager by triton": (x_eager_by_triton, True),
    "triton/cuda": (triton_over_cuda, False),
    "x best": (x_best, True),
    "over parts": (over_parts, False),
    "saved maps": (saved_maps, False),
    "peak ratio": (peak_ratio, True),
    "x compile": (x_compile, True),
    "x flex": (x_flex, True),
    "% copy": (percent_of_copy, True),
    "graph us": (graph_us, False),
    "k53/k7": (k53_k7, False),
    "x reference": (x_reference, True),
    "above plain": (above_plain, False),
}


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def by_row(lines):
    """{(row id, dtype): its lines}."""
    rows = {}
    for line in lines:
        rows.setdefault((line["row"], line["dtype"]), []).append(line)
    return rows


def reached(goal, lines, expected):
    """(value or None, verdict) of one goal; `expected` is how many rows it speaks of."""
    mine = [
        row
        for row in by_row(lines).values()
        if row[0]["kind"] == goal.kind and row[0]["case"] in goal.cases and int(row[0]["B"]) in goal.B
    ]
    metric, large = METRICS[goal.metric]
    if any(
        line["role"] == "ours" and str(line["status"]).startswith("WRONG") for row in mine for line in row
    ):
        return None, "WRONG"
    if goal.metric == "k53/k7":  # of a shape, not of a row
        shapes = {}
        for row in mine:
            shapes.setdefault((row[0]["case"], int(row[0]["B"])), []).extend(row)
        mine, expected = list(shapes.values()), len(goal.cases) * len(goal.B)
    values = [value for row in mine if (value := metric(row)) is not None]
    if len(values) < expected:
        return None, f"not measured ({len(values)} of {expected} rows)"
    speed = goal.metric.startswith("x ")
    value = geometric_mean(values) if speed else min(values) if large else max(values)
    return value, "reached" if (value >= goal.limit if large else value <= goal.limit) else "NOT REACHED"


def print_goals(lines, rows):
    """One line each for the goals that speak of `rows`, which are all rows of the benchmark, run or not."""
    _print_goals(GOALS, lines, rows, "")


def print_gpu_goals(lines, rows):
    """The same of a GPU; `rows` are pairs of a row and its dtype, `lines` those of the CSV."""
    for short, dtype, goals in (
        ("fp16", "float16", GPU_GOALS), ("bf16", "bfloat16", GPU_GOALS), ("fp32", "float32", GPU_GOALS_FP32)
    ):  # fmt: skip
        mine = [line for line in lines if line["dtype"] == dtype]
        _print_goals(goals, mine, [row for row, d in rows if d == short], f", {short}")


def print_yolo_goals(lines):
    """The same of whole networks, of which the goals speak with ACmix."""
    print("\nGoals of networks")
    mine = [line for line in lines if line["module"] in ("plain", "ACmix")]
    for goal in YOLO_GOALS:
        _print_goal(goal, *reached(goal, mine, 1))


def _print_goals(goals, lines, rows, of):
    print(f"\nGoals{of} (speed-ups are geometric means over a goal's rows, the others the worst row)")
    for goal in goals:
        expected = sum(r.kind == goal.kind and r.case.id in goal.cases and r.B in goal.B for r in rows)
        if expected:
            _print_goal(goal, *reached(goal, lines, expected))


def _print_goal(goal, value, verdict):
    sign = ">=" if METRICS[goal.metric][1] else "<="
    # three decimals: 1.149 must not be printed as 1.15
    shown = "-" if value is None else f"{value:.3f}"
    print(f"  {goal.text:<55} {goal.metric:<17} {sign} {goal.limit:<5g} {shown:>8}  {verdict}")
