"""The calls that are profiled: yolo11's maps, and whatever a line of words describes."""

import math
import re
from dataclasses import dataclass, replace

import torch

SPLITS = {7: (3, 3, 2), 11: (3, 5, 2), 23: (5, 7, 3), 35: (5, 11, 3), 41: (5, 13, 3), 53: (5, 17, 3)}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
HALVES = tuple(f"acmix_{half}_{way}" for half in ("attention", "shift") for way in ("fwd", "bwd"))  # alone
OPS = (
    "lska_fwd",
    "lska_bwd",
    "acmix_fwd",
    "acmix_bwd",
    *HALVES,
    "triton_lska_fwd",
    "triton_lska_bwd",
    "triton_acmix_fwd",
)
OPS += ("triton_acmix_bwd", "eager_fwd", "eager_bwd", "copy")
MAPS = {"P3": (64, 80), "P4": (128, 40), "P5": (256, 20)}
HEADS, WINDOW = 4, 7
# ACmix beside its defaults, each against 7x7, stride 1, dilation 1, 4 heads.
OTHERS = [{"k": k} for k in (3, 5, 9)] + [{"stride": 2}, {"dilation": 2}, {"head": 8}]


@dataclass(frozen=True)
class Problem:
    op: str = "lska_fwd"
    C: int = 64
    H: int = 80
    W: int = 80
    B: int = 16
    k: int = 23  # LSKA's kernel size, or the side of ACmix's window
    dtype: str = "fp16"
    layout: str = "channels_last"
    head: int = HEADS  # as stride and dilation of ACmix alone
    stride: int = 1
    dilation: int = 1

    @property
    def level(self):
        return {80: "P3", 40: "P4", 20: "P5"}.get(self.H, "-") if self.H == self.W else "-"

    @property
    def sides(self):
        """Of what a forward gives."""
        return -(-self.H // self.stride), -(-self.W // self.stride)

    @property
    def outputs(self):
        return self.B * self.C * math.prod(self.sides)

    @property
    def element(self):
        return DTYPES[self.dtype].itemsize

    @property
    def map_bytes(self):
        return self.least_bytes(1)

    def least_bytes(self, maps):
        """Of so many maps, the last one a forward's result or its gradient, each read or written once."""
        return ((maps - 1) * self.B * self.C * self.H * self.W + self.outputs) * self.element

    def __str__(self):
        own = {"k": 7} if "acmix" in self.op else {}  # what goes without saying
        own |= {name: getattr(Problem, name) for name in ("head", "stride", "dilation")}
        said = [
            f"{n}{getattr(self, n)}"
            for n in ("k", "head", "stride", "dilation")
            if getattr(self, n) != own.get(n)
        ]
        size = f"{self.C}x{self.H}x{self.W}"
        return " ".join((self.op, size, f"B{self.B}", *said, self.dtype, self.layout))


def parse(text):
    """A Problem of words in any order, as in `lska_fwd 96x56x56 B8 k35 fp16 channels_last`."""
    found = {}
    for word in text.split():
        if shape := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", word):
            told = dict(zip("CHW", map(int, shape.groups()), strict=True))
        elif number := re.fullmatch(r"(B|k|head|stride|dilation)([1-9]\d*)", word):
            told = {number[1]: int(number[2])}
        elif word in DTYPES:
            told = {"dtype": word}
        elif word in LAYOUTS:
            told = {"layout": word}
        elif word in OPS:
            told = {"op": word}
        else:
            raise ValueError(
                f"profile: {word!r} is not understood; expected one of {', '.join(OPS)}, CxHxW, B16, "
                f"k{', k'.join(map(str, SPLITS))}, head4, stride1, dilation1, {', '.join(DTYPES)}, {' or '.join(LAYOUTS)}"
            )
        if told.keys() & found.keys():
            raise ValueError(f"profile: {word!r} comes second; {text!r} has said that before")
        found |= told
    if not {"op", "C"} <= found.keys():
        raise ValueError(
            f"profile: {text!r} has no {'size' if 'op' in found else 'op'}; expected as in lska_fwd 64x80x80"
        )
    of_acmix = "acmix" in found["op"]
    if of_acmix and found.get("k", WINDOW) % 2 == 0:
        raise ValueError(f"profile: k is {found['k']}; expected an odd number, the side of a window")
    if not of_acmix and found.get("k", 7) not in SPLITS:
        raise ValueError(f"profile: k is {found['k']}; expected one of {', '.join(map(str, SPLITS))}")
    if not of_acmix and (alien := found.keys() & {"head", "stride", "dilation"}):
        raise ValueError(f"profile: {found['op']} has no {' and no '.join(sorted(alien))}; ACmix has")
    if found["C"] % found.get("head", HEADS) and of_acmix:
        raise ValueError(
            f"profile: C is {found['C']}; expected a multiple of head, {found.get('head', HEADS)}"
        )
    return Problem(**({"k": WINDOW} if of_acmix else {}) | found)


def table():
    """The committed profile's calls."""
    out = []
    for layout in LAYOUTS:
        for C, side in MAPS.values():
            base = Problem(C=C, H=side, W=side, layout=layout)
            out += [replace(base, k=k) for k in (7, 23, 53)]
            out += [replace(base, dtype=dtype) for dtype in ("fp32", "bf16")]
            out += [replace(base, op="lska_bwd", k=k) for k in (7, 23)]
        out += [Problem(k=35, layout=layout), Problem(H=96, W=96, k=53, layout=layout)]
        for C, side in ((384, 80), (768, 40)):
            out += [Problem(C=C, H=side, W=side, k=k, layout=layout) for k in (7, 23)]
        out += [Problem(B=1, k=k, layout=layout) for k in (7, 23)]
        out += [
            Problem(op=op, C=C, H=side, W=side, k=WINDOW, layout=layout)
            for op in ("acmix_fwd", "acmix_bwd")
            for C, side in MAPS.values()
        ]
        out += [
            Problem(op="acmix_fwd", C=C, H=side, W=side, k=WINDOW, dtype="fp32", layout=layout)
            for C, side in MAPS.values()
        ]
    C, side = MAPS["P4"]
    out += [Problem(op="acmix_bwd", C=C, H=side, W=side, k=WINDOW, dtype="fp32", layout=of) for of in LAYOUTS]
    out += [
        replace(Problem(op=op, C=C, H=side, W=side, k=WINDOW), **other)
        for op in ("acmix_fwd", "acmix_bwd")
        for other in OTHERS
    ]
    out += [Problem(op=op, C=C, H=side, W=side, k=WINDOW) for op in HALVES]
    for C, side in MAPS.values():  # of channels_last, which cuDNN gets, nobody describes the kernels
        base = Problem(C=C, H=side, W=side, layout="NCHW")
        out += [replace(base, op=op, k=k) for op in ("eager_fwd", "eager_bwd") for k in (7, 23, 53)]
        out.append(replace(base, op="copy", k=WINDOW))
    for layout in LAYOUTS:
        for C, side in MAPS.values():
            base = Problem(op="triton_lska_fwd", C=C, H=side, W=side, layout=layout)
            out += [replace(base, k=k) for k in (7, 23)]
            out.append(replace(base, op="triton_acmix_fwd", k=WINDOW))
    return out


def arguments(problem):
    """What the problem's op is called with: of `eager` and `copy` none, since nothing of ours runs there."""
    p, dtype, op = problem, DTYPES[problem.dtype], problem.op.removeprefix("triton_")
    generator = torch.Generator().manual_seed(1)

    def normal(*shape, fan_in=1):
        few = torch.randn(min(math.prod(shape), 1 << 16), generator=generator) * fan_in**-0.5
        return few.to(dtype).repeat(-(-math.prod(shape) // len(few)))[: math.prod(shape)].reshape(shape)

    def map_of(channels, H=p.H, W=p.W):
        return normal(p.B, channels, H, W).contiguous(memory_format=LAYOUTS[p.layout])

    if op.startswith("lska"):
        k0, k1, dilation = SPLITS[p.k]
        shapes = (p.C, 1, 1, k0), (p.C, 1, k0, 1), (p.C, 1, 1, k1), (p.C, 1, k1, 1)
        depthwise = [t for s in shapes for t in (normal(*s, fan_in=s[2] * s[3]), normal(p.C))]
        rest = *depthwise, normal(p.C, p.C, 1, 1, fan_in=p.C), normal(p.C), dilation
        return (
            (map_of(p.C), *rest, True) if op == "lska_fwd" else (map_of(p.C), map_of(p.C), map_of(p.C), *rest)
        )
    qkv, rate = map_of(3 * p.C), torch.full((1,), 0.5).to(dtype)
    attention = normal(p.C // p.head, 2, 1, 1)
    shift = normal(9, 3 * p.head, 1, 1, fan_in=3 * p.head), normal(p.C, 9, 3, 3, fan_in=81)
    rates, window, lse = [rate, rate], p.k, torch.full((p.B, p.head, *p.sides), 4.0)
    if "shift" in op:  # as lska_ops/acmix/halves.py leaves the other half out
        attention, rates[0], window, lse = None, None, 1, lse.new_empty(0)
    elif "attention" in op:
        shift, rates[1] = (None, None), None
    parts = attention, *shift, *rates, p.head, window, p.stride, p.dilation
    return (qkv, *parts) if op.endswith("fwd") else (map_of(p.C, *p.sides), qkv, lse, *parts)


def op_name(problem):
    """Of the host-run library."""
    return re.sub("acmix_(attention_|shift_)?", "acmix_core_", problem.op) + "_cuda"
