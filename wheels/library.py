"""Compiles csrc/ for a target as `pip install` does, and links it for older systems than this one.

The objects for Linux are those of a source build: same compiler, same flags. What would tie them to this
system is decided when they are linked: zig brings the symbols of glibc 2.28 and links with these, whatever is
here. For Windows, where nothing is compiled from source, zig's clang compiles with the same flags.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from build_backend.compile import (
    FLAGS,
    _build_info_source,
    _cudart_folders,
    _write,
    describe,
    ninja_file,
    torch_flags,
)
from build_backend.decide import Plan, decide
from build_backend.facts import ROOT, Facts, collect, torch_facts

from .targets import Target

HERE = Path(__file__).resolve().parent
PYTHON = [sys.executable]
ZIG = [*PYTHON, "-m", "ziglang"]


def run(*command, **options) -> str:
    """What a command prints; where it fails, SystemExit with the end of that."""
    said = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **options,
    )
    if said.returncode:
        raise SystemExit(f"wheels: {Path(command[0]).name} failed:\n{said.stdout[-3000:]}")
    return said.stdout


def plan_of(target: Target, torch: Path, cuda: bool) -> tuple[Plan, Facts]:
    """What `pip install` would decide on a machine of the target where nothing is missing.

    _plan is left out, for only tests import it; without it a wheel serves every Python.
    """
    facts = replace(
        collect(),
        mode="require",
        machine=target.machine,
        **torch_facts(torch),
        pybind11="left out",
        python_headers="left out",
    )
    if target.compiler != "c++":
        compiler = shlex.join(compiler_of(target))
        facts = replace(facts, compiler=compiler, compiler_problem=None, compiler_version=version(target))
    facts = replace(facts, cuda_sources=facts.cuda_sources and target.cuda and cuda)
    plan = decide(facts)
    if plan.error:
        raise SystemExit(plan.error.replace("lska_ops:", "wheels:"))
    return replace(plan, parts=tuple(p for p in plan.parts if p != "plan"), reasons={}), facts


def compiler_of(target: Target) -> list[str]:
    return [*ZIG, "c++", "-target", target.zig] if target.for_windows else [target.compiler]


def version(target: Target) -> str:
    return run(*compiler_of(target), "--version").partition("\n")[0]


def missing(target: Target) -> str | None:
    """Why this machine cannot compile for the target, and what helps."""
    if target.for_windows or shutil.which(target.compiler):
        return None
    return f"{target.compiler} was not found; apt-get install {target.packages or 'g++'}"


def compile_objects(plan: Plan, facts: Facts, out: Path) -> list[Path]:
    """Compiles what has changed; returns the objects of the library."""
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "build_info.cpp", _build_info_source(describe(plan, facts)))
    ninja = ninja_file(plan, facts, out, "")
    _write(out / "build.ninja", ninja)
    objects = re.findall(r"(?m)^build (\S+\.o): ", ninja)
    command = [facts.ninja, "-f", out / "build.ninja", "-j", str(plan.jobs), *objects]
    run(*command, cwd=ROOT)
    return [ROOT / name for name in objects]


def link(target: Target, plan: Plan, facts: Facts, objects: list[Path], out: Path) -> Path:
    """Links the objects to out/<library>, which exports nothing and suits every system of the target."""
    if target.for_windows:
        return link_for_windows(target, facts, objects, out / target.library)
    old = out / "old_runtime.o"
    run(target.compiler, "-O2", "-std=c++20", "-fPIC", "-c", HERE / "old_runtime.cpp", "-o", old)
    torch = torch_to_link(target, Path(facts.torch), [*objects, old], out / "torch")
    gcc = [
        run(target.compiler, f"-print-file-name={name}").strip()
        for name in ("libstdc++.so.6", "libgcc_s.so.1", "libgcc.a")
    ]
    cuda = []
    if "cuda" in plan.parts:
        cuda = [*_cudart_folders(facts.nvcc), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    library = out / target.library
    hidden = [f"-Wl,--version-script={HERE / 'hidden.map'}", "-Wl,-z,defs"]
    # By -O3 zig compiles its own runtime as it does for a release.
    zig = [*ZIG, "c++", "-target", target.zig, "-O3", "-shared", "-nostdlib++", "-s", "-o", library]
    run(*zig, *objects, old, *cuda, torch, *gcc, *hidden)
    return library


def torch_to_link(target: Target, torch: Path, objects: list[Path], out: Path) -> Path:
    """A libtorch_cpu of the target that has the names, and no code, of what the objects call of this torch.

    torch's own need not be there for another system: a name that this torch lacks still fails to link.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = names_of_torch(torch, objects)
    (out / "torch.c").write_text("".join(f"void {name}(void) {{}}\n" for name in names), encoding="utf-8")
    library = out / "libtorch_cpu.so"
    soname = "-Wl,-soname,libtorch_cpu.so"
    run(*ZIG, "cc", "-target", target.zig, "-shared", soname, "-w", "-o", library, out / "torch.c")
    return library


def names_of_torch(torch: Path, objects: list[Path]) -> list[str]:
    """What the objects call of this torch: C functions. Of C++ it has names that are the runtime's."""
    called = set(run("nm", "-u", "--format=just-symbols", *objects).split())
    has = run(
        "nm", "-D", "--defined-only", "--format=just-symbols", torch / "lib" / "libtorch_cpu.so"
    ).split()
    there = {name.partition("@")[0] for name in has}
    return sorted(name for name in called & there if re.match("(aoti_)?torch_", name))


def throwing(target: Target, facts: Facts, out: Path) -> Path:
    """A library for Windows, of the op in throws.cpp."""
    library = out / "throws.dll"
    compiler = [*compiler_of(target), *FLAGS.split(), *torch_flags(facts)]
    run(*compiler, "-c", HERE / "throws.cpp", "-o", library.with_suffix(".o"), cwd=ROOT)
    return link_for_windows(target, facts, [library.with_suffix(".o")], library)


def link_for_windows(target: Target, facts: Facts, objects: list[Path], library: Path) -> Path:
    """Links the objects to a library that has its C++ runtime inside and exports nothing.

    The names of torch's C functions are the same for all systems, so that those for Linux say what there is.
    """
    exports, torch = library.with_suffix(".def"), library.with_suffix(".lib")
    lines = ["LIBRARY torch_cpu.dll", "EXPORTS", *names_of_torch(Path(facts.torch), objects)]
    exports.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    run(*ZIG, "dlltool", "-m", "i386:x86-64", "-d", exports, "-l", torch)
    run(*compiler_of(target), "-O3", "-shared", "-s", "-o", library, *objects, torch)
    return library
