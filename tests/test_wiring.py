"""Rows of ours put into a YAML by hand: numbers that stayed behind are said, and nothing else is."""

import copy

import pytest
import ultralytics
import yaml
from ultralytics.nn import tasks

import lska_ops
from lska_ops.yolo import insert, wiring
from lska_ops.yolo.registration import CFG


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(wiring, "_said", set())
    lska_ops.register()
    yield
    lska_ops.unregister()


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
        "moves the numbers of those below; `python -m lska_ops insert` moves them along"
    ]
    (said,) = wiring.problems(by_hand(5, "ACmix"))
    assert (
        "yolo11.yaml: row 13 (Concat) reads [12, 6], expected [12, 7]; row 19 (Concat) reads [18, 13],"
        in said
    )
    assert "row 16" not in said and "and 1 more." in said  # row 4 is in front of the new one


def test_wiring_row_that_nobody_reads():
    assert wiring.problems(by_hand(23)) == [
        "no row reads row 23 (LSKA), so it has no effect; expected its number in the `from` of another"
    ]
    assert wiring.problems(by_hand(23, detect=[16, 19, 23])) == []


def test_wiring_is_said_once_and_the_model_is_built(logged, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in by_hand(17).items() if k not in ("scale", "yaml_file")}))
    for _ in range(2):
        model = ultralytics.YOLO(file).model
    assert type(model.model[17]).__name__ == "LSKA"
    (said,) = (line for line in logged if "lska_ops" in line)
    assert "lska_ops: mine.yaml: is not wired as yolo11.yaml: row 24 (Detect)" in said


@pytest.mark.parametrize(
    "name", ["yolo11n", "yolo11n-seg", "yolov8n", "yolov8n-p2", "yolov5n", "yolov10n", "yolo12n", "rtdetr-l"]
)
@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_wiring_of_what_insert_writes_is_fine(name, module):
    for places in ("P3", ["P4", "P5"], "backbone", 2):
        assert wiring.problems(yaml.safe_load(insert(f"{name}.yaml", module, places))) == []
    twice = by_hand(17)
    assert wiring.problems(yaml.safe_load(insert("yolo11n.yaml", "SPPF_LSKA", "SPPF"))) == []
    assert wiring.problems(twice) != []


def test_wiring_of_shipped_and_other_networks_is_fine():
    for file in CFG.glob("*.yaml"):
        assert wiring.problems(yaml.safe_load(file.read_text())) == []
    own = by_hand(17)
    own["head"][0][2] = "nn.Identity"  # no network that we know: how it is wired is its author's
    assert wiring.problems(own) == []
    reads_the_plain_map = copy.deepcopy(by_hand(17, detect=[16, 20, 23]))
    assert wiring.problems(reads_the_plain_map) == []  # LSKA on the way down alone, which Conv reads
