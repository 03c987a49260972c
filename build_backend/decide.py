"""The build's one decision: which parts of csrc/ to compile, for which GPUs, with how many jobs.

Pure: :func:`decide` maps facts to a plan and looks at nothing else. The parts are

    cpu    lska_ops/_C.so: the registered ops and their CPU kernels
    cuda   the CUDA kernels, linked into the same library
    plan   lska_ops/_plan: launch plans and build_info(), a Python extension without torch

Every part left out has a reason, "what is so; what would help". The reasons are stored with the package.
"""

import re
from dataclasses import dataclass, field, replace

PARTS = ("cpu", "cuda", "plan")
OLDEST_TORCH = (2, 3)
FIRST_STABLE = (2, 11)  # the first whose headers have all of the stable ABI that csrc/ uses; before it, ATen
ISAS = {  # compiled into one library, chosen at run time
    "avx512": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c",
    "avx2": "-mavx2 -mfma -mf16c",
    "baseline": "",
}
# 8.7 (Orin) and 11.0 (Thor; CUDA 12 calls it 10.1) run no machine code but their own; the others also that of
# lower minor versions. Not sm_103: nvcc 13.x was seen to give wrong results for it, and it runs sm_100's.
FIRST_NVCC = {
    "75": (10, 0), "80": (11, 0), "86": (11, 1), "87": (11, 4), "89": (11, 8), "90": (11, 8),
    "100": (12, 8), "110": (13, 0), "120": (12, 8),
}  # fmt: skip
GB_PER_JOB = 2


@dataclass(frozen=True)
class Facts:
    """What is so on this machine; `facts.collect()` finds it out."""

    mode: str = "auto"  # LSKA_OPS_BUILD
    archs: str = ""  # LSKA_OPS_CUDA_ARCHS
    max_jobs: str = ""  # MAX_JOBS
    system: str = "Linux"
    machine: str = "x86_64"
    cores: int = 1
    free_gb: float = 0.0
    compiler: str | None = None  # the command: CXX, or the first of c++, g++, clang++
    compiler_version: str = ""  # the first line of its --version
    compiler_problem: str | None = None  # why it is not usable
    torch: str | None = None  # the torch folder, with include/ and lib/
    torch_version: str = ""
    string_abi: int = 1  # torch's _GLIBCXX_USE_CXX11_ABI
    openmp: str | None = None  # the library in torch's folder that its threads come from
    ninja: str | None = None
    pybind11: str | None = None  # include folder
    python_headers: str | None = None  # include folder
    nvcc: str | None = None
    nvcc_version: tuple[int, int] = (0, 0)
    cuda_sources: bool = False


@dataclass(frozen=True)
class Plan:
    parts: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)  # part left out -> why
    isas: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    jobs: int = 1
    error: str | None = None  # one line; the build stops with it

    @property
    def ptx(self) -> str | None:
        """The oldest architecture, whose PTX a driver compiles for every GPU that is not older.

        90a's and 100f's go no further than their machine code: no reason to store them.
        """
        return min((arch for arch in self.archs if arch.isdigit()), key=int, default=None)


def decide(facts: Facts) -> Plan:
    if facts.mode not in ("auto", "require", "off"):
        return _stop(f"LSKA_OPS_BUILD is {facts.mode!r}; expected auto, require or off")
    if facts.max_jobs and not re.fullmatch(r"[1-9]\d*", facts.max_jobs):
        return _stop(f"MAX_JOBS is {facts.max_jobs!r}; expected a whole number from 1")
    cuda_wanted = facts.cuda_sources and facts.archs.strip() != "none"
    wanted = [a.replace(".", "") for a in re.split(r"[;,\s]+", facts.archs) if a and a != "none"]
    wanted = list(dict.fromkeys(wanted))
    if wrong := [a for a in wanted if not re.fullmatch(r"\d{2,3}[af]?", a)]:
        return _stop(
            f"LSKA_OPS_CUDA_ARCHS names {wrong[0]!r}; expected compute capabilities like 80;90;120, or none"
        )

    reasons = {}
    if why := _why_not_cpu(facts):
        reasons = dict.fromkeys(PARTS, why)
    if why := _why_not_plan(facts):
        reasons.setdefault("plan", why)
    if cuda_wanted and not facts.nvcc:
        reasons.setdefault("cuda", "nvcc was not found; install the CUDA toolkit and reinstall lska_ops")
    elif cuda_wanted and (why := _why_not_archs(wanted, facts.nvcc_version)):
        reasons.setdefault("cuda", why)
    if facts.mode == "require" and reasons:
        return _stop(f"LSKA_OPS_BUILD=require, but {next(reasons[p] for p in PARTS if p in reasons)}")
    if not facts.cuda_sources:
        reasons["cuda"] = "this version of lska_ops has no CUDA sources; use the other backends"
    elif not cuda_wanted:
        why = "LSKA_OPS_CUDA_ARCHS=none was set when lska_ops was installed; reinstall without it"
        reasons.setdefault("cuda", why)

    parts = tuple(p for p in PARTS if p not in reasons)
    return Plan(
        parts=parts,
        reasons=reasons,
        isas=isas_of(facts.machine) if "cpu" in parts else (),
        archs=tuple(wanted or _known_archs(facts.nvcc_version)) if "cuda" in parts else (),
        jobs=int(facts.max_jobs or max(1, min(facts.cores, int(facts.free_gb / GB_PER_JOB)))),
    )


