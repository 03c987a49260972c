"""The demo from start to end on a few scenes, its data, and the checks of a user's data."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lska_ops
from lska_ops.__main__ import main
from lska_ops.yolo import demo as demo_module
from lska_ops.yolo.data import DataError, check_data
from lska_ops.yolo.digits import write_digits

# Python imports sitecustomize before anything else: every attempt to reach a network is written down and
# refused.
NO_NETWORK = """
import os, socket
def refuse(*args, **kwargs):
    import traceback
    with open(os.environ["ATTEMPTS"], "a") as file: print(args[:1], *traceback.format_stack()[-8:-1], file=file)
    raise OSError("no network in this test")
socket.getaddrinfo = refuse
socket.create_connection = refuse
"""


@pytest.fixture
def python(tmp_path):
    """Starts a Python process in an empty directory without a network; gives (Popen, file of network attempts)."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
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


@pytest.mark.parametrize(
    "options, error",
    [
        ({"train": 0}, "train is 0; expected 1 or more"),
        ({"val": -1}, "val is -1; expected 1 or more"),
        ({"train": "a"}, "train is 'a'; expected an integer"),
        ({"val": 2.0}, r"val is 2\.0; expected an integer"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
    ],
)
def test_demo_data_of_no_scenes_is_refused(tmp_path, options, error):
    with pytest.raises((TypeError, ValueError), match=f"^write_digits: {error}$"):
        write_digits(tmp_path / "digits", **options)
    assert not (tmp_path / "digits").exists()


def test_demo_data_check_of_what_is_no_data_yaml(tmp_path):
    with pytest.raises(TypeError, match="^data: data is 5; expected the path of a data YAML$"):
        check_data(5)
    (tmp_path / "best.pt").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"best\.pt does not end in \.yaml; expected a data YAML$"):
        check_data(tmp_path / "best.pt")


def test_demo_boxes_are_tight_around_the_ink(tmp_path):
    for picture in check_data(write_digits(tmp_path, train=12, val=1))["train"]:
        pixels = np.asarray(Image.open(picture).convert("L"), float)
        ground = np.median(pixels)
        lines = (
            picture.parents[1]
            .joinpath("labels", picture.stem + ".txt")
            .read_text(encoding="utf-8")
            .split("\n")
        )
        for line in filter(None, lines):
            _, x, y, w, h = (float(word) for word in line.split())
            left, right, top, bottom = (round(320 * v) for v in (x - w / 2, x + w / 2, y - h / 2, y + h / 2))
            assert 0 <= left < right <= 320 and 0 <= top < bottom <= 320
            box = pixels[top:bottom, left:right] > ground + 25
            assert box.mean() > 0.15 and all(
                side.any() for side in (box[:4], box[-4:], box[:, :4], box[:, -4:])
            )


# The command in a process that keeps its model, and predicts with it after the training.
TRAIN = """
import sys
from lska_ops.__main__ import main
from lska_ops.yolo import demo
made, prepare = [], demo._work_offline
def prepare_and_watch(out):
    prepare(out)
    import ultralytics
    class Kept(ultralytics.YOLO):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)
    ultralytics.YOLO = Kept
demo._work_offline = prepare_and_watch
picture, *words = sys.argv[1:]
assert main(words) == 0
print('boxes', made[0].predict(picture, imgsz=64, conf=1e-4, verbose=False)[0].boxes.data.tolist())
"""

OPEN = """
import sys
{first}
from ultralytics import YOLO
result = YOLO(sys.argv[1]).predict(sys.argv[2], imgsz=64, conf=1e-4, verbose=False)[0]
print('boxes', result.boxes.data.tolist())
"""


