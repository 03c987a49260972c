"""Machine code of kernels that were run as PTX: how often ptxas's instructions are issued, and how long one warp takes.

nvdisasm says of every machine instruction from which line of the PTX it was made, and the interpreter how often that
line was executed. A basic block of machine code is issued as often as most of its instructions say, so that what was
hoisted out of a loop, or became a predicate, counts where it stands. Loops that ptxas unrolls have several copies of a
line; they share its count.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

CLASSES = {  # of what pipe they are, or what they are for
    "fma": "FFMA FFMA2 FFMA32I",
    "fp32": "FADD FMUL FADD32I FMUL32I FADD2 FMUL2",
    "half": "HFMA2 HADD2 HMUL2 HADD2_32 HSETP2 HMNMX2 HSET2",
    "imad": "IMAD IMAD32I IMUL IDP",
    "special": "MUFU F2F I2F F2I FRND I2I POPC FLO BREV I2IP I2FP",
    "tensor": "HMMA IMMA BMMA HGMMA DMMA",
    "shared": "LDS STS LDSM ATOMS STSM",
    "global": "LDG STG LD ST ATOMG ATOM RED LDGSTS UBLKCP UTMALDG UTMASTG CCTL",
    "local": "LDL STL",  # registers that were spilled
    "shuffle": "SHFL VOTE VOTEU MATCH REDUX",
    "barrier": "BAR MEMBAR DEPBAR LDGDEPBAR ERRBAR SYNCS ARRIVES FENCE",
    "branch": "BRA BSSY BSYNC EXIT RET CALL BRX BRXU WARPSYNC ENDCOLLECTIVE BREAK JMP YIELD BMOV JMX NANOSLEEP",
    "constant": "LDC ULDC LDCU",
    "address": "S2R CS2R S2UR R2UR",
    "alu": "BMSK F2FP FCHK FMNMX FMNMX3 FSEL FSET FSETP IABS IADD IADD3 IMNMX ISETP LEA LOP3 MOV MOVM NOP P2R PLOP3 "
    "PRMT R2P SEL SGXT SHF SHL SHR VABSDIFF VIADD VIADDMNMX VIMNMX VIMNMX3",
}
CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes.split()}
MADE_FROM = {  # PTX of which each is one machine instruction, and no other instruction is that
    "fma.rn.f32": "FFMA",
    "fma.rn.ftz.f32": "FFMA",
    "ld.global": "LDG",
    "st.global": "STG",
    "ld.shared": "LDS",
    "st.shared": "STS",
    "shfl": "SHFL",
    "bar": "BAR",
    "mma.sync": "HMMA",
    "ldmatrix": "LDSM",
    "cp.async.ca": "LDGSTS",
    "cp.async.cg": "LDGSTS",
}
# Clocks until a result is there: round figures of published micro-benchmarks, Turing to Hopper.
LATENCY = {
    "special": 20,
    "shared": 28,
    "shuffle": 24,
    "global": 500,
    "local": 40,
    "constant": 30,
    "tensor": 30,
}
LATENCY |= {"address": 20, "half": 5}
ARITHMETIC, AT_BARRIER = 4, 20
PRODUCTS = {"16816": 2048, "1688": 1024, "884": 256}  # multiply-adds of one instruction of the tensor cores


@dataclass(eq=False)
class Instruction:
    opcode: str
    guard: str  # its predicate, or nothing
    operands: str
    ptx_line: int
    kind: str = field(init=False)

    def __post_init__(self):
        self.base = self.opcode.split(".")[0]
        self.kind = CLASS_OF.get(self.base) or ("uniform" if self.base.startswith("U") else None)
        if self.kind is None:
            raise ValueError(f"profile: {self.opcode} is of no class of sass.CLASSES")
        if self.kind == "half" and "-RZ, RZ" in self.operands:
            self.kind = "alu"  # moves a constant


@dataclass(eq=False)
class Block:
    label: str
    instructions: list = field(default_factory=list)
    targets: list = field(default_factory=list)
    goes_on: bool = True  # into the next block


# Tools


class Missing(Exception):
    """A tool that is not installed: which, and what would bring it."""


@cache
def tool(name, of="toolkit"):
    """The path of nvdisasm, cuobjdump or ptxas: the toolkit's, or else triton's, or those of the package index."""
    found = [shutil.which(name), shutil.which(name, path="/usr/local/cuda/bin")]
    if nvcc := shutil.which("nvcc"):
        found.append(shutil.which(name, path=str(Path(nvcc).resolve().parent)))
    nvidia, triton = _package("nvidia"), _package("triton")
    found += sorted(nvidia.glob(f"*/bin/{name}")) if nvidia else []
    of_triton = (
        [triton / part / "bin" / name for part in ("backends/nvidia", "third_party/cuda")] if triton else []
    )
    of_triton = [path for path in of_triton if path.is_file()]
    found = [*of_triton, *found] if of == "triton" or name == "nvdisasm" else [*found, *of_triton]
    if path := next(filter(None, found), None):
        return str(path)
    package = "nvidia-cuda-nvcc" if name == "ptxas" else f"nvidia-cuda-{name}"
    raise Missing(f"profile: {name} was not found; install triton, or {package}")


def _package(name):
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def assemble(ptx, arch, out, of="toolkit"):
    """Machine code of a file of PTX, with what says which line of it an instruction is of; ptxas's log."""
    command = [
        tool("ptxas", of),
        f"-arch=sm_{arch}",
        "-O3",
        "-v",
        "--generate-line-info",
        str(ptx),
        "-o",
        str(out),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def disassemble(cubin):
    return subprocess.run(
        [tool("nvdisasm"), "-gp", "-c", str(cubin)], check=True, capture_output=True, text=True
    ).stdout


def resources(log):
    """{kernel: (registers, bytes spilled)} of ptxas -v."""
    out = {}
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        name = re.match(r"Compiling entry function '(\S+)'", part)[1]
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        out[name] = int(re.search(r"Used (\d+) registers", part)[1]), sum(map(int, spilled.groups()))
    return out


# Reading


class Code(dict):
    """{kernel: its basic blocks} of nvdisasm's text, each read when it is first asked for."""

    def __init__(self, text):
        starts = list(re.finditer(r"^\.text\.(\S+):$", text, flags=re.M))
        ends = [m.start() for m in starts[1:]] + [len(text)]
        self.parts = {m[1]: text[m.end() : end] for m, end in zip(starts, ends, strict=True)}

    def __missing__(self, kernel):
        self[kernel] = _blocks(self.parts[kernel])
        return self[kernel]


ROW = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P[T\d]+\s+)?([A-Z][\w.]*)\s*([^;]*);")
LABEL = re.compile(r"([.$][\w.$]+):")
ENDS = ("BRA", "EXIT", "RET", "CALL", "BRX", "BRXU", "JMP", "JMX", "BREAK")


