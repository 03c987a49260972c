"""LSKA as PyTorch computes it on CUDA, as launches of peers.cu: what a predicted speed-up is told against.

The module's `x * conv1(conv_spatial_v(conv_spatial_h(conv0v(conv0h(x)))))`: four depthwise convolutions, the vendor's
product, its bias and the gate, each through global memory; and a copy, as the least that a map costs.
"""

import struct

import torch

from .calls import DTYPES, LAYOUTS, SPLITS
from .machine import Launch
from .memory import Memory

THREADS = 512  # of what has one thread an output
SYMBOL = {"fp32": "f", "fp16": "6__half", "bf16": "13__nv_bfloat16"}


class _Call:
    def __init__(self, problem, module):
        self.p, self.module, self.launches, self.products = problem, module, [], []
        self.nchw = int(problem.layout == "NCHW")

    def map(self):
        p = self.p
        t = torch.zeros(p.B, p.C, p.H, p.W, dtype=DTYPES[p.dtype])
        return t.contiguous(memory_format=LAYOUTS[p.layout])

    def small(self, n):
        return torch.zeros(n, dtype=DTYPES[self.p.dtype])

    def start(self, name, grid, threads, tensors, ints, with_sizes=True):
        p = self.p
        wanted = f"{name}_kernelI{SYMBOL[p.dtype]}"
        found = [symbol for symbol in self.module if wanted in symbol]
        symbol = next(symbol for symbol in found if len(found) == 1 or f"Lb{self.nchw}E" in symbol)
        sizes = (p.B, p.C, p.H, p.W) if with_sizes else ()
        pointers = [t.data_ptr() if t is not None else 0 for t in tensors]
        given = struct.pack(f"<{len(pointers)}Q{len(sizes) + len(ints)}i", *pointers, *sizes, *ints)
        kernel = self.module[symbol]
        given += bytes(kernel.parameter_bytes - len(given))  # what aligns the struct's end
        launch = Launch(
            kernel, (grid, 1, 1), threads, 0, given, memory=Memory.of(*(t for t in tensors if t is not None))
        )
        launch.held = tensors
        self.launches.append(launch)

    def convolution(self, name, x, out, rows, cols, step):
        ints = [self.p.outputs, rows, cols, step]
        weight = self.small(self.p.C * rows * cols)
        if name == "depthwise_bwd":
            ints.append(1)  # the stride
        self.start(name, -(-self.p.outputs // THREADS), THREADS, (x, weight, self.small(self.p.C), out), ints)

    def weight_gradient(self, x, grad, rows, cols, step):
        taps = self.p.C * rows * cols
        threads = min(32 * self.p.B, 256)
        self.start("depthwise_weight", taps, threads, (x, grad, self.small(taps)), [rows, cols, step])

    def each(self, name, a, b, out, threads=128):
        vectors = self.p.map_bytes // 16
        bias = self.small(self.p.C)
        self.start(name, -(-vectors // threads), threads, (a, b, bias, out), [vectors])

    def channel_sum(self, grad):
        out = self.small(self.p.C)
        self.start("bias_grad", self.p.C, 512, (grad, None, None, out), [0])

    def product(self):
        p = self.p
        moved = 2 * p.map_bytes + p.C * p.C * p.element
        self.products.append(("aten::convolution", moved, p.outputs * p.C))


def launches(problem, module):
    """([Launch], [(name, bytes, multiply-adds) of the vendor's products]) of `copy`, `eager_fwd` or `eager_bwd`."""
    call = _Call(problem, module)
    k0, k1, dilation = SPLITS[problem.k]
    stages = (1, k0, 1), (k0, 1, 1), (1, k1, dilation), (k1, 1, dilation)
    a, b, c = (call.map() for _ in range(3))
    if problem.op == "copy":
        call.each("copy", a, None, b)
    elif problem.op == "eager_fwd":
        for n, stage in enumerate(stages):
            call.convolution("depthwise_fwd", (a, b)[n % 2], (b, a)[n % 2], *stage)
        call.product()
        call.each("bias", a, None, b)
        call.each("multiply", a, b, c)
    else:
        call.each("multiply", a, b, c)  # grad_y x to the attention, grad_y attention to x
        call.each("multiply", a, b, c)
        call.product()  # to s
        call.product()  # to conv1's weight
        call.channel_sum(a)
        for stage in reversed(stages):
            call.convolution("depthwise_bwd", a, b, *stage)
            call.weight_gradient(a, b, *stage)
            call.channel_sum(a)
        call.each("add", a, b, c)  # what came through the gate and what came through the cascade
    return call.launches, call.products
