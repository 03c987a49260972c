"""What a start is worth: yolo11n trained on the digits, then fine-tuned with LSKA or ACmix before its head.

`python benchmarks/bench_start.py` trains all and writes benchmarks/results/digits/start.csv. Stopped, it goes
on where it was: what the CSV has is not trained again.
"""

import argparse
import contextlib
import copy
import csv
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import report
import torch
from start_report import FILE, write_run

from lska_ops.yolo.demo import RECIPE, _work_offline
from lska_ops.yolo.digits import write_digits
from lska_ops.yolo.transfer import Match

MODULES, STARTS, SEEDS = ("LSKA", "ACmix"), ("ours", "stock"), (0, 1, 2)
BEGUN = "begun.json"  # in a training's folder: what it was before its first step
EPOCHS, TUNED_EPOCHS = 20, 5  # of the plain network, and of each fine-tuning
SCENES, HELD_OUT = 320, 96  # for training, half of the demo's, and for validation
# Both starts are tuned as ultralytics does it where nobody says how: here AdamW with 0.0007 and a warmup that
# leaves biases alone; its default moves them by up to 0.1 a step.
TUNED = {**RECIPE, "optimizer": "auto"}


class Run(NamedTuple):
    """One training: its name is that of its folder."""

    module: str  # "plain" has none
    start: str  # ours, stock; scratch of the plain one
    seed: int
    epochs: int

    @property
    def name(self):
        return f"{self.module}-{self.start}-{self.seed}"

    @property
    def yaml(self):
        return "yolo11n.yaml" if self.module == "plain" else f"yolo11n-{self.module}.yaml"


def all_runs(seeds=SEEDS, epochs=EPOCHS, tuned=TUNED_EPOCHS):
    """The plain network first: the others start from it. A seed's runs stand together."""
    each = itertools.product(seeds, MODULES, STARTS)
    return [Run("plain", "scratch", 0, epochs), *(Run(m, start, seed, tuned) for seed, m, start in each)]


@contextlib.contextmanager
def loading(start):
    """While it lasts, pretrained weights are loaded by our start or, as without us, by ultralytics' own code:
    tensors by name, which holds the layer's number, and what is inserted as its constructor made it."""
    from ultralytics.nn.tasks import BaseModel

    registered = BaseModel.load
    if start == "stock":
        BaseModel.load = registered.__wrapped__
    try:
        yield
    finally:
        BaseModel.load = registered


def train(run, data, source, folder, recipe):
    """Trains, and returns (mAP50 before the first step and of every epoch; how many tensors of the source
    arrived at their place, of how many)."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    where = folder / run.name
    if not finished(where, run):
        trainer = DetectionTrainer(overrides=options_of(run, data, source, folder, recipe))
        if source is not None and not trainer.resume:
            trainer.add_callback(
                "on_train_start",
                lambda t: (where / BEGUN).write_text(
                    json.dumps(state(t, source, run.start)), encoding="utf-8"
                ),
            )
        with loading(run.start):
            trainer.train()
    # A random detector finds nothing.
    begun = (
        {"map50": 0.0, "tensors": ("", "")}
        if source is None
        else json.loads((where / BEGUN).read_text(encoding="utf-8"))
    )
    return [begun["map50"], *per_epoch(where / "results.csv")], begun["tensors"]


def options_of(run, data, source, folder, recipe):
    """The trainer's: of a training that was stopped its last checkpoint."""
    where = folder / run.name
    last = where / "weights" / "last.pt"
    if last.is_file() and (source is None or (where / BEGUN).is_file()):
        return dict(resume=str(last), data=str(data), device="cpu")
    shutil.rmtree(where, ignore_errors=True)
    start = {} if source is None else {"pretrained": str(source)}
    return recipe | start | dict(
        model=run.yaml, data=str(data), epochs=run.epochs, seed=run.seed, device="cpu", amp=False, workers=0,
        project=str(folder), name=run.name, exist_ok=True, plots=False, patience=0,
    )  # fmt: skip


def finished(where, run):
    file = where / "results.csv"
    return file.is_file() and len(per_epoch(file)) >= run.epochs


def state(trainer, source, start):
    """Of a training before its first step."""
    from ultralytics import YOLO

    tensors = arrived(YOLO(source).model.float(), trainer.model, start)
    found = trainer.get_validator()(model=copy.deepcopy(trainer.ema.ema))
    return dict(tensors=tensors, map50=found["metrics/mAP50(B)"])


def arrived(source, model, start):
    """(how many tensors of the source the model has at their place, of how many)."""
    match = Match(source, model)
    match.pair()
    total = match.transferred()[1]
    if start == "stock":  # what is equal in a layer of another number was so before: counters at zero
        match.pairs = [(i, j) for i, j in match.pairs if i == j]
    return match.transferred()[0], total


def per_epoch(file):
    """mAP50 of every epoch, from ultralytics' own table (8.3 pads its names)."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [{k.strip(): v for k, v in row.items()} for row in csv.DictReader(lines)]
    # An epoch that was stopped before its checkpoint is there twice.
    return list({int(row["epoch"]): float(row["metrics/mAP50(B)"]) for row in rows}.values())


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny: that it runs, not what comes of it")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin no other training after so many",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="trainings whose name contains TEXT")
    parser.add_argument("--work", type=Path, help="data and weights; default: demo/start in this tree")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: benchmarks/results")
    args = parser.parse_args(arguments)
    args.work = (args.work or report.ROOT / "demo" / "start" / ("quick" if args.quick else "")).resolve()
    args.out = args.out or (args.work if args.quick else report.RESULTS)
    return args


def main(arguments=None):
    args, begun = parse(arguments), time.monotonic()
    file = args.out / FILE
    runs = all_runs((0,), 2, 1) if args.quick else all_runs()
    recipe = {"imgsz": 64, "cache": False} if args.quick else {}
    scenes = (16, 16) if args.quick else (SCENES, HELD_OUT)
    args.work.mkdir(parents=True, exist_ok=True)
    _work_offline(args.work)
    data = write_digits(args.work, *scenes)
    lines = report.read(file) if file.exists() else []
    done = {(line["module"], line["start"], int(line["seed"])) for line in lines}
    plain = args.work / runs[0].name / "weights" / "last.pt"
    facts = report.environment(torch.device("cpu"), 0.0, 0.0)  # of the code that is loaded, whatever comes
    left = [run for run in runs if run[:3] not in done and args.only in run.name]
    if left and runs[0] not in left and not plain.is_file():
        raise SystemExit(f"{plain} is not there, where the others start; remove {file}, run without --only")
    for number, run in enumerate(left, 1):
        if number > 1 and time.monotonic() - begun > args.seconds:
            print(f"{len(left) - number + 1} trainings are left; run it again")
            return
        print(f"\n[{number}/{len(left)}, {time.monotonic() - begun:.0f} s] {run.name}", flush=True)
        source = None if run is runs[0] else plain
        used = {**(RECIPE if source is None else TUNED), **recipe}
        maps, tensors = train(run, data, source, args.work, used)
        date = report.environment(torch.device("cpu"), 0.0, 0.0)["date"]
        write_run(file, run, maps, tensors, scenes[0], used, facts | {"date": date})
        print(f"{run.name}: mAP50 {' '.join(f'{value:.3f}' for value in maps)}")
    print(file)


if __name__ == "__main__":
    main()
