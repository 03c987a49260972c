"""Instructions that a warp does as one: shuffles, votes, and products of matrices that lie across its lanes."""

import numpy as np

from . import copies, halves
from .alu import Step, refuse_unknown
from .memory import UNITS, address_argument, chosen_by
from .parse import Unsupported

WARP = 32
LANE = np.arange(WARP)
ROW, COLUMN = LANE // 4, LANE % 4 * 2  # of a matrix of 8 x 8 elements of 16 bits: a lane has two in a row


def by_warp(values, count):
    """[warps, 32] of a value per lane."""
    return np.broadcast_to(values, count).reshape(-1, WARP)


def whole_warps(flight, lanes, guard, i):
    """How many lanes are there, who have to be whole warps."""
    chosen = chosen_by(guard)
    if chosen is None and lanes is None:
        return flight.n
    if chosen is not None or not flight.are_whole_warps(lanes):
        raise Unsupported(f"not all lanes of a warp reach {i}")
    return lanes.size


def _named(flight, lanes, guard, mask, i):
    """How many lanes are there; the instruction's mask has to name whole warps."""
    if (mask != np.uint32(0xFFFFFFFF)).any():
        raise Unsupported(f"a mask that does not name the whole warp: {i}")
    return whole_warps(flight, lanes, guard, i)


def _shuffle(i):
    refuse_unknown(i, ("sync", "up", "down", "bfly", "idx"))
    mode, to, (value, by, clamp, mask) = i.parts[2], i.operands[0], i.operands[1:]
    pair = isinstance(to, tuple)

    def step(flight, lanes, guard, v, b, c, named):
        count = _named(flight, lanes, guard, named, i)
        v, b, c = by_warp(v, count), by_warp(b, count).astype(np.int64), by_warp(c, count).astype(np.int64)
        segment = c >> 8 & 31
        first, last = LANE & segment, (LANE & segment) | (c & 31 & ~segment)
        source = {"up": LANE - b, "down": LANE + b, "bfly": LANE ^ b, "idx": first | (b & 31 & ~segment)}[
            mode
        ]
        inside = source >= last if mode == "up" else source <= last
        out = np.take_along_axis(v, np.where(inside, source, LANE), 1).ravel()
        return (out, np.ascontiguousarray(inside).ravel()) if pair else out

    results = [(to[0], "b32"), (to[1], "pred")] if pair else [(to, "b32")]
    return Step(step, [(value, "b32"), (by, "u32"), (clamp, "u32"), (mask, "u32")], results, plain=False)


def _reduce(i):
    refuse_unknown(i, ("sync", "add", "min", "max", "and", "or", "xor"))
    to, value, mask = i.operands
    of = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
    f, kind = (of | {"xor": np.bitwise_xor})[i.parts[2]], i.parts[-1]

    def step(flight, lanes, guard, v, named):
        v = by_warp(v, _named(flight, lanes, guard, named, i))
        return np.repeat(f.reduce(v, axis=1, dtype=v.dtype), WARP)

    return Step(step, [(value, kind), (mask, "u32")], [(to, kind)], plain=False)


def _vote(i):
    refuse_unknown(i, ("sync", "any", "all", "uni", "ballot"))
    to, value, mask = i.operands
    mode = i.parts[2]

    def step(flight, lanes, guard, v, named):
        v = by_warp(v, _named(flight, lanes, guard, named, i))
        if mode == "ballot":
            out = np.packbits(np.ascontiguousarray(v), axis=1, bitorder="little").view(np.uint32).ravel()
        else:
            out = {"any": v.any(1), "all": v.all(1), "uni": v.all(1) | ~v.any(1)}[mode]
        return np.repeat(out, WARP)

    return Step(
        step, [(value, "pred"), (mask, "u32")], [(to, "b32" if mode == "ballot" else "pred")], plain=False
    )


