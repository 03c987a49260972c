"""What ACmix's Triton kernels share: pixels in strips, reflected taps, and how often a window holds a key."""

import triton
import triton.language as tl


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
def times_hit(query, key, L, K: tl.constexpr, DILATION: tl.constexpr, SMALL: tl.constexpr):
    """How many of the K taps around `query` fall on `key`, on one side of the map."""
    REACH: tl.constexpr = K // 2 * DILATION
    if SMALL or DILATION > 1:
        times = tl.zeros_like(query)
        for tap in range(K):
            times += (reflected(query + tap * DILATION - REACH, L, SMALL) == key).to(tl.int32)
        return times
    # Directly, by way of the first pixel, by way of the last; those two pixels are not reflected themselves.
    direct = (tl.abs(query - key) <= REACH).to(tl.int32)
    first = ((key > 0) & (query + key <= REACH)).to(tl.int32)
    last = ((key < L - 1) & (2 * (L - 1) - query - key <= REACH)).to(tl.int32)
    return direct + first + last


@triton.jit
def dims_of(maps, first_dim, D, plane, BD: tl.constexpr):
    """Where BD dims of a head's maps begin, from first_dim on, ``[BD, 1]``, and which of them there are."""
    dims = first_dim + tl.arange(0, BD)
    return maps + dims.to(tl.int64)[:, None] * plane, (dims < D)[:, None]


@triton.jit
def rounded(values, pointer):
    """To the nearest of what `pointer` holds; the interpreter would otherwise cut bfloat16 off."""
    if pointer.dtype.element_ty == tl.float32:
        return values
    return values.to(pointer.dtype.element_ty, fp_downcast_rounding="rtne")


@triton.jit
def load_position(conv_p, first_dim, D, BD: tl.constexpr):
    """conv_p's slopes of these dims along x and along y."""
    dims = first_dim + tl.arange(0, BD)
    along_x = tl.load(conv_p + 2 * dims, mask=dims < D, other=0.0).to(tl.float32)
    along_y = tl.load(conv_p + 2 * dims + 1, mask=dims < D, other=0.0).to(tl.float32)
    return along_x, along_y


@triton.jit
def product(a, a_plane, a_pixels, b, b_plane, b_pixels, mask, D, BD: tl.constexpr, CHUNKS: tl.constexpr):
    """Sum over all dims of a head, chunk by chunk, of two maps each at its own pixels."""
    sums = tl.zeros_like(a_pixels).to(tl.float32)
    for chunk in range(CHUNKS):
        of_a, is_dim = dims_of(a, chunk * BD, D, a_plane, BD)
        of_b, _ = dims_of(b, chunk * BD, D, b_plane, BD)
        both = is_dim & mask[None, :]
        values = tl.load(of_a + a_pixels[None, :], mask=both, other=0.0).to(tl.float32)
        sums += tl.sum(values * tl.load(of_b + b_pixels[None, :], mask=both, other=0.0).to(tl.float32), 0)
    return sums
