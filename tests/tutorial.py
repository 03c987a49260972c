"""The main job of those who follow a tutorial, done as they do it: its folders, its YAML, its train.py.

    python tests/tutorial.py FOLDER [--epochs 1] [--article TEXT]

Writes digits in the tutorial's folders, `lska-ops enable`s this environment, and for LSKA and ACmix runs the
tutorial's own `train.py`, which has no line of ours, then validates and predicts with what was trained. An
article's text is read for its YAML and train.py; without one ours are written, with the same rows. Says which
backend ran; ends with 1 where a step fails or plain PyTorch ran.
"""

import argparse
import csv
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lska_ops.yolo import demo, startup
from lska_ops.yolo.digits import write_digits

CFG = Path(startup.__file__).with_name("cfg")
OPS = {"LSKA": "lska", "ACmix": "acmix"}
SCENES = {"train": 64, "val": 16}
# What a reader with two cores and no GPU changes in train.py.
CHANGED = {"epochs=100": "epochs={epochs}", "imgsz=640": "imgsz=160", "device=0": "device='cpu'"}
TRAIN = """from ultralytics import YOLO

if __name__ == '__main__':
    model = YOLO('yolo11-{module}.yaml')  # 从配置文件建立模型
    model.train(data='coco128.yaml', epochs=100, imgsz=640, batch=8, device=0, workers=1)
"""
# ultralytics 8.3.0 takes a folder that is not absolute from its own folder of data sets.
DATA = """# 数据集配置
path: {folder}  # 数据集所在的文件夹
train: train/images  # 训练集
val: val/images  # 验证集

nc: 10  # 类别数
names: ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']
"""
PREDICT = """import sys
from pathlib import Path

import torch
from ultralytics import YOLO

if __name__ == "__main__":
    op, weights = sys.argv[1:]
    model = YOLO(weights)
    pictures = sorted(Path("dataset/val/images").glob("*.jpg"))[:2]
    with torch.profiler.profile() as seen:
        results = model.predict(pictures, imgsz=160, device="cpu", save=True, verbose=False)
    assert len(results) == len(pictures) and Path(results[0].save_dir).is_dir()
    ours = sorted({e.key for e in seen.key_averages() if e.key.startswith(f"lska_ops::{op}")})
    print("backend:", ", ".join(ours) or "plain PyTorch")
    sys.exit(not ours)
"""


def blocks_of(path):
    """(the model YAML, train.py) of an article: its fenced blocks that have `backbone:` and YOLO(...)."""
    article = path.read_text(encoding="utf-8").replace("\xa0", " ")  # a web page's spaces
    blocks = re.findall(r"^```\w*\n(.*?)^```", article, re.S | re.M)
    found = [[b for b in blocks if re.search(start, b, re.M)] for start in (r"^backbone:", r"\bYOLO\(")]
    if [len(of_kind) for of_kind in found] != [1, 1]:
        raise SystemExit(
            f"tutorial: {path} has {[*map(len, found)]} model YAMLs and train.py; expected one each"
        )
    return found[0][0], found[1][0]


def own(module):
    """The same for a module, with the comments that a reader's YAML has."""
    rows = (CFG / f"yolo11-{module}.yaml").read_text(encoding="utf-8")
    return re.sub(rf"({module}, \[\]\].*)", r"\1 检测头之前的注意力", rows), TRAIN.format(module=module)


def changed(train, epochs):
    for old, new in CHANGED.items():
        if train.count(old) != 1:
            raise SystemExit(f"tutorial: train.py has {old} {train.count(old)} times; expected it once")
        train = train.replace(old, new.format(epochs=epochs))
    return train


def write(folder, module, text, epochs):
    """A reader's folder `train` for one module."""
    write_digits(folder, **SCENES).unlink()  # the reader's own data YAML is written below
    for split in SCENES:
        names = "".join(f"{i}\n" for i in range(10))
        (folder / "dataset" / split / "labels" / "classes.txt").write_text(names, encoding="utf-8")
    model, train = text
    files = {
        f"yolo11-{module}.yaml": model,
        "train.py": changed(train, epochs),
        "coco128.yaml": DATA.format(folder=folder / "dataset"),
        "训练说明.txt": "python train.py\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder.parent / "predict.py").write_text(PREDICT, encoding="utf-8")


def step(what, folder, *command):
    print(f"\n--- {what}: {' '.join(map(str, command))}", flush=True)
    code = subprocess.run([sys.executable, *map(str, command)], cwd=folder).returncode
    if code:
        raise SystemExit(f"tutorial: {what} ended with exit code {code}")


def run(folder, module, epochs):
    step("train", folder, "train.py")
    made = folder / "runs" / "detect" / "train"
    with open(made / "results.csv", encoding="utf-8", newline="") as table:
        rows = [{name.strip(): value for name, value in row.items()} for row in csv.DictReader(table)]
    losses = [float(value) for row in rows for name, value in row.items() if "loss" in name]
    assert len(rows) == epochs and losses and all(map(math.isfinite, losses)), rows
    weights = made / "weights" / "best.pt"
    cli = "from ultralytics.cfg import entrypoint; entrypoint()"
    options = (f"model={weights}", "data=coco128.yaml", "imgsz=160", "device=cpu", "workers=0")
    step("val", folder, "-c", cli, "detect", "val", *options)
    step("predict", folder, folder.parent / "predict.py", OPS[module], weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--article", type=Path, action="append", default=[], help="a tutorial's text")
    args = parser.parse_args()
    given = {}
    for path in args.article:
        model, train = blocks_of(path)
        given[re.search(r"yolo11-(\w+)\.yaml", train)[1]] = model, train
    root = args.folder.resolve() / "研究 目录"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    os.environ["PYTHONUNBUFFERED"] = "1"  # ours and theirs in order
    demo._work_offline(root)
    from ultralytics import settings

    was_off = startup.status().startswith("off")
    startup.enable()
    try:
        for module in OPS:
            folder = root / module / "train"
            settings.update(
                {"runs_dir": str(folder / "runs")}
            )  # else it is where ultralytics was first imported
            write(folder, module, given.get(module) or own(module), args.epochs)
            run(folder, module, args.epochs)
            print(f"{module}: {'the article' if module in given else 'our'} YAML and train.py, done")
    finally:
        if was_off:
            startup.disable()


if __name__ == "__main__":
    main()
