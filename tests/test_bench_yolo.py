"""Benchmarks of whole networks and of the start on the digits: judged first, resumable, read back. None is timed."""

import os

import bench_start
import bench_yolo
import goals
import gpu
import networks
import pytest
import report
import start_report
import torch
import yolo_report
from ultralytics.nn import tasks

import lska_ops
from lska_ops import LSKA, _backends

CPU = torch.device("cpu")
FACTS = dict(device="Made-up CPU", threads=2, isa="AVX9", date="2026-01-01 00:00 UTC", commit="abc", dirty="no",
             lska_ops="0", torch="2", python="3", load="0.10", quiet="yes")  # fmt: skip


def why_no_cpu():
    return _backends.WHY_NOT["lska"]["cpu"](torch.empty(1, 1, 1, 1))


# Networks


def test_yolo_rows_of_each_device():
    def rows(*words):
        return [row.id for row in bench_yolo.chosen_rows(bench_yolo.parse(words))]

    every = [row.id for row in bench_yolo.ROWS]
    assert len(set(every)) == 12 and rows() == [row for row in every if row in bench_yolo.ON_CPU]
    assert set(bench_yolo.ON_CPU) <= set(every) and rows("--all") == rows("--device", "cuda") == every
    assert rows("--only", "yolo11x-B16") == ["train[yolo11x-B16-640]", "infer[yolo11x-B16-640]"]
    for goal in goals.YOLO_GOALS:
        assert f"{goal.kind}[{goal.cases[0]}-B{goal.B[0]}-640]" in bench_yolo.ON_CPU
    assert bench_yolo.parse(["--quick"]).out != report.RESULTS == bench_yolo.parse([]).out
    with pytest.raises(SystemExit, match="no row's name contains 'yolo12'"):
        rows("--only", "yolo12")
    with pytest.raises(SystemExit):
        bench_yolo.parse(["--dtype", "fp16"])


@pytest.mark.parametrize("row", bench_yolo.QUICK, ids=lambda row: row.kind)
def test_yolo_networks_are_judged_and_take_turns(row, tmp_path, registered, monkeypatch):
    monkeypatch.setenv("LSKA_OPS_BACKEND", "reference")  # the measurement's own are taken back
    monkeypatch.setattr(bench_yolo, "MODULES", ("plain", "ACmix"))
    monkeypatch.setitem(bench_yolo.PEAKS, "train", 1)
    lines = bench_yolo.measure(row, torch.float32, CPU, 1, 0, tmp_path)
    assert os.environ["LSKA_OPS_BACKEND"] == "reference"
    by_role = {line["role"]: line for line in lines}
    assert list(by_role) == ["plain", "ours", "reference"]
    assert by_role["plain"]["parameters"] == 2_624_080 and by_role["ours"]["parameters"] == 2_920_426
    if reason := why_no_cpu():
        assert by_role.pop("ours")["status"] == f"declined: {reason}"
    else:
        assert by_role["ours"]["error_ratio"] <= 1 and by_role["ours"]["backend"] == "cpu"
        assert row.kind == "train" or by_role["ours"]["difference"] < 1  # nothing in common has more
    for line in by_role.values():
        assert line["status"] == "ok" and line["rounds"] == 1 and line["gflops"] > 0, line
        assert line["images_per_s"] == pytest.approx(1000 * row.B / line["ms"])
    yolo_report.print_row(lines)


class Off(torch.autograd.Function):
    """y, and a gradient that is off by a hundredth."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


@pytest.mark.parametrize("bug", ["none", "value", "value in the network alone", "gradient"])
def test_yolo_wrong_layer_is_told(bug, monkeypatch):
    layer, in_network = LSKA(8), []

    class Network:
        layers = {"model.17": layer}

        def once(self):
            in_network.append(True)
            x = torch.randn(1, 8, 9, 7, requires_grad=True)
            layer(x).square().sum().backward()
            in_network.clear()

    def forward(self, x, right=LSKA.forward):
        y = right(self, x)
        if bug == "none" or os.environ["LSKA_OPS_BACKEND"] == "reference":
            return y
        if bug == "gradient":
            return Off.apply(y)
        return y * 1.001 if bug == "value" or in_network else y

    monkeypatch.setattr(LSKA, "forward", forward)
    monkeypatch.setattr(networks.LayerProblem, "backend", lambda problem: ("cpu", None))
    verdicts = networks.judge(Network())
    assert verdicts["reference"][0] == "ok"
    status = verdicts["ours"][0]
    assert status == "ok" if bug == "none" else status.startswith("WRONG: ") and "of model.17 has" in status


def made_up(module_ms, kind="train", peaks=(100, 109, 200)):
    """Lines of the goals' row: (ours, reference) in ms of each module, peaks of plain, ours, reference in MB."""
    row = bench_yolo.Row(kind, "yolo11n", 2)
    times = {("plain", "plain"): 500.0}
    for module, (ours, reference) in module_ms.items():
        times |= {(module, "ours"): ours, (module, "reference"): reference}
    peak = dict(zip(("plain", "ours", "reference"), peaks, strict=True))
    return [
        bench_yolo.blank(row, module, role, torch.float32) | FACTS
        | dict(status="ok", ms=ms, ms_p20=ms, ms_p80=ms, rounds=5, images_per_s=2000 / ms, backend="cpu",
               peak_bytes=peak[role] * 10**6, parameters=1234567, gflops=6.5, error_ratio=0.5)
        for (module, role), ms in times.items()
    ]  # fmt: skip


