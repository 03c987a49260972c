"""The benchmarks judge before they time, and what they write can be read back. No test here measures speed."""

import ast
import itertools
import os
import re
import subprocess
import sys

import pytest
import report
import suite
import timing
import torch
from gate import Gate
from goals import GOALS, METRICS, reached
from peers import PYTORCH, Declined, eager, ours
from problems import QUICK, ROWS, Problem, Row, rows_on_gpu
from provenance import run_of

from lska_ops import _backends
from lska_ops.lska.reference import gate
from lska_ops.testing import CASES, KERNEL_SIZES, Case

CPU = torch.device("cpu")
TINY = Case("tiny", 8, 9, 7)
KINDS = ("lska_cascade_fwd", "lska_fwd", "lska_fwd_bwd", "acmix_fwd", "acmix_fwd_bwd")
TRAINING = ("lska_train", "acmix_train")  # on a GPU alone


def tiny(kind, dtype=torch.float32):
    return Problem(Row(kind, TINY, 2, 7), dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *TRAINING])
def test_benchmarks_gate_accepts_pytorch(kind, dtype):
    problem = tiny(kind, dtype)
    gate = Gate(problem)
    for name in ("eager", "eager channels_last"):
        own, function = PYTORCH[name](problem)
        worst, ratio = gate.worst(own.runner(function)())
        assert ratio <= 1, f"{name}: {worst}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", TRAINING)
def test_benchmarks_training_by_ours_is_judged(kind, dtype):
    """Under autocast: maps in 16 bits, weights and their gradients in float32."""
    problem = tiny(kind, dtype)
    try:
        own, function = ours("cpu")(problem)
    except Declined as reason:
        pytest.skip(f"cpu: {reason}")
    results = own.runner(function)()
    assert [t.dtype for t in results] == [dtype] * 2 + [torch.float32] * (len(results) - 2)
    worst, ratio = Gate(problem).worst(results, "cpu")
    assert ratio <= 1, worst
    assert not own.x.is_contiguous() and eager(problem)[0].x.is_contiguous()


def forgets_dilation(problem):
    m = problem.module
    wrong = torch.nn.Conv2d(TINY.C, TINY.C, (3, 1), padding=(1, 0), groups=TINY.C)
    wrong.weight, wrong.bias = m.conv_spatial_v.weight, m.conv_spatial_v.bias
    return problem, lambda x: gate(x, m.conv1, m.conv0h, m.conv0v, m.conv_spatial_h, wrong)


def declines(problem):
    raise Declined("x is on a Sunday; come back on Monday")


def test_benchmarks_wrong_provider_has_no_time(monkeypatch, capsys):
    seeded = {"bad": forgets_dilation, "shy": declines, "absent": lambda problem: 1 / 0, "eager": eager}
    monkeypatch.setattr(suite, "providers", lambda op: seeded)
    lines = {line["provider"]: line for line in suite.measure(tiny("lska_fwd_bwd"), 1, 0, timing.cpu_turn)}
    assert lines["bad"]["status"].startswith("WRONG") and lines["bad"]["ms"] == ""
    assert lines["shy"]["status"] == "declined: x is on a Sunday; come back on Monday"
    assert lines["absent"]["status"] == "failed: ZeroDivisionError: division by zero"
    assert lines["eager"]["status"] == "ok" and lines["eager"]["ms"] > 0 and lines["copy"]["ms"] > 0
    report.print_row(list(lines.values()))
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_benchmarks_backend_of_ours(kind, monkeypatch):
    problem, provider = tiny(kind), ours("reference")  # the one that is always there stands for all
    if kind == "lska_cascade_fwd":
        with pytest.raises(Declined, match="lska_cascade_fwd_reference is not registered"):
            provider(problem)
    else:
        own, function = provider(problem)
        assert Gate(problem).worst(own.runner(function)())[1] <= 1
    monkeypatch.setitem(
        _backends.WHY_NOT[problem.row.op], "reference", lambda *_, **__: "it is Sunday; wait a day"
    )
    with pytest.raises(Declined, match="^it is Sunday; wait a day$"):
        provider(problem)


@pytest.mark.parametrize("kind", ["lska_fwd_bwd", "acmix_fwd_bwd", *TRAINING])
def test_benchmarks_gate_rejects_each_result(kind):
    problem = tiny(kind)
    gate, results = Gate(problem), problem.runner(problem.plain)()
    assert not gate.worst(results[:-1])[1] <= 1
    for i, name in enumerate(problem.names()):
        for wrong in (
            # conv_p.bias: plain PyTorch adds up large terms to find that its gradient is zero
            1.5 * results[i] + (0.1 if name == "conv_p.bias" else 1e-2),
            torch.full_like(results[i], torch.nan),
            results[i].flatten()[1:],
        ):
            seeded = [*results[:i], wrong, *results[i + 1 :]]
            assert not gate.worst(seeded)[1] <= 1, name


