"""What `make wheels` judges wheels by sees what is wrong, and what a wheel says where it cannot serve."""

import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from build_backend.compile import describe, ninja_file
from build_backend.facts import collect
from lska_ops import _compiled
from wheels import __main__ as making
from wheels import emulator, environments, judge, library, pack, table, wine
from wheels.environments import best_isa, judged
from wheels.library import run
from wheels.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
SYMBOLS = """\
Symbol table '.dynsym' contains 5 entries:
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     0: 0000000000000000     0 NOTYPE  LOCAL  DEFAULT  UND
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (2)
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZSt9terminatev@GLIBCXX_3.4 (3)
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _Unwind_Resume@GCC_3.0 (4)
     4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND aoti_torch_get_sizes
"""
NEEDED = """\
 0x0000000000000001 (NEEDED)             Shared library: [libtorch_cpu.so]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
"""


def symbol(name, section="UND", visibility="DEFAULT", bind="GLOBAL"):
    return f"     9: 0000000000001000    12 FUNC    {bind} {visibility}  {section} {name}\n"


# What is judged


def test_wheels_a_library_for_old_systems_passes():
    assert judge.elf(SYMBOLS, NEEDED) == []
    assert judge.versions(SYMBOLS) == {"GLIBC": (2, 14), "GLIBCXX": (3, 4), "GCC": (3, 0)}


@pytest.mark.parametrize(
    "name, version, good",
    [
        ("GLIBC", "2.28", True),
        ("GLIBC", "2.29", False),
        ("GLIBC", "2.9", True),
        ("GLIBCXX", "3.4.24", True),
        ("GLIBCXX", "3.4.25", False),
        ("CXXABI", "1.3.11", True),
        ("CXXABI", "1.3.12", False),
        ("GCC", "7.0.0", True),
        ("GCC", "12.0.0", False),
    ],
)
def test_wheels_versions_of_symbols(name, version, good):
    said = judge.elf(SYMBOLS + symbol(f"called@{name}_{version} (9)"), NEEDED)
    assert bool(said) is not good
    if said:
        assert f"called is of {name} {version}; expected " in said[0]


@pytest.mark.parametrize("bind", ["GLOBAL", "WEAK", "UNIQUE"])
def test_wheels_nothing_is_exported(bind):
    (said,) = judge.elf(SYMBOLS + symbol("lska_kernel", section="12", bind=bind), NEEDED)
    assert said.startswith("lska_kernel is exported; expected nothing")
    assert judge.elf(SYMBOLS + symbol("lska_kernel", section="12", bind="LOCAL"), NEEDED) == []


@pytest.mark.parametrize(
    "dynamic, word",
    [
        (NEEDED.replace("libc.so.6", "libomp.so.5"), "needs libomp.so.5"),
        (NEEDED.replace("libtorch_cpu.so", "libc.so.6"), "does not name libtorch_cpu.so"),
        (NEEDED + " 0x000000000000001d (RUNPATH)            Library runpath: [/home/me]\n", "run path"),
    ],
)
def test_wheels_what_a_library_needs(dynamic, word):
    (said,) = judge.elf(SYMBOLS, dynamic)
    assert word in said


HEADERS = """\
_C.dll:     file format pei-x86-64

The Import Tables (interpreted .rdata section contents)
 vma:            Hint    Time      Forward  DLL       First
                 Table   Stamp     Chain    Name      Thunk
 000a45f4	000a4720 00000000 00000000 000a55f8 000a4c20

	DLL Name: api-ms-win-crt-heap-l1-1-0.dll
	vma:  Hint/Ord Member-Name Bound-To
	a5150	    0  _aligned_free

	DLL Name: KERNEL32.dll
	vma:  Hint/Ord Member-Name Bound-To
	a5388	    0  Sleep

	DLL Name: torch_cpu.dll
	vma:  Hint/Ord Member-Name Bound-To
	a5388	    0  aoti_torch_get_sizes

"""
EXPORTS = """
[Ordinal/Name Pointer] Table
	[   0] lska_kernel

"""


def test_wheels_a_library_for_windows_passes():
    assert judge.pe(HEADERS) == []


@pytest.mark.parametrize(
    "name",
    ["libstdc++-6.dll", "libgcc_s_seh-1.dll", "libwinpthread-1.dll", "vcruntime140.dll", "torch_cpu.dll2"],
)
def test_wheels_windows_has_what_a_library_loads(name):
    (said,) = judge.pe(f"{HEADERS}\tDLL Name: {name}\n")
    assert said == f"the library loads {name}, which not every Windows has"


