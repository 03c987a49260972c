"""Which backend runs a call, and in one sentence each why the others do not.

A backend answers ``why_not(x, **options) -> str | None`` in the form *what is so; what would help*. The same
sentences stand in errors, in :func:`explain`, in skipped tests and in ``python -m lska_ops doctor``.
"""

import os
import warnings

import torch

from . import _flops
from ._calls import check_map
from ._watchers import transform_without_rule, watched

# Fastest first. `reference` accepts everything, so it is last.
ORDER = ("cuda", "triton", "cpu", "reference")

ON_GPU = ("cuda", "triton")
ACCEPTED_NAMES = ("auto", *ORDER)

# {op: {backend: why_not}}, filled by each op's op.py
WHY_NOT = {}


_warned = False  # that a GPU has to make do with the reference: said once in a process


def why_not_reference(x, **options):
    return None


def _named_by_environment():
    return os.environ.get("LSKA_OPS_BACKEND")


# torch 2.3 cannot compile this question. Newer ones compile it anew when the answer changes.
_named_by_environment._dynamo_marked_constant = not hasattr(torch.compiler, "set_stance")


def choose(op, asked, x, **options):
    """The backend for this call: `asked`, or for "auto" LSKA_OPS_BACKEND, or else the first that accepts.

    options are the call's numbers on which a backend may decline; see the op's compiled.py.

    Raises:
        ValueError: `asked` (or the environment variable) is not a backend's name.
        RuntimeError: a backend asked for by name declines; the message is its reason (a NotImplementedError
            inside of torch.func's vmap or jvp, for which the fused ops have no rule).
    """
    if not torch.compiler.is_compiling():
        _flops.teach()
    source = "backend"
    if asked == "auto" and (named := _named_by_environment()):
        source, asked = "LSKA_OPS_BACKEND", named
    if asked not in ACCEPTED_NAMES:
        raise ValueError(f"{op}: {source} is {asked!r}; expected one of {', '.join(ACCEPTED_NAMES)}")
    if asked != "auto":
        if reason := WHY_NOT[op][asked](x, **options):
            by = "" if source == "backend" else f" ({source} asks for it; unset it to let every call choose)"
            raise RuntimeError(f"{op}: backend {asked!r} declined: {reason}{by}")
        if asked != "reference" and (active := transform_without_rule()):
            raise NotImplementedError(
                f"{op}: backend {asked!r} declined: {active} is active, which fused ops have no rule for; "
                'use backend="auto"'
            )
        return asked
    if watched(x):
        return "reference"
    # On a CPU Triton's slow interpreter would run, which may be on to debug other kernels: only by name.
    left_out = "triton" if x.device.type == "cpu" else None
    name = next(
        name for name, why_not in WHY_NOT[op].items() if name != left_out and why_not(x, **options) is None
    )
    if name == "reference" and x.device.type == "cuda":
        _warn_once(op, x, options)
    return name


def _warn_once(op, x, options):
    global _warned
    if not torch.compiler.is_compiling() and not _warned:
        _warned = True
        reasons = [f"{name}: {WHY_NOT[op][name](x, **options)}" for name in ON_GPU]
        warnings.warn(f"{op}: plain PyTorch computes on this GPU: {'. '.join(reasons)}", stacklevel=4)


def explain(op, x, **options):
    """One line per backend, fastest first: whether it would run ``op`` on ``x``, or why not.

    Args:
        op: ``"lska"``, ``"acmix"``, ``"local_attention"`` or ``"shift_aggregate"``.
        x: the input map ``[B, C, H, W]``.
        options: numbers on which acmix's backends may decline, as the call has them: head, dims (of a head),
            kernel_att, kernel_conv, stride, dilation. Without them, the published ones.

    Returns:
        str: for example ``"reference: yes (chosen)"``. Where LSKA_OPS_BACKEND asks for one that declines,
        none is chosen, and what a call would raise comes first.

    Raises:
        TypeError, ValueError: op is none of these, or x is no such map.
    """
    if op not in WHY_NOT:
        raise ValueError(f"explain: op is {op!r}; expected one of {', '.join(sorted(WHY_NOT))}")
    check_map("explain", x)
    lines = []
    try:
        chosen = choose(op, "auto", x, **options)
    except RuntimeError as error:  # LSKA_OPS_BACKEND asks for one that declines: a call would raise this
        chosen, lines = None, [str(error)]
    for name, why_not in WHY_NOT[op].items():
        reason = why_not(x, **options)
        lines.append(f"{name}: {'no, ' + reason if reason else 'yes'}{' (chosen)' if name == chosen else ''}")
    return "\n".join(lines)
