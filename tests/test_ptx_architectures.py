"""What stands for all newer GPUs is the PTX of 8.0, which the tests run: nvcc writes the same for each of them."""

import re

import pytest
from ptx import build
from ptx.build import ROOT, ptx_of

if reason := build.problem():
    pytest.skip(f"ptx: {reason}", allow_module_level=True)

# One for multiply-adds and one for products; the rest asks for no other architectures, as the second test has it.
SOURCES = ("lska/cuda_tiles_backward_nhwc_half.cu", "acmix/cuda_products.cu")


def kernels(text):
    """{name: instructions}; what nvcc makes up for names of its own, and lines of the source, left out."""
    text = re.sub(r"_INTERNAL_[0-9a-f]{8}_|_cu_[0-9a-f]{8}_\d+", "", text)
    found = re.findall(r"^\.visible \.entry (\w+)\((.*?)^\}", text, flags=re.M | re.S)
    return {name: re.sub(r"^\s*\.loc\b.*\n", "", body, flags=re.M) for name, body in found}


@pytest.mark.parametrize("source", SOURCES)
def test_ptx_of_newer_architectures_is_that_of_8_0(source):
    file = ROOT / "csrc" / source
    of_80, of_90 = (
        kernels(ptx_of(file.parent.name, file, arch).read_text(encoding="utf-8")) for arch in (80, 90)
    )
    assert of_80 and of_80.keys() == of_90.keys()
    assert [name for name in of_80 if of_80[name] != of_90[name]] == []


def test_ptx_sources_ask_for_no_architecture_beyond_8_0():
    """But those of bands, which are for 8.0 alone."""
    asked, bands = set(), set()
    for file in (ROOT / "csrc").rglob("*"):
        if file.suffix not in (".cu", ".cuh", ".h"):
            continue
        text = file.read_text(encoding="utf-8")
        asked |= set(re.findall(r"__CUDA_ARCH__\s*([<>=!]+ *\d+|\w+)", text))
        if file.name != "portable.cuh" and "LSKA_ON_TENSOR_CORES" in text:
            bands.add(file.name)
    assert asked == {">= 800", "< 800", "== 800"}
    assert bands == {"kernels_bands.cuh", "kernels_bands_tables.cuh"}
