"""The tile kernels of LSKA's cascade on the CPU: test_host_cuda.py's questions on maps that they serve."""

import random

import pytest
import test_host_cuda
import torch
import torch.nn.functional as F
from test_host_cuda import CACHE, MULTIPROCESSORS, SHARED, check, depthwise, problem_of

from lska_ops import _plan
from lska_ops.testing.lska import PUBLISHED_SPLITS

host, library = test_host_cuda.host, test_host_cuda.library
SIDES = (20, 21, 24, 28, 33, 40, 44, 47, 56, 61, 80, 84)
# Shared memory and multiprocessors: of few, tiles are large, and small where one image is to fill many.
LIMITS = (
    (SHARED, 1),
    (SHARED, MULTIPROCESSORS),
    (163 << 10, 1),
    (99 << 10, 2),
    (64 << 10, 40),
    (64 << 10, 1),
)


def tiled(seed):
    """A problem that a tile kernel serves, a device's limits and the plan."""
    choice = random.Random(seed)
    k0, k1, d = PUBLISHED_SPLITS[seed % len(PUBLISHED_SPLITS)]
    channels_last = choice.random() < 0.5
    while True:
        problem = problem_of(choice.randint(400_000, 500_000))
        C = problem.tensors["x"].shape[1]
        if C <= 24 and (C % 2 == 0 or not channels_last):
            break
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(problem.dtype)

    W = choice.choice([n for n in SIDES if channels_last or n % 4 == 0])
    H = W if choice.random() < 0.3 else choice.choice(SIDES)
    B = choice.choice((1, 2, 3)) if H * W < 2000 else 1
    x, problem.grad_y = draw(B, C, H, W), draw(B, C, H, W)
    problem.tensors["x"] = x.to(memory_format=torch.channels_last) if channels_last else x
    problem.layout = "channels_last" if channels_last else "contiguous"
    problem.options["dilation"] = d
    for name, k, shape in (
        ("conv0h", k0, (C, 1, 1, k0)),
        ("conv0v", k0, (C, 1, k0, 1)),
        ("conv_spatial_h", k1, (C, 1, 1, k1)),
        ("conv_spatial_v", k1, (C, 1, k1, 1)),
    ):
        problem.tensors[name] = draw(*shape) * k**-0.5
        problem.tensors[f"{name}_bias"] = None if choice.random() < 0.2 else draw(C)
    shared, multiprocessors = choice.choice(LIMITS)
    size = dict(B=B, C=C, H=H, W=W, k0=k0, k1=k1, dilation=d, channels_last=channels_last)
    plan = _plan.lska_tiles(
        **size, element=problem.dtype.itemsize, shared_bytes=shared, multiprocessors=multiprocessors
    )
    return problem, (shared, multiprocessors, CACHE), plan


def cascade(library, problem, dtype=None, channels_last=None):
    t = {n: None if v is None else v.to(dtype or problem.dtype) for n, v in problem.tensors.items()}
    names = ("conv0h", "conv0v", "conv_spatial_h", "conv_spatial_v")
    parts = [t[n] for name in names for n in (name, f"{name}_bias")]
    if channels_last is not None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        t["x"] = t["x"].contiguous(memory_format=layout)
    return library.lska_cascade_fwd_cuda(t["x"], *parts, problem.options["dilation"])


@pytest.mark.parametrize("part", range(4))
def test_host_cuda_tiles_forward_within_bound(host, part):
    seen = set()
    for seed in range(60 * part, 60 * part + 60):
        problem, limits, plan = tiled(seed)
        if plan is None:
            assert limits[0] < 100 << 10, "large shared memory holds a tile of every published size"
            continue
        seen.add((problem.layout, plan["shape"]))
        host.configure(seed if seed % 3 else 0, *limits)
        check(problem, backward=False)
    assert len(seen) >= 12, seen


