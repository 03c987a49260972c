"""cvt: between integers and floats of all widths."""

import numpy as np

from . import halves
from .alu import ROUNDING, Step, _directed, dtype_of, refuse_unknown
from .parse import WIDTHS, Unsupported

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def step_of(i):
    refuse_unknown(i, (*ROUNDING, *TO_INTEGER, "rna", "ftz", "sat", "relu"))
    to, of = [p for p in i.parts[1:] if p in WIDTHS]
    operands, target = i.operands[1:], i.operands[0]
    if to in ("f16x2", "bf16x2"):  # the first is the upper
        narrow = _to_half(i, to.removesuffix("x2"))

        def packed(a, b):
            return narrow(a).astype(np.uint32) << np.uint32(16) | narrow(b).astype(np.uint32)

        return Step(packed, [(o, of) for o in operands], [(target, "b32")])
    if of in ("f16", "bf16"):
        widen = halves.FORMATS[of].widen
        inner = _from_float(i, to, "f32") if to not in ("f16", "bf16") else _to_half(i, to)
        return Step(lambda v: inner(widen(v)), [(operands[0], "b16")], [(target, _raw_half(to))])
    if to in ("f16", "bf16"):
        return Step(_to_half(i, to), [(operands[0], of)], [(target, "b16")])
    if to == "tf32":
        return Step(_to_tf32(i), [(operands[0], "u32")], [(target, "b32")])
    f = _from_float(i, to, of) if of[0] == "f" else _from_integer(i, to)
    return Step(f, [(operands[0], of)], [(target, to)])


def _raw_half(kind):
    return "b16" if kind in ("f16", "bf16") else kind


def _mode(i):
    return next((p for p in i.parts if p in ROUNDING), "rn")


def _to_half(i, to):
    """Bits of a 16-bit float from float32, float64 or an integer of up to 32 bits."""
    mode, relu = _mode(i), "relu" in i.parts
    if {"sat", "ftz", *TO_INTEGER} & set(i.parts) or mode not in ("rn", "rz"):
        raise Unsupported(str(i))

    def convert(v):
        if relu:
            v = np.where(v > 0, v, np.where(np.isnan(v), v, v.dtype.type(0)))
        if v.dtype.kind in "iu":
            if v.dtype.itemsize > 4:
                raise Unsupported(str(i))
            v = v.astype(np.float64)
        if mode == "rz":
            if to == "bf16":
                return halves.to_bf16_down(v.astype(np.float32))
            return _directed(v.astype(np.float64), np.dtype("f2"), "rz").view(np.uint16)
        if to == "bf16" and v.dtype == np.float32:
            return halves.to_bf16(v)
        return halves.FORMATS[to].narrow(v.astype(np.float64) if to == "bf16" else v)

    return convert


def _to_tf32(i):
    """float32 with 10 bits behind the first: to nearest, ties away from zero or to even."""
    away = "rna" in i.parts

    def convert(bits):
        half = np.uint32(0x1000) if away else np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))
        finite = bits & np.uint32(0x7F800000) != 0x7F800000
        return np.where(finite, bits + half, bits) & np.uint32(0xFFFFE000)

    return convert


def _from_integer(i, to):
    if "sat" in i.parts:
        raise Unsupported(str(i))
    target = dtype_of(to)
    if target == np.float32 and _mode(i) != "rn":
        raise Unsupported(str(i))
    return lambda v: v.astype(target)


def _from_float(i, to, of):
    target = dtype_of(to)
    rounded = next((TO_INTEGER[p] for p in i.parts if p in TO_INTEGER), None)
    if target.kind in "iu":
        limits = np.iinfo(target)

        def to_integer(v):
            """Clamps; NaN is zero."""
            v = (rounded or np.trunc)(v.astype(np.float64))
            over, under = v >= float(limits.max), v <= float(limits.min)
            inside = np.where(over | under | np.isnan(v), 0, v).astype(target)
            return np.where(over, target.type(limits.max), np.where(under, target.type(limits.min), inside))

        return to_integer
    if rounded:
        f = rounded
    elif target.itemsize < dtype_of(of).itemsize:

        def f(v):
            return _directed(v, target, _mode(i))
    else:

        def f(v):
            return v

    if "sat" in i.parts:
        return lambda v: np.where(np.isnan(v), 0, np.clip(f(v), 0, 1)).astype(target)
    return lambda v: f(v).astype(target)
