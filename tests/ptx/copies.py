"""cp.async: bytes that land in shared memory when the thread that asked for them waits, and no sooner.

Until then what they replace is poison: whoever reads without waiting finds what nobody has written.
"""

from dataclasses import dataclass

import numpy as np

from .alu import Step, refuse_unknown
from .memory import HINTS, UNITS, address_argument, chosen_by
from .parse import Immediate, Unsupported


@dataclass
class Copy:
    """What one instruction has under way."""

    lanes: np.ndarray  # who asked, by their number in the flight
    group: np.ndarray  # of each lane: how many it had committed
    index: np.ndarray  # where to, in units
    values: np.ndarray
    unit: np.dtype


class Copies:
    """Those of a flight."""

    def __init__(self, n):
        self.committed, self.pending = np.zeros(n, np.int64), []

    def commit(self, lanes):
        self.committed[lanes] += 1

    def land(self, shared, lanes, most):
        """What these lanes wait for: all groups but their latest `most`; None for what has no group, too."""
        limit = np.full(self.committed.size, -1, np.int64)
        limit[lanes] = np.iinfo(np.int64).max if most is None else self.committed[lanes] - most
        left = []
        for copy in self.pending:
            lands = copy.group < limit[copy.lanes]
            shared.write(copy.index[lands], copy.values[lands], copy.unit)
            if not lands.all():
                rest = ~lands
                parts = (copy.lanes[rest], copy.group[rest], copy.index[rest], copy.values[rest])
                left.append(Copy(*parts, copy.unit))
        self.pending = left


def _ids(flight, lanes, guard):
    """The lanes at hand, by their number in the flight."""
    everybody = np.arange(flight.n) if lanes is None else lanes
    chosen = chosen_by(guard)
    return everybody if chosen is None else everybody[chosen]


def _control(i):
    """commit_group, wait_group N, wait_all."""
    what = i.parts[2]
    most = i.operands[0].bits if what == "wait_group" else None

    def step(flight, lanes, guard):
        ids = _ids(flight, lanes, guard)
        if what == "commit_group":
            flight.copies.commit(ids)
        else:
            flight.copies.land(flight.shared, ids, most)

    return Step(step, [], [], plain=False)


def copy_async(i):
    if i.parts[1] != "async":
        raise Unsupported(str(i))
    if i.parts[2] in ("commit_group", "wait_group", "wait_all"):
        return _control(i)
    refuse_unknown(i, ("async", "ca", "cg", "shared", "shared::cta", "global", *HINTS))
    if not {"ca", "cg"} & set(i.parts) or "L2::cache_hint" in i.parts or not 3 <= len(i.operands) <= 4:
        raise Unsupported(str(i))
    (to, to_address), (of, of_address) = map(address_argument, i.operands[:2])
    size = i.operands[2].bits
    given = i.operands[3] if len(i.operands) > 3 else Immediate(size)
    unit = UNITS[size]

    def step(flight, lanes, guard, target, origin, count):
        ids = _ids(flight, lanes, guard)
        if ids.size == 0:
            return
        chosen = chosen_by(guard)
        target, origin, count = (
            np.broadcast_to(v, flight.n if lanes is None else lanes.size)[
                slice(None) if chosen is None else chosen
            ]
            for v in (target, origin, count)
        )
        values = _read(flight, i, of_address(origin), np.minimum(count, size), size, ids)
        index = flight.shared_index(i, to_address(target), unit, ids, None, False)
        flight.shared.poison(index, unit)
        flight.copies.pending.append(Copy(ids, flight.copies.committed[ids], index, values, unit))

    return Step(step, [to, of, (given, "u32")], [], plain=False)


def _read(flight, i, origin, count, size, ids):
    """What is at `origin`, `count` bytes of each lane's `size`; zero behind them, where nothing is read."""
    unit = UNITS[size]
    values = np.zeros(ids.size, unit)
    if (whole := np.flatnonzero(count == size)).size:
        values[whole] = flight.read(i, "global", origin[whole], unit, ids[whole], None)
    octets = values.view(np.uint8).reshape(ids.size, size)
    if (origin[(count > 0)] % size).any():
        raise RuntimeError(f"an address that is not a multiple of {size}")
    for n in range(size):
        if (some := np.flatnonzero((count > n) & (count < size))).size:
            octets[some, n] = flight.read(i, "global", origin[some] + n, UNITS[1], ids[some], None)
    return values


STEPS = {"cp": copy_async}
