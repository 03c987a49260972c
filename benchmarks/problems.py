"""The rows of the benchmarks, and their inputs; peers.py has who computes them."""

import contextlib
import copy
import itertools
from typing import NamedTuple

import torch

import lska_ops
from lska_ops.acmix.reference import acmix as plain_acmix
from lska_ops.lska.reference import cascade as plain_cascade
from lska_ops.lska.reference import gate as plain_gate
from lska_ops.testing import CASES, Case


class Row(NamedTuple):
    """One line of work: what is computed (named like the registered ops), where, for how many images."""

    kind: str  # lska_cascade_fwd, lska_fwd, lska_fwd_bwd, lska_train, acmix_fwd, acmix_fwd_bwd or acmix_train
    case: Case
    B: int
    k: int  # LSKA's receptive field, ACmix's window

    @property
    def id(self):
        return f"{self.kind}[{self.case.id}-k{self.k}-B{self.B}]"

    @property
    def op(self):
        return self.kind.split("_")[0]

    @property
    def backward(self):
        return self.kind.endswith("bwd") or self.train

    @property
    def train(self):
        """Forward and backward as in training: weights of float32 under autocast, maps in channels_last."""
        return self.kind.endswith("_train")


_BY_ID = {case.id: case for case in CASES}
YOLO11N = tuple(_BY_ID[f"yolo11n_p{level}"] for level in (3, 4, 5))
X_P3 = _BY_ID["yolo11x_p3"]
SIZES = (7, 23, 53)
# Max-autotune takes longer than all else of a row: LSKA's is measured at this k, ACmix's at this B.
AUTOTUNED_K, AUTOTUNED_B = 23, 16

ROWS = {
    "lska": tuple(
        Row(kind, case, B, k)
        for kind, batches in (("lska_cascade_fwd", (1,)), ("lska_fwd", (1, 4)), ("lska_fwd_bwd", (1, 4)))
        for B in batches
        for case in (*YOLO11N, *((X_P3,) if B == 1 else ()))
        for k in SIZES
    ),
    "acmix": tuple(
        Row(kind, case, B, 7) for kind, B in (("acmix_fwd", 1), ("acmix_fwd_bwd", 2)) for case in YOLO11N
    ),
}
YOLO11X = tuple(_BY_ID[f"yolo11x_p{level}"] for level in (3, 4, 5))
KINDS = {"lska": ("lska_cascade_fwd", "lska_fwd", "lska_fwd_bwd"), "acmix": ("acmix_fwd", "acmix_fwd_bwd")}
TRAIN = {op: (f"{op}_train",) for op in KINDS}
# Within a group the middle, then the ends.
SIZES_ON_GPU = {"lska": (AUTOTUNED_K, 53, 7), "acmix": (7,)}


def rows_on_gpu():
    """The rows on a GPU with their dtypes, the most wanted first: what a time budget cuts is the tail.

    Training comes before all else: float16, channels_last, under autocast. In each group the two ops take
    turns, so that neither's rows stand behind all of the other's.
    """
    training = [(TRAIN, cases, 16, "fp16") for cases in (YOLO11N, YOLO11X)]
    wanted = [  # cases, B, dtype
        (YOLO11N, 16, "fp16"), (YOLO11N, 1, "fp16"), (YOLO11X, 16, "fp16"), (YOLO11N, 16, "bf16"),
        (YOLO11N, 16, "fp32"), (YOLO11N, 64, "fp16"), (YOLO11X, 1, "fp16"), (YOLO11X, 64, "fp16"),
        (YOLO11X, 16, "bf16"), (YOLO11N, 1, "bf16"), (YOLO11N, 1, "fp32"), (YOLO11X, 16, "fp32"),
        (YOLO11N, 64, "bf16"), (YOLO11X, 1, "bf16"), (YOLO11N, 64, "fp32"), (YOLO11X, 1, "fp32"),
        (YOLO11X, 64, "bf16"), (YOLO11X, 64, "fp32"),
    ]  # fmt: skip
    return tuple(
        (row, dtype)
        for kinds, cases, B, dtype in [*training, *((KINDS, *group) for group in wanted)]
        for turn in itertools.zip_longest(*(_group(op, kinds[op], cases, B) for op in KINDS))
        for row in turn
        if row
    )


def _group(op, kinds, cases, B):
    return [Row(kind, case, B, k) for k in SIZES_ON_GPU[op] for kind in kinds for case in cases]


# One of each kind, none of the large ones: that the benchmark runs, not how fast anything is.
QUICK = (
    "lska_cascade_fwd[yolo11n_p4-k23-B1]",
    "lska_fwd[yolo11n_p4-k23-B1]",
    "lska_fwd_bwd[yolo11n_p5-k7-B4]",
    "acmix_fwd[yolo11n_p5-k7-B1]",
    "acmix_fwd_bwd[yolo11n_p5-k7-B2]",
)


