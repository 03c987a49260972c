"""What nvcc makes of ACmix's kernels, run on the CPU as tests/test_ptx_lska.py runs LSKA's."""

import itertools
from functools import cache

import pytest
import torch
from ptx import build
from test_host_cuda_acmix import CACHE, DEVICES, half, resized

from lska_ops.acmix import compiled
from lska_ops.acmix import op as acmix_op
from lska_ops.testing.acmix import sizes
from lska_ops.testing.problems import LAYOUTS, random_problem, ratios, solve

if reason := build.problem():
    pytest.skip(f"ptx: {reason}", allow_module_level=True)

from ptx.host import Gpu  # noqa: E402

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FIRST, EACH, MOST = 520_000, 3, 6_000  # elements of qkv: an interpreted problem takes half a second, then


@pytest.fixture(scope="module")
def gpu():
    made = Gpu.of("acmix")
    yield made
    made.close()


def problems(device, dtype):
    """Small ones, in this dtype whatever was drawn; every other in channels_last."""
    seed = FIRST + 1000 * (list(DEVICES).index(device) * len(DTYPES) + list(DTYPES).index(dtype))
    found = []
    while len(found) < EACH:
        problem, seed = random_problem("acmix", seed), seed + 1
        if problem.tensors["qkv"].numel() <= MOST and not compiled.too_much(**sizes(problem)):
            problem.dtype, problem.layout = DTYPES[dtype], ("contiguous", "channels_last")[len(found) % 2]
            problem.grad_y = problem.grad_y.to(problem.dtype)
            problem.tensors = {
                n: None if t is None else t.to(problem.dtype) for n, t in problem.tensors.items()
            }
            problem.tensors["qkv"] = LAYOUTS[problem.layout](problem.tensors["qkv"].contiguous())
            found.append(problem)
    return found


def exceeding(gpu, problem):
    """What an answer is too far away by, or None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acmix_op, "_op", lambda name, backend: getattr(gpu.ops, f"acmix_core_{name}_cuda"))
        with gpu.launching(may_read_unwritten="acmix"):
            answers = solve(problem, "cpu")
    found = ratios(problem, answers, "cuda")
    wrong = {name: ratio for name, ratio in found.items() if not ratio <= 1}
    return (
        f"{wrong} times the bound: {problem.seed} {problem.repro('cuda').partition('#')[2]}"
        if wrong
        else None
    )


@cache
def solved(gpu, device, dtype):
    """What exceeds the bound."""
    gpu.ops.configure(0, *DEVICES[device], CACHE)
    return [said for problem in problems(device, dtype) if (said := exceeding(gpu, problem))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_ptx_acmix_within_bound(gpu, device, dtype):
    assert not solved(gpu, device, dtype)


@pytest.mark.parametrize("dims", [8, 2, 3])
def test_ptx_acmix_channels_last_in_place_as_nchw(gpu, dims):
    """Channels 16 bytes, 8 bytes and one at a time; both halves, and attention alone."""
    gpu.ops.configure(0, *DEVICES["h100"], CACHE)
    tensors = resized(FIRST, 1, 2, dims, 3, 3, 5, 9).tensors
    tensors = {name: None if t is None else t.float() for name, t in tensors.items()}
    for given in (("conv_p", "fc", "dep_conv", "rate1", "rate2"), ("conv_p", None, None, "rate1", None)):
        rest = [name and tensors[name] for name in given]
        with gpu.launching(may_read_unwritten="acmix"):
            y, last = (
                gpu.ops.acmix_core_fwd_cuda(LAYOUTS[layout](tensors["qkv"]), *rest, 2, 3, 1, 1)[0]
                for layout in ("contiguous", "channels_last")
            )
        assert torch.equal(y, last) and last.is_contiguous(memory_format=torch.channels_last)


# G, D, window, H, W, stride: every side of windows, and both tables of the shift.
PRODUCTS = [
    (4, 16, 3, 5, 8, 1),
    (8, 8, 5, 4, 9, 1),
    (4, 16, 7, 9, 4, 1),
    (4, 8, 9, 4, 6, 1),
    (8, 8, 7, 7, 6, 2),
]


@cache
def products(gpu, dtype, arch, backward=True):
    """What exceeds the bound of what tensor cores do, backward where they do it; both layouts, by turns."""
    gpu.ops.configure(0, 227 << 10 if arch >= 80 else 64 << 10, 4, CACHE, arch)
    said = []
    for n, (G, D, K, H, W, stride) in enumerate(PRODUCTS):
        problem = resized(FIRST + n, 1, G, D, K, 3, H, W, stride)
        problem.dtype = DTYPES[dtype]
        problem.tensors = {
            name: None if t is None else t.to(problem.dtype) for name, t in problem.tensors.items()
        }
        layout = LAYOUTS[("contiguous", "channels_last")[n % 2]]
        problem.tensors["qkv"] = layout(problem.tensors["qkv"])
        problem.grad_y = layout(problem.grad_y.to(problem.dtype))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(acmix_op, "_op", lambda name, backend: getattr(gpu.ops, f"acmix_core_{name}_cuda"))
            with gpu.launching(may_read_unwritten="acmix"):
                answers = solve(problem, "cpu", backward and stride == 1 and K < 9)
        said += [(PRODUCTS[n], r) for r in ratios(problem, answers, "cuda").values() if not r <= 1]
    return said


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_ptx_acmix_products_within_bound(gpu, dtype):
    assert not products(gpu, dtype, 90)


def test_ptx_acmix_products_of_the_oldest_within_bound():
    """On 7.5 a product has 8 columns of its left operand; in its 64 KiB one problem's shift goes to other kernels."""
    old = Gpu.of("acmix", arch=75)
    try:
        assert not products(old, "f16", 75)
        assert sum("products_fwd" in name for name in old.ran) == len(PRODUCTS)
    finally:
        old.close()


