"""The 16-bit floats, rounded as IEEE says: to nearest even, once, from whatever an operation makes exactly.

float16 is numpy's; bfloat16 is the upper half of a float32's bits and lives in uint16.
"""

import numpy as np


def from_bf16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(v):
    """Of float32, to nearest even; NaN becomes the GPU's."""
    bits = v.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + (np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(v), np.uint16(0x7FFF), rounded)


def to_bf16_down(v):
    """Of float32, towards zero."""
    return np.where(np.isnan(v), np.uint16(0x7FFF), (v.view(np.uint32) >> np.uint32(16)).astype(np.uint16))


def to_odd(exact, error):
    """The float64 `exact`, of which `error` is what it lacks, so that another rounding is the first one."""
    toward = np.where(error > 0, np.inf, -np.inf)
    even = (exact.view(np.uint64) & np.uint64(1)) == 0
    return np.where((error != 0) & even & np.isfinite(exact), np.nextafter(exact, toward), exact)


def fma_odd(a, b, c):
    """a * b + c in float64 of values whose product is exact there, rounded to odd."""
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + c
    of_c = total - product
    error = (product - (total - of_c)) + (c - of_c)
    return to_odd(total, np.where(np.isfinite(error), error, 0.0))


def float32_odd(exact):
    """float64 to float32, rounded to odd."""
    near = exact.astype(np.float32)
    low = np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)
    inexact = (low != exact) & np.isfinite(exact)
    return np.where(inexact, (low.view(np.uint32) | np.uint32(1)).view(np.float32), low)


class Format:
    """How a 16-bit float is widened to float32, and narrowed from an exact float64."""

    def __init__(self, widen, narrow):
        self.widen, self.narrow = widen, narrow


FORMATS = {
    "f16": Format(
        lambda bits: bits.view(np.float16).astype(np.float32), lambda v: v.astype(np.float16).view(np.uint16)
    ),
    "bf16": Format(from_bf16, lambda v: to_bf16(float32_odd(v))),
}


def _sum(sign):
    return lambda a, b: fma_odd(a, np.float64(1), sign * b.astype(np.float64))


_EXACT = {
    "add": _sum(1),
    "sub": _sum(-1),
    "mul": lambda a, b: np.multiply(a, b, dtype=np.float64),
    "fma": fma_odd,
    "min": np.fmin,
    "max": np.fmax,
    "min.NaN": np.minimum,
    "max.NaN": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
}
_OF_BITS = {"neg": (np.bitwise_xor, 0x8000), "abs": (np.bitwise_and, 0x7FFF)}


def operation(name, kind, relu=False):
    """A function of raw bits, uint16, or uint32 for the packed kinds f16x2 and bf16x2; None if there is none."""
    if name not in _EXACT:
        return None
    form = FORMATS[kind.removesuffix("x2")]
    if name in _OF_BITS:
        f, mask = _OF_BITS[name]

        def of_bits(v):
            return f(v, np.uint16(mask))
    else:

        def of_bits(*values):
            out = _EXACT[name](*map(form.widen, values)).astype(np.float64)
            if relu:
                out = np.where(out > 0, out, np.where(np.isnan(out), out, 0.0))
            return form.narrow(out)

    if not kind.endswith("x2"):
        return of_bits

    def packed(*values):
        pairs = [np.ascontiguousarray(v).view(np.uint16).reshape(-1, 2) for v in values]
        return np.ascontiguousarray(of_bits(*pairs)).view(np.uint32).ravel()

    return packed
