"""The interpreter of PTX itself, on small programs by hand: what an instruction means, and what is an error."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx.by_hand import evaluated, per_thread, run
from ptx.observe import Observer
from ptx.parse import Unsupported

RANDOM = [random.Random(n).sample([*range(64), *(random.Random(n).getrandbits(32) for _ in range(64))], 96)
          for n in range(3)]  # fmt: skip


def signed(v, bits=32):
    return v - (1 << bits) if v >> bits - 1 else v


def quotient(a, b):
    return -(abs(a) // abs(b)) if (a < 0) != (b < 0) else abs(a) // abs(b)


@pytest.mark.parametrize(
    "instruction, meaning",
    {
        "add.s32 %r10, %r1, %r2;": lambda a, b, c: a + b,
        "sub.u32 %r10, %r1, 5;": lambda a, b, c: a - 5,
        "mul.lo.s32 %r10, %r1, %r2;": lambda a, b, c: a * b,
        "mul.hi.u32 %r10, %r1, %r2;": lambda a, b, c: a * b >> 32,
        "mul.hi.s32 %r10, %r1, %r2;": lambda a, b, c: signed(a) * signed(b) >> 32,
        "mad.lo.s32 %r10, %r1, %r2, %r3;": lambda a, b, c: a * b + c,
        "div.s32 %r10, %r1, %r2;": lambda a, b, c: quotient(signed(a), signed(b)) if b else None,
        "rem.s32 %r10, %r1, %r2;": lambda a, b, c: (
            signed(a) - signed(b) * quotient(signed(a), signed(b)) if b else None
        ),
        "div.u32 %r10, %r1, %r2;": lambda a, b, c: a // b if b else None,
        "shl.b32 %r10, %r1, %r2;": lambda a, b, c: a << b if b < 32 else 0,
        "shr.u32 %r10, %r1, %r2;": lambda a, b, c: a >> b if b < 32 else 0,
        "shr.s32 %r10, %r1, %r2;": lambda a, b, c: signed(a) >> min(b, 31),
        "shr.s32 %r10, %r1, 7;": lambda a, b, c: signed(a) >> 7,
        "min.s32 %r10, %r1, %r2;": lambda a, b, c: min(signed(a), signed(b)),
        "max.u32 %r10, %r1, %r2;": lambda a, b, c: max(a, b),
        "not.b32 %r10, %r1;": lambda a, b, c: ~a,
        "abs.s32 %r10, %r1;": lambda a, b, c: abs(signed(a)),
        "popc.b32 %r10, %r1;": lambda a, b, c: a.bit_count(),
        "bfe.u32 %r10, %r1, 5, 9;": lambda a, b, c: a >> 5 & 511,
        "bfe.s32 %r10, %r1, 5, 9;": lambda a, b, c: signed(a >> 5 & 511, 9),
        "bfe.s32 %r10, %r1, 24, 16;": lambda a, b, c: signed(a) >> 24,
        "bfi.b32 %r10, %r1, %r2, 4, 12;": lambda a, b, c: b & ~0xFFF0 | (a & 0xFFF) << 4,
        "shf.l.wrap.b32 %r10, %r1, %r2, 9;": lambda a, b, c: (b << 32 | a) << 9 >> 32,
        "shf.r.clamp.b32 %r10, %r1, %r2, 11;": lambda a, b, c: (b << 32 | a) >> 11,
        "prmt.b32 %r10, %r1, %r2, 0x7250;": lambda a, b, c: (
            (b >> 24) << 24 | (a >> 16 & 255) << 16 | (b >> 8 & 255) << 8 | a & 255
        ),
        "lop3.b32 %r10, %r1, %r2, %r3, 0x96;": lambda a, b, c: a ^ b ^ c,
        "lop3.b32 %r10, %r1, %r2, %r3, 0xCA;": lambda a, b, c: a & b | ~a & c,
    }.items(),
    ids=lambda v: v.split(" ")[0] if isinstance(v, str) else "",
)
def test_ptx_integers(instruction, meaning):
    got = evaluated(instruction, *RANDOM)
    for a, b, c, out in zip(*RANDOM, got.tolist(), strict=True):
        if (wanted := meaning(a, b, c)) is not None:
            assert out == wanted & 0xFFFFFFFF, (a, b, c)


FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127)}  # bits of the significand, exponents


def fraction(bits, kind):
    """The number that 16 bits are; None if they are none."""
    p, low, high = FORMATS[kind]
    exponent, rest = bits >> p - 1 & (1 << 16 - p) - 1, bits & (1 << p - 1) - 1
    if exponent == (1 << 16 - p) - 1:
        return None
    whole = rest if exponent == 0 else rest | 1 << p - 1
    value = Fraction(whole) * Fraction(2) ** (max(exponent, 1) - 1 + low - p + 1)
    return -value if bits >> 15 else value


def rounded(value, kind):
    """The 16 bits nearest to a fraction, even ones of two; the sign of zero is left out."""
    p, low, high = FORMATS[kind]
    sign, value = (0x8000 if value < 0 else 0), abs(value)
    unit = Fraction(2) ** (low - p + 1)
    while value >= unit * 2**p:
        unit *= 2
    whole = round(value / unit)  # Python's round is to even
    if whole == 2**p:
        whole, unit = whole // 2, unit * 2
    if whole * unit >= Fraction(2) ** (high + 1):
        return sign | (1 << 16 - p) - 1 << p - 1
    steps = unit / Fraction(2) ** (low - p + 1)
    return sign | (whole + (steps.numerator.bit_length() - 1) * 2 ** (p - 1))


def halves_like(kind, seed, n=512):
    """Bits of which many sums and products are hard to round."""
    choice = random.Random(seed)
    near = {"f16": (0x3C00, 0x3800, 0x0400, 0x5000), "bf16": (0x3F80, 0x3E80, 0x4080, 0x4300)}[kind]
    return [
        choice.getrandbits(16)
        if choice.random() < 0.3
        else choice.choice(near) + choice.getrandbits(9) & 0xFFFF
        for _ in range(n)
    ]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "name, meaning",
    {
        "fma.rn": lambda a, b, c: a * b + c,
        "add": lambda a, b, c: a + b,
        "sub": lambda a, b, c: a - b,
        "mul": lambda a, b, c: a * b,
        "min": lambda a, b, c: min(a, b),
        "max": lambda a, b, c: max(a, b),
    }.items(),
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_ptx_halves_are_rounded_as_ieee_says(kind, name, meaning):
    n = 2 if name in ("min", "max", "add", "sub", "mul") else 3
    low, high = ([halves_like(kind, 10 * half + i) for i in range(3)] for half in (0, 1))
    packed = [[a | b << 16 for a, b in zip(*pair, strict=True)] for pair in zip(low, high, strict=True)]
    operands = ", ".join(f"%r{i}" for i in range(1, n + 1))
    got = evaluated(f"{name}.{kind}x2 %r10, {operands};", *packed)
    for values, shift in ((low, 0), (high, 16)):
        for *given, out in zip(*values, (got >> np.uint32(shift) & np.uint32(0xFFFF)).tolist(), strict=True):
            numbers = [fraction(v, kind) for v in given]
            if None in numbers[:n]:
                continue
            exact = meaning(*(v or Fraction(0) for v in numbers))
            wanted = rounded(exact, kind)
            assert (out == wanted) or (exact == 0 and out & 0x7FFF == 0), [
                hex(v) for v in (*given, out, wanted)
            ]


def float_bits(*values):
    return np.asarray(values, np.float32).view(np.uint32)


def test_ptx_conversions():
    nan, inf = float("nan"), float("inf")
    a = float_bits(0.0, -0.0, 1.5, -2.5, 3e9, -3e9, nan, inf, 65519.0, 65520.0, 1e-8, 0.1)
    as_int = evaluated("mov.b32 %f1, %r1; cvt.rzi.s32.f32 %r10, %f1;", a).view(np.int32)
    assert as_int.tolist()[:8] == [0, 0, 1, -2, 2**31 - 1, -(2**31), 0, 2**31 - 1]
    as_int = evaluated("mov.b32 %f1, %r1; cvt.rni.s32.f32 %r10, %f1;", a).view(np.int32)
    assert as_int.tolist()[:4] == [0, 0, 2, -2]
    half = evaluated("mov.b32 %f1, %r1; { .reg .b16 %x; cvt.rn.f16.f32 %x, %f1; cvt.u32.u16 %r10, %x; }", a)
    assert half[8] == 0x7BFF and half[9] == 0x7C00 and half[10] == 0 and half[2] == 0x3E00
    pair = evaluated("mov.b32 %f1, %r1; mov.b32 %f2, %r2; cvt.rn.bf16x2.f32 %r10, %f1, %f2;", a, a[::-1])
    assert pair[2] >> 16 == 0x3FC0 and pair[11] & 0xFFFF == 0 and pair[11] >> 16 == 0x3DCD
    wide = evaluated(
        "mov.b32 {%h1, %h2}, %r1; cvt.f32.f16 %f10, %h2;", [0x3E00 << 16 | 1], to="%f10", kind="f32"
    )
    assert wide.view(np.float32) == 1.5
    sign = evaluated("cvt.u16.u32 %h1, %r1; cvt.s32.s16 %r10, %h1;", [0xFFFE, 5]).view(np.int32)
    assert sign.tolist() == [-2, 5]


def test_ptx_comparisons_know_nan():
    a, b = float_bits(1, 2, np.nan, 1, np.nan), float_bits(2, 1, 1, 1, np.nan)
    wanted = {"lt": "10000", "ltu": "10101", "ne": "11000", "neu": "11101", "equ": "00111", "nan": "00101",
              "num": "11010", "ge": "01010", "geu": "01111"}  # fmt: skip
    for name, holds in wanted.items():
        got = evaluated(
            f"mov.b32 %f1, %r1; mov.b32 %f2, %r2; setp.{name}.f32 %p1|%p2, %f1, %f2; selp.b32 %r10, 1, 0, %p1;"
            "@%p2 add.s32 %r10, %r10, 2;",
            a,
            b,
        )
        assert got.tolist() == [1 if c == "1" else 2 for c in holds], name


# Control flow.


def test_ptx_lanes_of_a_loop_part_and_meet_again():
    """Each thread goes round as often as its number says, adding by a branch that half of them take."""
    n = 64
    out = torch.zeros(n, dtype=torch.int32)
    run(
        """
  mov.u32 %r1, 0;
  mov.u32 %r2, 0;
