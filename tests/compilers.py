"""Compiles the CPU part of csrc/ with the oldest compilers that are promised, and for ARM, for each instruction set.

    python tests/compilers.py

To assembly that nobody reads, for that says what a syntax check does not: an intrinsic of another instruction set.
Whether the code is also right, tests/test_simd.py asks of vectors, and of all the library that CXX compiles.
"""

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from build_backend.compile import FLAGS, TARGET  # noqa: E402
from build_backend.decide import ISAS, isas_of  # noqa: E402
from build_backend.facts import collect  # noqa: E402

PACKAGES = {  # command -> Debian's package of it; its clang is version 14
    "g++-11": "g++-11",
    "clang++": "clang",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
}


def answer(command: str, flag: str) -> str | None:
    """The first line that a compiler says to `flag`; None where it is not installed."""
    try:
        done = subprocess.run([command, flag], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return None
    return done.stdout.partition("\n")[0]


def commands(compiler: str, torch: str) -> list[list[str]]:
    """One for each source, and for each instruction set of the compiler's target where it is a kernel's."""
    start = [compiler, *shlex.split(FLAGS), "-O0", "-S", "-o", os.devnull]
    launchers = sorted(ROOT.glob("csrc/*/cpu.cpp"))
    kernels = sorted(ROOT.glob("csrc/*/cpu_kernels*.cpp"))
    assert launchers and kernels
    made = [[*start, TARGET, "-isystem", f"{torch}/include", str(s)] for s in launchers]
    for isa in isas_of(answer(compiler, "-dumpmachine").partition("-")[0]):
        made += [[*start, *ISAS[isa].split(), f"-DLSKA_OPS_ISA={isa}", str(s)] for s in kernels]
    return made


def failed(command: list[str]) -> bool:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(shlex.join(command), done.stdout[:2000], sep="\n")
    return bool(done.returncode)


def main() -> None:
    if missing := [command for command in PACKAGES if answer(command, "--version") is None]:
        cure = f"apt-get install {' '.join(PACKAGES[command] for command in missing)}"
        raise SystemExit(f"compilers: {', '.join(missing)} not found; {cure}")
    if not (torch := collect().torch):
        raise SystemExit("compilers: torch's headers were not found; make setup")
    for compiler in PACKAGES:
        start, tried = time.monotonic(), commands(compiler, torch)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            wrong = sum(pool.map(failed, tried))
        if wrong:
            raise SystemExit(f"compilers: {compiler} refuses {wrong} of {len(tried)}; see above")
        seconds = time.monotonic() - start
        print(f"{answer(compiler, '--version')}: {len(tried)} compiled in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
