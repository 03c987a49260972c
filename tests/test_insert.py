"""Modules put into model YAMLs and taken out again: rows, text, every family, and what is refused."""

import re
import subprocess
import sys

import pytest
import torch
import ultralytics
import yaml
from ultralytics.nn import tasks

import lska_ops
from lska_ops.__main__ import main
from lska_ops.yolo import InsertError, insert, remove, row_diff
from lska_ops.yolo.insertion import plan_insert
from lska_ops.yolo.model_file import ModelFile
from lska_ops.yolo.registration import CFG, NAMES


@pytest.fixture(autouse=True)
def unregistered():
    yield
    lska_ops.unregister()


def rows(text):
    d = yaml.safe_load(text)
    return d["backbone"] + d["head"]


def write(folder, text, name="net.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


SMALL = """# a net
nc: 3  # classes
scales:
  # [depth, width, max_channels]
  n: [0.5, 0.25, 1024] # 12 layers, 345 parameters
  s: [0.5, 0.5, 1024]  # twice as wide
backbone:
  - [-1, 1, Conv, [64, 3, 2]]  # 0-P1/2
  # a comment of its own
  - [-1, 1, Conv, [64, 3, 2]] # 1 of 2
  - [-2, 1, Conv, [64, 3, 2]] # 20 maps
head:
  - [[-1, 1], 1, Concat, [1]]  # cat 2

  - [0, 1, Conv, [64, 3, 1]]
  - [[3, 4], 1, Detect, [nc]]
"""


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_insert_at_three_levels_is_the_bundled_yaml(module):
    made = insert("yolo11n.yaml", module, after=["P3", "P4", "P5"])
    assert rows(made) == rows((CFG / f"yolo11-{module}.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(made)["scales"] == tasks.yaml_model_load("yolo11.yaml")["scales"]
    back = remove(CFG / f"yolo11-{module}.yaml", module)
    assert rows(back) == rows(ModelFile("yolo11.yaml").text)


def test_insert_keeps_the_text_and_moves_the_numbers_of_comments(tmp_path):
    expected = SMALL.replace(" # 12 layers, 345 parameters", "")
    expected = expected.replace("# 1 of 2\n", "# 1 of 2\n  - [-1, 1, LSKA, [7, 3]] # 2 (P2/4)\n")
    expected = expected.replace("[-2, 1, Conv", "[-3, 1, Conv")
    expected = expected.replace("[[-1, 1], 1, Concat", "[[-1, 2], 1, Concat").replace(
        "[[3, 4], 1,", "[[4, 5], 1,"
    )
    with pytest.raises(InsertError, match="row 2: LSKA: k_size is 7; expected"):
        insert(write(tmp_path, SMALL), "LSKA", 1, dilation=3)
    expected = expected.replace("[7, 3]", "[11]")
    assert insert(write(tmp_path, SMALL), "LSKA", 1, k_size=11) == expected


def test_insert_misspelt_source_is_answered_with_the_name():
    with pytest.raises(
        InsertError, match=r"^yolo11n-LKSA.yaml: does not exist; .* did you mean yolo11n-LSKA.yaml\?$"
    ):
        remove("yolo11n-LKSA.yaml", "LSKA")


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "model YAML: source is ''; expected its path or name"),
        (".", ".: is a directory; expected a model's .yaml"),
        ("yolo11n", "yolo11n: does not exist; expected the path of a model YAML, or a name that ultralytics has; did you mean yolo11n.yaml?"),
        ("yolo99n", "yolo99n: does not exist; expected the path of a model YAML, or a name that ultralytics has"),
    ],
)  # fmt: skip
def test_insert_source_that_is_no_file(source, message):
    with pytest.raises(InsertError) as error:
        insert(source, "LSKA", "P3")
    assert str(error.value) == message


def test_insert_remove_takes_names_and_numbers_once(tmp_path):
    path = tmp_path / "yolo11n-two.yaml"
    insert("yolo11n.yaml", "LSKA", ["P3", "P5"], out=path)
    less = remove(path, ["LSKA"])
    assert rows(less) == rows(ModelFile("yolo11n.yaml").text)
    assert less == remove(path, [17, "LSKA", 17]) == remove(path, ["24", 17])


