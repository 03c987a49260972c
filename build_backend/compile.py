"""Compiles the parts of a plan with ninja: writes build.ninja, runs it, and turns a failure into a reason."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from build_backend.decide import ISAS, Facts, Plan, abi, without
from build_backend.facts import ROOT

LIBRARY = "_C.so"  # no Python symbols: torch loads it
PLAN = "_plan" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")  # a Python extension
FLAGS = "-O3 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -I."
NVCC_FLAGS = "-O3 -std=c++20 -Xcompiler -fPIC,-fvisibility=hidden -I."
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the library may use what torch 2.10 has
OF_ONE = ("cuda_bands.cu",)  # kernels that are empty but on one architecture
# With -z defs a symbol that torch lacks fails here, not at the user's first import. The library has to name
# torch_cpu: torch's symbols are not visible to libraries that do not.
LINK_FLAGS = "-shared -Wl,-z,defs"

RULES = """\
rule cxx
  command = $cxx $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx $in -o $out $flags
"""


def compile_parts(plan: Plan, facts: Facts, out: Path, extra: str = "") -> Plan:
    """Leaves LIBRARY and PLAN in `out`, as far as they compile; returns the plan without what did not."""
    out.mkdir(parents=True, exist_ok=True)
    while plan.parts:
        _write(out / "build_info.cpp", _build_info_source(describe(plan, facts)))
        _write(out / "build.ninja", ninja_file(plan, facts, out, extra))
        if not _failed(plan, facts, out, "all"):
            break
        failed = ((p, log) for p in plan.parts if (log := _failed(plan, facts, out, p)))
        part, log = next(failed, (None, None))
        if part is None:  # one by one they compile: a compiler had been killed, say for want of memory
            break
        plan = without(plan, part, _reason(part, log), facts.mode)
    return plan


def describe(plan: Plan, facts: Facts) -> dict:
    """What is compiled and from what: the same in the library, in _plan and in _build_info.json."""
    return {
        "parts": list(plan.parts),
        "compiler": facts.compiler_version,
        "flags": FLAGS,
        "isas": list(plan.isas),
        "torch_headers": facts.torch_version,
        "abi": abi(facts.torch_version) if plan.parts else None,
        "nvcc": "{}.{}".format(*facts.nvcc_version) if "cuda" in plan.parts else None,
        "cuda_archs": list(plan.archs),
        "cuda_ptx": plan.ptx,
        "source_hash": source_hash(),
    }


def source_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(f for f in ROOT.glob("csrc/**/*") if f.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(ROOT).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def ninja_file(plan: Plan, facts: Facts, out: Path, extra: str) -> str:
    """build.ninja for the parts of the plan. Sources are found by name: a new kernel file needs no edit."""
    commands = f"cxx = {_dollar(facts.compiler)}\nnvcc = {_dollar(facts.nvcc or 'nvcc')}\n"
    file = _NinjaFile(out, extra, commands)
    info = file.object(out / "build_info.cpp", FLAGS)
    torch, link = torch_flags(facts), torch_libraries(facts)
    targets = {}
    if "cpu" in plan.parts:
        threads = _threads(facts)
        objects = [file.object(s, FLAGS, *torch, *threads) for s in _sources("module.cpp", "*/cpu.cpp")]
        for isa in plan.isas:
            for source in _sources("*/cpu_kernels*.cpp"):
                flags = [*ISAS[isa].split(), f"-DLSKA_OPS_ISA={isa}"]
                objects.append(file.object(source, FLAGS, *flags, name=isa))
        targets["cpu"] = objects
        if "cuda" in plan.parts:
            jobs = str(max(1, min(plan.jobs, len(plan.archs))))  # one for each architecture
            flags = ["-t", jobs, "-ccbin", shlex.split(facts.compiler)[-1], *torch]
            if facts.nvcc_version >= (13, 0):  # unrolled code compresses to a sixth
                flags.append("--compress-mode=size")
            kernels = _sources("*/cuda*.cu")
            targets["cuda"] = [
                file.object(s, NVCC_FLAGS, *_gencode(plan, s.name in OF_ONE), *flags, rule="nvcc")
                for s in kernels
            ]
            link += [*_cudart_folders(facts.nvcc), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        library = file.build("link", out / LIBRARY, sum(targets.values(), [info]), LINK_FLAGS, *link)
        targets["cuda" if "cuda" in plan.parts else "cpu"].append(library)
    if "plan" in plan.parts:
        headers = ["-isystem", facts.pybind11, "-isystem", facts.python_headers]
        module = file.object(ROOT / "csrc" / "plan_module.cpp", FLAGS, *headers)
        targets["plan"] = [file.build("link", out / PLAN, [info, module], "-shared")]
    for part, built in targets.items():
        file.alias(part, built)
    file.alias("all", list(targets))
    return file.text


def torch_flags(facts: Facts) -> list[str]:
    """Of the compilers, for what includes csrc/common/torch_api.h; nvcc takes them as well."""
    headers = ["-isystem", f"{facts.torch}/include"]
    if abi(facts.torch_version) == "stable":
        return [TARGET, *headers]
    return ["-DLSKA_OPS_ATEN", f"-D_GLIBCXX_USE_CXX11_ABI={facts.string_abi}", *headers]


def torch_libraries(facts: Facts) -> list[str]:
    """Of the linker. The OpenMP library is torch's own: two of them in a process would each have threads."""
    found = [f"-L{facts.torch}/lib", "-ltorch_cpu"]
    return found if abi(facts.torch_version) == "stable" else [*found, "-lc10", facts.openmp or "-lgomp"]


