"""What nvcc makes of ACmix's kernels, run on the CPU as tests/test_ptx_lska.py runs LSKA's."""

from functools import cache

import pytest
import torch
from ptx import build
from test_host_cuda_acmix import CACHE, DEVICES

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


def test_ptx_acmix_problems_run_every_kernel(gpu):
    for device in DEVICES:
        for dtype in DTYPES:
            solved(gpu, device, dtype)
    assert gpu.ran == set(gpu.kernels)
