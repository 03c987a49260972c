"""Which compiled architectures serve which GPU, and that what is advised where none does is a cure."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_build import GPU_BUILDER

from build_backend.compile import describe
from build_backend.decide import FIRST_NVCC, decide
from lska_ops import _compiled
from lska_ops.lska import compiled

GPUS = "7.5 8.0 8.6 8.7 8.8 8.9 9.0 10.0 10.1 10.3 10.7 11.0 12.0 12.1"
# What is compiled, machine code / PTX, and in the columns of GPUS what of it runs there: m the machine code, p only
# the PTX, - nothing. 8.7 is Orin, 11.0 Thor and 10.1 its name in CUDA 12, 10.3 a B300, 10.7 Rubin, 12.1 a GB10.
TABLE = """
                                 7.5 8.0 8.6 8.7 8.8 8.9 9.0 10.0 10.1 10.3 10.7 11.0 12.0 12.1
75,80,86,87,89,90,100,110,120/75  m   m   m   m   p   m   m   m    p    m    m    m    m    m
75,80,86,87,89,90,100,120/75      m   m   m   m   p   m   m   m    p    m    m    p    m    m
75,80,86,87,89,90/75              m   m   m   m   p   m   m   p    p    p    p    p    p    p
75,80,86,89,90,100,120/120        m   m   m   -   -   m   m   m    -    m    m    -    m    m
75,80,86,89,90/90                 m   m   m   -   -   m   m   p    p    p    p    p    p    p
75/75                             m   p   p   p   p   p   p   p    p    p    p    p    p    p
72/72                             p   p   p   p   p   p   p   p    p    p    p    p    p    p
80/80                             -   m   m   p   p   m   p   p    p    p    p    p    p    p
86/86                             -   -   m   p   p   m   p   p    p    p    p    p    p    p
87/87                             -   -   -   m   p   p   p   p    p    p    p    p    p    p
88/88                             -   -   -   -   m   p   p   p    p    p    p    p    p    p
89/89                             -   -   -   -   -   m   p   p    p    p    p    p    p    p
90/90                             -   -   -   -   -   -   m   p    p    p    p    p    p    p
90a/-                             -   -   -   -   -   -   m   -    -    -    -    -    -    -
90a/90a                           -   -   -   -   -   -   m   -    -    -    -    -    -    -
80,90a/80                         -   m   m   p   p   m   m   p    p    p    p    p    p    p
80,90a/90a                        -   m   m   -   -   m   m   -    -    -    -    -    -    -
100/100                           -   -   -   -   -   -   -   m    p    m    m    p    p    p
100a/-                            -   -   -   -   -   -   -   m    -    -    -    -    -    -
100f/-                            -   -   -   -   -   -   -   m    -    m    m    -    -    -
100f/100f                         -   -   -   -   -   -   -   m    -    m    m    -    -    -
101/101                           -   -   -   -   -   -   -   -    m    p    p    p    p    p
103/103                           -   -   -   -   -   -   -   -    -    m    m    p    p    p
103f/-                            -   -   -   -   -   -   -   -    -    m    m    -    -    -
110/110                           -   -   -   -   -   -   -   -    -    -    -    m    p    p
110a/-                            -   -   -   -   -   -   -   -    -    -    -    m    -    -
110f/-                            -   -   -   -   -   -   -   -    -    -    -    m    -    -
120/120                           -   -   -   -   -   -   -   -    -    -    -    -    m    m
120a/-                            -   -   -   -   -   -   -   -    -    -    -    -    m    -
120f/-                            -   -   -   -   -   -   -   -    -    -    -    -    m    m
121/121                           -   -   -   -   -   -   -   -    -    -    -    -    -    m
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
PAIRS = [(gpu, row[0], runs) for row in ROWS[1:] for gpu, runs in zip(ROWS[0], row[1:], strict=True)]
COMPILERS = [(12, 0), (12, 4), (12, 8), (12, 9), (13, 0), (13, 4)]  # C++20 is from 12.0
ON_GPU = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16)


def numbers(gpu):
    return tuple(map(int, gpu.split(".")))


def described(**facts):
    facts = replace(GPU_BUILDER, **facts)
    return describe(decide(facts), facts)


