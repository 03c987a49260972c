"""Runs a kernel's PTX: the threads of some blocks together, the lowest basic block first.

Threads that parted meet again as early as they can, as each warp does it for itself, so that what is issued to
warps can be counted. At a barrier a block's threads wait until all of them are there.
"""

import time

import numpy as np

from .copies import Copies
from .memory import Memory, Shared, resolved
from .parse import Unsupported
from .translate import stored_dtype, translated

WARP = 32
DONE, WAITING = (
    1 << 29,
    1 << 30,
)  # in place of a lane's basic block; WAITING + n: at the barrier before block n
MOST_STEPS = 1 << 22  # basic blocks of a flight; more is a loop without an end


class Launch:
    """A kernel with its grid (x, y, z), threads of a block, dynamic shared memory and arguments.

    Args:
        arguments: bytes, as they lie in the kernel's parameters.
        observer: an `observe.Observer`.
        memory: the tensors that may be reached, a `memory.Memory`.
        allow_unwritten: shared memory that nobody has written may be read; `unwritten` counts the lanes that did.
    """

    def __init__(
        self,
        kernel,
        grid,
        threads,
        shared_bytes,
        arguments,
        observer=None,
        memory=None,
        allow_unwritten=False,
    ):
        if threads % WARP or not 0 < threads <= 1024:
            raise Unsupported(f"{threads} threads; expected whole warps, 1024 at most")
        if len(arguments) != kernel.parameter_bytes:
            raise ValueError(
                f"{kernel.name}: {len(arguments)} bytes of arguments; expected {kernel.parameter_bytes}"
            )
        self.kernel, self.grid, self.threads, self.shared_bytes = kernel, tuple(grid), threads, shared_bytes
        self.arguments, self.observer, self.memory = bytes(arguments), observer, memory or Memory()
        self.allow_unwritten, self.unwritten, self.seconds = allow_unwritten, 0, 0.0

    def run(self, blocks=None, lanes=8192):
        """The blocks of these numbers, x fastest, or all; about so many lanes at a time."""
        start = time.perf_counter()
        x, y, z = self.grid
        blocks = range(x * y * z) if blocks is None else list(blocks)
        at_once = max(1, lanes // self.threads)
        if self.observer:
            self.observer.launched(self)
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), at_once):
                Flight(self, blocks[first : first + at_once]).run()
        self.seconds = time.perf_counter() - start