def _blocks(text):
    blocks, line = [Block("")], 0
    for row in text.split("\n"):
        if found := LABEL.match(row):
            blocks.append(Block(found[1]))
        elif "//##" in row:
            found = re.search(r'"[^"]*ptx[^"]*", line (\d+)', row)
            line = int(found[1]) if found else 0
        elif found := ROW.match(row):
            i = Instruction(found[2], found[1] or "", found[3], line)
            if i.base == "NOP":
                continue
            block = blocks[-1]
            block.instructions.append(i)
            if i.base in ENDS:
                block.targets += re.findall(r"`\(([^)]*)\)", i.operands)
                block.goes_on = bool(i.guard) or i.base == "CALL"
                blocks.append(Block(""))
    return [b for b in blocks if b.instructions or b.label]


# Counting


def issued(blocks, kernel, warps):
    """How often each block of machine code is issued to a warp, one number per block.

    Args:
        blocks: the kernel's, of Code.
        kernel: the parsed PTX.
        warps: how many warps executed each of its basic blocks.
    """
    executed, names = Counter(), {}
    for block, n in zip(kernel.blocks, warps, strict=True):
        for i in block.instructions:
            executed[i.ptx_line] = max(executed[i.ptx_line], int(n))
            names[i.ptx_line] = made_from(i.opcode)
    copies = Counter()
    for block in blocks:
        for i in block.instructions:
            copies[i.ptx_line] += names.get(i.ptx_line) == i.base
    out = np.full(len(blocks), np.nan)
    for number, block in enumerate(blocks):
        told = [i for i in block.instructions if i.ptx_line in executed]
        sure = [i for i in told if names[i.ptx_line] == i.base]
        for some in (_unguarded(sure), sure, _unguarded(told), told):
            if some:
                out[number] = np.median([executed[i.ptx_line] / max(1, copies[i.ptx_line]) for i in some])
                break
    _inherit(blocks, out)
    return out


def made_from(opcode):
    if opcode.startswith(("ld.", "st.")):
        parts = opcode.split(".")
        space = next((p.split("::")[0] for p in parts[1:] if p.split("::")[0] in ("global", "shared")), "")
        opcode = f"{parts[0]}.{space}"
    return next(
        (sass for ptx, sass in MADE_FROM.items() if opcode == ptx or opcode.startswith(ptx + ".")), None
    )


def _unguarded(instructions):
    return [i for i in instructions if not i.guard]


def _inherit(blocks, counts):
    """Blocks without a line of PTX are issued as often as those that lead to them."""
    into = _predecessors(blocks)
    open_ones = [n for n in range(len(blocks)) if np.isnan(counts[n])]
    for _ in range(8):
        for number in open_ones:
            known = [counts[n] for n in into[number] if n != number and not np.isnan(counts[n])]
            counts[number] = max(known, default=np.nan)
    counts[np.isnan(counts)] = 0


def by_class(blocks, counts):
    """Machine instructions issued to warps, by class."""
    out = Counter()
    for block, n in zip(blocks, counts, strict=True):
        for i in block.instructions:
            out[i.kind] += float(n)
    return out