def test_wheels_a_library_for_windows_calls_torch_and_exports_nothing():
    assert judge.pe(HEADERS.replace("torch_cpu.dll", "kernel32.dll")) == [
        "the library does not load torch_cpu.dll"
    ]
    (said,) = judge.pe(HEADERS + EXPORTS)
    assert said.startswith("lska_kernel is exported; expected nothing")


THROWN = {
    "sentence": "RuntimeError: throws: got sentence; expected another",
    "number": "RuntimeError: an exception of a type that is not known",
    "memory": "RuntimeError: std::bad_alloc",
    "nothing": "nothing",
}


def test_wheels_what_an_op_throws_is_a_runtime_error():
    assert judge.thrown(THROWN) == []
    for name, answer in {
        "sentence": "MemoryError: x",
        "number": None,
        "memory": "memory",
        "nothing": "x",
    }.items():
        (said,) = judge.thrown(THROWN | {name: answer})
        assert said.startswith(f"an op that throws a {name} was answered {answer!r}; expected ")


def test_wheels_every_op_of_the_cpu_is_registered_by_box():
    """On Windows what another macro lets out ends the process."""
    for file in [*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("cpu*.h")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?<!LSKA_OPS)(?<!\w)TORCH_BOX|stable::parallel_for", text), file


def test_wheels_hold_what_users_need():
    good = [
        "lska_ops/__init__.py",
        "lska_ops/lska/op.py",
        "lska_ops/yolo/cfg/yolo11-LSKA.yaml",
        "lska_ops/_build_info.json",
        "lska_ops-0.1.0.dist-info/licenses/LICENSES/AGPL-3.0-only.txt",
    ]
    assert judge.contents(good, None) == []
    assert judge.contents([*good, "lska_ops/_C.so"], "_C.so") == []
    assert judge.contents(good, "_C.so") == ["lska_ops/_C.so is not in the wheel"]
    assert judge.contents([*good, "lska_ops/_C.dll"], TARGETS["win_amd64"].library) == []
    for name in (
        "lska_ops/_C.so",
        "lska_ops/_C.dll",
        "lska_ops/_plan.cpython-311-x86_64-linux-gnu.so",
        "tests/test_lska.py",
        "wheels/pack.py",
        "lska_ops/lska/cpu.o",
    ):
        (said,) = judge.contents([*good, name], None)
        assert said.startswith(f"{name} is in the wheel")


@pytest.mark.parametrize(
    "instruction, good",
    [
        ("addps  %xmm1,%xmm0", True),
        ("pminub %xmm1,%xmm0", True),
        ("pmaxsw %xmm1,%xmm0", True),
        ("pshufd $0x0,%xmm1,%xmm0", True),
        ("pextrw $0x0,%xmm0,%eax", True),
        ("pinsrw $0x0,%eax,%xmm0", True),
        ("pshufb %xmm1,%xmm0", False),
        ("pminsd %xmm1,%xmm0", False),
        ("pmaxsb %xmm1,%xmm0", False),
        ("pmulld %xmm1,%xmm0", False),
        ("roundps $0x8,%xmm1,%xmm0", False),
        ("haddps %xmm1,%xmm0", False),
        ("pinsrd $0x1,%eax,%xmm0", False),
        ("vaddps %ymm1,%ymm0,%ymm0", False),
    ],
)
def test_wheels_baseline_is_for_every_processor(instruction, good):
    said = judge.old_processors(f"   0:\t0f 58 c1             \t{instruction}\n")
    assert bool(said) is not good
    assert good or instruction.split()[0] in said[0]


USED = """
arch = sm_75
 Function _Z1av:
  REG:64 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_110
 Function _Z1av:
  REG:128 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_wheels_kernels_keep_to_their_registers():
    assert judge.local_memory(USED) == [
        "_Z1av for sm_110 has 8 bytes of stack and 0 of local memory; expected none"
    ]
    assert judge.local_memory(USED.replace("STACK:8", "STACK:0")) == []
    assert judge.local_memory("") == ["cuobjdump found no kernel in the library"]


ASSEMBLY = """
x.o:     file format elf64-x86-64

Disassembly of section .text:

<first>:
	c3                   	ret

Disassembly of section .text.second:

<second>:
	e8 00 00 00 00       	call   <second+0x5>
			R_X86_64_PLT32	first-0x4
