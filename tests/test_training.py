"""What ultralytics does to a model besides training it: fused, halved, averaged, interrupted, validated, tuned, and
shown pictures and a video.

Where our modules are the identity, all of it has to give what the same network without them gives, to the bit.
"""

import copy
import importlib
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import ultralytics
import yaml
from torch import nn
from ultralytics.utils import ASSETS
from ultralytics.utils.torch_utils import ModelEMA

import lska_ops
from lska_ops.__main__ import main
from lska_ops.testing import error_ratio
from lska_ops.yolo.digits import write_digits

SIDE = 64
OURS = {"LSKA": [11], "ACmix": [5]}
OFFLINE = dict(device="cpu", amp=False, workers=0, imgsz=SIDE, batch=2, plots=False)

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), train=4, val=3)


def rows(module=None):
    """A detector of two levels, with `module` behind both, as a model YAML holds it."""
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]
    levels = []
    for channels in (32, 64):
        rows.append([-1, 1, "Conv", [channels, 3, 2]])
        if module:
            rows.append([-1, 1, module, OURS[module]])
        levels.append(len(rows) - 1)
    return {"nc": 10, "backbone": rows, "head": [[levels, 1, "Detect", ["nc"]]]}


def write(folder, module=None):
    path = folder / f"tiny{module or ''}.yaml"
    path.write_text(yaml.safe_dump(rows(module)), encoding="utf-8")
    return path


@pytest.fixture(params=OURS)
def module(request):
    return request.param


@pytest.fixture
def pair(tmp_path, module):
    """A detector that finds boxes, and the same with our modules, which begin as the identity."""
    torch.manual_seed(0)
    plain = ultralytics.YOLO(write(tmp_path))
    for m in plain.model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_var.uniform_(0.5, 1.5)
            m.weight.data.uniform_(2, 3)
    torch.save({"model": plain.model, "train_args": {}, "epoch": -1, "ema": None}, tmp_path / "plain.pt")
    return plain, ultralytics.YOLO(write(tmp_path, module)).load(tmp_path / "plain.pt")


def layers(model):
    return [m for m in model.model if type(m).__module__.startswith("lska_ops.")]


def at_random(model):
    """The model with our modules no longer the identity."""
    for layer in layers(model):
        layer.reset_parameters() if hasattr(layer, "reset_parameters") else [
            conv.reset_parameters() for conv in layer.children()
        ]
    return model


@torch.inference_mode()
def output(model, dtype=torch.float32):
    x = torch.rand(2, 3, SIDE, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    return model.eval()(x)[0]


def test_training_fused_model_keeps_our_modules(pair, module):
    plain, ours = (copy.deepcopy(each.model).eval().fuse(verbose=False) for each in pair)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    assert [type(layer) for layer in layers(ours)] == [getattr(lska_ops, module)] * 2
    assert torch.equal(output(ours), output(plain))
    assert not torch.equal(output(at_random(ours)), output(plain))


def test_training_half_on_a_cpu(pair):
    try:
        nn.Conv2d(1, 1, 1).half()(torch.ones(1, 1, 1, 1).half())
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} has no half precision on this CPU ({error}); upgrade torch")
    plain, ours = (copy.deepcopy(each.model).half() for each in pair)
    y = output(ours, torch.float16)
    assert y.dtype == torch.float16 and torch.equal(y, output(plain, torch.float16))
    y = output(at_random(ours), torch.float16)
    assert y.dtype == torch.float16 and y.isfinite().all()


