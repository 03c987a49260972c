"""The public function :func:`acmix`: checks, autocast, choice of the backend; and what the halves share."""

from functools import partial

import torch
import torch.nn.functional as F

from .. import _backends
from .._calls import (
    HALF,
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

_backends.WHY_NOT["acmix"] = {
    "cuda": compiled.why_not_cuda,
    "triton": compiled.why_not_triton,
    "cpu": compiled.why_not_cpu,
    "reference": _backends.why_not_reference,
}

NAMES = ("conv1", "conv2", "conv3", "conv_p", "fc", "dep_conv")


def acmix(
    x, conv1, conv2, conv3, conv_p, fc, dep_conv, rate1, rate2, *,
    head, kernel_att=7, stride=1, dilation=1, backend="auto",
):  # fmt: skip
    """ACmix: local self-attention and convolution that share their three 1x1 projections.

    ``y = rate1 * attention(q, k, v) + rate2 * shift(q, k, v)`` with ``q, k, v = conv1(x), conv2(x),
    conv3(x)``, G heads of D = C_out / G channels, and a K x K window (K = kernel_att, reflection padding)
    around every pixel.

    * attention: softmax over the window of ``D^-1/2 q_i . (k_j + p_i - p_j)``, then the weighted sum of v;
      ``p = conv_p(loc)``, loc the pixel's (x, y), each linear from -1 to 1 over the map.
    * shift: fc mixes the 3G maps of each of the D dims into K_c * K_c, dep_conv (grouped, one group per dim,
    zero
      padding) shifts and sums them to G maps.

    Attention's output channel c is head c // D, dim c % D; shift's is dim c // G, head c % G; they are summed
    as they are, as published.

    Paper: Pan et al., "On the Integration of Self-Attention and Convolution", 2022, arXiv:2111.14556.

    Args:
        x: map ``[B, C_in, H, W]``, float64, float32, float16 or bfloat16, any strides, H and W from 1 up; on
            maps smaller than the window the reflection goes on.
        conv1: query projection ``(weight [C_out, C_in, 1, 1], bias [C_out] or None)``.
        conv2: key projection, same shapes.
        conv3: value projection, same shapes.
        conv_p: position ``(weight [D, 2, 1, 1], bias [D] or None)``.
        fc: ``(weight [K_c * K_c, 3G, 1, 1], None)``; it has no bias.
        dep_conv: ``(weight [C_out, K_c * K_c, K_c, K_c], None)``, K_c odd.
        rate1: ``[1]``, weight of the attention.
        rate2: ``[1]``, weight of the convolution.
        head: number of heads G; divides C_out.
        kernel_att: window side K in taps, odd.
        stride: every stride-th pixel of every stride-th row is an output.
        dilation: pixels between the taps of the window.
        backend: "auto" takes the fastest that accepts the call; a name takes that one or raises.

    Returns:
        Tensor ``[B, C_out, ceil(H / stride), ceil(W / stride)]``, dtype of x (under autocast: autocast's
        dtype); in channels_last if x is, on the CPU by a copy (2 to 4 % of a forward pass).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape or option does not fit; the message names argument, got and expected.
        RuntimeError: the backend asked for by name declines; the message is its reason.

    Numerics: positions are computed in float32 at least. `cpu`, `cuda` and `triton` round q, k, v and the
        result once to the dtype of x and compute everything between in float32 (`cpu` float64 for float64,
        which the others decline), in a fixed order. In float16 and bfloat16 `cuda` uses tensor cores, forward
        and at stride 1 backward, on sums of 16-bit parts that keep float32's digits, about; what is not
        finite, or too large for them, it computes by the definition. `reference` rounds to the dtype of x
        after each step, as PyTorch does.

    Memory: for backward, all but `reference` keep x, q, k, v and one number per pixel and head; `reference`
        about 2 K * K maps of the size of q.
    """
    pairs = (conv1, conv2, conv3, conv_p, fc, dep_conv)
    for name, pair in zip(NAMES, pairs, strict=False):
        check_pair("acmix", name, pair)
    x, flat = follow_autocast(x, [*(t for pair in pairs for t in pair), rate1, rate2])
    *flat, rate1, rate2 = flat
    pairs = {name: (flat[2 * i], flat[2 * i + 1]) for i, name in enumerate(NAMES)}
    if not exporting():
        _check(x, pairs, rate1, rate2, head, kernel_att, stride, dilation)
    sizes = dict(
        head=head, dims=conv_p[0].shape[0], kernel_att=kernel_att, kernel_conv=dep_conv[0].shape[-1],
        stride=stride, dilation=dilation,
    )  # fmt: skip
    name = _backends.choose("acmix", backend, x, **sizes)
    options = dict(head=head, kernel_att=kernel_att, stride=stride, dilation=dilation)
    with without_autocast(x.device.type):
        if name == "reference":
            y = reference.acmix(x, *_convolutions(pairs, head, stride), rate1, rate2, **options)
        else:
            y = _fused(name, x, pairs, rate1, rate2, options)
    return in_format_of(x, y)


def in_format_of(x, y):
    """y in channels_last where PyTorch's convolutions of x would be; an exported graph keeps no layouts."""
    return (
        y.contiguous(memory_format=torch.channels_last)
        if compiled.in_channels_last(x) and not exporting()
        else y
    )


def _fused(backend, x, pairs, rate1, rate2, options):
    """The projections as one matrix product of PyTorch's, then attention and shift in one op."""
    projections = [pairs[name] for name in NAMES[:3]]
    (conv_p, conv_p_bias), (fc, _), (dep_conv, _) = (pairs[name] for name in NAMES[3:])
    weights, bias = [weight for weight, _ in projections], _one_bias(projections)
    # The CPU's kernels know NCHW alone.
    last = backend != "cpu" and compiled.in_channels_last(x)
    # What only computes is not recorded: an autograd.Function costs as much as the product of a small map.
    project = _Projections.apply if needs_grad((x, bias, *weights)) else _Projections.forward
    qkv = project(x, last, bias, *weights)
    return core(qkv, conv_p, conv_p_bias, fc, dep_conv, rate1, rate2, backend=backend, **options)


class _Projections(torch.autograd.Function):
    """q, k, v from x by one matrix product of x as it lies.

    A 1x1 convolution on a CPU reorders x and its result: slower, and memory for both. What PyTorch would keep
    for backward beside x, the three weights in one tensor, is put together again there.
    """

    @staticmethod
    def forward(x, last, bias, *weights):
        if last:  # all pixels of all pictures are one matrix
            (B, C, H, W), weight = x.shape, torch.cat(weights).flatten(1)
            pixels = x.permute(0, 2, 3, 1).reshape(-1, C)
            qkv = pixels.mm(weight.mT) if bias is None else torch.addmm(bias, pixels, weight.mT)
            return qkv.view(B, H, W, -1).permute(0, 3, 1, 2)
        weight, pixels = torch.cat(weights).flatten(1).expand(len(x), -1, -1), x.flatten(2)
        qkv = weight.bmm(pixels) if bias is None else torch.baddbmm(bias[:, None], weight, pixels)
        return qkv.reshape(*qkv.shape[:2], *x.shape[2:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, bias, *weights = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, *weights)

    @staticmethod
    def backward(ctx, grad_qkv):
        x, *weights = ctx.saved_tensors
        # reshape: where autograd batches gradients by vmap it has no rule for flatten, nor has torch 2.11's
        # compiler one for unflatten under a default device.
        B, C, H, W = grad_qkv.shape
        grad, grad_x, grad_weights = grad_qkv.reshape(B, C, H * W), None, [None] * 3
        if any(ctx.needs_input_grad[3:]):
            grad_weight = _sum_of_products(grad, x.flatten(2).mT)
            grad_weights = grad_weight[:, :, None, None].chunk(3)
        if ctx.needs_input_grad[0]:
            weight = torch.cat(weights).flatten(1).expand(len(x), -1, -1)
            if _may_ask_for_layout() and compiled.in_channels_last(grad_qkv):
                grad_x = grad.mT.bmm(weight).reshape(B, H, W, -1).permute(0, 3, 1, 2)
            else:
                grad_x = weight.mT.bmm(grad).reshape(x.shape)
        grad_bias = grad.sum((0, 2)) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, *grad_weights


# The compilers of torch 2.4 to 2.6 let no backward ask; that of 2.9 does.
_ASKS_WHILE_COMPILING = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 9)


def _may_ask_for_layout():
    return _ASKS_WHILE_COMPILING or not torch.compiler.is_compiling()


def _sum_of_products(a, b):
    """The sum of all pictures' matrix products."""
    if a.dtype in HALF:  # addbmm would round to them at each picture
        return a.bmm(b).sum(0)
    return torch.addbmm(a.new_zeros(1, 1), a, b, beta=0)


def core(*tensors, backend, **options):
    """ACmix from q, k, v on: ``qkv [B, 3 C_out, H, W]``, q first, in place of x and its projections.

    Takes (qkv, conv_p, conv_p_bias, fc, dep_conv, rate1, rate2) and acmix's options, unchecked. Without
    rate1 (None, and conv_p too) there is no attention, without rate2 (fc and dep_conv too) no shift.
    """
    if backend == "reference":
        return _reference_core(*tensors, **options)
    if needs_grad(tensors):
        return _AcmixCore.apply(backend, tuple(options.items()), *tensors)[0]
    qkv, conv_p, _, *shift = tensors
    return _op("fwd", backend)(qkv, conv_p, *shift, *options.values())[0]


def _reference_core(qkv, conv_p, conv_p_bias, fc, dep_conv, rate1, rate2, **options):
    (q, k, v), head, halves = qkv.chunk(3, 1), options["head"], []
    if rate1 is not None:
        position = position_of(conv_p, conv_p_bias)
        halves.append(rate1 * reference.attention(q, k, v, position, **options))
    if rate2 is not None:
        mix, shift = shift_of(fc, dep_conv, head, options["stride"])
        halves.append(rate2 * reference.shift_aggregate(q, k, v, mix, shift, head=head))
    return sum(halves[1:], halves[0])


def _one_bias(projections):
    if all(bias is None for _, bias in projections):
        return None
    return torch.cat(
        [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in projections]
    )


def _op(direction, backend):
    return getattr(torch.ops.lska_ops, f"acmix_core_{direction}_{backend}")


class _AcmixCore(torch.autograd.Function):
    """From q, k, v on. conv_p's bias is an input for its gradient's sake, which is zero but not missing."""

    @staticmethod
    def forward(backend, options, qkv, conv_p, conv_p_bias, fc, dep_conv, rate1, rate2):
        return _op("fwd", backend)(qkv, conv_p, fc, dep_conv, rate1, rate2, *dict(options).values())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.backend, ctx.options, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx, grad_y, _):
        lse, *tensors = ctx.saved_tensors
        options = dict(ctx.options)
        if torch.is_grad_enabled():  # create_graph: the second derivative is the reference's
            return None, None, *_differentiable_grads(tensors, options, grad_y)
        qkv, conv_p, conv_p_bias, *shift = tensors
        grads = _op("bwd", ctx.backend)(grad_y, qkv, lse, conv_p, *shift, *options.values())
        zero = None if conv_p_bias is None else torch.zeros_like(conv_p_bias)
        grads = (*grads[:2], zero, *grads[2:])  # those of an absent half are empty, and not needed
        return (
            None,
            None,
            *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad[2:], strict=True)),
        )


