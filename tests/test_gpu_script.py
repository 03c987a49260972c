"""`make gpu` on machines without a GPU: its dry run, its time limits, what it records. No test here measures speed."""

import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import evidence
import goals
import gpu
import gpu_facts
import gpu_rows
import pytest
import report
import stages
import suite
import timing
import torch
from peers import NATTEN, Declined, autotuned, eager, ours
from problems import AUTOTUNED_B, AUTOTUNED_K, Problem, Row, rows_on_gpu

import lska_ops
from build_backend.decide import Facts
from lska_ops import _compiled
from lska_ops.testing import Case

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"
FACTS = dict(
    device="Made-up GPU", isa="sm_90", threads=8, date="2026-01-02 03:04 UTC", commit="abc", dirty="no", lska_ops="0",
    torch="2", python="3", load="0.00", quiet="yes",
)  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


# The dry run


def dry_run(folder, *words):
    command = [sys.executable, SCRIPT, "--dry-run", "--out", folder, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(Path(folder).glob("*/dry-run.json"))
    return done, json.loads(found[0].read_text(encoding="utf-8")) if found else None


def test_gpu_script_dry_run_reaches_what_needs_the_gpu(tmp_path):
    if reason := _compiled.cuda_problem():
        pytest.skip(reason)
    done, data = dry_run(tmp_path, "--library", str(Path(lska_ops.__file__).parent / "_C.so"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dry run: the next step needs a GPU" in done.stdout
    assert "at most" not in done.stdout and "test_gpu_lska.py::" not in done.stdout
    assert {name: stage["status"] for name, stage in data["stages"].items()} == dict.fromkeys(
        ("environment", "build", "tests", "benchmarks"), "ok"
    )
    assert data["stages"]["tests"]["collected"] > 100
    assert len(data["stages"]["benchmarks"]["rows"]) == len(rows_on_gpu())
    assert data["environment"]["source_hash"] and data["environment"]["torch"] == torch.__version__
    assert data["dry"] and evidence.read_all(tmp_path) == []  # no evidence comes of it


def test_gpu_script_dry_run_fails_where_a_step_fails(tmp_path):
    if reason := _compiled.cuda_problem():
        pytest.skip(reason)
    done, data = dry_run(tmp_path, "--library", str(tmp_path / "nowhere.so"))
    assert done.returncode == 1 and "NOT OK  build: failed: FileNotFoundError" in done.stdout
    assert "the next step" not in done.stdout and list(data["stages"]) == ["environment", "build"]


@pytest.mark.parametrize(
    "words, archs",
    [((), "90"), (("--dry-run",), "90"), (("--dry-run", "--build", "there"), "75;80")],
)
def test_gpu_script_builds_for_one_architecture_but_where_the_tree_is_built(
    tmp_path, monkeypatch, words, archs
):
    """CI's dry run goes by the commands that have compiled build/compiled, and compiles nothing again."""
    monkeypatch.setenv("LSKA_OPS_CUDA_ARCHS", "75;80")
    made, asked = gpu.Gpu(gpu.parse(words), tmp_path), []
    made.facts = {"capability": (9, 0), "plan": True, "source_hash": "0"}
    made.call = lambda command, seconds, env, cwd: asked.append((command, env)) or (1, "no")
    with pytest.raises(stages.Failed):
        made.build(1)
    ((command, env),) = asked
    assert env["LSKA_OPS_CUDA_ARCHS"] == archs and command[-1] == "--cuda"
    assert command[-2] == (Path("there").resolve() if "there" in words else tmp_path / "build")


def test_gpu_script_says_in_one_line_what_is_missing(monkeypatch):
    there = Facts(compiler="g++", nvcc="nvcc", ninja="ninja")
    new = SimpleNamespace(__version__="2.11.0+cu130")
    assert list(gpu_facts.missing(new, there)) == []
    assert list(gpu_facts.missing(None, there)) == [
        "torch was not found; give a Python that has it: make gpu PYTHON=..."
    ]
    said = list(
        gpu_facts.missing(SimpleNamespace(__version__="2.9.1"), replace(there, nvcc=None, ninja=None))
    )
    assert [line.split(";")[0] for line in said] == [
        "torch is 2.9.1",
        "nvcc was not found",
        "ninja was not found",
    ]
    monkeypatch.setattr(gpu_facts, "version", lambda name: None if name == "pytest" else "1")
    assert list(gpu_facts.missing(new, there)) == ["pytest was not found; install it"]


def test_gpu_script_load_nobody_tells_is_not_quiet():
    assert gpu_facts.busy({"utilization.gpu": "7 %"}) == 0.07
    assert gpu_facts.busy({"utilization.gpu": "[N/A]"}) is gpu_facts.busy(None) is None


# Stages


class Made:
    """A Gpu whose stages do as they are told, and note what the file held before."""

    def __init__(self, results, **told):
        self.results, self.told, self.dry, self.seen = results, told, False, []
        self.facts = {**FACTS, "cuda_hash": "now"}

    def __call__(self, args, folder):
        return self

    def _stage(self, name):
        def work(seconds):
            file = self.results / evidence.FILE
            self.seen.append(
                (name, json.loads(file.read_text(encoding="utf-8"))["stages"] if file.exists() else None)
            )
            what = self.told.get(name, {})
            if isinstance(what, Exception):
                raise what
            return dict(what)

        return work

    def sanitizer(self, tool):
        return self._stage(tool)

    def __getattr__(self, name):
        return self._stage(name)


def run_made(tmp_path, **told):
    made = Made(tmp_path / "gpu", **told)
    code = gpu.run(gpu.parse(["--out", str(tmp_path)]), tmp_path, make=made)
    file = made.results / evidence.FILE
    return made, code, json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


NAMES = ["environment", "build", "tests", "memcheck", "racecheck", "benchmarks", "networks"]


def test_gpu_script_writes_after_each_stage(tmp_path):
    rows = {"a fp16": "ok", "b fp16": gpu_rows.OUT_OF_TIME}
    made, code, data = run_made(tmp_path, tests={"passed": 3}, benchmarks={"rows": rows})
    assert code == 0 and [name for name, _ in made.seen] == NAMES
    for number, (name, seen) in enumerate(made.seen[1:], 1):
        assert list(seen) == NAMES[: number + 1] and seen[name] == {"status": "running"}
        assert all(seen[before]["status"] == "ok" for before in NAMES[:number])
    assert (
        data["stages"]["tests"]["passed"] == 3 and data["environment"]["commit"] == "abc" and "seeds" in data
    )
    assert data["measured"] == {"a fp16": "now"}


@pytest.mark.parametrize("name", NAMES)
def test_gpu_script_records_a_stage_that_fails(tmp_path, capsys, name):
    made, code, data = run_made(tmp_path, **{name: stages.Failed("it is Sunday", seen=7)})
    assert code == 1 and f"NOT OK  {name}: failed: it is Sunday" in capsys.readouterr().out
    if name == "environment":
        assert data is None and len(made.seen) == 1
        return
    assert data["stages"][name]["status"] == "failed: it is Sunday" and data["stages"][name]["seen"] == 7
    # Without a build there is nothing to run; nothing else keeps the others from it.
    assert list(data["stages"]) == (NAMES[:2] if name == "build" else NAMES)


def test_gpu_script_absent_sanitizer_is_no_failure_but_is_said(tmp_path):
    _, code, data = run_made(tmp_path, memcheck={"status": "not run: compute-sanitizer was not found"})
    assert code == 0 and data["stages"]["memcheck"]["status"] == "not run: compute-sanitizer was not found"


def test_gpu_script_an_unforeseen_error_takes_no_other_stage_along(tmp_path):
    _, code, data = run_made(tmp_path, tests=ZeroDivisionError("by zero"))
    assert code == 1 and data["stages"]["tests"]["status"] == "failed: ZeroDivisionError: by zero"
    assert data["stages"]["benchmarks"]["status"] == "ok"


def test_gpu_script_keeps_what_earlier_runs_measured(tmp_path):
    run_made(tmp_path, benchmarks={"rows": {"a fp16": "ok"}})
    _, _, data = run_made(tmp_path, benchmarks={"rows": {"a fp16": gpu_rows.OUT_OF_TIME, "b fp16": "ok"}})
    assert data["measured"] == {"a fp16": "now", "b fp16": "now"}
    row = rows_on_gpu()[0]
    later = [*rows_on_gpu()[1:], row]
    data["measured"] = {gpu_rows.name_of(*row): "now"}
    file = tmp_path / "gpu" / evidence.FILE
    file.write_text(json.dumps(data), encoding="utf-8")
    assert gpu_rows.not_yet_first(rows_on_gpu(), file) == later
    data["environment"]["cuda_hash"] = "other kernels"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert gpu_rows.not_yet_first(rows_on_gpu(), file) == list(rows_on_gpu())
    assert gpu_rows.not_yet_first(rows_on_gpu(), tmp_path / "none") == list(rows_on_gpu())


def test_gpu_script_time_for_all_limits_each_stage(tmp_path):
    clock, limits = Clock(), []
    made = stages.Stages(tmp_path / "f.json", 100, clock)

    def work(seconds):
        limits.append(seconds)
        clock.now += 45
        return {}

    for name in "abcd":
        made.run(name, 60, work)
    assert limits == [60, 55, 10]
    assert made.data["stages"]["d"]["status"] == "not run: out of time" and made.problems() == [
        "d: not run: out of time"
    ]


def test_gpu_script_ends_what_takes_too_long(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; print('begun'); subprocess.run([sys.executable, '-c', {child!r}])"
    code, said = stages.call([sys.executable, "-c", parent], 1, say=False)
    assert code is None and said == "begun\n"
    time.sleep(3)
    assert not mark.exists()
    assert gpu._ended(code, 1, said) == "out of time: more than 1 s"
    assert stages.call([sys.executable, "-c", "print(1); exit(3)"], 60, say=False) == (3, "1\n")


def test_gpu_script_counts_tests_also_of_a_run_that_was_stopped():
    said = (
        "test_gpu_lska.py::test_a[f32-p4] PASSED   [ 10%]\ntest_gpu_lska.py::test_b FAILED [ 20%]\n"
        "test_gpu_acmix.py::test_c SKIPPED (cuda: x...) [ 30%]\ntest_gpu_acmix.py::test_d "
    )
    assert gpu.outcomes(said) == {"passed": 1, "failed": ["test_b"], "skipped": 1, "skipped_because": []}
    said += "\nSKIPPED [2] test_gpu_lska.py:30: cuda: x is on cpu; move it\n"
    assert gpu.outcomes(said)["skipped_because"] == ["cuda: x is on cpu; move it"]


# Benchmark rows


def measured(rows, seconds, durations, **options):
    clock, begun, kept = Clock(), [], []

    def measure(row, dtype):
        begun.append(row)
        what = durations[len(begun) - 1]
        clock.now += what if isinstance(what, (int, float)) else 1
        if isinstance(what, Exception):
            raise what
        return "ok"

    return gpu_rows.measure_all(rows, seconds, measure, lambda s: kept.append(dict(s)), clock), begun, kept


def test_gpu_rows_budget_cuts_the_tail():
    rows = rows_on_gpu()[:8]
    names = [gpu_rows.name_of(*item) for item in rows]
    statuses, begun, kept = measured(rows, 100, [10, 30, 10, 10, 10])
    # After 60 s one more of 30 s fits, after 70 not.
    assert [statuses[n] for n in names] == ["ok"] * 5 + [gpu_rows.OUT_OF_TIME] * 3
    assert len(begun) == 5 and [len(k) for k in kept] == [1, 2, 3, 4, 5, 8]
    statuses, begun, _ = measured(rows, 0, [])
    assert begun == [] and set(statuses.values()) == {gpu_rows.OUT_OF_TIME}


def test_gpu_rows_one_that_fails_takes_no_other_along():
    rows = rows_on_gpu()[:3]
    statuses, _, _ = measured(rows, 100, [1, RuntimeError("out of\nmemory"), 1])
    assert list(statuses.values()) == ["ok", "failed: RuntimeError: out of memory", "ok"]
    statuses, begun, _ = measured(rows, 100, [1, RuntimeError("CUDA error: an illegal memory access"), 1])
    assert len(begun) == 2 and list(statuses.values())[2] == "not measured: the device had failed"


def test_gpu_rows_are_those_promised_the_most_wanted_first():
    rows = rows_on_gpu()
    lska, acmix = 3 * 6 * 3 * 3 * 3, 2 * 6 * 3 * 3  # kinds, cases, B, dtypes, LSKA's sizes
    training = 6 * 3 + 6
    assert len({gpu_rows.name_of(*item) for item in rows}) == len(rows) == training + lska + acmix
    assert all(r.train == (n < training) for n, (r, _) in enumerate(rows))
    rows = rows[training:]
    first = rows[: 27 + 6]
    assert {(r.B, d) for r, d in first} == {(16, "fp16")} and {r.case.id for r, _ in first} == set(goals.N)
    assert [r.op for r, _ in first[:12]] == ["lska", "acmix"] * 6  # neither waits for the other
    for these, dtypes in ((goals.GPU_GOALS, ("fp16", "bf16")), (goals.GPU_GOALS_FP32, ("fp32",))):
        for goal, dtype in itertools.product(these, dtypes):
            for case in goal.cases:
                found = [
                    r for r, d in rows if (r.kind, r.case.id, d) == (goal.kind, case, dtype) and r.B in goal.B
                ]
                assert len(found) == (3 if goal.kind.startswith("lska") else 1) * len(goal.B), goal.text


def test_gpu_rows_training_comes_first():
    """What a run that is cut off leaves: float16 in channels_last under autocast, forward and backward."""
    rows = rows_on_gpu()
    first = rows[: 9 + 3]
    assert {(r.B, d) for r, d in first} == {(16, "fp16")} and {r.case.id for r, _ in first} == set(goals.N)
    assert [r.op for r, _ in first[:6]] == ["lska", "acmix"] * 3
    assert [r.k for r, _ in first if r.op == "lska"] == [23] * 3 + [53] * 3 + [7] * 3
    for row, dtype in first:
        small = row._replace(case=Case("tiny", 4, 5, 6), B=2)
        problem = Problem(small, suite.DTYPES[dtype], torch.device("cpu"))
        maps = (problem.x, problem.grad_y)
        assert row.backward and all(t.is_contiguous(memory_format=torch.channels_last) for t in maps)
        assert not any(t.is_contiguous() for t in maps)
        assert {p.dtype for p in problem.module.parameters()} == {torch.float32}
        seen = []

        def function(x, problem=problem, seen=seen):
            seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), x.dtype))
            return problem.plain(x)

        y, *grads = problem.runner(function)()
        assert seen == [(True, torch.float16, torch.float16)] and y.dtype == torch.float16
        assert len(grads) == len(problem.names()) - 1


def test_gpu_rows_can_be_made(tmp_path):
    state = tmp_path / "rows.json"
    gpu_rows.main(["--construct", "--state", str(state)])
    assert len(json.loads(state.read_text(encoding="utf-8"))["rows"]) == len(rows_on_gpu())


def test_gpu_rows_leave_csv_and_state(tmp_path, monkeypatch, capsys):
    """The whole stage, on the CPU: where the cuda backend declines, which is a failure there."""
    cpu, tiny = torch.device("cpu"), Case("tiny", 4, 9, 7)
    rows = [
        (Row(kind, tiny, 2, 7), dtype)
        for kind, dtype in (("lska_fwd", "fp16"), ("acmix_fwd", "fp16"), ("lska_fwd_bwd", "fp32"))
    ]
    monkeypatch.setattr(gpu_rows, "DEVICE", cpu)
    monkeypatch.setattr(gpu_rows, "rows_on_gpu", lambda: rows)
    monkeypatch.setattr(gpu_rows, "SECONDS", 0)
    monkeypatch.setattr(gpu_rows, "nvidia_smi", lambda fields: dict.fromkeys(fields, "1980 MHz"))
    monkeypatch.setattr(suite, "CudaTurn", lambda: timing.cpu_turn)
    monkeypatch.setattr(suite, "set_up_cuda", lambda: None)
    monkeypatch.setattr(suite, "providers", lambda op: {"cuda": ours("cuda"), "eager": eager})
    facts, state, out = tmp_path / "facts.json", tmp_path / "rows.json", tmp_path / "out"
    facts.write_text(json.dumps(FACTS), encoding="utf-8")
    words = ["--state", str(state), "--out", str(out), "--facts", str(facts), "--seconds"]
    gpu_rows.main([*words, str(time.monotonic() - gpu_rows.START + 100)])
    names = [gpu_rows.name_of(*item) for item in rows]
    data = json.loads(state.read_text(encoding="utf-8"))
    assert data["rows"] == dict.fromkeys(
        names, "failed: cuda declined: x is on cpu; move it to a CUDA device"
    )
    assert list(data["clocks"]) == names
    found = {op: report.read(out / f"{op}.csv") for op in ("lska", "acmix")}
    for op, lines in found.items():
        assert {line["row"] for line in lines} == {row.id for row, _ in rows if row.op == op}
    lines = [line for lines in found.values() for line in lines]
    assert all(float(line["ms"]) > 0 for line in lines if line["provider"] in ("eager", "copy"))
    assert all(line["date"] == FACTS["date"] for line in lines) and "Goals, fp16" in capsys.readouterr().out
    gpu_rows.main([*words, "0"])
    assert json.loads(state.read_text(encoding="utf-8"))["rows"] == dict.fromkeys(names, gpu_rows.OUT_OF_TIME)
    # What is not measured again stays.
    assert all(report.read(out / f"{op}.csv") == lines for op, lines in found.items())


def test_gpu_rows_status_is_that_of_our_kernels():
    def status(said):
        return gpu_rows.status_of(
            [{"provider": "eager", "status": "ok"}, {"provider": "cuda", "status": said}]
        )

    assert status("ok") == "ok" and status("WRONG: y has 2 times the allowed error").startswith("WRONG")
    assert status("failed: OutOfMemoryError: x") == "failed: OutOfMemoryError: x"
    assert status("declined: no GPU; buy one") == "failed: cuda declined: no GPU; buy one"
    slow = [
        {"provider": "cuda", "status": "ok"},
        {"provider": "triton", "status": "declined: no Triton; get it"},
    ]
    assert gpu_rows.status_of(slow) == "failed: triton declined: no Triton; get it"


def test_gpu_rows_autotuned_at_one_k_or_b():
    provider = autotuned()["torch.compile max-autotune"]
    for kind, alone in (("lska_fwd", f"k = {AUTOTUNED_K}"), ("acmix_fwd", f"B = {AUTOTUNED_B}")):
        with pytest.raises(Declined, match=f"measured at {alone} alone"):
            provider(Problem(Row(kind, Case("tiny", 4, 5, 6), 1, 7), torch.float32, torch.device("cpu")))


# What is known


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "csrc" / "lska"
    folder.mkdir(parents=True)
    (folder / "cuda.cu").write_text('#include <vector>\n#include "csrc/lska/a.h"\n', encoding="utf-8")
    (folder / "a.h").write_text('#pragma once\n#include "csrc/lska/b.h"\n', encoding="utf-8")
    (folder / "b.h").write_text("int b;\n", encoding="utf-8")
    (folder / "cpu.h").write_text("int cpu;\n", encoding="utf-8")
    return tmp_path


def leave(tree, name, date, cuda_hash, tests):
    file = tree / "results" / name / evidence.FILE
    file.parent.mkdir(parents=True)
    facts = {**FACTS, "date": date, "cuda_hash": cuda_hash}
    file.write_text(
        json.dumps({"environment": facts, "stages": {"tests": tests} if tests else {}}), encoding="utf-8"
    )


def test_evidence_grows_old_with_the_kernels(tree):
    results = tree / "results"

    def said():
        return evidence.sentence(results, tree)

    assert said() == "cuda kernels have never run on a GPU; `make gpu` runs them"
    leave(tree, "killed", "2026-01-01 00:00 UTC", evidence.cuda_hash(tree), None)
    leave(
        tree,
        "unused",
        "2026-01-01 00:00 UTC",
        evidence.cuda_hash(tree),
        {"status": "failed: cuda", "passed": 0},
    )
    assert "never run" in said()
    leave(tree, "good", "2026-01-02 00:00 UTC", evidence.cuda_hash(tree), {"status": "ok", "passed": 9})
    assert said() == "cuda kernels are those of the evidence of 2026-01-02 (Made-up GPU, commit abc)"
    (tree / "csrc" / "lska" / "cpu.h").write_text("int other;\n", encoding="utf-8")
    assert "are those of" in said()
    (tree / "csrc" / "lska" / "b.h").write_text("int c;\n", encoding="utf-8")
    assert said().startswith(
        "cuda kernels changed since the evidence of 2026-01-02 (Made-up GPU, commit abc)"
    )
    leave(tree, "bad", "2026-01-03 00:00 UTC", evidence.cuda_hash(tree), {"status": "failed: 1", "passed": 8})
    assert (
        said() == "cuda kernels failed their tests on a GPU: evidence of 2026-01-03 (Made-up GPU, commit abc)"
    )


def test_evidence_hashes_what_nvcc_compiles():
    names = {file.relative_to(ROOT).as_posix() for file in evidence.cuda_sources()}
    assert {"csrc/common/portable.cuh", "csrc/acmix/kernels_query.cuh"} <= names
    assert {f"csrc/{op}/{name}" for op in ("lska", "acmix") for name in ("cuda.cu", "plan.h")} <= names
    assert not any(Path(name).name.startswith("cpu") for name in names)


def gpu_lines(row, dtype, ours_ms):
    times = (("cuda", "ours", ours_ms), ("triton", "ours", 1.25), ("eager", "pytorch", 12.0), ("torch.compile", "pytorch", 8.0),
             ("torch.compile max-autotune", "pytorch", 6.0), ("copy", "yardstick", 0.5))  # fmt: skip
    c = row.case
    if row.op == "acmix":
        times += ((goals.FLEX, "pytorch", 2.5), (NATTEN, "another function", 0.001))
    shape = dict(row=row.id, kind=row.kind, case=c.id, B=row.B, C=c.C, H=c.H, W=c.W, k=row.k, dtype=dtype)
    return [
        dict.fromkeys(report.COLUMNS, "") | shape | FACTS
        | dict(provider=name, role=role, status="ok", ms=ms, graph_ms=ms / 100, peak_bytes=(31 if name == "eager" else 1) * 1000000)
        for name, role, ms in times
    ]  # fmt: skip


def said_of(goals_printed):
    """{(goal, metric): its line}."""
    found = re.findall(r"(?m)^  (\S.*?)  +(\S.*?) +[<>]= .*$", goals_printed)
    lines = [line for line in goals_printed.splitlines() if ">=" in line or "<=" in line]
    return dict(zip(found, lines, strict=True))


def test_gpu_goals(capsys):
    names, times = {"fp16": "float16", "bf16": "bfloat16"}, {7: 0.5, 23: 0.6, 53: 0.71}
    lines = [
        line
        for row, dtype in rows_on_gpu()
        if dtype == "fp16" or (dtype == "bf16" and row.B == 16)
        for line in gpu_lines(row, names[dtype], times[row.k])
    ]
    goals.print_gpu_goals(lines, rows_on_gpu())
    fp16, bf16, fp32 = map(said_of, re.split("Goals, [bf].*", capsys.readouterr().out)[1:])
    assert len(fp16) == len(bf16) == len(goals.GPU_GOALS) and len(fp32) == len(goals.GPU_GOALS_FP32)
    assert all(line.endswith("reached") or "NOT REACHED" in line for line in fp16.values())
    # The worst shape's.
    assert "1.420  NOT REACHED" in fp16["LSKA cascade, time at k=53 / at k=7, B=16", "k53/k7"]
    assert "70.423  reached" in fp16["LSKA cascade, percent of a copy, B=64", "% copy"]
    assert "7.100  NOT REACHED" in fp16["LSKA forward, B=1 in a graph, microseconds", "graph us"]
    assert "9.600  reached" in fp16["LSKA forward by Triton, n shapes, B=16", "x eager by triton"]
    assert "9.600  NOT REACHED" in fp16["ACmix forward by Triton, n shapes, B=16", "x eager by triton"]
    assert "NOT REACHED" in fp16["ACmix forward by Triton, time at cuda's, B=64", "triton/cuda"]
    # What computes another function, in a thousandth of the time, counts nowhere.
    for metric, value in (
        ("x eager", "24.000  NOT"),
        ("x compile", "12.000  reached"),
        ("x flex", "5.000  reached"),
    ):
        assert value in fp16["ACmix forward, n shapes, B=16", metric]
    assert "31.000  reached" in fp16["ACmix forward+backward, peak of eager / ours, B=64", "peak ratio"]
    not_measured = [line for line in bf16.values() if "not measured (0 of" in line]
    assert len(not_measured) == 7 + 5 + 4 + 1  # all of B = 64 and of B = 1
    assert all("not measured (0 of 3 rows)" in line for line in fp32.values())


def test_gpu_rows_in_the_readme_carry_their_date(tmp_path):
    rows = [row for row, _ in rows_on_gpu() if not row.train][:9]
    rows = [row for row in rows if row.case.id == "yolo11n_p4"]
    folder = tmp_path / report.slug(FACTS)
    assert folder.name == "made-up-gpu-sm-90"
    for row in rows:
        report.write(folder / "lska.csv", gpu_lines(row, "float16", 2.0), [row.id])
    data = {"environment": {**FACTS, "cuda_hash": "now"}, "measured": {"a": "now", "b": "then"}}
    data["stages"] = {
        "benchmarks": {"rows": {"a": "ok", "b": gpu_rows.OUT_OF_TIME, "c": gpu_rows.OUT_OF_TIME}}
    }
    (folder / evidence.FILE).write_text(json.dumps(data), encoding="utf-8")
    text = report.block(tmp_path)
    assert "| LSKA cascade, forward (2026-01-02) | 128×40×40 (yolo11n_p4) | 16 | float16 | 23 |" in text
    assert (
        "Made-up GPU, 2026-01-02: 2 of 3 rows measured, 1 of them with earlier kernels; `gpu.json` says why"
        in text
    )
    assert "not measured on a GPU yet" not in text and "not measured on a GPU yet" in report.block(
        tmp_path / "none"
    )
