"""Commands and examples where the system's encoding is not UTF-8: terminals that lack characters, Chinese Windows'
encoding with Chinese folder and file names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_checkpoints import write_fork

import lska_ops
from lska_ops.yolo.digits import write_digits
from lska_ops.yolo.registration import CFG

HERE = Path(__file__).parent
NAMES = "零一二三四五六七八九"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the commands are given: a fork's checkpoint, and how it looks when it is read."""
    folder = tmp_path_factory.mktemp("files")
    lska_ops.register()
    write_fork(folder / "old.pt", "ultralytics.nn.AddModules.LSKA", "LSKA", 23)
    lska_ops.unregister()
    return folder


def run(folder, steps, **variables):
    """(exit codes, stdout, stderr) of tests/every_command.py in a folder; what it prints goes to a file."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    env.update(PYTHONUTF8="0", **variables)
    words = [sys.executable, HERE / "every_command.py", "report.json", json.dumps(steps)]
    printed = os.fsdecode(folder) + "/printed"
    with open(printed, "wb") as out, open(printed + ".err", "wb") as err:
        done = subprocess.run(words, cwd=folder, env=env, stdout=out, stderr=err)
    said, errors = (Path(name).read_bytes() for name in (printed, printed + ".err"))
    assert done.returncode == 0, errors.decode(errors="replace")
    return json.loads(Path(os.fsdecode(folder), "report.json").read_bytes()), said, errors


INSERT = ["insert", "yolo11n.yaml", "LSKA", "k_size=23", "--after", "P3", "P4"]
STEPS = [
    ([], 2),
    (["doctor"], None),  # 1 where nothing is compiled
    (INSERT, 0),
    ([*INSERT, "-o", "模型.yaml"], 0),
    ([*INSERT, "-o", "模型.yaml"], 2),  # it exists: the name is in the message
    (["remove", "模型.yaml", "LSKA", "-o", "plain.yaml"], 0),
    (["insert", "plain.yaml", "ACmix", "7", "4", "3", "--after", "P3"], 2),
    (["insert", "plain.yaml", "ACmix", "stride=2", "--after", "P3"], 2),  # has × in its message
    (["convert", "old.pt", "新.pt"], 0),
    (["enable"], 0),
    (["disable"], 0),
    (["yolo", "version"], 0),
]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_encodings_of_terminals(files, tmp_path, encoding):
    shutil.copy(files / "old.pt", tmp_path)
    codes, said, errors = run(
        tmp_path, [words for words, _ in STEPS], PYTHONIOENCODING=encoding, LC_ALL="C.UTF-8"
    )
    for (words, expected), code in zip(STEPS, codes, strict=True):
        assert code == expected or expected is None and code in (0, 1), (words, errors.decode(encoding))
    assert b"Error" not in errors + said
    said, errors = said.decode(encoding), errors.decode(encoding)
    assert ("模型.yaml" if encoding == "gbk" else r"written: \u6a21\u578b.yaml") in said
    arrow, times = {"ascii": ("->", "x"), "latin-1": ("->", "×"), "gbk": ("→", "×")}[encoding]
    assert f"2,624,080 {arrow} " in said and f"16{times}" in errors
    assert (tmp_path / "模型.yaml").exists() and (tmp_path / "新.pt").exists()


def article(module):
    """The bundled model file as tutorials print it: an emoji, Chinese comments."""
    text = (CFG / f"yolo11-{module}.yaml").read_text(encoding="utf-8")
    text = text.replace("Ultralytics YOLO,", "Ultralytics YOLO 🚀,", 1)
    for row, size in (("17", "小"), ("21", "中"), ("25", "大")):
        assert f"{module}, []] # {row} (" in text
        text = text.replace(
            f"{module}, []] # {row} (", f"{module}, []] # {row} {size}目标检测层输出位置增加注意力 ("
        )
    return text


@pytest.fixture
def gbk(tmp_path):
    """Variables of a Chinese system, whose encoding is GBK."""
    if not shutil.which("localedef"):
        pytest.skip(
            "localedef is not installed, which makes a locale; install glibc's locales (apt install locales)"
        )
    locale = tmp_path / "locales" / "zh_CN.GBK"
    locale.parent.mkdir()
    made = subprocess.run(["localedef", "-i", "zh_CN", "-f", "GBK", locale], capture_output=True)
    if not locale.exists():
        pytest.skip(
            f"localedef makes no zh_CN.GBK ({made.stderr[:200]}); install glibc's locales (apt install locales)"
        )
    return dict(LOCPATH=str(locale.parent), LC_ALL="zh_CN.GBK", PYTHONCOERCECLOCALE="0")


def named(folder, name):
    """A path as this system's programs write it: a name is bytes on Linux."""
    return folder / os.fsdecode(name.encode("gbk"))