@pytest.fixture
def says(monkeypatch):
    """(GPU, build info, CUDA of its driver) -> why the CUDA kernels decline."""
    monkeypatch.setattr(_compiled, "problem", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")

    def ask(gpu, info, driver):
        toolkit = numbers(info.get("nvcc", "13.0"))
        versions = [1000 * major + 10 * minor for major, minor in (driver, toolkit)]
        library = SimpleNamespace(cuda_versions=lambda: versions)
        monkeypatch.setattr(torch.ops, "lska_ops", library, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: numbers(gpu))
        monkeypatch.setattr(_compiled, "build_info", lambda folder=None: info)
        _compiled._ask_device.cache_clear()
        return compiled.why_not_cuda(ON_GPU)

    yield ask
    _compiled._ask_device.cache_clear()


def test_architectures_the_table_has_every_gpu():
    assert ROWS[0] == GPUS.split()


@pytest.mark.parametrize("gpu, built, runs", PAIRS)
def test_architectures_which_run_on_which_gpu(gpu, built, runs):
    archs, ptx = built.split("/")
    archs, ptx = archs.split(","), None if ptx == "-" else ptx
    assert _compiled._runs_on(numbers(gpu), archs, ptx) == (runs != "-")
    assert _compiled._runs_on(numbers(gpu), archs, None) == (runs == "m")


def test_architectures_ptx_is_of_the_oldest_without_a_suffix():
    for archs, ptx in [
        ("", "75"),
        ("120;90;100", "90"),
        ("90a;100", "100"),
        ("90a;100f", None),
        ("8.7", "87"),
    ]:
        assert described(archs=archs)["cuda_ptx"] == ptx


@pytest.mark.parametrize("nvcc", COMPILERS)
@pytest.mark.parametrize("gpu", GPUS.split())
def test_architectures_by_default_run_everywhere(says, gpu, nvcc):
    """So that to reinstall without LSKA_OPS_CUDA_ARCHS is a cure, whichever nvcc is there."""
    assert says(gpu, described(nvcc_version=nvcc), driver=max(nvcc, (13, 0))) is None


@pytest.mark.parametrize("gpu, archs", [("8.7", "75,80,86,89,90,100,120"), ("11.0", "90a"), ("8.9", "90")])
def test_architectures_what_does_not_run_has_a_cure(says, gpu, archs):
    why = says(gpu, {"parts": ["cuda"], "cuda_archs": archs.split(","), "nvcc": "13.0"}, driver=(13, 0))
    so, _, cure = why.partition("; ")
    assert f"compiled for {archs.replace(',', ', ')}, this GPU is {gpu.replace('.', '')}" in so
    assert cure == "reinstall lska_ops where nvcc is, without LSKA_OPS_CUDA_ARCHS"


def test_architectures_built_before_the_ptx_was_stored(says):
    old = {"parts": ["cuda"], "cuda_archs": ["75", "90"]}  # the PTX of the last
    assert says("12.0", old, (13, 0)) is None and says("7.5", old, (13, 0)) is None
    assert "compiled for 75, 90, this GPU is 86; " in says("8.6", old, (13, 0))


@pytest.mark.parametrize("gpu, advised", [("8.7", "87"), ("8.9", "89"), ("10.3", "100"), ("12.1", "121")])
def test_architectures_ptx_needs_a_driver_as_new_as_the_toolkit(says, gpu, advised):
    def info(archs):
        return described(archs=archs, nvcc_version=(13, 2))

    why = says(gpu, info("75"), driver=(13, 0))
    so, _, cure = why.partition("; ")
    assert "supports CUDA 13.0" in so and "PTX of 13.2" in so and f"this GPU is {gpu.replace('.', '')}" in so
    assert cure == f"update the driver, or reinstall lska_ops with LSKA_OPS_CUDA_ARCHS={advised}"
    assert says(gpu, info("75"), driver=(13, 2)) is None and says(gpu, info("75"), driver=(14, 0)) is None
    assert says(gpu, info(advised), driver=(13, 0)) is None  # machine code asks for the major version alone


@pytest.mark.parametrize("archs, word", [("11.0", "110"), ("75;100f", "100f")])
def test_architectures_named_to_an_nvcc_that_does_not_know_them(archs, word):
    facts = replace(GPU_BUILDER, archs=archs, nvcc_version=(12, 4))
    plan = decide(facts)
    so, _, cure = plan.reasons["cuda"].partition("; ")
    assert f"names {word} and this nvcc, 12.4, does not know it" in so and plan.parts == ("cpu", "plan")
    needed = cure.partition("nvcc ")[2].partition(" or newer")[0]
    assert "cuda" in decide(replace(facts, nvcc_version=numbers(needed))).parts
    assert (
        cure.endswith("or without LSKA_OPS_CUDA_ARCHS") and "cuda" in decide(replace(facts, archs="")).parts
    )
    assert word in decide(replace(facts, mode="require")).error


def test_architectures_of_each_compiler():
    assert described(nvcc_version=(12, 9))["cuda_archs"] == "75 80 86 87 89 90 100 120".split()
    assert described(nvcc_version=(13, 0))["cuda_archs"] == list(FIRST_NVCC) == sorted(FIRST_NVCC, key=int)
