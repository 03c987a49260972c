"""PTX of the real sources, build.py's, and what ptxas makes of its kernels for each architecture, kept in build/profile.

All from 8.0 on get the PTX of 8.0: nvcc writes the same for them, as the sources ask for nothing that came later.
"""

import re
import subprocess
from collections import ChainMap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

from . import sass
from .build import ROOT, alone, collect, ptx_of
from .parse import Module

PTX_OF = {75: 75, 80: 80, 86: 80, 87: 80, 89: 80, 90: 80}
PEERS = "peers"  # beside the folders of csrc/


class MachineCode:
    """An op's kernels for one architecture: PTX, machine code, and what ptxas said, by their symbols.

    ptxas is given a kernel when it is first asked for, alone: of the many that are instantiated few are called.
    """

    def __init__(self, op, arch, root=ROOT):
        self.arch, self._made = arch, {}
        self.files = [_ptx(source, PTX_OF[arch], root) for source in sources(op, root)]
        self.module = ChainMap(*map(_module, self.files))

    def blocks(self, kernel):
        return self._of(kernel)[0]

    def resources(self, kernel):
        """(registers of a thread, bytes that spill)."""
        return self._of(kernel)[1]

    def _of(self, kernel):
        if kernel not in self._made:
            file = next(file for file in self.files if kernel in _module(file))
            name = f"{file.stem}_{sha256(kernel.encode()).hexdigest()[:12]}_{self.arch}"
            base = ROOT / "build" / "profile" / file.parent.name / name
            with alone(base.parent / str(self.arch)):
                if not base.with_suffix(".sass").is_file():
                    _assemble(file, kernel, self.arch, base)
            code = sass.Code(base.with_suffix(".sass").read_text(encoding="utf-8"))
            log = base.with_suffix(".log").read_text(encoding="utf-8")
            self._made[kernel] = code[kernel], sass.resources(log)[kernel]
        return self._made[kernel]


def _assemble(file, kernel, arch, base):
    """Leaves base.sass and base.log of one kernel."""
    alone_there, cubin = base.with_suffix(".alone.ptx"), base.with_suffix(".cubin")
    alone_there.write_text(without_others(file.read_text(encoding="utf-8"), kernel), encoding="utf-8")
    base.with_suffix(".log").write_text(sass.assemble(alone_there, arch, cubin), encoding="utf-8")
    fresh = base.with_suffix(".new")
    fresh.write_text(sass.disassemble(cubin), encoding="utf-8")
    fresh.rename(base.with_suffix(".sass"))  # whole, as another process may look for it, too
    alone_there.unlink()
    cubin.unlink()


def without_others(text, kernel):
    """PTX in which only this kernel is left, on the lines where it was."""
    starts = [
        m.start() for m in re.finditer(r"^[ \t]*(?:\.visible |\.weak )?[ \t]*\.entry", text, flags=re.M)
    ]
    parts = [text[: starts[0]]]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:end]
        body = part.index("\n}") + 2  # what follows is no kernel's
        own = re.search(r"\.entry\s+([\w$]+)", part)[1] == kernel
        parts.append(part if own else "\n" * part[:body].count("\n") + part[body:])
    return "".join(parts)


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
    """Compiles PTX that is missing, some at a time."""
    files = [file for op in ops for file in sources(op, root)]
    families = sorted({PTX_OF[arch] for arch in archs}, reverse=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda which: _ptx(*which, root), [(f, a) for f in files for a in families]))


def _ptx(source, arch, root):
    """The file with a source's PTX for compute_<arch>."""
    if collect().nvcc is None:
        raise sass.Missing("profile: nvcc was not found; install the CUDA toolkit")
    op = PEERS if source.stem == PEERS else source.parent.name
    try:
        return ptx_of(op, source, arch, root)
    except subprocess.CalledProcessError as error:
        raise sass.Missing(f"profile: nvcc does not compile {source}\n{error.stderr[-2000:]}") from None


@cache
def _module(file):
    return Module(file.read_text(encoding="utf-8"))