@pytest.mark.parametrize("part", range(3), ids="qkv")
def test_ptx_acmix_products_what_is_not_finite_stays_where_it_is_seen_on_the_oldest(part):
    """Which 7.5 has no instruction for; the definition is the reference in float64."""
    old = Gpu.of("acmix", arch=75)
    problem = resized(FIRST, 1, 4, 8, 3, 3, 8, 8)
    problem.dtype = torch.float16
    problem.tensors = {name: None if t is None else t.half() for name, t in problem.tensors.items()}
    problem.grad_y = problem.grad_y.half()
    problem.tensors["qkv"][0, 32 * part + 9, 3, 4] = torch.nan
    try:
        old.ops.configure(0, 64 << 10, 4, CACHE, 75)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(acmix_op, "_op", lambda name, backend: getattr(old.ops, f"acmix_core_{name}_cuda"))
            with old.launching(may_read_unwritten="acmix"):
                ours = solve(problem, "cpu", True)
        assert any("products_bwd" in name for name in old.ran)
    finally:
        old.close()
    problem.tensors = {name: None if t is None else t.double() for name, t in problem.tensors.items()}
    problem.grad_y = problem.grad_y.double()
    expected = solve(problem, "reference", True)
    for name in ("y", "grad_qkv"):
        assert torch.equal(ours[name].isnan(), expected[name].isnan()), name
        assert 0 < expected[name].isnan().sum() < expected[name].numel()


# G, D, H, W of the shift alone, backward.
SHIFTS = [(4, 16, 5, 8), (4, 8, 6, 9), (8, 8, 3, 12)]


@cache
def shifts(gpu, dtype, arch):
    """What exceeds the bound of the shift's gradients by products; all pairs of layouts of qkv and grad_y, by turns."""
    gpu.ops.configure(0, 227 << 10 if arch >= 80 else 64 << 10, 4, CACHE, arch)
    said, pairs = [], itertools.cycle(itertools.product(("contiguous", "channels_last"), repeat=2))
    for n, (G, D, H, W) in enumerate(SHIFTS * 2):
        problem, layouts = resized(FIRST + n, 2, G, D, 3, 3, H, W), next(pairs)
        problem.dtype = DTYPES[dtype]
        problem.tensors = {
            name: None if t is None else t.to(problem.dtype) for name, t in problem.tensors.items()
        }
        problem.tensors["rate1"].zero_()
        problem.tensors["qkv"] = LAYOUTS[layouts[0]](problem.tensors["qkv"])
        problem.grad_y = LAYOUTS[layouts[1]](problem.grad_y.to(problem.dtype))
        given, options = half(problem, attention=False)
        with gpu.launching(may_read_unwritten="acmix"):
            y, lse = gpu.ops.acmix_core_fwd_cuda(problem.tensors["qkv"], *given, *options)
            grads = gpu.ops.acmix_core_bwd_cuda(problem.grad_y, problem.tensors["qkv"], lse, *given, *options)
        answers = {"y": y} | {
            name: grads[i]
            for i, name in ((0, "grad_qkv"), (2, "grad_fc"), (3, "grad_dep_conv"), (5, "grad_rate2"))
        }
        said += [(SHIFTS[n % 3], layouts, r) for r in ratios(problem, answers, "cuda").values() if not r <= 1]
    return said


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_ptx_acmix_shift_backward_by_products_within_bound(gpu, dtype):
    assert not shifts(gpu, dtype, 90)


def test_ptx_acmix_shift_backward_by_products_of_the_oldest_within_bound():
    old = Gpu.of("acmix", arch=75)
    try:
        assert not shifts(old, "f16", 75)
        for kernel in ("shift_weights", "shift_maps", "shift_back_table"):
            assert sum(kernel in name for name in old.ran) == 2  # of four heads and of eight
    finally:
        old.close()


def test_ptx_acmix_problems_run_every_kernel(gpu):
    for device in DEVICES:
        for dtype in DTYPES:
            solved(gpu, device, dtype)
    for dtype in ("f16", "bf16"):
        products(gpu, dtype, 90)
        shifts(gpu, dtype, 90)
    assert gpu.ran == set(gpu.kernels)
