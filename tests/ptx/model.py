"""From counts to a bound on time: how long each part of a GPU needs for one launch, if nothing held it up.

A launch is predicted to take as long as the part that needs longest. Of the multiprocessors the one with most blocks is
asked, since blocks are not divided. L1 is taken to keep what a block has loaded, where it has room for that; L2 to keep
what several blocks load. What a launch costs to begin, and what the last launch left in L2, is nobody's time here.
"""

import re
from dataclasses import dataclass, field

from . import sass
from .count import SECTOR, WARP

PARTS = ("dram", "l2", "issue", "fma", "alu", "special", "half", "tensor", "shared", "latency")
# Maps that a perfect kernel reads or writes, each byte once; of others the distinct bytes that they touched.
MAPS = {"cascade_fwd": 2, "cascade_bwd": 5, "gate_fwd": 3, "gate_bwd": 3, "acmix_fwd": 4, "acmix_bwd": 7}


@dataclass
class Measured:
    """One launch: what was counted of some of its blocks, and what it was compiled to."""

    kernel: str
    grid: tuple
    threads: int
    shared: int  # bytes of a block, static and dynamic
    counted: object  # count.Counted
    made: dict  # machine instructions of the blocks that were run, by class
    products: float  # multiply-adds of the tensor cores
    alone: float  # clocks of one warp by itself
    registers: int
    spilled: int

    @property
    def blocks(self):
        x, y, z = self.grid
        return x * y * z

    @property
    def scale(self):
        return self.blocks / self.counted.blocks

    @property
    def instructions(self):
        """Issued to warps, of the whole launch."""
        return sum(self.made.values()) * self.scale


def measured(launch, counted, blocks, kernel, resources):
    """A launch as the model takes it; `blocks` and `resources` are its machine code and what ptxas said of it."""
    counts = sass.issued(blocks, kernel, counted.warps)
    warps = counted.blocks * launch.threads // WARP
    return Measured(
        kernel=launch.name,
        grid=launch.grid,
        threads=launch.threads,
        shared=launch.shared + kernel.static_shared,
        counted=counted,
        made=sass.by_class(blocks, counts),
        products=sass.tensor_products(blocks, counts),
        alone=sass.alone(blocks, counts, warps),
        registers=resources[0],
        spilled=resources[1],
    )