"""


def test_wheels_code_is_that_of_a_source_build():
    start, first, second = ASSEMBLY.partition("Disassembly of section .text:")[0], *ASSEMBLY.split("Dis")[1:]
    other_order = f"{start}Dis{second}\nDis{first}"
    assert set(judge.functions(ASSEMBLY)) == {"first", "second"}
    assert judge.other_code("x.o", ASSEMBLY, other_order) == []
    for change in (("ret", "nop"), ("first-0x4", "third-0x4"), ("<first>:", "<fourth>:")):
        assert judge.other_code("x.o", ASSEMBLY, ASSEMBLY.replace(*change)), change
    assert judge.other_code("x.o", "", ""), "nothing was compared"


@pytest.mark.parametrize(
    "tags, good",
    [
        ("manylinux_2_28_x86_64", True),
        ("manylinux_2_27_x86_64.manylinux_2_28_x86_64", True),
        ("manylinux_2_28_x86_64.manylinux_2_34_x86_64", False),
        ("manylinux_2_28_aarch64", False),
        ("linux_x86_64", False),
    ],
)
def test_wheels_auditwheel_has_to_find_an_old_system(tags, good):
    said = judge.auditwheel(
        TARGETS["x86_64"], f"x\nFixed-up wheel written to /t/lska_ops-1.0-py3-none-{tags}.whl\n"
    )
    assert bool(said) is not good


def test_wheels_auditwheel_that_refuses_is_quoted():
    (said,) = judge.auditwheel(TARGETS["x86_64"], "cannot repair:\n too new")
    assert said == "auditwheel refuses the wheel: cannot repair: too new"


def test_wheels_best_instruction_set():
    assert best_isa("sse sse2 fpu") == best_isa("avx2 fma") == "baseline"
    assert best_isa("avx2 fma f16c avx512f avx512bw") == "avx2"
    assert best_isa("avx2 fma f16c avx512f avx512vl avx512bw avx512dq") == "avx512"


ANSWERS = {
    "python": "3.11.7",
    "torch": "2.11.0",
    "file": "/new/lib/lska_ops/__init__.py",
    "problem": None,
    "isa": "avx2",
    "refused": [
        "ValueError: lska: conv0h weight has shape [4, 1, 1, 4]; expected k odd",
        "RuntimeError: lska_cascade_fwd_cpu: conv0v weight has shape [4, 1, 1, 4]; expected [4, 1, 3, 1]",
    ],
    "wrong": [],
    "problems": 400,
    "doctor": "  cpu: yes (chosen)\n",
    "doctor_status": 0,
}


@pytest.mark.parametrize(
    "change, word",
    [
        ({"wrong": ["1.5 times the bound: python -m ..."]}, "1.5 times the bound"),
        ({"file": "/clone/lska_ops/__init__.py"}, "imported from /clone"),
        ({"problem": "torch is 2.10"}, "not loaded: torch is 2.10"),
        ({"isa": "baseline"}, "expected avx2's"),
        ({"refused": ANSWERS["refused"][:1]}, "conv0v weight"),
        ({"refused": ANSWERS["refused"][1:]}, "conv0h weight"),
        ({"doctor": "  cpu: no, x\n"}, "doctor does not say"),
        ({"doctor_status": 1}, "doctor does not say"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wheels_answers_of_an_environment(change, word):
    assert judged(ANSWERS, Path("/new"), "avx2") == []
    (said,) = judged(ANSWERS | change, Path("/new"), "avx2")
    assert word in said


def test_wheels_a_command_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "LIMIT", 5)
    environment = object.__new__(environments.Environment)
    environment.python, environment.empty = [sys.executable], tmp_path
    done = environment.run("-c", "import time; print('begun', flush=True); time.sleep(60)")
    assert (done.returncode, done.stdout) == (124, "begun\n\nstopped after 5 s")


def test_wheels_without_a_library_take_the_reference():
    pure = {"problem": "no library", "isa": None, "doctor": "reference: yes (chosen)", "doctor_status": 1}
    assert judged(ANSWERS | pure, Path("/new"), None) == []
    assert judged(ANSWERS | pure | {"problem": None}, Path("/new"), None) == [
        "a library was loaded; expected none in this wheel"
    ]


# What is built and what it is tried in


ISAS = ("avx512", "avx2", "baseline")


@pytest.mark.parametrize("name, isas", [("x86_64", ISAS), ("aarch64", ("baseline",)), ("win_amd64", ISAS)])
def test_wheels_are_compiled_as_pip_does_without_plan(name, isas, tmp_path, monkeypatch):
    if collect().ninja is None or collect().compiler_problem:
        pytest.skip("no compiler or no ninja was found; make setup")
    monkeypatch.setattr(library, "version", lambda target: "g++ of another machine")
    (tmp_path / "version.py").write_text("__version__ = '2.11.0+cu130'", encoding="utf-8")
    plan, facts = library.plan_of(TARGETS[name], tmp_path, cuda=False)
    assert (plan.parts, plan.isas, plan.reasons) == (("cpu",), isas, {})
    assert facts.torch_version == "2.11.0+cu130" and "2.11.0" in json.dumps(describe(plan, facts))
    text = ninja_file(plan, facts, tmp_path, "")
    compiler = "c++ -target x86_64-windows-gnu" if name == "win_amd64" else TARGETS[name].compiler
    assert (f"{compiler}\n" in text.partition("nvcc = ")[0]) is (name != "x86_64" or facts.compiler == "c++")
    assert ("-mavx" in text) is (name != "aarch64") and "plan_module" not in text


def test_wheels_missing_compiler_names_its_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert library.missing(TARGETS["aarch64"]).endswith(
        "; apt-get install g++-aarch64-linux-gnu qemu-user-static"
    )
    assert library.missing(TARGETS["x86_64"]) == "c++ was not found; apt-get install g++"
    assert emulator.missing() == "qemu-aarch64-static was not found; apt-get install qemu-user-static"
    assert library.missing(TARGETS["win_amd64"]) is None  # zig is in the environment that links
    assert wine.missing() == "wine was not found; apt-get install wine"


@pytest.mark.parametrize(
    "version, word", [((3, 11, 2), None), ((3, 12, 1), "this one, 3.12; run in Python 3.11")]
)
def test_wheels_python_of_windows_takes_this_ones_library(version, word, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(wine, "sys", SimpleNamespace(version_info=version))
    said = wine.missing()
    assert said is None if word is None else word in said


def test_wheels_paths_of_wine():
    path = Path("/tmp/wheels 1/_C.dll")
    assert wine.for_windows(path) == "Z:\\tmp\\wheels 1\\_C.dll"
    assert wine.from_windows(wine.for_windows(path)) == str(path)


def test_wheels_what_wine_could_not_try_is_said(tmp_path, monkeypatch):
    """A check whose tool is not there is no check passed."""
    options = SimpleNamespace(oldest=tmp_path, problems=10)
    (tmp_path / "version.py").write_text("__version__ = '2.11.0+cu130'", encoding="utf-8")
    monkeypatch.setattr(making, "run_python", lambda environment, program: tmp_path)
    row = table.Row("x.whl")
    monkeypatch.setattr(wine, "missing", lambda: "no wine; install it")
    making.in_wine(row, tmp_path / "x.whl", options)
    assert (row.skipped, row.passed, row.failed) == (["wine: no wine; install it"], [], [])
    monkeypatch.setattr(wine, "missing", lambda: None)
    monkeypatch.setattr(
        library.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stdout="no panda3d")
    )
    making.in_wine(row, tmp_path / "x.whl", options)
    assert "could not be installed" in row.skipped[-1] and "no panda3d" in row.skipped[-1]
    assert (row.passed, row.failed, row.ran) == ([], [], [])


def test_wheels_instruction_sets_that_wine_cannot_try_are_said(tmp_path, monkeypatch):
    class Fake:
        folder = tmp_path

        def install(self, file):
            return None

        def answers(self, problems, *isas):
            self.isas = isas
            return ANSWERS | {"file": str(tmp_path / "lska_ops"), "problems": problems * len(isas)}

        def thrown(self, file):
            return []

        def versions(self):
            return "wine-8.0"

    fake = Fake()
    (tmp_path / "version.py").write_text("__version__ = '2.11.0+cu130'", encoding="utf-8")
    for name, answer in {
        "run_python": tmp_path,
        "cpu_flags": "avx2 fma f16c",
        "plan_of": (None, None),
        "throwing": tmp_path / "throws.dll",
    }.items():
        monkeypatch.setattr(making, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(wine, "missing", lambda: None)
    monkeypatch.setattr(wine, "Wine", lambda folder, torch: fake)
    row = table.Row("x.whl")
    making.in_wine(row, tmp_path / "x.whl", SimpleNamespace(oldest=tmp_path, problems=50))
    assert fake.isas == ("avx2", "baseline")
    assert row.skipped == ["wine: avx512: this processor lacks it"]
    assert (row.passed, row.failed) == (["wine", "exceptions"], [])
    assert row.ran == ["torch 2.11.0, Python 3.11.7: 20", "avx2, baseline in wine-8.0"]


def test_wheels_torch_of_windows_has_the_names_of_this_one(tmp_path, monkeypatch):
    """What this torch lacks is in no list of names, and so does not link; a name of C++ is the runtime's."""
    commands = []

    def answer(*command, **options):
        commands.append([str(word) for word in command])
        both = "aoti_torch_get_sizes\ntorch_new\n_ZTVSt9exception\n"
        return {"-u": f"{both}malloc\n", "-D": f"{both}torch_old\n"}.get(command[1], "")

    monkeypatch.setattr(library, "run", answer)
    facts = SimpleNamespace(torch=str(tmp_path))
    made = library.link_for_windows(TARGETS["win_amd64"], facts, [tmp_path / "a.o"], tmp_path / "_C.dll")
    said = (tmp_path / "_C.def").read_text(encoding="utf-8")
    assert said == "LIBRARY torch_cpu.dll\nEXPORTS\naoti_torch_get_sizes\ntorch_new\n"
    assert made == tmp_path / "_C.dll" and str(tmp_path / "_C.lib") in commands[-1]


