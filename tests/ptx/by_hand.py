"""Small programs of PTX by hand, for tests of the interpreter."""

import numpy as np
import torch

from .machine import Launch
from .memory import Memory
from .parse import Module

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry kernel({parameters})
{{
  .reg .pred %p<20>;
  .reg .b16 %h<20>;
  .reg .b32 %r<80>;
  .reg .f32 %f<40>;
  .reg .b64 %rd<40>;
  .loc 1 77 3
"""
ADDRESS = "  ld.param.u64 %rd{n}, [p{n}];\n"
TID = "  mov.u32 %r0, %tid.x;\n"


def launch(body, *tensors, threads=32, grid=(1, 1, 1), shared=0, **options):
    """A kernel whose %rd0, %rd1, ... are the tensors' addresses, its %r0 the thread's number."""
    parameters = ", ".join(f".param .u64 p{n}" for n in range(len(tensors)))
    text = '.file 1 "by_hand.cu"\n' + HEAD.format(parameters=parameters)
    text += "".join(ADDRESS.format(n=n) for n in range(len(tensors))) + TID + body + "\n  ret;\n}\n"
    arguments = b"".join(t.data_ptr().to_bytes(8, "little") for t in tensors)
    kernel = Module(text)["kernel"]
    return Launch(kernel, grid, threads, shared, arguments, memory=Memory.of(*tensors), **options)


def run(body, *tensors, **options):
    made = launch(body, *tensors, **options)
    made.run()
    return made


def words(values):
    """uint32 as a tensor."""
    return torch.from_numpy(np.asarray(values, np.uint32).view(np.int32).copy())


def per_thread(register, at="%rd0", kind="u32", size=4):
    """Stores a register into the thread's element."""
    return f"""
  mul.wide.u32 %rd39, %r0, {size};
  add.s64 %rd39, {at}, %rd39;
  st.global.{kind} [%rd39], {register};
"""


def of_thread(register, at, kind="u32", size=4):
    return f"""
  mul.wide.u32 %rd38, %r0, {size};
  add.s64 %rd38, {at}, %rd38;
  ld.global.{kind} {register}, [%rd38];
"""


def evaluated(instruction, *inputs, to="%r10", kind="u32", threads=None):
    """An instruction's result for every element of arrays of uint32, in %r1, %r2, ...; as uint32."""
    n = len(inputs[0])
    padded = [np.resize(np.asarray(v, np.uint32), -(-n // 32) * 32) for v in inputs]
    out = torch.zeros(len(padded[0]), dtype=torch.int32)
    body = "".join(of_thread(f"%r{i}", f"%rd{i}") for i in range(1, len(inputs) + 1))
    body += f"  {instruction}\n" + per_thread(to, kind=kind)
    run(body, out, *map(words, padded), threads=threads or len(padded[0]))
    return out.numpy().view(np.uint32)[:n]