def bounds(m, gpu):
    """({part: microseconds}, blocks that a multiprocessor holds at once, what limits them)."""
    resident, limit = gpu.resident(m.threads, m.registers, m.shared)
    if not resident:
        raise ValueError(
            f"{m.kernel}: a block of {m.threads} threads and {m.shared} bytes does not fit a {gpu.name}"
        )
    busiest = -(-m.blocks // gpu.sms)
    made, all_of = m.made, m.counted.both
    passes = all_of("shared").units + all_of("global").lines + made.get("shuffle", 0)
    clocks = {
        "issue": sum(made.values()) / gpu.issue,
        "fma": max(
            (made.get("fma", 0) + made.get("fp32", 0) + made.get("imad", 0)) / gpu.fma,
            made.get("imad", 0) / gpu.multiply,
        ),
        "alu": made.get("alu", 0) / gpu.alu,
        "special": made.get("special", 0) / gpu.special,
        "half": made.get("half", 0) / gpu.half,
        "tensor": m.products / gpu.tensor,
        "shared": passes,
    }
    out = {part: n / m.counted.blocks * busiest / gpu.clocks for part, n in clocks.items()}
    out["dram"] = (m.counted.loaded + m.counted.stored) * SECTOR * m.scale / gpu.dram / 1e3
    out["l2"] = _beyond_l1(m, gpu, min(resident, busiest)) * SECTOR * m.scale / gpu.l2 / 1e3
    out["latency"] = m.alone * -(-busiest // resident) / gpu.clocks
    return {part: out[part] for part in PARTS}, resident, limit


def _beyond_l1(m, gpu, resident):
    """Sectors that reach L2."""
    room = gpu.first_level * 1024 - resident * m.shared
    own = m.counted.loaded_by_blocks * SECTOR / m.counted.blocks
    loads = m.counted.traffic["global", True].units
    return m.counted.traffic["global", False].units + (
        m.counted.loaded_by_blocks if resident * own <= room else loads
    )


@dataclass
class Row:
    """All launches of one kernel in a call; or of all of them."""

    kernel: str
    launches: int = 0
    times: dict = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    predicted: float = 0.0
    perfect: float = 0.0
    by_part: dict = field(default_factory=dict)  # microseconds that each part binds for
    instructions: float = 0.0
    fma: float = 0.0
    sectors: list = field(default_factory=lambda: [0.0, 0.0])  # and the ideal
    passes: list = field(default_factory=lambda: [0.0, 0.0])
    facts: dict = field(default_factory=dict)  # of the longest launch

    def add(self, times, predicted=None, perfect=0.0, part=None):
        part = part or max(times, key=times.get)
        predicted = times[part] if predicted is None else predicted
        for name, us in times.items():
            self.times[name] += us
        self.by_part[part] = self.by_part.get(part, 0.0) + predicted
        self.predicted += predicted
        self.perfect += perfect
        self.launches += 1

    @property
    def bound_by(self):
        return max(self.by_part, key=self.by_part.get)


def rows(launches, products, gpu, problem):
    """Rows of a call on a GPU: each kernel's, the vendor's products and copies, and kernel=all.

    Args:
        launches: [Measured].
        products: [(name, bytes, multiply-adds)] of what torch's own kernels did.
        problem: has `least_bytes` and `outputs`.
    """
    out, dram = {}, {}
    for m in launches:
        name = short_name(m.kernel)
        row = out.setdefault(name, Row(name))
        times, resident, limit = bounds(m, gpu)
        if not row.facts or times[max(times, key=times.get)] > row.facts["us"]:
            row.facts = _facts(m, times, resident, limit)
        row.add(times)
        dram[name] = dram.get(name, 0.0) + times["dram"]
        row.instructions += m.instructions * WARP
        row.fma += m.made.get("fma", 0) * m.scale * WARP
        for into, space in ((row.sectors, "global"), (row.passes, "shared")):
            traffic = m.counted.both(space)
            into[0] += traffic.units * m.scale
            into[1] += traffic.ideal * m.scale
    for name, row in out.items():
        row.perfect = _perfect(name, dram, gpu, problem)
    for name, moved, flops in products:
        us = {"dram": moved / gpu.dram / 1e3, "tensor": 2 * flops / _library(gpu, problem) / 1e6}
        row = out.setdefault(name, Row(name))
        row.add(us, perfect=max(us.values()))
    total = Row("all")
    for row in out.values():
        total.add(row.times, row.predicted, row.perfect, row.bound_by)
        total.instructions += row.instructions
        total.fma += row.fma
        for into, of in ((total.sectors, row.sectors), (total.passes, row.passes)):
            into[:] = [a + b for a, b in zip(into, of, strict=True)]
    total.launches = sum(row.launches for row in out.values())
    return [*out.values(), total]


def _library(gpu, problem):
    return gpu.library if problem.element == 2 else gpu.sms * gpu.fma * 2 * WARP * gpu.ghz / 1e3


def _perfect(name, dram, gpu, problem):
    """Microseconds of the bytes that must be moved; what several kernels share falls to them as their bytes do."""
    part = part_of(name, problem.op)
    if part is None:
        return dram[name]
    together = sum(us for other, us in dram.items() if part_of(other, problem.op) == part)
    return problem.least_bytes(MAPS[part]) / gpu.dram / 1e3 * dram[name] / together


def part_of(kernel, op):
    """What a kernel of ours is a part of, among MAPS; None where it moves little, or is a peer's."""
    if op.startswith("acmix"):
        return (
            None
            if re.match("acmix_(shift_table|shift_back_table|compose|sum|query_end|shift_end)", kernel)
            else "acmix_" + op.split("_")[-1]  # a half's maps are those of both
        )
    if not op.startswith("lska") or re.match("lska_(sums|band_tables)", kernel):
        return None
    backward = "bwd" in kernel or (op == "lska_bwd" and "fwd" not in kernel)
    return ("gate" if "gate" in kernel else "cascade") + ("_bwd" if backward else "_fwd")


def short_name(symbol):
    """The function's name in a mangled symbol."""
    at = 3 if symbol.startswith("_ZN") else 2
    if not symbol.startswith("_Z"):
        return symbol
    name = symbol
    while at < len(symbol) and symbol[at].isdigit():
        end = at
        while symbol[end].isdigit():
            end += 1
        length = int(symbol[at:end])
        name, at = symbol[end : end + length], end + length
    return name


def _facts(m, times, resident, limit):
    return dict(
        us=max(times.values()),
        grid="x".join(map(str, m.grid)),
        threads=m.threads,
        registers=m.registers,
        spilled=m.spilled,
        shared=m.shared,
        resident_blocks=resident,
        warps_per_sm=resident * m.threads // WARP,
        limit=limit,
        blocks_run=m.counted.blocks,
        lanes=m.counted.active / max(1, m.counted.issued),
        barriers=m.counted.barriers / max(1, m.counted.blocks * m.threads // WARP),
    )
