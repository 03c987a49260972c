"""Compiles the CUDA kernels for the host, on demand: what tests/test_host_cuda.py loads as torch.ops.lska_ops_host.

python tests/host_cuda/build.py build/host_cuda_asan --flags "-g1 -fsanitize=address"
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = "host_cuda.so"
FLAGS = "-O2 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wno-unknown-pragmas"
SHARED = "-shared"
# Float16 is converted by an instruction where there is one; by a function, float16 takes three times as long.
CPU = Path("/proc/cpuinfo")
HALVES = "-mf16c" if CPU.is_file() and "f16c" in CPU.read_text(encoding="utf-8").split() else ""
sys.path.insert(0, str(ROOT))

from build_backend.compile import torch_flags, torch_libraries  # noqa: E402
from build_backend.facts import collect  # noqa: E402


def sources(root):
    return sorted(
        f for folder in ("csrc", "tests/host_cuda") for f in (root / folder).rglob("*") if f.is_file()
    )


def _compiler(flags: str, root: Path) -> list[str]:
    facts = collect()
    if facts.compiler is None or facts.torch is None:
        raise SystemExit(facts.compiler_problem or "torch's headers were not found; install torch>=2.3")
    command = [*shlex.split(facts.compiler), *FLAGS.split(), *HALVES.split(), *flags.split(), f"-I{root}"]
    return [*command, f"-I{root / 'tests' / 'host_cuda'}", *torch_flags(facts)]


def _libraries() -> list[str]:
    return [*torch_libraries(collect()), "-lc10"]


@contextlib.contextmanager
def alone(folder: Path):
    """In a folder that one process at a time makes something in; the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path, flags: str = "", root: Path = ROOT) -> Path:
    """The library, compiled from the sources under `root` unless `folder` already has just that.

    Two sources at a time; their objects stay in `folder`.
    """
    files = sorted((root / "tests" / "host_cuda").glob("*.cpp"))
    command = [*_compiler(flags, root), *SHARED.split(), *map(str, files), *_libraries()]
    digest = hashlib.sha256(" ".join(command).encode())
    for file in sources(root):
        if file.suffix in (".h", ".cuh", ".cpp"):
            digest.update(file.read_bytes())
    library, stamp = folder / LIBRARY, folder / "host_cuda.hash"
    objects = [folder / f"{file.stem}.o" for file in files]
    with alone(folder):
        there = all(file.is_file() for file in (library, stamp, *objects))
        if not (there and stamp.read_text(encoding="utf-8") == digest.hexdigest()):
            stamp.unlink(missing_ok=True)
            with ThreadPoolExecutor(2) as pool:
                compiled = pool.map(lambda o: compile_object(f"{o.stem}.cpp", o, flags, root), objects)
                fresh = link(compiled, folder / f"new_{LIBRARY}", flags)
            os.replace(fresh, library)  # a process that has loaded the old one keeps it
            stamp.write_text(digest.hexdigest(), encoding="utf-8")
    return library


def compile_object(name: str, out: Path, flags: str = "", root: Path = ROOT) -> Path:
    """One source's part of the library, of the sources under `root`."""
    source = root / "tests" / "host_cuda" / name
    subprocess.run([*_compiler(flags, root), "-c", str(source), "-o", str(out)], check=True)
    return out


def link(objects, library: Path, flags: str = "") -> Path:
    compiler = shlex.split(collect().compiler)
    command = [*compiler, *SHARED.split(), *flags.split(), *map(str, objects), *_libraries()]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compiles the CUDA kernels for the host.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flags", default="")
    options = parser.parse_args()
    print(build(options.folder.resolve(), options.flags))
