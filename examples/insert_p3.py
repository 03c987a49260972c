"""LSKA with a large kernel at P3 alone, the level of small objects: a model YAML of your own, trained.

    python insert_p3.py --data your_data.yaml

Without data it learns handwritten digits, which are made here.
"""

import argparse
from pathlib import Path

from ultralytics import YOLO

import lska_ops
from lska_ops.yolo.demo import RECIPE
from lska_ops.yolo.digits import write_digits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data YAML")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--pictures", type=int, default=640, help="training pictures of digits to make")
    args = parser.parse_args()

    rows = lska_ops.yolo.insert("yolo11n.yaml", "LSKA", after="P3", k_size=23)
    Path("yolo11n-P3.yaml").write_text(rows, encoding="utf-8")

    lska_ops.register()
    model = YOLO("yolo11n-P3.yaml")  # .load("yolo11n.pt") starts it from pretrained weights
    options = dict(data=args.data) if args.data else digits(args.pictures)
    options.update(epochs=args.epochs, imgsz=args.imgsz)
    model.train(**options)


def digits(pictures):
    """The digits, and how they are learnt in a few epochs; data of yours do better with the defaults."""
    data = write_digits("digits", train=pictures, val=max(pictures // 8, 1))
    return {**RECIPE, "data": str(data), "workers": 0}


if __name__ == "__main__":
    main()
