"""What README and docs/ say: the same in both languages, and what can be run is run as it stands there."""

import inspect
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from test_checkpoints import write_fork
from test_yolo import PARAMETERS, SCALES
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.nn import tasks

import lska_ops
from lska_ops import _triton
from lska_ops.__main__ import main
from lska_ops.yolo import row_diff, startup
from lska_ops.yolo.digits import write_digits
from lska_ops.yolo.model_file import ModelFile
from lska_ops.yolo.parsing import CHANNEL_COUNTS
from lska_ops.yolo.registration import modules

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
INSTALL = ROOT / "docs" / "install.md"
PAGES = [(page, page.with_suffix(".zh-CN.md")) for page in (ENGLISH, *sorted(ROOT.glob("docs/*[!N].md")))]
each_page = pytest.mark.parametrize(
    "path", [page for pair in PAGES for page in pair], ids=lambda path: path.name
)
FENCE, BEGIN, END = "```", "<!-- results -->", "<!-- /results -->"


def chunks(text):
    """(line number, kind, text) of every heading, code block, table row, list item and paragraph."""
    lines = iter(enumerate(text.splitlines(), 1))
    found, goes_on = [], False
    for number, line in lines:
        if line.startswith(FENCE):
            rest = itertools.takewhile(lambda pair: pair[1] != FENCE, lines)
            found.append((number, "code block", "\n".join([line, *(code for _, code in rest)])))
        elif line == BEGIN:  # made by benchmarks/report.py, the same in every language
            rest = itertools.takewhile(lambda pair: pair[1] != END, lines)
            found.append((number, "results", "\n".join(result for _, result in rest)))
        elif kind := re.match(r"(#+) |\||- ", line):
            name = f"heading {kind[1]}" if kind[1] else "table row" if line[0] == "|" else "list item"
            found.append((number, name, line))
        elif goes_on and line.strip():
            found[-1] = (*found[-1][:2], f"{found[-1][2]} {line.strip()}")
        elif line.strip():
            found.append((number, "paragraph", line))
        goes_on = bool(line.strip()) and found[-1][1] in ("paragraph", "list item")
    return found


