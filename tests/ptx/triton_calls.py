"""Triton's launches of a call, for the profile: sampled, and assembled by ptxas as Triton does it."""

import tempfile
from pathlib import Path

from lska_ops import _triton

from . import sass, triton_host
from .count import Counters

ARCH = 80  # the one whose PTX is interpreted: later ones have instructions of their own


class Sampled(triton_host.Gpu):
    """Counts some programs of each launch; `found` has (launch, counters, PTX)."""

    def __init__(self, sample):
        super().__init__(ARCH)
        self.sample, self.found = sample, []

    def run(self, launch, module):
        launch.observer, launch.allow_unwritten = Counters(), True
        launch.run(self.sample(launch))
        self.found.append((launch, launch.observer, module.ptx))


def launches(problem, given, sample):
    """[(launch, counters, machine code, (registers, bytes spilled))] of a call by Triton's launchers."""
    from lska_ops.acmix import triton_launch as acmix
    from lska_ops.lska import triton_launch as lska

    gpu, own = Sampled(sample), _triton.launch
    op, way = problem.op.removeprefix("triton_").split("_")
    _triton.launch = gpu.launch
    try:
        getattr({"lska": lska, "acmix": acmix}[op], way)(*given)
    finally:
        _triton.launch = own
    out, made = [], {}
    for launch, counters, ptx in gpu.found:
        if ptx not in made:
            made[ptx] = _assembled(ptx)
        code, said = made[ptx]
        out.append((launch, counters, code[launch.kernel.name], said[launch.kernel.name]))
    return out


def _assembled(ptx):
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx, encoding="utf-8")
        log = sass.assemble(text, ARCH, cubin, of="triton")
        return sass.Code(sass.disassemble(cubin)), sass.resources(log)
