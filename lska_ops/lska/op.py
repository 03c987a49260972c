"""The public function :func:`lska`: checks, autocast, choice of the backend."""

from functools import partial

import torch.nn.functional as F

from .. import _backends
from .._calls import check_map, check_number, check_pair, check_parameter, follow_autocast, shape_of
from . import reference

NAMES = ("conv0h", "conv0v", "conv_spatial_h", "conv_spatial_v", "conv1")


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

    Numerics: `reference` rounds to the dtype of x after each convolution, as PyTorch does.

    Memory: `reference` keeps six maps of the size of x for backward.
    """
    pairs = (conv0h, conv0v, conv_spatial_h, conv_spatial_v, conv1)
    given = [name for name, pair in zip(NAMES, pairs, strict=False) if pair is not None]
    for name, pair in zip(NAMES, pairs, strict=False):
        if name in given or not name.startswith("conv_spatial"):
            check_pair("lska", name, pair)
    flat = [t for pair in pairs if pair is not None for t in pair]
    x, flat, spent = follow_autocast(x, flat)
    pairs = {name: (flat[2 * i], flat[2 * i + 1]) for i, name in enumerate(given)}
    if not _backends.exporting():
        _check(x, pairs, dilation)
    _backends.choose("lska", backend, x)
    with spent:
        return reference.lska(x, *_convolutions(pairs, dilation))


def _convolutions(pairs, dilation):
    """The reference's five callables; None for a pair that is not there."""
    calls = []
    for name in NAMES:
        if name not in pairs:
            calls.append(None)
            continue
        weight, bias = pairs[name]
        if name == "conv1":
            calls.append(partial(F.conv2d, weight=weight, bias=bias))
            continue
        d = dilation if name.startswith("conv_spatial") else 1
        padding = (weight.shape[2] // 2 * d, weight.shape[3] // 2 * d)
        calls.append(
            partial(F.conv2d, weight=weight, bias=bias, padding=padding, dilation=d, groups=weight.shape[0])
        )
    return calls


def _check(x, pairs, dilation):
    check_map("lska", x)
    check_number("lska", "dilation", dilation)
    C = x.shape[1]
    if ("conv_spatial_h" in pairs) != ("conv_spatial_v" in pairs):
        missing = "conv_spatial_v" if "conv_spatial_h" in pairs else "conv_spatial_h"
        raise ValueError(f"lska: {missing} is None; expected both of the dilated pair, or neither")
    for name, (weight, bias) in pairs.items():
        shape = shape_of(weight)
        if name == "conv1":
            fits, expected = shape == (C, C, 1, 1), f"[C, C, 1, 1] with C = {C}"
        elif name.endswith("h"):
            fits = len(shape) == 4 and shape[:3] == (C, 1, 1) and shape[3] % 2 == 1
            expected = f"[C, 1, 1, k] with C = {C} and k odd"
        else:
            row = name[:-1] + "h"
            k = shape_of(pairs[row][0])[3]
            fits, expected = shape == (C, 1, k, 1), f"[{C}, 1, {k}, 1], as long as {row}"
        check_parameter("lska", f"{name} weight", weight, x, fits=fits, expected=expected)
        if bias is not None:
            check_parameter("lska", f"{name} bias", bias, x, fits=shape_of(bias) == (C,), expected=f"[{C}]")
