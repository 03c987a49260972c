"""ACmix's two halves on their own: :func:`local_attention` and :func:`shift_aggregate`."""

import torch

from .. import _backends
from .._calls import (
    check_map,
    check_pair,
    first_misfit,
    follow_autocast,
    misfit,
    needs_grad,
    without_autocast,
)
from .._watchers import exporting
from . import reference
from .op import check_options, core, in_format_of, position_of, position_shapes, shift_of, shift_shapes

# What runs ACmix runs either half.
for _half in ("local_attention", "shift_aggregate"):
    _backends.WHY_NOT[_half] = _backends.WHY_NOT["acmix"]


def local_attention(q, k, v, conv_p, *, head, kernel_att=7, stride=1, dilation=1, backend="auto"):
    """Self-attention of every pixel to the K x K window around it: ACmix's attention on its own.

    Softmax over the window of ``D^-1/2 q_i . (k_j + p_i - p_j)``, then the weighted sum of v, head by head
    (channel c is head c // D, dim c % D); ``p = conv_p(loc)``, loc the pixel's (x, y), each linear from -1 to
    1 over the map. Every pixel has K * K keys: beyond the border the map is reflected.

    Paper: Pan et al., "On the Integration of Self-Attention and Convolution", 2022, arXiv:2111.14556.

    Args:
        q: queries ``[B, C, H, W]``, float64, float32, float16 or bfloat16, any strides, H and W from 1 up.
        k: keys, same shape.
        v: values, same shape.
        conv_p: position ``(weight [D, 2, 1, 1], bias [D] or None)`` with D = C / G; None: no position term.
        head: number of heads G; divides C.
        kernel_att: window side K in taps, odd.
        stride: every stride-th pixel of every stride-th row is an output.
        dilation: pixels between the taps of the window.
        backend: "auto" takes the fastest that accepts the call; a name takes that one or raises.

    Returns:
        Tensor ``[B, C, ceil(H / stride), ceil(W / stride)]``, dtype of q (under autocast: autocast's dtype);
        in channels_last if q is, on the CPU by a copy.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape or option does not fit; the message names argument, got and expected.
        RuntimeError: the backend asked for by name declines; the message is its reason.

    Numerics: see :func:`lska_ops.acmix`.

    Memory: but for `reference` the three maps are read as one ``[B, 3C, H, W]``. Where they are the parts of
        such a tensor in NCHW or channels_last (``qkv.chunk(3, 1)``) that costs nothing; else, and always
        under torch.compile, they are copied into one. For backward it is kept, and one number per pixel and
        head; `reference` keeps about 2 K * K maps.
    """
    check_pair("local_attention", "conv_p", (None, None) if conv_p is None else conv_p)
    weight, bias = (None, None) if conv_p is None else conv_p
    q, (k, v, weight, bias) = follow_autocast(q, (k, v, weight, bias))
    options = dict(head=head, kernel_att=kernel_att, stride=stride, dilation=dilation)
    if not exporting():
        C = _check_map("local_attention", q)
        check_options("local_attention", C, "C", **options)
        shapes = position_shapes(C, head) if conv_p is not None else (None, None)
        _check("local_attention", q, k, v, {"conv_p": (weight, bias)}, shapes)
    sizes = dict(
        head=head, dims=q.shape[1] // head, kernel_att=kernel_att, kernel_conv=None, stride=stride,
        dilation=dilation,
    )  # fmt: skip
    name = _backends.choose("local_attention", backend, q, **sizes)
    with without_autocast(q.device.type):
        if name == "reference":
            position = None if conv_p is None else position_of(weight, bias)
            y = reference.attention(q, k, v, position, **options)
        else:
            if conv_p is None:
                weight = q.new_zeros(q.shape[1] // head, 2, 1, 1)
            q = _joined(q, k, v)
            y = core(q, weight, bias, None, None, q.new_ones(1), None, backend=name, **options)
    return in_format_of(q, y)


def shift_aggregate(q, k, v, fc, dep_conv, *, head, stride=1, backend="auto"):
    """Convolution of q, k and v by mixing and shifting their heads: ACmix's convolution on its own.

    ``y = dep_conv(fc(q, k, v))``: fc mixes the 3G maps of each of the D = C / G dims into K_c * K_c, dep_conv
    (grouped, one group per dim, zero padding) shifts and sums them to G maps; channel c of the result is dim
    c // G, head c % G, as published.

    Paper: Pan et al., "On the Integration of Self-Attention and Convolution", 2022, arXiv:2111.14556.

    Args:
        q: ``[B, C, H, W]``, float64, float32, float16 or bfloat16, any strides, H and W from 1 up.
        k: same shape.
        v: same shape.
        fc: ``(weight [K_c * K_c, 3G, 1, 1], None)``; it has no bias.
        dep_conv: ``(weight [C, K_c * K_c, K_c, K_c], None)``, K_c odd.
        head: number of heads G; divides C.
        stride: every stride-th pixel of every stride-th row is an output.
        backend: "auto" takes the fastest that accepts the call; a name takes that one or raises.

    Returns:
        Tensor ``[B, C, ceil(H / stride), ceil(W / stride)]``, dtype of q (under autocast: autocast's dtype);
        in channels_last if q is, on the CPU by a copy.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape or option does not fit; the message names argument, got and expected.
        RuntimeError: the backend asked for by name declines; the message is its reason.

    Numerics: `cpu`, `cuda` and `triton` round once to the dtype of q and compute everything between in
        float32 (`cpu` float64 for float64, which the others decline), in a fixed order; `reference` rounds
        after fc and after dep_conv.

    Memory: as for :func:`local_attention` the three maps are read as one, and copied where they are not; for
        backward only that is kept. `reference` keeps two copies of them and K_c * K_c / G maps.
    """
    for argument, pair in (("fc", fc), ("dep_conv", dep_conv)):
        check_pair("shift_aggregate", argument, pair)
    q, (k, v, *weights) = follow_autocast(q, (k, v, *fc, *dep_conv))
    fc, dep_conv = weights[:2], weights[2:]
    if not exporting():
        C = _check_map("shift_aggregate", q)
        check_options("shift_aggregate", C, "C", head, 1, stride, 1)
        shapes = shift_shapes("shift_aggregate", fc, dep_conv, C, head)
        _check("shift_aggregate", q, k, v, {"fc": fc, "dep_conv": dep_conv}, shapes)
    kernel_conv = dep_conv[0].shape[-1]
    sizes = dict(head=head, dims=q.shape[1] // head, kernel_att=1, kernel_conv=kernel_conv, stride=stride)
    name = _backends.choose("shift_aggregate", backend, q, **sizes)
    with without_autocast(q.device.type):
        if name == "reference":
            y = reference.shift_aggregate(q, k, v, *shift_of(fc[0], dep_conv[0], head, stride), head=head)
        else:
            q = _joined(q, k, v)
            options = dict(head=head, kernel_att=1, stride=stride, dilation=1)
            y = core(q, None, None, fc[0], dep_conv[0], None, q.new_ones(1), backend=name, **options)
    return in_format_of(q, y)


def _check_map(op, q):
    check_map(op, q, "q")
    return q.shape[1]


def _check(op, q, k, v, pairs, shapes):
    """k and v are maps like q, and the pairs' weights and biases have these shapes."""
    given = (k, None, v, None, *(t for pair in pairs.values() for t in pair))
    shapes = (q.shape, None, q.shape, None, *shapes)
    if (i := first_misfit(q, given, shapes)) is not None:
        names = ("k", "", "v", "", *(f"{name} {part}" for name in pairs for part in ("weight", "bias")))
        misfit(op, names[i], given[i], shapes[i], q, like="q")


def _joined(q, k, v):
    """``[B, 3C, H, W]`` of the three: themselves where they lie in that order, else a copy."""
    if torch.compiler.is_compiling() or not _has_memory(q) or not _are_one(q, k, v):
        return torch.cat((q, k, v), 1)
    return _OneView.apply(q, k, v) if needs_grad((q, k, v)) else _OneView.forward(q, k, v)


def _has_memory(q):
    """Not so for what torch.func's transforms and fake modes hand in."""
    return type(q) in (torch.Tensor, torch.nn.Parameter) and not torch._C._are_functorch_transforms_active()


def _are_one(q, k, v):
    B, C, H, W = q.shape
    # In channels_last and in NCHW: the strides, and the elements from a part to the next.
    parts = {(3 * C * H * W, 1, 3 * C * W, 3 * C): C, (3 * C * H * W, H * W, W, 1): C * H * W}
    if not q.stride() == k.stride() == v.stride() or not B or q.stride() not in parts:
        return False
    first, size = q.data_ptr(), parts[q.stride()] * q.element_size()
    if k.data_ptr() != first + size or v.data_ptr() != first + 2 * size:
        return False
    # Two tensors may also be neighbours by chance.
    memory = q.untyped_storage().data_ptr()
    return k.untyped_storage().data_ptr() == memory == v.untyped_storage().data_ptr()


class _OneView(torch.autograd.Function):
    """Three parts as the tensor they are parts of: a view of q's memory, the gradient of a concatenation."""

    @staticmethod
    def forward(q, k, v):
        B, C, H, W = q.shape
        return q.as_strided((B, 3 * C, H, W), q.stride())

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_qkv):
        return grad_qkv.chunk(3, 1)
