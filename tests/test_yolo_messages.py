"""What a YAML, a row, a name or a checkpoint that does not hold is answered with."""

import re

import pytest
import torch
import ultralytics
import yaml
from test_insert import known
from test_yolo import parse, rows

import lska_ops
from lska_ops.__main__ import main
from lska_ops.yolo import InsertError, insert, remove
from lska_ops.yolo.hints import hint_for, near_model
from lska_ops.yolo.registration import NAMES

pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize("name, meant", [("yolo11-LKSA.yaml", "yolo11-LSKA.yaml"), ("yolo11x-lska.yaml", "yolo11x-LSKA.yaml"), ("yolo11nACmx.yml", "yolo11n-ACmix.yaml"),
                                         ("yolo12s.yaml", None), ("yolo11n-seg.yaml", None), ("yolov8n-LSKA.yaml", None), ("runs/yolo11-LKSA.yaml", None)])  # fmt: skip
def test_yolo_misspelt_name_of_a_shipped_model(name, meant):
    assert near_model(name) == meant


def test_yolo_unknown_model_file_is_answered_with_the_name_that_is_near():
    with pytest.raises(FileNotFoundError, match=r"does not exist; did you mean yolo11n-LSKA.yaml\?$"):
        ultralytics.YOLO("yolo11n-LKSA.yaml")
    with pytest.raises(FileNotFoundError) as error:
        ultralytics.YOLO("nothing-like-it.yaml")
    assert "did you mean" not in str(error.value) and "insert" not in str(error.value)


@pytest.mark.parametrize(
    "name, command",
    [
        ("yolo12n-LSKA.yaml", r"insert yolo12n\.yaml LSKA --after P3 P4 P5 -o yolo12n-LSKA\.yaml"),
        ("yolov8s-acmix.yaml", r"insert yolov8s\.yaml ACmix --after P3 P4 P5 -o yolov8s-acmix\.yaml"),
        ("yolo11n-LSKA-seg.yaml", r"insert yolo11n-seg\.yaml LSKA --after P3 P4 P5 -o yolo11n-LSKA-seg\.yaml"),
        ("yolo11n-seg-LSKA.yaml", r"insert yolo11n-seg\.yaml LSKA --after P3 P4 P5 -o yolo11n-seg-LSKA\.yaml"),
        ("rtdetr-l-ACmix.yaml", r"insert rtdetr-l\.yaml ACmix --after P3 P4 P5 -o rtdetr-l-ACmix\.yaml"),
        ("yolo11n-cls-LSKA.yaml", r"insert yolo11n-cls\.yaml LSKA --after backbone -o yolo11n-cls-LSKA\.yaml"),
        ("yolo11n-sppf-lska.yaml", None),  # SPPF_LSKA is one word
        ("yolo11n-SPPF_LSKA.yaml", r"insert yolo11n\.yaml SPPF_LSKA --after SPPF -o yolo11n-SPPF_LSKA\.yaml"),
        ("yolo99n-LSKA.yaml", None),
        ("yolov10n-LSKA.yaml", r"insert yolov10n\.yaml LSKA --after P3 P4 P5 -o yolov10n-LSKA\.yaml"),
        ("yolov3-tiny-LSKA.yaml", r"insert yolov3-tiny\.yaml LSKA --after 19 15 -o yolov3-tiny-LSKA\.yaml"),
        ("yolov3-SPPF_LSKA.yaml", None),  # it has no SPPF
        ("coco8-LSKA.yaml", None),  # a data set
    ],
)  # fmt: skip
def test_yolo_model_that_insert_can_write_is_answered_with_the_command(name, command, tmp_path, monkeypatch):
    if command and "12" in name:
        known("yolo12n")  # not there before 8.3.78
    kind = ultralytics.RTDETR if "rtdetr" in name else ultralytics.YOLO
    with pytest.raises(FileNotFoundError) as error:
        kind(name)
    assert ("lska_ops insert" in str(error.value)) == bool(command), error.value
    if not command:
        return
    said = re.search(rf"; `python -m lska_ops ({command})` writes it$", str(error.value))
    assert said, error.value
    monkeypatch.chdir(tmp_path)
    assert main(said[1].split()) == 0
    model = kind(name).model
    assert any(type(m).__module__.startswith("lska_ops.") for m in model.modules())


