"""The profiler for machines without a GPU: its counters, its occupancy, its model, and the committed profile."""

import csv

import numpy as np
import pytest
from ptx import calls, model, sass
from ptx.count import Counted, Counters, Traffic, count_lines, ideal_sectors, shared_passes
from ptx.gpus import BY_NAME, GPUS

LANES = np.arange(32)


def request(addresses):
    return np.asarray(addresses, np.int64).reshape(1, 32), np.ones((1, 32), bool)


# Shared memory


@pytest.mark.parametrize(
    "addresses, width, passes, least",
    [
        (4 * LANES, 4, 1, 1),
        (4 * LANES[::-1], 4, 1, 1),
        (0 * LANES, 4, 1, 1),  # one word for all
        (2 * LANES, 2, 1, 1),  # two lanes a word
        (8 * LANES, 4, 2, 1),  # every second bank
        (128 * LANES, 4, 32, 1),
        (132 * LANES, 4, 1, 1),  # a pitch of 33 words
        (8 * LANES, 8, 2, 2),
        (16 * LANES, 8, 4, 2),
        (16 * LANES, 16, 4, 4),
        (32 * LANES, 16, 8, 4),
        (256 * LANES, 16, 32, 4),
    ],
)
def test_profile_counts_bank_conflicts(addresses, width, passes, least):
    assert shared_passes(*request(addresses), width) == (passes, least)


def test_profile_idle_lanes_cost_no_pass():
    addresses, active = request(128 * LANES)
    active[0, 4:] = False
    assert shared_passes(addresses, active, 4) == (4, 1)
    assert shared_passes(addresses, active, 16) == (4, 1)  # of four quarters of a warp one asks


# Global memory


@pytest.mark.parametrize(
    "addresses, width, sectors, ideal, lines",
    [
        (4 * LANES, 4, 4, 4, 1),
        (16 * LANES, 16, 16, 16, 4),
        (2 * LANES, 2, 2, 2, 1),
        (0 * LANES, 4, 1, 1, 1),
        (128 * LANES, 4, 32, 4, 32),
        (8 * LANES, 4, 8, 4, 2),
        (16 * LANES, 4, 16, 4, 4),  # what is left of a 16-byte store that fell apart
        (16 + 4 * LANES, 4, 5, 4, 2),  # not on a sector's boundary
    ],
)
def test_profile_counts_sectors(addresses, width, sectors, ideal, lines):
    found = counted([(addresses + 4096, width, True)])
    assert (found.units, found.ideal, found.lines) == (sectors, ideal, lines)
    assert ideal_sectors(*request(addresses), width) == ideal
    assert count_lines(*request(addresses + 4096), width) == lines


class Launch:
    """What counters ask of a launch."""

    threads = 64

    class kernel:
        blocks = ()


class Instruction:
    ptx_line = 1


def told(accesses):
    counters = Counters()
    counters.launched(Launch)
    counters.flight([0, 1])
    for addresses, width, load in accesses:
        address, active = request(addresses)
        counters.access(Instruction, "global", load, address, width, active, np.array([0]))
        counters.access(Instruction, "global", load, address, width, active, np.array([3]))
    return counters.finished()


