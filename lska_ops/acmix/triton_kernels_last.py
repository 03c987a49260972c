"""ACmix's shift aggregation in Triton for maps in channels_last, where the dims of a head are neighbours.

A program has some heads of some dims, and a weight for each of them: composite is ``[taps, 3G, G, D]`` here.
"""

import triton
import triton.language as tl

from .triton_kernels import SIZES, split_program, strip_pixels


@triton.jit
def _heads_and_dims(share, G, BG: tl.constexpr, BD: tl.constexpr):
    """Heads [BG, 1, 1] and dims [1, 1, BD] of a share; a thread has four dims, whatever a number's size."""
    WIDTH: tl.constexpr = 4 if BD >= 4 else 1
    groups = tl.cdiv(G, BG)
    heads = share % groups * BG + tl.arange(0, BG)
    dims = tl.max_contiguous(share // groups * BD + tl.arange(0, BD), WIDTH)
    return heads[:, None, None], dims[None, None, :]


@triton.jit(do_not_specialize=SIZES)
def acmix_shift_fwd_last_kernel(
    qkv, composite, rate2, y, blocks, G, D, H, W, Ho, Wo, strip,
    KC: tl.constexpr, STRIDE: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A program owns P outputs of BG heads of BD dims; as acmix_shift_fwd_kernel."""
    block, share, image = split_program(blocks, tl.cdiv(G, BG) * tl.cdiv(D, BD))
    heads, d = _heads_and_dims(share, G, BG, BD)
    row, col, inside = strip_pixels(block, P, Ho, Wo, strip)
    row, col, inside = row[None, :, None], col[None, :, None], inside[None, :, None]
    C = G * D
    is_weight = (heads < G) & (d < D)
    total = tl.zeros((BG, P, BD), tl.float32)
    for tap in range(KC * KC):
        there_y = row * STRIDE + tap // KC - KC // 2
        there_x = col * STRIDE + tap % KC - KC // 2
        mask = inside & (there_y >= 0) & (there_y < H) & (there_x >= 0) & (there_x < W) & (d < D)
        at = qkv + (image * H * W + there_y * W + there_x) * 3 * C + d
        weights = composite + tap * 3 * G * C + (heads * D + d + tl.zeros((1, P, 1), tl.int32))
        for _ in range(3 * G):
            weight = tl.load(weights, mask=is_weight, other=0.0)
            total += weight * tl.load(at, mask=mask, other=0.0).to(tl.float32)
            at += D
            weights += C
    total *= tl.load(rate2).to(tl.float32)
    at = (image * Ho * Wo + row * Wo + col) * C + d * G + heads
    tl.store(y + at, total.to(y.dtype.element_ty), mask=is_weight & inside)


@triton.jit(do_not_specialize=SIZES)
def acmix_shift_bwd_last_kernel(
    grad_y, composite, rate2, grad_qkv, blocks, G, D, H, W, Ho, Wo, strip,
    KC: tl.constexpr, STRIDE: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A program owns P inputs of BG heads of BD dims of one part (q, k or v); as acmix_shift_bwd_kernel."""
    block, share, image = split_program(blocks, 3 * tl.cdiv(G, BG) * tl.cdiv(D, BD))
    part = share % 3
    heads, d = _heads_and_dims(share // 3, G, BG, BD)
    here_y, here_x, inside = strip_pixels(block, P, H, W, strip)
    here_y, here_x, inside = here_y[None, :, None], here_x[None, :, None], inside[None, :, None]
    C = G * D
    is_weight = (heads < G) & (d < D)
    total = tl.zeros((BG, P, BD), tl.float32)
    for tap in range(KC * KC):
        to_y, to_x = here_y + KC // 2 - tap // KC, here_x + KC // 2 - tap % KC
        row, col = to_y // STRIDE, to_x // STRIDE
        mask = inside & (to_y >= 0) & (row < Ho) & (to_x >= 0) & (col < Wo) & (d < D)
        if STRIDE > 1:
            mask = mask & (to_y % STRIDE == 0) & (to_x % STRIDE == 0)
        at = grad_y + (image * Ho * Wo + row * Wo + col) * C + d * G
        weights = composite + (tap * 3 + part) * G * C + (heads * C + d + tl.zeros((1, P, 1), tl.int32))
        for _ in range(G):
            weight = tl.load(weights, mask=is_weight, other=0.0)
            total += weight * tl.load(at, mask=mask, other=0.0).to(tl.float32)
            at += 1
            weights += D
    total *= tl.load(rate2).to(tl.float32)
    at = (image * H * W + here_y * W + here_x) * 3 * C + part * C + heads * D + d
    tl.store(grad_qkv + at, total.to(grad_qkv.dtype.element_ty), mask=is_weight & inside)


@triton.jit(do_not_specialize=SIZES)
def acmix_shift_grad_last_kernel(
    qkv, grad_y, parts, pictures, blocks, splits, G, D, H, W, Ho, Wo,
    KC: tl.constexpr, STRIDE: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A program owns, of one tap, what the maps of one head (q, k and v) add to BG outputs of BD dims, over
    its share of all pictures' pixels; as acmix_shift_grad_kernel, parts too.
    """
    shares = tl.cdiv(G, BG) * tl.cdiv(D, BD)
    program = tl.program_id(0)
    heads, d = _heads_and_dims(program % shares, G, BG, BD)
    rest = program // shares
    head, tap, split = rest % G, rest // G % (KC * KC), rest // G // (KC * KC)
    C = G * D
    is_weight = (heads < G) & (d < D)
    shift_y, shift_x = tap // KC - KC // 2, tap % KC - KC // 2
    of_q = tl.zeros((BG, P, BD), tl.float32)
    of_k, of_v, every = of_q, of_q, tl.cast(pictures, tl.int64) * blocks
    for nth in range(split * every // splits, (split + 1) * every // splits):
        image, n = nth // blocks, (nth % blocks).to(tl.int32) * P + tl.arange(0, P)
        row, col = (n // Wo)[None, :, None], (n % Wo)[None, :, None]
        there_y, there_x = row * STRIDE + shift_y, col * STRIDE + shift_x
        mask = (row < Ho) & (there_y >= 0) & (there_y < H) & (there_x >= 0) & (there_x < W)
        at = grad_y + (image * Ho * Wo + row * Wo + col) * C + d * G + heads
        sent = tl.load(at, mask=mask & is_weight, other=0.0).to(tl.float32)
        at = qkv + (image * H * W + there_y * W + there_x) * 3 * C + head * D + d
        mask = mask & (d < D)
        of_q += sent * tl.load(at, mask=mask, other=0.0).to(tl.float32)
        of_k += sent * tl.load(at + C, mask=mask, other=0.0).to(tl.float32)
        of_v += sent * tl.load(at + 2 * C, mask=mask, other=0.0).to(tl.float32)
    at = ((split.to(tl.int64) * D + d) * KC * KC + tap) * 3 * G * G + head * G + heads
    tl.store(parts + at, tl.sum(of_q, 1)[:, None, :], mask=is_weight)
    tl.store(parts + at + G * G, tl.sum(of_k, 1)[:, None, :], mask=is_weight)
    tl.store(parts + at + 2 * G * G, tl.sum(of_v, 1)[:, None, :], mask=is_weight)
