"""The public function :func:`lska`: checks, autocast, choice of the backend."""

from functools import partial

import torch
import torch.nn.functional as F

from .. import _backends
from .._calls import (
    check_map,
    check_number,
    check_pair,
    first_misfit,
    follow_autocast,
    misfit,
    needs_grad,
    shape_of,
    without_autocast,
)
from .._watchers import exporting
from . import compiled, reference

_backends.WHY_NOT["lska"] = {
    "cuda": compiled.why_not_cuda,
    "triton": compiled.why_not_triton,
    "cpu": compiled.why_not_cpu,
    "reference": _backends.why_not_reference,
}

NAMES = ("conv0h", "conv0v", "conv_spatial_h", "conv_spatial_v", "conv1")
OPTIONAL = ("conv_spatial_h", "conv_spatial_v")


def lska(x, conv0h, conv0v, conv_spatial_h, conv_spatial_v, conv1, *, dilation, backend="auto"):
    """Large separable kernel attention: a gate made by four depthwise 1-D convolutions and a 1x1 convolution.

    ``y = x * conv1(conv_spatial_v(conv_spatial_h(conv0v(conv0h(x)))))``, where conv0h is 1xk0, conv0v k0x1,
    conv_spatial_h 1xk1 and conv_spatial_v k1x1 with ``dilation``, all depthwise and zero-padded to keep H and
    W. The receptive field is ``k0 + (k1 - 1) * dilation`` a side.

    Paper: Lau, Po & Rehman, "Large Separable Kernel Attention", 2023, arXiv:2309.01439.

    Args:
        x: map ``[B, C, H, W]``, float64, float32, float16 or bfloat16, any strides, H and W from 1 up.
        conv0h: ``(weight [C, 1, 1, k0], bias [C] or None)``, k0 odd.
        conv0v: ``(weight [C, 1, k0, 1], bias)``.
        conv_spatial_h: ``(weight [C, 1, 1, k1], bias)``, k1 odd; None together with conv_spatial_v for the
            paper's LSKA-trivial, which has only the first pair.
        conv_spatial_v: ``(weight [C, 1, k1, 1], bias)`` or None.
        conv1: ``(weight [C, C, 1, 1], bias)``.
        dilation: pixels between the taps of the second pair.
        backend: "auto" takes the fastest that accepts the call; a name takes that one or raises.

    Returns:
        Tensor ``[B, C, H, W]``, dtype of x (under autocast: autocast's dtype).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape or option does not fit; the message names argument, got and expected.
        RuntimeError: the backend asked for by name declines; the message is its reason.

    Numerics: `cpu` sums in float32 (float64 for float64) and rounds once, at the end. `cuda` sums in float32
        and rounds to the dtype of x behind the cascade, behind the 1x1 product and at the end (backward:
        behind the gate's gradient, behind the product and at the end), so that the product runs on tensor
        cores; how that sums is PyTorch's setting, TF32 and reduced precision included. `triton` rounds at the
        same places but for y, which the product reaches unrounded, and sums in float32 whatever PyTorch's
        setting: float32 without tensor cores; of the half dtypes in NCHW the cascade by products of bfloat16
        pairs, off by 2^-16. A weight of zero that meets NaN or infinity gives NaN, as in PyTorch. `reference`
        rounds after each convolution, as PyTorch does. Sums have a fixed order: results repeat bit by bit,
        whatever the number of threads.

        Under autocast each weight is cast once a call, and backward takes what was cast.

    Memory: `cuda` and `triton` compute and answer in x's layout, NCHW or channels_last; a map with gaps, and
        a gradient of y in another layout, they copy once. `cuda`, `triton` and `cpu` keep two maps of the
        size of x for backward (`cpu` one for the half dtypes), `reference` six. While it runs, `triton` holds
        one more map in float32, backward two and two of x's dtype, and for the weights' gradients numbers of
        float32: up to ``16 C^2``, or half a million where that is more, and ``16 C (2 r + 1) max(H, W)``,
        where r pixels are the reach of both kernels to one side. `cpu` keeps up to 8 MB of scratch memory for
        each thread that calls it.
    """
    pairs = (conv0h, conv0v, conv_spatial_h, conv_spatial_v, conv1)
    for name, pair in zip(NAMES, pairs, strict=False):
        if pair is not None or name not in OPTIONAL:
            check_pair("lska", name, pair)
    weights = [t for pair in pairs for t in pair or (None, None)]
    x, weights = follow_autocast(x, weights)
    if not exporting():
        _check(x, weights, [pair is not None for pair in pairs], dilation)
    name = _backends.choose("lska", backend, x)
    with without_autocast(x.device.type):
        if name == "reference":
            return reference.gate(x, *_convolutions(weights, dilation))
        if needs_grad((x, *weights)):
            return _Lska.apply(name, dilation, x, *weights)[0]
        return _op("fwd", name)(x, *weights, dilation, False)[0]


