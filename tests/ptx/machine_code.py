"""PTX of the real sources and what ptxas makes of it for each architecture, kept in build/profile.

8.6, 8.7 and 8.9 get the PTX of 8.0: nvcc writes the same for them, as the sources ask for nothing between.
"""

import shlex
import subprocess
from collections import ChainMap
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

from . import sass
from .build import NVCC_FLAGS, ROOT, TARGET, alone, collect
from .parse import Module

PTX_OF = {75: 75, 80: 80, 86: 80, 87: 80, 89: 80, 90: 90}
PEERS = "peers"  # beside the folders of csrc/


class Unit:
    """One .cu file for one architecture."""

    def __init__(self, source, arch, root=ROOT):
        self.ptx = _ptx(source, PTX_OF[arch], root)
        self.text, self.log = (self.ptx.with_suffix(f".sm_{arch}.{what}") for what in ("sass", "log"))
        with alone(self.ptx.parent / str(arch)):
            if not self.text.is_file():
                cubin = self.ptx.with_suffix(f".sm_{arch}.cubin")
                self.log.write_text(sass.assemble(self.ptx, arch, cubin))
                _whole(self.text, sass.disassemble(cubin))
                cubin.unlink()

    @property
    def module(self):
        return _module(self.ptx)

    @cached_property
    def blocks(self):
        return sass.Code(self.text.read_text())

    @cached_property
    def resources(self):
        return sass.resources(self.log.read_text())


class MachineCode:
    """An op's kernels for one architecture: PTX, machine code, and what ptxas said, by their symbols."""

    def __init__(self, op, arch, root=ROOT):
        self.units = [Unit(source, arch, root) for source in sources(op, root)]
        self.module = ChainMap(*(unit.module for unit in self.units))
        self._of = {name: unit for unit in reversed(self.units) for name in unit.module}

    def blocks(self, kernel):
        return self._of[kernel].blocks[kernel]

    def resources(self, kernel):
        return self._of[kernel].resources[kernel]


@cache
def machine_code(op, arch, root=ROOT):
    return MachineCode(op, arch, root)


def sources(op, root=ROOT):
    return (
        [Path(__file__).with_name("peers.cu")]
        if op == PEERS
        else sorted((root / "csrc" / op).glob("cuda*.cu"))
    )


def prepare(ops, archs, jobs, root=ROOT):
    """Compiles what is missing, some at a time; PTX first, which several architectures share."""
    files = [file for op in ops for file in sources(op, root)]
    with ThreadPoolExecutor(jobs) as pool:
        for make, some in ((_ptx, sorted({PTX_OF[a] for a in archs})), (Unit, archs)):
            list(pool.map(lambda which, make=make: make(*which, root), [(f, a) for f in files for a in some]))


def _ptx(source, arch, root):
    """The file with a source's PTX for compute_<arch>."""
    facts = collect()
    if facts.nvcc is None:
        raise sass.Missing("profile: nvcc was not found; install the CUDA toolkit")
    flags = [*shlex.split(NVCC_FLAGS), f"-arch=compute_{arch}", "-lineinfo", "-ptx", TARGET]
    flags += ["-ccbin", shlex.split(facts.compiler)[-1], "-isystem", f"{facts.torch}/include"]
    digest = sha256(f"{facts.nvcc_version} {flags}".encode() + source.read_bytes())
    for folder in (source.parent, root / "csrc" / "common") if source.parent.parent.name == "csrc" else ():
        for file in sorted(folder.glob("*.h")) + sorted(folder.glob("*.cuh")):
            digest.update(file.name.encode() + file.read_bytes())
    op = PEERS if source.stem == PEERS else source.parent.name
    folder = ROOT / "build" / "profile" / f"{op}_{source.stem}"
    made = folder / f"{digest.hexdigest()[:16]}_{arch}.ptx"
    with alone(folder / str(arch)):
        if not made.is_file():
            fresh = made.with_suffix(".new")
            done = subprocess.run(
                [facts.nvcc, *flags, str(source), "-o", str(fresh)], cwd=root, capture_output=True, text=True
            )
            if done.returncode:
                raise sass.Missing(f"profile: nvcc does not compile {source}\n{done.stderr[-2000:]}")
            fresh.rename(made)
    return made


@cache
def _module(file):
    return Module(file.read_text())


def _whole(file, text):
    """Writes it at once, as another process may look for it, too."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.rename(file)
