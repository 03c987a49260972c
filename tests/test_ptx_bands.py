"""What nvcc makes of LSKA's products on tensor cores, run on the CPU."""

import os
from pathlib import Path

import pytest
import test_host_cuda_bands
import torch
from ptx import build
from test_host_cuda import CACHE, SHARED, depthwise
from test_host_cuda_bands import DTYPES, problem, ratio, reference

if reason := build.problem():
    pytest.skip(f"ptx: {reason}", allow_module_level=True)

from ptx.host import Gpu  # noqa: E402
from ptx.parse import Module  # noqa: E402


@pytest.fixture(scope="module")
def gpu():
    root = Path(os.environ.get("LSKA_OPS_PTX_SOURCES", build.ROOT))
    code = build.ptx_of("lska", root / "csrc" / "lska" / "cuda_bands.cu", 80, root)
    made = Gpu(build.build(build.ROOT / "build" / "host_cuda"), [Module(code.read_text(encoding="utf-8"))])
    yield made
    made.close()


def run(gpu, x, parts, dilation):
    gpu.ops.configure(0, SHARED, 1, CACHE, 80)
    with gpu.launching() as launches:
        s = gpu.ops.cascade_bands(x, *parts, dilation)
    assert len(launches) == 2  # the table and the products
    return s


@pytest.mark.parametrize("seed", range(450_000, 450_006))
def test_ptx_bands_within_bound(gpu, seed):
    x, parts, dilation = problem(seed)
    assert ratio(run(gpu, x, parts, dilation), x, parts, dilation) <= 1, (x.shape, x.dtype, dilation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ptx_bands_pass_nan_on_like_pytorch(gpu, dtype):
    x = torch.randn(test_host_cuda_bands.B, 1, 51, 48, generator=torch.Generator().manual_seed(0))
    x, parts = x.to(DTYPES[dtype]), depthwise(1, 3, 9, DTYPES[dtype])
    x[5, 0, 9, 37] = torch.nan
    theirs = reference(x.float(), [t.float() for t in parts], 4)
    assert torch.equal(run(gpu, x, parts, 4).isfinite(), theirs.isfinite())


def test_ptx_bands_all_kernels_ran(gpu):
    assert gpu.ran == set(gpu.kernels)
