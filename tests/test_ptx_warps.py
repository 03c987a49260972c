"""The interpreter of PTX: what a warp does as one, and copies that are under way."""

import numpy as np
import pytest
import torch
from ptx.by_hand import evaluated, of_thread, per_thread, run, words
from ptx.parse import Unsupported


@pytest.mark.parametrize("mode, b, c", [("bfly", 5, 31), ("bfly", 8, 31 | 16 << 8), ("idx", 9, 31), ("idx", 3, 31 | 24 << 8),
                                        ("up", 3, 0), ("up", 2, 24 << 8), ("down", 4, 31), ("down", 1, 31 | 16 << 8)])  # fmt: skip
def test_ptx_shuffles(mode, b, c):
    segment, clamp = c >> 8, c & 31
    wanted = []
    for lane in range(32):
        top = (lane & segment) | (clamp & ~segment)
        source = {
            "bfly": lane ^ b,
            "up": lane - b,
            "down": lane + b,
            "idx": (lane & segment) | (b & ~segment),
        }[mode]
        good = source >= top if mode == "up" else source <= top
        wanted.append((source if good else lane) * 3 + (1000 if good else 0))
    got = evaluated(
        f"mul.lo.u32 %r1, %r0, 3; shfl.sync.{mode}.b32 %r10|%p1, %r1, {b}, {c}, -1; @%p1 add.u32 %r10, %r10, 1000;",
        [0] * 64,
    )
    assert got.tolist() == wanted + [v + 96 for v in wanted]


def test_ptx_votes_and_sums_of_a_warp():
    t = [3, 5, 8] * 21 + [1]
    got = evaluated("setp.gt.u32 %p1, %r1, 4; vote.sync.ballot.b32 %r10, %p1, 0xffffffff;", t)
    assert got.tolist() == [
        sum((v > 4) << n for n, v in enumerate(t[w : w + 32])) for w in (0, 32) for _ in range(32)
    ]
    got = evaluated("redux.sync.max.u32 %r10, %r1, 0xffffffff;", t)
    assert set(got.tolist()) == {8}
    got = evaluated(
        "setp.lt.u32 %p1, %r0, 5; mov.u32 %r10, 0; @%p1 bra $there; bra $end; $there: activemask.b32 %r10; $end:",
        t,
    )
    assert got.tolist() == [31] * 5 + [0] * 59


def test_ptx_half_a_warp_is_none():
    with pytest.raises(Unsupported, match="not all lanes of a warp reach shfl"):
        run("setp.lt.u32 %p1, %r0, 16; @%p1 bra $end; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; $end:")
    with pytest.raises(Unsupported, match="a mask that does not name the whole warp"):
        run("shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff;")


def fragments(matrix, index):
    """Registers of a warp: index(lane, register, half) says which element; [registers, 32] of uint32."""
    registers, halves = index.shape[1:3]
    out = np.zeros((registers, 32), np.uint32)
    for r in range(registers):
        for half in range(halves):
            row, column = index[:, r, half, 0], index[:, r, half, 1]
            out[r] |= matrix[row, column].astype(np.uint32) << np.uint32(16 * half)
    return out


