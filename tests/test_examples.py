"""Every example as a user starts it, in an empty folder and without a network, with little to do."""

import re
import runpy
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from ultralytics.engine.model import Model

import lska_ops
from lska_ops.yolo.digits import write_digits

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--epochs", "1", "--imgsz", "64", "--pictures", "4")


@pytest.fixture
def start(tmp_path, monkeypatch, logged):
    """Runs an example's file as a script; gives the models it trained and what ultralytics' logger was told.

    Of its trainings only the folder is changed, and that nothing is drawn.
    """
    models = []
    train = Model.train

    def elsewhere(model, *args, **options):
        models.append(model)
        return train(model, *args, **options, project=str(tmp_path / "runs"), plots=False)

    def refuse(*args, **kwargs):
        raise AssertionError(f"an example asks the network for {args[:1]}")

    monkeypatch.setattr(Model, "train", elsewhere)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def run(name, *words, file=None):
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(file or EXAMPLES / name), run_name="__main__")
        return models, "\n".join(logged)

    yield run
    lska_ops.unregister()


def ours(model):
    """The rows of a trained model's checkpoint that hold a module of ours."""
    layers = torch.load(model.trainer.best, weights_only=False)["model"].model
    return [i for i, layer in enumerate(layers) if type(layer).__module__.startswith("lska_ops.")]


def test_examples_finetune(start):
    (plain, model), said = start("finetune.py", *SMALL)
    # As many classes there as in the data: nothing of the plain detector is lost.
    assert "lska_ops: 499/499 tensors of best.pt, 3 LSKA layers start as identity" in said
    assert ours(plain) == [] and ours(model) == [17, 21, 25]


def test_examples_insert_p3(start):
    (model,), _ = start("insert_p3.py", *SMALL)
    assert ours(model) == [17] and model.model.model[17].k_size == 23


def test_examples_segment(start):
    (model,), _ = start("segment.py", *SMALL)
    assert ours(model) == [17, 21, 25] and model.task == "segment"
    assert model.trainer.metrics["metrics/mAP50(M)"] >= 0
    labels = sorted(Path("shapes/train/labels").glob("*.txt"))
    assert len(labels) == 4
    corners = [
        len(line.split()) // 2 for file in labels for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert set(corners) == {3, 24} and len(corners) == 12


def test_examples_several_gpus_without_one(start, capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible, here it is that there is none; set CUDA_VISIBLE_DEVICES=-1")
    (model,), _ = start("several_gpus.py", *SMALL)
    assert "0 GPUs are visible, two are needed; one process trains on the CPU" in capsys.readouterr().out
    assert ours(model) == [17, 21, 25]


@pytest.mark.parametrize("gpus, device, batch", [(1, 0, 16), (2, [0, 1], 32)])
def test_examples_several_gpus_asks_for_all(start, monkeypatch, gpus, device, batch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(Model, "train", lambda model, **options: asked.update(options))
    start("several_gpus.py", *SMALL)
    assert (asked["device"], asked["batch"]) == (device, batch)


def test_examples_own_loop_needs_no_ultralytics(start, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ultralytics", None)  # an import of it fails
    start("own_loop.py", "--epochs", "2")
    percent = [float(value) for value in re.findall(r"epoch \d: ([\d.]+) %", capsys.readouterr().out)]
    assert len(percent) == 2 and percent[-1] > 60, "one in ten is right by chance"


def test_examples_train(start, tmp_path, monkeypatch):
    data = write_digits(tmp_path, train=2, val=1)
    classes = data.read_text(encoding="utf-8").partition("names:")[2]
    for name in ("train.py", "coco128.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    text = (tmp_path / "coco128.yaml").read_text(encoding="utf-8")
    (tmp_path / "coco128.yaml").write_text(text.partition("names:")[0] + "names:" + classes, encoding="utf-8")
    train, asked = Model.train, {}

    def shorter(model, **options):
        asked.update(options)
        return train(model, **{**options, "epochs": 1, "imgsz": 64, "workers": 0})

    monkeypatch.setattr(Model, "train", shorter)
    (model,), _ = start("train.py", file=tmp_path / "train.py")
    assert ours(model) == [17, 21, 25]
    assert (asked["epochs"], asked["imgsz"], asked["batch"]) == (100, 640, 8)
