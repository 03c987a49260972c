"""Triton's kernels as they are compiled for sm_80, run on the CPU: products on tensor cores, copies under way."""

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path

import pytest
import torch

from lska_ops import _triton
from lska_ops.acmix import op as acmix_op
from lska_ops.lska import op as lska_op
from lska_ops.testing.problems import random_problem, ratios, solve

if reason := _triton.problem():
    pytest.skip(f"triton: {reason}", allow_module_level=True)
if _triton.INTERPRETED:
    pytest.skip(
        "triton: TRITON_INTERPRET is set, and kernels are not compiled; unset it", allow_module_level=True
    )

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Of each dtype one that takes every kernel; what is compiled takes five seconds a problem and more.
SEEDS = {"lska": (720_000, 5_000), "acmix": (820_000, 2_500)}


@pytest.fixture(scope="module")
def gpu():
    try:  # what Triton keeps in HOME, where that can be written
        (Path.home() / ".triton").mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=Path.home() / ".triton").close()
    except OSError:
        os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="triton_"))
    from ptx.triton_host import Gpu

    return Gpu(80)


@pytest.fixture
def host(gpu, monkeypatch):
    """Triton's launchers on tensors of the CPU, taking the place of the CPU backend."""
    from lska_ops.acmix import triton_launch as acmix_launch
    from lska_ops.lska import triton_launch as lska_launch

    monkeypatch.setattr(_triton, "launch", gpu.launch)
    monkeypatch.setattr(lska_op, "_op", lambda name, backend: getattr(lska_launch, name))
    monkeypatch.setattr(acmix_op, "_op", lambda name, backend: getattr(acmix_launch, name))
    return gpu


def problem_of(op, dtype):
    """A small problem that takes every kernel, in this dtype whatever was drawn."""
    seed, most = SEEDS[op]
    seed += 1000 * list(DTYPES).index(dtype)
    while True:
        problem = random_problem(op, seed)
        first = next(iter(problem.tensors.values()))
        whole = None not in (problem.tensors.get("conv_spatial_h", 0), problem.tensors.get("fc", 0))
        usual = op == "lska" or (problem.options["kernel_att"] > 1 and problem.options["stride"] > 1)
        if most / 2 < first.numel() <= most and whole and usual and min(first.shape[1], *first.shape[2:]) > 3:
            break
        seed += 1
    problem.dtype, problem.grad_y = DTYPES[dtype], problem.grad_y.to(DTYPES[dtype])
    problem.tensors = {n: None if t is None else t.to(problem.dtype) for n, t in problem.tensors.items()}
    return problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SEEDS)
def test_ptx_triton_within_bound(host, op, dtype):
    problem = problem_of(op, dtype)
    first = next(iter(problem.tensors))
    host.ran.clear()
    for layout in ORDERS:
        problem.tensors[first] = problem.tensors[first].contiguous(memory_format=ORDERS[layout])
        problem.grad_y = problem.grad_y.contiguous(memory_format=ORDERS[layout])
        answers = solve(problem, "cpu")
        found = ratios(problem, answers, "triton")
        wrong = {name: ratio for name, ratio in found.items() if not ratio <= 1}
        assert not wrong, f"{wrong} times the bound, {layout}: {problem.repro('triton')}"
        assert answers["y"].is_contiguous(memory_format=ORDERS[layout]), layout
    names = [f"lska_ops.{op}.triton_kernels{part}" for part in ("", "_backward", "_shift", "_last")]
    modules = [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]
    assert {k.fn.__name__ for k in _triton.kernels_of(*modules)} == {name for name, *_ in host.ran}