class Problem:
    """Inputs of one row, the same for every provider, and the module that holds the weights."""

    def __init__(self, row, dtype, device):
        torch.manual_seed(0)
        self.row, C = row, row.case.C
        module = lska_ops.LSKA(C, row.k) if row.op == "lska" else lska_ops.ACmix(C, kernel_att=row.k)
        if row.op == "acmix":  # the initial shifts and equal rates would hide mistakes
            with torch.no_grad():
                for p in (module.rate1, module.rate2, module.dep_conv.weight):
                    p.normal_()
        shape = (row.B, C, row.case.H, row.case.W)
        self.module = module.to(device, dtype)
        self.x = torch.randn(shape).to(device, dtype).requires_grad_(row.backward)
        self.grad_y = torch.randn(shape).to(device, dtype)
        if row.train:
            vars(self).update(vars(self.like(memory_format=torch.channels_last)))
            self.module.float()  # numbers that autocast does not round: the truth is that of rounded inputs

    def like(self, **to):
        """The same values as another dtype or in another memory format."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).to(**to)
        other.x = self.x.detach().to(**to).requires_grad_(self.row.backward)
        other.grad_y = self.grad_y.to(**to)
        return other

    def autocast(self):
        """What its functions are called in."""
        device, dtype = self.x.device.type, self.x.dtype
        half = dtype in (torch.float16, torch.bfloat16)
        return torch.autocast(device, dtype) if self.row.train and half else contextlib.nullcontext()

    def last(self, images):
        """Its last images alone, with the very same weights."""
        other = copy.copy(self)
        other.x = self.x.detach()[-images:].requires_grad_(self.row.backward)
        other.grad_y = self.grad_y[-images:]
        return other

    def absolute(self):
        other = self.like(dtype=self.x.dtype)
        for p in other.module.parameters():
            p.data.abs_()
        other.x, other.grad_y = self.x.detach().abs().requires_grad_(self.row.backward), self.grad_y.abs()
        return other

    def names(self):
        """What a run returns, in order."""
        return ("y", "x", *(n for n, _ in self.module.named_parameters())) if self.row.backward else ("y",)

    def plain(self, x):
        """The reference on PyTorch's own convolutions, as a model without this package computes it."""
        m = self.module
        if self.row.op == "acmix" and self.row.train:  # as published, autocast would round the positions
            return lska_ops.acmix(x, *self.pairs(), m.rate1, m.rate2, **self.options(), backend="reference")
        if self.row.op == "acmix":
            convs = (m.conv1, m.conv2, m.conv3, m._position, m.fc, m.dep_conv)
            # As published, which makes the position map anew in each call.
            return plain_acmix(x, *convs, m.rate1, m.rate2, **self.options())
        convs = (m.conv0h, m.conv0v, m.conv_spatial_h, m.conv_spatial_v)
        if self.row.kind == "lska_cascade_fwd":
            return plain_cascade(x, *convs)
        return plain_gate(x, m.conv1, *convs)

    def runner(self, function):
        """The row's whole work with `function` (x -> y) as a call without arguments; returns `names()`."""
        if not self.row.backward:

            def run():
                with torch.inference_mode():
                    return (function(self.x),)

            return run
        inputs = (self.x, *self.module.parameters())

        def run():
            with self.autocast():
                y = function(self.x)
            # Whose positions are coordinates' differences has no use for conv_p's bias: its gradient is zero.
            grads = torch.autograd.grad(y, inputs, self.grad_y, allow_unused=True, materialize_grads=True)
            return (y, *grads)

        return run

    def tensors(self):
        """x and the parameters by name, without a graph."""
        return {n: t.detach() for n, t in (("x", self.x), *self.module.named_parameters())}

    def options(self):
        """What ACmix takes beside tensors."""
        m = self.module
        return dict(head=m.head, kernel_att=m.kernel_att, stride=m.stride, dilation=m.dilation)

    def pairs(self):
        m = self.module
        if self.row.op == "acmix":
            convs = (m.conv1, m.conv2, m.conv3, m.conv_p, m.fc, m.dep_conv)
        else:
            convs = (m.conv0h, m.conv0v, m.conv_spatial_h, m.conv_spatial_v, m.conv1)
        return [(c.weight, c.bias) for c in convs]

    def minimal_bytes(self):
        """What no implementation can avoid moving: forward reads x and writes y; backward reads x and
        grad_y and writes grad_x; each pass reads the weights, and backward writes their gradients."""
        m, maps = self.module, 2 + 3 * self.row.backward
        used = [
            p for n, p in m.named_parameters() if "cascade" not in self.row.kind or not n.startswith("conv1.")
        ]
        return maps * self.x.nbytes + (1 + 2 * self.row.backward) * sum(p.nbytes for p in used)
