"""Instance segmentation: yolo11n-seg with LSKA in front of its head.

    python segment.py --data your_data.yaml

Without data it learns discs and triangles, which are drawn here.
"""

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw
from ultralytics import YOLO

import lska_ops

SIDE = 160  # pixels of a drawn picture


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data YAML whose labels are polygons")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--imgsz", type=int, default=SIDE)
    parser.add_argument("--pictures", type=int, default=320, help="training pictures to draw")
    args = parser.parse_args()

    rows = lska_ops.yolo.insert("yolo11n-seg.yaml", "LSKA", after=["P3", "P4", "P5"], k_size=23)
    Path("yolo11n-LSKA-seg.yaml").write_text(rows, encoding="utf-8")

    lska_ops.register()
    model = YOLO("yolo11n-LSKA-seg.yaml", task="segment")  # .load("yolo11n-seg.pt") if you have it
    options = dict(data=args.data) if args.data else shapes(args.pictures)
    model.train(epochs=args.epochs, imgsz=args.imgsz, **options)


def shapes(pictures):
    """The drawn data, and how they are learnt in a few epochs; data of yours do better with the defaults."""
    folder = Path("shapes").resolve()
    rng = random.Random(0)
    for split, count in (("train", pictures), ("val", max(pictures // 8, 1))):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture, labels = draw(rng)
            picture.save(folder / split / "images" / f"{i}.png")
            (folder / split / "labels" / f"{i}.txt").write_text(labels, encoding="utf-8")
    data = folder / "shapes.yaml"
    data.write_text(
        f"path: {folder}\ntrain: train/images\nval: val/images\nnames: [triangle, disc]\n", encoding="utf-8"
    )
    return dict(data=str(data), batch=16, nbs=16, optimizer="AdamW", lr0=0.003, mosaic=0.0, workers=0)


def draw(rng):
    """A picture of 3 shapes, and its labels: a class, then x and y of each corner as parts of the picture."""
    picture = Image.new("RGB", (SIDE, SIDE), (rng.randrange(90),) * 3)
    lines = []
    for place in rng.sample([(40, 40), (120, 40), (40, 120), (120, 120)], 3):
        corners, radius, turn = rng.choice((3, 24)), rng.uniform(20, 38), rng.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
        outline = [(place[0] + radius * math.cos(a), place[1] + radius * math.sin(a)) for a in angles]
        ImageDraw.Draw(picture).polygon(outline, fill=tuple(rng.randrange(120, 256) for _ in "RGB"))
        numbers = " ".join(f"{v / SIDE:.6f}" for corner in outline for v in corner)
        lines.append(f"{int(corners == 24)} {numbers}\n")
    return picture, "".join(lines)


if __name__ == "__main__":
    main()
