"""One benchmark: for each row correctness first, then time in interleaved rounds, then memory."""

import argparse
import contextlib
import gc
import os
import tempfile
import time
import warnings
from pathlib import Path

import report
import torch
from gate import Gate
from goals import print_goals
from peers import OURS, Declined, autotuned, providers, role_of, yardsticks
from problems import QUICK, ROWS, Problem, rows_on_gpu
from timing import (
    GRAPH_CALLS,
    CudaTurn,
    call_turn,
    cpu_turn,
    graphed,
    interleave,
    peak_bytes,
    saved_bytes,
    summary,
)

QUIET_LOAD = 0.5  # one-minute load average above which no result is publishable
PATIENCE = 240  # seconds; the load of a run before this one has left the average by then
FULL, FAST = (15, 8), (3, 0.5)  # least rounds and least seconds of a row
GRAPHED_MS = 10  # what takes longer waits for no launch, and its graph would hold all of its memory
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(op):
    """Runs the rows of `op`; what `python benchmarks/bench_<op>.py` does."""
    args = parse(op)
    device, folder = torch.device(args.device), Path(args.out)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available; run without --device cuda")
    if device.type == "cuda":
        set_up_cuda()
    rows = chosen_rows(op, args)
    load = wait_for_quiet(0 if args.quick else PATIENCE)
    facts = report.environment(device, load, QUIET_LOAD)
    folder = folder / report.slug(facts)
    lines, start = [], time.perf_counter()
    print(report.headline(facts))
    turn = cpu_turn if device.type == "cpu" else CudaTurn()
    for number, row in enumerate(rows, 1):
        print(f"\n[{number}/{len(rows)}, {time.perf_counter() - start:.0f} s] {row.id}", flush=True)
        measured = measure(Problem(row, DTYPES[args.dtype], device), *(FAST if args.quick else FULL), turn)
        measured = [{**line, **facts} for line in measured]
        report.print_row(measured)
        lines += measured
        report.write(folder / f"{op}.csv", measured, [r.id for r in all_rows(op, args)])
    if device.type == "cpu" and args.dtype == "fp32":  # what the goals speak of
        print_goals(lines, ROWS[op])
    print(f"\n{time.perf_counter() - start:.0f} s; {folder / f'{op}.csv'}")
    if facts["quiet"] == "no":
        print(f"Not publishable: the load was {load:.2f} before the start; at most {QUIET_LOAD} is quiet.")


def set_up_cuda():
    """PyTorch at its best, but fp32 means fp32, and halves are summed in it: TF32 and parts in halves would
    miss the bound."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    products = torch.backends.cuda.matmul
    products.allow_tf32 = False
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = False


def all_rows(op, args):
    if args.device == "cuda":
        return [row for row, dtype in rows_on_gpu() if dtype == args.dtype and row.op == op]
    return ROWS[op]


def parse(op, arguments=None):
    peers = "PyTorch eager, torch.compile" + (", FlexAttention" if op == "acmix" else "")
    description = f"Benchmark of {op}: our backends (cpu; cuda and triton with --device cuda), {peers}."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="few rows and rounds: that it runs, not how fast"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument(
        "--out", metavar="FOLDER", help="default: benchmarks/results; --quick: a temporary one"
    )
    args = parser.parse_args(arguments)
    if args.out is None:
        args.out = tempfile.mkdtemp(prefix="bench_") if args.quick else report.RESULTS
    return args


def chosen_rows(op, args):
    every = all_rows(op, args)
    if args.quick:
        every = [row for row in every if row.id in QUICK]
    rows = [row for row in every if args.only in row.id]
    if not rows:
        raise SystemExit(
            f"no row's name contains {args.only!r}; they are:\n" + "\n".join(r.id for r in every)
        )
    return rows


def wait_for_quiet(patience):
    """The one-minute load average before the start, waited for: the run before this one is in it."""
    end = time.monotonic() + patience
    while (load := os.getloadavg()[0]) > QUIET_LOAD and time.monotonic() < end:
        print(
            f"load {load:.2f}: waiting for a quiet {QUIET_LOAD}, {end - time.monotonic():.0f} s at most",
            flush=True,
        )
        time.sleep(min(10, patience))
    return load


def measure(problem, rounds, seconds, turn):
    """The lines of one row: a dict for each provider and yardstick."""
    gate, cuda = Gate(problem), problem.x.device.type == "cuda"
    lines, runs, functions = {}, {}, {}
    for name, provider in {**providers(problem.row.op), **(autotuned() if cuda else {})}.items():
        lines[name] = line = blank(problem, name, role_of(name))
        try:
            own, function = provider(problem)
            run = own.runner(function)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.compile's advice
                results = gate.answers(own, run)
        except Declined as reason:
            line["status"] = f"declined: {reason}"
            continue
        except Exception as error:  # a provider that cannot run must not take the others' results with it
            line["status"] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        runs[name], functions[name] = run, (own, function)
        if line["role"] == "another function":
            line["status"] = "ok, another function"
            continue
        worst, line["error_ratio"] = gate.worst(results, name if name in OURS else None)
        if not line["error_ratio"] <= 1:
            line["status"] = f"WRONG: {worst} has {line['error_ratio']:.3g} times the allowed error"
            del runs[name], functions[name]
    del gate
    for name, run in yardsticks(problem, [name for name in runs if name in OURS]).items():
        lines[name], runs[name] = blank(problem, name, "yardstick"), run
    time_all(lines, runs, rounds, seconds, turn, cuda)
    for name, (own, function) in functions.items():
        run, line = runs[name], lines[name]
        line["peak_bytes"] = peak_bytes(run, problem.x.device)
        if problem.row.backward:
            with own.autocast():
                line["saved_bytes"] = saved_bytes(
                    lambda own=own, function=function: function(own.x), own.module.parameters()
                )
    gc.collect()
    return list(lines.values())


def time_all(lines, runs, rounds, seconds, turn, cuda):
    for run in runs.values():
        run()  # warm: buffers, plans and threads are there
    samples = interleave(runs, rounds, seconds, turn)
    for name, taken in samples.items():
        median, low, high = (1000 * s for s in summary(taken))
        lines[name] |= dict(ms=median, ms_p20=low, ms_p80=high, rounds=len(taken))
    if cuda:
        replays, calls = {}, {}
        for name, run in runs.items():
            calls[name] = GRAPH_CALLS if lines[name]["ms"] < 1 else 1
            if lines[name]["ms"] > GRAPHED_MS:
                continue
            with contextlib.suppress(RuntimeError):  # what cannot be captured has no graph_ms
                replays[name] = graphed(run, calls[name])
        for name, taken in interleave(replays, rounds, seconds, CudaTurn(cold=False)).items():
            lines[name]["graph_ms"] = 1000 * summary(taken)[0] / calls[name]
        replays.clear()
        for name, taken in interleave(runs, rounds, seconds, call_turn).items():
            lines[name]["call_ms"] = 1000 * summary(taken)[0]


def blank(problem, provider, role):
    row, case = problem.row, problem.row.case
    return dict.fromkeys(report.COLUMNS, "") | dict(
        row=row.id, kind=row.kind, case=case.id, B=row.B, C=case.C, H=case.H, W=case.W, k=row.k,
        dtype=str(problem.x.dtype).removeprefix("torch."), provider=provider, role=role, status="ok",
    )  # fmt: skip
