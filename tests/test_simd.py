"""csrc/common/'s vectors by themselves, for every width of them: exp and log against long double, float16 against
numpy, loads and shuffles lane by lane. `aarch64` is another machine's code, run by an emulator."""

import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from build_backend.compile import FLAGS
from build_backend.decide import ISAS
from build_backend.facts import ROOT, collect

# Units in the last place. Measured without and with FMA: exp 1.13 and 0.90, log 1.72 and 1.84, log near 1 1.98.
LIMITS = {"exp": 1.5, "log": 2.5, "log_near_1": 2.5}
WIDTHS = {
    "baseline": "",
    "avx2": ISAS["avx2"],
    "avx2-64": ISAS["avx2"] + " -DLSKA_OPS_VECTOR_BYTES=64",
    "avx512": ISAS["avx512"],
    "aarch64": "",
}
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"

problem = collect().compiler_problem
needs_compiler = pytest.mark.skipif(bool(problem), reason=str(problem))
widths = pytest.mark.parametrize("width", WIDTHS)
by_integers = pytest.mark.skipif(
    platform.machine() != "x86_64", reason=f"{platform.machine()} converts float16 itself; run it on x86-64"
)


def why_not(width):
    """The sentence that a skip says."""
    if width == "aarch64":
        missing = [tool for tool in (CROSS, EMULATOR) if not shutil.which(tool)]
        packages = "apt-get install g++-aarch64-linux-gnu qemu-user-static"
        return f"{' and '.join(missing)} not found; {packages}" if missing else None
    features = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    needed = {flag.removeprefix("-m") for flag in WIDTHS[width].split() if flag.startswith("-m")}
    missing = sorted(needed - set(features.split()))
    return f"this processor has no {missing[0]}; run it on one that has" if missing else None


def program(folder, width, name, source=ROOT):
    """The command that runs tests/<name>.cpp, compiled with the headers in `source`."""
    if why := why_not(width):
        pytest.skip(why)
    compiler = [CROSS] if width == "aarch64" else shlex.split(collect().compiler)
    flags = [flag for flag in shlex.split(f"{FLAGS} {WIDTHS[width]}") if flag != "-I."]
    command = [*compiler, *flags, "-Wno-psabi", f"-I{source}", "-DLSKA_OPS_ISA=tested"]
    subprocess.run([*command, str(ROOT / "tests" / f"{name}.cpp"), "-o", str(folder / name)], check=True)
    emulator = [EMULATOR, "-L", "/usr/aarch64-linux-gnu"] if width == "aarch64" else []
    return [*emulator, str(folder / name)]


def edited(folder, header, old, new):
    """A copy of csrc/common/ with `new` for the one `old` in a header."""
    shutil.copytree(ROOT / "csrc" / "common", folder / "csrc" / "common")
    file = folder / "csrc" / "common" / header
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    return folder


# exp and log


def errors(folder, width, source=ROOT):
    """{(function, type): largest error in units in the last place} of the headers in `source`."""
    command = program(folder, width, "simd_exp", source)
    command += ["16"] if width == "aarch64" else []  # long double is slow in an emulator
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    print(*lines, sep="\n")
    assert not [line for line in lines if line.startswith("wrong")]
    return {tuple(line.split()[:2]): float(line.split()[2]) for line in lines}


@needs_compiler
@widths
def test_simd_exp_and_log_within_units_in_the_last_place(tmp_path, width):
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
    source = edited(tmp_path, "simd_exp.h", term, fewer)
    assert errors(tmp_path, "baseline", source)[seen] > LIMITS[seen[0]]


# float16


