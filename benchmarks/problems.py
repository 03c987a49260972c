"""The rows of the benchmarks, and who computes them: our backends, plain PyTorch, and yardsticks."""

import contextlib
import copy
from typing import NamedTuple

import torch

import lska_ops
from lska_ops import _backends
from lska_ops.acmix.reference import acmix as plain_acmix
from lska_ops.lska.reference import cascade as plain_cascade
from lska_ops.lska.reference import gate as plain_gate
from lska_ops.testing import CASES, Case


class Row(NamedTuple):
    """One line of work: what is computed (named like the registered ops), where, for how many images."""

    kind: str  # lska_cascade_fwd, lska_fwd, lska_fwd_bwd, acmix_fwd or acmix_fwd_bwd
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
        return self.kind.endswith("bwd")


_BY_ID = {case.id: case for case in CASES}
YOLO11N = tuple(_BY_ID[f"yolo11n_p{level}"] for level in (3, 4, 5))
X_P3 = _BY_ID["yolo11x_p3"]
SIZES = (7, 23, 53)
AUTOTUNED_K = 23  # torch.compile's max-autotune takes longer than everything else of a row

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
KINDS = ("lska_cascade_fwd", "lska_fwd", "lska_fwd_bwd")


def rows_on_gpu():
    """LSKA's rows on a GPU with their dtypes, the most wanted first: what a time budget cuts is the tail."""
    wanted = [  # cases, B, dtype
        (YOLO11N, 16, "fp16"), (YOLO11N, 1, "fp16"), (YOLO11X, 16, "fp16"), (YOLO11N, 16, "bf16"),
        (YOLO11N, 16, "fp32"), (YOLO11N, 64, "fp16"), (YOLO11X, 1, "fp16"), (YOLO11X, 64, "fp16"),
        (YOLO11X, 16, "bf16"), (YOLO11N, 1, "bf16"), (YOLO11N, 1, "fp32"), (YOLO11X, 16, "fp32"),
        (YOLO11N, 64, "bf16"), (YOLO11X, 1, "bf16"), (YOLO11N, 64, "fp32"), (YOLO11X, 1, "fp32"),
        (YOLO11X, 64, "bf16"), (YOLO11X, 64, "fp32"),
    ]  # fmt: skip
    return tuple(
        (Row(kind, case, B, k), dtype)
        for cases, B, dtype in wanted
        for k in (AUTOTUNED_K, 53, 7)  # within a group the middle, then the ends
        for kind in KINDS
        for case in cases
    )


# One of each kind, none of the large ones: that the benchmark runs, not how fast anything is.
QUICK = (
    "lska_cascade_fwd[yolo11n_p4-k23-B1]",
    "lska_fwd[yolo11n_p4-k23-B1]",
    "lska_fwd_bwd[yolo11n_p5-k7-B4]",
    "acmix_fwd[yolo11n_p5-k7-B1]",
    "acmix_fwd_bwd[yolo11n_p5-k7-B2]",
)


class Declined(Exception):
    """A provider does not run this row; the message says why."""


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

    def like(self, **to):
        """The same values as another dtype or in another memory format."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).to(**to)
        other.x = self.x.detach().to(**to).requires_grad_(self.row.backward)
        other.grad_y = self.grad_y.to(**to)
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
        if self.row.op == "acmix":
            convs = (m.conv1, m.conv2, m.conv3, m._position, m.fc, m.dep_conv)
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
            y = function(self.x)
            return (y, *torch.autograd.grad(y, inputs, self.grad_y))

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


def eager(problem):
    return problem, problem.plain


def channels_last(problem):
    other = problem.like(memory_format=torch.channels_last)
    return other, other.plain


def compiled(problem):
    """torch.compile of the reference, NCHW, static shapes, whole graph; compiled by its first call."""
    import torch._inductor.config

    torch._dynamo.reset()
    if problem.x.device.type == "cpu":
        torch._inductor.config.compile_threads = 1  # no pool of workers beside the measurement
    return problem, torch.compile(problem.plain, fullgraph=True, dynamic=False)


def compiled_max(problem):
    """The same with its kernels chosen by measurement; a CUDA graph's replay of it is graph_ms."""
    if problem.row.k != AUTOTUNED_K:
        raise Declined(f"measured at k = {AUTOTUNED_K} alone, for its compile time")
    options = dict(fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
    return problem, torch.compile(problem.plain, **options)


def ours(name):
    def provider(problem):
        row, m, pairs = problem.row, problem.module, problem.pairs()
        if row.op == "acmix":
            options = problem.options()

            def function(x):
                return lska_ops.acmix(x, *pairs, m.rate1, m.rate2, **options, backend=name)
        else:
            dilation = m.conv_spatial_h.dilation[1]

            def function(x):
                return lska_ops.lska(x, *pairs, dilation=dilation, backend=name)

        _ask(name, function, problem.x)
        return problem, cascade_by(name, problem) if row.kind == "lska_cascade_fwd" else function

    return provider


def cascade_by(name, problem):
    """The depthwise stages alone, which no public function offers: the backend's registered op."""
    op = getattr(torch.ops.lska_ops, f"lska_cascade_fwd_{name}", None)
    if op is None:
        raise Declined(
            f"torch.ops.lska_ops.lska_cascade_fwd_{name} is not registered; it times whole calls only"
        )
    flat = [t for pair in problem.pairs()[:4] for t in pair]
    return lambda x: op(x, *flat, problem.module.conv_spatial_h.dilation[1])


def _ask(name, function, x):
    """Declined with the backend's own sentence, where it does not take this call."""
    try:
        with torch.inference_mode():
            function(x)
    except RuntimeError as error:
        _, declined, reason = str(error).partition(f"backend {name!r} declined: ")
        if declined:
            raise Declined(reason) from None
        raise


OURS = tuple(name for name in _backends.ORDER if name != "reference")
PYTORCH = {"eager": eager, "eager channels_last": channels_last, "torch.compile": compiled}


def providers():
    """{name: provider}; a provider takes a Problem, returns its own form of it and the function x -> y."""
    return {**{name: ours(name) for name in OURS}, **PYTORCH}


def autotuned():
    """What is compared with on a GPU besides."""
    return {"torch.compile max-autotune": compiled_max}


def yardsticks(problem, backends):
    """{name: run} of what else results are compared with; `backends` are those of ours that run here."""
    row, x = problem.row, problem.x.detach()
    target, source = torch.empty(2, problem.minimal_bytes() // 2, dtype=torch.int8, device=x.device).fill_(1)
    runs = {"copy": lambda: target.copy_(source)}  # reads and writes the row's minimal bytes, half and half
    if row.kind != "lska_fwd":
        return runs
    weight, flat = problem.module.conv1.weight.detach().flatten(1), x.flatten(2)
    runs["1x1 product"] = lambda: torch.matmul(weight, flat)
    for name in backends:
        with contextlib.suppress(Declined):
            runs[f"{name} cascade"] = problem.runner(cascade_by(name, problem))
    return runs
