"""What PTX's arithmetic means, as functions of numpy arrays: one element per lane, or one for all lanes.

`step_of(instruction)` says how an instruction is done. Whatever an opcode says that is not known here is refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import halves
from .parse import WIDTHS, Immediate, Unsupported

GENERIC_SHARED = 1 << 56  # where shared memory lies among generic addresses
RAW = {1: np.dtype(bool), 8: np.dtype("u1"), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}


def dtype_of(kind):
    """numpy's type of a PTX type; bfloat16, tf32 and packed types stay bits."""
    if kind == "pred":
        return RAW[1]
    letter = {"s": "i", "f": "f"}.get(kind[0], "u") if "x" not in kind else "u"
    return np.dtype(f"{letter}{WIDTHS[kind] // 8}")


@dataclass
class Step:
    """A function, what it is given and what it returns, as (operand, kind); several results are a tuple.

    A function that is not `plain` is called with the flight, its lanes and the guard in front.
    """

    function: Any
    arguments: list
    results: list
    plain: bool = True


def refuse_unknown(instruction, known):
    """Everything between the name and the type has to be known."""
    for part in instruction.parts[1:]:
        if part not in known and part not in WIDTHS:
            raise Unsupported(f".{part} of {instruction}")


def _wider(kind):
    return f"{kind[0]}{2 * WIDTHS[kind]}"


def _flushed(f):
    """Subnormal float32 count as zero, and become it."""

    def flush(v):
        return np.where(np.abs(v) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), v), v)

    return lambda *values: flush(f(*map(flush, values)))


def _directed(exact, dtype, mode):
    """float64 to a narrower float in a rounding mode."""
    near = exact.astype(dtype)
    if mode in ("rm", "rz"):
        down = np.where(near > exact, np.nextafter(near, dtype.type(-np.inf)), near)
        near = down if mode == "rm" else np.where(exact < 0, near, down)
    if mode in ("rp", "rz"):
        up = np.where(near < exact, np.nextafter(near, dtype.type(np.inf)), near)
        near = up if mode == "rp" else np.where(exact < 0, up, near)
    return near


def _fma(mode):
    """Of float32, rounded once but where float64's own rounding makes a tie: once in 2^29, by half a unit."""

    def fma(a, b, c):
        exact = np.multiply(a, b, dtype=np.float64)
        exact = exact + c
        return exact.astype(np.float32) if mode == "rn" else _directed(exact, np.dtype("f4"), mode)

    return fma


def _divide(a, b):
    """Towards zero; whatever, where b is zero."""
    b = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a // b
    q = a // b
    return q + ((q < 0) & (q * b != a))


def _high(a, b):
    if a.dtype.itemsize < 8:
        wide = _widened(a) * _widened(b)
        return (wide >> wide.dtype.type(8 * a.dtype.itemsize)).astype(a.dtype)
    pairs = np.broadcast_arrays(a, b)
    bits = [(int(x) * int(y) >> 64) & (1 << 64) - 1 for x, y in zip(*(p.ravel() for p in pairs), strict=True)]
    return np.array(bits, np.uint64).view(a.dtype)  # rare: 64-bit divisions by a constant


def _widened(a):
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def _shift(f, width, fill):
    """Counts beyond the width shift everything out; `fill` says that the sign stays."""

    def shift(a, count):
        kept = f(a, np.minimum(count, np.uint32(width - 1)).astype(a.dtype))
        return kept if fill else np.where(count >= width, a.dtype.type(0), kept)

    return shift


def _funnel(left, wrap):
    def shift(low, high, count):
        count = count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        both = both << count.astype(np.uint64) >> np.uint64(32) if left else both >> count.astype(np.uint64)
        return both.astype(np.uint32)

    return shift


def _field_extract(a, start, length):
    """bfe: from a bit on so many; the sign of s32 is the last bit that is there."""
    size = 8 * a.dtype.itemsize
    start, length = (
        np.minimum(v & np.uint32(255), np.uint32(size)).astype(np.int64) for v in (start, length)
    )
    wide = a.astype(np.int64) if size < 64 else a
    end = np.minimum(start + length, size)
    kind = wide.dtype.type
    moved = wide << (kind(63) - (end.astype(wide.dtype) - kind(1)))
    out = moved.astype(a.dtype.kind + "8") >> (kind(64) - (end - start).astype(wide.dtype)).astype(
        a.dtype.kind + "8"
    )
    return np.where((length == 0) | (start >= size), 0, out).astype(a.dtype)


def _field_insert(a, into, start, length):
    kind, size = a.dtype.type, 8 * a.dtype.itemsize
    start, length = ((v & np.uint32(255)).astype(a.dtype) for v in (start, length))
    ones = np.where(length >= size, ~kind(0), (kind(1) << np.minimum(length, kind(size - 1))) - kind(1))
    mask = np.where(start >= size, kind(0), ones << np.minimum(start, kind(size - 1)))
    return into & ~mask | a << np.minimum(start, kind(size - 1)) & mask