class Flight:
    """Some blocks of a launch under way. `lanes` is always None for all there ever were, or their numbers."""

    def __init__(self, launch, blocks):
        self.launch, self.observer, self.blocks = launch, launch.observer, len(blocks)
        self.n, kernel = launch.threads * len(blocks), launch.kernel
        size = -(-kernel.static_shared // 16) * 16 + launch.shared_bytes
        self.shared_bytes = size
        self.shared = Shared(len(blocks), size)
        first = np.repeat(np.arange(len(blocks)) * self.shared.size, launch.threads)
        self.first_byte = first if len(blocks) > 1 else None  # of each lane's block
        self.copies = Copies(self.n)
        # One element for all lanes, told from values by which array it is.
        self.undefined = {d: np.full(1, -1).astype(d) for d in set(map(stored_dtype, kernel.registers))}
        self.R = [self.undefined[stored_dtype(r)] for r in kernel.registers]
        self._specials(blocks)
        self.owned = {}  # arrays that no other register shares, by register
        self.at = np.zeros(
            self.n, np.int64
        )  # each lane's basic block, DONE or WAITING, where lanes have parted
        self._blocks = blocks
        self._base_of = self._base = None

    def _specials(self, blocks):
        launch = self.launch
        (x, y, _), threads = launch.grid, launch.threads
        number = np.repeat(np.asarray(blocks, np.int64), threads)
        thread = np.tile(np.arange(threads, dtype=np.uint32), self.blocks)

        def same(value):
            return np.array([value], np.uint32)

        known = {"%tid.x": thread, "%laneid": thread % np.uint32(WARP), "%warpid": thread // np.uint32(WARP)}
        known |= {"%tid.y": same(0), "%tid.z": same(0), "%ntid.x": same(threads)}
        known |= {"%ntid.y": same(1), "%ntid.z": same(1)}
        place = {"x": number % x, "y": number // x % y, "z": number // x // y}
        for axis, size in zip("xyz", launch.grid, strict=True):
            known[f"%nctaid.{axis}"] = same(size)
            at = place[axis].astype(np.uint32)
            known[f"%ctaid.{axis}"] = at[:1] if (at == at[0]).all() else at
        for name, index in launch.kernel.specials.items():
            if name not in known:
                raise Unsupported(f"{name} in {launch.kernel.name}")
            self.R[index] = known[name]

    def run(self):
        code = translated(self.launch.kernel)
        if self.observer:
            self.observer.flight(self._blocks)
        number, lanes = 0, None
        for _ in range(MOST_STEPS):
            block = code[number]
            if lanes is None:
                self.owned.clear()
            if self.observer:
                self._observe_block(number, block, lanes)
            try:
                guard = block.function(self, self.R, lanes)
            except Exception as error:
                self._explain(error, block)
                raise
            number, lanes = self._next(number, block, lanes, guard)
            if number >= DONE:
                return
        raise RuntimeError(f"{self.launch.kernel.name}: a block that does not end")

    # Control flow.

    def _next(self, number, block, lanes, guard):
        after, end = number + 1, block.end
        if end is None or end.name == "bra":
            if guard is None or guard.size == 1:
                taken = end is not None and (guard is None or bool(guard[0]))
                return self._together(block.target if taken else after, lanes)
            if guard.all() or not guard.any():
                return self._together(block.target if guard[0] else after, lanes)
            self._place(lanes, np.where(guard, block.target, after))
        elif end.name in ("ret", "exit"):
            if guard is None or guard.all():
                if lanes is None:
                    return DONE, None
                self._place(lanes, DONE)
            else:
                self._place(lanes, np.where(guard, DONE, after))
        else:
            if (
                end.opcode not in ("bar.sync", "barrier.sync", "barrier.sync.aligned")
                or guard is not None
                or (len(end.operands) != 1 or getattr(end.operands[0], "bits", None) != 0)
            ):
                raise Unsupported(f"{end} in {self.launch.kernel.name}")
            if lanes is None:
                return after, None
            self._place(lanes, WAITING + after)
        return self._lowest()

    def _together(self, number, lanes):
        """All lanes at hand go on to the same block."""
        if lanes is None or number < self.rest:
            return number, lanes
        self._place(lanes, number)
        return self._lowest()

    def _place(self, lanes, at):
        if lanes is None:
            self.at[:] = at
        else:
            self.at[lanes] = at

    def _lowest(self):
        """The lowest block where lanes are, and who; `rest` is the lowest of the others."""
        lowest = int(self.at.min())
        if lowest >= DONE:
            lowest = self._open_barriers()
            if lowest >= DONE:
                return DONE, None
        here = self.at == lowest
        lanes = np.flatnonzero(here)
        if lanes.size == self.n:
            return lowest, None
        self.rest = int(self.at[~here].min())
        return lowest, lanes

    def _open_barriers(self):
        """Of the blocks all of whose threads wait; an error where some wait for others that never come."""
        at = self.at.reshape(self.blocks, -1)
        waits = at >= WAITING
        some = waits.any(1)
        if (wrong := np.flatnonzero(some & ~waits.all(1))).size:
            raise RuntimeError(self._divergent(at[wrong[0]], "have ended", "wait"))
        if (wrong := np.flatnonzero(some & (at != at[:, :1]).any(1))).size:
            raise RuntimeError(self._divergent(at[wrong[0]], "wait at one barrier", "at another"))
        self.at[self.at >= WAITING] -= WAITING
        return int(self.at.min())

    def _divergent(self, at, these, those):
        n = int((at == at.min()).sum())
        return f"{self.launch.kernel.name}: divergent barrier: {n} threads {these}, {at.size - n} {those}"

    def _explain(self, error, block):
        """Adds which instruction it was: a function's line is an instruction."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code is not block.function.__code__:
            trace = trace.tb_next
        line = trace.tb_lineno - 1 if trace is not None else 0
        at = block.instructions[line] if line < len(block.instructions) else None
        error.add_note(f"in {self.launch.kernel.name}: {at}") if hasattr(error, "add_note") else None

    # Registers.

    def keep(self, lanes, values):
        """Values of these lanes for other blocks. An array that a register shares with none is changed in place."""
        for index, value in values:
            old = self.R[index]
            if old is self.undefined[old.dtype]:
                if value.size == 1:
                    self.R[index] = value
                    continue
                old = np.zeros(self.n, value.dtype)
            elif old.size == 1:
                if value.size == 1 and old.tobytes() == value.tobytes():
                    continue
                old = np.repeat(old, self.n)
            elif self.owned.get(index) is not old:
                old = old.copy()
            old[lanes] = value
            self.R[index] = self.owned[index] = old

    def are_whole_warps(self, lanes):
        ordered = lanes.reshape(-1, WARP) if lanes.size % WARP == 0 else None
        return ordered is not None and bool(
            ((ordered - ordered[:, :1] == _LANE) & (ordered[:, :1] % WARP == 0)).all()
        )

    # Memory.

    def read(self, i, space, at, unit, lanes, chosen):
        """Values at addresses: of one lane each, or one for all."""
        space, at = resolved(i, space, at)
        if space == "shared":
            index = self.shared_index(i, at, unit, lanes, chosen, True)
            values, unwritten = self.shared.read(index, unit)
            if unwritten:
                lanes_there = self.n if lanes is None else lanes.size
                self._unwritten(
                    i, unwritten if index.size > 1 else lanes_there if chosen is None else chosen.size
                )
            return values
        if space == "param":
            octets = np.frombuffer(self.launch.arguments + bytes(16), np.uint8)
            return np.stack([octets[at + n] for n in range(unit.itemsize)], -1).view(unit).ravel()
        self._observe(i, "global", True, at, unit, lanes, chosen)
        self._aligned(i, at, unit)
        parts = self.launch.memory.parts(at, unit.itemsize)
        if len(parts) == 1 and parts[0][0] is not None:
            region = parts[0][0]
            return region.array(unit).take(self._places(region, at, unit))
        out = np.empty(at.size, unit)
        for region, places in parts:
            self._inside(region, at[places], unit, "read", i)
            out[places] = region.array(unit).take(self._places(region, at[places], unit))
        return out

    def write(self, i, space, at, values, unit, lanes, chosen):
        space, at = resolved(i, space, at)
        if values.size > 1 and at.size == 1:
            at = np.broadcast_to(at, values.size)
        if space == "shared":
            index = self.shared_index(i, at, unit, lanes, chosen, False)
            return self.shared.write(index, values, unit)
        if space != "global":
            raise Unsupported(str(i))
        self._observe(i, "global", False, at, unit, lanes, chosen)
        self._aligned(i, at, unit)
        for region, places in self.launch.memory.parts(at, unit.itemsize):
            self._inside(region, at[places], unit, "written", i)
            some = values[places] if values.size > 1 else values
            region.array(unit)[self._places(region, at[places], unit)] = some

    def shared_index(self, i, at, unit, lanes, chosen, is_load):
        """The units' places in the shared memory of all blocks in flight."""
        self._observe(i, "shared", is_load, at, unit, lanes, chosen)
        self._aligned(i, at, unit)
        if int(at.max()) + unit.itemsize > self.shared_bytes or int(at.min()) < 0:
            far = int(at.max() if int(at.max()) + unit.itemsize > self.shared_bytes else at.min())
            raise IndexError(
                f"shared memory of {self.shared_bytes} bytes, and {unit.itemsize} bytes are "
                f"{'read' if is_load else 'written'} at {far}: {i}"
            )
        if self.first_byte is not None:
            if lanes is None:
                base = self.first_byte
            else:
                if self._base_of is not lanes:
                    self._base_of, self._base = lanes, self.first_byte[lanes]
                base = self._base
            at = at + (base if chosen is None else base[chosen])
        return at >> (unit.itemsize.bit_length() - 1)

    def _aligned(self, i, at, unit):
        if unit.itemsize > 1 and (np.bitwise_or.reduce(at) & (unit.itemsize - 1)):
            raise RuntimeError(f"an address that is not a multiple of {unit.itemsize}: {i}")

    def _places(self, region, at, unit):
        return (at - region.start) >> (unit.itemsize.bit_length() - 1)

    def _inside(self, region, at, unit, verb, i):
        if region is None:
            address, launch = int(at[0]), self.launch
            where = launch.memory.describe(address, launch.arguments)
            raise IndexError(
                f"{launch.kernel.name}: {unit.itemsize} bytes are {verb} at {address:#x}, {where}: {i}"
            )

    def _unwritten(self, i, lanes):
        self.launch.unwritten += lanes
        if not self.launch.allow_unwritten:
            raise RuntimeError(
                f"{self.launch.kernel.name}: {lanes} lanes read shared memory that nobody has written: {i}"
            )

    # What the observer is told.

    def _observe_block(self, number, block, lanes):
        warps = np.arange(self.n // WARP) if lanes is None else np.unique(lanes // WARP)
        self.observer.block_executed(number, warps, self.n if lanes is None else lanes.size)
        if block.end is not None and block.end.name in ("bar", "barrier"):
            self.observer.barrier(block.end, warps)

    def _observe(self, i, space, is_load, at, unit, lanes, chosen):
        if not self.observer:
            return
        ids = np.arange(self.n) if lanes is None else lanes
        ids = ids if chosen is None else ids[chosen]
        addresses, active = np.zeros(self.n, np.int64), np.zeros(self.n, bool)
        addresses[ids], active[ids] = at, True
        addresses, active = addresses.reshape(-1, WARP), active.reshape(-1, WARP)
        some = active.any(1)
        warps = np.flatnonzero(some)
        self.observer.access(i, space, is_load, addresses[some], unit.itemsize, active[some], warps)


_LANE = np.arange(WARP)