def test_training_average_of_the_weights_and_its_checkpoint(pair, tmp_path, module):
    model = at_random(pair[1].model)
    ema = ModelEMA(model, updates=3000)  # the average of a long training, neither side near zero
    before = {name: value.double() for name, value in ema.ema.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ema.update(model)
    d, now, average = ema.decay(ema.updates), model.state_dict(), ema.ema.state_dict()
    for layer in layers(ema.ema):
        for name in (f"model.{layer.i}.{key}" for key in layer.state_dict()):
            old, new = before[name], now[name].double()
            exact, absolute = old + (1 - d) * (new - old), old.abs() + new.abs()
            assert error_ratio(average[name], exact, absolute, 4) <= 1, name
            assert average[name].data_ptr() != now[name].data_ptr() and not average[name].requires_grad
    file = tmp_path / "last.pt"
    torch.save({"model": None, "ema": copy.deepcopy(ema.ema).half(), "train_args": {}, "epoch": 3}, file)
    opened = ultralytics.YOLO(file).model
    assert [type(layer) for layer in layers(opened)] == [getattr(lska_ops, module)] * 2
    for name, value in opened.state_dict().items():
        assert torch.equal(value, average[name].half().to(value)), name


RESUME = """
import sys
from ultralytics import YOLO  # nothing of ours is imported
import torch
model, saved = YOLO(sys.argv[1]), torch.load(sys.argv[1], weights_only=False)
def compare(trainer):
    ema, now = saved["ema"].state_dict(), trainer.model.state_dict()
    same = all(torch.equal(value.float(), now[name].float()) for name, value in ema.items())
    ours = [p for m in trainer.model.model if type(m).__module__.startswith("lska_ops.") for p in m.parameters()]
    print("resumed", trainer.start_epoch, same, len(ours), sum(p in trainer.optimizer.state for p in ours))
model.add_callback("on_train_start", compare)
model.train(resume=True)
"""


class Interrupted(Exception):
    pass


@pytest.mark.versions
def test_training_goes_on_in_a_fresh_process(tmp_path, digits, module):
    def interrupt(trainer):
        if trainer.epoch == 1:
            raise Interrupted

    model = ultralytics.YOLO(write(tmp_path, module))
    model.add_callback("on_train_epoch_start", interrupt)
    with pytest.raises(Interrupted):
        model.train(data=str(digits), project=str(tmp_path / "runs"), epochs=3, val=False, optimizer="SGD", **OFFLINE)  # fmt: skip
    (last,) = tmp_path.glob("runs/train/weights/last.pt")
    command = [sys.executable, "-c", RESUME, last]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(p.requires_grad for layer in layers(model.model) for p in layer.parameters())
    assert f"resumed 1 True {count} {count}\n" in done.stdout, done.stdout
    assert len(last.parents[1].joinpath("results.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3
    before, after = torch.load(last, weights_only=False)["model"], model.trainer.model
    for ours, theirs in zip(layers(before), layers(after), strict=True):
        assert not torch.equal(ours.conv1.weight.float(), theirs.conv1.weight)


def validated(model, folder, digits):
    """The boxes of a validation as it writes them, and its metrics."""
    options = dict(
        data=str(digits), save_txt=True, save_conf=True, conf=1e-6, project=str(folder), name="val"
    )
    metrics = model.val(**options, **OFFLINE)
    files = sorted((folder / "val" / "labels").glob("*.txt"))
    return {file.name: file.read_text(encoding="utf-8") for file in files}, metrics.results_dict


def test_training_validation_is_that_of_the_plain_model(pair, tmp_path, digits):
    plain, ours = (validated(model, tmp_path / name, digits) for model, name in zip(pair, "ab", strict=True))
    assert len(plain[0]) == 3 and plain[0] == ours[0]
    assert {**plain[1], "fitness": 0} == {**ours[1], "fitness": 0}
    at_random(pair[1].model)
    assert validated(pair[1], tmp_path / "c", digits)[0] != plain[0]


def predicted(model, source, **options):
    options = dict(imgsz=SIDE, conf=1e-6, max_det=9, device="cpu", verbose=False, **options)
    return [result.boxes.data for result in model.predict(source, **options)]


def same(found, expected):
    assert len(found) == len(expected) and all(len(boxes) for boxes in expected)
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.versions
def test_training_pictures_and_video(pair, tmp_path):
    plain, ours = pair
    pictures = [str(ASSETS / "bus.jpg"), str(ASSETS / "zidane.jpg")]  # one upright, one wide
    expected = predicted(plain, pictures)
    assert same(predicted(ours, pictures), expected)
    bus = cv2.resize(cv2.imread(pictures[0]), (160, 192))
    video = tmp_path / "bus.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 128))
    assert writer.isOpened()
    for i in range(4):
        writer.write(np.ascontiguousarray(bus[16 * i : 16 * i + 128, 8 * i : 8 * i + 96]))
    writer.release()
    assert same(predicted(ours, video, stream=True), filmed := predicted(plain, video))
    assert len(filmed) == 4 and not torch.equal(filmed[0], filmed[3])
    at_random(ours.model)
    ours.predictor = None  # 8.3.0 keeps the fused model of its first call
    assert not same(predicted(ours, video), filmed)


def test_training_tune_starts_what_our_command_runs(tmp_path, digits, monkeypatch):
    """One iteration; where it starts a command, that runs here through `lska-ops yolo`."""
    commands, argv, run = [], list(sys.argv), subprocess.run

    def start(command, *args, **kwargs):
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        if "train" not in words:
            return run(command, *args, **kwargs)
        commands.append(words)
        try:
            code = main(["yolo", *words[words.index("train") :]])
        finally:
            sys.argv[:] = argv
        return subprocess.CompletedProcess(command, code)

    path = write(tmp_path, "ACmix")
    tuner = importlib.import_module("ultralytics.engine.tuner")
    if hasattr(tuner, "subprocess"):  # later versions train in this process
        monkeypatch.setattr(tuner.subprocess, "run", start)
    options = dict(
        data=str(digits), project=str(tmp_path / "runs"), iterations=1, epochs=1, save=True, val=True
    )
    ultralytics.YOLO(path).tune(**options, **OFFLINE)
    assert len(commands) == hasattr(tuner, "subprocess")
    found = sorted(tmp_path.glob("runs/**/best.pt"))
    assert found and [type(m).__name__ for m in layers(ultralytics.YOLO(found[0]).model)] == ["ACmix"] * 2
