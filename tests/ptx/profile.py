"""Predicts what LSKA's and ACmix's kernels cost on GPUs that are not there; `make profile` runs it.

python -m ptx.profile                                                  # the committed table, from tests/
python -m ptx.profile lska_fwd 96x56x56 B8 k35 fp16 channels_last      # any problem, printed only
python -m ptx.profile lska_bwd 64x80x80 k7 --gpu T4 --lines 12         # and the source lines that cost most
"""

import argparse
import csv
import os
import re
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from . import calls, model, sass, triton_calls
from .gpus import GPUS, WARP
from .machine_code import ROOT, prepare
from .profiler import Profiler, host_library, op_of

RESULTS = ROOT / "benchmarks" / "results" / "profile"
COLUMNS = (
    "gpu", "op", "kernel", "level", "B", "C", "H", "W", "k", "head", "stride", "dilation", "dtype", "layout", "launches",
    "instructions_per_output", "fma_share", "sectors_ratio", "shared_passes_ratio",
    *(f"{part}_us" for part in model.PARTS), "predicted_us", "perfect_us", "ratio", "bound_by", "registers", "spilled",
    "warps_per_sm", "resident_blocks", "limit", "grid", "threads", "shared", "blocks_run", "lanes", "barriers",
)  # fmt: skip
KEY = ("op", "B", "C", "H", "W", "k", "head", "stride", "dilation", "dtype", "layout")  # of a call


def told(problem, name):
    """A column of a call; of LSKA none is told of what is ACmix's."""
    return (
        "" if name in ("head", "stride", "dilation") and "acmix" not in problem.op else getattr(problem, name)
    )


def lines_of(problem, gpu, rows):
    """Of the CSV."""
    for row in rows:
        facts, instructions = row.facts, row.instructions
        yield {
            **dict(gpu=gpu.name, op=problem.op, kernel=row.kernel, level=problem.level, B=problem.B),
            **{name: told(problem, name) for name in KEY[2:]},
            "launches": row.launches,
            "instructions_per_output": _number(instructions / problem.outputs, 4),
            "fma_share": _number(row.fma / instructions if instructions else 0, 3),
            "sectors_ratio": _number(row.sectors[0] / row.sectors[1] if row.sectors[1] else 1, 4),
            "shared_passes_ratio": _number(row.passes[0] / row.passes[1] if row.passes[1] else 1, 4),
            **{f"{part}_us": _number(us, 4) for part, us in row.times.items()},
            "predicted_us": _number(row.predicted, 4),
            "perfect_us": _number(row.perfect, 4),
            "ratio": _number(row.predicted / row.perfect if row.perfect else 1, 4),
            "bound_by": row.bound_by,
            **{
                name: facts.get(name, "")
                for name in ("registers", "spilled", "warps_per_sm", "resident_blocks")
            },
            **{name: facts.get(name, "") for name in ("limit", "grid", "threads", "shared", "blocks_run")},
            **{name: _number(facts[name], 3) if facts else "" for name in ("lanes", "barriers")},
        }


def _number(value, digits):
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def print_lines(lines):
    head = f"{'kernel':<34} {'instr':>6} {'fma':>4} {'sect':>5} {'pass':>5}"
    parts = ("dram", "l2", "issue", "fma", "alu", "shared", "latency")
    print(
        head,
        *(f"{part:>8}" for part in parts),
        f"{'us':>8} {'perfect':>8} {'x':>6} bound by; registers, warps/SM",
    )
    for line in lines:
        about = (
            f"{line['registers']}, {line['warps_per_sm']} ({line['limit']})"
            if line["registers"] != ""
            else ""
        )
        spilled = f", {line['spilled']} bytes SPILLED" if line["spilled"] else ""
        print(
            f"{line['kernel'][:34]:<34} {line['instructions_per_output']:>6} {line['fma_share']:>4}",
            f"{line['sectors_ratio']:>5} {line['shared_passes_ratio']:>5}",
            *(f"{line[f'{part}_us']:>8}" for part in parts),
            f"{line['predicted_us']:>8} {line['perfect_us']:>8} {line['ratio']:>6} {line['bound_by']}; {about}{spilled}",
            flush=True,
        )


def print_sources(profiler, problem, most):
    """Of all launches of a kernel together, so that a kernel's lines add up to its instructions per output."""
    kernels = {}
    for m, (blocks, kernel, warps) in profiler.sources:
        lines = kernels.setdefault(model.short_name(m.kernel), Counter())
        for line, n in sass.by_source(blocks, sass.issued(blocks, kernel, warps), kernel).items():
            lines[line] += WARP * n * m.scale / problem.outputs
    for name, lines in kernels.items():
        print(f"{name}, predicted instructions per output by line:")
        for (file, line), n in lines.most_common(most):
            print(f"  {n:8.2f}  {file}:{line}")


