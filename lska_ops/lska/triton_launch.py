"""LSKA by Triton: from a call's sizes to tiles and kernels, in the order they run. Nothing here waits."""

from typing import NamedTuple

import torch

from .. import _triton
from . import triton_kernels as kernels
from . import triton_kernels_backward as backward
from . import triton_kernels_last as last

# Tile sides, warps and stages. Chosen so that nothing spills from sm_80 to sm_120; not measured on a GPU yet.
# Of one stage are loops whose loads are of 2 or 4 bytes: copied to shared memory on their way, all lanes of a
# warp would meet in one bank.
# A tile of few pixels is for maps of few, and 16 is what tl.dot takes at least.
PAIR_TILES = {
    "loads": (16, 64, 16, 4, 1),
    "products": (32, 32, 32, 4, 1),
}  # along the axis, across it, summed
NARROW = 32  # pixels of a row for which the longest tile would be mostly empty
GATE_TILE = (64, 64, 32, 4, 3)  # channels, pixels, channels summed
EXACT_GATE_TILE = (32, 32, 16, 4, 2)  # without tensor cores: in float32
MIX_TILE = (32, 32, 32, 4, 2)  # channels, channels, pixels summed
MIX_PROGRAMS = 512  # for as many multiprocessors as there are
GRAM_TILE = (32, 16, 4, 1)  # positions a side, pixels summed
# Of channels_last, in whose layout a thread has several channels of several pixels.
PAIR_LAST_TILE = {
    2: (4, 8, 32, 4),
    4: (4, 4, 32, 4),
}  # by bytes: runs along the axis, across it, channels, warps
GRAM_LAST_TILE = (4, 4, 64, 1)  # diagonals, pixels summed, channels, warps
LINES_LAST_TILE = (16, 64, 1)  # pixels summed, channels, warps
PIECE = 1024  # pixels of an image that are summed in one go
MOST_PARTS = 16  # of a sum; each is a matrix in memory
ALL_REGISTERS = 255  # of a thread, for kernels of which the assembler would spill a few
BLOCK = 256  # of what is computed number by number


class Axis(NamedTuple):
    """Both convolutions along one axis of a plane; of k taps the middle n reach the map."""

    vertical: bool
    L: int  # pixels along it
    M: int  # and across it
    stride: int
    other_stride: int
    K0: int
    n0: int
    K1: int  # 1, a tap of 1, where there is no dilated pair
    n1: int
    d: int
    e: int  # entries of a band between two taps of the dilated convolution
    N: int  # diagonals of the band
    r: int  # that reach so far


