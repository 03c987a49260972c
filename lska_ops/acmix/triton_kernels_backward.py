"""ACmix's attention in Triton: backward in two gathers, by query and by key."""

import triton
import triton.language as tl

from .triton_kernels import (
    SIZES,
    dims_of,
    load_position,
    per_pixel,
    pixels_of,
    product,
    reflected,
    slopes_of,
    split_program,
    strip_pixels,
    times_hit,
)


@triton.jit(do_not_specialize=SIZES)
def acmix_query_bwd_kernel(
    qkv, grad_y, conv_p, rate1, lse, before, grad_qkv, facts, parts, blocks, maps, columns,
    G, D, H, W, Ho, Wo, strip,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, SMALL: tl.constexpr, ADDS: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr, P: tl.constexpr, SCALE: tl.constexpr,
    WIDE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """A program owns P queries of (a chunk of) one head: the gradient of q.

    Reads q, grad_y [B, C, Ho, Wo] and lse there, k and v at every tap; writes the gradient of q into
    grad_qkv [B, 3C, H, W] (with ADDS on top of `before`, like it), facts [3, B, G, Ho, Wo] for the keys
    (`maps` numbers each: delta = sum of weight times product, slopes in x and y), and its part of the
    gradients of conv_p and rate1 into parts [2D + 1, columns = B G blocks]. The gradient of a logit's sum is
    weight (product - delta); delta is known after the last tap, so both terms are added up by themselves.
    LAST: qkv, grad_y, before and grad_qkv are in channels_last.
    """
    block, share, image = split_program(blocks, G * CHUNKS)
    head, dim = share // CHUNKS, share % CHUNKS * BD
    row, col, inside = strip_pixels(block, P, Ho, Wo, strip)
    plane, out_plane, C = tl.cast(H, tl.int64) * W, tl.cast(Ho, tl.int64) * Wo, G * D
    next_map, next_out = (1 if LAST else plane), (1 if LAST else out_plane)
    q = qkv + image * 3 * C * plane + head * D * next_map
    k, v = q + C * next_map, q + 2 * C * next_map
    g = grad_y + image * C * out_plane + head * D * next_out
    here_y, here_x, pixel = row * STRIDE, col * STRIDE, row * Wo + col
    sent = pixels_of(row, col, Wo, C, WIDE, LAST)
    per_y, per_x = per_pixel(H), per_pixel(W)
    here = pixels_of(here_y, here_x, W, 3 * C, WIDE, LAST)
    slope_x, slope_y = slopes_of(q, conv_p, here, inside, D, plane, BD, CHUNKS, WIDE, LAST)
    own_lse = tl.load(lse + (image * G + head) * out_plane + pixel, mask=inside, other=0.0)
    of_dims, is_dim = dims_of(dim, D, plane, BD, WIDE, LAST)
    mask = is_dim & inside[None, :]
    own_q = tl.load(q + (of_dims + here[None, :]), mask=mask, other=0.0).to(tl.float32)
    if CHUNKS == 1:
        of_grads, _ = dims_of(0, D, out_plane, BD, WIDE, LAST)
        own_g = tl.load(g + (of_grads + sent[None, :]), mask=mask, other=0.0).to(tl.float32)
    delta = tl.zeros((P,), tl.float32)
    far_x, far_y, mean_x, mean_y = delta, delta, delta, delta
    of_products = tl.zeros((BD, P), tl.float32)
    of_weights = tl.zeros((BD, P), tl.float32)
    for tap_y in range(K):
        there_y = reflected(here_y + (tap_y - K // 2) * DILATION, H, SMALL)
        distance_y = (here_y - there_y).to(tl.float32) * per_y
        for tap_x in range(K):
            there_x = reflected(here_x + (tap_x - K // 2) * DILATION, W, SMALL)
            distance_x = (here_x - there_x).to(tl.float32) * per_x
            there = pixels_of(there_y, there_x, W, 3 * C, WIDE, LAST)
            at = of_dims + there[None, :]
            keys = tl.load(k + at, mask=mask, other=0.0).to(tl.float32)
            if CHUNKS == 1:
                sums = tl.sum(own_q * keys, 0)
                values = tl.load(v + at, mask=mask, other=0.0).to(tl.float32)
                products = tl.sum(own_g * values, 0)
            else:
                sums = product(q, plane, here, k, plane, there, inside, D, BD, CHUNKS, WIDE, LAST)
                products = product(g, out_plane, sent, v, plane, there, inside, D, BD, CHUNKS, WIDE, LAST)
            weight = tl.exp(SCALE * (sums + (slope_x * distance_x + slope_y * distance_y)) - own_lse)
            products *= weight
            delta += products
            far_x += products * distance_x
            far_y += products * distance_y
            mean_x += weight * distance_x
            mean_y += weight * distance_y
            of_products += keys * products[None, :]
            of_weights += keys * weight[None, :]
    rate = tl.load(rate1).to(tl.float32) * SCALE
    far_x = rate * (far_x - delta * mean_x)
    far_y = rate * (far_y - delta * mean_y)
    p_x, p_y = load_position(conv_p, dim, D, BD)
    grad = rate * (of_products - delta[None, :] * of_weights)
    grad += p_x[:, None] * far_x[None, :] + p_y[:, None] * far_y[None, :]
    dims = dim + tl.arange(0, BD)
    at = image * 3 * C * plane + (head * D + dims)[:, None] * next_map + here[None, :]
    if ADDS:
        grad += tl.load(before + at, mask=mask, other=0.0)
    tl.store(grad_qkv + at, grad.to(grad_qkv.dtype.element_ty), mask=mask)
    part = parts + (image * G + head) * blocks + block
    at = part + 2 * dims.to(tl.int64) * columns
    tl.store(at, tl.sum(own_q * far_x[None, :], 1), mask=dims < D)
    tl.store(at + columns, tl.sum(own_q * far_y[None, :], 1), mask=dims < D)
    if dim == 0:
        fact = facts + (image * G + head) * out_plane + pixel
        tl.store(fact, delta, mask=inside)
        fact += maps
        tl.store(fact, slope_x, mask=inside)
        fact += maps
        tl.store(fact, slope_y, mask=inside)
        tl.store(part + tl.cast(D, tl.int64) * 2 * columns, tl.sum(tl.where(inside, delta, 0.0), 0))


@triton.jit(do_not_specialize=SIZES)
def acmix_key_bwd_kernel(
    qkv, grad_y, rate1, lse, before, grad_qkv, facts, blocks, maps, rows, cols,
    G, D, H, W, Ho, Wo, strip,
    K: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, SMALL: tl.constexpr,
    ADDS: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr, P: tl.constexpr, SCALE: tl.constexpr,
    WIDE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """A program owns P keys of (a chunk of) one head: the gradients of k and v.

    Reads k and v there; q, grad_y, lse and facts (see acmix_query_bwd_kernel) of all
    `rows` x `cols` queries around whose windows may hold the key. A pair of query and key counts as often as
    taps fall on the key, reflected ones among them. Writes both gradients into grad_qkv [B, 3C, H, W], with
    ADDS on top of `before`, like it. LAST: all four are in channels_last.
    """
    REACH: tl.constexpr = K // 2 * DILATION
    block, share, image = split_program(blocks, G * CHUNKS)
    head, dim = share // CHUNKS, share % CHUNKS * BD
    here_y, here_x, inside = strip_pixels(block, P, H, W, strip)
    plane, out_plane, C = tl.cast(H, tl.int64) * W, tl.cast(Ho, tl.int64) * Wo, G * D
    next_map, next_out = (1 if LAST else plane), (1 if LAST else out_plane)
    q = qkv + image * 3 * C * plane + head * D * next_map
    k, v = q + C * next_map, q + 2 * C * next_map
    g = grad_y + image * C * out_plane + head * D * next_out
    per_y, per_x = per_pixel(H), per_pixel(W)
    of_head = (image * G + head) * out_plane
    lses, deltas = lse + of_head, facts + of_head
    here = pixels_of(here_y, here_x, W, 3 * C, WIDE, LAST)
    of_dims, is_dim = dims_of(dim, D, plane, BD, WIDE, LAST)
    of_grads, _ = dims_of(dim, D, out_plane, BD, WIDE, LAST)
    mask = is_dim & inside[None, :]
    if CHUNKS == 1:
        own_k = tl.load(k + (of_dims + here[None, :]), mask=mask, other=0.0).to(tl.float32)
        own_v = tl.load(v + (of_dims + here[None, :]), mask=mask, other=0.0).to(tl.float32)
    grad_k = tl.zeros((BD, P), tl.float32)
    grad_v = tl.zeros((BD, P), tl.float32)
    first_y = (tl.maximum(here_y - REACH, 0) + STRIDE - 1) // STRIDE
    first_x = (tl.maximum(here_x - REACH, 0) + STRIDE - 1) // STRIDE
    for nth_y in range(rows):
        row = first_y + nth_y
        times_y = times_hit(row * STRIDE, here_y, H, K, TAPS, DILATION, SMALL)
        times_y = tl.where(inside & (row < Ho), times_y, 0)
        distance_y = (row * STRIDE - here_y).to(tl.float32) * per_y
        for nth_x in range(cols):
            col = first_x + nth_x
            times = times_y * times_hit(col * STRIDE, here_x, W, K, TAPS, DILATION, SMALL)
            held = (times > 0) & (col < Wo)
            # A dilated window skips most of the pixels that it spans.
            if DILATION == 1 or tl.max(held.to(tl.int32), 0) > 0:
                pixel = row * Wo + col
                sent = pixels_of(row, col, Wo, C, WIDE, LAST)
                there = pixels_of(row * STRIDE, col * STRIDE, W, 3 * C, WIDE, LAST)
                both = is_dim & held[None, :]
                queries = tl.load(q + (of_dims + there[None, :]), mask=both, other=0.0).to(tl.float32)
                grads = tl.load(g + (of_grads + sent[None, :]), mask=both, other=0.0).to(tl.float32)
                if CHUNKS == 1:
                    sums, products = tl.sum(queries * own_k, 0), tl.sum(grads * own_v, 0)
                else:
                    sums = product(q, plane, there, k, plane, here, held, D, BD, CHUNKS, WIDE, LAST)
                    products = product(g, out_plane, sent, v, plane, here, held, D, BD, CHUNKS, WIDE, LAST)
                of_lse = tl.load(lses + pixel, mask=held, other=0.0)
                fact = deltas + pixel
                delta = tl.load(fact, mask=held, other=0.0)
                fact += maps
                slope_x = tl.load(fact, mask=held, other=0.0)
                slope_y = tl.load(fact + maps, mask=held, other=0.0)
                distance_x = (col * STRIDE - here_x).to(tl.float32) * per_x
                logit = SCALE * (sums + (slope_x * distance_x + slope_y * distance_y))
                weight = tl.where(held, times.to(tl.float32) * tl.exp(logit - of_lse), 0.0)
                grad_v += grads * weight[None, :]
                grad_k += queries * (weight * (products - delta))[None, :]
    rate = tl.load(rate1).to(tl.float32)
    grad_k *= rate * SCALE
    grad_v *= rate
    dims = dim + tl.arange(0, BD)
    at = image * 3 * C * plane + (C + head * D + dims)[:, None] * next_map + here[None, :]
    if ADDS:
        grad_k += tl.load(before + at, mask=mask, other=0.0)
        grad_v += tl.load(before + at + C * next_map, mask=mask, other=0.0)
    tl.store(grad_qkv + at, grad_k.to(grad_qkv.dtype.element_ty), mask=mask)
    tl.store(grad_qkv + at + C * next_map, grad_v.to(grad_qkv.dtype.element_ty), mask=mask)
