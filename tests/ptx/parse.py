"""PTX as kernels of basic blocks of instructions, each parsed once, when it is first asked for.

module = Module(text)
kernel = module["_ZN8lska_ops..."]; list(module)
"""

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTHS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "tf32": 32}
WIDTHS |= {f"{kind}{bits}": bits for kind in "bus" for bits in (16, 32, 64)} | {"f32": 32, "f64": 64}
ENDS = ("bra", "ret", "exit", "bar", "barrier")  # what a basic block ends with; bar.warp.sync goes on


class Unsupported(Exception):
    """PTX that is not understood: what it is, and where."""


@dataclass(frozen=True)
class Register:
    index: int
    kind: str  # as declared
    negated: bool = False  # a predicate's

    @property
    def width(self):
        return WIDTHS[self.kind]


@dataclass(frozen=True)
class Immediate:
    bits: int
    float_width: int = 0  # 32 or 64 where it was written as a float's bits


@dataclass(frozen=True)
class Address:
    base: Register | Immediate
    offset: int


@dataclass(eq=False)
class Instruction:
    opcode: str
    operands: list
    guard: Register | None
    source: tuple  # (file, line) of the CUDA or Triton code
    ptx_line: int

    def __post_init__(self):
        self.parts = self.opcode.split(".")
        self.name = self.parts[0]

    def __str__(self):
        return f"{self.opcode} (PTX line {self.ptx_line}, {self.source[0]}:{self.source[1]})"


@dataclass(eq=False)
class BasicBlock:
    instructions: list = field(default_factory=list)
    target: int = -1  # the block that its branch goes to

    @property
    def end(self):
        """The branch, return or barrier at its end; None where it runs into the next block."""
        last = self.instructions[-1] if self.instructions else None
        return last if last is not None and ends(last) else None


def ends(instruction):
    return instruction.name in ENDS and instruction.parts[1:2] != ["warp"]


@dataclass(eq=False)
class Kernel:
    name: str
    parameter_bytes: int
    static_shared: int
    blocks: list
    registers: list  # of Register, by their index
    specials: dict  # name, as %tid.x, to the index of the register that holds it


class Module(Mapping):
    """Kernels by name."""

    def __init__(self, text):
        text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)
        text = re.sub(r"//[^\n]*", "", text)
        self._files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, flags=re.M))
        starts = [
            m.start() for m in re.finditer(r"^\s*(?:\.visible\s+|\.weak\s+)?\.entry\b", text, flags=re.M)
        ]
        self._text, head = text, text[: starts[0]] if starts else text
        self._dynamic = set(re.findall(r"\.extern\s+\.shared\s[^;]*?([\w$]+)\[\]\s*;", head))
        self._places = {}
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            self._places[re.search(r"\.entry\s+([\w$]+)", text[start:end])[1]] = start, end
        self._kernels = {}

    def __getitem__(self, name):
        if name not in self._kernels:
            start, end = self._places[name]
            first_line = self._text.count("\n", 0, start) + 1
            self._kernels[name] = _Parser(
                self._text[start:end], first_line, self._dynamic, self._files
            ).kernel()
        return self._kernels[name]

    def __iter__(self):
        return iter(self._places)

    def __len__(self):
        return len(self._places)


