"""The demo from start to end on a few scenes, its data, and the checks of a user's data."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from lska_ops.yolo.data import check_data
from lska_ops.yolo.digits import write_digits

# Python imports sitecustomize before anything else: every attempt to reach a network is written down and
# refused.
NO_NETWORK = """
import os, socket
def refuse(*args, **kwargs):
    with open(os.environ["ATTEMPTS"], "a") as file: print(args[:1], file=file)
    raise OSError("no network in this test")
socket.getaddrinfo = refuse
socket.create_connection = refuse
"""


@pytest.fixture
def python(tmp_path):
    """Starts a Python process in an empty directory without a network; gives (Popen, file of network attempts)."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    (tmp_path / "cwd").mkdir()
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "ATTEMPTS": str(tmp_path / "attempts")}
    started = []

    def start(*words):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(
            subprocess.Popen([sys.executable, *map(str, words)], cwd=tmp_path / "cwd", env=env, **pipes)
        )
        return started[-1], tmp_path / "attempts"

    yield start
    for process in started:
        process.kill()


def test_demo_data_is_reproducible_and_valid(tmp_path):
    data = write_digits(tmp_path / "a", train=6, val=3)
    again = write_digits(tmp_path / "b", train=6, val=3)
    splits = check_data(data)
    assert [len(splits[s]) for s in ("train", "val")] == [6, 3]
    for picture in (p for split in splits.values() for p in split):
        twin = again.parent / picture.relative_to(data.parent)
        assert twin.read_bytes() == picture.read_bytes()
        assert Image.open(picture).size == (320, 320)


def test_demo_boxes_are_tight_around_the_ink(tmp_path):
    for picture in check_data(write_digits(tmp_path, train=12, val=1))["train"]:
        pixels = np.asarray(Image.open(picture).convert("L"), float)
        ground = np.median(pixels)
        lines = picture.parents[1].joinpath("labels", picture.stem + ".txt").read_text().split("\n")
        for line in filter(None, lines):
            _, x, y, w, h = (float(word) for word in line.split())
            left, right, top, bottom = (round(320 * v) for v in (x - w / 2, x + w / 2, y - h / 2, y + h / 2))
            assert 0 <= left < right <= 320 and 0 <= top < bottom <= 320
            box = pixels[top:bottom, left:right] > ground + 25
            assert box.mean() > 0.15 and all(
                side.any() for side in (box[:4], box[-4:], box[:, :4], box[:, -4:])
            )


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_demo_trains_and_its_model_opens_again_without_network(python, tmp_path, module):
    data = write_digits(tmp_path / "digits", train=16, val=4)
    words = ("--module", module, "--epochs", 1, "--imgsz", 64, "--data", data)
    process, attempts = python("-m", "lska_ops", "demo", *words)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert not attempts.exists(), attempts.read_text()
    said = dict(re.findall(r"^(weights|curves|pictures|mAP50|seconds/step): +(\S+)", output, re.M))
    assert set(said) == {"weights", "curves", "pictures", "mAP50", "seconds/step"}
    assert os.path.getsize(said["weights"]) and os.path.getsize(said["curves"])
    assert "bus.jpg" in os.listdir(said["pictures"]) and 0 <= float(said["mAP50"]) <= 1

    code = (
        "import sys\n{first}\nfrom ultralytics import YOLO\n"
        "result = YOLO(sys.argv[1]).predict(sys.argv[2], imgsz=64, conf=1e-4, verbose=False)[0]\n"
        "print('boxes', result.boxes.data.tolist())\n"
    )
    picture, boxes = check_data(data)["val"][0], []
    for first in ("import lska_ops", "import lska_ops; lska_ops.register()", ""):
        process, attempts = python("-c", code.format(first=first), said["weights"], picture)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        boxes.append(re.search(r"^boxes (.*)$", output, re.M)[1])
    assert boxes[0] == boxes[1] == boxes[2] != "[]"


def test_demo_interrupted_says_where_the_checkpoint_is(python, tmp_path):
    data = write_digits(tmp_path / "digits", train=16, val=2)
    process, _ = python("-m", "lska_ops", "demo", "--epochs", 1000, "--imgsz", 32, "--data", data)
    last = tmp_path / "cwd" / "demo" / "train-LSKA" / "weights" / "last.pt"
    deadline = time.monotonic() + 300
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert output.rstrip().endswith(f"stopped; the last checkpoint is {last}"), output[-2000:]


def user_data(folder, train="0 0.5 0.5 0.2 0.2\n", names="names: {0: thing}\n"):
    for split, label in (("train", train), ("val", "0 0.5 0.5 0.2 0.2\n")):
        for kind in ("images", "labels"):
            (folder / "dataset" / split / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "dataset" / split / "images" / "a.jpg")
        if label is not None:
            (folder / "dataset" / split / "labels" / "a.txt").write_text(label)
    data = folder / "data.yaml"
    data.write_text("train: dataset/train/images\nval: dataset/val/images\n" + names)
    return data


def test_demo_data_check_accepts_boxes_polygons_and_background(tmp_path):
    polygon = "0 0.1 0.1 0.5 0.1 0.5 0.5\n\n"
    splits = check_data(user_data(tmp_path, "0 0.5 0.5 1 1\n" + polygon))
    assert [p.name for p in splits["train"]] == ["a.jpg"]
    Image.new("RGB", (32, 32)).save(tmp_path / "dataset" / "train" / "images" / "background.png")
    assert len(check_data(tmp_path / "data.yaml")["train"]) == 2


@pytest.mark.parametrize(
    "label, message",
    [
        (None, "none of the 1 train pictures has a label file; expected for example"),
        (
            "0 0.5 0.5 1.2 0.2\n",
            "line 1 is '0 0.5 0.5 1.2 0.2'; expected x, y, width and height as parts of the picture",
        ),
        ("0 0.5 0.5 0.2 0.2\n0 320 200 64 64\n", "line 2 is '0 320 200 64 64'; expected x, y"),
        ("1 0.5 0.5 0.2 0.2\n", "expected a class from 0 to 0"),
        ("0 0.5 0.5 0.2\n", "4 numbers; expected 5: class x y width height"),
        ("cat 0.5 0.5 0.2 0.2\n", "expected numbers: class x y width height"),
    ],
)
def test_demo_data_check_names_the_label(tmp_path, label, message):
    data = user_data(tmp_path, label)
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        check_data(data)
    assert str(error.value).startswith("data: ") and message in str(error.value)


def test_demo_reports_bad_data_in_one_line(python, tmp_path):
    process, _ = python("-m", "lska_ops", "demo", "--data", "nowhere.yaml")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2 and "Traceback" not in output
    assert re.search(r"^lska_ops: data: .*nowhere.yaml is not a file; expected a data YAML$", output, re.M)


@pytest.mark.parametrize("names, missing", [("", "names"), ("names: []\n", "names")])
def test_demo_data_check_names_a_missing_key(tmp_path, names, missing):
    with pytest.raises((ValueError, FileNotFoundError), match=missing):
        check_data(user_data(tmp_path, names=names))
