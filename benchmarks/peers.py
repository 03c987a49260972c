"""Who computes the rows: our backends, plain PyTorch, and yardsticks.

A provider takes a Problem and returns its own form of it and the function x -> y; what it makes before is not
timed.
"""

import contextlib

import torch
from acmix_peers import NATTEN, Declined, cached_position, flex_attention, natten
from goals import FLEX
from problems import AUTOTUNED_B, AUTOTUNED_K

import lska_ops
from lska_ops import _backends


def eager(problem):
    """NCHW, where training is measured too."""
    own = problem.like(memory_format=torch.contiguous_format) if problem.row.train else problem
    return own, own.plain


def channels_last(problem):
    other = problem.like(memory_format=torch.channels_last)
    return other, other.plain


def compiled(problem):
    """torch.compile of the reference, static shapes, whole graph; compiled by its first call."""
    import torch._inductor.config

    torch._dynamo.reset()
    if problem.x.device.type == "cpu":
        torch._inductor.config.compile_threads = 1  # no pool of workers beside the measurement
    return problem, torch.compile(problem.plain, fullgraph=True, dynamic=False)


def compiled_max(problem):
    """The same with its kernels chosen by measurement; a CUDA graph's replay of it is graph_ms."""
    row = problem.row
    if row.train:
        raise Declined(f"measured in {row.op}_fwd_bwd alone, for its compile time")
    if row.op == "lska" and row.k != AUTOTUNED_K:
        raise Declined(f"measured at k = {AUTOTUNED_K} alone, for its compile time")
    if row.op == "acmix" and row.B != AUTOTUNED_B:
        raise Declined(f"measured at B = {AUTOTUNED_B} alone, for its compile time")
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

        _ask(name, function, problem)
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


def _ask(name, function, problem):
    """Declined with the backend's own sentence, where it does not take this call."""
    try:
        with torch.inference_mode(), problem.autocast():
            function(problem.x)
    except RuntimeError as error:
        _, declined, reason = str(error).partition(f"backend {name!r} declined: ")
        if declined:
            raise Declined(reason) from None
        raise


OURS = tuple(name for name in _backends.ORDER if name != "reference")
PYTORCH = {"eager": eager, "eager channels_last": channels_last, "torch.compile": compiled}
ACMIX = {
    "eager, cached position": cached_position,
    FLEX: flex_attention,
    NATTEN: natten,
}


def providers(op):
    """{name: provider} of the rows of `op`."""
    return {**{name: ours(name) for name in OURS}, **PYTORCH, **(ACMIX if op == "acmix" else {})}


def autotuned():
    """What is compared with on a GPU besides."""
    return {"torch.compile max-autotune": compiled_max}


def role_of(name):
    """Of a provider: ours or pytorch, which compute what the row asks for, or another function."""
    return "ours" if name in OURS else "another function" if name == NATTEN else "pytorch"


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