def off_by(part, name, where, base):
    """`base` of ACmix, but its result `name` is off by `part` of itself at `where`."""

    def provider(problem):
        own, function = base(problem)
        tensor = dict(problem.module.named_parameters()).get(name)

        def wrong(x):
            y = function(x)
            if tensor is None:
                return torch.cat([y[:, :where] * (1 + part), y[:, where:]], 1)
            grad = torch.zeros_like(tensor)
            grad[where] = part * torch.autograd.grad(y, tensor, problem.grad_y, retain_graph=True)[0][where]
            return Adds.apply(y, tensor, grad)

        return own, wrong

    return provider


class Adds(torch.autograd.Function):
    """y, and `more` added to the gradient of `tensor`."""

    @staticmethod
    def forward(ctx, y, tensor, more):
        ctx.more = more
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, ctx.more, None


@pytest.mark.parametrize("judged_as", ["pytorch", "ours"])
def test_benchmarks_subtly_wrong_acmix_is_told(judged_as, monkeypatch, capsys):
    if judged_as == "ours" and (reason := _backends.WHY_NOT["acmix"]["cpu"](torch.empty(1))):
        pytest.skip(f"cpu: {reason}")
    base = eager if judged_as == "pytorch" else ours("cpu")
    seeded = {
        "head": off_by(1e-3, "y", TINY.C // 4, base),
        "key weight": off_by(1e-2, "conv2.weight", (3, 2), base),
        "value weight": off_by(1e-2, "conv3.weight", (3, 2), base),
        "shift tap": off_by(1e-3, "dep_conv.weight", (1, 4, 1, 1), base),
        "nothing": off_by(0, "conv2.weight", (3, 2), base),
    }
    monkeypatch.setattr(suite, "providers", lambda op: seeded)
    monkeypatch.setattr(suite, "OURS", tuple(seeded) if judged_as == "ours" else ())
    monkeypatch.setattr(Gate, "_core", lambda gate, backend: {})  # none of them is a backend with a core
    lines = suite.measure(tiny("acmix_fwd_bwd"), 1, 0, timing.cpu_turn)
    status = {line["provider"]: line["status"] for line in lines if line["role"] != "yardstick"}
    assert status.pop("nothing") == "ok" and all(s.startswith("WRONG") for s in status.values()), status
    report.print_row(lines)
    assert capsys.readouterr().out.count("WRONG") == len(status) == 4


def test_benchmarks_acmix_of_ours_is_judged_from_q_k_v_on():
    gate = Gate(tiny("acmix_fwd_bwd"))
    results = gate.problem.runner(gate.problem.plain)()
    found = gate._core("reference")
    assert found["grad_qkv from q, k, v on"] <= 1 and found["y from q, k, v on"] <= 1
    gate._core = lambda backend: {f"y of {backend} from q, k, v on": 2.0}
    assert gate.worst(results, "reference")[1] >= 2 and gate.worst(results)[1] <= 1


class Clock:
    """Time that passes only when a run says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def run(self, seconds):
        durations = itertools.cycle(seconds)

        def call():
            self.now += next(durations)

        return call


def test_benchmarks_turn_leaves_the_first_short_call_out():
    clock = Clock()
    assert timing.cpu_turn(clock.run([0.5]), clock) == 0.5
    first, later = timing.TURN / 2, timing.TURN / 8
    assert timing.cpu_turn(clock.run([first, *[later] * 100]), clock) == pytest.approx(later)


def test_benchmarks_rounds_and_percentiles():
    clock = Clock()
    runs = {"slow": clock.run([3.0, 1.0, 2.0, 4.0, 5.0]), "fast": clock.run([1.0])}

    def turn(run):
        return timing.cpu_turn(run, clock)

    by_rounds = timing.interleave(runs, 5, 0, turn, clock)
    assert sorted(by_rounds["slow"]) == [1, 2, 3, 4, 5] and by_rounds["fast"] == [1] * 5
    assert timing.summary(by_rounds["slow"]) == pytest.approx((3, 1.8, 4.2))
    assert len(timing.interleave(runs, 1, 19, turn, clock)["fast"]) == 5  # 4 a round on the average


def test_benchmarks_saved_bytes_count_a_storage_once():
    x, weight = torch.randn(4, 100, requires_grad=True), torch.randn(100, requires_grad=True)

    def forward():
        return (x * weight) * x[:, :1]  # keeps x, x's view, the product; weight is a parameter

    assert timing.saved_bytes(forward, [weight]) == 2 * x.nbytes


def test_benchmarks_peak_sees_what_was_freed_before_and_after():
    size = 40 << 20
    warm = [torch.ones(1 << 16) for _ in range(400)]  # heap that stays resident when it is free
    del warm
    peak = timing.peak_bytes(lambda: torch.ones(size // 4).add_(1).sum(), CPU)
    if peak is None:
        pytest.skip("this system has no /proc/self/clear_refs; peak memory is measured on Linux")
    assert 0.95 * size < peak < 1.2 * size


@pytest.mark.parametrize("op", ROWS)
def test_benchmarks_quick_is_a_part_with_valid_problems(op):
    args = suite.parse(op, ["--quick", "--only", "p5"])
    assert args.out != report.RESULTS
    rows = suite.chosen_rows(op, args)
    assert rows and all(row.id in QUICK and row in ROWS[op] for row in rows)
    for row in rows:
        problem = Problem(row, suite.DTYPES[args.dtype], CPU)
        assert problem.x.shape == problem.grad_y.shape == (row.B, row.case.C, row.case.H, row.case.W)
        assert problem.minimal_bytes() > problem.x.nbytes
    with pytest.raises(SystemExit, match="no row's name contains 'p9'"):
        suite.chosen_rows(op, suite.parse(op, ["--only", "p9"]))


def test_benchmarks_tables_agree():
    every = [row for rows in ROWS.values() for row in rows]
    assert len({row.id for row in every}) == len(every) and {row.id for row in every} >= set(QUICK)
    assert {row.kind for row in every} == set(KINDS) == set(report.WORK) - set(TRAINING)
    assert {row.kind for row, _ in rows_on_gpu()} == set(report.WORK)
    assert len({case.id for case in CASES}) == len(CASES) and {7, 23, 53} <= set(KERNEL_SIZES)
    for goal in GOALS:
        assert goal.metric in METRICS
        for case in goal.cases:
            for B in goal.B:
                shapes = {(r.kind, r.case.id, r.B) for r in every}
                assert (goal.kind, case, B) in shapes or (case == "yolo11x_p3" and B == 4), goal.text


def made_up(row, ours_ms, quiet="yes", load="0.10", date="2026-01-01 00:00 UTC"):
    """CSV lines of one row as a run would make them."""
    facts = dict(device="Made-up CPU", threads=2, isa="AVX9", date=date, commit="abc", dirty="no",
                 lska_ops="0", torch="2", python="3", load=load, quiet=quiet)  # fmt: skip
    problem = Problem(row._replace(case=TINY), torch.float32, CPU)
    lines = []
    for name, role, ms in (("cpu", "ours", ours_ms), ("eager", "pytorch", 12.0), ("torch.compile", "pytorch", 6.0),
                           ("copy", "yardstick", 0.5)):  # fmt: skip
        line = suite.blank(problem, name, role)
        lines.append({**line, **facts, "row": row.id, "case": row.case.id, "ms": ms, "ms_p20": ms, "ms_p80": ms,
                      "rounds": 3, "peak_bytes": 1000000, "saved_bytes": 2 * problem.x.nbytes})  # fmt: skip
    return lines


def test_benchmarks_csv_to_readme_round_trip(tmp_path, capsys):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(f"above\n{report.BEGIN}\n{report.END}\nbelow\n", encoding="utf-8")
    assert report.main(["--check"], readme, results) == 1
    assert report.main([], readme, results) == 0 and report.main(["--check"], readme, results) == 0
    assert "not measured on a GPU yet" in readme.read_text(
        encoding="utf-8"
    ) and "CPU: not measured yet" in readme.read_text(encoding="utf-8")

    order = [row.id for row in ROWS["lska"]]
    rows = [row for row in ROWS["lska"] if row.case.id == "yolo11n_p4" and row.B in (1, 4)]
    file = results / "made-up" / "lska.csv"
    for row, ms in zip(rows, itertools.cycle([1.0, 2.0, 4.0])):
        report.write(file, made_up(row, ms), order)
    written = report.read(file)
    report.write(file, made_up(rows[0], 1.0), order)  # again: replaced, not added
    assert report.read(file) == written and len(written) == 4 * len(rows)
    assert report.main(["--check"], readme, results) == 1
    assert report.main([], readme, results) == 0 and report.main(["--check"], readme, results) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("above\n") and text.endswith("below\n") and "publishable" not in text
    assert (
        "| LSKA cascade, forward | 8×9×7 (yolo11n_p4) | 1 | float32 | 7, 23, 53 | 12 | 6 | 2 | 6.00 | 3.00 | 25 |"
        in text
    )
    for name in ("speedup", "cost_by_k", "memory"):
        assert (file.parent / f"{name}.png").stat().st_size > 0 and f"{name}.png" in text

    report.write(file, made_up(rows[0], 1.0, quiet="no", load="3.00"), order)
    assert "not publishable" in report.block(results)


def test_benchmarks_demo_is_a_line_of_the_readme(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install '.[demo]'")
    import bench_demo

    monkeypatch.setenv("LSKA_OPS_BACKEND", "reference")  # the measurement's own are taken back
    monkeypatch.setattr(bench_demo, "BACKENDS", ("reference",))
    monkeypatch.setitem(bench_demo.RECIPE, "imgsz", 32)
    lines = list(bench_demo.measure(2, 16, modules=("LSKA",)))
    assert [(line["module"], line["backend"], line["steps"]) for line in lines] == [("LSKA", "reference", 2)]
    assert lines[0]["seconds"] > 0 and os.environ["LSKA_OPS_BACKEND"] == "reference"
    facts = report.environment(CPU, 0.1, 0.5)
    lines = [{**line, "seconds": s, "backend": b, **facts} for line in lines
             for b, s in (("cpu", 0.25), ("reference", 1.0))]  # fmt: skip
    report.write_demo(tmp_path / "made-up" / report.DEMO, lines)
    text = report.block(tmp_path)
    assert "| yolo11n-LSKA, batch 16, 32 px | cpu | 0.250 | 4.00 |" in text and f"({run_of(facts)})" in text


def test_benchmarks_readme_shows_one_cpu_and_folds_the_others(tmp_path):
    rows = [row for row in ROWS["lska"] if row.case.id == "yolo11n_p4" and row.B == 4]
    order = [row.id for row in rows]
    for folder, some in (("small", rows[:1]), ("whole", rows)):
        for row in some:
            report.write(tmp_path / folder / "lska.csv", made_up(row, 1.0), order)
    later = made_up(rows[0], 1.0, date="2026-01-03 00:00 UTC")
    report.write(tmp_path / "whole" / "lska.csv", later, [row.id for row in rows])
    shown, folded, rest = re.split(r"<details><summary>small</summary>|</details>", report.block(tmp_path))
    assert "results/whole" in shown and "results/small" in folded and "| LSKA" not in rest
    assert shown.count("**") == 2 and shown.count("commit ") == 2  # one machine, two runs of it


def test_benchmarks_goals_are_not_rounded_up():
    goal = next(g for g in GOALS if g.kind == "lska_cascade_fwd" and g.metric == "x eager" and g.limit == 9)
    rows = [r for r in ROWS["lska"] if r.kind == goal.kind and r.case.id in goal.cases]
    lines = [line for row in rows for line in made_up(row, 12 / 8.9999)]
    value, verdict = reached(goal, lines, 3)
    assert verdict == "NOT REACHED" and value == pytest.approx(8.9999)
    assert reached(goal, [line for row in rows for line in made_up(row, 1.0)], 3)[1] == "reached"
    assert reached(goal, made_up(rows[0], 1.0), 3) == (None, "not measured (1 of 3 rows)")
    lines[0].update(ms="", status="WRONG: y")
    assert reached(goal, lines, 3) == (None, "WRONG")


TASKS = """
import os, torch
try: import sklearn.datasets
except ImportError: pass
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)
torch.randn(1 << 20).exp()
cores = []
for task in os.listdir("/proc/self/task"):
    try: cores.append(sorted(os.sched_getaffinity(int(task))))
    except ProcessLookupError: pass  # it has ended
print(cores)
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="this process may use one CPU alone; run the tests where it may use two",
)
@pytest.mark.parametrize(
    "name, pins", [("bench_lska", True), ("bench_acmix", True), ("bench_yolo", False), ("bench_demo", False)]
)
def test_benchmarks_pin_each_thread_to_a_core_of_its_own_or_none(name, pins):
    """And what is imported later, scikit-learn's OpenMP for one, does not put them on one."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_PROC_BIND"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    cores = {}
    late = f"torch, {name}"  # as in a process that has torch by then: nothing is pinned
    for first in (name, late):
        code = f"import {first}\n{TASKS}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        cores[first] = ast.literal_eval(done.stdout.splitlines()[-1])
    pinned = {tuple(core) for core in cores[name] if len(core) == 1}  # numpy's threads stay with the first
    assert len(pinned) == (2 if pins else 0), cores
    assert all(len(core) > 1 for core in cores[late]), cores
