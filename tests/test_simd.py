"""csrc/common/simd_exp.h by itself: exp and log of vectors, against long double, for every width of vectors."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from build_backend.compile import FLAGS
from build_backend.decide import ISAS
from build_backend.facts import ROOT, collect

# Units in the last place. Measured without and with FMA: exp 1.13 and 0.90, log 1.72 and 1.84, log near 1 1.98.
LIMITS = {"exp": 1.5, "log": 2.5, "log_near_1": 2.5}
WIDTHS = {"baseline": "", "avx2": ISAS["avx2"], "avx2-64": ISAS["avx2"] + " -DLSKA_OPS_VECTOR_BYTES=64"}

problem = collect().compiler_problem
needs_compiler = pytest.mark.skipif(bool(problem), reason=str(problem))


def supported(width):
    features = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return width == "baseline" or {"avx2", "fma", "f16c"} <= set(features.split())


def errors(folder, width, source=ROOT):
    """{(function, type): largest error in units in the last place} of the headers in `source`."""
    program = folder / "simd_exp"
    flags = [*shlex.split(FLAGS), *shlex.split(WIDTHS[width]), "-Wno-psabi", f"-I{source}"]
    flags = [flag for flag in flags if flag != "-I."]
    command = [*shlex.split(collect().compiler), *flags, "-DLSKA_OPS_ISA=tested"]
    subprocess.run([*command, str(ROOT / "tests" / "simd_exp.cpp"), "-o", str(program)], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    print(*lines, sep="\n")
    assert not [line for line in lines if line.startswith("wrong")]
    return {tuple(line.split()[:2]): float(line.split()[2]) for line in lines}


@needs_compiler
@pytest.mark.parametrize("width", WIDTHS)
def test_simd_exp_and_log_within_units_in_the_last_place(tmp_path, width):
    if not supported(width):
        pytest.skip("this processor has no AVX2; run it on one that has")
    found = errors(tmp_path, width)
    assert len(found) == 2 * len(LIMITS)
    assert all(error <= LIMITS[function] for (function, _), error in found.items()), found


@needs_compiler
@pytest.mark.parametrize(
    "term, fewer, seen",
    [
        ("kExpTerms = 7", "kExpTerms = 5", ("exp", "float")),
        ("kExpTerms = 7", "kExpTerms = 6", ("exp", "float")),
        ("kExpTerms = 13", "kExpTerms = 11", ("exp", "double")),
        ("kLogTerms = 5", "kLogTerms = 2", ("log", "float")),
        ("kLogTerms = 11", "kLogTerms = 8", ("log", "double")),
    ],
)
def test_simd_a_shorter_series_is_seen(tmp_path, term, fewer, seen):
    shutil.copytree(ROOT / "csrc" / "common", tmp_path / "csrc" / "common")
    header = tmp_path / "csrc" / "common" / "simd_exp.h"
    text = header.read_text(encoding="utf-8")
    assert text.count(term) == 1
    header.write_text(text.replace(term, fewer), encoding="utf-8")
    assert errors(tmp_path, "baseline", tmp_path)[seen] > LIMITS[seen[0]]
