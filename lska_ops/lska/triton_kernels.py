"""LSKA's Triton kernels: the cascade by a band of composite taps for each direction, the gate as a product.

Rows and columns commute: s = V (X H^T) with banded H = H1 H0 and V = V1 V0, exact at the borders, and the
biases pass through the same bands. `lska_bands_kernel` makes a channel's band, `lska_pair_kernel` applies it.
"""

import triton
import triton.language as tl

from .. import _triton

# Numbers for whose divisors and ones no kernel is compiled anew; those of a map's sides are worth it.
SIZES = ("B", "N", "n0", "n1", "K0", "K1", "d", "e", "r", "size", "splits")

# Triton's interpreter multiplies the bits of bfloat16.
INTERPRETED = tl.constexpr(_triton.INTERPRETED)

# In a band an entry that no pair of taps reaches is -0.0; the sum 0 of taps that do is +0.0. The map is not
# read there, as PyTorch does not, so that NaN and infinity go no farther.
DEAD = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=SIZES)
def lska_bands_kernel(
    taps0, taps1, band, edge, C, L, N, size, r, K0, n0, K1, n1, d, e,
    PAIR: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Owns BLOCK entries of the bands. Entry (q, i) is what output i takes of input i + delta(q),
    delta = q // e * d + q % e - r: the sum over the taps1 [C, K1] whose own place is on the map, times taps0
    [C, K0]. Of K0 and K1 only the middle n0 and n1 reach the map.

    Writes band [C, N, L] and edge [C, L], the sum of the taps1 on the map; LAST: [N, L, C] and [L, C].
    """
    if LAST:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        channel = at % C
        q = at // C // L
        i = at // C % L
        entry = at
        of_edge = at
    else:
        blocks = tl.cdiv(size, BLOCK)
        channel = (tl.program_id(0) // blocks).to(tl.int64)
        at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        q = at // L
        i = at % L
        entry = channel * size + at
        of_edge = channel * L + i
    j = i + q // e * d + q % e - r
    on_map = (at < size) & (j >= 0) & (j < L)
    value = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    reached = tl.zeros([BLOCK], tl.int32)
    for t in range(n1):
        middle = i + (t - n1 // 2) * d
        tap = j - middle + n0 // 2
        there = (middle >= 0) & (middle < L)
        taken = on_map & there & (tap >= 0) & (tap < n0)
        w1 = 1.0
        if PAIR:
            w1 = tl.load(taps1 + channel * K1 + (K1 - n1) // 2 + t).to(tl.float32)  # channel < C always
        w0 = tl.load(taps0 + channel * K0 + (K0 - n0) // 2 + tap, mask=taken, other=0).to(tl.float32)
        value += tl.where(taken, w0 * w1, 0.0)
        total += tl.where(there, w1, 0.0)
        reached |= taken.to(tl.int32)
    value = tl.where(value == 0, 0.0, value)
    bits = tl.where(reached != 0, value.to(tl.int32, bitcast=True), DEAD)
    tl.store(band + entry, bits.to(tl.float32, bitcast=True), mask=at < size)
    tl.store(edge + of_edge, total, mask=(at < size) & (q == 0))


@triton.jit
def _dot(a, b, acc):
    """acc + a b, summed in float32; of float32 without tensor cores."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _halves(a):
    """fp32 as two bf16, whose sum is off by 2^-17 of it."""
    high = a.to(tl.bfloat16)
    return high, (a - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _product(a, b, acc):
    """acc + a b of fp32 or bf16 on tensor cores; what is left out is 2^-16 of |a| |b|."""
    if a.dtype == tl.bfloat16:
        b_high, b_low = _halves(b.to(tl.float32))
        return _dot(a, b_high, _dot(a, b_low, acc))
    a_high, a_low = _halves(a.to(tl.float32))
    if b.dtype == tl.bfloat16:
        return _dot(a_high, b, _dot(a_low, b, acc))
    b_high, b_low = _halves(b.to(tl.float32))
    return _dot(a_high, b_high, _dot(a_high, b_low, _dot(a_low, b_high, acc)))


@triton.jit
def _by_loads(
    source, band, first, other, L, M, stride, other_stride, N, r, d, e,
    TURNED: tl.constexpr, DENSE: tl.constexpr, BL: tl.constexpr, BO: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The band times a tile of the map, one shifted load for each diagonal that meets it.

    DENSE: all entries on the map are reached, so that nothing waits for what the band says of that.
    AT_ONCE: so many diagonals' loads are under way before the first product.
    """
    pos = first + tl.arange(0, BL)
    acc = tl.zeros([BL, BO], tl.float32)
    begin = 0
    end = N
    if DENSE:
        begin = tl.maximum(r - (L - 1 - first if TURNED else first + BL - 1), 0)
        end = tl.minimum(r + (first + BL if TURNED else L - first), N)
    for start in range(begin, end, AT_ONCE):
        for u in tl.static_range(AT_ONCE):
            q = start + u
            delta = (q if DENSE else q // e * d + q % e) - r
            at = pos - delta if TURNED else pos + delta
            row = at if TURNED else pos
            taken = (pos < L) & (at >= 0) & (at < L) & (q < end)
            weight = tl.load(band + q * L + row, mask=taken, other=0)
            if not DENSE:
                taken &= weight.to(tl.int32, bitcast=True) != DEAD
            value = tl.load(
                source + at[:, None] * stride + other[None, :] * other_stride,
                mask=taken[:, None] & (other < M)[None, :], other=0,
            )  # fmt: skip
            acc += weight[:, None] * value.to(tl.float32)
    return acc


@triton.jit
def _by_products(
    source, band, first, other, L, M, stride, other_stride, r, d, e,
    TURNED: tl.constexpr, DENSE: tl.constexpr, BL: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same as products of tiles, of those that the band touches: at a cost that hardly depends on it."""
    pos = first + tl.arange(0, BL)
    acc = tl.zeros([BL, BO], tl.float32)
    for start in range(tl.maximum(first - r, 0), tl.minimum(first + BL + r, L), BK):
        k = start + tl.arange(0, BK)
        delta = pos[:, None] - k[None, :] if TURNED else k[None, :] - pos[:, None]
        z = delta + r
        row = k[None, :] if TURNED else pos[:, None]
        taken = (pos < L)[:, None] & (k < L)[None, :] & (z >= 0) & (z <= 2 * r)
        if not DENSE:
            taken &= z % d < e
            z = z // d * e + z % d
        weight = tl.load(band + z * L + row, mask=taken, other=0)
        value = tl.load(
            source + k[:, None] * stride + other[None, :] * other_stride,
            mask=(k < L)[:, None] & (other < M)[None, :], other=0,
        )  # fmt: skip
        acc = _product(weight, value, acc)
    return acc


@triton.jit(do_not_specialize=SIZES)
def lska_pair_kernel(
    source, band, edge, out, other_edge, bias0, bias1, bias2, grad_y, product,
    C, L, M, stride, other_stride, N, r, d, e,
    END: tl.constexpr, TURNED: tl.constexpr, DENSE: tl.constexpr,
    HAS0: tl.constexpr, HAS1: tl.constexpr, HAS2: tl.constexpr,
    DOT: tl.constexpr, BL: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Owns a tile of a plane: BL positions along the band's axis, of L, times BO of the M across it.

    Reads source [B, C, H, W] and band [C, N, L], turned for the transposed band; writes out [B, C, H, W].
    DENSE: a pair of taps reaches each of the band's entries on the map. DOT: by products on tensor cores. END
    says what is added:
    rows     bias0 of conv0h, through conv_spatial_h
    columns  bias0 of conv0v through the dilated pair, bias1 of conv_spatial_h through conv_spatial_v, bias2
    gate     grad_y (product + bias0), the gate's part of grad_x
    """
    tiles_o = tl.cdiv(M, BO)
    tiles = tl.cdiv(L, BL) * tiles_o
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    channel = plane % C
    first = tile // tiles_o * BL
    pos = first + tl.arange(0, BL)
    other = tile % tiles_o * BO + tl.arange(0, BO)
    plane *= L * M
    source += plane
    band += channel * N * L
    if DOT:
        acc = _by_products(
            source, band, first, other, L, M, stride, other_stride, r, d, e, TURNED, DENSE, BL, BO, BK
        )
        # 0 times NaN or infinity: only what is finite may be multiplied with what the band does not hold.
        if tl.max((tl.abs(acc) < float("inf")).to(tl.int32) ^ 1) > 0:
            acc = _by_loads(
                source, band, first, other, L, M, stride, other_stride, N, r, d, e, TURNED, DENSE, BL, BO, 1
            )
    else:
        acc = _by_loads(
            source, band, first, other, L, M, stride, other_stride, N, r, d, e, TURNED, DENSE, BL, BO, 4
        )
    at = pos[:, None] * stride + other[None, :] * other_stride
    on_map = (pos < L)[:, None] & (other < M)[None, :]
    if END == "rows":
        if HAS0:
            b0 = tl.load(bias0 + channel).to(tl.float32)
            acc += (b0 * tl.load(edge + channel * L + pos, mask=pos < L, other=0))[:, None]
    if END == "columns":
        line = tl.zeros([BO], tl.float32)
        if HAS0:
            b0 = tl.load(bias0 + channel).to(tl.float32)
            line += b0 * tl.load(other_edge + channel * M + other, mask=other < M, other=0)
        if HAS1:
            line += tl.load(bias1 + channel).to(tl.float32)
        if HAS0 or HAS1:
            acc += tl.load(edge + channel * L + pos, mask=pos < L, other=0)[:, None] * line[None, :]
        if HAS2:
            acc += tl.load(bias2 + channel).to(tl.float32)
    if END == "gate":
        a = tl.load(product + plane + at, mask=on_map, other=0).to(tl.float32)
        if HAS0:
            a += tl.load(bias0 + channel).to(tl.float32)
        acc += tl.load(grad_y + plane + at, mask=on_map, other=0).to(tl.float32) * a
    tl.store(out + plane + at, acc.to(out.dtype.element_ty), mask=on_map)


@triton.jit
def lska_gate_fwd_kernel(
    s, weight, bias, x, y, product, C, P, next_channel, next_pixel,
    GATE: tl.constexpr, KEEP: tl.constexpr, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Owns BM channels times BN pixels of an image: y = (weight s + bias) x, all of [B, C, P] in either
    order, weight [C, C].

    Writes y if GATE, and if KEEP product = weight s. Any backend's s will do.
    """
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
        w = tl.load(weight + m[:, None] * C + k[None, :], mask=(m < C)[:, None] & (k < C)[None, :], other=0)
        values = tl.load(
            s + image * size + k[:, None].to(tl.int64) * next_channel + n[None, :].to(tl.int64) * next_pixel,
            mask=(k < C)[:, None] & (n < P)[None, :], other=0,
        )  # fmt: skip
        acc = _dot(w, values, acc)
    at = image * size + m[:, None].to(tl.int64) * next_channel + n[None, :].to(tl.int64) * next_pixel
    on_map = (m < C)[:, None] & (n < P)[None, :]
    if KEEP:
        tl.store(product + at, acc.to(product.dtype.element_ty), mask=on_map)
    if GATE:
        if HAS_BIAS:
            acc += tl.load(bias + m, mask=m < C, other=0).to(tl.float32)[:, None]
        acc *= tl.load(x + at, mask=on_map, other=0).to(tl.float32)
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=on_map)