def anchors(text):
    """{a heading's anchor on GitHub: its place among the headings}."""
    titles = [what.lstrip("# ") for _, kind, what in chunks(text) if kind.startswith("heading")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"): i for i, title in enumerate(titles)}


def shared(kind, what, places):
    """What no language changes: all of a code block and of the results; elsewhere code, links and numbers."""
    if kind in ("code block", "results"):
        return what.splitlines()
    if kind == "table row":
        return [shared("cell", cell.strip(), places) for cell in what.strip("|").split("|")]
    found = re.findall(r"`[^`]+`", what)
    what = re.sub(r"`[^`]+`", "", what)
    for link in re.findall(r"\]\(([^)]+)\)", what):
        link = link.replace(".zh-CN.md", ".md")
        found.append(("heading", places.get(link[1:])) if link.startswith("#") else ("link", link))
    what = re.sub(r"\]\([^)]+\)", "", what)
    # A sentence has them in another order there.
    return sorted(map(str, [*found, *re.findall(r"\d(?:[\d.,]*\d)?", what)]))


def first_difference(one, other):
    """The first thing that only one of two texts says, in words; None where there is none."""
    pairs = itertools.zip_longest(chunks(one), chunks(other), fillvalue=("end", "nothing", ""))
    for (i, kind, what), (j, kind_there, there) in pairs:
        mine = [kind, *shared(kind, what, anchors(one))]
        theirs = [kind_there, *shared(kind_there, there, anchors(other))]
        for a, b in itertools.zip_longest(mine, theirs):
            if a != b:
                return f"line {i} ({kind}): {a}\nline {j} ({kind_there}): {b}"
    return None


def read(path):
    return path.read_text(encoding="utf-8")


def test_readme_pages_are_all_there():
    assert INSTALL in [english for english, _ in PAGES]
    found = [page for folder in (ROOT, ROOT / "docs") for page in folder.glob("*.zh-CN.md")]
    assert sorted(found) == sorted(chinese for _, chinese in PAGES)


@pytest.mark.parametrize("english, chinese", PAGES, ids=lambda path: path.name)
def test_readme_is_the_same_in_both_languages(english, chinese):
    assert not (difference := first_difference(read(english), read(chinese))), difference


@pytest.mark.parametrize(
    "change",
    [
        ("## Install\n", "### Install\n"),
        ("## Speed\n", ""),
        ("epochs=100", "epochs=200"),
        ("# receptive field 23", "# receptive field 25"),
        ("of yolo11n's 499", "of yolo11n's 498"),
        ("| 2,717,712 |", "| 2,717,713 |"),
        ("`k_size=7, dilation=None`", "`k_size=9, dilation=None`"),
        ("(examples/segment.py)", "(examples/segments.py)"),
        ("(#questions)", "(#speed)"),
        ("- `train(pretrained", "`train(pretrained"),
        ("GPU: not measured", "GPU: measured"),
    ],
    ids=lambda change: change[0].strip(),
)
def test_readme_comparison_sees(change):
    text = read(ENGLISH)
    assert change[0] in text, "the README no longer says this; name something that it says"
    assert first_difference(text, text.replace(*change, 1))


@pytest.mark.parametrize(
    "change",
    [
        ("| 2.14 | 3.8 |", "| 2.14 | 3.7 |"),
        ("triton-windows<3.7", "triton-windows<3.6"),
        ("from 8.4.146 on", "from 8.4.137 on"),
        ("`reference`, `triton` with an extra", "`reference`"),
        ("(../README.md)", "(../CONTRIBUTING.md)"),
        ("(#raspberry-pi)", "(#jetson)"),
        ("LSKA_OPS_CUDA_ARCHS=87 pip", "LSKA_OPS_CUDA_ARCHS=90 pip"),
    ],
    ids=lambda change: change[0],
)
def test_readme_comparison_sees_in_install(change):
    text, chinese = read(INSTALL), read(INSTALL.with_suffix(".zh-CN.md"))
    assert change[0] in text, "the page no longer says this; name something that it says"
    assert first_difference(text.replace(*change, 1), chinese)


@each_page
def test_readme_links_lead_somewhere(path):
    text = read(path)
    links = re.findall(
        r"\]\(([^)]+)\)", "\n".join(what for _, kind, what in chunks(text) if kind != "code block")
    )
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors(text), f"{path.name}: no heading {link}"
        elif not link.startswith("https://"):
            assert (path.parent / link).exists(), f"{path.name}: {link} does not exist"


def test_readme_results_go_into_both(tmp_path, capsys):
    import report

    here = [tmp_path / path.name for path in (ENGLISH, CHINESE)]
    for path in here:
        path.write_text(f"{path.name}\n{BEGIN}\n{END}\n", encoding="utf-8")
    arguments = here[0], tmp_path / "results"
    assert report.main(["--check"], *arguments) == 1
    assert capsys.readouterr().err.startswith("README.md and README.zh-CN.md: other results")
    assert report.main([], *arguments) == 0 and report.main(["--check"], *arguments) == 0
    assert read(here[0]).splitlines()[1:] == read(here[1]).splitlines()[1:] and "not measured" in read(
        here[1]
    )
    here[1].write_text(read(here[1]).replace("not measured", "measured"), encoding="utf-8")
    assert report.main(["--check"], *arguments) == 1
    assert capsys.readouterr().err.startswith("README.zh-CN.md: other results")


# What is run: the English file's, the other's being the same


def blocks(language="", page=ENGLISH):
    found = [what.split("\n", 1) for _, kind, what in chunks(read(page)) if kind == "code block"]
    return [code for fence, code in found if fence == FENCE + language]


@pytest.fixture(autouse=True)
def unregistered():
    yield
    lska_ops.unregister()


class Enough(Exception):
    pass


QUICK = dict(device="cpu", imgsz=32, workers=0, plots=False)


def shortened(original, name, folder):
    """Model.train, val or export on small pictures; the training stops after its first step."""

    def stop(trainer):
        raise Enough

    def method(model, /, *args, **options):  # the command line has an option `model`
        options |= dict(project=str(folder / "runs"), **QUICK) if name != "export" else dict(imgsz=32)
        if name == "train":
            options |= dict(batch=2, amp=False)
            model.add_callback("on_train_batch_end", stop)
            with pytest.raises(Enough):
                return original(model, *args, **options)
            return None
        return original(model, *args, **options)

    return method


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where README's blocks run: with the files that they name, made here, and short trainings."""
    write_digits(tmp_path, train=2, val=1).rename(tmp_path / "your_data.yaml")
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val", "export"):
        monkeypatch.setattr(Model, name, shortened(getattr(Model, name), name, tmp_path))
    return tmp_path


def saved(name, path):
    """A model as a training saves one."""
    lska_ops.register()
    torch.save({"model": YOLO(name).model, "train_args": {}, "epoch": -1, "ema": None}, path)
    lska_ops.unregister()


def test_readme_python_runs(folder, logged):
    saved("yolo11n.yaml", "yolo11n.pt")
    names = {}
    assert len(blocks("python")) > 3
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    promised = re.findall(r"^# (lska_ops: .*)", "\n".join(blocks("python")), re.M)
    assert promised and not [line for line in promised if line not in logged], logged
    assert names["attended"].shape == names["shifted"].shape == names["q"].shape


def commands(page=ENGLISH):
    """A page's command lines as words, comments left out, each once."""
    lines = [line for block in blocks(page=page) for line in block.splitlines()]
    lines = [line for line in lines if re.match(r"(LSKA_OPS_\w+=\S+ )*(python|lska-ops|make|pip) ", line)]
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines)]