_profiler = None  # of this process


def _begin(root):
    global _profiler
    torch.set_num_threads(1)
    _profiler = Profiler(root)


def _of(problem):
    start = time.monotonic()
    lines = [line for gpu, rows in _profiler.rows(problem, GPUS) for line in lines_of(problem, gpu, rows)]
    return problem, lines, time.monotonic() - start


def whole_table(jobs, problems):
    """Lines of these calls, in their order."""
    ops = sorted({op_of(problem) for problem in problems} - {"triton"})
    start = time.monotonic()
    if ops:
        prepare(ops, [gpu.arch for gpu in GPUS], jobs)
        host_library(ROOT)
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(ROOT,)) as pool:
        for problem, lines, seconds in pool.map(_of, problems):
            print(f"\n{problem} ({seconds:.0f} s)")
            print_lines(line for line in lines if line["gpu"] in ("H200", "RTX 3060"))
            yield from lines


def write(lines, results=RESULTS):
    """Puts calls' lines into the CSV of each GPU, in the table's order; of other calls what is there stays, if the
    table still has them."""
    results.mkdir(parents=True, exist_ok=True)
    rank = {tuple(str(told(problem, name)) for name in KEY): n for n, problem in enumerate(calls.table())}
    for gpu in GPUS:
        file = results / f"{gpu.file}.csv"
        kept = []
        if file.exists():
            with open(file, newline="", encoding="utf-8") as table:
                kept = list(csv.DictReader(table))
        by_call = {}
        for line in [*kept, *(line for line in lines if line["gpu"] == gpu.name)]:
            lines_there = by_call.setdefault(call_of(line), [])
            if any(there["kernel"] == "all" for there in lines_there):
                lines_there.clear()  # "all" is a call's last line: this is its next run
            lines_there.append(line)
        with open(file, "w", newline="", encoding="utf-8") as table:
            out = csv.DictWriter(table, COLUMNS, lineterminator="\n")
            out.writeheader()
            for call in sorted(by_call.keys() & rank.keys(), key=rank.get):
                out.writerows(by_call[call])


def call_of(line):
    return tuple(str(line[name]) for name in KEY)


def gpu_of(word):
    for gpu in GPUS:
        if word.lower() in (gpu.name.lower(), gpu.file):
            return gpu
    raise argparse.ArgumentTypeError(f"{word!r}; expected one of {', '.join(gpu.file for gpu in GPUS)}")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", nargs="*", help="as in: lska_fwd 96x56x56 B8 k35 fp16 channels_last")
    parser.add_argument("--gpu", type=gpu_of, help="one of " + ", ".join(gpu.file for gpu in GPUS))
    parser.add_argument(
        "--only", default="", help="of the table the calls with a match of this, as in: lska_bwd.* k7"
    )
    parser.add_argument("--lines", type=int, default=0, help="so many source lines that cost most")
    parser.add_argument("--root", type=Path, default=ROOT, help="another tree, whose kernels to take")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(words)
    try:
        if not given.problem:
            if given.gpu or given.lines or given.root != ROOT:
                parser.error(
                    "--gpu, --lines and --root are for one problem, as in: lska_fwd 64x80x80 --gpu t4"
                )
            chosen = [problem for problem in calls.table() if re.search(given.only, str(problem))]
            if not chosen:
                parser.error(f"--only {given.only!r} matches no call of the table")
            write(list(whole_table(given.jobs, chosen)))
            return 0
        problem = calls.parse(" ".join(given.problem))
        gpus = [given.gpu] if given.gpu else GPUS
        root = given.root.resolve()
        if not (root / "csrc").is_dir():
            parser.error(f"--root {given.root} has no csrc")
        if problem.op.startswith("triton") and not any(gpu.arch == triton_calls.ARCH for gpu in gpus):
            parser.error("Triton's kernels are run as it compiles them for the A100 alone")
        print(f"{problem}: compiling what is not compiled yet; minutes, the first time", flush=True)
        _begin(root)
        prepare({op_of(problem)} - {"triton"}, [gpu.arch for gpu in gpus], given.jobs, root)
        for gpu, rows in _profiler.rows(problem, gpus):
            print(f"\n{problem} on {gpu.name}, predicted")
            print_lines(lines_of(problem, gpu, rows))
            if given.lines:
                print_sources(_profiler, problem, given.lines)
    except (ValueError, re.error, sass.Missing) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