def all_halves():
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def floats_that_matter(random_ones=0):
    """Every half, every midpoint of two, each with its neighbours and of both signs; what is special; random bits."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[-1] = 65536  # in the place of infinity, so that the last midpoint is where infinity begins
    middles = (halves[1:] + halves[:-1]) / 2
    near = np.concatenate([halves, middles]).view(np.uint32)[:, None] + np.arange(-2, 3)
    special = [0x7F800000, 0x7F800001, 0x7F801FFF, 0x7FA00000, 0x7FC00000, 0x7FFFFFFF, 1, 0x7FFFFF]
    special += [0x47801000, 0x47801001, 0x478FFFFF, 0x47900000, 0x48000000, 0x7F7FFFFF]  # beyond 2^16
    random = np.random.default_rng(0)
    bits = np.concatenate(
        [
            near[near >= 0],
            special,
            random.integers(0, 1 << 31, random_ones),
            random.integers(0x32000000, 0x48000000, random_ones),  # 2^-27 to 2^17
        ]
    ).astype(np.uint32)
    bits = np.concatenate([bits, bits | np.uint32(1 << 31)])
    return np.append(bits, np.zeros(-len(bits) % 16, np.uint32)).view(np.float32)  # whole vectors


def converted(folder, width, numbers, source=ROOT):
    """[6, n]: `numbers` in the other type, in simd_half.cpp's six ways."""
    to = np.float16 if numbers.dtype == np.float32 else np.float32
    command = [*program(folder, width, "simd_half", source), "to_half" if to == np.float16 else "to_float"]
    done = subprocess.run(command, input=numbers.tobytes(), check=True, stdout=subprocess.PIPE)
    return np.frombuffer(done.stdout, to).reshape(6, len(numbers))


def differing(got, numbers):
    """How many of [6, n] are not numpy's `numbers` bit for bit, any NaN being as good as another."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = numbers.astype(got.dtype)
    bits = np.dtype(f"u{got.dtype.itemsize}")
    same = got.view(bits) == wanted.view(bits)
    return int((~np.where(np.isnan(wanted), np.isnan(got), same)).sum())


@needs_compiler
@widths
def test_simd_float16_is_exact(tmp_path, width):
    for numbers in (all_halves(), floats_that_matter(1 << 19)):
        assert differing(converted(tmp_path, width, numbers), numbers) == 0


@needs_compiler
@by_integers
@pytest.mark.parametrize(
    "right, wrong",
    [
        ("magnitude >= 0x7c00", "magnitude > 0x7c00"),
        ("magnitude < 0x400 ?", "magnitude < 0x3ff ?"),
        ("(half - magnitude) << 16", "HalfBits{}"),
    ],
)
def test_simd_a_wrong_float_is_seen(tmp_path, right, wrong):
    source = edited(tmp_path, "simd.h", right, wrong)
    assert differing(converted(tmp_path, "baseline", all_halves(), source), all_halves()) > 0


@needs_compiler
@by_integers
@pytest.mark.parametrize(
    "right, wrong",
    [
        ("+ 0xfff + ((magnitude >> 13) & 1)", "+ 0x1000"),  # half up
        ("+ 0xfff + ((magnitude >> 13) & 1)", "+ 0xfff"),  # half down
        ("magnitude < 0x38800000", "magnitude < 0x38000000"),
        ("magnitude < 0x47800000", "magnitude < 0x47900000"),
        ("magnitude < 0x47800000", "magnitude < 0x477fefff"),
        ("magnitude > 0x7f800000 ?", "magnitude > 0x7fbfffff ?"),  # a signalling NaN
        ("(bits >> 16) & 0x8000", "HalfBits{}"),
    ],
)
def test_simd_a_wrong_half_is_seen(tmp_path, right, wrong):
    source, numbers = edited(tmp_path, "simd.h", right, wrong), floats_that_matter()
    assert differing(converted(tmp_path, "baseline", numbers, source), numbers) > 0


# Loads, stores and shuffles


@needs_compiler
@widths
def test_simd_lanes_are_where_the_definition_says(tmp_path, width):
    command = program(tmp_path, width, "simd_lanes")
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert not [line for line in said if line.startswith("wrong")], said
    assert int(said[-1].removeprefix("checked ")) > 100
