"""ACmix's attention in Triton: what its kernels share, and forward.

A program owns P pixels of one head. Where a head has more than BD dims it owns BD of them, and the logits,
which need all, are added up chunk by chunk for each.
"""

import triton
import triton.language as tl

# Numbers for whose divisors and ones no kernel is compiled anew; those of a map's sides are worth it.
SIZES = ("blocks", "strip", "maps", "columns", "rows", "cols", "splits", "pictures", "n")


@triton.jit
def strip_pixels(block, P: tl.constexpr, height, width, strip):
    """Rows and columns of the block's P pixels, and which of them lie in the map.

    A map is walked through strip by strip of `strip` columns: a block of a wide map then is less of a line,
    and fewer pixels around it are read.
    """
    n = block * P + tl.arange(0, P)
    of_strip = height * strip
    nth = n // of_strip
    n -= nth * of_strip
    y = n // strip
    x = nth * strip + n - y * strip
    return y, x, x < width


@triton.jit
def split_program(blocks, shares):
    """This program's block of pixels, its share (a head, a dim, a part of one) and its picture (64 bits)."""
    program = tl.program_id(0)
    block = program % blocks
    rest = program // blocks
    return block, rest % shares, (rest // shares).to(tl.int64)


@triton.jit
def per_pixel(L):
    """How far neighbours on a side of L pixels are apart in coordinates; a side of one has none."""
    return 2.0 / tl.maximum(tl.cast(L, tl.int32) - 1, 1).to(tl.float32)


@triton.jit
def reflected(i, L, SMALL: tl.constexpr):
    """Where a tap at i falls on a side of L pixels; SMALL: the window may reach beyond one reflection."""
    i = tl.abs(i)
    if SMALL:
        i = i % tl.maximum(2 * (L - 1), 1)
    return tl.minimum(i, 2 * (L - 1) - i)


@triton.jit
def times_hit(
    query, key, L, K: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr, SMALL: tl.constexpr
):
    """How many of the K taps (of a power of 2 TAPS) around `query` fall on `key`, on one side of the map."""
    REACH: tl.constexpr = K // 2 * DILATION
    if SMALL or DILATION > 1:
        tap = tl.arange(0, TAPS)
        there = reflected(query[:, None] + (tap * DILATION - REACH)[None, :], L, SMALL)
        return tl.sum(((there == key[:, None]) & (tap < K)[None, :]).to(tl.int32), 1)
    # Directly, by way of the first pixel, by way of the last; those two pixels are not reflected themselves.
    direct = (tl.abs(query - key) <= REACH).to(tl.int32)
    first = ((key > 0) & (query + key <= REACH)).to(tl.int32)
    last = ((key < L - 1) & (2 * (L - 1) - query - key <= REACH)).to(tl.int32)
    return direct + first + last


@triton.jit
def dims_of(first_dim, D, plane, BD: tl.constexpr, WIDE: tl.constexpr, LAST: tl.constexpr):
    """Where the maps of BD dims of a head begin, from first_dim on, ``[BD, 1]``, and which of them there are.

    WIDE: in 64 bits; each of these offsets is a register for as long as the window is walked through. LAST:
    in channels_last, where a head's dims lie next to each other.
    """
    dims = first_dim + tl.arange(0, BD)
    if LAST:
        offsets = dims
    elif WIDE:
        offsets = dims.to(tl.int64) * plane
    else:
        offsets = dims * plane.to(tl.int32)
    return offsets[:, None], (dims < D)[:, None]


@triton.jit
def pixels_of(row, col, width, channels, WIDE: tl.constexpr, LAST: tl.constexpr):
    """Where these pixels lie in a map: with LAST as far apart as the pixel has channels."""
    at = row * width + col
    if LAST:
        at = (at.to(tl.int64) if WIDE else at) * channels
    return at


@triton.jit
def load_position(conv_p, first_dim, D, BD: tl.constexpr):
    """conv_p's slopes of these dims along x and along y."""
    dims = first_dim + tl.arange(0, BD)
    along_x = tl.load(conv_p + 2 * dims, mask=dims < D, other=0.0).to(tl.float32)
    along_y = tl.load(conv_p + 2 * dims + 1, mask=dims < D, other=0.0).to(tl.float32)
    return along_x, along_y


@triton.jit
def product(
    a, a_plane, a_pixels, b, b_plane, b_pixels, mask, D,
    BD: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Sum over all dims of a head, chunk by chunk, of two maps each at its own pixels."""
    sums = tl.zeros_like(a_pixels).to(tl.float32)
    for chunk in range(CHUNKS):
        of_a, is_dim = dims_of(chunk * BD, D, a_plane, BD, WIDE, LAST)
        of_b, _ = dims_of(chunk * BD, D, b_plane, BD, WIDE, LAST)
        both = is_dim & mask[None, :]
        values = tl.load(a + (of_a + a_pixels[None, :]), mask=both, other=0.0).to(tl.float32)
        sums += tl.sum(
            values * tl.load(b + (of_b + b_pixels[None, :]), mask=both, other=0.0).to(tl.float32), 0
        )
    return sums


@triton.jit
def slopes_of(
    q, conv_p, pixels, mask, D, plane,
    BD: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """How the logits of these queries rise along x and along y, before the scale."""
    along_x = tl.zeros_like(pixels).to(tl.float32)
    along_y = along_x
    for chunk in range(CHUNKS):
        dims, is_dim = dims_of(chunk * BD, D, plane, BD, WIDE, LAST)
        values = tl.load(q + (dims + pixels[None, :]), mask=is_dim & mask[None, :], other=0.0).to(tl.float32)
        p_x, p_y = load_position(conv_p, chunk * BD, D, BD)
        along_x += tl.sum(values * p_x[:, None], 0)
        along_y += tl.sum(values * p_y[:, None], 0)
    return along_x, along_y


@triton.jit(do_not_specialize=SIZES)
def acmix_fwd_kernel(
    qkv, conv_p, rate1, before, y, lse, blocks, G, D, H, W, Ho, Wo, strip,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, SMALL: tl.constexpr, ADDS: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr, P: tl.constexpr, SCALE: tl.constexpr,
    WIDE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """A program owns P outputs of (a chunk of) one head: reference.attention, times rate1.

    Reads q [B, 3C, H, W] there, k and v at every tap of the window, and with ADDS what the shift has written
    to `before`, like y; keeps the running maximum, sum and values of the softmax in registers; writes
    y [B, C, Ho, Wo] and lse [B, G, Ho, Wo]. LAST: qkv, before and y are in channels_last.
    """
    block, share, image = split_program(blocks, G * CHUNKS)
    head, dim = share // CHUNKS, share % CHUNKS * BD
    row, col, inside = strip_pixels(block, P, Ho, Wo, strip)
    plane, C = tl.cast(H, tl.int64) * W, G * D
    next_map = 1 if LAST else plane
    q = qkv + image * 3 * C * plane + head * D * next_map
    k, v = q + C * next_map, q + 2 * C * next_map
    here_y, here_x, per_y, per_x = row * STRIDE, col * STRIDE, per_pixel(H), per_pixel(W)
    here = pixels_of(here_y, here_x, W, 3 * C, WIDE, LAST)
    slope_x, slope_y = slopes_of(q, conv_p, here, inside, D, plane, BD, CHUNKS, WIDE, LAST)
    of_dims, is_dim = dims_of(dim, D, plane, BD, WIDE, LAST)
    mask = is_dim & inside[None, :]
    if CHUNKS == 1:
        own_q = tl.load(q + (of_dims + here[None, :]), mask=mask, other=0.0).to(tl.float32)
    top = tl.full((P,), -3.4e38, tl.float32)
    total = tl.zeros((P,), tl.float32)
    out = tl.zeros((BD, P), tl.float32)
    for tap_y in range(K):
        there_y = reflected(here_y + (tap_y - K // 2) * DILATION, H, SMALL)
        rise_y = slope_y * ((here_y - there_y).to(tl.float32) * per_y)
        for tap_x in range(K):
            there_x = reflected(here_x + (tap_x - K // 2) * DILATION, W, SMALL)
            there = pixels_of(there_y, there_x, W, 3 * C, WIDE, LAST)
            at = of_dims + there[None, :]
            if CHUNKS == 1:
                keys = tl.load(k + at, mask=mask, other=0.0).to(tl.float32)
                sums = tl.sum(own_q * keys, 0)
            else:
                sums = product(q, plane, here, k, plane, there, inside, D, BD, CHUNKS, WIDE, LAST)
            logit = SCALE * (sums + (slope_x * ((here_x - there_x).to(tl.float32) * per_x) + rise_y))
            higher = tl.maximum(top, logit)
            shrink, weight = tl.exp(top - higher), tl.exp(logit - higher)
            top = higher
            total = total * shrink + weight
            values = tl.load(v + at, mask=mask, other=0.0).to(tl.float32)
            out = out * shrink[None, :] + values * weight[None, :]
    out *= (tl.load(rate1).to(tl.float32) / total)[None, :]
    dims, out_plane = dim + tl.arange(0, BD), tl.cast(Ho, tl.int64) * Wo
    pixel = row * Wo + col
    at = image * C * out_plane + (head * D + dims)[:, None] * (1 if LAST else out_plane)
    at += pixels_of(row, col, Wo, C, True, LAST)[None, :]
    if ADDS:
        out += tl.load(before + at, mask=mask, other=0.0)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)
    if dim == 0:
        tl.store(lse + (image * G + head) * out_plane + pixel, top + tl.log(total), mask=inside)
