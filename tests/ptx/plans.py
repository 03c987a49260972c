"""Holds ACmix's planner against the profiler: what its choice costs, beside other plans that it could have taken.

python -m ptx.plans           # from tests/: writes benchmarks/results/profile/plans.csv, within an hour
python -m ptx.plans --keep    # after a change of the planner alone: what is there of the same plans is not counted again
"""

import csv
import os
import random
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import torch

from lska_ops import _plan

from . import calls, model
from .gpus import GPUS
from .machine_code import ROOT, prepare
from .profile import RESULTS
from .profiler import Profiler, host_library

FILE = RESULTS / "plans.csv"
PROBLEMS = 200
RANKS = (0, 1, 2, 4, 8)  # of plans by the planner's cost: those that are near, whose order is in doubt
COLUMNS = ("gpu", "problem", "kernel", "rank", "grid", "threads", "shared", "predicted_us", "bound_by")


def problems():
    """(calls.Problem, gpus.Gpu) that the products on tensor cores serve, a pass each in turn, of any size."""
    chance, out = random.Random(2026), []
    while len(out) < PROBLEMS:
        gpu, backward = GPUS[len(out) // 2 % len(GPUS)], len(out) % 2
        head = chance.choice((4, 4, 4, 8))
        stride = 1 if backward else chance.choice((1, 1, 1, 2))
        problem = calls.Problem(
            op="acmix_bwd" if backward else "acmix_fwd",
            B=chance.choice((1, 2, 4, 8, 16, 32)),
            C=head * chance.choice((8, 16, 16, 32, 64)),
            H=chance.randint(7, 90),
            W=chance.randint(7, 90),
            k=chance.choice((3, 5, 7, 7, 7) if backward else (3, 5, 7, 7, 7, 9)),
            head=head,
            stride=stride,
            dilation=1 if stride > 1 else chance.choice((1, 1, 1, 2)),
            dtype="fp16" if gpu.arch < 80 else chance.choice(("fp16", "bf16")),
            layout=chance.choice(("NCHW", "channels_last", "channels_last")),
        )
        if problem.outputs <= 1 << 23 and chosen(problem, gpu) and problem not in [p for p, _ in out]:
            out.append((problem, gpu))
    return out


def chosen(problem, gpu, rank=0):
    """{kernel: (grid, threads, shared)} as the planner has it, of all that it searches for; empty if others serve."""
    p = problem
    shared, multiprocessors, _ = gpu.limits
    sizes = dict(
        B=p.B, C=p.C, H=p.H, W=p.W, head=p.head, kernel_att=p.k, kernel_conv=3, stride=p.stride, dilation=p.dilation,
        element=p.element, shared_bytes=shared, multiprocessors=multiprocessors, arch=gpu.arch,
        bfloat16=p.dtype == "bf16", reads=reads(p), rank=rank,
    )  # fmt: skip
    if p.op == "acmix_fwd":
        found = {"forward": _plan.acmix_products(True, True, **sizes)}
    else:
        found = {
            "query": _plan.acmix_products_backward(False, True, **sizes),
            "key": _plan.acmix_products_backward(True, True, **sizes),
        }
    if rank == 0 and None in found.values():
        return {}
    return {
        name: ("x".join(map(str, plan["grid"])), plan["threads"], plan["shared_bytes"])
        for name, plan in found.items()
        if plan
    }


def reads(problem):
    """How a map is read, as csrc/acmix/launch_products.h has it."""
    if problem.C // problem.head % 16:
        return "numbers"
    if problem.layout == "channels_last":
        return "vectors"
    return "quads" if problem.stride == 1 and problem.W % 4 == 0 else "numbers"


def kernel_of(symbol):
    """What `chosen` calls it; None of others."""
    if "acmix_products_fwd" in symbol:
        return "forward"
    if found := re.search(r"acmix_products_bwd_kernelI.*Lb([01])E", symbol):
        return ("query", "key")[int(found[1])]
    return None


_profiler = None  # of this process


def _begin():
    global _profiler
    torch.set_num_threads(1)
    _profiler = Profiler()


def _of(problem, gpu, known):
    """Lines of the CSV; `known` has what was counted of a plan, by what comes before it in a line."""
    out = []
    for rank in RANKS:
        plans = chosen(problem, gpu, rank)
        if plans.keys() != chosen(problem, gpu).keys():  # there are not so many
            break
        lines = [(gpu.name, str(problem), name, rank, *plan) for name, plan in plans.items()]
        if all(same_plan(line) in known for line in lines):
            out += [(*line, *known[same_plan(line)]) for line in lines]
            continue
        _profiler.rank = rank
        for _ in _profiler.rows(problem, [gpu]):
            pass
        for m, _ in _profiler.sources:
            name = kernel_of(m.kernel)
            if name not in plans:
                continue
            is_it = ("x".join(map(str, m.grid)), m.threads, m.shared)
            if is_it != plans[name]:
                raise RuntimeError(
                    f"{problem} on {gpu.name}: {name} was started with {is_it}, not {plans[name]}"
                )
            times, _, _ = model.bounds(m, gpu)
            part = max(times, key=times.get)
            out.append((gpu.name, str(problem), name, rank, *is_it, f"{times[part]:.5g}", part))
    return out


def same_plan(line):
    gpu, problem, kernel, _, grid, threads, shared, *_ = map(str, line)
    return gpu, problem, kernel, grid, threads, shared


def counted():
    with open(FILE, newline="", encoding="utf-8") as file:
        return {same_plan(line): tuple(line[-2:]) for line in list(csv.reader(file))[1:]}


def main():
    if sys.argv[1:] not in ([], ["--keep"]):
        print(
            f"plans: {' '.join(sys.argv[1:])!r} is not understood; expected --keep or nothing",
            file=sys.stderr,
        )
        return 2
    if sys.argv[1:] and not FILE.is_file():
        print(f"plans: --keep keeps what {FILE} has, which is not there; run it without", file=sys.stderr)
        return 2
    known = counted() if sys.argv[1:] else {}
    jobs = len(os.sched_getaffinity(0))
    prepare(["acmix"], [gpu.arch for gpu in GPUS], jobs)
    host_library(ROOT)
    with (
        ProcessPoolExecutor(jobs, initializer=_begin) as pool,
        open(FILE, "w", newline="", encoding="utf-8") as file,
    ):
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for lines in pool.map(_of, *zip(*problems(), strict=True), repeat(known)):
            print(lines[0][:2], flush=True)
            out.writerows(lines)
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
