"""Train YOLO11 with LSKA on your own pictures.

Put them in ``dataset/train/{images,labels}`` and ``dataset/val/{images,labels}`` beside this file, write your
class names into coco128.yaml, and run ``python train.py``. For ACmix take ``yolo11n-ACmix.yaml``.
"""

import sys
from pathlib import Path

from ultralytics import YOLO

import lska_ops
from lska_ops.yolo.data import DataError, check_data

DATA = Path(__file__).resolve().with_name("coco128.yaml")

if __name__ == "__main__":
    try:
        check_data(DATA)  # which label file and line is wrong, said before anything is trained
    except DataError as error:
        sys.exit(str(error))
    lska_ops.register()  # the one line that stock ultralytics needs
    model = YOLO("yolo11n-LSKA.yaml")  # or s, m, l, x
    model.train(data=str(DATA), epochs=100, imgsz=640, batch=8, workers=1)