def boxes_of(output):
    return re.search(r"^boxes (.*)$", output, re.M)[1]


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_demo_trains_and_its_model_opens_again_without_network(python, tmp_path, module):
    data = write_digits(tmp_path / "digits", train=48, val=4)  # three steps an epoch
    picture = check_data(data)["val"][0]
    words = ("demo", "--module", module, "--epochs", 1, "--imgsz", 64, "--data", data)
    process, attempts = python("-c", TRAIN, picture, *words)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert not attempts.exists(), attempts.read_text(encoding="utf-8")
    said = dict(re.findall(r"^(weights|curves|pictures|mAP50|seconds/step): +(\S+)", output, re.M))
    assert set(said) == {"weights", "curves", "pictures", "mAP50", "seconds/step"}
    assert os.path.getsize(said["weights"]) and os.path.getsize(said["curves"])
    assert "bus.jpg" in os.listdir(said["pictures"]) and 0 <= float(said["mAP50"]) <= 1
    assert float(said["seconds/step"]) > 0

    trained = boxes_of(output)
    assert trained != "[]"
    for first in ("import lska_ops", "import lska_ops; lska_ops.register()", ""):
        process, attempts = python("-c", OPEN.format(first=first), said["weights"], picture)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        assert boxes_of(output) == trained


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
    assert "Traceback" not in output