def test_insert_numbers_in_any_notation(tmp_path):
    text = changed(SMALL, "[[3, 4], 1, Detect", "[[0x3, 4], 1, Detect")
    assert rows(insert(write(tmp_path, text), "LSKA", 0)) == rows(
        insert(write(tmp_path, SMALL, "b.yaml"), "LSKA", 0)
    )
    assert main(["insert", str(tmp_path / "net.yaml"), "LSKA", "--after", "0"]) == 0


def test_insert_at_an_sppf_that_repeats(tmp_path):
    text = changed(ModelFile("yolo11n.yaml").text, "[-1, 1, SPPF,", "[-1, 4, SPPF,")
    made = rows(insert(write(tmp_path, text), "LSKA", "SPPF"))
    assert made[9][:3] == [-1, 4, "SPPF_LSKA"]


def test_insert_source_that_is_a_network():
    with pytest.raises(InsertError, match="^model YAML: source is a Linear; expected its path or name$"):
        insert(torch.nn.Linear(1, 1), "LSKA", "P3")


def test_insert_puts_the_scale_of_the_name_first(tmp_path):
    made = insert(write(tmp_path, SMALL, "yolo1s.yaml"), "LSKA", 1)
    assert list(yaml.safe_load(made)["scales"].items()) == [("s", [0.5, 0.5, 1024]), ("n", [0.5, 0.25, 1024])]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_insert_without_a_last_line_end(tmp_path, newline):
    text = SMALL.rstrip().replace("\n", newline)
    path = tmp_path / "net.yaml"
    path.write_bytes(text.encode())
    made = insert(path, "ACmix", ["backbone", 3, "4"], head=8)
    assert made.count(newline) == text.count(newline) + 3 and made.count("\n") == made.count(newline)
    assert rows(made)[3:] == [
        [-1, 1, "ACmix", [7, 8]],
        [[-1, 1], 1, "Concat", [1]],
        [-1, 1, "ACmix", [7, 8]],
        [0, 1, "Conv", [64, 3, 1]],
        [-1, 1, "ACmix", [7, 8]],
        [[5, 7], 1, "Detect", ["nc"]],
    ]


CHINESE = SMALL.replace("# a net", "# 网络 “小目标检测”").replace(
    "# a comment of its own", "# 一句话、模块、嚳"
)
ENCODINGS = ["utf-8", "utf-8-sig", "gbk", "gb18030", "big5", "shift-jis", "latin-1"]


def inserted(text):
    """What `insert` makes of SMALL behind its row 1, the row numbers written out."""
    for old, new in (
        (" # 12 layers, 345 parameters", ""),
        ("# 1 of 2", "# 1 of 2\n  - [-1, 1, LSKA, [11]] # 2 (P2/4)"),
        ("[-2, 1, Conv", "[-3, 1, Conv"),
        ("[[-1, 1], 1, Concat", "[[-1, 2], 1, Concat"),
        ("[[3, 4], 1,", "[[4, 5], 1,"),
    ):
        text = changed(text, old, new)
    return text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_insert_keeps_every_byte_of_comments_in_any_encoding(tmp_path, encoding, newline):
    text = {"big5": CHINESE.replace("网络 “小目标检测”", "功許蓋 檢測").replace("一句话、模块、嚳", "網路模塊"),
            "shift-jis": CHINESE.replace("网络 “小目标检测”", "ソ表示").replace("一句话、模块、嚳", "能予"),
            "latin-1": CHINESE.replace("网络 “小目标检测”", "é à l'école").replace("一句话、模块、嚳", "größer")}.get(encoding, CHINESE)  # fmt: skip
    source, out, back = (tmp_path / name for name in ("net.yaml", "out.yaml", "back.yaml"))
    source.write_bytes(text.replace("\n", newline).encode(encoding))
    made = insert(source, "LSKA", 1, k_size=11, out=out)
    assert out.read_bytes() == inserted(text).replace("\n", newline).encode(encoding)
    assert made.encode("utf-8", "surrogateescape") == out.read_bytes()
    remove(out, "LSKA", out=back)
    without_counts = changed(text, " # 12 layers, 345 parameters", "")
    assert back.read_bytes() == without_counts.replace("\n", newline).encode(encoding)
    lska_ops.register()
    assert (
        type(tasks.DetectionModel(str(out), verbose=False).model[2]) is lska_ops.LSKA
    )  # ultralytics reads it