def _permute(a, b, selector):
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.uint32(0)
    for n in range(4):
        choice = selector >> np.uint32(4 * n) & np.uint32(15)
        byte = (both >> (choice & np.uint32(7)).astype(np.uint64) * np.uint64(8)).astype(np.uint8)
        sign = (byte.view(np.int8) >> np.int8(7)).view(np.uint8)
        out = out | np.where(choice & np.uint32(8), sign, byte).astype(np.uint32) << np.uint32(8 * n)
    return out


def _logic3(table):
    def logic(a, b, c):
        out = np.uint32(0)
        for n in range(8):
            if table >> n & 1:
                out = out | (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
        return out if isinstance(out, np.ndarray) else np.zeros(1, np.uint32)

    return logic


LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
SPECIAL = {  # "approx" is within 2 units on a GPU; rounded right here
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
}
ORDERED = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
UNSIGNED = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
ROUNDING = ("rn", "rz", "rm", "rp")


def _real(name, parts):
    """The function of a float operation, or None."""
    mode = next((p for p in parts if p in ROUNDING), "rn")
    if name in ("fma", "mad"):
        return _fma(mode)
    if name in ("add", "sub", "mul") or (name == "div" and "approx" not in parts and "full" not in parts):
        f = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
        if mode == "rn":
            return f
        return lambda a, b: _directed(f(a, b, dtype=np.float64), a.dtype, mode)
    if name in SPECIAL:
        return lambda a: SPECIAL[name](a.astype(np.float64)).astype(a.dtype)
    nan = "NaN" in parts
    others = {
        "div": np.divide,
        "min": np.minimum if nan else np.fmin,
        "max": np.maximum if nan else np.fmax,
        "neg": np.negative,
        "abs": np.abs,
        "copysign": lambda sign, a: np.copysign(a, sign),
    }
    return others.get(name)


def _float_step(i, kind):
    name, n = i.name, len(i.operands) - 1
    refuse_unknown(i, (*ROUNDING, "approx", "full", "ftz", "NaN"))
    f = _real(name, i.parts)
    if f is None or (kind == "f64" and name in ("fma", "mad")):
        return None
    return Step(_flushed(f) if "ftz" in i.parts else f, [(o, kind) for o in i.operands[1:]], [(i.operands[0], kind)]) if n else None  # fmt: skip


def _half_step(i, kind):
    refuse_unknown(i, ("rn", "ftz", "NaN", "relu"))
    name = f"{i.name}.NaN" if "NaN" in i.parts else i.name
    f = halves.operation(name, kind, "relu" in i.parts)
    if f is None or "ftz" in i.parts:
        return None
    raw = f"b{WIDTHS[kind]}"
    return Step(f, [(o, raw) for o in i.operands[1:]], [(i.operands[0], raw)])


def _integer_step(i, kind):
    """Wrapping ones on bits, whose sign does not matter; the others as their type says."""
    name, parts = i.name, i.parts
    bits, to = f"b{WIDTHS[kind]}", i.operands[0]
    refuse_unknown(i, ("lo", "hi", "wide", "sync"))
    if "wide" in parts:
        wide = _wider(kind)
        f = {
            "mul": lambda a, b: _widened(a) * _widened(b),
            "mad": lambda a, b, c: _widened(a) * _widened(b) + c,
        }[name]
        kinds = [kind, kind, wide]
    elif "hi" in parts:
        f = {"mul": _high, "mad": lambda a, b, c: _high(a, b) + c}[name]
        kinds, wide = [kind] * 3, kind
    else:
        wrapping = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": lambda a, b, c: a * b + c}
        signed = {
            "min": np.minimum,
            "max": np.maximum,
            "div": _divide,
            "rem": lambda a, b: a - _divide(a, b) * b,
            "abs": np.abs,
            "neg": np.negative,
        }
        f, wide = wrapping.get(name) or signed.get(name), bits if name in wrapping else kind
        kinds = [wide] * 3
    return f and Step(f, list(zip(i.operands[1:], kinds, strict=False)), [(to, wide)])


def _bits_step(i, kind):
    """Shifts, fields and bytes; None for other names."""
    name, to, operands = i.name, i.operands[0], i.operands[1:]
    width, bits = WIDTHS[kind], f"b{WIDTHS[kind]}"
    if name in LOGIC:
        refuse_unknown(i, ())
        return Step(LOGIC[name], [(o, kind) for o in operands], [(to, kind)])
    if name in ("shl", "shr"):
        refuse_unknown(i, ())
        kind = kind if kind[0] == "s" else bits
        f = np.left_shift if name == "shl" else np.right_shift
        count = operands[1]
        if isinstance(count, Immediate) and 0 <= count.bits < width:
            by = dtype_of(kind).type(count.bits)
            return Step(lambda a: f(a, by), [(operands[0], kind)], [(to, kind)])
        fill = name == "shr" and kind[0] == "s"
        return Step(_shift(f, width, fill), [(operands[0], kind), (count, "u32")], [(to, kind)])
    if name == "selp":
        kinds = [bits, bits, "pred"]
        return Step(lambda a, b, p: np.where(p, a, b), list(zip(operands, kinds, strict=True)), [(to, bits)])
    if name == "prmt" and i.opcode == "prmt.b32":
        return Step(_permute, [(o, "u32") for o in operands], [(to, "u32")])
    if name == "lop3":
        refuse_unknown(i, ())
        return Step(_logic3(operands[3].bits), [(o, "u32") for o in operands[:3]], [(to, "u32")])
    if name == "shf":
        refuse_unknown(i, ("l", "r", "wrap", "clamp"))
        f = _funnel("l" in i.parts, "wrap" in i.parts)
        return Step(f, [(o, "u32") for o in operands], [(to, "u32")])
    if name == "bfe":
        refuse_unknown(i, ())
        return Step(_field_extract, list(zip(operands, (kind, "u32", "u32"), strict=True)), [(to, kind)])
    if name == "bfi":
        refuse_unknown(i, ())
        kinds = (bits, bits, "u32", "u32")
        return Step(_field_insert, list(zip(operands, kinds, strict=True)), [(to, bits)])
    if name == "popc":
        return Step(lambda a: _popcount(a), [(operands[0], bits)], [(to, "u32")])
    return None


def _popcount(a):
    a = np.atleast_1d(a)
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.dtype.itemsize)
    return np.unpackbits(octets, axis=1).sum(1).astype(np.uint32)


