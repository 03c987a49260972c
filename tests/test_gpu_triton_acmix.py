"""ACmix's Triton kernels on a GPU, as test_gpu_triton.py LSKA's; `make gpu` runs it.

Few problems: each of another window, stride or number of heads may be compiled first.
"""

import itertools

import pytest
import test_gpu_lska as asked
import torch
from test_gpu_acmix import MODELS, judge
from test_gpu_lska import DEVICE, check, every_dtype, exact_products, numbers, on_gpu, same  # noqa: F401
from test_gpu_triton import by_triton  # noqa: F401

import lska_ops
from lska_ops.acmix import compiled
from lska_ops.testing import Case
from lska_ops.testing.problems import LAYOUTS, random_problem, solve

REASON = compiled.why_not_triton(
    torch.empty(1, 1, 1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
)
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"triton: {REASON}")
OPS = ("acmix", "local_attention", "shift_aggregate")


def problems(op, dtype, count, first):
    return itertools.islice((random_problem(op, seed) for seed in numbers(dtype, 10 * count, first)), count)


def test_gpu_triton_accepts_acmix():
    said = lska_ops.explain("acmix", torch.empty(1, 8, 8, 8, device=DEVICE))
    assert "triton: yes (chosen)" in said


@every_dtype
@pytest.mark.parametrize("op", OPS)
def test_gpu_triton_acmix_random_problems_within_bound(op, dtype):
    for problem in problems(op, dtype, 6, 860_000):
        check(problem)


@every_dtype
@pytest.mark.parametrize("case", [*MODELS[:3], Case("odd", 20, 77, 61)], ids=lambda case: case.id)
def test_gpu_triton_acmix_real_maps_within_bound(case, dtype):
    judge(asked.Row("acmix_fwd_bwd", case, 2, 7), dtype, backend="triton")


@every_dtype
def test_gpu_triton_acmix_layouts_and_repeats(dtype):
    given = next(problems("acmix", dtype, 1, 870_000))
    given.tensors["qkv"] = LAYOUTS["expanded"](given.tensors["qkv"]).contiguous()
    problem, expected = on_gpu(given), solve(on_gpu(given), "triton")
    for layout, laid_out in LAYOUTS.items():
        problem.tensors["qkv"] = laid_out(problem.tensors["qkv"].detach())
        answers = solve(problem, "triton")
        if layout == "channels_last":  # other kernels, which add in another order
            given.tensors["qkv"] = laid_out(given.tensors["qkv"])
            check(given)
            assert same(answers.values(), solve(problem, "triton").values())
        else:
            assert same(answers.values(), expected.values())


def test_gpu_triton_acmix_compiles_without_graph_break():
    torch._dynamo.reset()
    acmix = torch.compile(lska_ops.acmix, fullgraph=True)
    judge(asked.Row("acmix_fwd_bwd", MODELS[2], 1, 7), torch.float16, acmix, backend="triton")