def layout(registers, halves, where):
    """The table of PTX's manual: where(group, thread in it, register, half) of every lane's elements."""
    out = np.zeros((32, registers, halves, 2), int)
    for lane in range(32):
        for r in range(registers):
            for half in range(halves):
                out[lane, r, half] = where(lane // 4, lane % 4, r, half)
    return out


def bits_of(matrix, kind):
    """A float tensor's elements as bits: of 16, or for tf32 of 32."""
    if kind == "tf32":
        return matrix.numpy().view(np.uint32)
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    return matrix.to(dtype).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize(
    "kind, k", [("f16", 16), ("bf16", 16), ("f16", 8), ("bf16", 8), ("tf32", 8), ("tf32", 4)]
)
def test_ptx_products_of_matrices(kind, k):
    """mma of three warps, with the fragments as the manual draws them."""
    halves = 1 if kind == "tf32" else 2
    if kind == "tf32":
        a_at = layout(k // 2, 1, lambda g, t, r, h: (g + r % 2 * 8, t + r // 2 * 4))
        b_at = layout(k // 4, 1, lambda g, t, r, h: (t + r * 4, g))
    else:
        a_at = layout(k // 4, 2, lambda g, t, r, h: (g + r % 2 * 8, t * 2 + h + r // 2 * 8))
        b_at = layout(k // 8, 2, lambda g, t, r, h: (t * 2 + h + r * 8, g))
    c_at = layout(4, 1, lambda g, t, r, h: (g + r // 2 * 8, t * 2 + r % 2))
    generator, given, wanted = torch.Generator().manual_seed(k), [], []
    for _ in range(3):
        a, b, c = (torch.randn(shape, generator=generator) for shape in ((16, k), (k, 8), (16, 8)))
        parts = [fragments(bits_of(a, kind), a_at), fragments(bits_of(b, kind), b_at)]
        given.append(np.concatenate([*parts, fragments(c.numpy().view(np.uint32), c_at)]))
        if kind == "tf32":
            a, b = ((t.view(torch.int32) & -8192).view(torch.float32) for t in (a, b))
        else:
            a, b = (t.to(torch.float16 if kind == "f16" else torch.bfloat16) for t in (a, b))
        wanted.append(a.double() @ b.double() + c.double())
    n, na, nb = given[0].shape[0], a_at.shape[1], b_at.shape[1]
    inputs = np.concatenate(given, 1)
    registers = [f"%r{10 + i}" for i in range(n)]
    body = "".join(of_thread(r, f"%rd{i + 1}") for i, r in enumerate(registers))
    a, b, c = registers[:na], registers[na : na + nb], registers[na + nb :]
    a, b, c = ("{" + ", ".join(part) + "}" for part in (a, b, c))
    what = f"{kind}.{kind}"
    body += f"mma.sync.aligned.m16n8k{k}.row.col.f32.{what}.f32 {{%f1, %f2, %f3, %f4}}, {a}, {b}, {c};\n"
    out = torch.zeros(4, 96)
    for r in range(4):
        body += f"add.s64 %rd20, %rd0, {r * 96 * 4};" + per_thread(f"%f{r + 1}", "%rd20", "f32")
    assert halves == a_at.shape[2]
    run(body, out, *map(words, inputs), threads=96)
    for warp, exact in enumerate(wanted):
        got = np.zeros((16, 8))
        for r in range(4):
            got[c_at[:, r, 0, 0], c_at[:, r, 0, 1]] = out[r, 32 * warp : 32 * warp + 32].numpy()
        largest = float(exact.abs().max())
        assert np.abs(got - exact.numpy()).max() <= largest * 2.0**-22


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("turned", ["", ".trans"])
def test_ptx_matrices_from_and_to_shared_memory(n, turned):
    """ldmatrix finds what was put there row by row, stmatrix puts it back; with .trans each of them turned."""
    matrices = np.arange(n * 64, dtype=np.uint16).reshape(n, 8, 8)
    rows = words(matrices.reshape(-1, 2).astype(np.uint32) @ np.array([1, 1 << 16], np.uint32))
    out, back = torch.zeros(n, 32, dtype=torch.int32), torch.zeros(n * 32, dtype=torch.int32)
    registers = "{" + ", ".join(f"%r{20 + i}" for i in range(n)) + "}"
    body = "mov.u32 %r9, dynamic;"
    for word in range(n):  # row by row, with a gap behind each so that no other address will do
        body += f"add.u32 %r5, %r0, {32 * word}; mul.wide.u32 %rd9, %r5, 4; add.s64 %rd9, %rd1, %rd9;"
        body += (
            "ld.global.u32 %r6, [%rd9]; shr.u32 %r7, %r5, 2; and.b32 %r8, %r5, 3; mul.lo.u32 %r7, %r7, 48;"
        )
        body += "mad.lo.u32 %r7, %r8, 4, %r7; st.shared.u32 [%r7], %r6;"
    body += f"bar.sync 0; mul.lo.u32 %r5, %r0, 48; ldmatrix.sync.aligned.m8n8.x{n}{turned}.shared.b16 {registers}, [%r5];"
    for i in range(n):
        body += f"add.s64 %rd20, %rd0, {128 * i};" + per_thread(f"%r{20 + i}", "%rd20")
    body += f"add.u32 %r5, %r5, 2048; stmatrix.sync.aligned.m8n8.x{n}{turned}.shared.b16 [%r5], {registers}; bar.sync 0;"
    for word in range(n):
        body += f"add.u32 %r5, %r0, {32 * word}; shr.u32 %r7, %r5, 2; and.b32 %r8, %r5, 3; mul.lo.u32 %r7, %r7, 48;"
        body += "mad.lo.u32 %r7, %r8, 4, %r7; ld.shared.u32 %r6, [%r7+2048];"
        body += "mul.wide.u32 %rd9, %r5, 4; add.s64 %rd9, %rd2, %rd9; st.global.u32 [%rd9], %r6;"
    run(body, out, rows, back, shared=4096)
    assert torch.equal(back, rows.flatten())
    for i, matrix in enumerate(matrices.swapaxes(1, 2) if turned else matrices):
        wanted = [
            int(matrix[t // 4, t % 4 * 2]) | int(matrix[t // 4, t % 4 * 2 + 1]) << 16 for t in range(32)
        ]
        assert out[i].tolist() == wanted
    if n == 1:
        got = evaluated("movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r1;", out.numpy().view(np.uint32)[0])
        m = matrices[0] if turned else matrices[0].T
        assert got.tolist() == [
            int(m[t // 4, t % 4 * 2]) | int(m[t // 4, t % 4 * 2 + 1]) << 16 for t in range(32)
        ]


# Copies under way.

COPY = """
  mov.u32 %r9, dynamic;
  shl.b32 %r8, %r0, 4;
  add.u32 %r9, %r9, %r8;
  cvt.u64.u32 %rd9, %r8;
  add.s64 %rd9, %rd1, %rd9;
  mov.u32 %r7, {count};
  cp.async.cg.shared.global [%r9], [%rd9], 16, %r7;
  cp.async.commit_group;
  {between}
  {barrier}
  xor.b32 %r6, %r8, {partner};
  ld.shared.u32 %r5, [%r6+{word}];
"""


def copied(between, barrier="bar.sync 0;", partner=0, count="16", word=4):
    given, out = words(range(1, 129)), torch.zeros(32, dtype=torch.int32)
    body = COPY.format(between=between, barrier=barrier, partner=partner, count=count, word=word)
    run(body + per_thread("%r5"), out, given, shared=512)
    return out.tolist()


@pytest.mark.parametrize("wait", ["cp.async.wait_group 0;", "cp.async.wait_all;"])
def test_ptx_copies_land_when_the_thread_waits(wait):
    assert copied(wait) == [4 * t + 2 for t in range(32)]
    assert copied(wait, partner=16) == [4 * (t ^ 1) + 2 for t in range(32)]


UNWRITTEN = "lanes read shared memory that nobody has written"


def test_ptx_copies_without_a_wait_are_not_there():
    with pytest.raises(RuntimeError, match=f"32 {UNWRITTEN}"):
        copied("")
    with pytest.raises(RuntimeError, match=f"32 {UNWRITTEN}"):
        copied("cp.async.wait_group 1;")  # all but the latest
    with pytest.raises(RuntimeError, match=f"16 {UNWRITTEN}"):  # each waits for its own alone
        copied("setp.lt.u32 %p1, %r0, 16; @%p1 cp.async.wait_all;")
    assert copied("cp.async.commit_group; cp.async.wait_group 1;") == [4 * t + 2 for t in range(32)]


def test_ptx_copies_replace_what_was_there_at_once():
    with pytest.raises(RuntimeError, match=f"32 {UNWRITTEN}"):
        given, out = words(range(1, 129)), torch.zeros(32, dtype=torch.int32)
        before = "shl.b32 %r8, %r0, 4; st.shared.v4.u32 [%r8], {%r0, %r0, %r0, %r0};"
        run(
            before + COPY.format(between="", barrier="", partner=0, count="16", word=0),
            out,
            given,
            shared=512,
        )


def test_ptx_copies_fill_with_zeros():
    assert copied("cp.async.wait_all;", count="0") == [0] * 32
    assert copied("cp.async.wait_all;", count="4") == [0] * 32
    assert copied("cp.async.wait_all;", count="8") == [4 * t + 2 for t in range(32)]
    with pytest.raises(IndexError, match="16 bytes are read"):
        copied("cp.async.wait_all; cp.async.cg.shared.global [%r9], [%rd9+16], 16;")
    copied("cp.async.cg.shared.global [%r9], [%rd9+4096], 16, 0; cp.async.wait_all;")  # nothing is read
