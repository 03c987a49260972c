"""Train YOLO11 with ACmix on all GPUs of a machine, one process on each.

    python several_gpus.py --data your_data.yaml

This needs two NVIDIA GPUs or more and a PyTorch with NCCL. Where there is one it trains on that, where there
is none on the CPU, and says so. Without data it learns handwritten digits, made here.
"""

import argparse

import torch
from ultralytics import YOLO

import lska_ops
from lska_ops.yolo.digits import write_digits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data YAML")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16, help="pictures per GPU")
    parser.add_argument("--pictures", type=int, default=640, help="training pictures of digits to make")
    args = parser.parse_args()

    gpus = torch.cuda.device_count()
    device = list(range(gpus)) if gpus > 1 else 0 if gpus else "cpu"
    if gpus < 2:
        where = "it" if gpus else "the CPU"
        print(f"several_gpus: {gpus} GPUs are visible, two are needed; one process trains on {where}")

    # ultralytics starts a process per GPU from the model's YAML; each of them registers by itself.
    lska_ops.register()
    model = YOLO("yolo11n-ACmix.yaml")
    data = args.data or str(write_digits("digits", train=args.pictures, val=max(args.pictures // 8, 1)))
    # batch counts the pictures of all GPUs together.
    batch = args.batch * max(gpus, 1)
    model.train(data=data, epochs=args.epochs, imgsz=args.imgsz, batch=batch, device=device)


if __name__ == "__main__":  # the other processes import nothing of this file, but the loader's may
    main()
