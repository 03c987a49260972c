"""Seeded bugs that only compiled code has, each of which a test of tests/test_ptx*.py has to catch.

    python tests/ptx/mutants.py [part of a name] [--tenth N]

DEVICE are in code that a host compiler never sees: nvcc compiles it again, two at a time, and the launchers stay
those of the unchanged kernels. COMPILED are in what Triton made, as its compiler could have: in PTX itself.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[0] = str(TESTS)  # not this folder, whose names are a package's

import seeded  # noqa: E402
from seeded import ROOT, Mutant  # noqa: E402

FORWARD_AND_BACKWARD = "tests/test_ptx_lska.py -k within_bound[t4-{}-channels_last]"
F16, BF16 = (FORWARD_AND_BACKWARD.format(dtype) for dtype in ("f16", "bf16"))
BANDS = "tests/test_ptx_bands.py -k within_bound"
OLDEST, NEWER = (
    f"tests/test_ptx_acmix.py -k products_of_other_architectures_within_bound[{n}]" for n in (75, 90)
)
PORTABLE, WARP = "common/portable.cuh", "common/warp.cuh"
DEVICE = [
    Mutant(
        "device: shuffle of half a warp",
        PORTABLE,
        "return __shfl_xor_sync(0xffffffffu, v, mask);",
        "return __shfl_xor_sync(0xffffffffu, v, mask, 16);",
        F16,
    ),
    Mutant(
        "device: on 7.5 NaN is not the larger magnitude",
        PORTABLE,
        "  a = fabsf(a), b = fabsf(b);\n  return a != a || a > b ? a : b;\n#endif",
        "  return fmaxf(fabsf(a), fabsf(b));\n#endif",
        "tests/test_ptx_acmix.py -k not_finite",
    ),
    Mutant(
        "device: upper half of a signed product",
        PORTABLE,
        "return __umulhi(a, b);",
        "return uint32_t(__mulhi(int(a), int(b)));",
        F16,
    ),
    Mutant(
        "device: bfloat16 not where it is in a float",
        PORTABLE,
        "return __uint_as_float(uint32_t(v.bits) << 16);",
        "return __uint_as_float(uint32_t(v.bits) << 15);",
        BF16,
    ),
    Mutant(
        "device: mma: an f16 fragment's rows where columns are",
        WARP,
        "f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}",
        "f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %6, %5, %7}",
        BANDS,
    ),
    Mutant(
        "device: mma: a bf16 fragment's rows where columns are",
        WARP,
        "f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}",
        "f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %6, %5, %7}",
        BANDS,
    ),
    Mutant(
        "device: cp.async: no wait",
        PORTABLE,
        'asm volatile("cp.async.wait_all;" : : : "memory");',
        "",
        BANDS,
    ),
    Mutant(
        "device: half2: lanes exchanged",
        WARP,
        "__floats2half2_rn(first, second)",
        "__floats2half2_rn(second, first)",
        BANDS,
    ),
    Mutant(
        "device: bfloat162: lanes exchanged",
        WARP,
        "__floats2bfloat162_rn(first, second)",
        "__floats2bfloat162_rn(second, first)",
        BANDS,
    ),
    Mutant("device: ldmatrix: not turned", WARP, "m8n8.x4.trans.shared.b16", "m8n8.x4.shared.b16", NEWER),
    Mutant(
        "device: ldmatrix: the second matrix for the third",
        WARP,
        'm8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"',
        'm8n8.x4.shared.b16 {%0, %2, %1, %3}, [%4];"',
        NEWER,
    ),
    Mutant(
        "device: mma of 8: the second half with the first's columns",
        WARP,
        '"r"(a2), "r"(a3), "r"(b1)',
        '"r"(a2), "r"(a3), "r"(b0)',
        OLDEST,
    ),
    Mutant(
        "device: mma of 8: rows g + 8 of the second half are rows g",
        WARP,
        '"r"(a2), "r"(a3), "r"(b1)',
        '"r"(a2), "r"(a2), "r"(b1)',
        OLDEST,
    ),
    Mutant("device: movmatrix: not turned", WARP, "return turned;", "return pair;", BANDS),
]


TRITON = "tests/test_ptx_triton.py -k within_bound"
COPIED = f"{TRITON}[lska-bf16]"  # of the problems drawn the one whose rows are aligned: it copies under way


@dataclass(frozen=True)
class Rewritten:
    """A bug in Triton's PTX: what a pattern finds becomes something else."""

    name: str
    right: str
    wrong: str
    test: str = f"{TRITON}[lska-f16]"

    def apply(self, text: str) -> str:
        return re.sub(self.right, self.wrong, text)


