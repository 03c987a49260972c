"""ACmix as one would write it in PyTorch without kernels of one's own, beside the published way.

All of it but NATTEN's is the same function and passes the gate like every other provider.
"""

import math
from importlib.util import find_spec

import torch

from lska_ops.acmix.reference import position_offsets, shift_aggregate, windows

NATTEN = "NATTEN (shifted window: not the same function)"


class Declined(Exception):
    """A provider does not run this row; the message says why."""


def cached_position(problem):
    """The published way, but with the position map made once.

    For inference the offsets p_i - p_j are kept as they are added; for training, where conv_p changes with
    every step, those of the coordinates, which conv_p maps to the same offsets.
    """
    _no_autocast(problem)
    m, x = problem.module, problem.x
    H, W = x.shape[2:]
    window = (m.kernel_att, m.stride, m.dilation)
    if problem.row.backward:
        wide = torch.promote_types(x.dtype, torch.float32)
        loc = position_offsets(lambda loc: loc, H, W, window, wide, x.device)

        def offsets():
            return torch.einsum("dc,bckhw->bdkhw", m.conv_p.weight[:, :, 0, 0].to(wide), loc).to(x.dtype)
    else:
        with torch.inference_mode():
            kept = position_offsets(m._position, H, W, window, x.dtype, x.device)

        def offsets():
            return kept

    def function(x):
        q, k, v = m.conv1(x), m.conv2(x), m.conv3(x)
        heads = (t.reshape(-1, m.head_dim, H, W) for t in (q, k, v))
        q_heads, keys, values = (t if i == 0 else windows(t, *window) for i, t in enumerate(heads))
        centres = q_heads[:, :, None, :: m.stride, :: m.stride] * m.head_dim**-0.5
        weights = (centres * (keys + offsets())).sum(1).softmax(1)
        attended = (weights[:, None] * values).sum(2)
        return _sum(m, attended.reshape(len(x), -1, *attended.shape[-2:]), q, k, v)

    return problem, function


def _sum(m, attended, q, k, v):
    return m.rate1 * attended + m.rate2 * shift_aggregate(q, k, v, m.fc, m.dep_conv, head=m.head)


def flex_attention(problem):
    """The attention by torch.nn.attention.flex_attention; all that is around it compiled too.

    A reflected tap repeats a pixel of the window clipped to the map, so the softmax over all K * K taps is
    that over the clipped window, with the logarithm of how often a pixel occurs added to its logit; of
    p_i - p_j the softmax leaves two scalars of each pixel and head, times the key's coordinates.
    """
    m, x = problem.module, problem.x
    H, W = x.shape[2:]
    reach = m.kernel_att // 2
    _no_autocast(problem)
    _takes(problem, reach)
    from torch.nn.attention import flex_attention as flex

    def inside(batch, head, i, j):
        return ((i // W - j // W).abs() <= reach) & ((i % W - j % W).abs() <= reach)

    block_mask = flex.create_block_mask(inside, None, None, H * W, H * W, device=x.device)
    zero, two = 0.0, math.log(2.0)

    def often(i, j, side):
        """The logarithm of how often taps around i fall on j: twice, where one is reflected there."""
        low = (j > 0) & (i + j <= reach)
        high = (j < side - 1) & (i + j >= 2 * (side - 1) - reach)
        return torch.where(low | high, two, zero)

    def project(x):
        qkv = m.conv1(x), m.conv2(x), m.conv3(x)
        heads = [t.reshape(len(x), m.head, m.head_dim, H * W).mT.contiguous() for t in qkv]
        slopes = m.conv_p.weight[:, :, 0, 0].float() * m.head_dim**-0.5
        # In float32: a half dtype cannot tell neighbouring columns apart.
        return qkv, heads, [(heads[0].float() * slopes[:, axis]).sum(-1) for axis in (0, 1)]

    def attend(qkv, heads, slopes):
        a, b = slopes

        def score(score, batch, head, i, j):
            at_x, at_y = (n * (2 / (side - 1)) - 1 for n, side in ((j % W, W), (j // W, H)))
            there = a[batch, head, i] * at_x + b[batch, head, i] * at_y
            return score + often(i // W, j // W, H) + often(i % W, j % W, W) - there

        attended = flex.flex_attention(*heads, score_mod=score, block_mask=block_mask)
        return _sum(m, attended.mT.reshape(qkv[0].shape), *qkv)

    # In two: on a CPU the scalars that a score takes have to be in memory, which only a graph's inputs are.
    project, attend = (torch.compile(f, fullgraph=True, dynamic=False) for f in (project, attend))
    return problem, lambda x: attend(*project(x))


def _no_autocast(problem):
    if problem.row.train:
        raise Declined("autocast would round its positions; see the acmix_fwd_bwd rows")


def _takes(problem, reach):
    """Declined where FlexAttention, or what is written here with it, does not compute the row."""
    m, x = problem.module, problem.x
    if find_spec("torch.nn.attention.flex_attention") is None:
        raise Declined(f"torch {torch.__version__} has no FlexAttention; upgrade torch")
    if (m.stride, m.dilation) != (1, 1):
        raise Declined("written for stride 1 and dilation 1, which the benchmark runs")
    if min(x.shape[2:]) <= reach + 1:
        raise Declined(f"a pixel is met three times where a side is at most {reach + 1}; use a larger map")
    if x.device.type == "cpu" and problem.row.backward:
        raise Declined("FlexAttention has no backward on a CPU; see the forward rows")
    if x.device.type == "cpu" and x.dtype == torch.float64:
        raise Declined("FlexAttention takes no float64 on a CPU; use float32")
    if x.device.type == "cuda" and m.head_dim < 16:
        raise Declined(f"FlexAttention takes 16 dims a head or more on a GPU; these are {m.head_dim}")


def natten(problem):
    """Neighbourhood attention, whose windows are shifted into the map at its borders, without positions.

    Near a border other pixels are met than in ACmix, and the position term is missing: a cheaper function,
    not ACmix's. Shown because it is what one would reach for.
    """
    try:
        from natten.functional import na2d
    except ImportError:
        raise Declined("natten is not installed; pip install natten") from None
    _no_autocast(problem)
    m = problem.module
    if m.stride != 1:
        raise Declined("written for stride 1, which the benchmark runs")
    shift = torch.compile(lambda attended, *qkv: _sum(m, attended, *qkv), fullgraph=True, dynamic=False)

    def function(x):
        q, k, v = m.conv1(x), m.conv2(x), m.conv3(x)
        last = (t.unflatten(1, (m.head, m.head_dim)).permute(0, 3, 4, 1, 2).contiguous() for t in (q, k, v))
        attended = na2d(*last, kernel_size=m.kernel_att, dilation=m.dilation)
        return shift(attended.permute(0, 3, 4, 1, 2).flatten(1, 2), q, k, v)

    return problem, function
