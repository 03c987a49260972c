"""ACmix's Triton backend: what its two registered ops do, kernel after kernel.

The shift comes first and hands over its part in float32 (in a float32 call, in the result itself), attention
adds and rounds once. Beside a single pass over the maps that moves q, k and v once more, and a float32 map of
the size of y, which is written and read (backward: grad_y once more, three such maps).
"""

from typing import NamedTuple

import torch

from .. import _triton
from .triton_kernels import acmix_fwd_kernel
from .triton_kernels_backward import acmix_key_bwd_kernel, acmix_query_bwd_kernel
from .triton_kernels_last import (
    acmix_shift_bwd_last_kernel,
    acmix_shift_fwd_last_kernel,
    acmix_shift_grad_last_kernel,
)
from .triton_kernels_shift import (
    acmix_compose_kernel,
    acmix_dep_conv_bwd_kernel,
    acmix_fc_bwd_kernel,
    acmix_shift_bwd_kernel,
    acmix_shift_fwd_kernel,
    acmix_shift_grad_kernel,
)

# Pixels and warps of a program by the dims it holds, so that no register spills; speeds are not measured.
FORWARD = {16: (128, 4), 32: (64, 4), 64: (32, 4), 128: (16, 8), 256: (8, 8)}
BACKWARD = {16: (64, 4), 32: (32, 4), 64: (16, 4), 128: (16, 8), 256: (8, 8)}
# Pixels and warps of a program by the heads it holds: a weight serves several pixels; not measured.
SHIFT = {1: (1024, 4), 2: (1024, 4), 4: (512, 4), 8: (256, 4), 16: (128, 4), 32: (64, 4), 64: (32, 4)}
# Outputs, maps and pixels at once, warps, and how many programs sum over the pixels; not measured.
SHIFT_GRAD = (4, 16, 64, 4)
SHIFT_GRAD_PROGRAMS = 2048
# In channels_last: heads, dims and pixels of a program, and warps; not measured.
SHIFT_LAST = (4, 16, 64, 4)
SHIFT_GRAD_LAST = (4, 16, 16, 2)
STRIP = 24  # columns at most that a strip of pixels is wide; not measured
BLOCK = 1024  # weights that a program owns
BITS_32 = 1 << 31  # from so many elements of a head's map on, offsets within it have 64 bits


