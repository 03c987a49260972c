"""The main job from start to end: make or take data, train, validate, predict, say where everything is."""

import contextlib
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

from .data import check_data
from .digits import digits_loader, write_digits
from .registration import register

# What the digits need, made for two cores; your own data gets ultralytics' defaults.
RECIPE = dict(
    epochs=7, imgsz=160,
    batch=16, nbs=16, optimizer="AdamW", lr0=0.003, lrf=0.05, cos_lr=True, warmup_epochs=1.0,
    mosaic=0.0, fliplr=0.0, hsv_h=0.0, hsv_s=0.0, scale=0.2, translate=0.1, erasing=0.0, cache="ram",
)  # fmt: skip


class StartError(ValueError):
    """The demo cannot start: an argument or a missing package, said before anything is trained."""


def demo(module="LSKA", epochs=None, imgsz=None, data=None, device="cpu", out="demo"):
    """Trains yolo11n with `module`, validates it, predicts pictures, prints paths, mAP50 and seconds per
    step.

    Args:
        module: "LSKA" or "ACmix".
        epochs: passes over the training pictures; None takes what the digits need, ultralytics' default
            for your data.
        imgsz: side in pixels that pictures are scaled to; None as for epochs.
        data: a data YAML of your own; None writes the digits.
        device: "cpu" or the number of one GPU.
        out: folder for everything that is written; an earlier training of the same module there is removed.

    Returns:
        int: 0, or 130 where Ctrl-C stopped it.

    Raises:
        StartError: an argument does not hold, or a package is missing. It is a ValueError.
        DataError: the data does not hold together, see :func:`check_data`. It is a ValueError.
    """
    _check_arguments(epochs, imgsz, device)
    out = Path(out).resolve()
    own = bool(data)
    try:
        if not own:
            digits_loader()  # before anything is written
        out.mkdir(parents=True, exist_ok=True)
        _work_offline(out)
        data = Path(data).resolve() if own else write_digits(out)
    except ImportError as error:
        raise StartError(str(error)) from error
    splits = check_data(data)
    print(
        f"data: {data}  ({', '.join(f'{len(images)} {split} pictures' for split, images in splits.items())})"
    )
    shutil.rmtree(out / f"train-{module}", ignore_errors=True)  # what lies there afterwards is of this run
    given = {name: value for name, value in (("epochs", epochs), ("imgsz", imgsz)) if value is not None}
    recipe = {**({} if own else RECIPE), **given}
    try:
        _train_and_predict(module, data, splits, recipe, device, out)
    except KeyboardInterrupt:
        last = out / f"train-{module}" / "weights" / "last.pt"
        where = f"; the last checkpoint is {last}" if last.exists() else " before the first checkpoint"
        _wait_for_plots()
        print(f"\nstopped{where}")
        return 130
    return 0


def _check_arguments(epochs, imgsz, device):
    for name, value, least in (("epochs", epochs, 1), ("imgsz", imgsz, 32)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise StartError(f"demo: {name} is {value}; expected an integer of at least {least}")
    if str(device) == "cpu":
        return
    import torch

    # Several GPUs train in processes of their own, where nobody can take the time of a step.
    gpus = torch.cuda.device_count()
    if not str(device).isdecimal() or int(device) >= gpus:
        expected = f"cpu or one GPU number from 0 to {gpus - 1}" if gpus else "cpu, no GPU is visible here"
        raise StartError(f"demo: device is {device}; expected {expected}")


def _train_and_predict(module, data, splits, recipe, device, out):
    from ultralytics import YOLO
    from ultralytics.utils import ASSETS

    model = YOLO(f"yolo11n-{module}.yaml")
    steps = _StepTimes(model)
    options = dict(device=device, amp=False, project=str(out), exist_ok=True, seed=0)
    with _every_interrupt_heard(model):
        model.train(data=str(data), name=f"train-{module}", workers=_workers(device), **recipe, **options)
    folder = Path(model.trainer.save_dir)
    options["imgsz"] = model.trainer.args.imgsz
    metrics = model.val(data=str(data), split="val", name=f"val-{module}", workers=0, **options)
    pictures = [*splits["val"][:8], ASSETS / "bus.jpg"]
    results = model.predict(
        [str(p) for p in pictures], save=True, name=f"predict-{module}", verbose=False, **options
    )
    print(f"\nweights:      {folder / 'weights' / 'best.pt'}")
    print(f"curves:       {folder / 'results.png'}")
    boxes = sum(len(result.boxes) for result in results)
    print(f"pictures:     {results[0].save_dir}  ({boxes} boxes on {len(results)} pictures)")
    print(f"mAP50:        {metrics.box.map50:.3f}")
    print(f"seconds/step: {steps.median():.3f}")


def _work_offline(out):
    """Registers with an ultralytics that asks the net for nothing.

    It would for fonts, versions and packages; a demo must not depend on the answers.
    """
    settings = out / "settings"
    settings.mkdir(exist_ok=True)
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_CONFIG_DIR=str(settings))
    register()  # the first import of ultralytics, which reads these
    from matplotlib import get_data_path

    font = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for folder in (settings, settings / "Ultralytics"):  # 8.3 and 8.4 look in different places
        folder.mkdir(exist_ok=True)
        for name in ("Arial.ttf", "Arial.Unicode.ttf"):  # the second for class names beyond ASCII
            shutil.copy(font, folder / name)


@contextlib.contextmanager
def _every_interrupt_heard(model):
    """Python drops a Ctrl-C that meets a weakref's callback or __del__, of which saving a checkpoint runs
    many, with a traceback; here without one, and the next step raises it again."""
    asked = []

    def note(number, frame):
        asked.append(number)
        signal.default_int_handler(number, frame)

    def again(trainer):
        if asked:
            raise KeyboardInterrupt

    def silent(dropped, otherwise=sys.unraisablehook):
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            otherwise(dropped)

    if threading.current_thread() is not threading.main_thread():  # only there do signals arrive
        yield
        return
    before, hook = signal.signal(signal.SIGINT, note), sys.unraisablehook
    sys.unraisablehook = silent
    model.add_callback("on_train_batch_end", again)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook


def _wait_for_plots():
    """ultralytics draws in daemon threads; one that is in C++ when Python ends aborts the process."""
    for thread in threading.enumerate():
        if type(thread) is threading.Thread and thread.daemon:
            thread.join(timeout=5)  # others, such as a loader's, end with the process


def _workers(device):
    # On a CPU the loader would only take cores from the training.
    return 0 if str(device) == "cpu" else 4


class _StepTimes:
    """Seconds from the end of a training step to the end of the next in the same epoch, loading included."""

    def __init__(self, model):
        self.seconds, self.last = [], None
        model.add_callback("on_train_epoch_start", self._epoch)
        model.add_callback("on_train_batch_end", self._step)

    def _epoch(self, trainer):
        self.last = None

    def _step(self, trainer):
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now

    def median(self):
        return statistics.median(self.seconds) if self.seconds else float("nan")
