"""Finds out what the build depends on. The only place that reads the build's environment variables.

Nothing is imported from torch and nothing is asked of a GPU: what is compiled depends on what is installed,
not on the state the machine is in.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

from build_backend.decide import ISAS, Facts, isas_of

ROOT = Path(__file__).resolve().parent.parent
CXX20 = "#include <concepts>\ntemplate <std::integral T> T f(T t) { return t; }\nint n = f(0);\n"
# What the CPU part uses beyond C++20, from the headers that use it.
BUILTINS = """\
#include "csrc/common/isa.h"
#include "csrc/common/shifted.h"
#include "csrc/common/simd_exp.h"
#include "csrc/common/transpose.h"
using namespace lska_ops::LSKA_OPS_ISA;
void f(Vec<float> (&m)[kLanes<float>]) { transpose<float>(m); }
void g(Half* p) { store(p, exp_of_nonpositive<float>(shifted<float, 1>(load(p), load(p, 1)))); }
lska_ops::Isa h() { return lska_ops::best_isa(); }
"""
COMPILERS = "g++ 11, clang++ 14 or newer"  # `make compilers` tries the oldest of both


@cache
def collect() -> Facts:
    compiler, compiler_version, compiler_problem = _compiler(os.environ.get("CXX", "").strip())
    torch = _torch()
    nvcc, nvcc_version = _nvcc()
    return Facts(
        mode=os.environ.get("LSKA_OPS_BUILD", "auto"),
        archs=os.environ.get("LSKA_OPS_CUDA_ARCHS", ""),
        max_jobs=os.environ.get("MAX_JOBS", ""),
        system=platform.system(),
        machine=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        free_gb=_free_bytes() / 1e9,
        compiler=compiler,
        compiler_version=compiler_version,
        compiler_problem=compiler_problem,
        **(torch_facts(torch) if torch else {}),
        ninja=_script("ninja"),
        pybind11=_pybind11(),
        python_headers=_python_headers(),
        nvcc=nvcc,
        nvcc_version=nvcc_version,
        cuda_sources=any(ROOT.glob("csrc/*/cuda.cu")),
    )


def _compiler(named: str) -> tuple[str | None, str, str | None]:
    """The command, its version, and why it cannot be used."""
    tried = [named] if named else ["c++", "g++", "clang++"]
    found = next((c for c in tried if shutil.which(shlex.split(c)[0])), None)
    name, cure = f"CXX={named}" if named else found, f"set CXX to {COMPILERS}, then reinstall lska_ops"
    if found is None and named:
        return None, "", f"{name} was not found; {cure}"
    if found is None:
        return None, "", f"no C++ compiler was found; install {COMPILERS}, then reinstall lska_ops"
    command = shlex.split(found)
    isa = isas_of(platform.machine())[0]
    if not _compiles(command, CXX20):
        return found, "", f"{name} does not compile C++20; {cure}"
    if not _compiles([*command, *ISAS[isa].split(), f"-I{ROOT}", f"-DLSKA_OPS_ISA={isa}"], BUILTINS):
        return found, "", f"{name} does not compile the builtins that the {isa} kernels use; {cure}"
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace").stdout
    return found, version.partition("\n")[0], None


def _compiles(command: list[str], program: str) -> bool:
    """To an object, which asks the assembler too."""
    with tempfile.TemporaryDirectory() as folder:
        probe = [*command, "-std=c++20", "-x", "c++", "-c", "-", "-o", f"{folder}/probe.o"]
        return not subprocess.run(
            probe, input=program, capture_output=True, text=True, errors="replace"
        ).returncode


def _torch() -> Path | None:
    """torch's folder: where Python finds it, else where the package will be installed.

    pip's build isolation takes site-packages off sys.path, but sysconfig still names it: so the torch that is
    already there serves, and no second one is downloaded.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent.parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(name)) for name in ("platlib", "purelib")]
    if sys.prefix == sys.base_prefix:
        folders.append(Path(site.getusersitepackages()))
    elif re.search(r"include-system-site-packages\s*=\s*true", _read(Path(sys.prefix) / "pyvenv.cfg")):
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        folders += [Path(sysconfig.get_path(name, vars=base)) for name in ("platlib", "purelib")]
    return next((f / "torch" for f in folders if (f / "torch" / "version.py").is_file()), None)


def torch_facts(torch: Path) -> dict:
    """What the build has to know of the torch in a folder, as fields of Facts."""
    version = re.search(r"__version__ = ['\"](.+?)['\"]", (torch / "version.py").read_text(encoding="utf-8"))[
        1
    ]
    config = _read(torch / "share" / "cmake" / "Torch" / "TorchConfig.cmake")
    string_abi = re.search(r"_GLIBCXX_USE_CXX11_ABI=([01])", config)  # 0 in pip's torch up to 2.6
    openmp = sorted((torch / "lib").glob("libgomp*.so*"))  # pip's torch has one of its own, conda's has not
    return {
        "torch": str(torch),
        "torch_version": version,
        "string_abi": int(string_abi[1]) if string_abi else 1,
        "openmp": str(openmp[0]) if openmp else None,
    }


def _nvcc() -> tuple[str | None, tuple[int, int]]:
    tried = ["nvcc", os.environ.get("CUDA_HOME", "") + "/bin/nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, tried)), None)
    said = (
        subprocess.run([nvcc, "--version"], capture_output=True, text=True, errors="replace").stdout
        if nvcc
        else ""
    )
    release = re.search(r"release (\d+)\.(\d+)", said)
    return (nvcc, (int(release[1]), int(release[2]))) if release else (None, (0, 0))


def _script(name: str) -> str | None:
    """On PATH, or beside this Python where its environment is used without being activated."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def _pybind11() -> str | None:
    spec = importlib.util.find_spec("pybind11")
    include = Path(spec.origin).parent / "include" if spec and spec.origin else None
    return str(include) if include and (include / "pybind11" / "pybind11.h").is_file() else None


def _python_headers() -> str | None:
    include = Path(sysconfig.get_path("include"))
    return str(include) if (include / "Python.h").is_file() else None


def _free_bytes() -> int:
    """Memory that may still be taken, the container's limit included."""
    meminfo, limit, used = (
        Path(p) for p in ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
    )
    free = [int(k) * 1024 for k in re.findall(r"MemAvailable:\s*(\d+)", _read(meminfo))]
    if _read(limit).strip().isdigit() and _read(used).strip().isdigit():
        free.append(int(_read(limit)) - int(_read(used)))
    return min(free, default=0)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