$loop:
  setp.ge.u32 %p1, %r1, %r0;
  @%p1 bra $end;
  and.b32 %r3, %r1, 1;
  setp.eq.u32 %p2, %r3, 0;
  @%p2 bra $even;
  add.u32 %r2, %r2, %r1;
  bra.uni $next;
$even:
  add.u32 %r2, %r2, 100;
$next:
  add.u32 %r1, %r1, 1;
  bra.uni $loop;
$end:
  @!%p2 add.u32 %r2, %r2, 1000;
"""
        + per_thread("%r2"),
        out,
        threads=n,
    )
    wanted = [
        sum(100 if i % 2 == 0 else i for i in range(t)) + (1000 if t and t % 2 == 0 else 0) for t in range(n)
    ]
    assert out.tolist()[1:] == wanted[1:]  # in thread 0 the predicate was never set


def test_ptx_barriers_order_warps_and_blocks_have_their_own_memory():
    """Every thread hands its value to another one of its block, round a loop that some threads enter late."""
    out = torch.zeros(4 * 64, dtype=torch.int32)
    run(
        """
  mov.u32 %r1, %ctaid.x;
  mad.lo.u32 %r2, %r1, 64, %r0;
  mov.u32 %r5, 0;
$loop:
  setp.lt.u32 %p1, %r0, 32;
  @%p1 bra $write;
  add.u32 %r6, %r2, 0;