@pytest.mark.parametrize(
    "encoding, name",
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")],
)
def test_insert_refuses_text_whose_letters_take_several_bytes(tmp_path, encoding, name):
    source, out = tmp_path / "net.yaml", tmp_path / "out.yaml"
    source.write_bytes(CHINESE.encode(encoding))
    with pytest.raises(InsertError) as error:
        insert(source, "LSKA", 1, out=out)
    assert str(error.value).startswith(f"net.yaml: is {name} text; expected UTF-8") and not out.exists()


def test_insert_names_the_encoding_where_bytes_break_the_yaml(tmp_path):
    source = tmp_path / "net.yaml"
    source.write_bytes(changed(SMALL, "nc: 3 ", 'nc: "3鎈" ').encode("gbk"))  # its second byte is a backslash
    with pytest.raises(
        InsertError, match=r"net.yaml: is no YAML \(line \d+: .*\); expected .*, saved as UTF-8"
    ):
        insert(source, "LSKA", 1)


@pytest.mark.parametrize("style", [None, True, False], ids=["leaves", "flow", "block"])
def test_insert_in_every_style_of_yaml(tmp_path, style):
    d = yaml.safe_load(SMALL)
    path = write(tmp_path, yaml.safe_dump(d, default_flow_style=style, sort_keys=False))
    made = insert(path, "LSKA", ["P2", 0])
    expected = rows(insert(write(tmp_path, SMALL, "plain.yaml"), "LSKA", ["P2", 0]))
    assert rows(made) == expected and len(expected) == len(rows(SMALL)) + 2
    again = remove(write(tmp_path, made, "made.yaml"), [1, 5])
    assert yaml.safe_load(again) == d


FAMILIES = ["yolov3-tiny", "yolov3", "yolov5n", "yolov5n-p6", "yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb",
            "yolov8n-p2", "yolov8s-world", "yolov8s-worldv2", "yolov9t", "yolov9c", "yolov9e", "yolov10n", "yolo11n-seg",
            "yolo11n-pose", "yolo11n-obb", "yolo12n", "yolo26n", "yolo26n-p2", "yolo26n-seg", "rtdetr-l", "yoloe-11s"]  # fmt: skip


def known(name):
    try:
        return ModelFile(f"{name}.yaml")
    except InsertError:
        pytest.skip(f"ultralytics {ultralytics.__version__} has no {name}.yaml; upgrade ultralytics")


@pytest.mark.parametrize("name", FAMILIES)
def test_insert_in_every_family_at_every_level(name):
    old = known(name)
    levels = re.findall(r"P\d", old.text.rsplit("#", 1)[1])  # as the comment of the head says
    assert len(levels) == len(old.rows[-1].reads)
    plan = plan_insert(f"{name}.yaml", "LSKA", levels, {})
    new = plan.new
    assert [new.rows[i].name for i in new.rows[-1].reads] == ["LSKA"] * len(levels)
    for i, row in enumerate(new.rows):
        if i not in plan.was:
            assert (row.name, row.reads) == ("LSKA", [i - 1])
            continue
        # Through our rows, each row reads what it read.
        reads = [j if j in plan.was or j < 0 else j - 1 for j in row.reads]
        assert [plan.was.get(j, j) for j in reads] == old.rows[plan.was[i]].reads
        assert (row.name, row.args) == (old.rows[plan.was[i]].name, old.rows[plan.was[i]].args)
    behind = sorted(old.rows[-1].reads)
    assert sorted(plan.was[i - 1] for i in new.rows[-1].reads) == behind


@pytest.mark.parametrize("module", NAMES)
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n-cls", "yolov9t", "yolo26n"])
def test_insert_behind_the_backbone_and_back(tmp_path, name, module):
    old = known(name)
    places = "backbone" if module != "SPPF_LSKA" else "SPPF"
    if places == "SPPF" and "SPPF" not in [row.name for row in old.rows]:
        with pytest.raises(InsertError, match="has no row SPPF; expected P3, backbone or a row number"):
            insert(f"{name}.yaml", module, places)
        return
    made = insert(f"{name}.yaml", module, places)
    back = remove(write(tmp_path, made, f"{name}-more.yaml"), module)
    assert made != back and rows(back) == rows(old.text)


