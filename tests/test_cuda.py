"""The CUDA backend's sentences, on machines that have no GPU: each reason to decline, and the one warning."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lska_ops import _backends, _compiled
from lska_ops.acmix import compiled as acmix_compiled
from lska_ops.lska import compiled

ON_GPU = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16)


@pytest.fixture(autouse=True)
def ask_again():
    _compiled._ask_device.cache_clear()
    yield
    _compiled._ask_device.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A machine on which nothing is missing: an RTX 4090, a driver for CUDA 13.0, kernels of 13.0."""
    machine = SimpleNamespace(capability=(8, 9), driver=13000, toolkit=13000, archs=["80", "89", "90"])
    monkeypatch.setattr(_compiled, "problem", None)
    monkeypatch.setattr(
        _compiled,
        "build_info",
        lambda folder=None: {"parts": ["cpu", "cuda"], "reasons": {}, "cuda_archs": machine.archs},
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: machine.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "RTX 4090")
    library = SimpleNamespace(cuda_versions=lambda: [machine.driver, machine.toolkit])
    monkeypatch.setattr(torch.ops, "lska_ops", library, raising=False)
    return machine


def test_cuda_accepts_where_nothing_is_missing(gpu):
    assert compiled.why_not_cuda(ON_GPU) is None
    gpu.driver = 13020
    _compiled._ask_device.cache_clear()
    assert compiled.why_not_cuda(ON_GPU) is None


def says(reason, *words):
    what_is_so, _, what_would_help = reason.partition("; ")
    assert what_would_help and "\n" not in reason
    for word in words:
        assert word in reason


def test_cuda_declines_a_map_elsewhere():
    says(compiled.why_not_cuda(torch.empty(1)), "x is on cpu; move it to a CUDA device")
    says(acmix_compiled.why_not_cuda(torch.empty(1)), "x is on cpu; move it to a CUDA device")


def test_cuda_declines_float64(gpu):
    says(compiled.why_not_cuda(SimpleNamespace(device=ON_GPU.device, dtype=torch.float64)), "x is float64")


def test_cuda_declines_without_compiled_library(gpu, monkeypatch):
    monkeypatch.setattr(_compiled, "problem", "no C++ compiler was found; install g++ 11 or newer")
    says(compiled.why_not_cuda(ON_GPU), "the compiled library is missing (no C++ compiler was found")


def test_cuda_declines_without_cuda_part_and_says_why_it_was_not_built(gpu, monkeypatch):
    info = {"parts": ["cpu"], "reasons": {"cuda": "nvcc was not found; install the CUDA toolkit"}}
    monkeypatch.setattr(_compiled, "build_info", lambda folder=None: info)
    says(compiled.why_not_cuda(ON_GPU), "has no CUDA part (nvcc was not found; install the CUDA toolkit)")


def test_cuda_declines_an_old_gpu(gpu):
    gpu.capability = (7, 0)
    says(compiled.why_not_cuda(ON_GPU), "RTX 4090 has compute capability 7.0; use a GPU of 7.5 or newer")


@pytest.mark.parametrize("archs, runs", [(["86"], True), (["80"], True), (["90"], False), (["75"], True)])
def test_cuda_declines_a_gpu_it_was_not_compiled_for(gpu, archs, runs):
    gpu.archs = archs
    reason = compiled.why_not_cuda(ON_GPU)  # 7.5's PTX is compiled for 8.9 by the driver
    if runs:
        assert reason is None
    else:
        says(reason, "compiled for 90", "this GPU is 89", "reinstall lska_ops")


def test_cuda_declines_an_old_driver(gpu):
    gpu.driver = 12080
    says(
        compiled.why_not_cuda(ON_GPU), "driver supports CUDA 12.8", "compiled with 13.0", "update the driver"
    )


def test_cuda_answer_is_a_constant_for_torch_compile():
    def marked():
        pass

    torch.compiler.assume_constant_result(marked)
    assert marked.__dict__ == _compiled._why_not_device.__dict__


def test_cuda_declines_acmix_of_other_sizes(gpu):
    why_not = acmix_compiled.why_not_cuda
    assert why_not(ON_GPU) is None
    assert why_not(ON_GPU, head=8, kernel_att=9, kernel_conv=5, dilation=3) is None
    says(
        why_not(ON_GPU, kernel_att=15, dilation=2),
        "reaches 14 pixels",
        "the CUDA kernels 12",
        "smaller kernel_att",
    )
    says(why_not(ON_GPU, head=65), "65 heads are more than", "hold, 64", "fewer heads")
    says(why_not(ON_GPU, head=64, kernel_conv=7), "64 heads with 7 x 7 taps", "hold 2048;")
    says(why_not(ON_GPU, dims=1025), "a head has 1025 dims", "hold 1024;")
    says(why_not(ON_GPU, stride=9), "stride is 9", "take 8 at most;")
    assert why_not(ON_GPU, head=100, kernel_conv=None) is None  # attention alone


def test_cuda_limits_of_acmix_are_the_kernels():
    plan = (Path(__file__).parent.parent / "csrc" / "acmix" / "plan.h").read_text(encoding="utf-8")
    for name in ("MostReach", "MostShift", "MostHeads", "MostDims", "MostStride"):
        number = int(re.search(rf"constexpr int kAcmix{name} = (\d+);", plan)[1])
        assert getattr(acmix_compiled, re.sub("(?<=t)(?=[A-Z])", "_", name).upper()) == number


def test_cuda_reference_on_a_gpu_warns_once(monkeypatch):
    monkeypatch.setattr(_backends, "_warned", False)
    x = SimpleNamespace(device=ON_GPU.device, dtype=torch.float64)
    with pytest.warns(
        UserWarning,
        match="lska: plain PyTorch computes on this GPU: cuda: x is float64 .* triton: x is float64",
    ):
        assert _backends.choose("lska", "auto", x) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose("lska", "auto", x) == "reference"
    monkeypatch.setattr(_backends, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # asked for by name, it is no surprise
        assert _backends.choose("lska", "reference", x) == "reference"


def test_cuda_ops_have_fakes():
    if _compiled.problem:
        pytest.skip(f"cpu: {_compiled.problem}")
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        C = 4
        x = torch.empty(2, C, 6, 5).contiguous(memory_format=torch.channels_last)
        shapes = [(C, 1, 1, 3), (C,), (C, 1, 3, 1), (C,), (C, 1, 1, 5), (C,), (C, 1, 5, 1), (C,)]
        weights, conv1 = [torch.empty(s) for s in shapes], torch.empty(C, C, 1, 1)
        y, product = torch.ops.lska_ops.lska_fwd_cuda(x, *weights, conv1, None, 2, True)
        assert y.stride() == product.stride() == x.stride() and product.shape == x.shape
        grads = torch.ops.lska_ops.lska_bwd_cuda(y, x, product, *weights, conv1, None, 2)
        assert [g.shape for g in grads] == [x.shape, *map(torch.Size, shapes), conv1.shape, (C,)]