def run(words):
    """One command line in this process; gives its exit code."""
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
        return 0
    if words[0] == "make":
        return 0 if re.search(rf"^{words[1]}:", read(ROOT / "Makefile"), re.M) else 2
    if words[0].startswith("LSKA_OPS_"):
        assert words[0].partition("=")[0] in read(ROOT / "build_backend" / "facts.py"), words
        return run(words[1:])
    if words[:2] == ["pip", "wheel"]:
        return 0 if words[-1] == "." else 2
    if words[0] == "pip":
        extras = re.search(r"\.\[(.*)\]", words[-1])[1].split(",")
        return (
            0
            if all(re.search(rf"^{extra} = \[", read(ROOT / "pyproject.toml"), re.M) for extra in extras)
            else 2
        )
    assert words[0] == "lska-ops" or words[:3] == ["python", "-m", "lska_ops"], words
    return main(words[1 if words[0] == "lska-ops" else 3 :])


def test_readme_commands_run(folder, monkeypatch):
    saved("yolo11n-LSKA.yaml", "best.pt")
    lska_ops.register()
    write_fork(folder / "old.pt", "ultralytics.nn.AddModules.LSKA", "LSKA", 23)
    lska_ops.unregister()
    there = folder / "hook.pth", folder / "hook.py"
    monkeypatch.setattr(startup, "_files", lambda: there)
    monkeypatch.setattr(row_diff, "_gflops", lambda model: 0.0)  # counted by the tests of insert
    assert len(commands()) > 10
    for words in commands():
        if "export" not in words:
            plain = words[-1] == "doctor" and "cpu: no" in lska_ops.explain("lska", torch.zeros(1, 1, 1, 1))
            assert run(words) == int(plain), shlex.join(words)
    assert (folder / "new.pt").exists() and not there[0].exists()


def test_readme_install_commands_run(folder):
    assert len(commands(INSTALL)) > 4
    for words in commands(INSTALL):
        assert run(words) in (0, int(words[-1] == "doctor")), shlex.join(words)


def test_readme_install_has_the_triton_of_every_torch():
    table = {}
    for torch_versions, triton, command in rows_of("| torch | Triton", INSTALL)[2:]:
        for version in torch_versions.split(", "):
            table[version] = triton, command
    assert table == {
        f"{torch[0]}.{torch[1]}": (f"{major}.{minor}", f'pip install "triton-windows<{major}.{minor + 1}"')
        for torch, (major, minor) in _triton.MADE_FOR.items()
    }


def test_readme_extra_triton_is_for_windows_alone():
    (requirement,) = re.search(r"^triton = \[(.*)\]", read(ROOT / "pyproject.toml"), re.M).groups()
    parsed = Requirement(requirement.strip('"'))
    assert parsed.name == "triton-windows"
    found = [parsed.marker.evaluate({"sys_platform": name}) for name in ("win32", "linux", "darwin")]
    assert found == [True, False, False]


def test_readme_export_runs(folder):
    pytest.importorskip("onnx", reason="onnx is not installed; pip install '.[export]'")
    saved("yolo11n-LSKA.yaml", "best.pt")
    exports = [words for words in commands() if "export" in words]
    assert exports and not any(map(run, exports)) and (folder / "best.onnx").exists()


def rows_of(heading, page=ENGLISH):
    """The cells, without backquotes, of the table whose first line begins with `heading`."""
    lines = [what for _, kind, what in chunks(read(page)) if kind == "table row"]
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[start:]]
    return list(itertools.takewhile(lambda row: len(row) == len(cells[0]), cells))


def test_readme_rows_and_defaults():
    lska_ops.register()
    written = yaml.safe_load(blocks("yaml")[0])
    d = dict(nc=3, backbone=[[-1, 1, "Conv", [64, 3, 2]], *written], head=[[[-1], 1, "Detect", ["nc"]]])
    layers = tasks.DetectionModel(d, verbose=False).model
    assert [type(layer).__name__ for layer in layers[1:-1]] == [row[2] for row in written]
    _, _, *table = rows_of("| in YAML")
    table = {name: defaults for name, defaults, _ in table[: len(modules())]}
    assert table.keys() == modules().keys()
    for name, defaults in table.items():
        parameters = inspect.signature(modules()[name].__init__).parameters.values()
        own = list(parameters)[1 + CHANNEL_COUNTS.get(name, 1) :]
        if "Trivial" in name:  # takes a dilation of 1 alone
            own = [p for p in own if p.name != "dilation"]
        assert defaults == ", ".join(f"{p.name}={p.default}" for p in own)


def test_readme_parameters():
    (_, *scales), _, *table = rows_of("| | n | s")
    table = {name: [int(count.replace(",", "")) for count in counts] for name, *counts in table}
    assert scales == list(SCALES)
    assert {f"yolo11-{name}": list(counts) for name, counts in PARAMETERS.items()}.items() <= table.items()
    theirs = re.findall(r"(\d+) parameters", ModelFile("yolo11.yaml").text.replace(",", ""))
    assert table["yolo11"] == [int(count) for count in theirs]