def test_insert_lska_at_sppf_is_sppf_lska():
    made = rows(insert("yolo11n.yaml", "LSKA", "SPPF", k_size=23))
    assert made[9] == [-1, 1, "SPPF_LSKA", [5, 23]] and len(made) == len(rows(ModelFile("yolo11n.yaml").text))
    assert rows(insert("yolo11n.yaml", "ACmix", "SPPF"))[10] == [-1, 1, "ACmix", []]


def test_insert_sppf_keeps_pooling_and_shortcut():
    known("yolo26n")
    plan = plan_insert("yolo26n.yaml", "SPPF_LSKA", "SPPF", {"k_size": 7})
    assert plan.new.rows[9].args == [5, 7, 3, True] and plan.new_layers[9].add and plan.new_layers[9].n == 3


def test_insert_into_a_checkpoint_names_what_it_is(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="net.pt: is no YAML; expected a model's .yaml"):
        insert(str(tmp_path / "net.pt"), "LSKA", "P3")


def changed(text, old, new):
    assert old in text
    return text.replace(old, new)


BAD = [
    (None, "LSKA", "P3", {}, "net.yaml: does not exist; expected the path of a model YAML"),
    ("a: [", "LSKA", "P3", {}, "net.yaml: is no YAML (line"),
    ("- 1", "LSKA", "P3", {}, "net.yaml: has no keys; expected a model YAML with lists backbone and head"),
    ("", "LSKA", "P3", {}, "net.yaml: is empty; expected"),
    ("d: 2024-99-99", "LSKA", "P3", {}, "net.yaml: is no YAML (month must be in 1..12"),
    ("base: &b\n  backbone: []\n  head: []\n<<: *b", "LSKA", "P3", {}, " by a merge key (<<); expected it written out"),
    ("plain words", "LSKA", "P3", {}, "net.yaml: has no keys; expected a model YAML"),
    ("backbone: []\nhead: 3", "LSKA", "P3", {}, "net.yaml: has no list head; expected"),
    ("nc: 3", "LSKA", "P3", {}, "net.yaml: has no list backbone and no list head; expected"),
    ("backbone: []\nhead: []", "LSKA", "P3", {}, "net.yaml: the head is not found, there is no row"),
    (changed(SMALL, "[-1, 1, Conv, [64, 3, 2]] # 1", "[-1, 1, Conv] # 1"), "LSKA", 0, {}, "net.yaml: row 1 is [-1, 1, Conv]; expected from, repeats"),
    (changed(SMALL, "[[3, 4], 1, Detect", "[[3, 9], 1, Detect"), "LSKA", 0, {}, "net.yaml: row 5 (Detect) reads from 9; expected a row before it, 0 to 4"),
    (changed(SMALL, "[-2, 1,", "[-7, 1,"), "LSKA", 0, {}, "net.yaml: row 2 (Conv) reads from -7; expected a row before it, 0 to 1"),
    (changed(SMALL, "[-2, 1,", "[x, 1,"), "LSKA", 0, {}, "net.yaml: row 2 (Conv) reads from x; expected a row before it"),
    (changed(SMALL, "Concat", "Concatt"), "LSKA", 0, {}, "net.yaml: row 3 names 'Concatt', which neither ultralytics nor lska_ops has; did you mean Concat"),
    (changed(SMALL, "[-2, 1, Conv, [64, 3, 2]]", "[-2, 1, Conv, [64, 3, 8]]"), "LSKA", 0, {}, "net.yaml: row 3 (Concat) does not take what rows 2, 1 give, 16×16×16 and 16×64×64 of a picture of 256 px: expected maps of one size"),
    (changed(SMALL, "[[3, 4], 1, Detect, [nc]]", "[-1, 1, Conv, [64, 1, 1]]"), "LSKA", "P3", {}, "net.yaml: the head is not found, the last row, 5, is Conv; expected one that reads a list of rows"),
    (changed(SMALL, "- [-2, 1, Conv, [64, 3, 2]]", "- &a [-1, 1, Conv, [64, 3, 1]]\n  - *a"), "LSKA", 0, {}, "net.yaml: has a row by an alias (*name); expected every row written out"),
    (SMALL, "LSKA", "P3", {}, "net.yaml: the head reads no P3; expected one of P1 (row 4), P2 (row 3)"),
    (SMALL, "LSKA", "p2", {}, "net.yaml: place is 'p2'; expected P2 to P7, backbone, SPPF or a row number from 0 to 4"),
    (SMALL, "LSKA", 5, {}, "net.yaml: place is row 5; expected 0 to 4; nothing reads the head"),
    (SMALL, "LSKA", -1, {}, "net.yaml: place is row -1; expected 0 to 4"),
    (SMALL, "LSKA", 1.0, {}, "net.yaml: place is 1.0; expected P2 to P7"),
    (SMALL, "LSKA", [], {}, "insert: after is empty; expected P3"),
    (SMALL, "LSKA", ["P2", 3], {}, "net.yaml: row 3 is asked for by P2 and by 3; expected one"),
    (SMALL, "LSKA", "SPPF", {}, "net.yaml: has no row SPPF; expected"),
    (SMALL, "SPPF_LSKA", 1, {}, "net.yaml: row 1 (Conv) cannot become SPPF_LSKA; expected a row SPPF"),
    (SMALL, "CBAM", "P2", {}, "insert: module is 'CBAM'; expected one of LSKA, "),
    (SMALL, "lska", "P2", {}, "ACmix, SPPF_LSKA; did you mean LSKA?"),
    (SMALL, "LSKA", "P2", {"size": 7}, "insert: LSKA has no option 'size'; expected k_size, dilation"),
    (SMALL, "LSKA", "P2", {"k_size": 8}, "net.yaml: row 4: LSKA: k_size is 8; expected"),
    (SMALL, "ACmix", "P2", {"head": 5}, "net.yaml: row 4: ACmix: head is 5; expected a divisor of out_planes = 32"),
    (SMALL, "ACmix", 2, {"stride": 2}, "net.yaml: row 4 (Concat) does not take what rows 3, 1 give, 16×32×32 and 16×64×64 of a picture of 256 px: expected maps of one size; row 3 (ACmix) has stride 2"),
]  # fmt: skip