def test_host_cuda_tiles_take_every_shape(library):
    seen = set()
    for seed in range(1200):
        problem, _, plan = tiled(seed)
        if plan is not None:
            seen.add((problem.layout, plan["shape"]))
    assert len(seen) >= 25, sorted(seen)


def test_host_cuda_tiles_agree_bit_by_bit(library):
    """All tiles add in the same order, whatever the layout, the device and the dtype, and round once."""
    compared = 0
    for seed in range(500, 530):
        problem, _, plan = tiled(seed)
        x = problem.tensors["x"]
        if plan is None or x.shape[1] % 2 or x.shape[3] % 4:
            continue  # tiles in one layout only
        compared += 1
        library.configure(0, SHARED, 1, CACHE)
        first = cascade(library, problem, torch.float32, False)
        for shared, multiprocessors in ((SHARED, MULTIPROCESSORS), (163 << 10, 1)):
            library.configure(seed, shared, multiprocessors, CACHE)
            for dtype in (torch.float32, problem.dtype):
                for channels_last in (False, True):
                    answer = cascade(library, problem, dtype, channels_last)
                    assert torch.equal(first.to(dtype), answer), problem.repro("cuda")
    assert compared >= 10, compared


@pytest.mark.parametrize("seed", range(600, 612))
def test_host_cuda_tiles_write_every_element_and_no_other(library, seed):
    problem, limits, _ = tiled(seed)
    library.configure(seed, *limits)
    before = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    try:
        s = cascade(library, problem)
    finally:
        torch.use_deterministic_algorithms(False)
    assert s.isfinite().all() and s.stride() == problem.tensors["x"].stride()
    assert all(torch.equal(problem.tensors[n], t) for n, t in before.items())


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("k0, k1, d", PUBLISHED_SPLITS)
def test_host_cuda_tiles_pass_nan_as_far_as_taps_reach(library, k0, k1, d, value, channels_last):
    choice = random.Random(k1)
    for side in (20, 40, 52):
        library.configure(0, SHARED, 1, CACHE)
        x = torch.randn(1, 2, side, side)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        row, column = choice.randrange(side), choice.randrange(side)
        x[0, 1, row, column] = value
        s = library.lska_cascade_fwd_cuda(x, *depthwise(2, k0, k1), d)
        reach = torch.zeros(1, 1, side, side)
        reach[0, 0, row, column] = 1
        for k, step in ((k0, 1), (k1, d)):
            reach = F.conv2d(reach, torch.ones(1, 1, k, k), padding=k // 2 * step, dilation=step)
        assert s[0, 0].isfinite().all()
        assert torch.equal(~s[0, 1].isfinite(), reach[0, 0] > 0)


@pytest.mark.parametrize("seed", range(700, 712))
def test_host_cuda_tiles_leave_unaligned_maps_to_others(host, seed):
    problem, limits, _ = tiled(seed)
    x = problem.tensors["x"]
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    problem.tensors["x"] = memory[1:].as_strided(x.shape, x.stride(), 1).copy_(x)
    host.configure(seed, *limits)
    check(problem, backward=False)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("k0, k1, d", [(3, 3, 2), (5, 7, 3), (5, 17, 3)])
@pytest.mark.parametrize("C, side", [(32, 80), (32, 40), (32, 20)])
def test_host_cuda_tiles_read_little_twice(library, C, side, k0, k1, d, channels_last):
    library.configure(0, SHARED, 4, CACHE)
    x = torch.randn(2, C, side, side).half()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    parts = depthwise(C, k0, k1, torch.float16)
    library.take_counters()
    library.lska_cascade_fwd_cuda(x, *parts, d)
    weights = library.weight_bytes()
    loaded, stored, launches, _ = library.take_counters()
    size = x.numel() * 2
    assert launches == 1 and stored == size
    halo = 1 + 2 * (k0 // 2 + k1 // 2 * d) / 20 if channels_last and side > 20 else 1
    assert loaded - weights <= halo * size
