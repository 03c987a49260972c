"""The main job from start to end: make or take data, train, validate, predict, say where everything is."""

import os
import shutil
import statistics
import time
from pathlib import Path

from .data import check_data
from .digits import write_digits
from .register import register

# Learns digits within the time of a coffee on two cores; measured runs stand in CONTRIBUTING.md.
RECIPE = dict(
    batch=16, nbs=16, optimizer="AdamW", lr0=0.003, lrf=0.05, cos_lr=True, warmup_epochs=1.0,
    mosaic=0.0, fliplr=0.0, hsv_h=0.0, hsv_s=0.0, scale=0.2, translate=0.1, erasing=0.0, cache="ram",
)  # fmt: skip


def demo(module="LSKA", epochs=None, imgsz=None, data=None, device="cpu", out="demo"):
    """Trains yolo11n with `module`, validates it, predicts pictures, prints paths, mAP50 and seconds per
    step.

    Args:
        module: "LSKA" or "ACmix".
        epochs: passes over the training scenes; None takes what the digits need.
        imgsz: side in pixels that pictures are scaled to; None takes what the digits need.
        data: a data YAML of your own; None writes the digits.
        device: as ultralytics takes it: "cpu", "0", "0,1".
        out: folder for everything that is written.

    Returns:
        int: 0, or 130 where Ctrl-C stopped the training.

    Raises:
        FileNotFoundError, ValueError: the data does not hold together, see :func:`check_data`.
    """
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    _work_offline(out)
    register()
    from ultralytics import YOLO
    from ultralytics.utils import ASSETS

    own = {} if data else RECIPE
    data = Path(data).resolve() if data else write_digits(out)
    splits = check_data(data)
    print(
        f"data: {data}  ({', '.join(f'{len(images)} {split} pictures' for split, images in splits.items())})"
    )

    model = YOLO(f"yolo11n-{module}.yaml")
    steps = _StepTimes(model)
    options = dict(imgsz=imgsz or 160, device=device, amp=False, project=str(out), exist_ok=True, seed=0)
    try:
        model.train(
            data=str(data),
            epochs=epochs or 12,
            name=f"train-{module}",
            workers=_workers(device),
            **own,
            **options,
        )
    except KeyboardInterrupt:
        last = Path(model.trainer.last)
        print(
            f"\nstopped; the last checkpoint is {last}"
            if last.exists()
            else "\nstopped before the first checkpoint"
        )
        return 130
    folder = Path(model.trainer.save_dir)
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
    return 0


def _work_offline(out):
    """ultralytics asks the net for fonts, versions and packages; a demo must not depend on the answers."""
    settings = out / "settings"
    settings.mkdir(exist_ok=True)
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_CONFIG_DIR=str(settings))
    from matplotlib import get_data_path

    font = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for folder in (settings, settings / "Ultralytics"):  # 8.3 and 8.4 look in different places
        folder.mkdir(exist_ok=True)
        shutil.copy(font, folder / "Arial.ttf")


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