class _Call(NamedTuple):
    """The sizes of one call; Ho, Wo of the result."""

    B: int
    G: int
    D: int
    H: int
    W: int
    K: int
    KC: int
    stride: int
    dilation: int
    last: bool  # the maps lie in channels_last

    @property
    def Ho(self):
        return -(-self.H // self.stride)

    @property
    def Wo(self):
        return -(-self.W // self.stride)

    @property
    def C(self):
        return self.G * self.D

    def strips(self, height, width, P):
        """Blocks of P pixels that a map has, and the width of its strips."""
        strips = -(-width // STRIP)
        strip = -(-width // strips)
        return -(-strips * strip * height // P), strip

    def window(self, table):
        """The constants of an attention kernel, its warps, and of how many chunks a head consists."""
        BD = min(max(_power_of_2(self.D), 4), 256)
        P, warps = table[max(BD, 16)]
        chunks = -(-self.D // BD)
        small = min(self.H, self.W) <= self.K // 2 * self.dilation
        return chunks, dict(
            K=self.K, STRIDE=self.stride, DILATION=self.dilation, SMALL=bool(small), BD=BD, CHUNKS=chunks,
            P=P, warps=warps, registers=255, SCALE=self.D**-0.5, LAST=self.last,
            WIDE=bool((3 * self.C if self.last else chunks * BD + 1) * self.H * self.W >= BITS_32),
        )  # fmt: skip

    def heads(self):
        """Of a shift kernel how many programs have the same pixels, its further sizes and its constants."""
        if self.last:
            BG, BD, P, warps = SHIFT_LAST
            BG, BD = min(BG, _power_of_2(self.G)), min(BD, _power_of_2(self.D))
            constants = dict(KC=self.KC, STRIDE=self.stride, BG=BG, BD=BD, P=P, warps=warps, registers=255)
            return -(-self.G // BG) * -(-self.D // BD), (self.G, *self.sizes()), constants
        BG = min(_power_of_2(self.G), 64)
        P, warps = SHIFT[BG]
        constants = dict(G=self.G, KC=self.KC, STRIDE=self.stride, BG=BG, P=P, warps=warps)
        return self.D * -(-self.G // BG), self.sizes(), constants

    def sizes(self):
        return self.D, self.H, self.W, self.Ho, self.Wo

    def maps(self, *tensors):
        """These as the kernels read them, copied where they are in another order."""
        order = torch.channels_last if self.last else torch.contiguous_format
        return [t.contiguous(memory_format=order) for t in tensors]

    def map_of(self, like, *shape, dtype=None):
        order = torch.channels_last if self.last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=order)


def _power_of_2(n):
    return 1 << (n - 1).bit_length()


def _call(qkv, dep_conv, head, kernel_att, stride, dilation):
    B, C3, H, W = qkv.shape
    KC = 1 if dep_conv is None else int(dep_conv.shape[-1])
    last = not qkv.is_contiguous() and qkv.is_contiguous(memory_format=torch.channels_last)
    return _Call(B, head, int(C3) // 3 // head, H, W, kernel_att, KC, stride, dilation, last)


def _dense(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _floats(like, *shape):
    return like.new_empty(shape, dtype=torch.float32)


def fwd(qkv, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation):
    """y, in the order of qkv, and lse: see csrc/acmix/schema.h."""
    s = _call(qkv, dep_conv, head, kernel_att, stride, dilation)
    (qkv,), (conv_p, fc, dep_conv) = s.maps(qkv), _dense(conv_p, fc, dep_conv)
    y = s.map_of(qkv, s.B, s.C, s.Ho, s.Wo)
    lse = _floats(qkv, *([0] if rate1 is None else [s.B, s.G, s.Ho, s.Wo]))
    if s.B == 0:
        return y, lse
    before = qkv  # not read
    if rate2 is not None:
        in_place = rate1 is None or y.dtype == torch.float32
        before = y if in_place else s.map_of(y, *y.shape, dtype=torch.float32)
        shares, sizes, constants = s.heads()
        blocks, strip = s.strips(s.Ho, s.Wo, constants["P"])
        composite = _compose(s, fc, dep_conv)
        _triton.launch(
            acmix_shift_fwd_last_kernel if s.last else acmix_shift_fwd_kernel, blocks * shares * s.B,
            qkv, composite, rate2, before, blocks, *sizes, strip, **constants,
        )  # fmt: skip
    if rate1 is not None:
        chunks, constants = s.window(FORWARD)
        blocks, strip = s.strips(s.Ho, s.Wo, constants["P"])
        _triton.launch(
            acmix_fwd_kernel, blocks * s.G * chunks * s.B, qkv, conv_p, rate1, before, y, lse, blocks, s.G,
            *s.sizes(), strip, ADDS=rate2 is not None, **constants,
        )  # fmt: skip
    return y, lse


def bwd(grad_y, qkv, lse, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation):
    """The gradients of qkv, conv_p, fc, dep_conv, rate1 and rate2, empty where their half is missing."""
    s = _call(qkv, dep_conv, head, kernel_att, stride, dilation)
    given = (qkv, conv_p, fc, dep_conv, rate1, rate2)
    if s.B == 0:
        return tuple(qkv.new_zeros([0] if t is None else t.shape) for t in given)
    (grad_y, qkv), (conv_p, fc, dep_conv) = s.maps(grad_y, qkv), _dense(conv_p, fc, dep_conv)
    grad_qkv, before = torch.empty_like(qkv), qkv  # not read
    grad_conv_p, grad_fc, grad_dep_conv, grad_rate1, grad_rate2 = (qkv.new_empty(0) for _ in given[1:])
    if rate2 is not None:
        in_place = rate1 is None or qkv.dtype == torch.float32
        before = grad_qkv if in_place else s.map_of(qkv, *qkv.shape, dtype=torch.float32)
        composite = _compose(s, fc, dep_conv)
        shares, sizes, constants = s.heads()
        blocks, strip = s.strips(s.H, s.W, constants["P"])
        _triton.launch(
            acmix_shift_bwd_last_kernel if s.last else acmix_shift_bwd_kernel, blocks * 3 * shares * s.B,
            grad_y, composite, rate2, before, blocks, *sizes, strip, **constants,
        )  # fmt: skip
        grad_fc, grad_dep_conv, grad_rate2 = _shift_weights_bwd(s, grad_y, qkv, fc, dep_conv, rate2)
    if rate1 is not None:
        if stride > 1 and before is not grad_qkv:  # what lies between the queries
            of_q = grad_qkv[:, : s.C]
            of_q.zero_() if rate2 is None else of_q.copy_(before[:, : s.C])
        adds = rate2 is not None
        grad_conv_p, grad_rate1 = _attention_bwd(s, grad_y, qkv, lse, conv_p, rate1, before, adds, grad_qkv)
    return grad_qkv, grad_conv_p, grad_fc, grad_dep_conv, grad_rate1, grad_rate2


def _compose(s, fc, dep_conv):
    """fc and dep_conv as one convolution, ``[D, K_c^2, 3G, G]``, in channels_last with the dims last."""
    T = s.KC**2
    composite = _floats(fc, s.D, T, 3 * s.G, s.G)
    n = composite.numel()
    _triton.launch(
        acmix_compose_kernel, -(-n // BLOCK), fc, dep_conv, composite, n, s.G, s.D,
        T=T, LAST=s.last, BLOCK=BLOCK,
    )  # fmt: skip
    return composite


def _attention_bwd(s, grad_y, qkv, lse, conv_p, rate1, before, adds, grad_qkv):
    """The gradients of conv_p and rate1; those of q, k and v go to grad_qkv, with `adds` on top of before."""
    chunks, constants = s.window(BACKWARD)
    blocks, strip = s.strips(s.Ho, s.Wo, constants["P"])
    columns, maps = blocks * s.G * s.B, s.B * s.G * s.Ho * s.Wo
    facts, parts = _floats(qkv, 3, maps), _floats(qkv, 2 * s.D + 1, columns)
    _triton.launch(
        acmix_query_bwd_kernel, columns * chunks, qkv, grad_y, conv_p, rate1, lse, before, grad_qkv, facts,
        parts, blocks, maps, columns, s.G, *s.sizes(), strip, ADDS=adds, **constants,
    )  # fmt: skip
    blocks, strip = s.strips(s.H, s.W, constants["P"])
    reach = s.K // 2 * s.dilation
    rows, cols = (min(2 * reach // s.stride + 1, side) for side in (s.Ho, s.Wo))
    _triton.launch(
        acmix_key_bwd_kernel, blocks * s.G * chunks * s.B, qkv, grad_y, rate1, lse, before, grad_qkv, facts,
        blocks, maps, rows, cols, s.G, *s.sizes(), strip, ADDS=adds, TAPS=_power_of_2(s.K), **constants,
    )  # fmt: skip
    grad_conv_p, grad_rate1 = parts[:-1].sum(1).view(conv_p.shape), parts[-1].sum().view(1)
    return grad_conv_p.to(qkv.dtype), grad_rate1.to(qkv.dtype)


def _composite_bwd(s, grad_y, qkv):
    """The composite weights' gradients, ``[D, K_c^2, 3G, G]``, before rate2."""
    BG, more, P, warps = SHIFT_GRAD_LAST if s.last else SHIFT_GRAD
    BG, T, blocks = min(BG, _power_of_2(s.G)), s.KC**2, -(-s.Ho * s.Wo // P)
    constants = dict(KC=s.KC, STRIDE=s.stride, BG=BG, P=P, warps=warps)
    if s.last:
        kernel, sizes = acmix_shift_grad_last_kernel, (s.G, *s.sizes())
        constants |= dict(BD=min(more, _power_of_2(s.D)), registers=255)
        tiles = -(-s.G // BG) * -(-s.D // constants["BD"]) * s.G
    else:
        kernel, sizes = acmix_shift_grad_kernel, s.sizes()
        constants |= dict(G=s.G, BM=min(more, _power_of_2(3 * s.G)))
        tiles = -(-s.G // BG) * -(-3 * s.G // constants["BM"]) * s.D
    splits = min(-(-SHIFT_GRAD_PROGRAMS // (tiles * T)), blocks * s.B)
    parts = _floats(qkv, splits, s.D, T, 3 * s.G, s.G)
    _triton.launch(
        kernel, tiles * T * splits, qkv, grad_y, parts, s.B, blocks, splits, *sizes, **constants
    )  # fmt: skip
    return parts.sum(0) if splits > 1 else parts[0]


def _shift_weights_bwd(s, grad_y, qkv, fc, dep_conv, rate2):
    """The gradients of fc, dep_conv and rate2, from sums over pixels of those of the composite weights."""
    _, BM, _, _ = SHIFT_GRAD
    BM, T = min(BM, _power_of_2(3 * s.G)), s.KC**2
    total = _composite_bwd(s, grad_y, qkv)
    grad_dep_conv, n = torch.empty_like(dep_conv), dep_conv.numel()
    _triton.launch(
        acmix_dep_conv_bwd_kernel, -(-n // BLOCK), total, fc, rate2, grad_dep_conv, n, s.G, T=T, BLOCK=BLOCK
    )
    grad_fc = _floats(fc, *fc.shape)
    tiles = -(-3 * s.G // BM)
    _triton.launch(acmix_fc_bwd_kernel, T * tiles, total, dep_conv, grad_fc, s.G, s.D, T=T, BM=BM, BLOCK=256)
    grad_rate2 = (grad_fc * fc).sum().view(1)
    return (grad_fc * rate2).to(fc.dtype), grad_dep_conv, grad_rate2.to(fc.dtype)
