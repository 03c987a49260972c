"""Fine-tune YOLO11 with LSKA from pretrained weights: it begins as exactly the detector they are of.

    python finetune.py --weights yolo11n.pt --data your_data.yaml

Without weights a plain yolo11n is trained first; without data both learn handwritten digits, made here.
"""

import argparse
from pathlib import Path

from ultralytics import YOLO

import lska_ops
from lska_ops.yolo.demo import RECIPE
from lska_ops.yolo.digits import write_digits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a trained yolo11n")
    parser.add_argument("--data", help="a data YAML")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--pictures", type=int, default=640, help="training pictures of digits to make")
    args = parser.parse_args()
    options = dict(data=args.data) if args.data else digits(args.pictures)
    options.update(epochs=args.epochs, imgsz=args.imgsz)

    plain = YOLO(args.weights or "yolo11n.yaml")
    if not args.weights:
        plain.train(**options)
        plain = YOLO(plain.trainer.best)

    lska_ops.register()
    rows = lska_ops.yolo.insert("yolo11n.yaml", "LSKA", after=["P3", "P4", "P5"])
    # As many classes as the weights have: of another number the class branch would begin anew.
    rows = rows.replace("nc: 80", f"nc: {len(plain.names)}")
    Path("yolo11n-mine.yaml").write_text(rows, encoding="utf-8")
    model = YOLO("yolo11n-mine.yaml").load(plain.ckpt_path)  # the log says which tensors arrived
    model.train(**options)


def digits(pictures):
    """The digits, and how they are learnt in a few epochs; data of yours do better with the defaults."""
    data = write_digits("digits", train=pictures, val=max(pictures // 8, 1))
    return {**RECIPE, "data": str(data), "workers": 0}


if __name__ == "__main__":
    main()
