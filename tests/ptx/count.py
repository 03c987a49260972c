"""What a profiler counts of the blocks that were run: warps, lanes, sectors, lines, passes through shared memory."""

from collections import defaultdict
from dataclasses import astuple, dataclass

import numpy as np

from .observe import Observer

WARP, SECTOR, LINE, BANKS, WORD = 32, 32, 128, 32, 4


@dataclass
class Traffic:
    """Requests of warps to one memory, summed."""

    requests: int = 0
    lanes: int = 0
    units: int = 0  # sectors of 32 bytes; of shared memory passes
    ideal: int = 0  # sectors that the same bytes would fill; passes if no two words were in one bank
    lines: int = 0  # of 128 bytes: what L1 looks up

    def __add__(self, other):
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Counters(Observer):
    """Of one launch; `touched` and `traffic` when it has run."""

    def __init__(self):
        self.warps = self.lanes = None  # by basic block
        self.traffic = defaultdict(Traffic)  # by (place of the instruction in PTX, space, whether a load)
        self.blocks = self.barriers = 0
        self.sectors_of_blocks = {
            True: 0,
            False: 0,
        }  # each block's distinct ones, added up; by whether loaded
        self._distinct = {True: [], False: []}
        self._of_flight = {True: [], False: []}

    def launched(self, launch):
        self.kernel, self.per_block = launch.kernel, launch.threads // WARP
        n = len(launch.kernel.blocks)
        self.warps, self.lanes = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def flight(self, blocks):
        self._land()
        self.blocks += len(blocks)

    def block_executed(self, number, warps, lanes):
        self.warps[number] += len(warps)
        self.lanes[number] += lanes

    def barrier(self, instruction, warps):
        self.barriers += len(warps)

    def access(self, instruction, space, is_load, addresses, width, active, warps):
        used = active.any(1)
        if not used.all():
            addresses, active, warps = addresses[used], active[used], np.asarray(warps)[used]
        n = int(active.sum())
        if space == "shared":
            passes, least = shared_passes(addresses, active, width)
            found = Traffic(len(addresses), n, passes, least)
        else:
            sectors, new = _distinct_pieces(addresses, active, width, SECTOR)
            ideal, lines = ideal_sectors(addresses, active, width), count_lines(addresses, active, width)
            found = Traffic(len(addresses), n, int(new.sum()), ideal, lines)
            block = np.asarray(warps) // self.per_block
            rows = np.nonzero(new)[0]
            self._of_flight[is_load].append(block[rows] << 44 | sectors[new])
        self.traffic[instruction.ptx_line, space, is_load] += found

    def _land(self):
        """Ends a flight: what its blocks touched, each block's own and all together."""
        for load, parts in self._of_flight.items():
            if not parts:
                continue
            of_blocks = np.unique(np.concatenate(parts))
            self.sectors_of_blocks[load] += len(of_blocks)
            self._distinct[load].append(np.unique(of_blocks & (1 << 44) - 1))
            parts.clear()

    def touched(self, load):
        """Distinct sectors that were loaded, or stored, by all blocks together."""
        self._land()
        parts = self._distinct[load]
        if len(parts) > 1:
            self._distinct[load] = parts = [np.unique(np.concatenate(parts))]
        return len(parts[0]) if parts else 0

    def total(self, space, load=None):
        """The Traffic of one memory: of loads, of stores, or of both."""
        chosen = (
            t for (_, where, loads), t in self.traffic.items() if where == space and load in (None, loads)
        )
        return sum(chosen, Traffic())

    def finished(self):
        """What is left of it between processes: numbers alone."""
        self._land()
        return Counted(
            warps=self.warps,
            issued=int(
                sum(n * len(b.instructions) for n, b in zip(self.warps, self.kernel.blocks, strict=True))
            ),
            active=int(
                sum(n * len(b.instructions) for n, b in zip(self.lanes, self.kernel.blocks, strict=True))
            ),
            blocks=self.blocks,
            barriers=self.barriers,
            loaded=self.touched(True),
            stored=self.touched(False),
            loaded_by_blocks=self.sectors_of_blocks[True],
            stored_by_blocks=self.sectors_of_blocks[False],
            traffic={(s, load): self.total(s, load) for s in ("global", "shared") for load in (True, False)},
        )


@dataclass
class Counted:
    """The totals of one launch's blocks that were run."""

    warps: np.ndarray  # issued to each basic block
    issued: int  # instructions of PTX to warps
    active: int  # lanes in them
    blocks: int
    barriers: int
    loaded: int  # distinct sectors
    stored: int
    loaded_by_blocks: int  # each block's distinct sectors, added up
    stored_by_blocks: int
    traffic: dict

    def both(self, space):
        return self.traffic[space, True] + self.traffic[space, False]


def _distinct_pieces(addresses, active, width, piece):
    """(numbers of aligned pieces that each row touches, sorted; which of them are the first of their kind)."""
    steps = np.arange(0, max(width, 1), piece)
    pieces = ((addresses[:, :, None] + steps) // piece).reshape(len(addresses), -1)
    return _sorted_new(pieces, np.repeat(active, len(steps), axis=1))


def _sorted_new(values, valid):
    ordered = np.sort(np.where(valid, values, -1), axis=1)
    new = ordered >= 0
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    return ordered, new


def ideal_sectors(addresses, active, width):
    """Sectors that each row's distinct bytes would fill, summed."""
    _, new = _sorted_new(addresses, active)
    return int((-(-new.sum(1) * width // SECTOR)).sum())


def count_lines(addresses, active, width):
    return int(_distinct_pieces(addresses, active, width, LINE)[1].sum())


def shared_passes(addresses, active, width):
    """(passes through shared memory, passes if there was no conflict), of some warps' requests.

    In a pass each bank gives one word of four bytes, to all lanes that ask for it. Of 8 (16) bytes a lane the lanes
    of half (a quarter of) a warp go together.
    """
    words = max(1, width // WORD)
    together = WARP // words
    address, valid = addresses.reshape(-1, together), active.reshape(-1, together)
    some = valid.any(1)
    address, valid = address[some], valid[some]
    word = (address[:, :, None] // WORD + np.arange(words)).reshape(len(address), -1)
    ordered, new = _sorted_new(word, np.repeat(valid, words, axis=1))
    rows, columns = np.nonzero(new)
    at = rows * BANKS + ordered[rows, columns] % BANKS
    in_banks = np.bincount(at, minlength=len(address) * BANKS).reshape(-1, BANKS)
    return int(in_banks.max(1).sum()) if len(address) else 0, len(address)