def test_yolo_hint_is_for_names_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("yolo11n-seg-LSKA.pt", "yolo11n-seg-LSKA", "runs/yolo11n-seg-LSKA.yaml",
                 "https://example.invalid/yolo11n-seg-LSKA.yaml", "broken-LSKA.yaml", "empty-LSKA.yaml"):  # fmt: skip
        (tmp_path / "broken.yaml").write_text("backbone: [", encoding="utf-8")
        (tmp_path / "empty.yaml").write_text("backbone: []\nhead: []\n", encoding="utf-8")
        assert hint_for(name) == ""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(rows()), encoding="utf-8")
    command = "insert mine.yaml LSKA --after P3 P4 P5 -o mine-LSKA.yaml"
    assert hint_for("mine-LSKA.yaml") == f"; `python -m lska_ops {command}` writes it"
    (tmp_path / "mine-LSKA.yaml").touch()
    assert hint_for("mine-LSKA.yaml") == ""
    with pytest.raises(InsertError, match=r"^yolo11n-seg-LSKA\.pt: does not exist; .* that ultralytics has$"):
        remove("yolo11n-seg-LSKA.pt", "LSKA")
    with pytest.raises(InsertError, match="; `python -m lska_ops insert yolo11n-seg.yaml LSKA "):
        remove("yolo11n-seg-LSKA.yaml", "LSKA")


@pytest.mark.parametrize(
    "row, message",
    [
        ([-1, 1, "LSKA", [8]], "row 1: LSKA: k_size is 8; expected"),
        ([-1, 1, "ACmix", [7, 5]], "row 1: ACmix: head is 5; expected a divisor of out_planes = 16"),
        ([-1, 1, "LSKA", [7, 2, 1]], "row 1 (LSKA) has arguments [7, 2, 1]; expected at most 2: ['k_size', 'dilation']"),
        ([-1, 1, "SPPF_LSKA", [1024, 5]], "row 1: SPPF_LSKA: k is 1024; expected an odd integer of at least 1; channel counts are filled in"),
        ([-1, 1, "LSKA", [1024]], "; channel counts are filled in"),
        ([-1, 1, "ACmix", [512]], "; channel counts are filled in"),
        ([-1, 1, "LSKA", [64, 64, 7]], "expected at most 2: ['k_size', 'dilation']; channel counts are filled in"),
        ([-1, 1, "LSKA"], "row 1 is [-1, 1, LSKA]; expected from, repeats, module, arguments: [-1, 1, LSKA, []]"),
        ([-1, "LSKA", []], "row 1 is [-1, LSKA, []]; expected from, repeats, module, arguments: [-1, 1, LSKA, []]"),
        ("LSKA", "row 1 is LSKA; expected from, repeats, module, arguments: [-1, 1, LSKA, []]"),
        ([[-1, 1, "LSKA", []]], "row 1 is [[-1, 1, LSKA, []]]; expected from, repeats, module, arguments: [-1, 1, LSKA, []]"),
        ([-1, float("inf"), "LSKA", []], "row 1 (LSKA) has repeats inf; expected a number"),
        ([1, -1, "LSKA", []], "row 1 (LSKA) reads from 1; expected a row before it"),
        ([0, -1, "LSKA", []], "row 1 (LSKA) has repeats -1; expected 1 or more: from, repeats, module, arguments"),
        ([True, 1, "LSKA", []], "row 1 (LSKA) reads from true; expected a row before it"),
        ([-1, 1, "LSKA", 23], "row 1 (LSKA) has arguments 23; expected a list"),
        ([-1, 1, "LSKA", None], "row 1 (LSKA) has arguments None; expected a list"),
        ([-1, "x", "LSKA", []], "row 1 (LSKA) has repeats 'x'; expected a number"),
        ([1, 1, "LSKA", []], "row 1 (LSKA) reads from 1; expected a row before it, 0 to 0 or -1 to -1"),
        ([-2, 1, "LSKA", []], "row 1 (LSKA) reads from -2; expected a row before it"),
        ([99, 1, "ACmix", []], "row 1 (ACmix) reads from 99; expected a row before it"),
        ([-1, 1, "LSKA", ["k"]], "row 1: LSKA: k_size is 'k'; expected an integer"),
        ([-1, 1, "LSKAA", []], "row 1 names 'LSKAA', which neither ultralytics nor lska_ops has; did you mean LSKA"),
        ([-1, 1, "nn.LSKA", []], "row 1 names 'nn.LSKA', which neither ultralytics nor lska_ops has; did you mean LSKA"),
        ([[-1, 0], 1, "LSKA", []], "row 1 (LSKA) reads from [-1, 0]; expected one row"),
        ([-1, 1, "LSKA", ["k_size=23"]], "LSKA: k_size is 'k_size=23'; expected an integer"),
        ([-1, 1, "LSKA", [{"k_size": 23}]], "row 1: LSKA: k_size is {'k_size': 23}; expected an integer"),
    ],
    ids=str,
)  # fmt: skip
def test_yolo_bad_row(row, message):
    with pytest.raises((TypeError, ValueError)) as error:
        parse(rows(row))
    assert message in str(error.value) and str(error.value).startswith("model YAML: ")