@pytest.fixture
def in_process(monkeypatch):
    """The demo inside this process leaves its environment and ultralytics as they were."""
    for name in ("YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_CONFIG_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    yield monkeypatch
    lska_ops.unregister()


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_demo_interrupted_early_does_not_name_an_old_checkpoint(in_process, tmp_path, capfd):
    data = write_digits(tmp_path / "digits", train=2, val=1)
    old = tmp_path / "out" / "train-LSKA" / "weights" / "last.pt"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier run")
    in_process.setattr("ultralytics.engine.model.Model.train", interrupted)  # before there is a trainer
    assert main(["demo", "--data", str(data), "--out", str(tmp_path / "out")]) == 130
    said = capfd.readouterr()
    assert said.out.rstrip().endswith("stopped before the first checkpoint") and not old.exists()
    assert "Traceback" not in said.err


def test_demo_interrupted_where_python_drops_it(in_process, tmp_path, capfd):
    told = []
    in_process.setattr(sys, "unraisablehook", told.append)

    class Deaf:
        def __del__(self):  # Python prints and forgets what is raised here
            signal.raise_signal(signal.SIGINT)

    def train(model, **options):
        Deaf()
        for callback in model.callbacks["on_train_batch_end"]:
            callback(None)
        raise AssertionError("the training goes on")

    data, before = write_digits(tmp_path / "digits", train=2, val=1), signal.getsignal(signal.SIGINT)
    in_process.setattr("ultralytics.engine.model.Model.train", train)
    assert main(["demo", "--data", str(data), "--out", str(tmp_path / "out")]) == 130
    assert (
        signal.getsignal(signal.SIGINT) is before and not told and "Traceback" not in capfd.readouterr().err
    )


def test_demo_interrupted_before_the_training(in_process, tmp_path, capfd):
    in_process.setattr(demo_module, "check_data", interrupted)
    assert main(["demo", "--data", "x.yaml", "--out", str(tmp_path)]) == 130
    said = capfd.readouterr()
    assert said.err == "\nlska_ops: stopped\n" and said.out == ""


def options_of_the_training(monkeypatch, tmp_path, *words):
    """What the demo hands to ultralytics' train()."""
    got = {}

    def train(model, **options):
        got.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("ultralytics.engine.model.Model.train", train)
    monkeypatch.setattr(
        demo_module, "write_digits", lambda out: write_digits(tmp_path / "made", train=2, val=1)
    )
    main(["demo", "--out", str(tmp_path / "out"), *map(str, words)])
    return got


def test_demo_recipe_is_for_the_digits_only(in_process, tmp_path):
    options = options_of_the_training(in_process, tmp_path)
    assert (options["epochs"], options["imgsz"], options["mosaic"]) == (7, 160, 0.0)
    data = tmp_path / "made" / "digits.yaml"
    options = options_of_the_training(in_process, tmp_path, "--data", data)
    assert not {"epochs", "imgsz", "mosaic", "batch"} & set(options)
    options = options_of_the_training(in_process, tmp_path, "--data", data, "--epochs", 3, "--imgsz", 96)
    assert (options["epochs"], options["imgsz"]) == (3, 96)


@pytest.mark.parametrize(
    "words, message",
    [
        (("--epochs", "0"), "demo: epochs is 0; expected an integer of at least 1"),
        (("--imgsz", "0"), "demo: imgsz is 0; expected an integer of at least 32"),
        (("--device", "0,1"), "demo: device is 0,1; expected cpu"),
        (("--device", "99"), "demo: device is 99; expected cpu"),
        (("--device", "gpu"), "demo: device is gpu; expected cpu"),
    ],
)
def test_demo_refuses_arguments_in_one_line(capfd, tmp_path, words, message):
    assert main(["demo", "--out", str(tmp_path / "out"), *words]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"lska_ops: {message}") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_demo_without_scikit_learn_writes_nothing(in_process, tmp_path, capfd):
    in_process.setitem(sys.modules, "sklearn.datasets", None)  # as if it were not installed
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    assert said == 'lska_ops: demo: scikit-learn is not installed; pip install "lska_ops[demo]"\n'
    assert not (tmp_path / "out").exists()


def test_demo_example_says_what_its_data_lacks():
    script = Path(__file__).parents[1] / "examples" / "train.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    last = done.stderr.rstrip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("data: ") and "dataset/val/images" in last and "Note" not in last


def test_demo_does_not_hide_a_bug_in_the_training(in_process, tmp_path):
    def broken(*args, **kwargs):
        raise ValueError("a bug")

    data = write_digits(tmp_path / "digits", train=2, val=1)
    in_process.setattr("ultralytics.engine.model.Model.train", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["demo", "--data", str(data), "--out", str(tmp_path / "out")])


def user_data(folder, train="0 0.5 0.5 0.2 0.2\n", names="names: {0: thing}\n"):
    for split, label in (("train", train), ("val", "0 0.5 0.5 0.2 0.2\n")):
        for kind in ("images", "labels"):
            (folder / "dataset" / split / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "dataset" / split / "images" / "a.jpg")
        if label is not None:
            content = label if isinstance(label, bytes) else label.encode()
            (folder / "dataset" / split / "labels" / "a.txt").write_bytes(content)
    data = folder / "data.yaml"
    data.write_text("train: dataset/train/images\nval: dataset/val/images\n" + names, encoding="utf-8")
    return data


def refused(data, message):
    """One line that begins with data: and says `message`."""
    with pytest.raises(DataError) as error:
        check_data(data)
    said = str(error.value)
    assert said.startswith("data: ") and message in said and "\n" not in said, said


def test_demo_data_check_accepts_boxes_polygons_and_background(tmp_path):
    splits = check_data(user_data(tmp_path, "0 0.1 0.1 0.5 0.1 0.5 0.5\n\n"))
    assert [p.name for p in splits["train"]] == ["a.jpg"]
    (tmp_path / "dataset" / "train" / "labels" / "a.txt").write_text(
        "0 0.5 0.5 1 1\n0 0.1 0.1 0.2 0.2\n", encoding="utf-8"
    )
    check_data(tmp_path / "data.yaml")
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
        ("nan 0.5 0.5 0.2 0.2\n", "line 1 is 'nan 0.5 0.5 0.2 0.2'; expected a class from 0 to 0"),
        ("inf 0.5 0.5 0.2 0.2\n", "expected a class from 0 to 0"),
        ("0 nan 0.5 0.2 0.2\n", "expected x, y, width and height as parts of the picture"),
        ("0 0.5 0.5 inf 0.2\n", "expected x, y, width and height as parts of the picture"),
        ("0 0.5 0.5 0 0.2\n", "a box without area; expected width and height above 0"),
        ("0 0.5 0.1 0.5 0.5 0.5 0.9\n", "a box without area"),
        (
            "0 0.5 0.5 1 1\n0 0.1 0.1 0.5 0.1 0.5 0.5\n",
            "line 2 is '0 0.1 0.1 0.5 0.1 0.5 0.5' in a file of boxes and",
        ),
        (b"0 0.5 0.5 0.2 0.2\n\xff\xfe\n", "line 2 has the bytes b'\\xff'; expected UTF-8 text"),
    ],
)
def test_demo_data_check_names_the_label(tmp_path, label, message):
    data = user_data(tmp_path, label)
    refused(data, message)