def tensor_products(blocks, counts):
    """Multiply-adds of the tensor cores' instructions."""
    total = 0.0
    for block, n in zip(blocks, counts, strict=True):
        for i in block.instructions:
            if i.kind == "tensor":
                total += n * PRODUCTS[re.search(r"\.(\d{3,5})\b", i.opcode)[1]]
    return total


def by_source(blocks, counts, kernel):
    """Machine instructions by the (file, line) that they were made of."""
    source = {i.ptx_line: i.source for block in kernel.blocks for i in block.instructions}
    out = Counter()
    for block, n in zip(blocks, counts, strict=True):
        for i in block.instructions:
            out[source.get(i.ptx_line, ("", 0))] += float(n)
    return out


# Latency


REGISTER = re.compile(r"(?<![\w.])(-?\|?)(U?R|U?P)(\d+)((?:\.\w+)*)")


def alone(blocks, counts, warps):
    """Clocks that one warp needs by itself: in the order of the code an instruction waits for its operands.

    Every block counts as often as a warp comes to it. A loop is gone through twice, as it is entered and as it goes
    around, so that what was asked for in the last round is waited for in this one. A block that most rounds pass by
    hides nothing from what follows it.
    """
    loops, into = _loops(blocks), _predecessors(blocks)
    total = 0.0

    def go(low, high, share, usual, opened, ready, clock):
        nonlocal total
        number = low
        while number <= high:
            if number in loops and number not in opened:
                last = min(loops[number], high)
                outside = [counts[n] for n in into[number] if not number <= n <= last]
                n = counts[number]
                entered = min(1.0, max(outside, default=n) / n) if n else 1.0
                for part in (entered, 1 - entered):
                    if part:
                        clock = go(number, last, share * part, n, opened | {number}, ready, clock)
                number = last + 1
                continue
            block, n = blocks[number], counts[number]
            rare = n < usual / 2
            after = _waited(block, ready.copy() if rare else ready, clock)
            total += (after - clock) * n * share / warps
            clock = clock if rare else after
            number += 1
        return clock

    go(0, len(blocks) - 1, 1.0, 0.0, frozenset(), defaultdict(int), 0)
    return total


def _waited(block, ready, clock):
    """The clock after a block; in `ready`, when each register's value is there, and what was copied to shared memory."""
    for i in block.instructions:
        reads, writes, latency = _uses(i)
        clock = max([clock + 1, *(ready[r] for r in reads)])
        if i.base == "BAR":
            clock += AT_BARRIER
        elif i.base == "LDGSTS":
            ready["copies"] = clock + LATENCY["global"]
        elif i.base == "DEPBAR":
            clock = max(clock, ready["copies"])
        for r in writes:
            ready[r] = clock + latency
    return clock


def _predecessors(blocks):
    """{block: those that lead to it}, by their places in the code."""
    numbers = {b.label: n for n, b in enumerate(blocks) if b.label}
    into = defaultdict(list)
    for number, block in enumerate(blocks):
        for label in block.targets:
            if label in numbers:
                into[numbers[label]].append(number)
        if block.goes_on and number + 1 < len(blocks):
            into[number + 1].append(number)
    return into


def _loops(blocks):
    """{first block: last one} of the code between a branch back and where it leads."""
    return {
        head: max(back)
        for head, of in _predecessors(blocks).items()
        if (back := [n for n in of if n >= head])
    }


def _uses(i):
    if not hasattr(i, "_used"):
        names = [
            [f"{kind}{int(number) + k}" for k in range(_width(i, kind, place, more))]
            for place, operand in enumerate(i.operands.split(","))
            for _, kind, number, more in REGISTER.findall(operand)
        ]
        stores = i.kind in ("branch", "barrier") or i.base in (
            "STG",
            "STS",
            "ST",
            "STL",
            "RED",
            "STSM",
            "LDGSTS",
        )
        writes = [] if stores else [r for group in names[:1] for r in group]
        if (
            not stores
            and i.base in ("ISETP", "FSETP", "HSETP2", "PLOP3", "UISETP", "IADD3", "LEA")
            and len(names) > 1
        ):
            writes += [r for r in names[1] if "P" in r]
        reads = [r for group in (names if stores else names[1:]) for r in group]
        reads += [kind + number for _, kind, number, _ in REGISTER.findall(i.guard)]
        i._used = reads, writes, 4 if stores else LATENCY.get(i.kind, ARITHMETIC)
    return i._used


def _width(i, kind, place, more):
    """Registers that an operand takes."""
    if kind in ("P", "UP"):
        return 1
    if ".64" in more:
        return 2
    data = 0 if i.base.startswith(("LD", "UL", "MUFU")) or ".WIDE" in i.opcode else 1
    if (i.kind in ("shared", "global", "local", "constant") or ".WIDE" in i.opcode) and place == data:
        return 4 if ".128" in i.opcode else 2 if ".64" in i.opcode or ".WIDE" in i.opcode else 1
    if i.kind == "tensor":  # sums of 4; of 16 x 16 products 4 and 2 registers, else half of that
        return {0: 4, 3: 4, 1: 4 if ".16816" in i.opcode else 2, 2: 2 if ".16816" in i.opcode else 1}[place]
    return 1
