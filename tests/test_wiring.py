"""Rows of ours put into a YAML by hand: numbers that stayed behind are said, and nothing else is."""

import re
from pathlib import Path

import pytest
import ultralytics
import yaml
from test_insert import known
from ultralytics.nn import tasks

from lska_ops.__main__ import main
from lska_ops.yolo import insert, wiring
from lska_ops.yolo.outline import Outline
from lska_ops.yolo.registration import CFG

CFGS = Path(ultralytics.utils.ROOT, "cfg", "models")
FAMILIES = ("yolo11n", "yolo11n-seg", "yolov8n", "yolov8n-p2", "yolov5n", "yolov10n", "yolo12n", "rtdetr-l")

pytestmark = [pytest.mark.versions, pytest.mark.usefixtures("registered")]


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch):
    monkeypatch.setattr(wiring, "_said", set())


def by_hand(at, module="LSKA", detect=None, name="yolo11n.yaml"):
    """A model of ultralytics with a row at that number, and no other number moved but Detect's where told."""
    d = tasks.yaml_model_load(name)
    rows, cut = [*d["backbone"], *d["head"]], len(d["backbone"])
    rows.insert(at, [-1, 1, module, []])
    if detect:
        rows[-1][0] = detect
    cut += at < cut
    return {**d, "backbone": rows[:cut], "head": rows[cut:]}


def test_wiring_row_that_is_put_in_and_not_counted():
    assert wiring.problems(by_hand(17)) == [
        "is not wired as yolo11.yaml: row 24 (Detect) reads [16, 19, 22], expected [17, 20, 23]. A row that is put in "
        "moves the numbers below it; `python -m lska_ops insert yolo11n.yaml LSKA --after 16 -o new.yaml` moves them too, in a copy of yolo11.yaml"
    ]
    (said,) = wiring.problems(by_hand(5, "ACmix"))
    assert (
        "yolo11.yaml: row 24 (Detect) reads [16, 19, 22], expected [17, 20, 23]; row 13 (Concat) reads [-1, 6],"
        in said
    )
    assert (
        "[-1, 6], expected [-1, 7]; row 19 (Concat) reads [-1, 13], expected [-1, 14]; row 22 (Concat)"
        in said
    )
    assert "row 16" not in said  # row 4 is in front of the new one
    assert "`python -m lska_ops insert yolo11n.yaml ACmix --after 4 -o new.yaml`" in said
    with_options = by_hand(17)
    with_options["head"][6][3] = [23, None]
    assert " insert yolo11n.yaml LSKA k_size=23 --after 16 -o new.yaml`" in wiring.problems(with_options)[0]
    for change in ({1: 2}, {2: "ACmix", 1: 3}):  # repeats, which no option of `insert` says
        twice = by_hand(17)
        for at, value in change.items():
            twice["head"][6][at] = value
        assert wiring.problems(twice)[0].endswith(
            "; take it out and let `python -m lska_ops insert` put it in"
        )
    wider = by_hand(17)
    wider["head"][2][3] = [640, False]  # its author's own, which a copy of the stock file would lose
    assert wiring.problems(wider)[0].endswith("; take it out and let `python -m lska_ops insert` put it in")
    two = by_hand(17)
    two["head"].insert(0, [-1, 1, "ACmix", []])  # no one command puts in both
    (said,) = wiring.problems(two)
    assert said.endswith("; take it out and let `python -m lska_ops insert` put it in")


@pytest.mark.parametrize("name", ["yolov10n", "yolov9s", "yolov8n", "rtdetr-l", "yolov5n-p6"])
def test_wiring_command_runs_and_gives_the_network(name, tmp_path, monkeypatch):
    known(name)
    monkeypatch.chdir(tmp_path)
    fixed = yaml.safe_load(insert(f"{name}.yaml", "LSKA", 2))
    d = by_hand(3, name=f"{name}.yaml")
    (said,) = wiring.problems(d)
    command = re.search(r"`python -m lska_ops (.*?)` moves them too", said)[1]
    assert main(command.split()) == 0
    made = yaml.safe_load((tmp_path / "new.yaml").read_text(encoding="utf-8"))
    assert [made[part] for part in ("backbone", "head")] == [fixed[part] for part in ("backbone", "head")]
    assert "nn.yaml" not in command and "ss.yaml" not in command