def _op(direction, backend):
    return getattr(torch.ops.lska_ops, f"lska_{direction}_{backend}")


class _Lska(torch.autograd.Function):
    """Outside the registered op: recording is cheaper than through the op's own autograd key."""

    @staticmethod
    def forward(backend, dilation, x, *weights):
        return _op("fwd", backend)(x, *weights, dilation, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.backend, ctx.dilation, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx, grad_y, _):
        product, x, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the second derivative is the reference's
            return None, None, *_differentiable_grads((x, *weights), ctx.dilation, grad_y)
        grads = _op("bwd", ctx.backend)(grad_y, x, product, *weights, ctx.dilation)
        return (
            None,
            None,
            *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad[2:], strict=True)),
        )


def _differentiable_grads(tensors, dilation, grad_y):
    """The gradients in operations that can be differentiated once more."""
    x, *weights = tensors
    y = reference.gate(x, *_convolutions(weights, dilation))
    inputs = [t for t in tensors if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(y, inputs, grad_y, create_graph=True))
    return [next(grads) if t is not None and t.requires_grad else None for t in tensors]


def _convolutions(weights, dilation):
    """The reference's callables: conv1, then the stages that are there."""
    *stages, conv1 = zip(NAMES, weights[::2], weights[1::2], strict=True)
    calls = [partial(F.conv2d, weight=conv1[1], bias=conv1[2])]
    for name, weight, bias in stages:
        if weight is not None:
            d = dilation if name in OPTIONAL else 1
            options = dict(padding=(weight.shape[2] // 2 * d, weight.shape[3] // 2 * d), dilation=d)
            calls.append(partial(F.conv2d, weight=weight, bias=bias, groups=weight.shape[0], **options))
    return calls


def _check(x, weights, given, dilation):
    check_map("lska", x)
    check_number("lska", "dilation", dilation)
    if given[2] != given[3]:
        missing = OPTIONAL[given[2]]
        raise ValueError(f"lska: {missing} is None; expected both of the dilated pair, or neither")
    C, k0, k1 = x.shape[1], _taps(weights[0]), _taps(weights[4])
    bias = (C,)
    dilated = ((C, 1, 1, k1), bias, (C, 1, k1, 1), bias) if given[2] else (None,) * 4
    shapes = ((C, 1, 1, k0), bias, (C, 1, k0, 1), bias, *dilated, (C, C, 1, 1), bias)
    if (i := first_misfit(x, weights, shapes)) is not None:
        name, expected = NAMES[i // 2], None if i % 2 else _in_words(NAMES[i // 2], C, shapes[i][2])
        misfit("lska", f"{name} {'bias' if i % 2 else 'weight'}", weights[i], shapes[i], x, expected)


def _taps(row):
    """k of a row's weight, where it is odd."""
    k = shape_of(row)[-1:]
    return k[0] if k and k[0] % 2 == 1 else 1


def _in_words(name, C, k):
    """The shape that is expected of a weight."""
    if name == "conv1":
        return f"[C, C, 1, 1] with C = {C}"
    if name.endswith("h"):
        return f"[C, 1, 1, k] with C = {C} and k odd"
    return f"[{C}, 1, {k}, 1], as long as {name[:-1]}h"
