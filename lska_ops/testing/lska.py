"""Random LSKA problems and their error bound."""

import torch

from ..lska import lska
from . import error_ratio

NAMES = ("conv0h", "conv0v", "conv_spatial_h", "conv_spatial_v", "conv1")
PUBLISHED_SPLITS = ((3, 3, 2), (3, 5, 2), (5, 7, 3), (5, 11, 3), (5, 13, 3), (5, 17, 3))


def draw(choice, generator):
    """Two thirds of the problems have a published kernel, one third any odd pair; a tenth are LSKA-trivial, a
    tenth one row, a twelfth large; of every second nothing is negative.

    What is summed from both signs is small beside its absolute values, by which the bound goes: for the
    gradient of a weight zero can be within it. Where nothing cancels only what is right is.
    """
    k0, k1, d = choice.choice(PUBLISHED_SPLITS)
    if choice.random() < 1 / 3:
        k0, k1, d = choice.randrange(1, 10, 2), choice.randrange(1, 20, 2), choice.randint(1, 6)
    trivial = choice.random() < 0.1
    B, C = choice.choice((1, 1, 2, 3)), choice.choice((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 33))
    H, W = (choice.choice((1, 2, 3, 4, 5, 7, 8, 13, 16, 20, 31, 40)) for _ in range(2))
    if choice.random() < 0.1:  # whose end is the end of the plane
        H = 1
    if choice.random() < 1 / 12:  # more than the kernels hold at a time
        B, C = 1, choice.randint(1, 3)
        H, W = (choice.choice((64, 99, 160)) for _ in range(2))

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    tensors = {"x": normal(B, C, H, W, scale=10 ** choice.uniform(-1, 1))}
    shapes = [(C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1), (C, C, 1, 1)]
    for name, shape in zip(NAMES, shapes, strict=True):
        missing = trivial and name.startswith("conv_spatial")
        fan_in = shape[1] * shape[2] * shape[3]
        tensors[name] = None if missing else normal(*shape, scale=fan_in**-0.5)
        tensors[f"{name}_bias"] = None if missing or choice.random() < 0.15 else normal(C)
    grad_y = normal(B, C, H, W)
    if generator.initial_seed() % 2:
        tensors, grad_y = positive(tensors, grad_y)
    return tensors, {"dilation": d}, grad_y


def positive(tensors, grad_y):
    """The absolute values, of a size that float16's sums over all taps and pixels hold."""
    tensors = {n: None if t is None else t.abs() for n, t in tensors.items()}
    for name in NAMES:
        if tensors[name] is not None:
            tensors[name] *= tensors[name][0].numel() ** -0.5
    return tensors, grad_y.abs() / max(1, grad_y[:, 0].numel() / 64)


def call(tensors, options, backend):
    pairs = [None if tensors[n] is None else (tensors[n], tensors[f"{n}_bias"]) for n in NAMES]
    return lska(tensors["x"], *pairs, **options, backend=backend)


def roundings(backend, dtype, answer):
    """How often a value on its way to `answer` is rounded to dtype; all else is summed in float32 or wider.

    `cuda` and `triton` keep s, the product and their gradients in x's dtype between kernels, for the 1x1
    product runs on tensor cores: y passes s and the product; a gradient that of the product, and ds; conv1's
    one more, for it is the sum of one product an image. conv1's bias is summed before anything is rounded. A
    vendor library that splits a sum and adds the parts in the half dtype exceeds this. The reference rounds
    after each of four convolutions, the product and the gate; of a gradient the last of seven is that of x's
    two parts' sum, or of a weight's sum over pixels.
    """
    if dtype not in (torch.float16, torch.bfloat16) or backend == "cpu":
        return 1
    if backend == "reference":
        return 6 if answer == "y" else 7
    return {"grad_conv1": 4, "grad_conv1_bias": 1}.get(answer, 3)


def ratios(answers, exact, options, grad_y, backend):
    """See :func:`lska_ops.testing.problems.ratios`; A is the reference on absolute values."""
    forward = operations(exact)
    B, C, H, W = exact["x"].shape
    r = _solve(exact, options, grad_y)
    absolute = {n: None if t is None else t.abs() for n, t in exact.items()}
    A = _solve(absolute, options, None if grad_y is None else grad_y.abs())
    # A gradient passes the forward stages and back, a weight's then sums over all pixels.
    steps = {n: forward if n == "y" else 2 * forward + (0 if n == "grad_x" else B * H * W) for n in answers}
    return {
        n: error_ratio(out, r[n], A[n], steps[n], roundings(backend, out.dtype, n))
        for n, out in answers.items()
    }


def operations(tensors):
    """Operations on the longest path of the forward: every tap and bias, the 1x1 product, the gate."""
    taps = sum(t.shape[1:].numel() + 1 for n, t in tensors.items() if t is not None and n in NAMES)
    return taps + 1


def _solve(tensors, options, grad_y):
    inputs = {n: t for n, t in tensors.items() if t is not None}
    if grad_y is None:
        return {"y": call(tensors, options, "reference")}
    for t in inputs.values():
        t.requires_grad_()
    y = call(tensors, options, "reference")
    grads = torch.autograd.grad(y, list(inputs.values()), grad_y)
    return {"y": y.detach(), **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