@pytest.mark.parametrize("text, module, after, options, message", BAD, ids=[case[-1] for case in BAD])
def test_insert_refuses(tmp_path, text, module, after, options, message):
    source = tmp_path / "net.yaml" if text is None else write(tmp_path, text)
    out = tmp_path / "out.yaml"
    with pytest.raises(InsertError) as error:
        insert(source, module, after, out=out, **options)
    assert message in str(error.value) and "\n" not in str(error.value) and not out.exists()


def test_insert_refuses_a_row_that_gives_several_maps():
    known("yolov9e")
    with pytest.raises(
        InsertError, match=r"yolov9e.yaml: row 12 \(CBLinear\) gives a list of maps; expected one map"
    ):
        insert("yolov9e.yaml", "LSKA", 12)


@pytest.mark.parametrize(
    "what, message",
    [
        ("ACmix", "net.yaml: has no row ACmix; expected one of ours: 0 (LSKA)"),
        ("Conv", "net.yaml: has no row Conv; expected one of ours: 0 (LSKA)"),
        (1, "net.yaml: row 1 is Conv; expected one of ours: 0 (LSKA)"),
        (9, "net.yaml: has no row 9; expected one of ours: 0 (LSKA)"),
        ("9", "net.yaml: has no row 9; expected one of ours: 0 (LSKA)"),
        (-1, "net.yaml: has no row -1; expected one of ours: 0 (LSKA)"),
        (2.5, "remove: what is 2.5; expected a module's name or a row number"),
        (["LSKA", "ACmix"], "net.yaml: has no row ACmix; expected one of ours: 0 (LSKA)"),
        ([], "remove: what is empty; expected a module's name or row numbers"),
        ("LSKA", "net.yaml: row 5 (Conv) would have to read the picture; expected a row before it"),
    ],
)
def test_insert_remove_refuses(tmp_path, what, message):
    text = changed(SMALL, "backbone:\n", "backbone:\n  - [-1, 1, LSKA, []]\n")
    text = changed(text, "[[-1, 1],", "[[-1, 2],").replace("[[3, 4],", "[[4, 5],")
    with pytest.raises(InsertError, match=re.escape(message)):
        remove(write(tmp_path, text), what)