def without(plan: Plan, part: str, why: str, mode: str) -> Plan:
    """The plan after `part` failed to compile. Without the CPU part nothing else has a use."""
    if mode == "require":
        return _stop(f"LSKA_OPS_BUILD=require, but {why}")
    lost = plan.parts if part == "cpu" else (part,)
    return replace(
        plan,
        parts=tuple(p for p in plan.parts if p not in lost),
        reasons={**plan.reasons, **dict.fromkeys(lost, why)},
        isas=() if "cpu" in lost else plan.isas,
        archs=() if "cuda" in lost else plan.archs,
    )


def with_requirements(facts: Facts) -> tuple[Plan, list[str]]:
    """The plan if pip brings what it can into its isolated environment, and what it has to bring.

    An installed torch is never replaced, however old; and nothing is brought where nothing would be compiled.
    """
    brought = replace(facts, ninja="brought", pybind11="brought")
    if facts.torch is None:
        brought = replace(brought, torch="brought", torch_version=_dotted(FIRST_STABLE))
    plan = decide(brought)
    torch = [f"torch>={_dotted(FIRST_STABLE)}"] if facts.torch is None else []
    return plan, ["ninja", "pybind11>=2.12", *torch] if plan.parts else []


def _stop(message: str) -> Plan:
    return Plan(error=f"lska_ops: {message}")


def _why_not_cpu(facts: Facts) -> str | None:
    if facts.mode == "off":
        return "LSKA_OPS_BUILD=off was set when lska_ops was installed; reinstall without it"
    if facts.system != "Linux":
        return _why_not_system(facts.system)
    if facts.compiler_problem:
        return facts.compiler_problem
    if facts.torch is None:
        return (
            f"torch's headers were not found; install torch>={_dotted(OLDEST_TORCH)}, then reinstall lska_ops"
        )
    if release(facts.torch_version) < OLDEST_TORCH:
        oldest = _dotted(OLDEST_TORCH)
        return f"torch {facts.torch_version} is older than {oldest}; upgrade torch, then reinstall lska_ops"
    if facts.ninja is None:
        return "ninja was not found; pip install ninja, or leave pip's build isolation on"
    return None


def _why_not_system(system: str) -> str:
    name = {"Darwin": "macOS"}.get(system, system)
    gpu = ", on NVIDIA GPUs Triton where triton-windows is installed" if system == "Windows" else ""
    return f"lska_ops compiles on Linux only and this is {name}; the reference (plain PyTorch) runs here{gpu}"


def _why_not_plan(facts: Facts) -> str | None:
    if facts.pybind11 is None:
        return "pybind11 was not found; pip install pybind11, or leave pip's build isolation on"
    if facts.python_headers is None:
        return "Python.h was not found; install Python's headers (python3-dev), then reinstall lska_ops"
    return None


def _why_not_archs(wanted: list[str], nvcc: tuple[int, int]) -> str | None:
    for arch in wanted:
        first = FIRST_NVCC.get(arch.rstrip("af"), nvcc)
        if nvcc < first:
            return (
                f"LSKA_OPS_CUDA_ARCHS names {arch} and this nvcc, {nvcc[0]}.{nvcc[1]}, does not know it; "
                f"reinstall lska_ops with nvcc {first[0]}.{first[1]} or newer, or without LSKA_OPS_CUDA_ARCHS"
            )
    return None


def release(version: str) -> tuple[int, int]:
    """(2, 14) from "2.14.1+cu130"."""
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()
    return int(major), int(minor)


def abi(torch_version: str) -> str:
    """What the library is built on: torch's stable ABI, or ATen, whose library serves that release alone."""
    return "stable" if release(torch_version) >= FIRST_STABLE else "aten"


def _dotted(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)


def isas_of(machine: str) -> tuple[str, ...]:
    """What is compiled for a machine, the most demanding first."""
    return tuple(ISAS) if machine in ("x86_64", "AMD64") else ("baseline",)


def _known_archs(nvcc: tuple[int, int]) -> list[str]:
    return [arch for arch, first in FIRST_NVCC.items() if nvcc >= first]
