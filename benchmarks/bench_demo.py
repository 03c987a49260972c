"""Seconds per training step of the demo, ours beside the reference: `python benchmarks/bench_demo.py`."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import report
import torch
from networks import trainer_of
from suite import PATIENCE, QUIET_LOAD, wait_for_quiet
from timing import interleave, summary

from lska_ops.yolo.demo import RECIPE, _work_offline
from lska_ops.yolo.digits import write_digits

STEPS, FAST = 25, 3
BACKENDS = ("cpu", "reference")  # the others decline on a CPU


class Training:
    """One training of the demo's recipe by ultralytics' own trainer, a step at a time."""

    def __init__(self, module, backend, data, folder):
        os.environ["LSKA_OPS_BACKEND"] = self.backend = backend
        yaml, name = f"yolo11n-{module}.yaml", f"{module}-{backend}"
        self.trainer = trainer_of(yaml, data, folder, name=name, device="cpu", **RECIPE)
        self.batches = self._endless()

    def _endless(self):
        while True:
            yield from self.trainer.train_loader

    def step(self):
        os.environ["LSKA_OPS_BACKEND"] = self.backend
        loss = self.trainer.model(self.trainer.preprocess_batch(next(self.batches)))[0]
        loss.sum().backward()
        self.trainer.optimizer_step()


def seconds_of(step):
    before = time.perf_counter()
    step()
    return time.perf_counter() - before


def measure(steps, scenes, modules=("LSKA", "ACmix")):
    """The lines of demo.csv; trainings take their steps in turns."""
    asked = os.environ.get("LSKA_OPS_BACKEND")
    with tempfile.TemporaryDirectory() as out:
        _work_offline(Path(out))
        data = write_digits(out, train=scenes, val=16)
        try:
            trainings = {
                (module, backend): Training(module, backend, data, out)
                for module in modules
                for backend in BACKENDS
            }
            runs = {key: training.step for key, training in trainings.items()}
            for run in runs.values():
                run()  # the first step makes buffers
            samples = interleave(runs, steps, 0, seconds_of)
        finally:
            os.environ.pop("LSKA_OPS_BACKEND")
            if asked is not None:
                os.environ["LSKA_OPS_BACKEND"] = asked
    for (module, backend), taken in samples.items():
        middle, low, high = summary(taken)
        yield dict(
            module=module, backend=backend, imgsz=RECIPE["imgsz"], batch=RECIPE["batch"],
            seconds=middle, seconds_p20=low, seconds_p80=high, steps=len(taken),
        )  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three steps: that it runs, not how fast")
    parser.add_argument(
        "--out", metavar="FOLDER", help="default: benchmarks/results; --quick: a temporary one"
    )
    args = parser.parse_args(arguments)
    folder = Path(args.out or (tempfile.mkdtemp(prefix="bench_") if args.quick else report.RESULTS))
    load = wait_for_quiet(0 if args.quick else PATIENCE)
    facts = report.environment(torch.device("cpu"), load, QUIET_LOAD)
    lines = [{**line, **facts} for line in measure(FAST if args.quick else STEPS, 64 if args.quick else 640)]
    file = folder / report.slug(facts) / report.DEMO
    report.write_demo(file, lines)
    for line in lines:
        print(f"{line['module']:<8} {line['backend']:<10} {line['seconds']:.3f} s a step")
    print(f"{report.headline(facts)}\n{file}")


if __name__ == "__main__":
    main()
