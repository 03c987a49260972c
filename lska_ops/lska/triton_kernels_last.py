"""LSKA's Triton kernels of maps in channels_last: along an axis, and what the taps' gradients are sums of.

A program has neighbouring channels, of which each has a weight of its own at every step along the axis. None
of it is a product of matrices, which would mix channels.
"""

import triton
import triton.language as tl

from .triton_kernels import DEAD, SIZES


@triton.jit
def _term(
    acc, value, P: tl.constexpr, step, band, first, c, L, C, N, r, d, e, margin,
    TURNED: tl.constexpr, DENSE: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """acc, of the P-th position of each run from `first` on, plus its weight of the value `step` places on.

    CHECKED: the value may lie outside of the position's window. What is not taken must not be multiplied.
    """
    z = (P - step if TURNED else step - P) + r
    q = z if DENSE else z // d * e + z % d
    reached = (z >= 0) & (z <= 2 * r)
    if not DENSE:
        reached = reached & (z % d < e)
    row = first + (step if TURNED else P)
    row = tl.where((row >= margin) & (row < L - margin), L // 2, row)
    row = tl.minimum(tl.maximum(row, 0), L - 1)
    entry = band + (tl.minimum(tl.maximum(q, 0), N - 1) * L + row).to(tl.int64) * C + c
    if CHECKED:
        weight = tl.load(entry)
        if not DENSE:
            reached = reached & (weight.to(tl.int32, bitcast=True) != DEAD)
        return acc + tl.where(reached, weight * value, 0.0)
    return acc + tl.load(entry) * value


@triton.jit
def _terms(
    acc0, acc1, acc2, acc3, source, step, band, first, lanes, c, here, L, C, stride, N, r, d, e, margin,
    TURNED: tl.constexpr, DENSE: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """What the values `step` places from where each run begins add to the run's four positions."""
    at = first + step
    taken = here & (at >= 0) & (at < L)
    value = tl.load(source + at.to(tl.int64) * stride + lanes, mask=taken, other=0).to(tl.float32)
    acc0 = _term(acc0, value, 0, step, band, first, c, L, C, N, r, d, e, margin, TURNED, DENSE, CHECKED)
    acc1 = _term(acc1, value, 1, step, band, first, c, L, C, N, r, d, e, margin, TURNED, DENSE, CHECKED)
    acc2 = _term(acc2, value, 2, step, band, first, c, L, C, N, r, d, e, margin, TURNED, DENSE, CHECKED)
    acc3 = _term(acc3, value, 3, step, band, first, c, L, C, N, r, d, e, margin, TURNED, DENSE, CHECKED)
    return acc0, acc1, acc2, acc3


@triton.jit
def _end(
    acc, pos, edge, out, other_edge, bias0, bias1, bias2, grad_y, product, image, lanes, other, c, here,
    C, L, stride,
    END: tl.constexpr, HAS0: tl.constexpr, HAS1: tl.constexpr, HAS2: tl.constexpr,
):  # fmt: skip
    """Adds what END says and stores."""
    here = here & (pos < L)
    place = image + pos.to(tl.int64) * stride + lanes
    if END == "rows":
        if HAS0:
            b0 = tl.load(bias0 + c).to(tl.float32)
            acc += b0 * tl.load(edge + pos * C + c, mask=here, other=0)
    if END == "columns":
        if HAS0 or HAS1:
            line = tl.zeros_like(acc)
            if HAS0:
                b0 = tl.load(bias0 + c).to(tl.float32)
                line += b0 * tl.load(other_edge + other * C + c, mask=here, other=0)
            if HAS1:
                line += tl.load(bias1 + c).to(tl.float32)
            acc += tl.load(edge + pos * C + c, mask=here, other=0) * line
        if HAS2:
            acc += tl.load(bias2 + c).to(tl.float32)
    if END == "gate":
        a = tl.load(product + place, mask=here, other=0).to(tl.float32)
        if HAS0:
            a += tl.load(bias0 + c).to(tl.float32)
        acc += tl.load(grad_y + place, mask=here, other=0).to(tl.float32) * a
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=(*SIZES, "margin"))
def lska_pair_last_kernel(
    source, band, edge, out, other_edge, bias0, bias1, bias2, grad_y, product,
    C, L, M, stride, other_stride, N, r, d, e, margin,
    END: tl.constexpr, TURNED: tl.constexpr, DENSE: tl.constexpr, WHOLE: tl.constexpr,
    HAS0: tl.constexpr, HAS1: tl.constexpr, HAS2: tl.constexpr,
    RUNS: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Owns RUNS runs of four positions along the band's axis, of L, times BO of the M across it, times BC
    channels.

    As lska_pair_kernel, but for maps [B, H, W, C], band [N, L, C] and edges [L, C]. A value is read once for
    the four positions of a run. Positions at least `margin` from both ends have one band, of which that in
    the middle is read. WHOLE: BC divides C.
    """
    tiles_c = tl.cdiv(C, BC)
    tiles_o = tl.cdiv(M, BO)
    tiles_l = tl.cdiv(L, 4 * RUNS)
    c = (tl.program_id(0) % tiles_c * BC + tl.arange(0, BC))[None, :]
    rest = tl.program_id(0) // tiles_c
    lane = tl.arange(0, RUNS * BO)[:, None]
    first = rest // tiles_o % tiles_l * (4 * RUNS) + lane // BO * 4
    other = rest % tiles_o * BO + lane % BO
    image = (rest // tiles_o // tiles_l).to(tl.int64) * C * L * M
    here = (other < M) & (first < L)
    if not WHOLE:
        here = here & (c < C)
        c = tl.minimum(c, C - 1)  # of whom nothing is stored
    lanes = other.to(tl.int64) * other_stride + c
    source += image
    acc0 = tl.zeros([RUNS * BO, BC], tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    full = r if DENSE else -r  # up to where all positions of a run are reached by all values
    for step in range(-r, tl.minimum(3 - r, full + 1)):
        acc0, acc1, acc2, acc3 = _terms(
            acc0, acc1, acc2, acc3, source, step, band, first, lanes, c, here,
            L, C, stride, N, r, d, e, margin, TURNED, DENSE, True,
        )  # fmt: skip
    for start in range(3 - r, full + 1, 2):  # which are as many as an even number of taps
        for u in tl.static_range(2):
            acc0, acc1, acc2, acc3 = _terms(
                acc0, acc1, acc2, acc3, source, start + u, band, first, lanes, c, here,
                L, C, stride, N, r, d, e, margin, TURNED, DENSE, False,
            )  # fmt: skip
    for step in range(tl.maximum(full + 1, -r), r + 4):
        acc0, acc1, acc2, acc3 = _terms(
            acc0, acc1, acc2, acc3, source, step, band, first, lanes, c, here,
            L, C, stride, N, r, d, e, margin, TURNED, DENSE, True,
        )  # fmt: skip
    for p in tl.static_range(4):
        acc = acc0
        if p == 1:
            acc = acc1
        if p == 2:
            acc = acc2
        if p == 3:
            acc = acc3
        _end(
            acc, first + p, edge, out, other_edge, bias0, bias1, bias2, grad_y, product, image, lanes,
            other, c, here, C, L, stride, END, HAS0, HAS1, HAS2,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def lska_gram_bwd_last_kernel(
    grad, source, gram, B, C, L, M, stride, other_stride, r, splits,
    BZ: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Owns BZ neighbours of a place along the axis and BC channels, in every splits-th image; as
    lska_gram_bwd_kernel, but for maps [B, H, W, C].
    """
    tiles_c = tl.cdiv(C, BC)
    tiles_z = tl.cdiv(2 * r + 1, BZ)
    c = tl.program_id(0) % tiles_c * BC + tl.arange(0, BC)
    rest = tl.program_id(0) // tiles_c
    z = rest % tiles_z * BZ + tl.arange(0, BZ)
    o = rest // tiles_z % L
    split = rest // tiles_z // L
    i = o + z - r
    near = (z <= 2 * r) & (i >= 0) & (i < L)
    at = i[:, None, None].to(tl.int64) * stride + c[None, None, :]
    taken = near[:, None, None] & (c < C)[None, None, :]
    acc = tl.zeros([BZ, BK, BC], tl.float32)
    for image in range(split, B, splits):
        plane = tl.cast(image, tl.int64) * C * L * M
        for start in range(0, M, BK):
            k = (start + tl.arange(0, BK))[None, :, None].to(tl.int64)
            g = tl.load(
                grad + plane + o.to(tl.int64) * stride + k * other_stride + c[None, None, :],
                mask=(k < M) & (c < C)[None, None, :], other=0,
            )  # fmt: skip
            values = tl.load(source + plane + at + k * other_stride, mask=taken & (k < M), other=0)
            acc += g.to(tl.float32) * values.to(tl.float32)
    part = (split.to(tl.int64) * C + c) * (2 * r + 1) * L
    place = part[None, :] + z[:, None] * L + o
    tl.store(gram + place, tl.sum(acc, 1), mask=near[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def lska_lines_bwd_last_kernel(
    grad, ds, weights, sums, weighted, B, C, L, M, stride, other_stride, splits,
    BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Owns a line of BC channels, in every splits-th image; as lska_lines_bwd_kernel, but for maps
    [B, H, W, C] and weights [M, C].
    """
    tiles_c = tl.cdiv(C, BC)
    c = tl.program_id(0) % tiles_c * BC + tl.arange(0, BC)
    o = tl.program_id(0) // tiles_c % L
    split = tl.program_id(0) // tiles_c // L
    total = tl.zeros([BK, BC], tl.float32)
    weighed = tl.zeros([BK, BC], tl.float32)
    for image in range(split, B, splits):
        plane = tl.cast(image, tl.int64) * C * L * M
        for start in range(0, M, BK):
            k = start + tl.arange(0, BK)
            at = plane + o.to(tl.int64) * stride + k[:, None].to(tl.int64) * other_stride + c[None, :]
            on_map = (k < M)[:, None] & (c < C)[None, :]
            total += tl.load(grad + at, mask=on_map, other=0).to(tl.float32)
            w = tl.load(weights + k[:, None] * C + c[None, :], mask=on_map, other=0)
            weighed += tl.load(ds + at, mask=on_map, other=0).to(tl.float32) * w
    at = (split.to(tl.int64) * C + c) * L + o
    tl.store(sums + at, tl.sum(total, 0), mask=c < C)
    tl.store(weighted + at, tl.sum(weighed, 0), mask=c < C)
