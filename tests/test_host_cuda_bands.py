"""The cascade as banded products on tensor cores, on the CPU: what csrc/lska/kernels_bands.cuh answers."""

import random

import pytest
import test_host_cuda
import torch
import torch.nn.functional as F
from test_host_cuda import CACHE, MULTIPROCESSORS, SHARED, depthwise

from lska_ops.testing import error_ratio

library = test_host_cuda.library
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
SPLITS = (
    (5, 11, 3),
    (5, 13, 3),
    (5, 17, 3),
    (5, 19, 3),
    (5, 21, 3),
    (7, 11, 4),
    (9, 9, 6),
    (3, 17, 2),
    (35, 0, 1),
)
HEIGHTS = (49, 50, 56, 61, 64, 71, 79, 80)
WIDTHS = (48, 50, 56, 62, 64, 76, 80, 94, 96)
B = 8  # images, at least


@pytest.fixture
def bands(library):
    """The op, on a device whose tensor cores sum in float32 at full rate; None where the plan declines."""

    def call(x, parts, dilation, schedule=0, multiprocessors=1, shared=SHARED, arch=80):
        library.configure(schedule, shared, multiprocessors, CACHE, arch)
        try:
            s = library.cascade_bands(x, *parts, dilation)
        finally:
            library.configure(0, SHARED, MULTIPROCESSORS, CACHE)
        return s if s.shape == x.shape else None

    return call


def reference(x, parts, dilation):
    C = x.shape[1]
    for n, (weight, bias) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if weight is not None:
            k, d = max(weight.shape[2:]), dilation if n > 1 else 1
            pad, along = k // 2 * d, (d, 1) if n % 2 else (1, d)
            x = F.conv2d(x, weight, bias, 1, (pad, 0) if n % 2 else (0, pad), along, C)
    return x


def problem(seed):
    """(x, parts, dilation) of any size the kernels serve."""
    choice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    k0, k1, dilation = choice.choice(SPLITS)
    dtype = choice.choice(list(DTYPES.values()))
    images, C = choice.choice((8, 9)), 1 if seed % 4 else 2
    H, W = choice.choice(HEIGHTS), choice.choice(WIDTHS)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    parts = []
    for shape in ((C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1)):
        missing = 0 in shape
        parts.append(None if missing else normal(*shape, scale=max(shape[2:]) ** -0.5))
        parts.append(None if missing or choice.random() < 0.2 else normal(C))
    return normal(images, C, H, W, scale=10 ** choice.uniform(-1, 1)), parts, dilation


def ratio(s, x, parts, dilation):
    exact = [None if t is None else t.double() for t in parts]
    absolute = [None if t is None else t.abs() for t in exact]
    r, A = reference(x.double(), exact, dilation), reference(x.double().abs(), absolute, dilation)
    operations = sum(max(t.shape[2:]) + 1 for t in parts[::2] if t is not None)
    return error_ratio(s, r, A, operations)


@pytest.mark.parametrize("part", range(4))
def test_host_cuda_bands_within_bound(bands, part):
    for seed in range(420_000 + part, 420_048, 4):
        x, parts, dilation = problem(seed)
        # Of two, a block owns fewer images.
        s = bands(x, parts, dilation, seed % 5 and seed, 1 + seed % 2)
        assert s is not None, (seed, x.shape)
        assert ratio(s, x, parts, dilation) <= 1, (seed, x.shape, x.dtype, dilation)