def _differentiable_grads(tensors, options, grad_y):
    """The core's gradients in operations that can be differentiated once more."""
    y = _reference_core(*tensors, **options)
    inputs = [t for t in tensors if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(y, inputs, grad_y, create_graph=True))
    return [next(grads) if t is not None and t.requires_grad else None for t in tensors]


def _convolutions(pairs, head, stride):
    """The reference's six callables."""
    projections = [
        partial(F.conv2d, weight=weight, bias=bias) for weight, bias in (pairs[n] for n in NAMES[:3])
    ]
    fc, dep_conv = pairs["fc"][0], pairs["dep_conv"][0]
    return *projections, position_of(*pairs["conv_p"]), *shift_of(fc, dep_conv, head, stride)


def position_of(weight, bias):
    """conv_p as the reference calls it."""

    def position(loc):
        return F.conv2d(loc, weight.to(loc.dtype), None if bias is None else bias.to(loc.dtype))

    return position


def shift_of(fc, dep_conv, head, stride):
    """fc and dep_conv as the reference calls them."""
    C, _, K_c, _ = map(int, dep_conv.shape)  # int: a tracer's are tensors, and old ones take none as padding
    shift = partial(F.conv2d, weight=dep_conv, padding=K_c // 2, groups=C // head)
    # Where one column remains, oneDNN's strided bfloat16 convolution reads memory that nobody wrote, on CPUs
    # with AMX (pytorch/pytorch#169688; in conv2d for the weight's gradient): all pixels, then the wanted.
    if stride > 1 and dep_conv.dtype == torch.bfloat16 and dep_conv.device.type == "cpu":
        return partial(F.conv2d, weight=fc), lambda maps: shift(maps)[:, :, ::stride, ::stride]
    return partial(F.conv2d, weight=fc), partial(shift, stride=stride)


def _check(x, pairs, rate1, rate2, head, kernel_att, stride, dilation):
    check_map("acmix", x)
    C_in, C_out = x.shape[1], (shape_of(pairs["conv1"][0]) or (0,))[0]
    check_options("acmix", C_out, "C_out", head, kernel_att, stride, dilation)
    projection, bias = (C_out, C_in, 1, 1), (C_out,)
    shapes = (
        *(projection, bias) * 3, *position_shapes(C_out, head),
        *shift_shapes("acmix", pairs["fc"], pairs["dep_conv"], C_out, head), (1,), None, (1,), None,
    )  # fmt: skip
    weights = [*(t for pair in pairs.values() for t in pair), rate1, None, rate2, None]
    if (i := first_misfit(x, weights, shapes)) is not None:
        names = [*(f"{name} {part}" for name in NAMES for part in ("weight", "bias")), "rate1", "", "rate2"]
        misfit("acmix", names[i], weights[i], shapes[i], x)


def check_options(op, C, what, head, kernel_att, stride, dilation):
    """The four options are such numbers, and head divides the C channels, called `what`."""
    check_number(op, "head", head)
    check_number(op, "kernel_att", kernel_att, odd=True)
    check_number(op, "stride", stride)
    check_number(op, "dilation", dilation)
    if C % head:
        raise ValueError(f"{op}: head is {head}; expected a divisor of {what} = {C}")


def position_shapes(C, head):
    """Of conv_p's weight and bias."""
    return (C // head, 2, 1, 1), (C // head,)


def shift_shapes(op, fc, dep_conv, C, head):
    """Of fc's weight and bias and dep_conv's, which have no bias and an odd kernel."""
    K_c = (shape_of(dep_conv[0]) or (0,))[-1]
    if K_c % 2 == 0:
        raise ValueError(f"{op}: dep_conv weight has kernel side {K_c}; expected an odd one")
    for name, (_, bias) in (("fc", fc), ("dep_conv", dep_conv)):
        if bias is not None:
            raise ValueError(f"{op}: {name} bias is given; expected None, it has no bias")
    return (K_c * K_c, 3 * head, 1, 1), None, (C, K_c * K_c, K_c, K_c), None
