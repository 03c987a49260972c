"""README's block of what tests/ptx/profile.py predicts for GPUs, from its CSVs alone."""

from provenance import read

FOLDER = "profile"
GPUS = ("h200", "a100", "rtx-4090", "rtx-3060", "t4", "orin")  # in this order, those that are there
WORK = {
    "lska_fwd": "LSKA, forward",
    "lska_bwd": "LSKA, backward",
    "acmix_fwd": "ACmix, forward",
    "acmix_bwd": "ACmix, backward",
}
OF_ACMIX = {"k": "7", "head": "4", "stride": "1", "dilation": "1"}  # its defaults
LAYOUT = "channels_last"


def block(results):
    """Paragraphs, or none where nothing was predicted yet."""
    found = {name: read(file) for name in GPUS if (file := results / FOLDER / f"{name}.csv").exists()}
    if not found:
        return []
    names = [lines[0]["gpu"] for lines in found.values()]
    calls = [line for line in next(iter(found.values())) if _shown(line)]
    table = [
        f"| predicted, µs (× its bytes, × faster than eager) | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for call in calls:
        cells = [_cell(lines, _same(lines, call)) for lines in found.values()]
        k = f", k {call['k']}" if call["op"].startswith("lska") else ""
        size = f"{call['C']}×{call['H']}×{call['W']} ({call['level']})"
        table.append(f"| {WORK[call['op']]} {size}{k} | {' | '.join(cells)} |")
    return [
        "**GPUs, predicted, not measured** (batch 16, float16, channels_last): "
        "the compiled kernels run and counted without a GPU, then bounded by vendors' peak rates. Eager is "
        "PyTorch's way in NCHW as its sources are described, by the same judge. *Its bytes*: what our "
        "kernels and the 1×1 product between them read and write, each byte once, at the rate of the GPU's "
        "memory. At boost clocks, without what a launch costs.",
        "\n".join(table),
        f"Every row and kernel: [benchmarks/results/{FOLDER}](benchmarks/results/{FOLDER}); the rates: "
        "[tests/ptx/gpus.py](tests/ptx/gpus.py); any other size: "
        '`make profile ARGS="lska_fwd 96x56x56 B8 k35 fp16 channels_last --gpu T4"` (needs nvcc; minutes the '
        "first time).",
    ]


def _shown(line):
    return (
        line["kernel"] == "all"
        and line["op"] in WORK
        and (line["B"], line["dtype"], line["layout"]) == ("16", "fp16", LAYOUT)
        and line["C"] in ("64", "128", "256")
        and ("lska" in line["op"] or all(line[name] == value for name, value in OF_ACMIX.items()))
    )


def _same(lines, call, **other):
    names = ("op", "kernel", "B", "C", "H", "W", "dtype", "layout", *OF_ACMIX)
    wanted = {name: call[name] for name in names} | other
    return next((line for line in lines if all(line[name] == v for name, v in wanted.items())), None)


def _cell(lines, line):
    if line is None:
        return "—"
    peer = {"lska_fwd": "eager_fwd", "lska_bwd": "eager_bwd"}.get(line["op"])
    eager = _same(lines, line, op=peer, layout="NCHW")
    faster = f", × {float(eager['predicted_us']) / float(line['predicted_us']):.1f}" if eager else ""
    us = float(line["predicted_us"])
    return f"{us:{'.0f' if us >= 100 else '.3g'}} (× {float(line['ratio']):.2f}{faster})"
