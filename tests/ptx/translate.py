"""A kernel's basic blocks as Python functions, once for every kernel: an instruction is a line of each.

In a function every value is an array of the lanes that are there, or of one element where it is the same in all of
them. What other blocks want is kept in the flight's registers, which have an element per lane; a value that only
its own block reads never goes there.
"""

from dataclasses import dataclass

import numpy as np

from . import alu, memory, warp
from .alu import RAW, dtype_of
from .parse import WIDTHS, Immediate, Register, Unsupported

STEPS = memory.STEPS | warp.STEPS


@dataclass(eq=False)
class Code:
    """One block's function of the flight, its registers and its lanes; returns the guard of the branch at its end."""

    function: object
    instructions: list  # by the function's line
    end: object
    target: int


def translated(kernel):
    """The Code of each block."""
    if not hasattr(kernel, "code"):
        wanted = set().union(*(_exposed(block) for block in kernel.blocks))
        kernel.code = [
            _Translator(kernel, number, block, wanted).code() for number, block in enumerate(kernel.blocks)
        ]
    return kernel.code


def stored_dtype(register):
    """How a register's values are held: floats as such, all others as unsigned."""
    return dtype_of(register.kind) if register.kind in ("f32", "f64") else RAW[register.width]


def _registers(operands):
    for operand in operands:
        if isinstance(operand, Register):
            yield operand.index
        elif isinstance(operand, tuple):
            yield from _registers(operand)


def _step(i):
    if i.name in STEPS:
        return STEPS[i.name](i)
    try:
        found = alu.step_of(i)
    except (KeyError, ValueError, IndexError) as error:
        raise Unsupported(str(i)) from error
    if found is None:
        raise Unsupported(str(i))
    return found


def _touched(i):
    """The registers that an instruction reads, and those it writes."""
    if not hasattr(i, "step"):
        i.step = _step(i)
    writes = list(_registers(o for o, _ in i.step.results))
    reads = list(_registers(o for o, _ in i.step.arguments))
    if i.guard is not None:  # keeps what was there in the other lanes
        reads += [i.guard.index, *writes]
    return reads, writes


def _exposed(block):
    """The registers that a block reads before it writes them."""
    written, exposed = set(), set()
    for i in block.instructions:
        if i is block.end:
            exposed |= {i.guard.index} - written if i.guard else set()
            continue
        reads, writes = _touched(i)
        exposed |= set(reads) - written
        written |= set(writes)
    return exposed


class _Translator:
    def __init__(self, kernel, number, block, wanted):
        self.kernel, self.number, self.block, self.wanted = kernel, number, block, wanted
        self.names = {"where": np.where}
        self.lines, self.of_line, self.kept = [], [], set()

    def code(self):
        for index in sorted(_exposed(self.block)):
            self._add(
                f"v{index} = R[{index}] if lanes is None or R[{index}].size == 1 else R[{index}].take(lanes)"
            )
        end = self.block.end
        for i in self.block.instructions:
            if i is not end:
                self._instruction(i)
        kept = sorted(self.kept & self.wanted)
        if kept:
            self._add("if lanes is None:")
            for index in kept:
                self._add(f"    R[{index}] = v{index}")
            pairs = ", ".join(f"({index}, v{index})" for index in kept)
            self._add(f"else: flight.keep(lanes, ({pairs},))")
        guard = end.guard if end else None
        self._add(f"return {self._read(guard, 'pred')}" if guard else "return None", end)
        text = "def run(flight, R, lanes):\n" + "".join(f"    {line}\n" for line in self.lines)
        exec(compile(text, f"<{self.kernel.name} block {self.number}>", "exec"), self.names)
        return Code(self.names["run"], [None, *self.of_line], end, self.block.target)

    def _add(self, line, instruction=None):
        self.lines.append(line)
        self.of_line.append(instruction)

    def _name(self, value):
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def _instruction(self, i):
        step = i.step
        arguments = [self._read(operand, kind) for operand, kind in step.arguments]
        guard = self._read(i.guard, "pred") if i.guard else "None"
        if not step.plain:
            arguments = ["flight", "lanes", guard, *arguments]
        value = (
            arguments[0] if step.function is None else f"{self._name(step.function)}({', '.join(arguments)})"
        )
        registers = [r for r, _ in step.results]
        if not registers:
            self._add(value, i)
        elif len(registers) == 1:
            self._write(registers[0], value, step.results[0][1], guard if i.guard else None, i)
        else:
            parts = [f"t{n}" for n in range(len(registers))]
            self._add(f"{', '.join(parts)} = {value}", i)
            for part, (register, kind) in zip(parts, step.results, strict=True):
                self._write(register, part, kind, guard if i.guard else None, i)

    def _read(self, operand, kind):
        dtype = dtype_of(kind)
        if isinstance(operand, Immediate):
            return self._name(_constant(operand, dtype))
        if not isinstance(operand, Register):
            raise Unsupported(f"operand {operand} in block {self.number} of {self.kernel.name}")
        name, have = f"v{operand.index}", stored_dtype(operand)
        if operand.kind == "pred":
            return f"~{name}" if operand.negated else name
        if have == dtype:
            return name
        if have.itemsize < dtype.itemsize:
            raise Unsupported(f"{kind} of a register of {operand.width} bits in {self.kernel.name}")
        if have.itemsize > dtype.itemsize:  # e.g. st.u8 of a register of 16 bits: its lowest
            raw = self._name(RAW[8 * dtype.itemsize])
            unsigned = f"{name}.view({self._name(RAW[operand.width])})" if have.kind == "f" else name
            return f"{unsigned}.astype({raw}).view({self._name(dtype)})"
        return f"{name}.view({self._name(dtype)})"

    def _write(self, register, value, kind, guard, i):
        if register is None:
            return self._add(value, i)
        dtype, have = dtype_of(kind), stored_dtype(register)
        if dtype.itemsize < have.itemsize:  # widened as its type says
            value = f"({value}).astype({self._name(np.dtype(f'{dtype.kind}{have.itemsize}'))})"
            dtype = np.dtype(f"{dtype.kind}{have.itemsize}")
        if dtype.itemsize > have.itemsize:
            raise Unsupported(f"{kind} into a register of {register.width} bits: {i}")
        if dtype != have:
            value = f"({value}).view({self._name(have)})"
        name = f"v{register.index}"
        self._add(f"{name} = where({guard}, {value}, {name})" if guard else f"{name} = {value}", i)
        self.kept.add(register.index)


def _constant(operand, dtype):
    if operand.float_width and dtype.kind == "f":
        bits = np.array([operand.bits], RAW[operand.float_width])
        value = bits.view(f"f{operand.float_width // 8}").astype(dtype)
    elif dtype == np.bool_:
        value = np.array([bool(operand.bits)])
    else:
        width = 8 * dtype.itemsize
        value = np.array([operand.bits & (1 << width) - 1], RAW[width]).view(dtype)
    value.flags.writeable = False
    return value


assert set(WIDTHS.values()) <= set(RAW)
