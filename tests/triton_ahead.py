"""Compiles Triton's kernels for GPUs that are not there, as real calls start them; tests/test_triton.py runs it.

    python tests/triton_ahead.py OP [ARCH ...]

What `_triton.launch` is asked for while an op's launcher runs on tensors of the CPU is recorded, not run. Every
kernel is compiled for every architecture in some dtype, every variant for some architecture. Prints one line of
JSON each: name, arch, dtype, registers, shared memory, bytes of local memory and stack, where spilled
registers would be, and how many copies on their way to shared memory are of 4 bytes or less.
"""

import itertools
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

try:
    from triton.backends.compiler import AttrsDescriptor  # until Triton 3.2
except ImportError:
    AttrsDescriptor = None

from lska_ops import _triton
from lska_ops.testing import CASES

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
ARCHS = (80, 86, 89, 90, 100, 120) if VERSION >= (3, 3) else (80, 86, 89, 90)
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def lska_calls(dtype):
    """A call of every kernel and variant."""
    from lska_ops.lska import triton_launch

    small, trivial, one = (*CASES[2][1:], 5, 7), (256, 20, 68, 3, 0), (1, 1, 1, 3, 3)
    of_dtype = {
        torch.float16: (small, trivial, one),
        torch.bfloat16: (small,),
        torch.float32: (small, trivial),
    }
    for C, H, W, k0, k1 in of_dtype[dtype]:
        maps = [torch.empty(1, C, H, W, dtype=dtype)]
        if H > 1:
            maps.append(maps[0].contiguous(memory_format=torch.channels_last))
        x = maps[0]
        shapes = [(C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1)]
        parts = [
            t for s in shapes for t in ((x.new_empty(s), x.new_empty(C)) if s[2] * s[3] else (None, None))
        ]
        mix = (x.new_empty(C, C, 1, 1), x.new_empty(C))
        for x in maps:
            triton_launch.fwd(x, *parts, *mix, 3, True)
            triton_launch.bwd(x, x, x, *parts, *mix, 3)


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
        maps = [(like.new_empty(2, 3 * C, side, side), like.new_empty(2, C, outputs, outputs))]
        if side > 1:
            maps.append([t.contiguous(memory_format=torch.channels_last) for t in maps[0]])
        lse, rate = torch.empty(2, G, outputs, outputs), like.new_empty(1)
        position, shift = like.new_empty(D, 2, 1, 1), (like.new_empty(9, 3 * G), like.new_empty(C, 9, 3, 3))
        parts = [(position, *shift, rate, rate)]
        if D == 32:
            parts += [(position, None, None, rate, None), (None, *shift, None, rate)]
        for (qkv, y), given in itertools.product(maps, parts):
            triton_launch.fwd(qkv, *given, *options)
            triton_launch.bwd(y, qkv, lse, *given, *options)


OPS = {"lska": lska_calls, "acmix": acmix_calls}


class Variant:
    """A kernel as one launch wants it compiled; equal where Triton would compile it once."""

    def __init__(self, kernel, arguments, warps, stages, registers, constants):
        self.kernel, self.options = kernel, {"num_warps": warps, "num_stages": stages}
        if registers:
            self.options["maxnreg"] = registers
        names, unspecial = kernel.arg_names, kernel.do_not_specialize
        self.signature, self.constants, self.attributes = {}, dict(constants), {}
        self.ones = []  # of the numbers those that are compiled as a constant
        for i, (name, value) in enumerate(zip(names, arguments, strict=False)):
            if torch.is_tensor(value):
                self.signature[name] = TYPES[value.dtype]
            elif value == 1 and name not in unspecial:
                self.constants[name] = value
                self.ones.append(name)
            else:
                self.signature[name] = "i64" if value >= 2**31 else "i32"
            fixed = name in self.constants or name in unspecial
            if torch.is_tensor(value) or (value % 16 == 0 and not fixed):
                self.attributes[(i,)] = [["tt.divisibility", 16]]
        self.signature = {n: self.signature.get(n, "constexpr") for n in names}
        self.dtypes = sorted({t[1:] for t in self.signature.values() if t.startswith("*")})
        said = (self.signature, self.constants, self.options, sorted(self.attributes))
        self.key = f"{kernel.fn.__name__} {said}"

    def source(self):
        """What triton.compile takes."""
        if AttrsDescriptor is None:
            return ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        signature = {name: kind for name, kind in self.signature.items() if kind != "constexpr"}
        ones = [i for i, name in enumerate(self.kernel.arg_names) if name in self.ones]
        properties = {"tt.divisibility": [i for (i,) in self.attributes], "tt.equal_to": ones}
        described = {"cls": "AttrsDescriptor", "arg_properties": properties}
        return ASTSource(
            self.kernel, signature | dict.fromkeys(self.ones, "i32"),
            {name: value for name, value in self.constants.items() if name not in self.ones},
            AttrsDescriptor.from_dict(described),
        )  # fmt: skip

    def compiled(self, arch, folder):
        """The facts of one compilation."""
        options = {**self.options, "enable_fp_fusion": True}
        made = triton.compile(self.source(), target=GPUTarget("cuda", arch, 32), options=options)
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
            "narrow_copies": narrow_copies(made.asm["ptx"]),
            "constants": constants,
        }


def narrow_copies(ptx):
    """Of 4 bytes a lane, the fewest that cp.async takes: in Triton's layouts all of them to one bank of 32."""
    sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global\s*\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)", ptx)
    assert len(sizes) == len(re.findall(r"cp\.async\.c[ag]", ptx)), "a copy of another form"
    return sum(int(size, 0) <= 4 for size in sizes)


def variants(op):
    """What the op's calls start, each once, by kernel."""
    found = {}

    def record(kernel, programs, *arguments, warps=4, stages=2, registers=None, **constants):
        variant = Variant(kernel, arguments, warps, stages, registers, constants)
        found.setdefault(variant.key, variant)

    _triton.launch = record
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        OPS[op](dtype)
    return list(found.values())


def chosen(op, archs):
    """(variant, arch): each kernel's first variant on every one; others on one each."""
    found = variants(op)
    for arch in archs:
        seen = set()
        for i, variant in enumerate(found):
            first = variant.kernel not in seen
            seen.add(variant.kernel)
            if first or archs[i % len(archs)] == arch:
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