def test_wiring_is_said_of_what_the_parser_was_given(logged, tmp_path):
    d = {k: v for k, v in by_hand(17).items() if k not in ("scale", "yaml_file")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(d, sort_keys=False), encoding="utf-8")
    ultralytics.YOLO(tmp_path / "mine.yaml")
    assert any("insert yolo11.yaml LSKA --after 16 -o new.yaml` moves" in line for line in logged)


def test_wiring_row_of_a_fork_is_its_own_affair():
    d = by_hand(23)
    d["head"].insert(5, [[-1, 4], 1, "ACmix", []])  # one that reads two maps
    assert [p for p in wiring.problems(d, ours=("LSKA",)) if "no row reads" in p and "LSKA" in p]
    wiring.problems(d)  # nor does it fail where it counts as ours


def test_wiring_row_that_nobody_reads():
    assert wiring.problems(by_hand(23)) == [
        "no row reads row 23 (LSKA), so it has no effect; expected row 24 (Detect) to read 23, not 22"
    ]
    assert wiring.problems(by_hand(23, detect=[16, 19, 23])) == []


def test_wiring_is_said_once_and_the_model_is_built(logged, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({k: v for k, v in by_hand(17).items() if k not in ("scale", "yaml_file")}),
        encoding="utf-8",
    )
    for _ in range(2):
        model = ultralytics.YOLO(file).model
    assert type(model.model[17]).__name__ == "LSKA"
    (said,) = (line for line in logged if "lska_ops" in line)
    assert "lska_ops: mine.yaml: is not wired as yolo11.yaml: row 24 (Detect)" in said


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_wiring_of_what_insert_writes_is_fine_and_a_number_that_stays_is_not(name, module):
    plain = known(name)
    for places in ("P4", ["P4", "P5"], "backbone", 2):
        assert wiring.problems(yaml.safe_load(insert(f"{name}.yaml", module, places))) == []
    outline = Outline(plain.values)
    assert wiring._stock_of(outline)[1].other_reads(outline) == []
    d = yaml.safe_load(insert(f"{name}.yaml", module, 2))
    concat = next(row for row in d["head"] if row[2] == "Concat" and max(row[0]) > 2)
    concat[0] = [j - (j > 2) for j in concat[0]]
    (said,) = wiring.problems(d)
    assert said.startswith("is not wired as ") and "(Concat) reads" in said


def test_wiring_of_shipped_and_of_other_networks_is_fine():
    for file in CFG.glob("*.yaml"):
        assert wiring.problems(yaml.safe_load(file.read_text(encoding="utf-8"))) == []
    assert wiring.problems(yaml.safe_load(insert("yolo11n.yaml", "SPPF_LSKA", "SPPF"))) == []
    own = by_hand(17)
    own["head"][0][2] = "nn.Identity"  # no network that we know: how it is wired is its author's
    assert wiring.problems(own) == []
    on_the_way_down = by_hand(17, detect=[16, 20, 23])  # Conv alone reads LSKA
    assert wiring.problems(on_the_way_down) == []
    assert wiring.problems(by_hand(17, detect=[17, 20])) == []  # two levels
    three = yaml.safe_load(insert("yolo11n.yaml", "LSKA", "P3"))
    concat = next(row for row in three["head"] if row[0] == [-1, 13])
    concat[0] = [-1, 6, 13]  # another Concat than ultralytics'
    assert wiring.problems(three) == []


def test_wiring_is_compared_with_the_model_of_the_same_arguments():
    if not (CFGS / "26" / "yolo26.yaml").exists():
        pytest.skip(f"ultralytics {ultralytics.__version__} has no yolo26.yaml; upgrade ultralytics")
    (said,) = wiring.problems(by_hand(17, name="yolo26n.yaml"))
    assert said.startswith("is not wired as yolo26.yaml: row 24 (Detect)")


def test_wiring_passes_over_files_that_are_no_model(tmp_path, monkeypatch):
    rows = "\n".join(f"  - [-1, 1, Conv, [{i}]]" for i in range(24))
    for name, text in (("a", "backbone: [" + rows), ("b", f"head:\n{rows}"), ("c", f"backbone:\n{rows}\nhead: 5"),
                       ("d", "backbone:\n" + "  - [-1]\n" * 24 + "head: []")):  # fmt: skip
        folder = tmp_path / "cfg" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(ultralytics.utils, "ROOT", tmp_path)
    wiring._stock.cache_clear()
    try:
        assert wiring._stock(24) == [] and wiring.problems(by_hand(17)) == []
    finally:
        wiring._stock.cache_clear()
