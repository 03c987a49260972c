"""The rates that the profile assumes, in one table, and which blocks a multiprocessor holds at once.

Vendors' peak figures per multiprocessor and clock at boost; L2's are round figures of published micro-benchmarks.
Nothing here was measured by us.
"""

from dataclasses import dataclass

WARP = 32
REGISTERS, REGISTERS_AT_ONCE, WARPS_AT_ONCE = 65536, 256, 4  # of a multiprocessor; how they are handed out
MOST_BLOCKS = {75: 16, 80: 32, 86: 16, 87: 16, 89: 24, 90: 32}
SHARED_AT_ONCE = {75: 256}  # else 128 bytes
SYSTEM_SHARED = {75: 0}  # else 1 KiB of every block's


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: int
    sms: int
    ghz: float
    dram: float  # GB/s
    l2: float  # GB/s
    fma: float  # warp instructions of a clock: FFMA, FADD, FMUL
    half: float  # HFMA2, HADD2, HMUL2
    tensor: float  # fp16 multiply-adds of a clock with fp32 sums, by mma.sync
    library: float  # TFLOP/s of the vendor's products, fp16
    block_shared: int  # KiB that a block may ask for
    shared: int  # KiB of a multiprocessor
    first_level: int  # KiB of shared memory and L1 together
    threads: int
    cache: int  # MiB of L2

    issue = 4.0  # warp instructions of a clock, of any kind
    alu = 2.0  # integer, logic, comparison, selection, packed conversion
    multiply = 2.0  # IMAD
    special = 0.5  # MUFU and other conversions

    @property
    def file(self):
        return self.name.lower().replace(" ", "-")

    @property
    def clocks(self):
        """Of one multiprocessor, in a microsecond."""
        return self.ghz * 1e3

    def resident(self, threads, registers, shared):
        """(blocks that a multiprocessor holds at once, what limits them).

        Args:
            threads: of a block, whole warps.
            registers: of a thread.
            shared: bytes of a block, static and dynamic.
        """
        warps = threads // WARP
        of_warp = _up(max(registers, 1) * WARP, REGISTERS_AT_ONCE)
        by_registers = REGISTERS // of_warp // WARPS_AT_ONCE * WARPS_AT_ONCE // warps
        bytes_of_block = _up(shared + SYSTEM_SHARED.get(self.arch, 1024), SHARED_AT_ONCE.get(self.arch, 128))
        limits = {
            "threads": self.threads // threads,
            "registers": by_registers,
            "shared": self.shared * 1024 // bytes_of_block if bytes_of_block else MOST_BLOCKS[self.arch],
            "blocks": MOST_BLOCKS[self.arch],
        }
        limit = min(limits, key=limits.get)
        return limits[limit], limit

    @property
    def limits(self):
        """What launch plans are made for: bytes a block may have, multiprocessors, bytes of L2."""
        return self.block_shared * 1024, self.sms, self.cache << 20


def _up(n, multiple):
    return -(-n // multiple) * multiple


# fmt: off
GPUS = [  #      arch sms  GHz   DRAM   L2   fma half tensor library block shared L1 threads L2
    Gpu("H200",     90, 132, 1.98, 4800, 5500, 4, 4, 2560, 989, 227, 228, 256, 2048, 50),
    Gpu("A100",     80, 108, 1.41, 1555, 4000, 2, 4, 1024, 312, 163, 164, 192, 2048, 40),
    Gpu("RTX 4090", 89, 128, 2.52, 1008, 5000, 4, 2, 256, 165, 99, 100, 128, 1536, 72),
    Gpu("RTX 3060", 86, 28, 1.78, 360, 1200, 4, 4, 256, 25.5, 99, 100, 128, 1536, 3),
    Gpu("T4",       75, 40, 1.59, 320, 1270, 2, 2, 512, 65, 64, 64, 96, 1024, 4),
    Gpu("Orin",     87, 16, 1.30, 204.8, 800, 4, 4, 1024, 42.5, 163, 164, 192, 1536, 4),
]
# fmt: on
BY_NAME = {gpu.name: gpu for gpu in GPUS}