def _active_mask(i):
    def step(flight, lanes, guard):
        if lanes is None:
            return np.array([0xFFFFFFFF], np.uint32)
        there = np.zeros(flight.n, bool)
        there[lanes] = True
        bits = np.packbits(there.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32).ravel()
        return bits[lanes // WARP]

    return Step(step, [], [(i.operands[0], "b32")], plain=False)


def _registers(operand):
    return operand if isinstance(operand, tuple) else (operand,)


def _load_matrices(i):
    """ldmatrix: eight lanes give the rows of each matrix, a row is 16 bytes."""
    refuse_unknown(i, ("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"))
    to, mem = _registers(i.operands[0]), i.operands[1]
    argument, full_address = address_argument(mem)
    giving, turned = LANE < 8 * len(to), "trans" in i.parts

    def step(flight, lanes, guard, address):
        count = whole_warps(flight, lanes, guard, i)
        chosen = np.flatnonzero(np.tile(giving, count // WARP))
        at = full_address(np.broadcast_to(address, count)[chosen])
        rows = flight.read(i, "shared", at, UNITS[16], lanes, chosen)
        matrices = rows.view(np.uint16).reshape(-1, len(to), 8, 8)
        matrices = matrices.swapaxes(2, 3) if turned else matrices
        return _pairs(matrices)

    return Step(step, [argument], [(r, "b32") for r in to], plain=False)


def _pairs(matrices):
    """What the lanes have of [warps, n, 8, 8]: a register for each of the n, or the register alone."""
    low, high = (matrices[:, :, ROW, COLUMN + j].astype(np.uint32) for j in (0, 1))
    both = low | high << np.uint32(16)
    out = tuple(np.ascontiguousarray(both[:, n]).ravel() for n in range(both.shape[1]))
    return out if len(out) > 1 else out[0]


def _matrices(registers, count):
    """[warps, n, 8, 8] of 16 bits from n registers of all lanes."""
    out = np.empty((count // WARP, len(registers), 8, 8), np.uint16)
    for n, v in enumerate(registers):
        for j in (0, 1):
            out[:, n, ROW, COLUMN + j] = (by_warp(v, count) >> np.uint32(16 * j)).astype(np.uint16)
    return out


def _store_matrices(i):
    refuse_unknown(i, ("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"))
    mem, of = i.operands[0], _registers(i.operands[1])
    argument, full_address = address_argument(mem)
    giving, turned = LANE < 8 * len(of), "trans" in i.parts

    def step(flight, lanes, guard, address, *values):
        count = whole_warps(flight, lanes, guard, i)
        chosen = np.flatnonzero(np.tile(giving, count // WARP))
        at = full_address(np.broadcast_to(address, count)[chosen])
        matrices = _matrices(values, count)
        matrices = matrices.swapaxes(2, 3) if turned else matrices
        rows = np.ascontiguousarray(matrices).view(UNITS[16]).ravel()
        flight.write(i, "shared", at, rows, UNITS[16], lanes, chosen)

    return Step(step, [argument, *((r, "b32") for r in of)], [], plain=False)


def _turn_matrix(i):
    if i.opcode != "movmatrix.sync.aligned.m8n8.trans.b16":
        raise Unsupported(str(i))

    def step(flight, lanes, guard, value):
        return _pairs(_matrices([value], whole_warps(flight, lanes, guard, i)).swapaxes(2, 3))

    return Step(step, [(i.operands[1], "b32")], [(i.operands[0], "b32")], plain=False)


class _Halves:
    """Factors of 16 bits: a register holds two neighbours along k."""

    def __init__(self, kind):
        self.widen = halves.FORMATS[kind].widen

    def fill(self, matrix, n, registers, count, left):
        for r, v in enumerate(registers):
            pair = self.widen(np.ascontiguousarray(by_warp(v, count)).view(np.uint16).reshape(-1, WARP, 2))
            for j in (0, 1):
                if left:
                    matrix[:, ROW + r % 2 * 8, COLUMN + j + r // 2 * 8] = pair[:, :, j]
                else:
                    matrix[:, COLUMN + j + r * 8, ROW] = pair[:, :, j]


class _Tf32:
    """Factors of 32 bits, of which the last 13 are not looked at."""

    def fill(self, matrix, n, registers, count, left):
        for r, v in enumerate(registers):
            value = (by_warp(v, count) & np.uint32(0xFFFFE000)).view(np.float32)
            if left:
                matrix[:, ROW + r % 2 * 8, LANE % 4 + r // 2 * 4] = value
            else:
                matrix[:, LANE % 4 + r * 4, ROW] = value


PRODUCTS = {
    f"m16n8k{k}.row.col.f32.{kind}.{kind}.f32": (k, _Halves(kind))
    for k in (8, 16)
    for kind in ("f16", "bf16")
}
PRODUCTS |= {f"m16n8k{k}.row.col.f32.tf32.tf32.f32": (k, _Tf32()) for k in (4, 8)}


def _multiply_matrices(i):
    """mma: d = a b + c of a warp. Products are exact and what their sum has too much for float32 is cut off,
    as tensor cores do: worse than to nearest, which a bound has to bear."""
    what = i.opcode.removeprefix("mma.sync.aligned.")
    if what not in PRODUCTS:
        raise Unsupported(str(i))
    k, factors = PRODUCTS[what]
    d, a, b, c = map(_registers, i.operands)

    def step(flight, lanes, guard, *values):
        count = whole_warps(flight, lanes, guard, i)
        left = np.empty((count // WARP, 16, k), np.float64)
        right, total = np.empty((count // WARP, k, 8)), np.empty((count // WARP, 16, 8))
        factors.fill(left, k, values[: len(a)], count, True)
        factors.fill(right, k, values[len(a) : len(a) + len(b)], count, False)
        for r, v in enumerate(values[len(a) + len(b) :]):
            total[:, ROW + r // 2 * 8, COLUMN + r % 2] = by_warp(v, count)
        total = left @ right + total
        near = total.astype(np.float32)
        cut = np.where(np.abs(near) > np.abs(total), np.nextafter(near, np.float32(0)), near)
        return tuple(np.ascontiguousarray(cut[:, ROW + r // 2 * 8, COLUMN + r % 2]).ravel() for r in range(4))

    bits = [(r, "b32") for r in (*a, *b)]
    return Step(step, bits + [(r, "f32") for r in c], [(r, "f32") for r in d], plain=False)


def _nothing(i):
    """Orders memory, or brings it near: of no matter here."""
    return Step(lambda flight, lanes, guard: None, [], [], plain=False)


STEPS = copies.STEPS | {
    "shfl": _shuffle,
    "redux": _reduce,
    "vote": _vote,
    "activemask": _active_mask,
    "ldmatrix": _load_matrices,
    "stmatrix": _store_matrices,
    "movmatrix": _turn_matrix,
    "mma": _multiply_matrices,
    "bar": _nothing,  # bar.warp.sync: any other bar ends a block
    "fence": _nothing,
    "membar": _nothing,
    "prefetch": _nothing,
}