@pytest.mark.parametrize("k0, k1, d", [(5, 11, 3), (5, 13, 3), (5, 17, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_host_cuda_bands_of_p3_within_bound(bands, dtype, k0, k1, d):
    parts = [t * max(t.shape[2:]) ** -0.5 if t.dim() == 4 else t for t in depthwise(1, k0, k1)]
    parts = [t.to(DTYPES[dtype]) for t in parts]
    x = torch.randn(B, 1, 80, 80, generator=torch.Generator().manual_seed(k1)).to(DTYPES[dtype])
    assert ratio(bands(x, parts, d), x, parts, d) <= 1


def test_host_cuda_bands_scale_with_x(bands):
    """Columns between the products are halves, scaled by what they hold: no magnitude of bfloat16 is too
    large or too small for them."""
    x = torch.randn(B, 1, 50, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    parts = depthwise(1, 5, 11, torch.bfloat16, bias=False)
    s = bands(x, parts, 3)
    for exponent in (-60, -20, 20, 60):
        assert torch.equal(bands(x * 2.0**exponent, parts, 3), s * 2.0**exponent)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k0, k1, d", [(5, 11, 3), (5, 17, 3)])
def test_host_cuda_bands_keep_what_is_small_beside_one_large_pixel(bands, dtype, k0, k1, d):
    x = torch.randn(B, 1, 80, 80, generator=torch.Generator().manual_seed(1))
    parts = [
        t if t is None else (t * t.numel() ** -0.5).to(DTYPES[dtype])
        for t in depthwise(1, k0, k1, bias=False)
    ]
    for times in (1e5, 6e6, 6e7, 6e8, 6e9):
        y = (x * (6e4 / times)).to(DTYPES[dtype])
        y[3, 0, 41, 29] = 6e4
        assert ratio(bands(y, parts, d), y, parts, d) <= 1, times


@pytest.mark.parametrize(
    "of_x, of_taps", [(-60, -20), (-90, -10), (20, -45), (90, -60), (90, 10), (100, 15), (118, 22)]
)
def test_host_cuda_bands_take_all_that_bfloat16_holds(bands, of_x, of_taps):
    """Or find that nothing of it holds the result."""
    x = torch.randn(B, 1, 50, 48, generator=torch.Generator().manual_seed(0)).bfloat16() * 2.0**of_x
    parts = depthwise(1, 5, 11, torch.bfloat16, bias=False)
    for n in (2, 6):  # the vertical taps
        parts[n] = parts[n] * 2.0**of_taps
    s, theirs = (
        bands(x, parts, 3),
        reference(x.double(), [None if t is None else t.double() for t in parts], 3),
    )
    largest = torch.finfo(torch.bfloat16).max
    assert not s.isfinite()[theirs.abs() > 1.01 * largest].any()
    if theirs.abs().max() < largest:
        assert ratio(s, x, parts, 3) <= 1
    assert (theirs.abs().max() < largest) == (of_x < 100)


def test_host_cuda_bands_repeat_bit_by_bit_on_any_schedule(bands):
    for seed in range(430_000, 430_003):
        x, parts, dilation = problem(seed)
        first = bands(x, parts, dilation)
        assert all(torch.equal(first, bands(x, parts, dilation, schedule)) for schedule in (1, 2, 3))
        assert torch.equal(first, bands(x, parts, dilation, multiprocessors=2))


def test_host_cuda_bands_write_every_element(bands):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    try:
        for seed in range(440_000, 440_006):
            x, parts, dilation = problem(seed)
            assert bands(x, parts, dilation, seed).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_host_cuda_bands_pass_nan_and_infinity_on_like_pytorch(bands, dtype, value):
    for k0, k1, d in ((5, 11, 3), (3, 9, 4)):  # the second one's taps leave places out
        x = torch.randn(B, 1, 51, 48, generator=torch.Generator().manual_seed(k0)).to(DTYPES[dtype])
        parts = depthwise(1, k0, k1, DTYPES[dtype])
        clean = bands(x, parts, d)
        x[5, 0, 9, 37] = value
        s, theirs = bands(x, parts, d), reference(x.float(), [t.float() for t in parts], d)
        assert torch.equal(s.isfinite(), theirs.isfinite())
        others = [n for n in range(B) if n != 5]
        assert torch.equal(s[others], clean[others])
        where = s.isfinite()
        assert ((s - clean)[where].abs() <= 2.0**-6 * clean[where].abs() + 2.0**-6).all()


def test_host_cuda_bands_with_infinite_weights_answer_like_pytorch(bands):
    x, parts = torch.randn(B, 1, 51, 48).half(), depthwise(1, 5, 11, torch.float16)
    parts[4][0, 0, 0, 5] = torch.inf  # a middle tap; others meet the zeros of PyTorch's padding
    theirs = reference(x.float(), [t.float() for t in parts], 3)
    assert torch.equal(bands(x, parts, 3).isfinite(), theirs.isfinite())


def test_host_cuda_bands_are_for_who_has_use_of_them(bands):
    x, parts = torch.randn(B, 1, 56, 56).half(), depthwise(1, 5, 11, torch.float16)
    assert bands(x, parts, 3) is not None
    assert all(bands(x, parts, 3, arch=arch) is None for arch in (0, 75, 86, 87, 89, 90, 100, 110, 120))
    assert bands(x, parts, 3, multiprocessors=108) is None  # few planes
    assert bands(x[1:], parts, 3) is None  # few images
    assert bands(x, depthwise(1, 5, 7, torch.float16), 3) is None  # few taps
    assert bands(x, depthwise(1, 5, 23, torch.float16), 3) is None  # many
    assert bands(x.float(), depthwise(1, 5, 11), 3) is None
    for shape in (
        (B, 1, 56, 55),
        (B, 1, 81, 56),
        (B, 1, 48, 56),
        (B, 1, 56, 130),
        (B, 1, 56, 46),
        (B, 0, 56, 56),
    ):
        assert bands(torch.randn(shape).half(), depthwise(shape[1], 5, 11, torch.float16), 3) is None
    assert (
        bands(torch.randn(1 + x.numel()).half()[1:].view_as(x), parts, 3) is None
    )  # begins at an odd element
    assert bands(x, parts, 3, shared=64 << 10) is None
