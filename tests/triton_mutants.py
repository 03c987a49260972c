"""Seeded bugs in the Triton kernels, each of which the interpreter's problems have to catch.

    python tests/triton_mutants.py [part of a name]

Works on a copy of the package in a temporary folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants import Mutant

TESTS = Path(__file__).resolve().parent
FIRST, PROBLEMS = 800_000, 12
KERNELS, BACKWARD, LAUNCH = "triton_kernels.py", "triton_kernels_backward.py", "triton_launch.py"
LSKA = [
    Mutant("last tap dropped", KERNELS, "for t in range(n1):", "for t in range(tl.maximum(n1 - 1, 1)):"),
    Mutant("wrong dilation", LAUNCH, "d = min(dilation, L)", "d = min(dilation + 1, L)"),
    Mutant(
        "stage's output beyond the border",
        KERNELS,
        "there = (middle >= 0) & (middle < L)",
        "there = (middle >= -1) & (middle < L)",
    ),
    Mutant("map read beyond its end", KERNELS, "on_map = (pos < L) & (at >= 0) & (at < L)", "on_map = pos < L"),
    Mutant(
        "bias of the first column",
        KERNELS,
        "line += b0 * tl.load(other_edge + channel * M + other, mask=other < M, other=0)",
        "line += b0",
    ),
    Mutant("band not turned", KERNELS, "at = pos - delta if TURNED", "at = pos + delta if TURNED"),
    Mutant("low half left out", KERNELS, "_dot(a_high, b_low, _dot(a_low, b_high, acc))", "acc"),
    Mutant("gate without bias", KERNELS, "    if GATE:\n        if HAS_BIAS:", "    if GATE:\n        if KEEP and HAS_BIAS:"),
    Mutant(
        "mix transposed",
        BACKWARD,
        "weight + k[None, :] * C + m[:, None]",
        "weight + m[:, None] * C + k[None, :]",
    ),
    Mutant("one image of the batch", BACKWARD, "range(split, B * pieces, splits)", "range(split, pieces, splits)"),
    Mutant(
        "Gram matrix of one image", BACKWARD,
        "        acc = tl.zeros([BT, BT], tl.float32)\n        for image in range(split, B, splits)",
        "        acc = tl.zeros([BT, BT], tl.float32)\n        for image in range(split, split + 1)",
    ),
    Mutant("parts dropped", BACKWARD, "for _ in range(splits):", "for _ in range(1):"),
    Mutant("bias through the dilated pair", BACKWARD, "+ tl.sum(passed)", ""),
    Mutant("the other's taps", BACKWARD, "acc0 += found * w1", "acc0 += found"),
    Mutant("gate's part of grad_x", KERNELS, "acc += tl.load(grad_y + plane + at", "acc = tl.load(grad_y + plane + at"),
]  # fmt: skip
GROUPS = (("lska", LSKA),)


def caught(op, folder):
    """How the problems catch what is in the folder, or None."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, TESTS / "triton_interpreter.py", op, "backward", str(FIRST), str(PROBLEMS)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode == 0:
        return None
    if run.returncode < 0:
        return f"signal {-run.returncode}"
    said = (run.stdout + run.stderr).strip().splitlines()
    if "times the bound" not in said[-1] and "another result" not in said[-1]:
        sys.exit(f"the problems did not run:\n{run.stderr}")
    return said[-1]


def main(part=""):
    start, survivors = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="triton_mutants_") as name:
        folder = Path(name)
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(TESTS.parent / "lska_ops", folder / "lska_ops", ignore=ignore)
        for op, mutants in GROUPS:
            if how := caught(op, folder):
                sys.exit(f"{op}: the unchanged kernels are wrong: {how}")
            for mutant in mutants:
                if part not in mutant.name:
                    continue
                file = folder / "lska_ops" / op / mutant.file
                text = file.read_text()
                if text.count(mutant.right) != 1:
                    found = text.count(mutant.right)
                    sys.exit(f"{op}, {mutant.name}: occurs {found} times in {mutant.file}; expected once")
                file.write_text(text.replace(mutant.right, mutant.wrong))
                how = caught(op, folder)
                file.write_text(text)
                survivors += how is None
                print(f"{op:6} {mutant.name:40} {f'killed by {how}' if how else 'SURVIVED'}", flush=True)
    print(f"{survivors} survived; {time.monotonic() - start:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