class _Parser:
    """Of one kernel's text."""

    def __init__(self, text, first_line, dynamic, files):
        self.text, self.first_line, self.dynamic, self.files = text, first_line, dynamic, files
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.kinds, self.scopes, self.indices, self.registers = {}, [], {}, []
        self.symbols, self.specials, self.static_shared = {}, {}, 0
        self.source, self.known = ("", 0), {}

    def kernel(self):
        head = re.match(r"[^(]*\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*(?=[.{])", self.text, re.S)
        parameter_bytes = self._parameters(head[2] or "")
        # The whole body is declared before any of it refers to shared memory that begins behind the static one.
        items = list(self._items(self.text.index("{", head.end() - 1) + 1))
        behind = -(-self.static_shared // 16) * 16
        self.symbols |= {name: behind for name in self.dynamic}
        blocks = self._blocks(items)
        return Kernel(head[1], parameter_bytes, self.static_shared, blocks, self.registers, self.specials)

    def _parameters(self, text):
        at = 0
        for words, name, count in re.findall(r"\.param\s+((?:[.\d]\w*\s+)+)([\w$]+)(?:\[(\d+)\])?", text):
            words = words.split()
            kind = next(w[1:] for w in words if w[1:] in WIDTHS)
            own = (
                words[: words.index(".ptr")] if ".ptr" in words else words
            )  # behind it: of what is pointed to
            align = int(own[own.index(".align") + 1]) if ".align" in own else WIDTHS[kind] // 8
            at += -at % align
            self.symbols[name] = at
            at += WIDTHS[kind] // 8 * int(count or 1)
        return at

    def _line(self, at):
        return self.first_line + bisect.bisect_left(self.newlines, at)

    def _items(self, at):
        """Labels as text, and of instructions (guard, opcode, operands' text resolved later, source, line)."""
        space, label = re.compile(r"\s*"), re.compile(r"([$\w]+):")
        loc = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*")
        while True:
            at = space.match(self.text, at).end()
            if self.text[at] == "{":
                self.scopes.append({})
                at += 1
            elif self.text[at] == "}":
                if not self.scopes:
                    return
                self.scopes.pop()
                at += 1
            elif found := label.match(self.text, at):
                yield found[1]
                at = found.end()
            elif found := loc.match(self.text, at):
                self.source = self.files.get(found[1], "?").split("/")[-1], int(found[2])
                at = found.end()
            else:
                end = self.text.index(";", at)
                statement = self.text[at:end]
                if statement.startswith("."):
                    self._directive(statement, at)
                elif statement.strip():
                    yield self._instruction(statement.strip(), at)
                at = end + 1

    def _directive(self, statement, at):
        if found := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S):
            for name in found[2].split(","):
                name, many = re.match(r"\s*([%\w$]+?)(<\d+>)?\s*$", name).groups()
                if self.scopes and not many:  # of this scope alone
                    unique = f"{name}@{at}"
                    self.scopes[-1][name], name = unique, unique
                self.kinds[name] = found[1]
        elif found := re.match(
            r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?\s*$", statement
        ):
            size = WIDTHS[found[2]] // 8
            self.static_shared += -self.static_shared % int(found[1] or size)
            self.symbols[found[3]] = self.static_shared
            self.static_shared += size * int(found[4] or 1)
        elif not statement.startswith(".pragma"):
            raise Unsupported(f"{' '.join(statement.split())} (PTX line {self._line(at)})")

    def _instruction(self, statement, at):
        found = re.match(r"(?:@\s*(!?)([%\w$]+)\s+)?([\w.:]+)\s*(.*)", statement, re.S)
        negated, guard, opcode, rest = found.groups()
        line = self._line(at)
        if guard:
            guard = self._register(guard, line)
            guard = Register(guard.index, guard.kind, bool(negated))
        # Names of a scope mean nothing behind it: resolved here but for symbols, which come at the end.
        operands = [self._operand(text, line) for text in _split(rest)]
        return Instruction(opcode, operands, guard or None, self.source, line)

    def _register(self, name, line):
        for scope in reversed(self.scopes):
            name = scope.get(name, name)
        kind = self.kinds.get(name) or self.kinds.get(name.rstrip("0123456789"))
        if kind is None:
            raise Unsupported(f"{name}, which is no register (PTX line {line})")
        if name not in self.indices:
            self.indices[name] = len(self.registers)
            self.registers.append(Register(len(self.registers), kind))
        return self.registers[self.indices[name]]

    def _operand(self, text, line):
        if self.scopes:
            return self._parsed(text, line)
        if text not in self.known:
            self.known[text] = self._parsed(text, line)
        return self.known[text]

    def _parsed(self, text, line):
        if text[0] == "{":
            return tuple(self._operand(part, line) for part in _split(text[1:-1]))
        if text[0] == "[":
            found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+)\s*)?\]", text)
            if found is None:
                raise Unsupported(f"the address {text} (PTX line {line})")
            return Address(self._operand(found[1], line), int(found[2] or "0", 0))
        if text[0] == "!":
            register = self._register(text[1:].strip(), line)
            return Register(register.index, register.kind, True)
        if "|" in text:
            return tuple(self._operand(part.strip(), line) for part in text.split("|"))
        if found := re.fullmatch(r"0([fFdD])([0-9A-Fa-f]+)", text):
            return Immediate(int(found[2], 16), 64 if found[1] in "dD" else 32)
        if re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        if text == "_":
            return None
        if re.fullmatch(r"%[a-z]\w*\.[xyz]|%(laneid|warpid|clock\w*|globaltimer|smid|nsmid)", text):
            if text not in self.specials:
                self.specials[text] = len(self.registers)
                self.registers.append(Register(len(self.registers), "b32"))
            return self.registers[self.specials[text]]
        if text[0] == "%" or any(text in scope for scope in self.scopes) or text in self.kinds:
            return self._register(text, line)
        return text  # a symbol or a label, known when all is read

    def _blocks(self, items):
        """Cuts where a label is, and behind whatever may leave the straight line."""
        blocks, labels = [BasicBlock()], {}
        for item in items:
            if isinstance(item, str):
                if blocks[-1].instructions:
                    blocks.append(BasicBlock())
                labels[item] = len(blocks) - 1
                continue
            if blocks[-1].end:
                blocks.append(BasicBlock())
            if item.name != "bra":
                item.operands = [self._resolved(operand, item) for operand in item.operands]
            blocks[-1].instructions.append(item)
        for block in blocks:
            if block.end and block.end.name == "bra":
                block.target = labels[block.end.operands[0]]
        return blocks

    def _resolved(self, operand, instruction):
        if isinstance(operand, str):
            if operand not in self.symbols:
                raise Unsupported(f"{operand}, in {instruction}")
            return Immediate(self.symbols[operand])
        if isinstance(operand, Address):
            return Address(self._resolved(operand.base, instruction), operand.offset)
        if isinstance(operand, tuple):
            return tuple(self._resolved(part, instruction) for part in operand)
        return operand


def _split(text):
    """Operands between commas; braces and brackets hold theirs together."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