def axis(H, W, vertical, K0, K1, dilation):
    L, M, stride, other_stride = (H, W, W, 1) if vertical else (W, H, 1, W)
    d = min(dilation, L)
    n1 = 2 * min(K1 // 2, (L - 1) // d) + 1
    n0 = 2 * min(K0 // 2, L - 1) + 1
    e = min(d, n0)
    return Axis(
        vertical, L, M, stride, other_stride, K0, n0, K1, n1, d, e, (n1 - 1) * e + n0, n1 // 2 * d + n0 // 2
    )  # fmt: skip


def on_tensor_cores(x):
    """Whether bands are products on tensor cores: not in float32, which those do not sum within the bound."""
    return x.dtype != torch.float32


NAMES = [
    f"{name} {part}"
    for name in ("conv0h", "conv0v", "conv_spatial_h", "conv_spatial_v", "conv1")
    for part in ("weight", "bias")
]


def check(x, weights, dilation):
    """What the public function has checked in its own words: the kernels read what these shapes say."""
    if x.dim() != 4 or x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or dilation < 1:
        raise RuntimeError(
            f"lska: x has shape {list(x.shape)} and dtype {x.dtype}, dilation is {dilation}; expected "
            "[B, C, H, W] of float32, float16 or bfloat16 and at least 1"
        )
    C, k0, k1 = x.shape[1], weights[0].shape[-1], 1 if weights[4] is None else weights[4].shape[-1]
    shapes = ((C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1), (C, C, 1, 1))
    for name, t, shape in zip(NAMES, weights, (s for w in shapes for s in (w, (C,))), strict=False):
        if t is not None and (t.shape != shape or t.dtype != x.dtype or t.device != x.device):
            raise RuntimeError(
                f"lska: {name} is {list(t.shape)}, {t.dtype}, on {t.device}; expected {list(shape)}, like x "
                f"{x.dtype} on {x.device}"
            )
    if k0 % 2 == 0 or k1 % 2 == 0 or (weights[4] is None) != (weights[6] is None):
        raise RuntimeError(
            f"lska: kernel sizes are {k0} and {k1}; expected odd ones, both of the dilated pair or none"
        )


class Call:
    """One call's tensors as the kernels want them, in the order of x, its sizes and its bands."""

    def __init__(self, x, weights, dilation):
        check(x, weights, dilation)
        parts = weights[:8]
        self.last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        self.x = self.like_x(x)
        self.parts = [None if t is None else t.contiguous() for t in parts]
        self.conv1, self.conv1_bias = (
            None if t is None else t.contiguous() for t in (*weights[8:], None, None)[:2]
        )
        self.B, self.C, H, W = x.shape
        self.P = H * W
        self.paired = parts[4] is not None
        K0, K1 = parts[0].shape[3], parts[4].shape[3] if self.paired else 1
        self.row = axis(H, W, False, K0, K1, dilation)
        self.column = axis(H, W, True, K0, K1, dilation)
        self.dot = on_tensor_cores(x)
        self.row_band, self.row_edge = self._band(self.row, 0)
        self.column_band, self.column_edge = self._band(self.column, 2)

    def _band(self, a, first):
        """Of the pair whose first weight is parts[first]: band [C, N, L] and the sums at the edge [C, L]."""
        taps0, taps1 = self.parts[first], self.parts[first + 4]
        band, edge = self.floats(self.C, a.N, a.L), self.floats(self.C, a.L)  # LAST: [N, L, C], [L, C]
        channels = 1 if self.last else self.C
        size = band.numel() // channels
        _triton.launch(
            kernels.lska_bands_kernel, channels * -(-size // BLOCK),
            taps0, taps0 if taps1 is None else taps1, band, edge, self.C, a.L, a.N, size, a.r,
            a.K0, a.n0, a.K1, a.n1, a.d, a.e, PAIR=self.paired, LAST=self.last, BLOCK=BLOCK,
        )  # fmt: skip
        return band, edge

    def like_x(self, t):
        """t in the order of x, copied where it is not."""
        return t.contiguous(memory_format=torch.channels_last if self.last else torch.contiguous_format)

    def strides(self):
        """From a channel and from a pixel to the next."""
        return (1, self.C) if self.last else (self.P, 1)

    def floats(self, *shape):
        return self.x.new_empty(shape, dtype=torch.float32)

    def map(self, dtype=None):
        return torch.empty_like(self.x, dtype=dtype or self.x.dtype)

    def pair(self, source, out, end, biases=(None, None, None), turned=False, grad_y=None, product=None):
        """out of source by the band of one axis; see lska_pair_kernel."""
        rows = end in ("rows", "gate")
        a, band, edge = (
            (self.row, self.row_band, self.row_edge)
            if rows
            else (self.column, self.column_band, self.column_edge)
        )
        filled = [source if t is None else t for t in (*biases, grad_y, product)]
        step = self.C if self.last else 1
        arguments = (
            source, band, edge, out, self.row_edge, *filled,
            self.C, a.L, a.M, a.stride * step, a.other_stride * step, a.N, a.r, a.d, a.e,
        )  # fmt: skip
        options = dict(
            END=end, TURNED=turned, DENSE=a.d <= a.n0 // 2 + 1 or a.n1 == 1,
            HAS0=biases[0] is not None, HAS1=biases[1] is not None, HAS2=biases[2] is not None,
        )  # fmt: skip
        if self.last:
            runs, across, channels, warps = PAIR_LAST_TILE[source.dtype.itemsize]
            channels = min(channels, power_of_two(self.C))
            programs = self.B * -(-a.L // (4 * runs)) * -(-a.M // across) * -(-self.C // channels)
            options |= dict(WHOLE=self.C % channels == 0, RUNS=runs, BO=across, BC=channels, warps=warps)
            margin = a.n1 // 2 * a.d if a.L > 2 * a.r else a.L
            options |= dict(registers=ALL_REGISTERS)
            _triton.launch(last.lska_pair_last_kernel, programs, *arguments, margin, **options)
            return out
        along, across, summed, warps, stages = PAIR_TILES["products" if self.dot else "loads"]
        if not self.dot and self.row.L <= NARROW:
            across = NARROW
        if not self.dot and not a.vertical:
            along, across = across, along  # the long side is the contiguous one
        programs = self.B * self.C * -(-a.L // along) * -(-a.M // across)
        options |= dict(DOT=self.dot, BL=along, BO=across, BK=summed, warps=warps, stages=stages)
        options |= dict(registers=ALL_REGISTERS) if end == "gate" else {}
        _triton.launch(kernels.lska_pair_kernel, programs, *arguments, **options)
        return out

    def by_rows(self):
        """conv0h and conv_spatial_h of x, in float32."""
        return self.pair(self.x, self.map(torch.float32), "rows", (self.parts[1], None, None))

    def by_columns(self, rows):
        """s from what by_rows made."""
        return self.pair(rows, self.map(), "columns", (self.parts[3], self.parts[5], self.parts[7]))

    def gate(self, s, keep, gated=True):
        """y and the product, each where it is wanted and else empty."""
        none = self.x.new_empty(0)
        y, product = self.map() if gated else none, self.map() if keep else none
        m, n, k, warps, stages = GATE_TILE if self.dot else EXACT_GATE_TILE
        bias = s if self.conv1_bias is None else self.conv1_bias
        _triton.launch(
            kernels.lska_gate_fwd_kernel, self.B * -(-self.C // m) * -(-self.P // n),
            s, self.conv1, bias, self.x, y, product, self.C, self.P, *self.strides(),
            GATE=gated, KEEP=keep, HAS_BIAS=self.conv1_bias is not None,
            BM=m, BN=n, BK=k, warps=warps, stages=stages,
        )  # fmt: skip
        return y, product

    def gate_bwd(self, grad_y):
        """ds, the gradient of s."""
        ds = self.map()
        m, n, k, warps, stages = GATE_TILE if self.dot else EXACT_GATE_TILE
        _triton.launch(
            backward.lska_gate_bwd_kernel, self.B * -(-self.C // m) * -(-self.P // n),
            grad_y, self.x, self.conv1, ds, self.C, self.P, *self.strides(),
            BM=m, BN=n, BK=k, warps=warps, stages=stages, registers=ALL_REGISTERS,
        )  # fmt: skip
        return ds

    def mix_bwd(self, grad_y, s):
        """Gradients of conv1's weight and bias. No vendor product: the two maps' product would have to be
        stored for it, and it rounds each image's part in the half dtypes."""
        m, n, k, warps, stages = MIX_TILE
        tiles = -(-self.C // m) * -(-self.C // n)
        splits = min(self.B * -(-self.P // PIECE), max(MOST_PARTS, MIX_PROGRAMS // tiles))
        parts, bias_parts = self.floats(splits, self.C, self.C), self.floats(splits, self.C)
        _triton.launch(
            backward.lska_mix_bwd_kernel, splits * tiles,
            grad_y, self.x, s, parts, bias_parts, self.B, self.C, self.P, *self.strides(), PIECE, splits,
            BM=m, BN=n, BK=k, warps=warps, stages=stages, registers=ALL_REGISTERS,
        )  # fmt: skip
        return self.sum(parts, self.C, self.C, 1, 1), self.sum(bias_parts, self.C)

    def sum(self, parts, *shape):
        out = self.x.new_empty(shape)
        _triton.launch(
            backward.lska_sum_kernel, -(-out.numel() // BLOCK), parts, out, out.numel(), parts.shape[0],
            BLOCK=BLOCK,
        )  # fmt: skip
        return out

    def taps_bwd(self, a, grad, source, ds):
        """Gradients along one axis, by its input `source` and its output's `grad`: of the taps, of the bias
        that passes through taps1, of the one that passes through both dilated ones, and of the last."""
        edge, weights = self.row_edge, self.column_edge
        first, bias, weighted_bias = 0, self.parts[1], self.parts[3]
        if a.vertical:
            edge, weights = weights, edge
            first, bias = 2, self.parts[5]
        r, splits = min(a.r, a.L - 1), min(self.B, MOST_PARTS)
        gram = self.floats(splits, self.C, 2 * r + 1, a.L)
        sums, weighted = self.floats(splits, self.C, a.L), self.floats(splits, self.C, a.L)
        sources = (grad, source, gram), (grad, ds, weights, sums, weighted)
        self._products(a, r, splits, *sources) if self.last else self._grams(a, r, splits, *sources)
        taps0, taps1 = self.parts[first], self.parts[first + 4]
        grad0, one, two, three = torch.empty_like(taps0), *(self.x.new_empty(self.C) for _ in range(3))
        grad1 = grad0 if taps1 is None else torch.empty_like(taps1)
        _triton.launch(
            backward.lska_taps_bwd_kernel, self.C,
            gram, sums, weighted, edge, taps0, taps0 if taps1 is None else taps1,
            gram if bias is None else bias, gram if weighted_bias is None else weighted_bias,
            grad0, grad1, one, two, three, self.C, a.L, *((1, self.C) if self.last else (a.L, 1)),
            r, a.K0, a.K1, a.d, splits,
            PAIR=self.paired, COLUMNS=a.vertical,
            HAS=bias is not None, HAS_WEIGHTED=weighted_bias is not None,
            K0P=power_of_two(a.K0), K1P=power_of_two(a.K1), BX=64, registers=ALL_REGISTERS,
        )  # fmt: skip
        return grad0, grad1, one, two, three

    def _grams(self, a, r, splits, gram, lines):
        side, summed, warps, stages = GRAM_TILE
        tiles, size = splits * self.C * -(-a.L // side), (self.B, self.C, a.L, a.M, a.stride, a.other_stride)
        options = dict(BT=side, BK=summed, warps=warps, stages=stages, registers=ALL_REGISTERS)
        _triton.launch(
            backward.lska_gram_bwd_kernel, tiles * (2 * -(-r // side) + 1),
            *gram, *size, r, splits, DOT=self.dot, **options,
        )  # fmt: skip
        _triton.launch(backward.lska_lines_bwd_kernel, tiles, *lines, *size, splits, **options)

    def _products(self, a, r, splits, gram, lines):
        """The same in channels_last."""
        size = (self.B, self.C, a.L, a.M, a.stride * self.C, a.other_stride * self.C)
        near, summed, channels, warps = GRAM_LAST_TILE
        channels = min(channels, power_of_two(self.C))
        places = splits * a.L * -(-self.C // channels)
        _triton.launch(
            last.lska_gram_bwd_last_kernel, places * -(-(2 * r + 1) // near), *gram, *size, r, splits,
            BZ=near, BK=summed, BC=channels, warps=warps, registers=ALL_REGISTERS,
        )  # fmt: skip
        summed, channels, warps = LINES_LAST_TILE
        channels = min(channels, power_of_two(self.C))
        _triton.launch(
            last.lska_lines_bwd_last_kernel, splits * a.L * -(-self.C // channels), *lines, *size, splits,
            BK=summed, BC=channels, warps=warps, registers=ALL_REGISTERS,
        )  # fmt: skip


def power_of_two(n):
    return 1 << (int(n) - 1).bit_length()


def no_pair(x):
    """The gradients of a dilated pair that is not there."""
    return [x.new_empty(shape) for shape in ((0, 1, 1, 0), (0,), (0, 1, 0, 1), (0,))]


def cascade_fwd(x, *rest):
    """`lska_ops::lska_cascade_fwd_triton`"""
    *weights, dilation = rest
    if not x.numel():
        return torch.empty_like(x)
    call = Call(x, weights, dilation)
    return call.by_columns(call.by_rows())


def fwd(x, *rest):
    """`lska_ops::lska_fwd_triton`"""
    *weights, dilation, keep_product = rest
    if not x.numel():
        return torch.empty_like(x), torch.empty_like(x) if keep_product else x.new_empty(0)
    call = Call(x, weights, dilation)
    return call.gate(call.by_columns(call.by_rows()), keep_product)


def bwd(grad_y, x, product, *rest):
    """`lska_ops::lska_bwd_triton`"""
    *weights, dilation = rest
    if not x.numel():
        given = [t for t in weights[::2] if t is not None]
        grads = [x.new_zeros(shape) for t in given for shape in (t.shape, t.shape[:1])]
        pair = no_pair(x) if len(given) == 3 else ()
        return torch.empty_like(x), *grads[:4], *pair, *grads[4:]
    call = Call(x, weights, dilation)
    grad_y = call.like_x(grad_y)
    rows = call.by_rows()
    s = call.by_columns(rows)
    if not product.numel():
        product = call.gate(s, keep=True, gated=False)[1]
    grad_conv1, grad_conv1_bias = call.mix_bwd(grad_y, s)
    ds = call.gate_bwd(grad_y)
    turned = call.pair(ds, call.map(torch.float32), "none", turned=True)
    v0, v1, b1h, b0v, b1v = call.taps_bwd(call.column, ds, rows, ds)
    h0, h1, b0h, _, _ = call.taps_bwd(call.row, turned, call.x, ds)
    grad_x = call.pair(
        turned, call.map(), "gate", (call.conv1_bias, None, None), True, grad_y, call.like_x(product)
    )
    pair = (h1, b1h, v1, b1v) if call.paired else no_pair(x)
    return grad_x, h0, b0h, v0, b0v, *pair, grad_conv1, grad_conv1_bias
