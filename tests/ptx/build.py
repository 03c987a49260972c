"""PTX of the wheel's own sources: csrc/<op>/cuda*.cu by nvcc, with the flags of the build, kept in build/ptx.

python -m ptx.build lska 80    # from tests/; prints the file
"""

import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [folder for part in (".", "tests/host_cuda") if (folder := str(ROOT / part)) not in sys.path]

from build import alone, build  # noqa: E402, F401  the host-run library's
from build_backend.compile import NVCC_FLAGS, torch_flags  # noqa: E402
from build_backend.facts import collect  # noqa: E402


def problem():
    """Why there is no PTX to be had, in one sentence; None where there is."""
    facts = collect()
    if facts.torch is None:
        return "torch's headers were not found; install torch>=2.3"
    if facts.nvcc is None:
        return "nvcc was not found; install the CUDA toolkit"
    return facts.compiler_problem


def ops(root=ROOT):
    """The folders of csrc/ that have kernels for nvcc."""
    return sorted(file.parent.name for file in root.glob("csrc/*/cuda.cu"))


def ptx(op, arch=80, root=ROOT, files="cuda*.cu"):
    """The files with an op's PTX for compute_<arch>, compiled from the sources under `root` unless they are there."""
    files = sorted((root / "csrc" / op).glob(files))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda file: ptx_of(op, file, arch, root), files))


def ptx_of(op, source, arch, root=ROOT):
    """The file with one source's PTX. What nvcc says is printed, and the error's where it fails."""
    facts = collect()
    command = [
        facts.nvcc,
        *NVCC_FLAGS.replace("-I.", f"-I{root}").split(),
        f"-arch=compute_{arch}",
        "-lineinfo",
    ]
    command += [
        "-ptx",
        "-ccbin",
        shlex.split(facts.compiler)[-1],
        *torch_flags(facts),
    ]
    digest = hashlib.sha256(f"{facts.nvcc_version} {' '.join(command).replace(str(root), '')}".encode())
    digest.update(source.read_bytes())
    for folder in ("common", op) if source.is_relative_to(root / "csrc") else ():
        for file in sorted((root / "csrc" / folder).iterdir()):
            if file.suffix in (".h", ".cuh") and not file.name.startswith("cpu_"):
                digest.update(file.name.encode() + file.read_bytes())
    folder = root / "build" / "ptx" / f"{op}_{source.stem}_{arch}"
    made = folder / f"{digest.hexdigest()[:16]}.ptx"
    with alone(folder):
        if not made.is_file():
            fresh = folder / "new.ptx"
            done = subprocess.run(
                [*command, str(source), "-o", str(fresh)], cwd=root, stderr=subprocess.PIPE, text=True
            )
            sys.stderr.write(done.stderr)
            done.check_returncode()
            for older in folder.glob("*.ptx"):
                if older != fresh:
                    older.unlink()
            os.replace(fresh, made)
    return made


if __name__ == "__main__":
    print(*ptx(*sys.argv[1:]), sep="\n")