@pytest.mark.skipif(not shutil.which(emulator.GCC), reason=f"{emulator.GCC} was not found; install it")
def test_wheels_stand_ins_have_what_torch_asks_for(tmp_path):
    lib, there = tmp_path / "torch" / "lib", tmp_path / "libcufake.so.1"
    lib.mkdir(parents=True)
    for name, text in {
        "fake.c": "int cuThing(void) { return 3; }",
        "fake.map": "FAKE_1 { global: cuThing; };",
        "torch.c": "int cuThing(void); int cuOther(void); int ours(void) { return cuThing() + cuOther(); }",
        "main.c": "int ours(void); int main(void) { return ours(); }",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    gcc = [emulator.GCC, "-shared", "-fPIC"]
    script = f"-Wl,--version-script={tmp_path / 'fake.map'}"
    run(*gcc, "-Wl,-soname,libcufake.so.1", script, "-o", there, tmp_path / "fake.c")
    run(*gcc, "-o", lib / "libtorch.so", tmp_path / "torch.c", there)
    emulator.stand_ins(tmp_path / "torch", tmp_path / "cuda")
    made = tmp_path / "cuda" / "libcufake.so.1"
    assert "cuThing@@FAKE_1" in run("nm", "-D", "--defined-only", made)
    assert not (tmp_path / "cuda" / "libc.so.6").exists()
    if not shutil.which(emulator.QEMU):
        pytest.skip(f"{emulator.QEMU} was not found; apt-get install qemu-user-static")
    program = tmp_path / "main"
    run(emulator.GCC, "-o", program, tmp_path / "main.c", lib / "libtorch.so", made)
    folders = f"LD_LIBRARY_PATH={lib}:{made.parent}"
    done = subprocess.run([emulator.QEMU, "-L", "/usr/aarch64-linux-gnu", "-E", folders, program])
    assert done.returncode == 0  # with the real one it would be 3


# What is written


def test_wheels_table_says_what_failed_and_what_was_not_run():
    row = table.Row("x.whl", bytes=1234567, parts=("cpu", "cuda"), archs=("75", "90"))
    row.versions = {"GLIBC": (2, 17)}
    row.judge([], "contents")
    row.judge(["memcpy is of\nGLIBC 2.40"], "symbols")
    row.skipped.append("other: no such environment was given")
    said = table.text([row], 12.3)
    assert "| `x.whl` | 1,234,567 | cpu, cuda (75 90) | GLIBC 2.17 | contents | none | 0 |" in said
    assert "- `x.whl`, failed: symbols: memcpy is of GLIBC 2.40\n" in said
    assert "- `x.whl`, not run: other: no such environment was given\n" in said


def test_wheels_repacked_wheel_has_the_tag_and_the_library(tmp_path):
    pytest.importorskip("wheel")
    file, info = tmp_path / "_C.so", tmp_path / "from" / "lska_ops-1.0.dist-info"
    (info.parent / "lska_ops").mkdir(parents=True)
    (info.parent / "lska_ops" / "__init__.py").touch()
    info.mkdir()
    for name, text in {
        "METADATA": "Metadata-Version: 2.1\nName: lska-ops\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }.items():
        (info / name).write_text(text, encoding="utf-8")
    run(sys.executable, "-m", "wheel", "pack", "--dest", tmp_path, info.parent)
    pure = tmp_path / "lska_ops-1.0-py3-none-any.whl"
    file.write_bytes(b"library")
    tag = TARGETS["x86_64"].tag
    wheel = pack.repacked(pure, tag, {"parts": ["cpu"], "bytes": 7}, tmp_path / "out", file)
    assert wheel.name == f"lska_ops-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel) as archive:
        said = archive.read("lska_ops-1.0.dist-info/WHEEL").decode()
        assert f"Tag: {tag}\n" in said and "Root-Is-Purelib: false" in said
        assert archive.read("lska_ops/_C.so") == b"library"
        assert "lska_ops/_C.so,sha256=" in archive.read("lska_ops-1.0.dist-info/RECORD").decode()
        assert json.loads(archive.read("lska_ops/_build_info.json"))["from_source"] == pack.FROM_SOURCE
    tag = TARGETS["win_amd64"].tag
    wheel = pack.repacked(pure, tag, {"parts": ["cpu"]}, tmp_path / "out", file.rename(tmp_path / "_C.dll"))
    assert wheel.name == "lska_ops-1.0-py3-none-win_amd64.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("lska_ops/_C.dll") == b"library"
        assert json.loads(archive.read("lska_ops/_build_info.json"))["from_source"] is None


# What a wheel says where it cannot serve; plain PyTorch runs there


def installed(folder, library=b"", **info):
    """A package whose wheel had `library`."""
    stored = {"parts": ["cpu"], "reasons": {}, "wheel": "x", "from_source": pack.FROM_SOURCE, **info}
    (folder / "_build_info.json").write_text(json.dumps(stored), encoding="utf-8")
    (folder / "_C.so").write_bytes(library)
    return folder


def test_wheels_in_an_older_torch_name_the_command_that_builds(tmp_path):
    said = _compiled.load(installed(tmp_path), "2.6.0")
    assert "for 2.11 and newer, and this is torch 2.6.0; build it anew by `pip install" in said
    assert said.endswith(f"`{pack.FROM_SOURCE}`") and "--no-binary lska-ops" in said


def test_wheels_of_windows_in_an_older_torch_name_no_command_that_builds(tmp_path):
    said = _compiled.load(installed(tmp_path, from_source=None), "2.6.0")
    assert said.endswith("for 2.11 and newer, and this is torch 2.6.0; upgrade torch")


def test_wheels_of_windows_have_a_dll(tmp_path, monkeypatch):
    monkeypatch.setattr(_compiled, "sys", SimpleNamespace(platform="win32"))
    said = _compiled.load(installed(tmp_path), "2.11.0")
    assert said == f"{tmp_path / '_C.dll'} is missing, though it was built; reinstall lska_ops"


def test_wheels_without_a_library_say_what_makes_one(tmp_path):
    said = _compiled.load(installed(tmp_path, parts=[], reasons={"cpu": pack.ANY}))
    what_is_so, _, what_would_help = said.partition("; ")
    assert "no compiled library" in what_is_so and pack.FROM_SOURCE in what_would_help


def test_wheels_written_in_part_are_a_sentence(tmp_path):
    """torch would map it and die of SIGBUS."""
    said = _compiled.load(installed(tmp_path, b"half of it", bytes=20), "2.11.0")
    assert f"{tmp_path / '_C.so'} has 10 bytes of 20; reinstall lska_ops" in said
    assert "cannot be loaded" in _compiled.load(installed(tmp_path, b"half of it", bytes=10), "2.11.0")


@pytest.mark.skipif(sys.platform != "linux", reason="the loader of Linux is asked; run it there")
@pytest.mark.parametrize("bits, machine", [(1, 3), (2, 20)], ids=["32 bits", "PowerPC"])
def test_wheels_of_another_machine_are_a_sentence(bits, machine, tmp_path):
    header = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HHI", 3, machine, 1) + bytes(100)
    said = _compiled.load(installed(tmp_path, header), "2.11.0")
    assert (
        "cannot be loaded in torch 2.11.0 (" in said and "; reinstall lska_ops" in said and "\n" not in said
    )
