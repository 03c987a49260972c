"""The build's decision row by row, what is said when the library cannot be loaded, and (marked install) real
`pip install`s into fresh environments: `pytest -m install tests/test_build.py`."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from build_backend import compile as build_compile
from build_backend import decide as build_decide
from build_backend import facts as build_facts
from build_backend.decide import PARTS, Facts, decide, with_requirements, without

ROOT = Path(__file__).resolve().parent.parent
GPU_BUILDER = Facts(
    cores=8,
    free_gb=64.0,
    compiler="c++",
    compiler_version="c++ 12.2.0",
    torch="/site/torch",
    torch_version="2.14.1+cu130",
    ninja="/usr/bin/ninja",
    pybind11="/site/pybind11/include",
    python_headers="/usr/include/python3.11",
    nvcc="/usr/bin/nvcc",
    nvcc_version=(13, 0),
    cuda_sources=True,
)
CPU_ONLY = replace(GPU_BUILDER, cuda_sources=False)
NO_COMPILER = {"compiler": None, "compiler_problem": "no C++ compiler was found; install g++ 11"}


# The decision


def test_build_everything_found():
    plan = decide(GPU_BUILDER)
    assert (plan.parts, plan.reasons, plan.error) == (PARTS, {}, None)
    assert plan.isas == ("avx512", "avx2", "baseline")
    assert plan.archs == ("75", "80", "86", "87", "89", "90", "100", "110", "120") and plan.ptx == "75"


def test_build_version_without_cuda_sources():
    plan = decide(CPU_ONLY)
    assert plan.parts == ("cpu", "plan") and plan.archs == ()
    assert plan.reasons == {"cuda": "this version of lska_ops has no CUDA sources; use the other backends"}
    assert decide(replace(CPU_ONLY, mode="require")).error is None  # nothing that this version has is missing


def test_build_without_nvcc_keeps_cpu():
    plan = decide(replace(GPU_BUILDER, nvcc=None, nvcc_version=(0, 0)))
    assert plan.parts == ("cpu", "plan")
    assert plan.reasons["cuda"].startswith("nvcc was not found; ")


@pytest.mark.parametrize(
    "missing, word",
    [
        (NO_COMPILER, "no C++ compiler was found"),
        ({"compiler_problem": "CXX=/bin/false does not compile C++20; set CXX"}, "CXX=/bin/false"),
        ({"torch": None, "torch_version": ""}, "torch's headers were not found"),
        ({"torch_version": "2.2.2+cu121"}, "torch 2.2.2+cu121 is older than 2.3"),
        ({"ninja": None}, "ninja was not found"),
        ({"system": "Windows"}, "this is Windows"),
        ({"mode": "off"}, "LSKA_OPS_BUILD=off"),
    ],
)
def test_build_pure_python_with_reason(missing, word):
    plan = decide(replace(GPU_BUILDER, **missing))
    assert (plan.parts, plan.isas, plan.archs, plan.error) == ((), (), (), None)
    assert set(plan.reasons) == set(PARTS)
    for reason in plan.reasons.values():
        what_is_so, _, what_would_help = reason.partition("; ")
        assert word in what_is_so and what_would_help


@pytest.mark.parametrize(
    "system, said",
    [
        ("Windows", "this is Windows; the reference (plain PyTorch) runs here, on NVIDIA GPUs Triton where triton-windows is installed"),
        ("Darwin", "this is macOS; the reference (plain PyTorch) runs here"),
        ("FreeBSD", "this is FreeBSD; the reference (plain PyTorch) runs here"),
    ],
)  # fmt: skip
def test_build_on_another_system_names_what_runs_there(system, said):
    plan = decide(replace(GPU_BUILDER, system=system))
    assert set(plan.reasons.values()) == {f"lska_ops compiles on Linux only and {said}"}
    assert with_requirements(replace(GPU_BUILDER, system=system))[1] == []


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_build_only_linux_is_sent_to_nvcc(monkeypatch, platform):
    from types import SimpleNamespace

    from lska_ops import _compiled

    reason = decide(
        replace(
            GPU_BUILDER, system={"win32": "Windows", "darwin": "Darwin"}.get(platform, "Linux"), nvcc=None
        )
    )
    monkeypatch.setattr(_compiled, "problem", reason.reasons.get("cpu"))
    monkeypatch.setattr(
        _compiled, "build_info", lambda folder: {"parts": list(reason.parts), "reasons": reason.reasons}
    )
    monkeypatch.setattr(_compiled, "sys", SimpleNamespace(platform=platform))
    said = _compiled._ask_device.__wrapped__(0)
    assert "; " in said and ("reinstall lska_ops with nvcc" in said) is (platform == "linux")


@pytest.mark.parametrize("missing", [{"pybind11": None}, {"python_headers": None}])
def test_build_without_python_headers_keeps_the_library(missing):
    plan = decide(replace(CPU_ONLY, **missing))
    assert plan.parts == ("cpu",) and "; " in plan.reasons["plan"]


@pytest.mark.parametrize(
    "missing, word",
    [
        (NO_COMPILER, "no C++ compiler"),
        ({"nvcc": None}, "nvcc was not found"),
        ({"torch_version": "2.2.2"}, "torch 2.2.2 is older"),
        ({"python_headers": None}, "Python.h was not found"),
    ],
)
def test_build_require_names_what_is_missing_in_one_line(missing, word):
    plan = decide(replace(GPU_BUILDER, mode="require", **missing))
    assert plan.error.startswith("lska_ops: LSKA_OPS_BUILD=require, but ") and word in plan.error
    assert "\n" not in plan.error and plan.parts == ()


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"mode": "yes"}, "LSKA_OPS_BUILD is 'yes'; expected auto, require or off"),
        ({"max_jobs": "0"}, "MAX_JOBS is '0'"),
        ({"archs": "80;sm_90"}, "LSKA_OPS_CUDA_ARCHS names 'sm_90'"),
    ],
)
def test_build_wrong_variable_is_one_line(wrong, word):
    assert word in decide(replace(GPU_BUILDER, **wrong)).error


@pytest.mark.parametrize("mode, parts", [("auto", ("cpu", "plan")), ("require", ())])
def test_build_nvcc_fails_keeps_cpu_unless_required(mode, parts):
    plan = without(decide(GPU_BUILDER), "cuda", "nvcc failed; see the log", mode)
    assert plan.parts == parts and plan.archs == ()
    assert plan.error is None if mode == "auto" else "nvcc failed" in plan.error


def test_build_compiler_fails_is_pure_python():
    plan = without(decide(GPU_BUILDER), "cpu", "it failed; see the log", "auto")
    assert (plan.parts, plan.isas, plan.archs, plan.error) == ((), (), (), None)
    assert plan.reasons == dict.fromkeys(PARTS, "it failed; see the log")


def test_build_torch_is_required_only_where_it_serves():
    absent = {"torch": None, "torch_version": "", "ninja": None, "pybind11": None}
    assert with_requirements(replace(CPU_ONLY, **absent))[1] == ["ninja", "pybind11>=2.12", "torch>=2.11"]
    assert with_requirements(CPU_ONLY)[1] == ["ninja", "pybind11>=2.12"]
    assert with_requirements(replace(CPU_ONLY, torch_version="2.3.1"))[1] == ["ninja", "pybind11>=2.12"]
    assert with_requirements(replace(CPU_ONLY, torch_version="2.2.2"))[1] == []  # never replaced, however old
    assert with_requirements(replace(CPU_ONLY, **absent, mode="off"))[1] == []
    assert with_requirements(replace(CPU_ONLY, **{**absent, **NO_COMPILER}))[1] == []


@pytest.mark.parametrize("torch_version", ["2.3.1+cu121", "2.11.0+cu126", "2.14.1+cpu", "2.15.0+cu132"])
def test_build_nvcc_of_another_cuda_still_builds(torch_version):
    assert "cuda" in decide(replace(GPU_BUILDER, torch_version=torch_version)).parts


def test_build_architectures():
    assert decide(replace(GPU_BUILDER, nvcc_version=(12, 4))).archs == ("75", "80", "86", "87", "89", "90")
    assert decide(replace(GPU_BUILDER, archs="8.0; 90a,80")).archs == ("80", "90a")
    assert "103" not in decide(GPU_BUILDER).archs


def test_build_cuda_left_out_on_demand():
    for mode in ("auto", "require"):
        for nvcc in ("/usr/bin/nvcc", None):  # nobody misses it
            plan = decide(replace(GPU_BUILDER, mode=mode, archs="none", nvcc=nvcc))
            assert (plan.parts, plan.archs, plan.error) == (("cpu", "plan"), (), None)
            assert plan.reasons["cuda"].startswith("LSKA_OPS_CUDA_ARCHS=none was set ")
    assert decide(replace(GPU_BUILDER, archs="none;90")).archs == ("90",)


def test_build_oldest_torch_is_the_same_everywhere():
    from gpu_facts import missing

    from lska_ops import _compiled, doctor

    oldest = ".".join(map(str, build_decide.OLDEST_TORCH))
    assert doctor.OLDEST_TORCH == oldest
    assert f'"torch>={oldest}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"torch=={oldest}." in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert _compiled.FIRST_STABLE == build_decide.FIRST_STABLE
    said = list(missing(SimpleNamespace(__version__="2.2.0"), replace(GPU_BUILDER, compiler_problem=None)))
    assert said[0] == "torch is 2.2.0; needs {}.{} or newer".format(*build_decide.FIRST_STABLE)


@pytest.mark.parametrize(
    "torch_version, abi",
    [
        ("2.3.1+cu121", "aten"),
        ("2.10.0", "aten"),
        ("2.11.0a0+git", "stable"),
        ("2.14.1+cpu", "stable"),
        ("3.0", "stable"),
    ],
)
def test_build_form_follows_torchs_release(torch_version, abi):
    facts = replace(CPU_ONLY, torch_version=torch_version)
    assert build_decide.abi(torch_version) == build_compile.describe(decide(facts), facts)["abi"] == abi


def test_build_instruction_sets():
    assert decide(replace(CPU_ONLY, machine="aarch64")).isas == ("baseline",)
    assert "native" not in build_compile.FLAGS + "".join(build_decide.ISAS.values())


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_build_on_arm_passes_no_flag_that_only_x86_knows(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(build_compile, "_cudart_folders", lambda nvcc: [])
    facts = replace(GPU_BUILDER, machine=machine)
    text = build_compile.ninja_file(decide(facts), facts, tmp_path, "")
    kernels = [line for line in text.splitlines() if ": cxx " in line and "cpu_kernels" in line]
    assert kernels and all(".baseline.o: cxx " in line for line in kernels)
    of_x86 = {flag for isa in ("avx512", "avx2") for flag in build_decide.ISAS[isa].split()}
    assert of_x86 and not of_x86 & set(text.split()) and "avx" not in text
    assert "-DLSKA_OPS_ISA=baseline" in text and "-gencode" in text


def test_build_jobs_follow_cores_memory_and_max_jobs():
    jobs = [
        decide(replace(CPU_ONLY, **given)).jobs
        for given in ({}, {"free_gb": 6.0}, {"free_gb": 0.5}, {"free_gb": 6.0, "max_jobs": "5"})
    ]
    assert jobs == [8, 3, 1, 5]


# Facts and ninja


def test_build_compiler_that_does_not_compile():
    assert "CXX=/bin/false does not compile C++20; " in build_facts._compiler("/bin/false")[2]
    assert "CXX=no-such-c++ was not found; " in build_facts._compiler("no-such-c++")[2]


@pytest.mark.parametrize("compiler", ["g++", "g++-11", "g++-12", "g++-13", "clang++", "clang++-14"])
def test_build_accepts_every_compiler_that_is_named(compiler):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} was not found; apt-get install {compiler.replace('clang++', 'clang')}")
    found, version, why_not = build_facts._compiler(compiler)
    assert (found, why_not) == (compiler, None) and version


@pytest.mark.parametrize(
    "lacks, sentence",
    [
        ("-Dconcept=absent", "does not compile C++20; "),
        ("-D__builtin_convertvector=absent", "does not compile the builtins that the "),
        ("-Dvector_size=absent", "does not compile the builtins that the "),
        ("-Wa,--no-such-option", "does not compile C++20; "),  # an assembler that fails
    ],
)
def test_build_refuses_a_compiler_that_would_fail(lacks, sentence):
    """Before anything is compiled, and in words that name the cure."""
    if build_facts._compiler("")[2]:
        pytest.skip(build_facts._compiler("")[2])
    compiler = f"{build_facts._compiler('')[0]} {lacks}"
    why_not = build_facts._compiler(compiler)[2]
    assert f"CXX={compiler} does not compile" in why_not and sentence in why_not
    assert why_not.endswith("set CXX to g++ 11, clang++ 14 or newer, then reinstall lska_ops")


def test_build_reads_an_environment_whose_folder_no_encoding_has(tmp_path):
    said = "home = /环境一\ninclude-system-site-packages = true\n"
    for encoding in ("utf-8", "gbk"):
        (tmp_path / "pyvenv.cfg").write_text(said, encoding=encoding)
        read = build_facts._read(tmp_path / "pyvenv.cfg")
        assert read.endswith("\ninclude-system-site-packages = true\n")
        assert (read == said) is (encoding == "utf-8")


def test_build_ninja_file_names_paths_by_their_bytes(tmp_path):
    file, path = tmp_path / "build.ninja", os.fsdecode("/研究/".encode("gbk"))
    build_compile._write(file, f"nvcc = {path}\n")
    assert file.read_bytes() == b"nvcc = " + "/研究/".encode("gbk") + b"\n"
    before = file.stat().st_mtime_ns
    build_compile._write(file, f"nvcc = {path}\n")
    assert file.stat().st_mtime_ns == before


def test_build_compilers_words_in_any_encoding(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_bytes('#!/bin/sh\necho "c++ 编译器 12"\n'.encode("gbk"))
    compiler.chmod(0o755)
    command, version, problem = build_facts._compiler(str(compiler))
    assert (command, problem) == (str(compiler), None) and version.startswith("c++ ")


def _torch_folder(folder, version, config=None, libraries=()):
    for name, text in (
        ("version.py", f"__version__ = '{version}'\n"),
        ("share/cmake/Torch/TorchConfig.cmake", config),
    ):
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    (folder / "lib").mkdir()
    for name in libraries:
        (folder / "lib" / name).touch()
    return folder


@pytest.mark.parametrize(
    "config, string_abi",
    [
        ('set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")\n', 0),
        ('set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=1")\n', 1),
        ("", 1),
        (None, 1),
    ],
)
@pytest.mark.parametrize(
    "libraries", [("libc10.so", "libgomp-98b21ff3.so.1"), ("libc10.so",)], ids=["pip", "conda"]
)
def test_build_reads_an_old_torch_without_importing_it(config, string_abi, libraries, tmp_path):
    torch = _torch_folder(tmp_path / "torch", "2.6.0+cu124", config, libraries)
    found = build_facts.torch_facts(torch)
    openmp = str(torch / "lib" / libraries[1]) if len(libraries) == 2 else None
    assert found == {
        "torch": str(torch), "torch_version": "2.6.0+cu124", "string_abi": string_abi, "openmp": openmp,
    }  # fmt: skip


@pytest.mark.parametrize("string_abi", [0, 1])
@pytest.mark.parametrize("openmp, linked", [("/site/torch/lib/libgomp-98b21ff3.so.1",) * 2, (None, "-lgomp")])
def test_build_over_aten(string_abi, openmp, linked, tmp_path, monkeypatch):
    monkeypatch.setattr(build_compile, "_cudart_folders", lambda nvcc: [])
    old = replace(GPU_BUILDER, torch_version="2.6.0+cu124", string_abi=string_abi, openmp=openmp)
    flags = {}
    for facts in (old, replace(old, torch_version="2.11.0")):
        text = build_compile.ninja_file(decide(facts), facts, tmp_path, "")
        built = re.findall(r"(?m)^build \S*/(\S+): \S+ .*\n  flags = (.*)$", text)
        flags[facts.torch_version] = {output: words.split() for output, words in built}
    aten, stable = flags["2.6.0+cu124"], flags["2.11.0"]
    with_torch = {"module.o", "lska.cpu.o", "acmix.cpu.o", "lska.cuda.o", "acmix.cuda.o"}
    for output in with_torch:
        assert "-DLSKA_OPS_ATEN" in aten[output] and f"-D_GLIBCXX_USE_CXX11_ABI={string_abi}" in aten[output]
        assert ("-fopenmp" in aten[output]) == ("cuda" not in output)  # nvcc does not know it
        assert build_compile.TARGET in stable[output] and build_compile.TARGET not in aten[output]
    assert {linked, "-lc10", "-ltorch_cpu"} <= set(aten["_C.so"])
    assert "-ltorch_cpu" in stable["_C.so"] and not {linked, "-lc10"} & set(stable["_C.so"])
    old_only = ("-DLSKA_OPS_ATEN", "-fopenmp", "-D_GLIBCXX_USE_CXX11_ABI")
    assert not any(word.startswith(old_only) for words in stable.values() for word in words)


def test_build_ninja_file_compiles_kernels_once_per_instruction_set(tmp_path, monkeypatch):
    for name in ("module.cpp", "plan_module.cpp", "lska/cpu.cpp", "lska/cpu_kernels_far.cpp", "lska/cuda.cu"):
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).touch()
    monkeypatch.setattr(build_compile, "ROOT", tmp_path)
    monkeypatch.setattr(build_compile, "_cudart_folders", lambda nvcc: ["-L/cuda/lib"])
    text = build_compile.ninja_file(decide(GPU_BUILDER), GPU_BUILDER, tmp_path / "build" / "x", "")
    for isa, flags in build_decide.ISAS.items():
        rest = text.partition(
            f"build build/x/lska.cpu_kernels_far.{isa}.o: cxx csrc/lska/cpu_kernels_far.cpp\n"
        )[2]
        assert f"{flags} -DLSKA_OPS_ISA={isa}" in rest.partition("\nbuild")[0]
    assert text.count("cxx csrc/lska/cpu.cpp") == 1
    assert "-gencode arch=compute_80,code=sm_120 -gencode arch=compute_75,code=compute_75 " in text
    assert "-t 8 -ccbin c++" in text  # architectures side by side
    assert "nvcc csrc/lska/cuda.cu" in text and "lska.cuda.o" in text.partition("_C.so: link")[2]


@pytest.mark.parametrize(
    "archs, codes",
    [
        ("75;80;86;90", "75,75 80,80 80,86 80,90 75,compute_75"),
        ("86;89", "86,86 86,89 86,compute_86"),
        ("90", "90,90 90,compute_90"),
        ("80;90a", "80,80 90a,90a 80,compute_80"),
    ],
)
def test_build_machine_code_of_modern_architectures_comes_from_one_ptx(archs, codes):
    words = build_compile._gencode(decide(replace(GPU_BUILDER, archs=archs)))
    found = [w.replace("arch=compute_", "").replace("code=", "").replace("sm_", "") for w in words[1::2]]
    assert " ".join(found) == codes and set(words[::2]) == {"-gencode"}


@pytest.mark.parametrize(
    "broken, parts",
    [("cuda", ("cpu", "plan")), ("cpu", ()), ("plan", ("cpu", "cuda"))],
)
def test_build_failure_is_blamed_on_its_part(broken, parts, tmp_path, monkeypatch):
    def failed(plan, facts, out, target):
        return (
            "FAILED: x.o\nx.cpp:1:2: error: no\n"
            if target in ("all", broken) and broken in plan.parts
            else None
        )

    monkeypatch.setattr(build_compile, "_failed", failed)
    monkeypatch.setattr(build_compile, "_cudart_folders", lambda nvcc: [])
    plan = build_compile.compile_parts(decide(GPU_BUILDER), GPU_BUILDER, tmp_path)
    assert plan.parts == parts
    assert f"the {broken} part did not compile (x.cpp:1:2: error: no); " in plan.reasons[broken]


def test_build_goes_on_where_a_compiler_was_killed(tmp_path, monkeypatch):
    """As for want of memory: what failed beside others compiles when its part is tried alone."""
    monkeypatch.setattr(build_compile, "_cudart_folders", lambda nvcc: [])
    monkeypatch.setattr(
        build_compile, "_failed", lambda plan, facts, out, target: target == "all" and "Killed"
    )
    plan = build_compile.compile_parts(decide(GPU_BUILDER), GPU_BUILDER, tmp_path)
    assert (plan.parts, plan.reasons) == (PARTS, {})


# Loading


def _installed(folder, parts=("cpu", "plan"), reasons=None, **more):
    info = {"parts": list(parts), "reasons": reasons or {}, **more}
    (folder / "_build_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def test_build_load_says_what_is_so_and_what_would_help(tmp_path):
    from lska_ops import _compiled

    said = [_compiled.load(tmp_path)]
    said.append(_compiled.load(_installed(tmp_path, (), {"cpu": "no C++ compiler was found; install g++"})))
    said.append(_compiled.load(_installed(tmp_path), "2.10.0+cu128"))
    said.append(_compiled.load(_installed(tmp_path, abi="stable", torch_headers="2.14.1"), "2.10.0+cu128"))
    for running in ("2.5.1", "2.14.1+cpu"):
        said.append(_compiled.load(_installed(tmp_path, abi="aten", torch_headers="2.6.0+cu124"), running))
    said.append(_compiled.load(tmp_path, "2.6.2+cpu"))
    said.append(_compiled.load(_installed(tmp_path), "2.11.0"))
    (tmp_path / "_C.so").write_text("not a library", encoding="utf-8")
    said.append(_compiled.load(tmp_path, "2.11.0"))
    for bytes_there in (0, 12):
        (tmp_path / "_C.so").write_bytes(b"not a library"[:bytes_there])
        said.append(_compiled.load(_installed(tmp_path, bytes=13), "2.11.0"))
    (tmp_path / "_build_info.json").write_text("{", encoding="utf-8")
    said.append(_compiled.load(tmp_path))
    words = [
        "never built",
        "no C++ compiler",
        "with torch 2.11, for 2.11 and newer, and this is torch 2.10.0+cu128",
        "with torch 2.14.1, for 2.11 and newer, and this is torch 2.10.0+cu128",
        "with torch 2.6.0+cu124, for 2.6 alone, and this is torch 2.5.1",
        "with torch 2.6.0+cu124, for 2.6 alone, and this is torch 2.14.1+cpu",
        "is missing",  # no word of torch: any 2.6 will do
        "is missing",
        "cannot be loaded",
        *["bytes of 13"] * 2,
        "read",
    ]
    for sentence, word in zip(said, words, strict=True):
        what_is_so, _, what_would_help = sentence.partition("; ")
        assert word in what_is_so and what_would_help and "\n" not in sentence
        if "this is torch" in what_is_so:
            assert "`pip install --no-deps --force-reinstall --no-cache-dir .`" in what_would_help


def test_build_library_cut_off_is_never_loaded(tmp_path):
    """To load half of it ends the process, with SIGBUS."""
    from lska_ops import _compiled

    if _compiled.problem:
        pytest.skip(_compiled.problem)
    stored, whole = _compiled.build_info(), (Path(_compiled.__file__).parent / "_C.so").read_bytes()
    assert stored["bytes"] == len(whole)
    for length in (64, 4096, len(whole) // 2, len(whole) - 1):
        (_installed(tmp_path, bytes=len(whole)) / "_C.so").write_bytes(whole[:length])
        assert f"has {length} bytes of {len(whole)}; reinstall" in _compiled.load(tmp_path, "2.11.0")


def test_build_loaded_library_tells_what_it_was_built_from():
    import torch

    from lska_ops import _compiled

    if _compiled.problem:
        pytest.skip(_compiled.problem)
    stored = _compiled.build_info()
    assert stored.items() >= json.loads(torch.ops.lska_ops.build_info()).items()
    if "plan" in stored["parts"]:
        from lska_ops import _plan

        assert stored.items() >= _plan.build_info().items()


# Real installs


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    make = "import sys; from build_backend import backend; print(backend.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", make, str(folder)], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("lska_ops-*.tar.gz"))


@pytest.fixture
def source(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    return next((tmp_path / "source").iterdir())


class Environment:
    """A fresh environment in which this interpreter's torch is installed, without a copy of it."""

    def __init__(self, folder):
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"
        here = Path(sysconfig.get_path("platlib"))
        site = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('platlib'))").stdout.strip())
        for found in [here / "torch", here / "torchgen", *here.glob("torch-*.dist-info")]:
            (site / found.name).symlink_to(found)
        (site / "shown.pth").write_text(f"{here}\n", encoding="utf-8")
        for folder in [*site.glob("setuptools*"), *site.glob("pkg_resources")]:
            shutil.rmtree(folder)  # venvs of Python 3.11 and older bring one of their own, too old
        self.empty = folder.parent / "empty"
        self.empty.mkdir()

    def run(self, *arguments, **variables):
        """Python in an empty folder, so that nothing is imported from a source tree by accident."""
        kept = {
            k: v for k, v in os.environ.items() if k not in ("CXX", "MAX_JOBS", "PYTHONPATH", "VIRTUAL_ENV")
        }
        kept = {k: v for k, v in kept.items() if not k.startswith("LSKA_OPS_")}
        folder = getattr(self, "empty", None)
        return subprocess.run(
            [self.python, *arguments],
            cwd=folder,
            env={**kept, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pip(self, *arguments, isolated=False, **variables):
        isolation = [] if isolated else ["--no-build-isolation"]
        install = ["-m", "pip", "install", "-v", "--no-deps", *isolation, *map(str, arguments)]
        return self.run(*install, **variables)

    def compiled(self):
        """(problem, where it is, what was stored, whether the library answers, the wheel's tag)"""
        ask = """if True:
            import importlib.metadata, json, torch
            from lska_ops import _compiled
            info, answer = _compiled.build_info(), None
            if _compiled.problem is None:
                answer = json.loads(torch.ops.lska_ops.build_info())
            if "plan" in info["parts"]:
                from lska_ops import _plan
                assert _plan.build_info() == answer
            wheel = importlib.metadata.distribution("lska-ops").read_text("WHEEL")
            print(json.dumps([_compiled.problem, _compiled.__file__, info, answer, wheel]))"""
        done = self.run("-c", ask)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def fresh(tmp_path):
    return Environment(tmp_path / "environment")


@pytest.mark.install
@pytest.mark.parametrize("isolated", [True, False])
def test_build_install_with_compiler(isolated, sdist, fresh):
    nvcc = shutil.which("nvcc")  # one architecture: all of them are compiled by `make setup`
    done = fresh.pip(
        sdist, isolated=isolated, LSKA_OPS_BUILD="require" if nvcc else "auto", LSKA_OPS_CUDA_ARCHS="90"
    )
    assert done.returncode == 0, done.stdout
    problem, file, info, answer, wheel = fresh.compiled()
    parts = ["cpu", "cuda", "plan"] if nvcc else ["cpu", "plan"]
    assert problem is None and answer["parts"] == info["parts"] == parts
    assert info["cuda_archs"] == (["90"] if nvcc else [])
    assert Path(file).is_relative_to(fresh.python.parent.parent)
    assert info["bytes"] == Path(file).with_name("_C.so").stat().st_size
    assert "Root-Is-Purelib: false" in wheel and "-none-any" not in wheel


@pytest.mark.install
def test_build_install_without_compiler(sdist, fresh):
    done = fresh.pip(sdist, isolated=True, CXX="/bin/false")
    assert done.returncode == 0, done.stdout
    assert "NOTHING COMPILED, pure Python: CXX=/bin/false does not compile" in done.stdout
    problem, _, info, _, wheel = fresh.compiled()
    assert problem == info["reasons"]["cpu"] and problem.startswith("CXX=/bin/false does not compile C++20; ")
    assert "Tag: py3-none-any" in wheel


@pytest.mark.install
@pytest.mark.parametrize("isolated", [True, False])
def test_build_install_required_without_compiler(isolated, sdist, fresh):
    done = fresh.pip(sdist, isolated=isolated, CXX="/bin/false", LSKA_OPS_BUILD="require")
    assert done.returncode == 1
    said = [line.strip() for line in (done.stdout).splitlines() if "lska_ops:" in line]
    assert len(set(said)) == 1 and "LSKA_OPS_BUILD=require, but CXX=/bin/false" in said[0]
    assert "Traceback" not in done.stdout


@pytest.mark.install
def test_build_install_editable_in_place_and_off_again(source, fresh):
    done = fresh.pip("-e", source, LSKA_OPS_CUDA_ARCHS="90")
    assert done.returncode == 0, done.stdout
    problem, file, _, _, _ = fresh.compiled()
    assert problem is None and Path(file).parent == source / "lska_ops"
    assert (source / "lska_ops" / "_C.so").is_file()
    assert fresh.pip("-e", source, LSKA_OPS_BUILD="off").returncode == 0
    assert "LSKA_OPS_BUILD=off was set" in fresh.compiled()[0]
    assert not (source / "lska_ops" / "_C.so").exists()
    assert fresh.pip(source, LSKA_OPS_BUILD="off").returncode == 0  # nothing stale comes along
    assert "LSKA_OPS_BUILD=off was set" in fresh.compiled()[0]


@pytest.mark.install
def test_build_install_survives_code_that_does_not_compile(source, fresh):
    with open(source / "csrc" / "module.cpp", "a", encoding="utf-8") as module:
        module.write("#error seeded\n")
    done = fresh.pip(source, LSKA_OPS_BUILD="require")
    assert done.returncode == 1 and "LSKA_OPS_BUILD=require, but the cpu part did not compile" in done.stdout
    done = fresh.pip(source)
    assert done.returncode == 0, done.stdout
    assert "the cpu part did not compile (csrc/module.cpp" in fresh.compiled()[0]
    assert "seeded" in fresh.compiled()[0]


@pytest.mark.install
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH; install the CUDA toolkit")
def test_build_install_keeps_cpu_where_nvcc_fails(source, fresh):
    with open(source / "csrc" / "lska" / "cuda.cu", "a", encoding="utf-8") as cuda:
        cuda.write("#error seeded\n")
    done = fresh.pip(source, LSKA_OPS_CUDA_ARCHS="90")
    assert done.returncode == 0, done.stdout
    assert "*** without cuda: the cuda part did not compile (" in done.stdout
    problem, _, info, answer, _ = fresh.compiled()
    assert problem is None and answer["parts"] == info["parts"] == ["cpu", "plan"]
    assert "seeded" in info["reasons"]["cuda"]
    done = fresh.pip(source, LSKA_OPS_BUILD="require", LSKA_OPS_CUDA_ARCHS="90")
    assert done.returncode == 1 and "LSKA_OPS_BUILD=require, but the cuda part did not compile" in done.stdout


@pytest.mark.install
def test_build_install_without_nvcc(sdist, fresh, tmp_path):
    tools = tmp_path / "tools"  # everything on PATH but nvcc
    tools.mkdir()
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        for tool in folder.iterdir() if folder.is_dir() else ():
            if tool.name != "nvcc" and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    done = fresh.pip(sdist, PATH=str(tools), CUDA_HOME="")
    assert done.returncode == 0, done.stdout
    if shutil.which("/usr/local/cuda/bin/nvcc"):
        pytest.skip("nvcc is in /usr/local/cuda; there is no machine without it here")
    problem, _, info, _, _ = fresh.compiled()
    assert problem is None and info["parts"] == ["cpu", "plan"]
    assert info["reasons"]["cuda"].startswith("nvcc was not found; ")
