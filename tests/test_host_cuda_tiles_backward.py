"""The tile kernels of LSKA's cascade backward on the CPU: test_host_cuda.py's questions on maps that they serve."""

import random

import pytest
import test_host_cuda
import torch
from test_host_cuda import CACHE, MULTIPROCESSORS, SHARED, check, check_not_finite, problem_of

from lska_ops.testing.lska import PUBLISHED_SPLITS, positive
from lska_ops.testing.problems import solve

host, library = test_host_cuda.host, test_host_cuda.library
# Shared memory and multiprocessors: whole planes, tiles that cut rows, columns and both; many small blocks.
LIMITS = ((SHARED, 1), (SHARED, MULTIPROCESSORS), (99 << 10, 2), (64 << 10, 1), (40 << 10, 40))


def tiled(seed):
    """A problem of published taps in any shape, a device's limits."""
    choice = random.Random(seed)
    k0, k1, d = PUBLISHED_SPLITS[seed % len(PUBLISHED_SPLITS)]
    problem = problem_of(choice.randint(400_000, 500_000))
    channels_last = choice.random() < 0.5
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(problem.dtype)

    B, C = problem.tensors["x"].shape[:2]
    C += C % 2 if channels_last else 0
    H, W = (choice.choice((1, 3, 7, 14, 20, 27, 40, 61)) for _ in range(2))
    x, problem.grad_y = draw(B, C, H, W), draw(B, C, H, W)
    problem.tensors["x"] = x.to(memory_format=torch.channels_last) if channels_last else x
    problem.layout = "channels_last" if channels_last else "contiguous"
    problem.options["dilation"] = d
    for name, shape in (
        ("conv0h", (C, 1, 1, k0)),
        ("conv0v", (C, 1, k0, 1)),
        ("conv_spatial_h", (C, 1, 1, k1)),
        ("conv_spatial_v", (C, 1, k1, 1)),
    ):
        problem.tensors[name] = draw(*shape) * max(shape) ** -0.5
        problem.tensors[f"{name}_bias"] = None if choice.random() < 0.2 else draw(C)
    problem.tensors["conv1"] = draw(C, C, 1, 1) * C**-0.5
    problem.tensors["conv1_bias"] = None if choice.random() < 0.2 else draw(C)
    if seed % 2:
        problem.tensors, problem.grad_y = positive(problem.tensors, problem.grad_y)
    return problem, (*choice.choice(LIMITS), CACHE)


@pytest.mark.parametrize("part", range(4))
def test_host_cuda_tiles_gradients_within_bound(host, part):
    for seed in range(40 * part, 40 * part + 40):
        problem, limits = tiled(seed)
        host.configure(seed if seed % 3 else 0, *limits)
        check(problem, backward=True)


def test_host_cuda_tiles_gradients_repeat_bit_by_bit(host):
    for seed in range(200, 212):
        problem, limits = tiled(seed)
        answers = []
        for schedule in (0, 1, seed):
            host.configure(schedule, *limits)
            answers.append(solve(problem, "cpu"))
        for again in answers[1:]:
            assert all(torch.equal(answers[0][n], again[n]) for n in again), problem.repro("cuda")


def test_host_cuda_tiles_gradients_write_every_element(host):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    try:
        for seed in range(220, 240):
            problem, limits = tiled(seed)
            host.configure(seed, *limits)
            kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
            for name, answer in solve(problem, "cpu").items():
                assert answer.isfinite().all(), f"{name}: {problem.repro('cuda')}"
            assert all(torch.equal(problem.tensors[n], t) for n, t in kept.items())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_host_cuda_tiles_gradients_pass_nan_as_far_as_pytorch(host, value):
    asked = 0
    for seed in range(240, 300):
        problem, limits = tiled(seed)
        if problem.dtype != torch.float32:
            continue
        asked += 1
        x = problem.tensors["x"]
        x[tuple((seed * n + n) % side for n, side in enumerate(x.shape, 1))] = value
        host.configure(seed, *limits)
        check_not_finite(problem)
    assert asked >= 15, asked
