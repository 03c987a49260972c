"""The benchmark's rows on a GPU within a time budget, the most wanted first: a stage of benchmarks/gpu.py.

The CSV has a row as soon as it is measured, and --state what became of each: ok, WRONG, failed, not measured.
"""

import time

START = time.monotonic()  # before the imports, which take their part of the budget

import argparse  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import report  # noqa: E402
import suite  # noqa: E402
import torch  # noqa: E402
from evidence import FILE  # noqa: E402
from goals import print_gpu_goals  # noqa: E402
from gpu_facts import nvidia_smi  # noqa: E402
from problems import KINDS, Problem, rows_on_gpu  # noqa: E402

from lska_ops._backends import ON_GPU  # noqa: E402
from lska_ops.testing import Case  # noqa: E402

ROUNDS, SECONDS = 15, 0.4  # least of each of a row's three kinds of time
DEVICE = torch.device("cuda")
CLOCKS = ("clocks.current.sm", "clocks.current.memory", "clocks_throttle_reasons.active")
OUT_OF_TIME = "not measured: out of time"


def name_of(row, dtype):
    return f"{row.id} {dtype}"


def measure_all(rows, seconds, measure, keep, clock=time.monotonic, start=None):
    """{row's name: status}; `keep` gets it after every row.

    A row is begun only while the time is enough for one as long as the longest so far; after the first for
    which it is not, none is. A device that failed is not asked again.
    """
    start, longest, statuses = clock() if start is None else start, 0.0, {}
    stopped = None
    for row, dtype in rows:
        begun = clock()
        if stopped is None and begun - start + longest >= seconds:
            stopped = OUT_OF_TIME
        if stopped:
            statuses[name_of(row, dtype)] = stopped
            continue
        try:
            statuses[name_of(row, dtype)] = measure(row, dtype)
        except Exception as error:  # a row that cannot run must not take the others with it
            said = " ".join(str(error).split())[:300]
            statuses[name_of(row, dtype)] = f"failed: {type(error).__name__}: {said}"
            if "CUDA error" in said:  # from then on every call says so
                stopped = "not measured: the device had failed"
        longest = max(longest, clock() - begun)
        keep(statuses)
    keep(statuses)
    return statuses


def status_of(lines):
    """Of a measured row: that of the backends for GPUs, the first that is not ok."""
    said = {line["provider"]: line["status"] for line in lines if line["provider"] in ON_GPU}
    for name, status in said.items():
        if status != "ok":
            return status if status.startswith(("WRONG", "failed")) else f"failed: {name} {status}"
    return "ok" if said else "failed: no backend of ours"


def not_yet_first(rows, file):
    """Rows that a run before this one measured with these very kernels come last."""
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    measured, now = data.get("measured", {}), data.get("environment", {}).get("cuda_hash")
    return sorted(rows, key=lambda item: now is not None and measured.get(name_of(*item)) == now)


def write(file, statuses, clocks):
    file.write_text(json.dumps({"rows": statuses, "clocks": clocks}), encoding="utf-8")


def construct(rows):
    """Every row's problem can be made, on the CPU and small: same kinds, channels of 4, maps of 5 x 6."""
    for row, dtype in rows:
        small = row._replace(case=Case(row.case.id, 4, 5, 6), B=min(row.B, 2))
        problem = Problem(small, suite.DTYPES[dtype], torch.device("cpu"))
        results = problem.runner(problem.plain)()
        if len(results) != len(problem.names()) or problem.minimal_bytes() < problem.x.nbytes:
            raise SystemExit(f"{name_of(row, dtype)} does not make a problem")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument(
        "--construct", action="store_true", help="make each row's problem, small; needs no GPU"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of lska.csv and acmix.csv")
    parser.add_argument("--facts", type=Path, help="the columns that all lines share")
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args(arguments)
    rows = rows_on_gpu()
    if args.construct:
        construct(rows)
        write(args.state, {name_of(*item): "not measured: dry run" for item in rows}, {})
        print(f"{len(rows)} rows can be made, {name_of(*rows[0])} first")
        return
    suite.set_up_cuda()
    clocks = {}  # just after each row: of the GPU and its memory, and why they are not higher
    facts, turn = json.loads(args.facts.read_text(encoding="utf-8")), suite.CudaTurn()
    order = list(dict.fromkeys(row.id for row, _ in rows))

    def measure(row, dtype):
        print(f"\n[{time.monotonic() - START:.0f} s] {name_of(row, dtype)}", flush=True)
        try:
            lines = suite.measure(Problem(row, suite.DTYPES[dtype], DEVICE), ROUNDS, SECONDS, turn)
            clocks[name_of(row, dtype)] = nvidia_smi(CLOCKS)
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        lines = [{**line, **facts} for line in lines]
        report.print_row(lines)
        report.write(args.out / f"{row.op}.csv", lines, order)
        return status_of(lines)

    rows = not_yet_first(rows, args.out / FILE)
    measure_all(rows, args.seconds, measure, lambda s: write(args.state, s, clocks), start=START)
    files = [args.out / f"{op}.csv" for op in KINDS]
    lines = [line for file in files if file.exists() for line in report.read(file)]
    if lines:
        print_gpu_goals(lines, rows)


if __name__ == "__main__":
    main()