REGISTERS = r"\{\s*(%r\d+),\s*(%r\d+),\s*(%r\d+),\s*(%r\d+)\s*\}"
COMPILED = [
    Rewritten(
        "mma: rows of a fragment where its columns are",
        rf"(mma\.sync\S+\s+\{{[^}}]*\}},\s*){REGISTERS}",
        r"\1{\2, \4, \3, \5}",
    ),
    Rewritten(
        "mma: the halves of the right factor exchanged",
        rf"(mma\.sync\S+\s+\{{[^}}]*\}},\s*{REGISTERS},\s*)\{{\s*(%r\d+),\s*(%r\d+)\s*\}}",
        r"\1{\7, \6}",
    ),
    Rewritten("cp.async: no wait", r"cp\.async\.wait_group\s+\d+;", "", COPIED),
    Rewritten("cp.async: one group not waited for", r"(cp\.async\.wait_group)\s+0;", r"\1 1;", COPIED),
    Rewritten(
        "half2: lanes exchanged",
        r"(cvt\.rn\.b?f16x2\.f32\s+%r\d+),\s*(%\w+),\s*(%\w+);",
        r"\1, \3, \2;",
    ),
    Rewritten("ldmatrix: turned", r"(ldmatrix\.sync\.aligned\.m8n8\.x4)\.trans", r"\1"),
]
MUTANTS = [*DEVICE, *COMPILED]
SECONDS = 900


def run_tests(test: str) -> int:
    """pytest's exit status; a signal ends what does not."""
    import pytest

    signal.alarm(SECONDS)
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *test.split(" ", 2)]))


def try_device(mutant: Mutant, folder: Path) -> int:
    root = folder / re.sub(r"\W+", "_", mutant.name)
    shutil.copytree(ROOT / "csrc", root / "csrc")
    file = root / "csrc" / mutant.file
    file.write_text(seeded.with_bug(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    os.environ["LSKA_OPS_PTX_SOURCES"] = str(root)
    return run_tests(mutant.test)


def try_compiled(mutant: Rewritten, folder: Path) -> int:
    from ptx import triton_host

    parse, changed = triton_host.Module, []

    def parse_with_bug(text):
        wrong = mutant.apply(text)
        changed.append(wrong != text)
        return parse(wrong)

    triton_host.Module = parse_with_bug
    status = run_tests(mutant.test)
    if not any(changed):
        sys.exit(f"{mutant.name}: no kernel has what it replaces")
    return status


def killed_by(mutant, ended: seeded.Ended, passing: set) -> str | None:
    """How a test caught it; `passing` gets what has to pass where there is no bug."""
    passing.add(mutant.test)
    if ended.status < 0:
        return f"signal {-ended.status}"
    failed = [line[7:].split(" - ")[0] for line in ended.said.splitlines() if line.startswith("FAILED ")]
    if ended.status == 1 and failed:
        return failed[0].split("::")[1]
    if ended.status != 0:
        sys.exit(f"the tests did not run:\n{ended.said}")
    return None


def main(*words: str) -> int:
    start = time.monotonic()
    mutants = seeded.chosen(MUTANTS, words)
    if not mutants:
        return 0
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    from ptx import build

    if reason := build.problem():
        sys.exit(f"mutants: {reason}")
    import lska_ops.testing.problems  # noqa: F401  torch and all: once for all children

    for mutant in mutants:
        if isinstance(mutant, Mutant):
            seeded.with_bug((ROOT / "csrc" / mutant.file).read_text(encoding="utf-8"), mutant)
    with tempfile.TemporaryDirectory(prefix="ptx_mutants_") as name:
        tasks = (
            partial(try_device if isinstance(m, Mutant) else try_compiled, m, Path(name)) for m in mutants
        )
        passing = set()
        results = (killed_by(*pair, passing) for pair in zip(mutants, seeded.forked(tasks), strict=True))
        status = seeded.judge(mutants, results, lambda mutant: "ptx", start)
    tests = sorted(passing)
    for test, ended in zip(tests, seeded.forked(partial(run_tests, t) for t in tests), strict=True):
        if ended.status:
            sys.exit(f"{test} fails without a seeded bug:\n{ended.said}")
    print(f"without a bug these tests pass; {time.monotonic() - start:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
