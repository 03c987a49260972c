"""Memory as kernels reach it: the tensors' own by real addresses, shared memory of each block, and arguments.

Whoever reaches beyond the end of a tensor gets an error that names it. Shared memory holds POISON until somebody
writes to it, so that what nobody has written is not a number, and is told.
"""

import bisect

import numpy as np

from .alu import GENERIC_SHARED, Step, dtype_of, refuse_unknown
from .parse import Immediate, Register, Unsupported

POISON = np.uint16(0xFFB5)  # NaN as float32, float16 and bfloat16, and none that arithmetic makes
UNITS = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8"), 16: np.dtype("c16")}
SPACES = ("global", "shared", "param")
# Where a value is cached, and who else may see it: of no matter here.
HINTS = ("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "relaxed", "weak", "gpu", "cta", "sys")
HINTS += ("L1::evict_last", "L1::evict_first", "L1::no_allocate", "L1::evict_normal", "L1::evict_unchanged")
HINTS += ("L2::64B", "L2::128B", "L2::256B", "L2::evict_first", "L2::evict_last", "L2::cache_hint")


class _At:
    """Bytes of this process, for numpy."""

    def __init__(self, address, count, dtype):
        self.__array_interface__ = dict(data=(address, False), shape=(count,), typestr=dtype.str, version=3)


class Region:
    """A tensor's memory, its end excluded."""

    def __init__(self, start, end):
        self.start, self.end, self._arrays = start, end, {}

    def array(self, dtype):
        if dtype not in self._arrays:
            count = (self.end - self.start) // dtype.itemsize
            self._arrays[dtype] = np.asarray(_At(self.start, count, dtype))
        return self._arrays[dtype]


class Memory:
    """The tensors that kernels may reach, as (address, bytes)."""

    def __init__(self, tensors=()):
        tensors = sorted((start, start + size) for start, size in tensors if size)
        self.regions = [Region(*ends) for ends in tensors]
        self._starts = [region.start for region in self.regions]

    @classmethod
    def of(cls, *tensors):
        """Of torch's tensors: all that their storages hold."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return cls(storages.items())

    def find(self, first, end):
        """The region that holds these bytes, or None."""
        at = bisect.bisect_right(self._starts, first) - 1
        return self.regions[at] if at >= 0 and end <= self.regions[at].end else None

    def parts(self, at, size):
        """(region, places of `at` in it) of all addresses; None for what lies in no region."""
        if region := self.find(int(at.min()), int(at.max()) + size):
            return [(region, slice(None))]
        number = np.searchsorted(np.asarray(self._starts, np.int64), at, "right") - 1
        ends = np.asarray([region.end for region in self.regions] + [0], np.int64)
        number = np.where((number >= 0) & (at + size <= ends[number]), number, -1)
        return [
            (self.regions[n] if n >= 0 else None, np.flatnonzero(number == n))
            for n in np.unique(number).tolist()
        ]

    def describe(self, address, arguments):
        """Where an address lies that is in no tensor, by the nearest that the arguments point to."""
        words = np.frombuffer(arguments[: len(arguments) // 8 * 8], np.uint64).tolist()
        pointed = {}
        for n, word in enumerate(words):
            if region := self.find(word, word):
                pointed.setdefault(region, 8 * n)
        if not pointed:
            return "no argument points to a tensor that is known"

        def distance(region):
            return max(region.start - address, address - region.end, 0)

        near = min(pointed, key=distance)
        place = (
            f"{address - near.end} bytes behind the end"
            if address >= near.end
            else f"{near.start - address} bytes before the start"
            if address < near.start
            else f"{near.end - address} bytes before the end"
        )
        return f"{place} of the tensor of {near.end - near.start} bytes that argument byte {pointed[near]} points to"


class Shared:
    """The shared memory of all blocks in flight, one behind the other."""

    def __init__(self, blocks, size):
        self.size = -(-size // 16) * 16
        self.bytes = np.full(blocks * self.size // 2, POISON, np.uint16).view(np.uint8)
        self.written = np.zeros(blocks * self.size, np.bool_)
        self._views = {d: (self.bytes.view(d), self.written.view(d)) for d in UNITS.values()}

    def read(self, index, unit):
        """Values, and how many of these lanes read what nobody has written."""
        data, _ = self._views[unit]
        values = data.take(index)
        if unit.itemsize > 1 and not (values.view(np.uint16) == POISON).any():
            return values, 0
        octets = index[:, None] * unit.itemsize + np.arange(unit.itemsize)
        return values, int((~self.written[octets]).any(1).sum())

    def write(self, index, values, unit):
        data, written = self._views[unit]
        data[index] = values
        written[index] = _WRITTEN[unit]

    def poison(self, index, unit):
        """As if nobody had ever written there."""
        data, written = self._views[unit]
        data[index] = _POISONED[unit]
        written[index] = np.zeros(1, unit)


_WRITTEN = {unit: np.ones(unit.itemsize, np.uint8).view(unit) for unit in UNITS.values()}
_POISONED = {
    unit: np.full(max(1, unit.itemsize // 2), POISON, np.uint16).view(np.uint8)[: unit.itemsize].view(unit)
    for unit in UNITS.values()
}


def chosen_by(guard):
    """The places of the lanes that do it, or None for all of them."""
    if guard is None:
        return None
    if guard.size == 1:
        return None if guard[0] else np.zeros(0, np.intp)
    places = np.flatnonzero(guard)
    return None if places.size == guard.size else places


def spread(values, chosen, count):
    """Values of some lanes among all; the others' are never read."""
    if chosen is None:
        return values
    out = np.zeros(count, values.dtype)
    out[chosen] = values
    return out


def space_of(i):
    return next((s for p in i.parts[1:] if (s := p.split("::")[0]) in SPACES), "generic")


def address_argument(mem):
    """What an address is computed from, and the function that adds its offset, in 64 bits."""
    base, offset = mem.base, np.int64(mem.offset)
    if isinstance(base, Register) and base.width == 32:
        return (base, "u32"), lambda at: (at.astype(np.int64) + offset) & np.int64(0xFFFFFFFF)
    return (base, "s64"), lambda at: at + offset


def _checked(i):
    known = (*HINTS, *SPACES, *(f"shared::{w}" for w in ("cta",)), "v2", "v4")
    refuse_unknown(i, known)
    if i.parts[-1] not in ("b128",):
        return dtype_of(i.parts[-1])
    raise Unsupported(str(i))


def load(i):
    """ld of one element, or of a vector of them."""
    dtype, (to, mem) = _checked(i), i.operands
    results = to if isinstance(to, tuple) else (to,)
    n, space = len(results), space_of(i)
    unit = UNITS[dtype.itemsize * n]
    if space == "param" and isinstance(mem.base, Immediate):
        at = mem.base.bits + mem.offset

        def constant(flight, lanes, guard):
            values = np.frombuffer(flight.launch.arguments, dtype, n, at)
            return values if n == 1 else tuple(values[j : j + 1] for j in range(n))

        return Step(constant, [], [(r, i.parts[-1]) for r in results], plain=False)
    argument, full_address = address_argument(mem)

    def step(flight, lanes, guard, address):
        chosen, count = chosen_by(guard), flight.n if lanes is None else lanes.size
        if chosen is not None:
            if chosen.size == 0:
                values = np.zeros(1, unit)
                return _columns(values, dtype, n)
            address = address[chosen] if address.size > 1 else address
        values = flight.read(i, space, full_address(address), unit, lanes, chosen)
        if values.size > 1 or chosen is None:
            values = spread(values, chosen, count)
        return _columns(values, dtype, n)

    return Step(step, [argument], [(r, i.parts[-1]) for r in results], plain=False)


def _columns(values, dtype, n):
    if n == 1:
        return values.view(dtype)
    return tuple(np.ascontiguousarray(values.view(dtype).reshape(-1, n).T))


def store(i):
    """st of one element, or of a vector of them."""
    dtype, (mem, of) = _checked(i), i.operands
    sources = of if isinstance(of, tuple) else (of,)
    n, space = len(sources), space_of(i)
    unit = UNITS[dtype.itemsize * n]
    argument, full_address = address_argument(mem)

    def step(flight, lanes, guard, address, *values):
        chosen = chosen_by(guard)
        if chosen is not None:
            if chosen.size == 0:
                return
            address = address[chosen] if address.size > 1 else address
            values = [v[chosen] if v.size > 1 else v for v in values]
        if n > 1:
            rows = np.empty((max(v.size for v in values), n), dtype)
            for j, v in enumerate(values):
                rows[:, j] = v
            whole = rows.view(unit).ravel()
        else:
            whole = np.ascontiguousarray(values[0]).view(unit)
        flight.write(i, space, full_address(address), whole, unit, lanes, chosen)

    return Step(step, [argument, *((s, i.parts[-1]) for s in sources)], [], plain=False)


def resolved(i, space, at):
    """A generic address's space, and the address there."""
    if space != "generic":
        return space, at
    shared = at >= GENERIC_SHARED
    if shared.all():
        return "shared", at - GENERIC_SHARED
    if shared.any():
        raise Unsupported(f"addresses of shared and of global memory at once, in {i}")
    return "global", at


STEPS = {"ld": load, "ldu": load, "st": store}