def test_demo_reports_bad_data_in_one_line(python, tmp_path):
    process, _ = python("-m", "lska_ops", "demo", "--data", "nowhere.yaml")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2 and "Traceback" not in output
    assert re.search(r"^lska_ops: data: .*nowhere.yaml is not a file; expected a data YAML$", output, re.M)


FOLDERS = b"train: dataset/train/images\nval: dataset/val/images\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (FOLDERS, "has no key names"),
        (FOLDERS + b"names: []\n", "line 3: names is []; expected a list of class names"),
        (FOLDERS + b"names:\n", "line 3: names is None; expected a list of class names"),
        (FOLDERS + b"names: thing\n", "line 3: names is 'thing'; expected a list of class names"),
        (FOLDERS + b"names: {0: a, 2: b}\n", "expected the numbers 0 to 1 as keys"),
        (FOLDERS + b"names: {a: 0}\n", "expected the numbers 0 to 0 as keys"),
        (FOLDERS + b"nc: 2\nnames: [a]\n", "line 3: nc is 2; expected 1, the number of names"),
        (FOLDERS + b"nc: many\n", "line 3: nc is 'many'; expected the number of classes"),
        (
            b"train: dataset/train/images\nval: 3\nnames: [a]\n",
            "line 2: val is 3; expected a folder, a list file",
        ),
        (b"train:\nval: dataset/val/images\nnames: [a]\n", "line 1: train is None; expected a folder"),
        (
            b"train: [1, 2]\nval: dataset/val/images\nnames: [a]\n",
            "line 1: train is [1, 2]; expected a folder",
        ),
        (b"val: dataset/val/images\nnames: [a]\n", "has no key train"),
        (b"train: dataset/train/images\nnames: [a]\n", "has no key val"),
        (FOLDERS + b"names: [a]\npath: 3\n", "line 4: path is 3; expected a folder"),
        (b"- train\n- val\n", "is a list; expected a mapping"),
        (b"", "is empty; expected a mapping"),
        (b"train: [dataset\nval: x\n", "is no YAML ("),
        (b"train: caf\xe9\n", "line 1 has the bytes b'\\xe9'; expected UTF-8 text"),
        (b"train: \x07\n", "is no YAML ("),
        (
            b"train: dataset/nowhere\nval: dataset/val/images\nnames: [a]\n",
            "dataset/nowhere, which does not exist",
        ),
        (b"train: dataset/train/images\nval: dataset/nowhere\nnames: [a]\n", "dataset/nowhere"),
    ],
    ids=str,
)
def test_demo_data_check_names_the_key(tmp_path, content, message):
    data = user_data(tmp_path)
    data.write_bytes(content)
    refused(data, message)


def test_demo_data_check_reads_list_files_as_ultralytics_does(tmp_path, monkeypatch):
    from ultralytics.data.dataset import YOLODataset

    data = user_data(tmp_path)
    listing = tmp_path / "lists" / "train.txt"
    listing.parent.mkdir()
    data.write_text(f"train: {listing}\nval: dataset/val/images\nnames: [a]\n", encoding="utf-8")
    absolute = tmp_path / "dataset" / "train" / "images" / "a.jpg"
    (tmp_path / "lists" / "images").mkdir()
    (tmp_path / "lists" / "images" / "b.jpg").write_bytes(absolute.read_bytes())
    monkeypatch.chdir(tmp_path)
    listing.write_text(f"./images/b.jpg\n\ndataset/train/images/a.jpg\n{absolute}\n", encoding="utf-8")
    pictures = [str(picture) for picture in check_data(data)["train"]]
    reader = YOLODataset.__new__(YOLODataset)
    reader.prefix, reader.fraction = "", 1.0
    assert sorted(pictures) == sorted(os.path.normpath(file) for file in reader.get_img_files(str(listing)))

    listing.write_text(
        "dataset/train/images/a.jpg\nimages/b.jpg\n", encoding="utf-8"
    )  # not from the list's folder
    refused(data, f"{listing} line 2 is 'images/b.jpg', which does not exist; expected a picture")
