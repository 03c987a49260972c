"""What nvcc made of the CUDA kernels, read from the installed library: nothing in local memory, no architecture missing."""

import collections
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import lska_ops
from build_backend.compile import NVCC_FLAGS, torch_flags
from build_backend.facts import collect
from lska_ops import _compiled

ROOT = Path(__file__).resolve().parent.parent
# All of the GPU's part that is torch's: device, stream, tensors, products, registration. No kernel of ours.
OVER_ATEN = """
#include "csrc/common/on_gpu.h"

namespace lska_ops::gpu {
__global__ void fill(float* y) { *y = 1; }

Tensor product(const Tensor& x, const MaybeTensor& y) {
  const OnGpu on("product", "x", x);
  Tensor out = empty_map(in_nchw(x), headeronly::MemoryFormat::ChannelsLast);
  fill<<<1, 1, 0, static_cast<cudaStream_t>(on.device.stream)>>>(static_cast<float*>(out.mutable_data_ptr()));
  const int64_t shape[] = {1, 1};
  multiply(stable::from_blob(x.data_ptr(), {shape, 2}, {shape, 2}, x.device(), x.scalar_type()),
           y ? *y : stable::new_empty(x, {1, 1}), stable::new_empty(x, {1, 1}, ScalarType::Float));
  return out;
}
}  // namespace lska_ops::gpu

STABLE_TORCH_LIBRARY_IMPL(lska_ops_test, CUDA, m) { m.impl("product", TORCH_BOX(&lska_ops::gpu::product)); }
"""
LIBRARY = Path(lska_ops.__file__).parent / "_C.so"
MOST_KERNELS = 24  # of one source file; each costs build time for every architecture


def triton_s(tool):
    """Triton brings it along."""
    spec = importlib.util.find_spec("triton")
    found = (
        [Path(f) / "backends" / "nvidia" / "bin" / tool for f in spec.submodule_search_locations]
        if spec
        else []
    )
    return next((str(f) for f in found if f.is_file()), None)


@pytest.fixture(scope="module")
def cuobjdump():
    if reason := _compiled.cuda_problem():
        pytest.skip(reason)
    tool = shutil.which("cuobjdump") or triton_s("cuobjdump")
    if tool is None:
        pytest.skip("cuobjdump was not found; install the CUDA toolkit, or Triton")

    def run(option):
        return subprocess.run([tool, option, LIBRARY], check=True, capture_output=True, text=True).stdout

    return run


def test_cuda_build_has_every_architecture_and_ptx(cuobjdump):
    info = _compiled.build_info()
    archs = info["cuda_archs"]
    if wanted := os.environ.get("LSKA_OPS_CUDA_ARCHS"):
        wanted = [arch.replace(".", "") for arch in re.split(r"[;,\s]+", wanted) if arch]
        assert archs == list(dict.fromkeys(wanted)), (
            "compiled for other architectures; `rm .venv/ready` and make it again"
        )
    assert set(re.findall(r"\.sm_(\w+)\.cubin", cuobjdump("--list-elf"))) == set(archs)
    assert set(re.findall(r"\.sm_(\w+)\.ptx", cuobjdump("--list-ptx"))) == ({info["cuda_ptx"]} - {None})
    if "75" in archs:  # then every GPU that the kernels are for can have them
        assert info["cuda_ptx"] == "75"


def source_file(kernel):
    """A name for each cuda*.cu by what of a kernel's symbol says that it is compiled there."""
    dtype = r"I(f|NS_4Half|NS_8BFloat16)"
    if tile := re.search(rf"lska_tile_fwd_(nhwc|nchw)_kernel{dtype}", kernel):
        return "forward", *tile.groups()
    if tile := re.search(rf"lska_tile_bwd_kernel{dtype}.*(ELb[01]E)", kernel):
        return "backward", *tile.groups()
    if re.search(r"_bands?_", kernel):
        return "bands"
    if re.search(r"acmix_(products_fwd|shift_table)_kernel", kernel):
        return "products"
    if "acmix_products_bwd_kernel" in kernel:
        return "backward products"
    if re.search(r"acmix_shift_(weights|maps|back_table)_kernel", kernel):
        return "shift's products"
    return re.search(r"\d(lska|acmix)_(?!ops)\w+_kernel", kernel)[1]


def test_cuda_build_spills_nothing(cuobjdump):
    """A spilled register lies in local memory, of which STACK and LOCAL are the sizes."""
    said = cuobjdump("--dump-resource-usage")
    used = re.findall(
        r"arch = sm_(\w+)|Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", said
    )
    arch, kernels = None, {}
    for found, name, registers, stack, _, local in used:
        if found:
            arch = found
            continue
        assert (stack, local) == ("0", "0"), f"{name} for sm_{arch}: {stack} bytes of stack, {local} local"
        if re.search(r"acmix_(fwd|query_bwd|key_bwd)_kernel", name):
            limit = 255  # of 256 threads, a multiprocessor's only ones
        elif side := re.search(r"acmix_products_fwd_kernel.*ELi(\d+)E", name):
            limit = (
                255 if int(side[1]) > 10 else 168 if arch == "75" else 128
            )  # products_threads in plan_products.h
        elif side := re.search(r"acmix_products_bwd_kernel.*ELi(\d+)E", name):
            # products_backward_threads in plan_products_backward.h
            limit = 255 if arch == "75" and int(side[1]) == 10 else 168
        elif re.search(r"lska_tile_bwd_kernel.*LskaPairILi3E.*ELb0E", name):
            limit = 128  # as plan_tile_backward.h has it for k 7 and 11 in NCHW
        elif re.search(r"lska_tile_|_bands_kernel", name):
            limit = 168  # of 384 threads at most; plan_tile.h and plan_tile_backward.h count on it
        else:
            limit = 64 if re.search(r"cascade_(fwd|bwd)_kernel", name) else 128  # of 1024, of 512
        assert int(registers) <= limit, f"{name} for sm_{arch}: {registers} registers"
        kernels.setdefault(arch, set()).add(name)
    assert set(kernels) == set(_compiled.build_info()["cuda_archs"])
    for names in kernels.values():
        of_file = collections.Counter(map(source_file, names))
        assert len(of_file) == 2 + 1 + 3 + 6 + 6, of_file  # both ops, bands, products, tiles of both ways
        assert max(of_file.values()) <= MOST_KERNELS, of_file


@pytest.mark.versions
def test_cuda_build_launchers_compile_over_aten(tmp_path):
    """What nvcc reads for torch before 2.11, with this torch's headers; machine code has no part in it."""
    facts = collect()
    if facts.nvcc is None or facts.compiler_problem:
        pytest.skip(facts.compiler_problem or "nvcc was not found; install the CUDA toolkit")
    (tmp_path / "gpu.cu").write_text(OVER_ATEN, encoding="utf-8")
    flags = [*NVCC_FLAGS.split(), "-arch=sm_90", "-ccbin", shlex.split(facts.compiler)[-1]]
    flags += torch_flags(replace(facts, torch_version="2.6.0"))
    command = [facts.nvcc, *flags, "-c", str(tmp_path / "gpu.cu"), "-o", str(tmp_path / "gpu.o")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[:4000]