def chinese_data(digits, folder):
    """A data set of two training pictures in `folder`, with Chinese names of files and classes."""
    write_digits(digits, train=2, val=1)
    shutil.move(digits / "dataset", folder)
    for file in [*folder.glob("*/*/*.jpg"), *folder.glob("*/*/*.txt")]:
        file.rename(named(file.parent, file.name.replace("digits_", "图 ")))
    names = "".join(f"  {i}: {name}  # 类别\n" for i, name in enumerate(NAMES))
    text = f"# 数据\ntrain: train/images\nval: val/images\nnames:\n{names}"
    named(folder, "数据.yaml").write_text(text, encoding="utf-8")


def test_encodings_of_a_chinese_system(files, tmp_path, gbk):
    folder = named(tmp_path, "研究 目录")
    folder.mkdir()
    shutil.copy(files / "old.pt", folder)
    chinese_data(tmp_path / "digits", named(folder, "数据"))
    models = [
        f"{encoding}-yolo11-{module}.yaml" for module in ("LSKA", "ACmix") for encoding in ("utf-8", "gbk")
    ]
    for name in models:
        encoding, text = name.partition("-yolo")[0], article(name[:-5].rpartition("-")[2])
        # In GBK there is no emoji.
        (folder / name).write_bytes((text.replace(" 🚀", "") if encoding == "gbk" else text).encode(encoding))
    small = ["--epochs", "1", "--imgsz", "32"]
    quick = ["imgsz=32", "device=cpu", "workers=0", "plots=False", "project=验证"]
    examples = sorted(path.name for path in (HERE.parent / "examples").glob("*.py"))
    steps = [
        ["doctor"],
        *(["insert", name, "SPPF_LSKA", "--after", "SPPF", "-o", f"新-{name}"] for name in models),
        *(["remove", f"新-{name}", "SPPF_LSKA", "-o", f"旧-{name}"] for name in models),
        ["convert", "old.pt", "新.pt"],
        ["demo", *small, "--data", "数据/数据.yaml", "--out", "演示"],
        *(["yolo", "val", f"model={name}", "data=数据/数据.yaml", *quick] for name in models[::3]),
        *([name, *small, "--pictures", "2"] for name in ("segment.py", "insert_p3.py")),
        *([name, "--help"] for name in examples if name != "train.py"),
    ]
    codes, said, errors = run(folder, steps, **gbk)
    assert codes[0] in (0, 1) and not any(codes[1:]), [*zip(steps, codes, strict=True)]
    assert b"UnicodeE" not in said + errors and b"UnicodeD" not in said + errors
    assert "written: 新-utf-8-yolo11-LSKA.yaml\n".encode("gbk") in said and "→".encode("gbk") in said
    for name in models:
        without_counts = re.sub(rb" # [\d,]+ parameters", b"", (folder / name).read_bytes())
        assert named(folder, f"旧-{name}").read_bytes() == without_counts
    assert named(folder, "演示").is_dir() and named(folder, "新.pt").is_file()
