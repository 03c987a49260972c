"""Compiles Triton's kernels for GPUs that are not there, as real calls start them; tests/test_triton.py runs it.

    python tests/triton_ahead.py OP [ARCH ...]

What `_triton.launch` is asked for while an op's launcher runs on tensors of the CPU is recorded, not run. Every
kernel is compiled for every architecture in some dtype, every variant for some architecture. Prints one line of
JSON each: name, arch, dtype, registers, shared memory, and bytes of local memory and stack, where spilled
registers would be.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lska_ops import _triton
from lska_ops.testing import CASES

ARCHS = (75, 80, 86, 89, 90, 100, 120)
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def lska_calls(dtype):
    """A call of every kernel and variant; of (whether they are for tensor cores, how to make them)."""
    from lska_ops.lska import triton_launch

    small, trivial, one = (*CASES[2][1:], 5, 7), (256, 20, 68, 3, 0), (1, 1, 1, 3, 3)
    of_dtype = {
        torch.float16: (small, trivial, one),
        torch.bfloat16: (small,),
        torch.float32: (small, trivial),
    }
    for C, H, W, k0, k1 in of_dtype[dtype]:
        x = torch.empty(1, C, H, W, dtype=dtype)
        shapes = [(C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1)]
        parts = [
            t for s in shapes for t in ((x.new_empty(s), x.new_empty(C)) if s[2] * s[3] else (None, None))
        ]
        mix = (x.new_empty(C, C, 1, 1), x.new_empty(C))
        triton_launch.fwd(x, *parts, *mix, 3, True)
        triton_launch.bwd(x, x, x, *parts, *mix, 3)


def lska_tensor_cores(monkeyed):
    from lska_ops.lska import triton_launch

    triton_launch.on_tensor_cores = monkeyed


def acmix_calls(dtype):
    """Heads of few and many dims, chunks, strides, dilation, maps smaller than the window, and both halves."""
    from lska_ops.acmix import triton_launch

    of_dims = {
        torch.float16: (16, 32, 64, 128, 192, 300, 1),
        torch.bfloat16: (16,),
        torch.float32: (16,),
    }
    for D in of_dims[dtype]:
        options, side = {1: ((1, 3, 1, 1), 1), 300: ((2, 3, 2, 2), 2)}.get(D, ((4, 7, 1, 1), 20))
        G, outputs, like = options[0], -(-side // options[2]), torch.empty(0, dtype=dtype)
        C = G * D
        qkv, y = like.new_empty(2, 3 * C, side, side), like.new_empty(2, C, outputs, outputs)
        lse, rate = torch.empty(2, G, outputs, outputs), like.new_empty(1)
        position, shift = like.new_empty(D, 2, 1, 1), (like.new_empty(9, 3 * G), like.new_empty(C, 9, 3, 3))
        parts = [(position, *shift, rate, rate)]
        if D == 32:
            parts += [(position, None, None, rate, None), (None, *shift, None, rate)]
        for given in parts:
            triton_launch.fwd(qkv, *given, *options)
            triton_launch.bwd(y, qkv, lse, *given, *options)


OPS = {"lska": (lska_calls, lska_tensor_cores), "acmix": (acmix_calls, lambda monkeyed: None)}


class Variant:
    """A kernel as one launch wants it compiled; equal where Triton would compile it once."""

    def __init__(self, kernel, arguments, warps, stages, registers, constants):
        self.kernel, self.options = kernel, {"num_warps": warps, "num_stages": stages}
        if registers:
            self.options["maxnreg"] = registers
        names, unspecial = kernel.arg_names, kernel.do_not_specialize
        self.signature, self.constants, self.attributes = {}, dict(constants), {}
        for i, (name, value) in enumerate(zip(names, arguments, strict=False)):
            if torch.is_tensor(value):
                self.signature[name] = TYPES[value.dtype]
            elif value == 1 and name not in unspecial:
                self.constants[name] = value
            else:
                self.signature[name] = "i64" if value >= 2**31 else "i32"
            fixed = name in self.constants or name in unspecial
            if torch.is_tensor(value) or (value % 16 == 0 and not fixed):
                self.attributes[(i,)] = [["tt.divisibility", 16]]
        self.signature = {n: self.signature.get(n, "constexpr") for n in names}
        self.dtypes = sorted({t[1:] for t in self.signature.values() if t.startswith("*")})
        said = (self.signature, self.constants, self.options, sorted(self.attributes))
        self.key = f"{kernel.fn.__name__} {said}"

    def compiled(self, arch, folder):
        """The facts of one compilation."""
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        options = {**self.options, "enable_fp_fusion": True}
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(made.asm["cubin"])
        command = [CUOBJDUMP, "--dump-resource-usage", file]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", said).groups())
        facts = dict(registers=registers, shared=made.metadata.shared, local=local, stack=stack)
        constants = {n: v for n, v in self.constants.items() if n.isupper()}
        return {
            "kernel": self.kernel.fn.__name__,
            "arch": arch,
            "dtypes": self.dtypes,
            **facts,
            "constants": constants,
        }


def variants(op, tensor_cores):
    """What the op's calls start, each once, by kernel."""
    calls, set_tensor_cores = OPS[op]
    found = {}

    def record(kernel, programs, *arguments, warps=4, stages=2, registers=None, **constants):
        variant = Variant(kernel, arguments, warps, stages, registers, constants)
        found.setdefault(variant.key, variant)

    _triton.launch = record
    set_tensor_cores(tensor_cores)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        calls(dtype)
    return list(found.values())


def chosen(op, archs):
    """(variant, arch): each kernel's first variant, and below sm_80 bfloat16, on every one; others on one each."""
    modern = variants(op, lambda x: x.dtype != torch.float32)
    old = variants(op, lambda x: False)
    for arch in archs:
        seen = set()
        for i, variant in enumerate(old if arch < 80 else modern):
            first = variant.kernel not in seen
            seen.add(variant.kernel)
            emulated = arch < 80 and "bf16" in variant.dtypes  # no instruction multiplies it there
            if first or emulated or archs[i % len(archs)] == arch:
                yield variant, arch


def main(op, *archs):
    with tempfile.TemporaryDirectory(prefix="triton_ahead_") as folder:
        try:  # what Triton keeps in HOME saves a minute the next time, where HOME can be written
            (Path.home() / ".triton").mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=Path.home() / ".triton").close()
        except OSError:
            os.environ.setdefault("TRITON_CACHE_DIR", folder)
        for variant, arch in chosen(op, tuple(map(int, archs)) or ARCHS):
            print(json.dumps(variant.compiled(arch, folder)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