def _compare(i):
    """setp: whether a relation holds, and perhaps whether it does not; combined with another predicate."""
    refuse_unknown(
        i, (*ORDERED, *UNSIGNED, "ne", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan", *LOGIC)
    )
    kind, relation = i.parts[-1], i.parts[1]
    holds, read = _relation(relation, kind[0] == "f" or kind == "bf16"), kind
    if kind == "bf16":
        of_bits, read = holds, "b16"

        def holds(a, b):
            return of_bits(halves.from_bf16(a), halves.from_bf16(b))

    combine = next((LOGIC[p] for p in i.parts[2:] if p in LOGIC), None)
    arguments = [(o, read) for o in i.operands[1:3]] + [(o, "pred") for o in i.operands[3:]]
    to = i.operands[0]
    if not isinstance(to, tuple):
        f = holds if combine is None else lambda a, b, c: combine(holds(a, b), c)
        return Step(f, arguments, [(to, "pred")])

    def both(a, b, *c):
        value = holds(a, b)
        return tuple(combine(v, *c) if combine else v for v in (value, ~value))

    return Step(both, arguments, [(t, "pred") for t in to])


def _relation(name, real):
    if name in ("nan", "num"):
        return (
            (lambda a, b: np.isnan(a) | np.isnan(b))
            if name == "nan"
            else lambda a, b: ~np.isnan(a) & ~np.isnan(b)
        )
    if not real:
        return np.not_equal if name == "ne" else ORDERED.get(name) or UNSIGNED[name]
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name == "neu":
        return np.not_equal
    if name.endswith("u"):  # holds where one is NaN
        return lambda a, b: ORDERED[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    return ORDERED[name]


def _move(i):
    """mov packs and unpacks, cvta changes between generic addresses and a space's."""
    to, value, kind = *i.operands, i.parts[-1]
    if i.name == "cvta":
        refuse_unknown(i, ("to", "global", "shared"))
        by = GENERIC_SHARED if "shared" in i.parts else 0
        by = np.uint64(-by & (1 << 64) - 1 if "to" in i.parts else by)
        return Step(lambda a: a + by, [(value, "u64")], [(to, "u64")])
    refuse_unknown(i, ())
    if isinstance(to, tuple):
        size = WIDTHS[kind] // len(to)
        raw, part = dtype_of(f"b{WIDTHS[kind]}"), RAW[size]

        def unpack(v):
            return tuple((v >> raw.type(n * size)).astype(part) for n in range(len(to)))

        return Step(unpack, [(value, f"b{WIDTHS[kind]}")], [(t, f"b{size}") for t in to])
    if isinstance(value, tuple):
        size, raw = WIDTHS[kind] // len(value), RAW[WIDTHS[kind]]

        def pack(*parts):
            out = parts[0].astype(raw)
            for n, v in enumerate(parts[1:], 1):
                out = out | v.astype(raw) << raw.type(n * size)
            return out

        return Step(pack, [(v, f"b{size}") for v in value], [(to, f"b{WIDTHS[kind]}")])
    return Step(None, [(value, kind)], [(to, kind)])


def step_of(i):
    """How an arithmetic instruction is done, or None where it is not one."""
    if i.name == "setp":
        return _compare(i)
    if i.name in ("mov", "cvta"):
        return _move(i)
    if i.name == "cvt":
        from .convert import step_of as conversion

        return conversion(i)
    kind = i.parts[-1]
    if kind not in WIDTHS:
        return None
    if found := _bits_step(i, kind):
        return found
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        return _half_step(i, kind)
    return _float_step(i, kind) if kind[0] == "f" else _integer_step(i, kind)
