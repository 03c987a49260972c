"""What ptxas makes of the kernels' PTX for each architecture, kept beside it in build/ptx.

8.6, 8.7 and 8.9 get the PTX of 8.0: nvcc writes the same for them, as the sources ask for nothing between.
"""

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

from . import sass
from .build import KEPT, ROOT, collect, ptx
from .parse import Module

PTX_OF = {75: 75, 80: 80, 86: 80, 87: 80, 89: 80, 90: 90}
PEERS = "peers"


class MachineCode:
    """One op's kernels for one architecture: PTX parsed, machine code read, what ptxas said."""

    def __init__(self, op, arch, root=ROOT):
        self.file = source(op, arch, root)
        text, log = (self.file.with_suffix(f".sm_{arch}.{what}") for what in ("sass", "log"))
        if not text.is_file():
            cubin = self.file.with_suffix(f".sm_{arch}.{os.getpid()}.cubin")
            log.write_text(sass.assemble(self.file, arch, cubin))
            _whole(text, sass.disassemble(cubin))
            cubin.unlink()
        self._text, self._log = text, log

    @cached_property
    def module(self):
        return _module(self.file)

    @cached_property
    def blocks(self):
        return sass.Code(self._text.read_text())

    @cached_property
    def resources(self):
        return sass.resources(self._log.read_text())


@cache
def machine_code(op, arch, root=ROOT):
    return MachineCode(op, arch, root)


@cache
def _module(file):
    return Module(file.read_text())


def prepare(ops, archs, jobs, root=ROOT):
    """Compiles what is missing, some at a time; PTX first, which several architectures share."""
    with ThreadPoolExecutor(jobs) as pool:
        for make, some in ((source, sorted({PTX_OF[a] for a in archs})), (MachineCode, archs)):
            list(pool.map(lambda which, make=make: make(*which, root), [(op, a) for a in some for op in ops]))


def source(op, arch, root=ROOT):
    """The PTX that this architecture's machine code is made of."""
    if op != PEERS:
        return ptx(op, PTX_OF[arch], root)
    given = Path(__file__).with_name("peers.cu")
    file = KEPT / f"{PEERS}_{PTX_OF[arch]}_{sha256(given.read_bytes()).hexdigest()[:16]}.ptx"
    if not file.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        made = file.with_suffix(f".{os.getpid()}.tmp")
        facts = collect()
        command = [facts.nvcc, "-O3", "-std=c++20", f"-arch=compute_{PTX_OF[arch]}", "-lineinfo", "-ptx"]
        command += ["-ccbin", shlex.split(facts.compiler)[-1], str(given), "-o", str(made)]
        subprocess.run(command, check=True)
        made.rename(file)
    return file


def _whole(file, text):
    """Writes it at once, as another process may look for it, too."""
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text)
    part.rename(file)