def test_insert_remove_refuses_a_row_that_changes_the_map(tmp_path):
    text = changed(SMALL, "[-1, 1, Conv, [64, 3, 2]] # 1 of 2", "[-1, 1, ACmix, [7, 4, 3, 2]]")
    with pytest.raises(
        InsertError, match=r"row 1 \(ACmix\) gives \[1, 16, 64, 64\] from \[1, 16, 128, 128\]"
    ):
        remove(write(tmp_path, text), "ACmix")


@pytest.mark.parametrize(
    "out, message",
    [
        ("my.txt", "insert: out is my.txt; expected a name that ends in .yaml"),
        ("no/my.yaml", "insert: out is no/my.yaml; expected a file in a folder that exists"),
        ("net.yaml", "insert: out is net.yaml, which exists; expected a new name"),
    ],
)
def test_insert_word_refuses_a_file_it_cannot_make(tmp_path, monkeypatch, capsys, out, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SMALL)
    assert main(["insert", "net.yaml", "LSKA", "--after", "P2", "-o", out]) == 2
    assert capsys.readouterr().err == f"lska_ops: {message}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["net.yaml"]
    assert (tmp_path / "net.yaml").read_text(encoding="utf-8") == SMALL


def test_insert_word_prints_rows_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["insert", "yolo11n.yaml", "LSKA", "k_size=23", "--after", "P3", "22"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "nothing is written" in printed and not list(tmp_path.iterdir())
    assert main([*words, "-o", "my.yaml"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "16 16 -1 2 C3k2 [256, false]" in lines and "+ 17 -1 1 LSKA [23] +5,952" in lines
    assert "23 25 [16, 19, 22] → [17, 20, 24] 1 Detect [nc]" in lines
    assert "parameters 2,624,080 → 2,702,992 (+78,912)" in lines and lines[-1] == "written: my.yaml"
    lska_ops.register()
    model = tasks.DetectionModel("my.yaml", verbose=False)
    assert sum(p.numel() for p in model.parameters()) == 2_702_992
    assert main(["remove", "my.yaml", "17", "-o", "less.yaml"]) == 0
    assert "17 - -1 1 LSKA [23] -5,952" in " ".join(capsys.readouterr().out.split())
    assert main(["remove", "my.yaml", "CBAM"]) == 2
    assert capsys.readouterr().err.startswith(
        "lska_ops: my.yaml: has no row CBAM; expected one of ours: 17 (LSKA), 24"
    )
    assert main(["remove", "my.yaml", "LSKA", "-o", "less.yaml"]) == 2
    assert capsys.readouterr().err.startswith("lska_ops: remove: out is less.yaml, which exists; expected")
    assert main(["insert", "my.yaml", "LSKA", "k_size=23", "k_size=7", "--after", "P3"]) == 2
    assert capsys.readouterr().err == "lska_ops: insert: option k_size is given twice; expected once\n"
    assert main(["insert", "my.yaml", "LSKA", "23", "--after", "P3"]) == 2
    assert (
        capsys.readouterr().err == "lska_ops: insert: option is 23; expected name=value, such as k_size=23\n"
    )


def test_insert_word_counts_gflops_as_ultralytics_does(capsys):
    from ultralytics.utils.torch_utils import get_flops

    assert main(["insert", "yolo11n.yaml", "ACmix", "--after", "P3", "P4", "P5"]) == 0
    lska_ops.register()
    plain, ours = (
        get_flops(tasks.DetectionModel(name, verbose=False))
        for name in ("yolo11n.yaml", "yolo11n-ACmix.yaml")
    )
    if not plain:
        pytest.skip("thop is not installed; pip install ultralytics-thop")
    assert f"GFLOPs      {plain:.2f} → {ours:.2f} ({ours - plain:+.2f}) at 640 px" in capsys.readouterr().out


def test_insert_row_diff_knows_every_model_of_ultralytics():
    heads = {head: kind for head, kind in row_diff._MODELS.items() if hasattr(tasks, head)}
    assert len(heads) >= 5 and not [kind for kind in heads.values() if not hasattr(tasks, kind)]


def test_insert_imports_nothing_before_it_is_called():
    code = "import sys, lska_ops.yolo; assert not {'ultralytics', 'yaml'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