$write:
  shl.b32 %r3, %r0, 2;
  mov.u32 %r4, dynamic;
  add.u32 %r3, %r3, %r4;
  st.shared.u32 [%r3], %r2;
  bar.sync 0;
  xor.b32 %r7, %r0, 63;
  shl.b32 %r7, %r7, 2;
  ld.shared.u32 %r2, [%r7];
  bar.sync 0;
  add.u32 %r5, %r5, 1;
  setp.lt.u32 %p2, %r5, 3;
  @%p2 bra $loop;
  mad.lo.u32 %r0, %r1, 64, %r0;
"""
        + per_thread("%r2"),
        out,
        threads=64,
        grid=(2, 2, 1)[:1] + (1, 1),
        shared=256,
    )
    assert out.view(-1, 64)[:2].tolist() == [[64 * block + 63 - t for t in range(64)] for block in range(2)]


@pytest.mark.parametrize(
    "body, words_",
    [
        ("setp.lt.u32 %p1, %r0, 16; @%p1 bra $over; bar.sync 0; $over:", "16 threads have ended, 48 wait"),
        ("setp.lt.u32 %p1, %r0, 16; @%p1 bra $a; bar.sync 0; bra $b; $a: bar.sync 0; $b:",
         "threads wait at one barrier"),
    ],
)  # fmt: skip
def test_ptx_barrier_that_not_all_reach(body, words_):
    with pytest.raises(RuntimeError, match=f"kernel: divergent barrier: .*{words_}"):
        run(body, threads=64)


def test_ptx_loop_without_an_end(monkeypatch):
    monkeypatch.setattr("ptx.machine.MOST_STEPS", 1000)
    with pytest.raises(RuntimeError, match="a block that does not end"):
        run("$l: bra $l;")


# What is an error.


@pytest.mark.parametrize(
    "instruction",
    ["frobnicate.b32 %r1, %r2;", "add.sat.s32 %r1, %r1, %r2;", "ld.global.v3.u32 %r1, [%rd0];", "mov.u32 %r1, %clock;",
     "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1, %r2}, {%r3}, {%r4}, {%r5, %r6};", "bar.sync 1, 32;",
     "atom.global.add.u32 %r1, [%rd0], %r2;", "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2;"],
)  # fmt: skip
def test_ptx_instruction_that_is_not_known(instruction):
    with pytest.raises(Unsupported) as caught:
        run(f"\n  {instruction}", torch.zeros(4))
    assert "PTX line 18" in str(caught.value) or "clock" in instruction, caught.value


@pytest.mark.parametrize("by, where", [(16, "behind the end"), (-4, "before the start"), (14, "")])
@pytest.mark.parametrize("access", ["ld.global.u32 %r1, [%rd3];", "st.global.u32 [%rd3], 1;"])
def test_ptx_access_beyond_a_tensor(access, by, where):
    """The kernel, the line, the address and the tensor are named."""
    near, tensor = torch.zeros(1000), torch.zeros(4)
    body = f"add.s64 %rd3, %rd1, {by}; setp.eq.u32 %p1, %r0, 7; @!%p1 mov.u64 %rd3, %rd0; @%p1 {access}"
    if not where:
        with pytest.raises(RuntimeError, match="an address that is not a multiple of 4"):
            run(body, near, tensor)
        return
    with pytest.raises(IndexError) as caught:
        run(body, near, tensor)
    said = str(caught.value)
    assert said.startswith("kernel: 4 bytes are ") and "by_hand.cu:77" in said
    assert f"{tensor.data_ptr() + by:#x}" in said
    assert (
        f"{0 if by > 0 else 4} bytes {where} of the tensor of 16 bytes that argument byte 8 points to" in said
    )


def test_ptx_shared_memory_ends():
    body = "shl.b32 %r1, %r0, 2; st.shared.u32 [%r1+{}], %r0;"
    run(body.format(0), shared=128)
    with pytest.raises(
        IndexError, match="shared memory of 128 bytes, and 4 bytes are written at 128: st.shared"
    ):
        run(body.format(4), shared=128)


ONE = "st.shared.u16 [64], %h3;"
LINE = "shl.b32 %r6, %r0, 4; st.shared.v4.u32 [%r6+64], {%r6, %r6, %r6, %r6};"


@pytest.mark.parametrize("read", ["u32 %r1", "u16 %h1", "u8 %h1", "v4.u32 {%r1, %r2, %r3, %r4}"])
@pytest.mark.parametrize("at", ["66", "%r6+66"], ids=["one place", "each its own"])
def test_ptx_shared_memory_that_nobody_has_written(read, at):
    """A read that has bytes of which nobody wrote any, or not all, is told; with leave it is counted."""
    kind, to = read.split(" ", 1)
    at = at.replace("66", "64") if "32" in kind else at
    body = (
        f"mov.u16 %h3, 9; {ONE} shl.b32 %r6, %r0, {4 if 'v' in kind else 2}; ld.shared.{kind} {to}, [{at}];"
    )
    told = "kernel: 32 lanes read shared memory that nobody has written: ld.shared"
    with pytest.raises(RuntimeError, match=told):
        run(body, shared=1024)
    assert run(body, shared=1024, allow_unwritten=True).unwritten == 32
    assert run(body.replace(ONE, LINE), shared=1024).unwritten == 0


def test_ptx_observer_is_told():
    class Told(Observer):
        def __init__(self):
            self.flights, self.executed, self.accesses, self.barriers = [], [], [], []

        def flight(self, blocks):
            self.flights.append(list(blocks))

        def block_executed(self, number, warps, lanes):
            self.executed.append((number, warps.tolist(), lanes))

        def access(self, instruction, space, is_load, addresses, width, active, warps):
            self.accesses.append(
                (instruction.opcode, space, is_load, width, active.sum(1).tolist(), warps.tolist())
            )

        def barrier(self, instruction, warps):
            self.barriers.append(warps.tolist())

    told, out = Told(), torch.zeros(64, dtype=torch.int32)
    body = "setp.lt.u32 %p1, %r0, 40; @%p1 bra $end;" + per_thread("%r0") + "$end: bar.sync 0;"
    run(body, out, threads=64, grid=(3, 1, 1), observer=told)
    assert told.flights == [[0, 1, 2]]
    assert told.executed[:2] == [(0, [0, 1, 2, 3, 4, 5], 192), (1, [1, 3, 5], 72)]
    assert told.accesses == [("st.global.u32", "global", False, 4, [24] * 3, [1, 3, 5])]
    assert sorted(sum(told.barriers, [])) == [0, 1, 2, 3, 4, 5]
