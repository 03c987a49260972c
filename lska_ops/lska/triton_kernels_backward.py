"""LSKA's Triton kernels of the backward pass; ds is the gradient of the cascade's output s.

A band's gradient is a Gram matrix of the map's lines near its diagonal, so no stage's output is kept: the
taps' gradients are sums along the matrix's diagonals. Sums have a fixed order, parts one after the other.
"""

import triton
import triton.language as tl

from .triton_kernels import SIZES, _dot, _product

PARTS_AT_ONCE = tl.constexpr(4)  # of a sum, whose loads are all under way before the first is added


@triton.jit
def lska_gate_bwd_kernel(
    grad_y, x, weight, ds, C, P, next_channel, next_pixel,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Owns BM channels times BN pixels of an image: ds = weight^T (grad_y x), the maps [B, C, P] in either
    order."""
    tiles_m = tl.cdiv(C, BM)
    tiles = tiles_m * tl.cdiv(P, BN)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    m = tile % tiles_m * BM + tl.arange(0, BM)
    n = tile // tiles_m * BN + tl.arange(0, BN)
    size = tl.cast(C, tl.int64) * P
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, C, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(weight + k[None, :] * C + m[:, None], mask=(m < C)[:, None] & (k < C)[None, :], other=0)
        at = image * size + k[:, None].to(tl.int64) * next_channel + n[None, :].to(tl.int64) * next_pixel
        on_map = (k < C)[:, None] & (n < P)[None, :]
        gated = tl.load(grad_y + at, mask=on_map, other=0).to(tl.float32)
        gated *= tl.load(x + at, mask=on_map, other=0).to(tl.float32)
        acc = _dot(w, gated.to(w.dtype), acc)
    at = image * size + m[:, None].to(tl.int64) * next_channel + n[None, :].to(tl.int64) * next_pixel
    tl.store(ds + at, acc.to(ds.dtype.element_ty), mask=(m < C)[:, None] & (n < P)[None, :])


@triton.jit(do_not_specialize=SIZES)
def lska_mix_bwd_kernel(
    grad_y, x, s, parts, bias_parts, B, C, P, next_channel, next_pixel, PIECE, splits,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Owns BM x BN of conv1's gradient over every splits-th piece of PIECE pixels: parts [splits, C, C] of
    (grad_y x) s^T, and bias_parts [splits, C] of the sum of grad_y x; maps [B, C, P] in either order.
    """
    tiles_n = tl.cdiv(C, BN)
    tiles = tl.cdiv(C, BM) * tiles_n
    split = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    m = tile // tiles_n * BM + tl.arange(0, BM)
    n = tile % tiles_n * BN + tl.arange(0, BN)
    pieces = tl.cdiv(P, PIECE)
    size = tl.cast(C, tl.int64) * P
    acc = tl.zeros([BM, BN], tl.float32)
    total = tl.zeros([BM], tl.float32)
    for piece in range(split, B * pieces, splits):
        start = piece % pieces * PIECE
        image = piece // pieces * size
        for first in range(start, tl.minimum(start + PIECE, P), BK):
            p = first + tl.arange(0, BK)
            at = image + m[:, None].to(tl.int64) * next_channel + p[None, :].to(tl.int64) * next_pixel
            on_map = (m < C)[:, None] & (p < P)[None, :]
            gated = tl.load(grad_y + at, mask=on_map, other=0).to(tl.float32)
            gated *= tl.load(x + at, mask=on_map, other=0).to(tl.float32)
            values = tl.load(
                s + image + n[None, :].to(tl.int64) * next_channel + p[:, None].to(tl.int64) * next_pixel,
                mask=(n < C)[None, :] & (p < P)[:, None], other=0,
            )  # fmt: skip
            total += tl.sum(gated, 1)
            acc = _dot(gated.to(values.dtype), values, acc)
    at = split.to(tl.int64) * C * C + m[:, None] * C + n[None, :]
    tl.store(parts + at, acc, mask=(m < C)[:, None] & (n < C)[None, :])
    if tile % tiles_n == 0:
        tl.store(bias_parts + split * C + m, total, mask=m < C)


@triton.jit(do_not_specialize=SIZES)
def lska_sum_kernel(parts, out, size, splits, BLOCK: tl.constexpr):
    """Owns BLOCK of out's `size` numbers: the sum of parts [splits, size] in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, splits, PARTS_AT_ONCE):
        for u in tl.static_range(PARTS_AT_ONCE):
            total += tl.load(parts + at, mask=(at < size) & (start + u < splits), other=0)
            parts += size
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)


@triton.jit(do_not_specialize=SIZES)
def lska_gram_bwd_kernel(
    grad, source, gram, B, C, L, M, stride, other_stride, r, splits,
    DOT: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Owns BT x BT products of a channel's lines, of those that the band touches, in every splits-th image.

    gram [splits, C, 2 r + 1, L] at (i - o + r, o) is the sum of grad(o) source(i) over the images and what is
    across the axis: the gradient of a band's entries. grad, source [B, C, H, W].
    """
    back = tl.cdiv(r, BT)
    tiles = tl.cdiv(L, BT)
    step = tl.program_id(0) % (2 * back + 1) - back
    tile = tl.program_id(0) // (2 * back + 1) % tiles
    rest = tl.program_id(0) // (2 * back + 1) // tiles
    channel = (rest % C).to(tl.int64)
    split = rest // C
    if (tile + step >= 0) & (tile + step < tiles):
        o = tile * BT + tl.arange(0, BT)
        i = (tile + step) * BT + tl.arange(0, BT)
        acc = tl.zeros([BT, BT], tl.float32)
        for image in range(split, B, splits):
            plane = (channel + tl.cast(image, tl.int64) * C) * (L * M)
            for start in range(0, M, BK):
                k = start + tl.arange(0, BK)
                g = tl.load(
                    grad + plane + o[:, None] * stride + k[None, :] * other_stride,
                    mask=(o < L)[:, None] & (k < M)[None, :], other=0,
                )  # fmt: skip
                values = tl.load(
                    source + plane + i[None, :] * stride + k[:, None] * other_stride,
                    mask=(i < L)[None, :] & (k < M)[:, None], other=0,
                )  # fmt: skip
                if DOT:
                    acc = _product(g, values, acc)
                else:
                    acc = _dot(g.to(tl.float32), values.to(tl.float32), acc)
        z = i[None, :] - o[:, None] + r
        taken = (o < L)[:, None] & (i < L)[None, :] & (z >= 0) & (z <= 2 * r)
        part = (split.to(tl.int64) * C + channel) * (2 * r + 1) * L
        tl.store(gram + part + z * L + o[:, None], acc, mask=taken)


@triton.jit(do_not_specialize=SIZES)
def lska_lines_bwd_kernel(
    grad, ds, weights, sums, weighted, B, C, L, M, stride, other_stride, splits,
    BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Owns BT lines of a channel across an axis, in every splits-th image: sums [splits, C, L] of grad, and
    weighted [splits, C, L] of ds times weights [C, M]; grad, ds [B, C, H, W]. The biases' gradients.
    """
    tiles = tl.cdiv(L, BT)
    tile = tl.program_id(0) % tiles
    channel = (tl.program_id(0) // tiles % C).to(tl.int64)
    split = tl.program_id(0) // tiles // C
    o = tile * BT + tl.arange(0, BT)
    total = tl.zeros([BT], tl.float32)
    weighed = tl.zeros([BT], tl.float32)
    for image in range(split, B, splits):
        plane = (channel + tl.cast(image, tl.int64) * C) * (L * M)
        for start in range(0, M, BK):
            k = start + tl.arange(0, BK)
            at = o[:, None] * stride + k[None, :] * other_stride
            on_map = (o < L)[:, None] & (k < M)[None, :]
            total += tl.sum(tl.load(grad + plane + at, mask=on_map, other=0).to(tl.float32), 1)
            w = tl.load(weights + channel * M + k, mask=k < M, other=0)
            gradient = tl.load(ds + plane + at, mask=on_map, other=0).to(tl.float32)
            weighed += tl.sum(gradient * w[None, :], 1)
    at = (split.to(tl.int64) * C + channel) * L + o
    tl.store(sums + at, total, mask=o < L)
    tl.store(weighted + at, weighed, mask=o < L)


@triton.jit(do_not_specialize=SIZES)
def lska_taps_bwd_kernel(
    gram, sums, weighted, edge, taps0, taps1, bias, weighted_bias,
    grad0, grad1, grad_edge, grad_weighted, grad_sum, C, L, of_channel, of_position, r, K0, K1, d, splits,
    PAIR: tl.constexpr, COLUMNS: tl.constexpr, HAS: tl.constexpr, HAS_WEIGHTED: tl.constexpr,
    K0P: tl.constexpr, K1P: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Owns a channel's taps along one axis: from gram's diagonals grad0 [C, K0] and grad1 [C, K1], each
    by the other's taps, plus what the biases in front of taps1 pass through them; then the biases', [C]. edge
    is [C, L] in either order.
    """
    channel = tl.program_id(0).to(tl.int64)
    t0 = tl.arange(0, K0P)
    t1 = tl.arange(0, K1P)
    w0 = tl.load(taps0 + channel * K0 + t0, mask=t0 < K0, other=0).to(tl.float32)
    b = tl.load(bias + channel).to(tl.float32) if HAS else 0.0
    b_weighted = tl.load(weighted_bias + channel).to(tl.float32) if HAS_WEIGHTED else 0.0
    acc0 = tl.zeros([K0P], tl.float32)
    acc1 = tl.zeros([K1P], tl.float32)
    for t in range(K1):
        reach = (t - K1 // 2) * d
        w1 = 1.0
        if PAIR:
            w1 = tl.load(taps1 + channel * K1 + t).to(tl.float32)
        found = tl.zeros([K0P], tl.float32)
        passed = tl.zeros([BX], tl.float32)
        for start in range(0, L, BX):
            o = start + tl.arange(0, BX)
            there = (o < L) & (o + reach >= 0) & (o + reach < L)
            delta = reach + t0 - K0 // 2
            i = o[None, :] + delta[:, None]
            taken = there[None, :] & (t0 < K0)[:, None] & (i >= 0) & (i < L)
            total = tl.zeros([K0P, BX], tl.float32)
            for first in range(0, splits, PARTS_AT_ONCE):
                for u in tl.static_range(PARTS_AT_ONCE):
                    some = first + u < splits
                    part = channel + tl.cast(first + u, tl.int64) * C
                    at = (part * (2 * r + 1) + delta[:, None] + r) * L + o[None, :]
                    total += tl.load(gram + at, mask=taken & some, other=0)
                    if PAIR and HAS:
                        passed += b * tl.load(sums + part * L + o, mask=there & some, other=0)
                    if PAIR and HAS_WEIGHTED:
                        passed += b_weighted * tl.load(weighted + part * L + o, mask=there & some, other=0)
            found += tl.sum(total, 1)
        acc0 += found * w1
        if PAIR:
            through = tl.sum(tl.where(t0 < K0, found * w0, 0.0)) + tl.sum(passed)
            acc1 = tl.where(t1 == t, through, acc1)
    tl.store(grad0 + channel * K0 + t0, acc0.to(grad0.dtype.element_ty), mask=t0 < K0)
    if PAIR:
        tl.store(grad1 + channel * K1 + t1, acc1.to(grad1.dtype.element_ty), mask=t1 < K1)
    by_edge = tl.zeros([BX], tl.float32)
    by_weights = tl.zeros([BX], tl.float32)
    plain = tl.zeros([BX], tl.float32)
    for start in range(0, L, BX):
        o = start + tl.arange(0, BX)
        on_edge = tl.load(edge + channel * of_channel + o * of_position, mask=o < L, other=0)
        for first in range(0, splits, PARTS_AT_ONCE):
            for u in tl.static_range(PARTS_AT_ONCE):
                at = (channel + tl.cast(first + u, tl.int64) * C) * L + o
                there = (o < L) & (first + u < splits)
                total = tl.load(sums + at, mask=there, other=0)
                plain += total
                by_edge += on_edge * total
                if COLUMNS:
                    by_weights += on_edge * tl.load(weighted + at, mask=there, other=0)
    if COLUMNS:
        tl.store(grad_weighted + channel, tl.sum(by_weights).to(grad0.dtype.element_ty))
        if PAIR:
            tl.store(grad_edge + channel, tl.sum(by_edge).to(grad0.dtype.element_ty))
            tl.store(grad_sum + channel, tl.sum(plain).to(grad0.dtype.element_ty))
    else:
        tl.store(grad_edge + channel, tl.sum(by_edge).to(grad0.dtype.element_ty))
