"""Loads the compiled library, once, when imported; remembers in one sentence why it could not.

>>> from lska_ops import _compiled
>>> _compiled.problem  # None: torch.ops.lska_ops has the compiled ops
"""

import json
import sys
from functools import cache
from pathlib import Path

import torch

FIRST_STABLE = (2, 11)  # that a library on torch's stable ABI runs in; see build_backend/decide.py
OLDEST_GPU = (7, 5)
# Jetson and DRIVE: they run machine code of their own only, and no other GPU runs theirs (CUDA programming
# guide, "Binary Compatibility"). 10.1 is how CUDA 12 calls Thor, 11.0; 8.8 is in no table of GPUs that NVIDIA
# published, so that nothing is promised for it either.
TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (8, 8), (10, 1), (11, 0)}
OTHERS_CODE = {"103": "100"}  # GPUs better served by another's code; see build_backend/decide.py
# pip caches the wheels that it builds, whatever torch they were built with.
REBUILD = "`pip install --no-deps --force-reinstall --no-cache-dir .` in the clone"
_FOLDER = Path(__file__).resolve().parent


def build_info(folder: Path = _FOLDER) -> dict | None:
    """What was compiled when lska_ops was installed, and why the rest was not; None if it was never built."""
    file = folder / "_build_info.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load(folder: Path = _FOLDER, torch_version: str = torch.__version__) -> str | None:
    """Loads the library in `folder`; returns what is so and what would help, or None if it is loaded."""
    try:
        info = build_info(folder)
    except (OSError, ValueError) as error:
        return f"{folder / '_build_info.json'} cannot be read ({error}); reinstall lska_ops"
    if info is None:
        return (
            f"{folder} was never built; leave this folder if lska_ops is installed, or else install it with "
            "`pip install .` or, to work on it, `pip install -e .`"
        )
    if "cpu" not in info["parts"]:
        return info["reasons"]["cpu"]
    if reason := _why_not_this_torch(torch_version, info):
        return reason
    library = folder / ("_C.dll" if sys.platform == "win32" else "_C.so")
    if not library.is_file():
        return f"{library} is missing, though it was built; reinstall lska_ops"
    if (size := library.stat().st_size) != info.get("bytes", size):  # half a library would end the process
        return f"{library} has {size} bytes of {info['bytes']}; reinstall lska_ops where the disk has room"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library} cannot be loaded in torch {torch_version} ({_line(error)}); reinstall lska_ops"
    return None


def _why_not_this_torch(running, info):
    """Why what was compiled with one torch does not run in this one; None where it does."""
    built = info.get("torch_headers") or _dotted(FIRST_STABLE)
    if info.get("abi", "stable") == "stable":
        fits, served = _release(running) >= FIRST_STABLE, f"{_dotted(FIRST_STABLE)} and newer"
    else:
        fits, served = _release(running) == _release(built), f"{_dotted(_release(built))} alone"
    if fits:
        return None
    cure = f"build it anew by {REBUILD}"
    if "from_source" in info:  # a wheel has no clone beside it; on Windows nothing can be built
        cure = f"build it anew by `{command}`" if (command := info["from_source"]) else "upgrade torch"
    return (
        f"the compiled library was built with torch {built}, for {served}, and this is torch {running}; "
        f"{cure}"
    )


def cuda_problem(folder: Path = _FOLDER) -> str | None:
    """Why there are no CUDA kernels in the library, or None."""
    if problem:
        return f"the compiled library is missing ({problem})"
    info = build_info(folder)
    if "cuda" in info["parts"]:
        return None
    return f"the compiled library has no CUDA part ({info['reasons'].get('cuda', 'it was left out')})"


def why_not_gpu(x):
    """Why the CUDA kernels do not take x, whatever the op; None where they do."""
    if x.device.type != "cuda":
        return f"x is on {x.device.type}; move it to a CUDA device"
    if x.dtype == torch.float64:
        return "x is float64 and the CUDA kernels compute in float32; use float32, or the reference"
    return _why_not_device(x.device.index or 0)


def _why_not_device(index):
    return _ask_device(index)


# What torch.compiler.assume_constant_result does; calling it would import all of torch._dynamo here.
_why_not_device._dynamo_marked_constant = True


@cache
def _ask_device(index):
    """What does not change while the process lives; asked once for each device."""
    if reason := cuda_problem():
        # Elsewhere nothing is compiled, with nvcc or without; the reason says what runs there.
        cure = "; reinstall lska_ops with nvcc, see `python -m lska_ops doctor`"
        return reason + (cure if sys.platform == "linux" else "")
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_GPU:
        name = torch.cuda.get_device_name(index)
        return f"{name} has compute capability {capability[0]}.{capability[1]}; use a GPU of 7.5 or newer"
    info = build_info()
    archs = info["cuda_archs"]
    ptx = info.get("cuda_ptx", archs[-1])  # what was built before this was stored has PTX of the last
    this = f"{capability[0]}{capability[1]}"
    if not _runs_on(capability, archs, ptx):
        return (  # what is compiled by default has the PTX of 7.5, whichever nvcc compiles it
            f"the kernels were compiled for {', '.join(archs)}, this GPU is {this}; "
            "reinstall lska_ops where nvcc is, without LSKA_OPS_CUDA_ARCHS"
        )
    # The driver runs a toolkit of its own major version, whatever the minor one, but not a later one.
    driver, toolkit = torch.ops.lska_ops.cuda_versions()
    if driver // 1000 < toolkit // 1000:
        return (
            f"the GPU's driver supports CUDA {_version(driver)} and the kernels were compiled with "
            f"{_version(toolkit)}; update the driver, or reinstall lska_ops with an older nvcc"
        )
    # But it compiles no PTX newer than itself. A toolkit that is newer than this driver knows the GPU.
    if driver // 10 < toolkit // 10 and not any(_has_code(arch, capability) for arch in archs):
        return (
            f"the GPU's driver supports CUDA {_version(driver)} and would have to compile PTX of "
            f"{_version(toolkit)}: the kernels were compiled for {', '.join(archs)}, this GPU is {this}; "
            f"update the driver, or reinstall lska_ops with LSKA_OPS_CUDA_ARCHS={OTHERS_CODE.get(this, this)}"
        )
    return None


def _runs_on(capability, archs, ptx):
    """Whether a GPU has machine code among archs, or else can be compiled for from the PTX of one."""
    return any(_has_code(arch, capability) for arch in archs) or _can_compile(ptx, capability)


def _has_code(arch, capability):
    """Machine code serves later minor versions of its major one, a family's (100f) too; an architecture's own
    (90a) does not."""
    own, capability = _numbers(arch), tuple(capability)
    if own == capability:
        return True
    if arch.endswith("a") or own in TEGRA or capability in TEGRA:
        return False
    return own[0] == capability[0] and own[1] <= capability[1]


def _can_compile(ptx, capability):
    """PTX serves its own GPUs and all newer ones; with an a or f only those that its machine code serves."""
    if ptx is None or not ptx.isdigit():
        return ptx is not None and _has_code(ptx, capability)
    return _numbers(ptx) <= tuple(capability)


def _numbers(arch):
    return divmod(int(arch.rstrip("af")), 10)


def _release(version):
    return tuple(int(n) for n in version.split(".")[:2])


def _dotted(release):
    return "{}.{}".format(*release)


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


# What torch.compile and fake tensors have to know of an op; torch 2.3 has another name for it.
register_fake = getattr(torch.library, "register_fake", None) or torch.library.impl_abstract

problem = load()
