"""PTX of the wheel's own sources: csrc/<op>/cuda.cu by nvcc, with the flags of the build, kept in build/ptx.

python -m ptx.build lska 80    # from tests/; prints the file
"""

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from build_backend.compile import NVCC_FLAGS, TARGET  # noqa: E402
from build_backend.facts import collect  # noqa: E402

KEPT = ROOT / "build" / "ptx"


def problem():
    """Why there is no PTX to be had, in one sentence; None where there is."""
    facts = collect()
    if facts.torch is None:
        return "torch's headers were not found; install torch>=2.11"
    if facts.nvcc is None:
        return "nvcc was not found; install the CUDA toolkit"
    return facts.nvcc_problem if hasattr(facts, "nvcc_problem") else None


def ops(root=ROOT):
    """The folders of csrc/ that have kernels for nvcc."""
    return sorted(file.parent.name for file in root.glob("csrc/*/cuda.cu"))


def ptx(op, arch=80, root=ROOT):
    """The file with an op's PTX for compute_<arch>, compiled unless it is there."""
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
        TARGET,
        "-isystem",
        f"{facts.torch}/include",
    ]
    digest = hashlib.sha256(f"{facts.nvcc_version} {' '.join(command).replace(str(root), '')}".encode())
    for folder in ("common", op):
        for file in sorted((root / "csrc" / folder).iterdir()):
            if file.suffix in (".h", ".cuh", ".cu") and not file.name.startswith("cpu_"):
                digest.update(file.name.encode() + file.read_bytes())
    made = KEPT / f"{op}_{arch}_{digest.hexdigest()[:16]}.ptx"
    if not made.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=KEPT, suffix=".tmp", delete=False) as out:
            pass
        source = root / "csrc" / op / "cuda.cu"
        try:
            subprocess.run([*command, str(source), "-o", out.name], check=True, cwd=root)
            os.replace(out.name, made)  # whole or not at all: another process may look for it, too
        finally:
            Path(out.name).unlink(missing_ok=True)
        for older in KEPT.glob(f"{op}_{arch}_*.ptx"):
            if older != made and root == ROOT:
                older.unlink(missing_ok=True)
    return made


if __name__ == "__main__":
    print(ptx(*sys.argv[1:]))
