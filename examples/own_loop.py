"""LSKA and ACmix as layers of your own network, in your own training loop; no ultralytics.

    python own_loop.py

A classifier of handwritten digits, the 1,797 that scikit-learn brings along.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import lska_ops


class Classifier(nn.Sequential):
    def __init__(self, classes=10):
        super().__init__(
            *convolution(1, 32, stride=1),
            lska_ops.LSKA(32, k_size=7),
            *convolution(32, 64, stride=2),
            lska_ops.ACmix(64, kernel_att=3, head=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, classes),
        )


def convolution(before, after, stride):
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    digits = load_digits()
    pictures = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32, device=device)
    labels = torch.tensor(digits.target, device=device)
    order = torch.randperm(len(labels), device=device)
    train, held_out = order[360:], order[:360]

    model = Classifier().to(device)
    print(lska_ops.explain("lska", torch.empty(args.batch, 32, 8, 8, device=device)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(args.epochs):
        model.train()
        for batch in train[torch.randperm(len(train), device=device)].split(args.batch):
            loss = F.cross_entropy(model(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            right = (model(pictures[held_out]).argmax(1) == labels[held_out]).float().mean()
        print(f"epoch {epoch + 1}: {100 * right:.1f} % of the held-out digits are right")


if __name__ == "__main__":
    main()