def _threads(facts: Facts) -> list[str]:
    """ATen's parallel_for is a template, an OpenMP loop in our own code; the stable ABI calls torch's."""
    return [] if abi(facts.torch_version) == "stable" else ["-fopenmp"]


class _NinjaFile:
    """Collects build.ninja. ninja runs in ROOT, so that paths in it, and in compiler messages, are short."""

    def __init__(self, out: Path, extra: str, variables: str):
        self.out, self.extra = out, extra
        self.text = f"builddir = {_path(out)}\n{variables}{RULES}"

    def object(self, source: Path, flags: str, *more: str, name: str = "", rule: str = "cxx") -> str:
        folder = source.parent.name if source.parent.parent == ROOT / "csrc" else ""
        output = ".".join(filter(None, [folder, source.stem, name, "o"]))
        return self.build(rule, self.out / output, [_path(source)], flags, *more)

    def build(self, rule: str, output: Path, inputs: list[str], flags: str, *more: str) -> str:
        words = _dollar(" ".join([flags, *map(shlex.quote, more), self.extra]))
        self.text += f"build {_path(output)}: {rule} {' '.join(inputs)}\n  flags = {words}\n"
        return _path(output)

    def alias(self, name: str, targets: list[str]) -> None:
        self.text += f"build {name}: phony {' '.join(targets)}\n"


def _sources(*patterns: str) -> list[Path]:
    return [file for pattern in patterns for file in sorted((ROOT / "csrc").glob(pattern))]


def _gencode(plan: Plan, of_one: bool = False) -> list[str]:
    """Machine code for each, and PTX of the oldest for what has none.

    From 8.0 on all come from the PTX of the oldest one: no source asks for more, and to make PTX takes nvcc
    three times as long as to make machine code of it. Only kernels that are empty but on one do ask.
    """
    modern = [a for a in plan.archs if a.isdigit() and int(a) >= 80 and not of_one]
    oldest = min(modern, key=int, default=None)
    codes = [f"arch=compute_{oldest if a in modern else a},code=sm_{a}" for a in plan.archs]
    if plan.ptx:
        codes.append(f"arch=compute_{plan.ptx},code=compute_{plan.ptx}")
    return [word for code in codes for word in ("-gencode", code)]


def _cudart_folders(nvcc: str) -> list[str]:
    """-L flags of nvcc's own libraries, asked of nvcc: the nvcc on PATH may be a wrapper far from them."""
    dry = [nvcc, "-dryrun", "-x", "cu", "/dev/null", "-o", "/dev/null"]
    said = subprocess.run(dry, capture_output=True, text=True, errors="replace").stderr
    return re.findall(r"-L[^\s\"]+", "".join(line for line in said.splitlines() if "LIBRARIES=" in line))


def _failed(plan: Plan, facts: Facts, out: Path, target: str) -> str | None:
    """The log, if `target` could not be made."""
    ninja = [facts.ninja, "-f", str(out / "build.ninja"), "-j", str(plan.jobs), target]
    process = subprocess.Popen(
        ninja, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    log = ""
    for line in process.stdout:
        sys.stderr.write(line)
        log += line
    return (log or "ninja said nothing") if process.wait() else None


def _reason(part: str, log: str) -> str:
    said = re.search(r"(?m)^.*\b[Ee]rror\b.*$", log) or re.search(r"(?m)^.*\S.*\Z", log.rstrip())
    return (
        f"the {part} part did not compile ({said[0].strip()[:200]}); "
        "see the whole message with `pip install -v`, then reinstall lska_ops"
    )


def _build_info_source(info: dict) -> str:
    return (
        '#include "csrc/common/build_info.h"\n\nnamespace lska_ops {\n'
        f'extern const char* const kBuildInfo = R"json({json.dumps(info)})json";\n}}\n'
    )


def _write(file: Path, text: str) -> None:
    written = os.fsencode(text)  # ninja takes the paths in it as bytes, UTF-8 on Windows
    if not file.is_file() or file.read_bytes() != written:  # an untouched file is not compiled again
        file.write_bytes(written)


def _path(path: Path) -> str:
    """As ninja wants it: short where it can be, its special characters escaped."""
    text = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    return re.sub(r"([$ :])", r"$\1", text)


def _dollar(text: str) -> str:
    return text.replace("$", "$$")
