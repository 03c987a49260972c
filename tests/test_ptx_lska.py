"""What nvcc makes of LSKA's kernels, run on the CPU: within the bound in every dtype, layout and on every device.

The launchers are those of tests/test_host_cuda.py; an interpreter of PTX is in place of the fibers.
"""

import random
from functools import cache

import pytest
import torch
from ptx import build
from test_host_cuda import CACHE, DEVICES, MULTIPROCESSORS, SHARED
from test_host_cuda_tiles import tiled

from lska_ops.lska import op as lska_op
from lska_ops.testing.lska import NAMES, PUBLISHED_SPLITS, positive
from lska_ops.testing.problems import LAYOUTS, Problem, ratios, solve

if reason := build.problem():
    pytest.skip(f"ptx: {reason}", allow_module_level=True)

from ptx.host import Gpu  # noqa: E402

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SPLITS = (*PUBLISHED_SPLITS, (1, 1, 1), (9, 5, 4), (3, 19, 2), (5, None, 1))  # the last has no dilated pair
# They load what a halo may hold or not before they know whether they need it.
SPECULATIVE = r"lska_cascade_bwd_kernel"


@pytest.fixture(scope="module")
def gpu():
    made = Gpu.of("lska")
    yield made
    made.close()


@pytest.mark.parametrize("bytes_", [1, 65, 130, 1000, 70_000, 1 << 20])
def test_ptx_tensors_begin_where_a_gpu_lets_them(gpu, bytes_):
    """How many lines of 128 bytes a request touches depends on it; a CPU's tensors begin anywhere at 64 bytes."""
    before = [torch.empty(bytes_, dtype=torch.uint8) for _ in range(4)]
    assert [t.data_ptr() % 512 for t in before] == [0] * 4


def problem_of(seed, split, dtype, layout):
    """Channels by eights and not, maps within the reach and beyond it, a bias that is missing now and then."""
    choice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    k0, k1, d = split
    B, C = choice.choice((1, 1, 2, 3)), choice.choice((1, 3, 8, 16, 24, 33, 40, 64))
    H, W = (choice.choice((1, 5, 8, 13, 20, 31, 40)) for _ in range(2))
    if choice.random() < 0.2:  # wider than any kernel reaches
        B, C, H, W = 1, choice.choice((2, 8, 16)), choice.randint(54, 66), choice.randint(54, 66)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    tensors = {"x": LAYOUTS[layout](normal(B, C, H, W))}
    shapes = [(C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1), (C, C, 1, 1)]
    for name, shape in zip(NAMES, shapes, strict=True):
        there = None not in shape
        tensors[name] = normal(*shape, scale=(shape[1] * shape[2] * shape[3]) ** -0.5) if there else None
        tensors[f"{name}_bias"] = normal(C) if there and choice.random() > 0.15 else None
    grad_y = LAYOUTS[layout](normal(B, C, H, W))
    if seed % 2:
        tensors, grad_y = positive(tensors, grad_y)
    return Problem("lska", seed, dtype, layout, tensors, {"dilation": d}, grad_y)


def problems(device, dtype, layout):
    first = 1000 * (
        list(DEVICES).index(device) * 6 + list(DTYPES).index(dtype) * 2 + (layout != "contiguous")
    )
    return [problem_of(first + n, split, DTYPES[dtype], layout) for n, split in enumerate(SPLITS)]


def described(problem):
    return f"{problem.seed}: " + problem.repro("cuda").partition("#")[2]


def worst(gpu, device, problem):
    """The largest ratio of any answer to its bound, and whose it is."""
    gpu.ops.configure(0, *DEVICES[device])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lska_op, "_op", lambda name, backend: getattr(gpu.ops, f"lska_{name}_cuda"))
        with gpu.launching(may_read_unwritten=SPECULATIVE):
            answers = solve(problem, "cpu")
    gpu.ops.configure(0, SHARED, MULTIPROCESSORS, CACHE)
    found = ratios(problem, answers, "cuda")
    name = max(found, key=lambda n: found[n] if found[n] == found[n] else torch.inf)
    return found[name], f"{name} is {found[name]:.3g} times the bound: {described(problem)}"


@cache
def solved(gpu, device, dtype, layout, every=1):
    """What exceeds the bound, of one problem in `every`."""
    found = [worst(gpu, device, problem) for problem in problems(device, dtype, layout)[::every]]
    return [said for ratio, said in found if not ratio <= 1]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_ptx_lska_within_bound(gpu, device, dtype, layout):
    assert not solved(gpu, device, dtype, layout)


def test_ptx_lska_problems_run_every_kernel(gpu):
    for device in DEVICES:
        for dtype in DTYPES:
            for layout in ("contiguous", "channels_last"):
                solved(gpu, device, dtype, layout)
    # Those of bands are in test_ptx_bands.py, the forward's tiles below.
    assert gpu.ran >= {name for name in gpu.kernels if "band" not in name and "lska_tile_fwd" not in name}


@pytest.mark.parametrize("split", PUBLISHED_SPLITS)
def test_ptx_lska_takes_channels_last_at_odd_addresses(gpu, split):
    """No kernel may read two halves together that do not lie at a multiple of four bytes."""
    problem = problem_of(77, split, torch.float16, "channels_last")
    x = torch.randn(1, 16, 24, 20).half()
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype)
    odd = flat[1:].view(1, 24, 20, 16).permute(0, 3, 1, 2)
    problem.tensors["x"], problem.grad_y = odd.copy_(x), torch.randn_like(x)
    for name, k in zip(NAMES, (split[0], split[0], split[1], split[1], 1), strict=True):
        shape = {"h": (16, 1, 1, k), "v": (16, 1, k, 1), "1": (16, 16, 1, 1)}[name[-1]]
        problem.tensors[name] = (torch.randn(shape) / 4).half()
        problem.tensors[f"{name}_bias"] = torch.randn(16).half()
    ratio, said = worst(gpu, "h100", problem)
    assert ratio <= 1, said


def test_ptx_lska_forward_tiles_within_bound(gpu):
    """Of each layout, dtype and shape of a tile that is drawn one problem; few shapes are drawn by no seed."""
    seen = set()
    for seed in range(400):
        problem, limits, plan = tiled(seed)
        if plan is None or (key := (problem.layout, problem.dtype, plan["shape"])) in seen:
            continue
        seen.add(key)
        gpu.ops.configure(0, *limits)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lska_op, "_op", lambda name, backend: getattr(gpu.ops, f"lska_{name}_cuda"))
            with gpu.launching():
                answers = solve(problem, "cpu", backward=False)
        found = ratios(problem, answers, "cuda")
        assert found["y"] <= 1, f"{found['y']:.3g} times the bound: {described(problem)}"
    gpu.ops.configure(0, SHARED, MULTIPROCESSORS, CACHE)
    assert len({name for name in gpu.ran if "lska_tile_fwd" in name}) >= 40


def test_ptx_lska_of_the_oldest_within_bound():
    """What stands beside the way of sm_80, without its instructions."""
    gpu = Gpu.of("lska", arch=75)
    try:
        for dtype in DTYPES:
            for layout in ("contiguous", "channels_last"):
                assert not solved(gpu, "t4", dtype, layout, every=3)
    finally:
        gpu.close()
