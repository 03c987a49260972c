"""Whole YOLO11 networks, plain, with LSKA and with ACmix, ours beside the reference backend.

`python benchmarks/bench_yolo.py`: images per second of inference, seconds and peak memory of a training step.
"""

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import report
import suite
import torch
import yolo_report
from goals import print_yolo_goals
from networks import Inference, Training, asking, judge
from timing import call_turn, cpu_turn, interleave, peak_bytes, summary

from lska_ops.yolo.demo import _work_offline

MODULES = ("plain", "LSKA", "ACmix")
# Least rounds and least seconds of a row; a step on a CPU differs by a tenth from one to the next.
FULL, FAST = {"cpu": (4, 40), "cuda": (4, 4)}, (1, 0)
PEAKS = {"train": 3, "infer": 1}  # runs whose median is a row's peak memory; a goal speaks of the first


class Row(NamedTuple):
    """One line of work: what is done with which networks, and with how many pictures of which side."""

    kind: str  # infer, or train: a step
    scale: str
    B: int
    side: int = 640

    @property
    def id(self):
        return f"{self.kind}[{self.scale}-B{self.B}-{self.side}]"


# The most wanted first: what a time budget cuts is the tail.
ROWS = tuple(
    Row(kind, f"yolo11{letter}", B)
    for letter in "nsx"
    for kind, batches in (("train", (2, 16)), ("infer", (1, 16)))
    for B in batches
)
# Two cores take minutes for each of the others, most of them in the reference's ACmix; --all runs them too.
ON_CPU = ("train[yolo11n-B2-640]", "infer[yolo11n-B1-640]", "infer[yolo11n-B16-640]", "infer[yolo11s-B1-640]",
          "infer[yolo11x-B1-640]")  # fmt: skip
QUICK = (Row("infer", "yolo11n", 1, 64), Row("train", "yolo11n", 2, 64))


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 px, one round: that it runs, not how fast")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=("fp32", "fp16"),
        help="fp16: half, and mixed precision in training",
    )
    parser.add_argument("--all", action="store_true", help="on a CPU the rows that take minutes, too")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument("--list", action="store_true", help="print the rows' names, and measure nothing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so many")
    parser.add_argument("--facts", type=Path, help="the columns that all lines share")
    parser.add_argument(
        "--out", metavar="FOLDER", help="default: benchmarks/results; --quick: a temporary one"
    )
    args = parser.parse_args(arguments)
    if args.dtype == "fp16" and args.device == "cpu":
        parser.error("--dtype fp16 needs --device cuda: ultralytics predicts and trains in fp32 on a CPU")
    if args.out is None:
        args.out = tempfile.mkdtemp(prefix="bench_") if args.quick else report.RESULTS
    return args


def chosen_rows(args):
    every = QUICK if args.quick else ROWS
    if args.device == "cpu" and not (args.quick or args.all or args.only):
        every = [row for row in ROWS if row.id in ON_CPU]
    rows = [row for row in every if args.only in row.id]
    if not rows:
        names = "\n".join(row.id for row in every)
        raise SystemExit(f"no row's name contains {args.only!r}; they are:\n{names}")
    return rows


def measure(row, dtype, device, rounds, seconds, folder):
    """The lines of one row, in which all networks take turns: a dict for each network and role."""
    make = Training if row.kind == "train" else Inference
    networks, lines, runs = {}, {}, {}
    for module in MODULES:
        network = networks[module] = make(row.scale, module, row.B, row.side, dtype, device, folder)
        verdicts = {"plain": ("ok", "", "")} if module == "plain" else judge(network)
        for role, (status, ratio, backend) in verdicts.items():
            lines[module, role] = line = blank(row, module, role, dtype) | network.facts
            line |= dict(status=status, error_ratio=ratio, backend=backend)
            if status == "ok":
                runs[module, role] = _run(network, role)
        if module != "plain" and row.kind == "infer" and verdicts["ours"][0] == "ok":
            said = [runs[module, role]() for role in ("ours", "reference")]
            lines[module, "ours"]["difference"] = difference(*said)
    gc.collect()
    for run in runs.values():
        run()  # warm: buffers, plans, the optimizer's state
    turn = cpu_turn if device.type == "cpu" else call_turn
    for key, taken in interleave(runs, rounds, seconds, turn).items():
        median, low, high = (1000 * s for s in summary(taken))
        lines[key] |= dict(ms=median, ms_p20=low, ms_p80=high, rounds=len(taken))
        lines[key]["images_per_s"] = 1000 * row.B / median
    for key, run in runs.items():
        lines[key]["peak_bytes"] = peak_bytes(run, device, PEAKS[row.kind])
    return list(lines.values())


def _run(network, role):
    def run():
        with asking(role):
            return network.run()

    return run


def difference(ours, reference):
    """Of what two networks say: the largest, as a part of the largest number."""
    ours, reference = ours.double(), reference.double()
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def blank(row, module, role, dtype):
    import ultralytics

    return dict.fromkeys(yolo_report.COLUMNS, "") | dict(
        row=row.id, kind=row.kind, case=row.scale, module=module, role=role, B=row.B, side=row.side,
        dtype=str(dtype).removeprefix("torch."), ultralytics=ultralytics.__version__,
    )  # fmt: skip


def facts_for(args, device):
    if args.facts:
        return json.loads(args.facts.read_text(encoding="utf-8"))
    load = suite.wait_for_quiet(0 if args.quick else suite.PATIENCE)
    return report.environment(device, load, suite.QUIET_LOAD)


def main(arguments=None):
    args = parse(arguments)
    rows = chosen_rows(args)
    if args.list:
        print("\n".join(row.id for row in rows))
        return
    device, begun, lines = torch.device(args.device), time.monotonic(), []
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device is available; run without --device cuda")
        suite.set_up_cuda()
    facts = facts_for(args, device)
    file = Path(args.out) / report.slug(facts) / yolo_report.FILE
    print(report.headline(facts))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _work_offline(Path(folder))
        for number, row in enumerate(rows, 1):
            spent = time.monotonic() - begun
            if number > 1 and spent > args.seconds:
                print(f"out of time: {', '.join(row.id for row in rows[number - 1 :])} not measured")
                break
            print(f"\n[{number}/{len(rows)}, {spent:.0f} s] {row.id}", flush=True)
            how = FAST if args.quick else FULL[device.type]
            measured = measure(row, suite.DTYPES[args.dtype], device, *how, Path(folder))
            measured = [{**line, **facts} for line in measured]
            yolo_report.print_row(measured)
            lines += measured
            yolo_report.write(file, measured, [row.id for row in ROWS])
    if not args.quick and device.type == "cpu":
        print_yolo_goals(lines)
    print(f"\n{time.monotonic() - begun:.0f} s; {file}")
    if facts["quiet"] == "no":
        print(f"Not publishable: the load was {facts['load']} before the start.")


if __name__ == "__main__":
    main()
