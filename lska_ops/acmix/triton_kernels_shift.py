"""ACmix's shift aggregation in Triton: fc and dep_conv as one grouped convolution, and its gradients.

`composite` is ``W[d, tap, m, g] = sum over p of dep_conv[d G + g, p, tap] fc[p, m]`` in float32, m over the
3G maps of q, k and v, d the dim: what a dim's map m at a tap adds to its output g.
"""

import triton
import triton.language as tl

from .triton_kernels import SIZES, split_program, strip_pixels


@triton.jit(do_not_specialize=SIZES)
def acmix_compose_kernel(
    fc, dep_conv, composite, n, G, D, T: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    """A program owns BLOCK of the n composite weights; reads fc [T, 3G] and dep_conv [D G, T, T]. LAST: the
    dims come last, [T, 3G, G, D]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if LAST:
        d, g, m, tap = i % D, i // D % G, i // D // G % (3 * G), i // D // G // (3 * G)
    else:
        g, m, tap, d = i % G, i // G % (3 * G), i // G // (3 * G) % T, i // G // (3 * G) // T
    total = tl.zeros((BLOCK,), tl.float32)
    for p in range(T):
        mixed = tl.load(fc + p * 3 * G + m, mask=i < n, other=0.0).to(tl.float32)
        shifts = tl.load(dep_conv + ((d * G + g) * T + p) * T + tap, mask=i < n, other=0.0).to(tl.float32)
        total += mixed * shifts
    tl.store(composite + i, total, mask=i < n)


@triton.jit(do_not_specialize=SIZES)
def acmix_shift_fwd_kernel(
    qkv, composite, rate2, y, blocks, D, H, W, Ho, Wo, strip,
    G: tl.constexpr, KC: tl.constexpr, STRIDE: tl.constexpr, BG: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A program owns P outputs of BG heads of one dim: reference.shift_aggregate, times rate2.

    Reads the dim's 3G maps of qkv [B, 3C, H, W] at every tap and the dim's composite weights; writes
    y [B, C, Ho, Wo], of its dtype: channel d G + g.
    """
    GROUPS: tl.constexpr = (G + BG - 1) // BG
    block, share, image = split_program(blocks, D * GROUPS)
    d, heads = share // GROUPS, share % GROUPS * BG + tl.arange(0, BG)
    row, col, inside = strip_pixels(block, P, Ho, Wo, strip)
    plane, C = tl.cast(H, tl.int64) * W, G * D
    maps, next_map, is_head = qkv + (image * 3 * C + d) * plane, D * plane, heads < G
    total = tl.zeros((BG, P), tl.float32)
    for tap in range(KC * KC):
        there_y = row * STRIDE + tap // KC - KC // 2
        there_x = col * STRIDE + tap % KC - KC // 2
        mask = inside & (there_y >= 0) & (there_y < H) & (there_x >= 0) & (there_x < W)
        at = maps + (there_y * W + there_x)
        weights = composite + (d * KC * KC + tap) * 3 * G * G + heads
        for _ in range(3 * G):
            values = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weights, mask=is_head, other=0.0)
            total += weight[:, None] * values[None, :]
            at += next_map
            weights += G
    total *= tl.load(rate2).to(tl.float32)
    at = (image * C + d * G + heads)[:, None] * (tl.cast(Ho, tl.int64) * Wo) + (row * Wo + col)[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=is_head[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def acmix_shift_bwd_kernel(
    grad_y, composite, rate2, grad_qkv, blocks, D, H, W, Ho, Wo, strip,
    G: tl.constexpr, KC: tl.constexpr, STRIDE: tl.constexpr, BG: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A program owns P inputs of BG heads of one dim and part (q, k or v): their gradient.

    Reads the dim's G maps of grad_y [B, C, Ho, Wo] at the outputs that its taps go to, and the composite
    weights; writes grad_qkv [B, 3C, H, W], of its dtype.
    """
    GROUPS: tl.constexpr = (G + BG - 1) // BG
    block, share, image = split_program(blocks, 3 * D * GROUPS)
    part, d = share // GROUPS // D, share // GROUPS % D
    heads = share % GROUPS * BG + tl.arange(0, BG)
    here_y, here_x, inside = strip_pixels(block, P, H, W, strip)
    plane, out_plane, C = tl.cast(H, tl.int64) * W, tl.cast(Ho, tl.int64) * Wo, G * D
    grads, is_head = grad_y + (image * C + d * G) * out_plane, heads < G
    total = tl.zeros((BG, P), tl.float32)
    for tap in range(KC * KC):
        to_y, to_x = here_y + KC // 2 - tap // KC, here_x + KC // 2 - tap % KC
        row, col = to_y // STRIDE, to_x // STRIDE
        mask = inside & (to_y >= 0) & (row < Ho) & (to_x >= 0) & (col < Wo)
        if STRIDE > 1:
            mask = mask & (to_y % STRIDE == 0) & (to_x % STRIDE == 0)
        at = grads + (row * Wo + col)
        weights = composite + ((d * KC * KC + tap) * 3 + part) * G * G + heads * G
        for _ in range(G):
            values = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weights, mask=is_head, other=0.0)
            total += weight[:, None] * values[None, :]
            at += out_plane
            weights += 1
    total *= tl.load(rate2).to(tl.float32)
    at = ((image * 3 + part) * C + heads * D + d)[:, None] * plane + (here_y * W + here_x)[None, :]
    tl.store(grad_qkv + at, total.to(grad_qkv.dtype.element_ty), mask=is_head[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def acmix_shift_grad_kernel(
    qkv, grad_y, parts, pictures, blocks, splits, D, H, W, Ho, Wo,
    G: tl.constexpr, KC: tl.constexpr, STRIDE: tl.constexpr, BG: tl.constexpr, BM: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of BG outputs and BM maps of the composite weights of one dim and tap, and sums
    over its share of all pictures' pixels: the gradient of y / rate2.

    Reads grad_y [B, C, Ho, Wo] and qkv [B, 3C, H, W] of the dim; writes parts [splits, D, taps, 3G, G].
    """
    GROUPS: tl.constexpr = (G + BG - 1) // BG
    TILES: tl.constexpr = GROUPS * ((3 * G + BM - 1) // BM)
    program = tl.program_id(0)
    tile, rest = program % TILES, program // TILES
    tap, d, split = rest % (KC * KC), rest // (KC * KC) % D, rest // (KC * KC) // D
    g, m = tile % GROUPS * BG + tl.arange(0, BG), tile // GROUPS * BM + tl.arange(0, BM)
    plane, out_plane, C = tl.cast(H, tl.int64) * W, tl.cast(Ho, tl.int64) * Wo, G * D
    maps = qkv + (m // G * C + m % G * D + d)[:, None] * plane
    grads = grad_y + (d * G + g)[:, None] * out_plane
    shift_y, shift_x = tap // KC - KC // 2, tap % KC - KC // 2
    # Shares of almost the same number of blocks, each block of one picture.
    total, every = tl.zeros((BG, BM, P), tl.float32), tl.cast(pictures, tl.int64) * blocks
    for nth in range(split * every // splits, (split + 1) * every // splits):
        image, n = nth // blocks, (nth % blocks).to(tl.int32) * P + tl.arange(0, P)
        row, col = n // Wo, n % Wo
        there_y, there_x = row * STRIDE + shift_y, col * STRIDE + shift_x
        mask = (row < Ho) & (there_y >= 0) & (there_y < H) & (there_x >= 0) & (there_x < W)
        at = maps + image * 3 * C * plane + (there_y * W + there_x)[None, :]
        values = tl.load(at, mask=(m < 3 * G)[:, None] & mask[None, :], other=0.0).to(tl.float32)
        at = grads + image * C * out_plane + n[None, :]
        sent = tl.load(at, mask=(g < G)[:, None] & mask[None, :], other=0.0).to(tl.float32)
        total += sent[:, None, :] * values[None, :, :]
    at = parts + ((split.to(tl.int64) * D + d) * KC * KC + tap) * 3 * G * G + m[None, :] * G + g[:, None]
    tl.store(at, tl.sum(total, 2), mask=(g < G)[:, None] & (m < 3 * G)[None, :])


@triton.jit(do_not_specialize=SIZES)
def acmix_dep_conv_bwd_kernel(total, fc, rate2, grad_dep_conv, n, G, T: tl.constexpr, BLOCK: tl.constexpr):
    """A program owns BLOCK of dep_conv's n gradients [D G, T, T]: the composite weights' gradients `total`
    times fc [T, 3G], summed over m."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap, p, g, d = i % T, i // T % T, i // T // T % G, i // T // T // G
    sums = tl.zeros((BLOCK,), tl.float32)
    for m in range(3 * G):
        mixed = tl.load(fc + p * 3 * G + m, mask=i < n, other=0.0).to(tl.float32)
        sums += mixed * tl.load(total + ((d * T + tap) * 3 * G + m) * G + g, mask=i < n, other=0.0)
    sums *= tl.load(rate2).to(tl.float32)
    tl.store(grad_dep_conv + i, sums.to(grad_dep_conv.dtype.element_ty), mask=i < n)


@triton.jit
def acmix_fc_bwd_kernel(
    total, dep_conv, grad_fc, G, D, T: tl.constexpr, BM: tl.constexpr, BLOCK: tl.constexpr
):
    """A program owns BM of fc's gradients [T, 3G] of one p, before rate2: the composite weights' gradients
    `total` of their m times dep_conv [D G, T, T], summed over dims, outputs and taps."""
    p, m = tl.program_id(0) % T, tl.program_id(0) // T * BM + tl.arange(0, BM)
    sums, terms, is_map = tl.zeros((BM, BLOCK), tl.float32), D * G * T, (m < 3 * G)[:, None]
    for first in range(0, terms, BLOCK):
        i = first + tl.arange(0, BLOCK)
        g, tap, d = i % G, i // G % T, i // G // T
        shifts = tl.load(dep_conv + ((d * G + g) * T + p) * T + tap, mask=i < terms, other=0.0)
        at = total + (d * T + tap)[None, :] * (3 * G * G) + m[:, None] * G + g[None, :]
        grads = tl.load(at, mask=is_map & (i < terms)[None, :], other=0.0)
        sums += grads * shifts.to(tl.float32)[None, :]
    tl.store(grad_fc + p * 3 * G + m, tl.sum(sums, 1), mask=m < 3 * G)
