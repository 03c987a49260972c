"""Triton's kernels as lska_ops starts them, compiled for a GPU that is not there and interpreted."""

import struct

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton_ahead import Variant

from .machine import Launch
from .memory import Memory
from .parse import Module

WARP = 32


class Gpu:
    """`launch` takes the place of `_triton.launch`."""

    def __init__(self, arch=80):
        self.target, self._compiled = GPUTarget("cuda", arch, WARP), {}
        self.launches, self.ran = [], set()  # ran: (kernel, dtypes)

    def launch(self, kernel, programs, *arguments, warps=4, stages=2, registers=None, **constants):
        variant = Variant(kernel, arguments, warps, stages, registers, constants)
        variant.attributes = {
            (n,): attribute
            for (n,), attribute in variant.attributes.items()
            if not torch.is_tensor(arguments[n]) or arguments[n].data_ptr() % 16 == 0
        }
        module, shared = self._of(variant)
        (name,) = module
        code = module[name]
        packed = _packed(variant, kernel.arg_names, arguments)
        packed += bytes(code.parameter_bytes - len(packed))  # Triton's own scratch memory: of no bytes
        memory = Memory.of(*filter(torch.is_tensor, arguments))
        launch = Launch(code, (programs, 1, 1), warps * WARP, shared, packed, memory=memory)
        self.run(launch, module)
        self.launches.append(launch)
        self.ran.add((kernel.fn.__name__, *variant.dtypes))

    def run(self, launch, module):
        """What a launch comes to; who counts overrides it."""
        launch.run()

    def _of(self, variant):
        key = f"{variant.key} {sorted(variant.attributes)}"
        if key not in self._compiled:
            options = {**variant.options, "enable_fp_fusion": True}
            made = triton.compile(variant.source(), target=self.target, options=options)
            module = Module(made.asm["ptx"])
            module.ptx = made.asm["ptx"]
            self._compiled[key] = module, made.metadata.shared
        return self._compiled[key]


def _packed(variant, names, arguments):
    """What the kernel is called with, as its parameters lie."""
    out = b""
    for name, value in zip(names, arguments, strict=False):
        kind = variant.signature[name]
        if kind == "constexpr":
            continue
        wide = kind[0] == "*" or kind == "i64"
        out += bytes(-len(out) % (8 if wide else 4))
        out += struct.pack("<q" if wide else "<i", value.data_ptr() if torch.is_tensor(value) else value)
    return out
