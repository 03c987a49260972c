"""Seeded bugs in the Triton kernels, each of which the interpreter's problems have to catch.

    python tests/triton_mutants.py [part of a name] [--tenth N]

Works on a copy of the package in a temporary folder, two bugs at a time.
"""

import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import seeded
from seeded import Mutant

FIRST, PROBLEMS = 800_000, 8
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
    Mutant("map read beyond its end", KERNELS, "taken = (pos < L) & (at >= 0) & (at < L) & (q < end)", "taken = (pos < L) & (q < end)"),
    Mutant(
        "bias of the first column",
        KERNELS,
        "line += b0 * tl.load(other_edge + channel * M + other, mask=other < M, other=0)",
        "line += b0",
    ),
    Mutant("band not turned", KERNELS, "at = pos - delta if TURNED", "at = pos + delta if TURNED"),
    Mutant("low half left out", KERNELS, "_dot(a_high, b_low, _dot(a_low, b_high, acc))", "acc"),
    Mutant(
        "gate without bias",
        KERNELS,
        "acc += tl.load(bias + m, mask=m < C, other=0).to(tl.float32)[:, None]",
        "acc += 0.0",
    ),
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
    Mutant("parts dropped", BACKWARD, "(start + u < splits)", "(start + u < 1)"),
    Mutant("bias through the dilated pair", BACKWARD, "+ tl.sum(passed)", ""),
    Mutant("the other's taps", BACKWARD, "acc0 += found * w1", "acc0 += found"),
    Mutant("gate's part of grad_x", KERNELS, "acc += tl.load(grad_y + plane + at", "acc = tl.load(grad_y + plane + at"),
]  # fmt: skip
SHIFT, LAST = "triton_kernels_shift.py", "triton_kernels_last.py"
ACMIX = [
    Mutant("corner's multiplicity", KERNELS, "return direct + first + last", "return direct + first"),
    Mutant("border row reflected too", KERNELS, "tl.minimum(i, 2 * (L - 1) - i)", "tl.minimum(i, 2 * L - 1 - i)"),
    Mutant("last column of the window", KERNELS, "for tap_x in range(K):", "for tap_x in range(K - (K > 1)):"),
    Mutant("softmax's sum not scaled", KERNELS, "total * shrink + weight", "total + weight"),
    Mutant("lse in other units", KERNELS, "top + tl.log(total)", "1.4427 * (top + tl.log(total))"),
    Mutant("no positions", KERNELS, "logit = SCALE * (sums + (", "logit = SCALE * (sums + 0 * ("),
    Mutant("rate1 in the gradient of v", BACKWARD, "    grad_v *= rate\n", ""),
    Mutant("delta in the gradient of k", BACKWARD, "(weight * (products - delta))", "(weight * products)"),
    Mutant("delta in the positions' gradient", BACKWARD, "(far_x - delta * mean_x)", "far_x"),
    Mutant("queries not counted often", BACKWARD, "times.to(tl.float32) * tl.exp", "tl.exp"),
    Mutant("last row of queries", BACKWARD, "for nth_y in range(rows):", "for nth_y in range(rows - (rows > 1)):"),
    Mutant("channel order of the shift", SHIFT, "(image * C + d * G + heads)", "(image * C + heads * D + d)"),
    Mutant("rate2 in the shift", SHIFT,
           "    total *= tl.load(rate2).to(tl.float32)\n    at = (image * C", "    at = (image * C"),
    Mutant("taps turned around", SHIFT, "KC // 2 - tap // KC, here_x", "tap // KC - KC // 2, here_x"),
    Mutant("one image of the batch", SHIFT, "image, n = nth // blocks,", "image, n = nth // blocks * 0,"),
    Mutant("parts of one split", LAUNCH, "parts.sum(0) if splits > 1 else parts[0]", "parts[0]"),
    Mutant("gradient between queries", LAUNCH, "if stride > 1 and before", "if stride > 8 and before"),
]  # fmt: skip
ACMIX += [
    Mutant("channels_last: k's gradient of the weights", LAST, "of_k += sent", "of_k += 0 * sent"),
]  # fmt: skip
OP = {mutant: op for op, mutants in (("lska", LSKA), ("acmix", ACMIX)) for mutant in mutants}


def solve(op, package, problems):
    """The exit status of the problems with the kernels in `package`, a folder.

    Triton's files are imported when a call first asks for them, so that all else is imported before, once.
    """
    sys.modules[f"lska_ops.{op}"].__path__ = [str(package)]
    return problems(f"{op}:backward:{FIRST}:{PROBLEMS}")


def caught(ended):
    """How the problems caught a bug, or None."""
    if ended.status < 0:
        return f"signal {-ended.status}"
    if ended.status > 1:
        sys.exit(f"the problems did not run:\n{ended.said}")
    return ended.said.strip().splitlines()[-1] if ended.status else None


def main(*words):
    began, mutants = time.monotonic(), seeded.chosen(list(OP), words)
    if not mutants:
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="triton_mutants_") as name:
        folder, ignore = Path(name), shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(seeded.ROOT / "lska_ops", folder / "lska_ops", ignore=ignore)
        sys.path.insert(0, name)
        sys.dont_write_bytecode = True  # which would outlive the bug
        import triton_interpreter

        # Small ones, and each solved once.
        triton_interpreter.MOST_PIXELS = triton_interpreter.FEW_PIXELS
        triton_interpreter.REPEATED = PROBLEMS + 1

        def task(op, mutant=None):
            package = folder / f"{op}_{mutants.index(mutant) if mutant else 'unchanged'}"
            shutil.copytree(folder / "lska_ops" / op, package)
            if mutant:
                file = package / mutant.file
                file.write_text(seeded.with_bug(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
            return partial(solve, op, package, triton_interpreter.main)

        ops = sorted({OP[mutant] for mutant in mutants})
        for op, ended in zip(ops, seeded.forked([task(op) for op in ops]), strict=True):
            if how := caught(ended):
                sys.exit(f"{op}: the unchanged kernels are wrong: {how}")
        results = map(caught, seeded.forked(task(OP[mutant], mutant) for mutant in mutants))
        return seeded.judge(mutants, results, OP.get, began)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