def verdicts_of(lines, capsys):
    goals.print_yolo_goals(lines)
    return [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()[2:]]


def test_yolo_goals(capsys):
    slow_lska = {"LSKA": (1000.0, 900.0)}  # of which no goal speaks
    assert verdicts_of(made_up({"ACmix": (100.0, 350.0), **slow_lska}), capsys) == ["reached", "reached"]
    missed = made_up({"ACmix": (100.0, 349.9), **slow_lska}, peaks=(100, 111, 200))
    assert verdicts_of(missed, capsys) == ["NOT REACHED", "NOT REACHED"]
    unknown = made_up({"ACmix": (100.0, 400.0)})
    unknown[0]["peak_bytes"] = None
    assert verdicts_of(unknown, capsys) == ["reached", "not measured (0 of 1 rows)"]
    within_noise = made_up({"ACmix": (100.0, 400.0)}, peaks=(100, 104, 149))
    assert verdicts_of(within_noise, capsys) == ["reached", "not measured (0 of 1 rows)"]
    unknown[1].update(status="WRONG: y", ms="")
    assert verdicts_of(unknown, capsys) == ["WRONG", "WRONG"]
    assert verdicts_of(made_up({"LSKA": (1.0, 9.0)}, "infer"), capsys) == ["not measured (0 of 1 rows)"] * 2