def counted(accesses):
    """Of the first of the two warps that `told` has."""
    found = told(accesses).traffic["global", True]
    assert found.requests == 2
    return Traffic(1, *(n // 2 for n in (found.lanes, found.units, found.ideal, found.lines)))


def test_profile_dram_counts_a_sector_once_and_l2_once_a_block():
    found = told([(4 * LANES, 4, True), (4 * LANES, 4, True), (128 + 4 * LANES, 4, False)])
    assert (found.loaded, found.stored) == (4, 4)
    assert (found.loaded_by_blocks, found.stored_by_blocks) == (8, 8)
    assert found.traffic["global", True].units == 16


# Occupancy, as NVIDIA's calculator has it


@pytest.mark.parametrize(
    "gpu, threads, registers, shared, blocks, limit",
    [
        ("A100", 256, 32, 0, 8, "threads"),
        ("A100", 256, 64, 0, 4, "registers"),
        ("A100", 256, 80, 0, 3, "registers"),
        ("A100", 128, 255, 0, 2, "registers"),
        ("A100", 1024, 64, 0, 1, "registers"),
        ("A100", 32, 16, 0, 32, "blocks"),
        ("A100", 128, 32, 32 << 10, 4, "shared"),
        ("A100", 128, 32, 163 << 10, 1, "shared"),
        ("H200", 256, 40, 0, 6, "registers"),
        ("H200", 128, 32, 45 << 10, 4, "shared"),
        ("H200", 1024, 65, 0, 0, "registers"),  # too many for one block
        ("RTX 3060", 1024, 32, 0, 1, "threads"),
        ("RTX 3060", 256, 32, 0, 6, "threads"),
        ("RTX 3060", 32, 32, 0, 16, "blocks"),
        ("RTX 4090", 32, 32, 0, 24, "blocks"),
        ("RTX 4090", 128, 32, 48 << 10, 2, "shared"),
        ("T4", 512, 64, 0, 2, "threads"),
        ("T4", 256, 96, 0, 2, "registers"),
        ("T4", 128, 32, 32 << 10, 2, "shared"),
        ("Orin", 256, 32, 0, 6, "threads"),
    ],
)
def test_profile_occupancy(gpu, threads, registers, shared, blocks, limit):
    assert BY_NAME[gpu].resident(threads, registers, shared) == (blocks, limit)


# The model


def launch_of(gpu, **change):
    """A launch that keeps every multiprocessor busy and nothing very much."""
    traffic = {(s, load): Traffic() for s in ("global", "shared") for load in (True, False)}
    one = dict(issued=1, active=32, blocks=gpu.sms, barriers=0, loaded=1, stored=1)
    one |= dict(loaded_by_blocks=1, stored_by_blocks=1, traffic=traffic, warps=np.ones(1))
    made, products, alone = {"alu": 10.0}, 0.0, 1.0
    if (part := change.get("part")) == "dram":
        one["loaded"] = one["loaded_by_blocks"] = 10**6
    elif part == "l2":
        traffic["global", False] = Traffic(10**6, 10**6, 10**6, 10**6, 1)
    elif part == "shared":
        traffic["shared", True] = Traffic(10**6, 10**6, 10**6, 10**6)
    elif part == "latency":
        alone = 1e6
    elif part == "tensor":
        products = 1e12
    elif part == "issue":
        made = {"branch": 1e6}
    elif part:
        made = {part: 1e6}
    grid = (gpu.sms, 1, 1)
    return model.Measured("k", grid, 128, 0, Counted(**one), made, products, alone, 32, 0)


BINDING = [  # a pipe that takes all that is issued never binds
    (gpu, part)
    for gpu in GPUS
    for part in model.PARTS
    if getattr(gpu, part, 0) != gpu.issue or part == "issue"
]


@pytest.mark.parametrize("gpu, part", BINDING, ids=lambda given: getattr(given, "name", given))
def test_profile_names_what_binds(gpu, part):
    times, _, _ = model.bounds(launch_of(gpu, part=part), gpu)
    assert max(times, key=times.get) == part


def test_profile_blocks_are_not_divided():
    gpu = BY_NAME["T4"]
    full, more = launch_of(gpu, part="issue"), launch_of(gpu, part="issue")
    more.grid = (gpu.sms + 1, 1, 1)
    of_full, of_more = (model.bounds(m, gpu)[0]["issue"] for m in (full, more))
    assert of_more == 2 * of_full


def test_profile_a_part_of_the_blocks_stands_for_all():
    gpu = BY_NAME["A100"]
    m = launch_of(gpu, part="dram")
    before = model.bounds(m, gpu)[0]["dram"]
    m.grid = (gpu.sms, 4, 1)
    assert model.bounds(m, gpu)[0]["dram"] == 4 * before


def test_profile_row_all_sums_a_call():
    gpu = BY_NAME["H200"]
    one, two = launch_of(gpu, part="issue"), launch_of(gpu, part="dram")
    one.kernel, two.kernel = "_ZN8lska_ops15lska_gate_fwd_kIfEE", "other"
    problem = calls.Problem()
    rows = model.rows([one, two, two], [("aten::bmm", 4.8e9, 0)], gpu, problem)
    assert [row.kernel for row in rows] == ["lska_gate_fwd_k", "other", "aten::bmm", "all"]
    assert rows[-1].predicted == pytest.approx(sum(row.predicted for row in rows[:-1]))
    assert rows[0].perfect == 3 * problem.map_bytes / gpu.dram / 1e3
    assert rows[2].predicted == pytest.approx(1e6 * 4.8e9 / (gpu.dram * 1e9))
    assert [row.launches for row in rows] == [1, 2, 1, 4]


def test_profile_keeps_other_calls_of_its_csv(tmp_path):
    from ptx.profile import COLUMNS, KEY, call_of, told, write

    first, second, *_ = calls.table()
    row = dict.fromkeys(COLUMNS, "1") | {"gpu": "T4"}

    def lines(problem, *kernels):
        call = {name: told(problem, name) for name in KEY}
        return [{**row, **call, "kernel": kernel} for kernel in kernels]

    write(lines(second, "a", "all"), tmp_path)
    write([*lines(first, "a", "all"), *lines(calls.Problem(B=3), "a", "all")], tmp_path)
    write(lines(second, "b", "all"), tmp_path)
    with open(tmp_path / "t4.csv", newline="", encoding="utf-8") as file:
        found = [(call_of(line), line["kernel"]) for line in csv.DictReader(file)]
    calls_there = [
        ("lska_fwd", "16", str(p.C), "80", "80", str(p.k), "", "", "", p.dtype, p.layout)
        for p in (first, second)
    ]
    assert found == [
        (c, k) for c, ks in zip(calls_there, (("a", "all"), ("b", "all")), strict=True) for k in ks
    ]


# Machine code

NVDISASM = """
.text.k:
	//## File ".nv_debug_ptx_txt", line 10
        /*0000*/                   LDC R1, c[0x0][0x28] ;
	//## File ".nv_debug_ptx_txt", line 11
        /*0010*/                   LDG.E R2, desc[UR4][R4.64] ;
.L_x_1:
	//## File ".nv_debug_ptx_txt", line 20
        /*0020*/                   FFMA R6, R2, R3, R6 ;
        /*0030*/                   FFMA R7, R2, R3, R7 ;
	//## File ".nv_debug_ptx_txt", line 10
        /*0040*/                   IADD3 R8, R8, 0x1, RZ ;
	//## File ".nv_debug_ptx_txt", line 21
        /*0050*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
	//## File ".nv_debug_ptx_txt", line 20
        /*0060*/                   FFMA R6, R2, R3, R6 ;
	//## File ".nv_debug_ptx_txt", line 30
        /*0070*/                   EXIT ;
        /*0080*/                   NOP ;
"""


class Made:
    def __init__(self, opcode, line):
        self.opcode, self.ptx_line, self.source = opcode, line, ("a.cuh", line)


class Part:
    def __init__(self, *instructions):
        self.instructions = instructions


class Kernel:
    blocks = (
        Part(Made("mov.u32", 10), Made("ld.global.f32", 11)),
        Part(Made("fma.rn.f32", 20), Made("bra", 21)),
        Part(Made("ret", 30)),
    )


def test_profile_a_loop_that_ptxas_unrolled_counts_once():
    blocks = sass.Code(NVDISASM)["k"]
    counts = sass.issued(blocks, Kernel, np.array([4, 300, 4]))
    assert [len(b.instructions) for b in blocks] == [2, 4, 2]
    assert counts.tolist() == [4, 100, 100]  # three copies of line 20; the exit's block goes by its fma
    made = sass.by_class(blocks, counts)
    assert made["fma"] == 300 and made["global"] == 4


def test_profile_latency_waits_for_operands():
    blocks = sass.Code(NVDISASM)["k"]
    once = np.ones(3)
    assert 500 < sass.alone(blocks, once, 1) < 600  # the load's, once
    assert sass.alone(blocks, 10 * once, 1) == 10 * sass.alone(blocks, once, 1)


def clocks(code, counts):
    """Of a warp by itself, for lines of machine code; a word ending in a colon is a label."""
    text = "\n".join(
        line if line.endswith(":") else f"        /*{16 * n:04x}*/ {line} ;" for n, line in enumerate(code)
    )
    return sass.alone(sass._blocks(text), counts, 1)


def test_profile_waits_for_what_a_loop_carries_around():
    loop = [".L_1:", "FADD R1, R0, R0", "LDG.E {}, [R2.64]", "@P0 BRA `(.L_1)", "EXIT"]
    entry = "LDG.E R0, [R2.64]"
    once, again = (clocks([entry, *(line.format(to) for line in loop)], [1, 4, 1]) for to in ("R8", "R0"))
    load = sass.LATENCY["global"]
    assert load < once < load + 30  # the value from before the loop is waited for when it is entered
    assert once + 3 * (load - 10) < again < once + 3 * load  # and in each round what the one before asked for


def test_profile_hides_nothing_behind_what_is_seldom_done():
    work = [f"FADD R{n}, R9, R9" for n in range(20, 320)]
    code = [
        "LDG.E R0, [R2.64]",
        "@P0 BRA `(.L_2)",
        *work,
        ".L_2:",
        "FADD R1, R0, R0",
        "@P1 BRA `(.L_0)",
        "EXIT",
    ]
    often, seldom = (clocks([".L_0:", *code], [8, n, 8, 1]) for n in (8, 2))
    load = sass.LATENCY["global"]
    assert abs(often / 8 - load) < 20
    assert abs(seldom / 8 - load - len(work) * 2 / 8) < 20


def test_profile_waits_for_copies_to_shared_memory():
    copy = ["LDGSTS.E.128 [R2], desc[UR4][R4.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x0"]
    load = sass.LATENCY["global"]
    assert clocks([*copy, "BAR.SYNC 0x0", "LDS R0, [R2]", "EXIT"], [1]) >= load
    assert clocks([*copy[:2], "LDS R0, [R2]", "EXIT"], [1]) < load  # nobody asked for them


def test_profile_knows_what_products_read():
    read, written, _ = sass._uses(sass.Instruction("HMMA.16816.F32", "", "R8, R4, R2, R12", 0))
    assert read == [f"R{n}" for n in (4, 5, 6, 7, 2, 3, 12, 13, 14, 15)]
    assert written == ["R8", "R9", "R10", "R11"]
    with pytest.raises(ValueError, match="NOSUCH.F32 is of no class"):
        sass.Instruction("NOSUCH.F32", "", "R0, R1", 0)


def test_profile_lets_a_guard_wait_for_its_predicate():
    assert "P3" in sass._uses(sass.Instruction("BRA", "@!P3 ", "`(.L_0)", 0))[0]


def test_profile_reads_ptxas():
    log = """ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 102 registers, used 1 barriers
"""
    assert sass.resources(log) == {"k": (102, 28)}


# The committed profile

JUDGE = "H200"
QUICK = [
    *(f"lska_fwd 64x80x80 B16 k{k} fp16 {layout}" for k in (7, 23) for layout in calls.LAYOUTS),
    *(f"lska_fwd 256x20x20 B16 k53 fp16 {layout}" for layout in calls.LAYOUTS),
    *(f"lska_bwd 256x20x20 B16 k7 fp16 {layout}" for layout in calls.LAYOUTS),
    *(f"acmix_{way} 256x20x20 B16 fp16 {layout}" for way in ("fwd", "bwd") for layout in calls.LAYOUTS),
]
JUDGED, WITHIN = (
    (
        "instructions_per_output",
        "sectors_ratio",
        "shared_passes_ratio",
        "registers",
        "spilled",
        "predicted_us",
    ),
    0.02,
)


@pytest.fixture(scope="module")
def profiler():
    from ptx.build import problem

    if why := problem():
        pytest.skip(f"cuda: {why}")
    from ptx import machine_code
    from ptx.profiler import Profiler

    machine_code.prepare(["lska", "acmix"], [BY_NAME[JUDGE].arch], 2)
    made = Profiler()
    yield made
    made.close()


@pytest.mark.parametrize("text", QUICK)
def test_profile_is_that_of_the_committed_table(profiler, text):
    """A kernel that gets slower on paper fails; one that gets faster is committed with its gain."""
    from ptx.profile import call_of, lines_of

    problem, gpu = calls.parse(text), BY_NAME[JUDGE]
    ((_, rows),) = profiler.rows(problem, [gpu])
    lines = list(lines_of(problem, gpu, rows))
    committed = {line["kernel"]: line for line in committed_lines(gpu) if call_of(line) == call_of(lines[0])}
    launches = {line["kernel"]: str(line["launches"]) for line in lines}
    assert launches == {name: line["launches"] for name, line in committed.items()}, "run `make profile`"
    for line in lines:
        if line["kernel"].startswith("aten::") or not row_matters(line):
            continue
        was = committed[line["kernel"]]
        for name in JUDGED if line["kernel"] != "all" else JUDGED[:3]:
            now, then = float(line[name]), float(was[name])
            assert abs(now - then) <= WITHIN * then, (
                f"{text}, {line['kernel']}: {name} was {then} and is {now}; "
                "repair it, or run `make profile` and say in the commit why"
            )


def committed_lines(gpu):
    from ptx.profile import RESULTS

    with open(RESULTS / f"{gpu.file}.csv", newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_profile_of_every_gpu_has_every_call(gpu):
    from ptx import triton_calls
    from ptx.profile import KEY, call_of, told

    table = [p for p in calls.table() if not p.op.startswith("triton") or gpu.arch == triton_calls.ARCH]
    wanted = {tuple(str(told(problem, name)) for name in KEY) for problem in table}
    assert {call_of(line) for line in committed_lines(gpu) if line["kernel"] == "all"} == wanted


def row_matters(line):
    """Sums of few elements do not: their counts are rounded away."""
    return float(line["instructions_per_output"]) >= 1
