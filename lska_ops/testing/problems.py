"""Random problems of every op, and how far a backend's answers are from the bound.

``python -m lska_ops.testing.problems lska cpu 123`` solves one problem again and prints every ratio; at most
1 passes.
"""

import random
import sys
from dataclasses import dataclass

import torch

from .._backends import ORDER, choose
from . import acmix, halves, lska

DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
OPS = {
    "lska": lska,
    "acmix": acmix,
    "local_attention": halves.LOCAL_ATTENTION,
    "shift_aggregate": halves.SHIFT_AGGREGATE,
}


@dataclass
class Problem:
    """One call: ``tensors`` are the map and the weights by name (None where a bias is missing)."""

    op: str
    seed: int
    dtype: torch.dtype
    layout: str
    tensors: dict
    options: dict
    grad_y: torch.Tensor

    def repro(self, backend):
        shapes = {n: tuple(t.shape) for n, t in self.tensors.items() if t is not None}
        return (
            f"python -m lska_ops.testing.problems {self.op} {backend} {self.seed}  "
            f"# {self.dtype}, {self.layout}, {self.options}, {shapes}"
        )


def random_problem(op, seed):
    """The problem of this number: any shape, dtype, layout and options the op takes, quickly checked."""
    choice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype = choice.choice(DTYPES)
    tensors, options, grad_y = OPS[op].draw(choice, generator)
    rounded = {n: None if t is None else t.to(dtype) for n, t in tensors.items()}
    layout, first = choice.choice(list(LAYOUTS)), next(iter(rounded))
    rounded[first] = LAYOUTS[layout](rounded[first])
    return Problem(op, seed, dtype, layout, rounded, options, grad_y.to(dtype))


def _sliced(x):
    B, C, H, W = x.shape
    wide = x.new_full((B, C + 1, H + 2, W + 3), torch.nan)
    wide[:, 1:, 1:-1, 2:-1] = x
    return wide[:, 1:, 1:-1, 2:-1]


def _offset(x):
    flat = x.new_full((x.numel() + 5,), torch.nan)
    flat[5:] = x.flatten()
    return flat[5:].view_as(x)


# The same values in other strides, with NaN in every gap that a kernel must not read.
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "offset": _offset,
    "expanded": lambda x: x[:1].expand_as(x),
}


def solve(problem, backend, backward=True):
    """The backend's answers by name: y, and with ``backward`` the gradient of every tensor."""
    given = {n: None if t is None else t.detach() for n, t in problem.tensors.items()}
    if not backward:
        return {"y": OPS[problem.op].call(given, problem.options, backend)}
    inputs = {n: t.requires_grad_() for n, t in given.items() if t is not None}
    y = OPS[problem.op].call(given, problem.options, backend)
    grads = torch.autograd.grad(y, list(inputs.values()), problem.grad_y)
    return {"y": y, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}


def ratios(problem, answers, backend="cpu"):
    """``{answer: |out - r| / bound}`` with this backend's bound; see :func:`lska_ops.testing.error_ratio`."""
    exact = {n: None if t is None else t.detach().double() for n, t in problem.tensors.items()}
    grad_y = problem.grad_y.double() if len(answers) > 1 else None
    return OPS[problem.op].ratios(answers, exact, problem.options, grad_y, backend)


def main(*words):
    if len(words) != 3 or words[0] not in OPS or words[1] not in ORDER or not words[2].isdecimal():
        got = " ".join(words) or "nothing"
        expected = f"an op ({', '.join(OPS)}), a backend ({', '.join(ORDER)}) and a number"
        print(f"problems: arguments are {got}; expected {expected}, as in lska cpu 123", file=sys.stderr)
        return 2
    op, backend, seed = words
    problem = random_problem(op, int(seed))
    try:
        choose(op, backend, next(iter(problem.tensors.values())))
    except RuntimeError as error:  # the backend declines
        print(f"problems: {error}", file=sys.stderr)
        return 2
    print(problem.repro(backend))
    found = ratios(problem, solve(problem, backend), backend)
    for name, ratio in found.items():
        print(f"{name:24} {ratio:.3f}{'' if ratio <= 1 else '  WRONG'}")
    return int(max(found.values()) > 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