def readme(tmp_path):
    file = tmp_path / "README.md"
    if not file.exists():
        file.write_text(f"{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    return file


def test_yolo_csv_to_readme(tmp_path, capsys):
    results = tmp_path / "results"
    file = results / "made-up" / yolo_report.FILE
    order = [row.id for row in bench_yolo.ROWS]
    lines = made_up({"ACmix": (100.0, 350.0), "LSKA": (125.0, 250.0)})
    lines[-2].update(status="WRONG: y of model.17 has 2 times the allowed error", ms="", peak_bytes=None)
    infer = made_up({"ACmix": (100.0, 350.0)}, "infer")
    for taken in (infer, lines, lines):  # again: replaced, not added
        yolo_report.write(file, taken, order)
    assert len(report.read(file)) == 8 and report.read(file)[0]["kind"] == "train"
    assert report.main(["--check"], readme(tmp_path), results) == 1
    assert (
        report.main([], readme(tmp_path), results) == report.main(["--check"], readme(tmp_path), results) == 0
    )
    text = readme(tmp_path).read_text(encoding="utf-8")
    assert (
        "| training step, s; batch 2, 640 px, float32 | yolo11n-ACmix | 1,234,567 | 6.5 | 0.350 | 0.100 | 3.50 "
        "| 200.0 → 109.0 | 0.090 |"
    ) in text
    assert "| yolo11n-LSKA | 1,234,567 | 6.5 | 0.250 | WRONG | — | 200.0 → — | — |" in text
    assert "| inference, images/s; batch 2, 640 px, float32 | yolo11n | 1,234,567 | 6.5 | 4.00 | — |" in text
    assert (file.parent / yolo_report.PLOT).stat().st_size > 0 and "CPU: not measured yet." in text


def test_yolo_gpu_stage_says_why_not(tmp_path):
    (tmp_path / "ultralytics.py").write_text("raise ImportError('it is Sunday')", encoding="utf-8")
    made = gpu.Gpu(gpu.parse([]), tmp_path)
    made.env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert made.networks(60)["status"] == (
        "not run: ultralytics cannot be imported (exit status 1: ImportError: it is Sunday); pip install ultralytics"
    )


# The start on the digits


def test_start_stock_is_ultralytics_own(registered):
    ours = tasks.BaseModel.load
    with bench_start.loading("ours"):
        assert tasks.BaseModel.load is ours
    with pytest.raises(KeyboardInterrupt), bench_start.loading("stock"):
        stock = tasks.BaseModel.load
        raise KeyboardInterrupt
    assert tasks.BaseModel.load is ours is not stock
    lska_ops.unregister()
    assert tasks.BaseModel.load is stock


def test_start_reads_the_tables_of_every_version(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(
        "      epoch,   metrics/mAP50(B)\n   1,  0.25\n   2,   0.75\n   2,   0.5\n", encoding="utf-8"
    )
    assert bench_start.per_epoch(file) == [0.25, 0.5]  # an epoch that was stopped and done again
    assert bench_start.finished(tmp_path, bench_start.Run("plain", "scratch", 0, 2))
    assert not bench_start.finished(tmp_path, bench_start.Run("plain", "scratch", 0, 3))


def test_start_goes_on_from_the_last_checkpoint(tmp_path):
    run = bench_start.Run("LSKA", "stock", 1, 5)

    def options(source):
        return bench_start.options_of(run, "data.yaml", source, tmp_path, {"imgsz": 64})

    last = tmp_path / "LSKA-stock-1" / "weights" / "last.pt"
    for source in ("plain.pt", None):
        last.parent.mkdir(parents=True, exist_ok=True)
        last.write_bytes(b"")
        if source:  # what it was before its first step was not yet known
            found = options(source)
            assert found["pretrained"] == source and found["seed"] == 1 and found["imgsz"] == 64
            assert not last.exists()
            continue
        assert options(None)["resume"] == str(last) and last.exists()
        (last.parents[1] / bench_start.BEGUN).write_text("{}", encoding="utf-8")
        assert options("plain.pt") == dict(resume=str(last), data="data.yaml", device="cpu")


def test_start_trains_and_goes_on(tmp_path, monkeypatch, capfd, registered):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install '.[demo]'")
    every = bench_start.all_runs((0,), 1, 1)
    assert len(bench_start.all_runs()) == 13 and [run.name for run in every][1:3] == [
        "LSKA-ours-0",
        "LSKA-stock-0",
    ]
    monkeypatch.setattr(bench_start, "all_runs", lambda *_: every[:3])
    words = ["--quick", "--work", str(tmp_path), "--seconds", "0"]  # one training each time
    for left in (2, 1):
        bench_start.main(words)
        assert f"{left} trainings are left" in capfd.readouterr().out
    bench_start.main(words)
    before = (tmp_path / start_report.FILE).read_bytes()
    bench_start.main(words)
    assert (tmp_path / start_report.FILE).read_bytes() == before
    lines = report.read(tmp_path / start_report.FILE)
    found = [(line["module"], line["start"], line["epoch"], line["tensors"], line["of"]) for line in lines]
    assert found[:2] == [("plain", "scratch", "0", "", ""), ("plain", "scratch", "1", "", "")]
    assert found[2:4] == [("LSKA", "ours", str(epoch), "499", "499") for epoch in (0, 1)]
    assert found[4:] == [("LSKA", "stock", str(epoch), "288", "499") for epoch in (0, 1)]


def test_start_csv_to_readme(tmp_path, capsys):
    results, runs = tmp_path / "results", bench_start.all_runs((0, 1), 2, 1)[::-1]
    for run in runs:
        maps = [0.0, 0.5, 0.75] if run.module == "plain" else [0.75, 0.5 + 0.25 * run.seed]
        tensors = ("", "") if run.module == "plain" else (499, 499)
        start_report.write_run(
            results / start_report.FILE, run, maps, tensors, 320, {"imgsz": 160, "batch": 16}, FACTS
        )
    assert (
        report.main([], readme(tmp_path), results) == report.main(["--check"], readme(tmp_path), results) == 0
    )
    text = readme(tmp_path).read_text(encoding="utf-8")
    assert "from a plain yolo11n that has 0.750 after 2 epochs, 320 pictures of 160 px" in text
    assert "| yolo11n-ACmix | stock | 499/499 | 2 | 0.750 | 0.625 (0.500 to 0.750) |" in text
    assert (
        text.index("yolo11n-LSKA | stock") < text.index("yolo11n-ACmix | ours")
        and (results / start_report.PLOT).stat().st_size > 0
    )