def test_yolo_bad_row_names_the_file(tmp_path):
    file = tmp_path / "my-net.yaml"
    file.write_text(yaml.safe_dump(rows([-1, 1, "LSKA", [8]])), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^my-net\.yaml: row 1: LSKA: k_size is 8; expected"):
        ultralytics.YOLO(file)
    file.write_text(yaml.safe_dump(rows([-1, 1, "LSKAA", []])), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^my-net\.yaml: row 1 names 'LSKAA'"):
        ultralytics.YOLO(file)


def test_yolo_rows_and_lists_that_are_not_there():
    d = rows([-1, 1, "LSKA", []])
    d["head"][-1][0] = [2, 25]
    with pytest.raises(
        ValueError, match=r"^model YAML: row \d+ \(Detect\) reads from 25; expected a row before it"
    ):
        parse(d)
    for section in ("backbone", "head"):
        d = rows([-1, 1, "LSKA", []])
        d["head"].insert(0, [-1, 1, "LSKA", []])
        with pytest.raises(
            ValueError, match=f"^model YAML: has no list {section}; expected a model YAML with"
        ):
            parse({name: value for name, value in d.items() if name != section})
    with pytest.raises(KeyError, match="head"):  # without ours it is ultralytics' own affair
        parse({name: value for name, value in rows().items() if name != "head"})
    with pytest.raises(ValueError, match="^not enough values to unpack"):
        parse(rows([-1, "Conv", [64, 3, 2]]))


@pytest.mark.versions
@pytest.mark.parametrize(
    "row, message",
    [
        ([-1, 1, "C2PSA", [128]], r"row 2 (C2PSA) does not take [128]: AssertionError("),
        ([-1, 1, "Conv", ["64 3", 3, 1]], "row 2 (Conv) does not take [64 3, 3, 1]: "),
        ([-1, float("inf"), "C2f", [64]], "row 2 (C2f) does not take [64]: cannot convert float infinity to integer"),
        ([-1, 1, "Concat", [1]], "row 2 (Concat) does not take [1]: 'int' object is not iterable"),
        ([-1, 1, "Conv", [64, 3, 1, 1, 1, 1, 1, 1, 1]], "row 2 (Conv) does not take [64, 3, 1, "),
        ([-1, 1, "Convv", [64]], "row 2 names 'Convv', which neither ultralytics nor lska_ops has; did you mean Conv"),
    ],
    ids=str,
)  # fmt: skip
def test_yolo_bad_row_beside_one_of_ours(tmp_path, row, message):
    d = rows([-1, 1, "LSKA", []], row)
    with pytest.raises(ValueError) as error:
        parse(d)
    assert str(error.value).startswith(f"model YAML: {message}")
    (tmp_path / "net.yaml").write_text(
        yaml.safe_dump({name: v for name, v in d.items() if name != "scale"}), encoding="utf-8"
    )
    with pytest.raises(InsertError) as error:
        insert(tmp_path / "net.yaml", "LSKA", 0)
    assert str(error.value).startswith(f"net.yaml: {message}")
    with pytest.raises(Exception) as stock:
        parse(rows([-1, 1, "nn.Identity", []], row))  # without ours it is ultralytics' own affair
    assert not str(stock.value).startswith("model YAML: ")


def test_yolo_bad_first_row_classes_and_empty_from():
    d = rows([-1, 1, "LSKA", []])
    d["backbone"][0][0] = 0
    with pytest.raises(
        ValueError, match=r"^model YAML: row 0 \(Conv\) reads from 0; expected -1, the picture"
    ):
        parse(d)
    for nc, said in ((None, "null"), ("eighty", "eighty")):
        with pytest.raises(
            ValueError, match=rf"row 4 \(Detect\) takes nc, which is {said}; expected the number of"
        ):
            parse({**rows([-1, 1, "LSKA", []]), "nc": nc})
    with pytest.raises(
        ValueError, match=r"^model YAML: row 2 \(Concat\) reads from \[\]; expected at least one row"
    ):
        ultralytics.nn.tasks.DetectionModel(rows([-1, 1, "LSKA", []], [[], 1, "Concat", [1]]), verbose=False)


def test_yolo_parser_leaves_the_rows_it_is_given():
    d = rows([-1, 1, "LSKA", []], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [-1, 1, "Conv", [64, 3, 2]])
    before = yaml.safe_dump(d)
    ultralytics.nn.tasks.parse_model(d, 3, verbose=False)
    assert yaml.safe_dump(d) == before


def test_yolo_maps_that_do_not_fit_name_the_row(tmp_path):
    file = tmp_path / "my-net.yaml"
    d = yaml.safe_load(insert("yolo11n.yaml", "ACmix", "P3"))
    d["head"][6] = [-1, 1, "ACmix", [7, 4, 3, 2]]  # row 17, in place of the one without a stride
    file.write_text(yaml.safe_dump(d, sort_keys=False), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        ultralytics.YOLO(file)
    assert str(error.value) == (
        "my-net.yaml: row 19 (Concat) does not take what rows 18, 13 give, 64×8×8 and 128×16×16 of a picture of "
        "256 px: expected maps of one size; row 17 (ACmix) has stride 2"
    )
    d = yaml.safe_load(insert("yolo11n.yaml", "LSKA", 2))
    d["head"][1][0] = [-1, 2]
    file.write_text(yaml.safe_dump(d, sort_keys=False), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"my-net\.yaml: row 13 \(Concat\) does not take .* maps of one size$"
    ):
        ultralytics.YOLO(file)


def test_yolo_other_errors_of_maps_stay_what_they_are(monkeypatch):
    plain = rows()
    plain["head"].insert(2, [[-1, 0], 1, "Concat", [1]])
    with pytest.raises(RuntimeError, match="^Sizes of tensors must match"):
        ultralytics.nn.tasks.DetectionModel(plain, verbose=False)
    plain["backbone"].append([-1, 1, "LSKA", []])
    with pytest.raises(
        ValueError, match=r"^model YAML: row 4 \(Concat\) does not take what rows 3, 0 give, "
    ):
        ultralytics.nn.tasks.DetectionModel(plain, ch=1, verbose=False)
    monkeypatch.setattr(lska_ops.LSKA, "forward", lambda module, x: x.view(-1, 7))
    with pytest.raises(
        ValueError, match=r"row 1 \(LSKA\) does not take what row 0 gives, 16×128×128 .*: shape '"
    ):
        ultralytics.nn.tasks.DetectionModel(rows([-1, 1, "LSKA", []]), verbose=False)
    monkeypatch.undo()

    def missing(*_):
        raise NotImplementedError

    with monkeypatch.context() as patched:
        patched.setattr(lska_ops.LSKA, "forward", missing)
        with pytest.raises(NotImplementedError):
            ultralytics.nn.tasks.DetectionModel(rows([-1, 1, "LSKA", []]), verbose=False)
    monkeypatch.setattr(ultralytics.nn.tasks.DetectionModel, "forward", lambda *_: torch.zeros(2).view(3))
    with pytest.raises(RuntimeError, match="^shape '"):
        ultralytics.nn.tasks.DetectionModel(rows([-1, 1, "LSKA", []]), verbose=False)


def spellings(name):
    return {name.lower(), name.upper(), name.title(), name.swapcase(), name[:2].lower() + name[2:], f"{name} ",
            name.replace("_", "-").lower(), name.replace("_", ""), f"{name[:3]}-{name[3:]}"} - {name}  # fmt: skip


@pytest.mark.parametrize("name, spelling", [(name, s) for name in NAMES for s in sorted(spellings(name))])
def test_yolo_other_spelling_of_a_name_is_answered_with_it(name, spelling):
    with pytest.raises(ValueError) as error:
        parse(rows([-1, 1, spelling, []]))
    assert str(error.value).endswith(f"; did you mean {name}?")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("8", 8), "SPPF_LSKA: c1 is '8'; expected an integer"),
        ((0, 8), "SPPF_LSKA: c1 is 0; expected an integer of at least 2"),
        ((8, 0), "SPPF_LSKA: c2 is 0; expected an integer of at least 1"),
        ((8, 8, 4), "SPPF_LSKA: k is 4; expected an odd integer of at least 1"),
    ],
)
def test_yolo_bad_sppf(arguments, message):
    with pytest.raises((TypeError, ValueError)) as error:
        lska_ops.SPPF_LSKA(*arguments)
    assert str(error.value) == message


@pytest.mark.versions
@pytest.mark.parametrize(
    "weights, kind",
    [
        (None, "NoneType"),
        (5, "int"),
        ({"model": 3}, "a dict with int as its model"),
        ({}, "a dict with NoneType as"),
    ],
)
def test_yolo_loading_what_is_no_network(weights, kind):
    with pytest.raises(
        TypeError, match=f"^load: weights is {kind}.*; expected the path of a checkpoint, or a network"
    ):
        ultralytics.YOLO("yolo11n-LSKA.yaml").load(weights)


@pytest.mark.versions
def test_yolo_loading_a_yolo_names_its_model():
    model = ultralytics.YOLO("yolo11n-LSKA.yaml")
    with pytest.raises(
        TypeError, match=r"^load: weights is YOLO; expected .* a network \(YOLO\(\.\.\.\)\.model\)$"
    ):
        model.load(model)
    model.load(model.model)


def test_yolo_other_key_errors_stay_what_they_are():
    with pytest.raises(KeyError, match="huge"):
        parse(rows([-1, 1, "LSKA", []], scale="huge"))
