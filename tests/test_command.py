"""The command line: ultralytics' own with our names, and the hook that an environment can opt in to."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import ultralytics.utils  # noqa: F401, writes the settings of which every process would else print that it does

import lska_ops
from lska_ops import _compiled, doctor
from lska_ops.__main__ import main
from lska_ops.testing import problems
from lska_ops.yolo import startup
from lska_ops.yolo.digits import write_digits

QUICK = [
    "device=cpu",
    "epochs=1",
    "imgsz=32",
    "batch=2",
    "workers=0",
    "amp=False",
    "plots=False",
    "val=False",
]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment of its own that sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([interpreter, "-c", code], capture_output=True, text=True).stdout.strip())
    seen = [
        Path(lska_ops.__file__).parents[1],
        Path(torch.__file__).parents[1],
        sysconfig.get_path("purelib"),
    ]
    packages.joinpath("seen.pth").write_text(
        "\n".join(map(str, dict.fromkeys(seen))) + "\n", encoding="utf-8"
    )
    command = interpreter.with_name("yolo")  # as ultralytics' own, which tune() starts
    command.write_text(
        f"#!{interpreter}\nfrom ultralytics.cfg import entrypoint\nentrypoint()\n", encoding="utf-8"
    )
    command.chmod(0o755)
    env = {**os.environ, "PATH": f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"}
    return lambda *words, **options: subprocess.run(
        [str(interpreter), *map(str, words)], capture_output=True, text=True, env=env, **options
    )


@pytest.fixture
def hook(python):
    done = python("-m", "lska_ops", "enable")
    assert done.returncode == 0 and done.stdout.startswith("on: "), done.stderr
    yield Path(done.stdout.splitlines()[0].removeprefix("on: "))
    python("-m", "lska_ops", "disable")


BUILD = "from ultralytics import YOLO; print(type(YOLO('yolo11n-LSKA.yaml').model.model[17]).__module__)"


def test_command_without_the_hook_nothing_is_known(python):
    done = python("-c", BUILD)
    assert done.returncode and "FileNotFoundError" in done.stderr


def test_command_hook_registers_when_ultralytics_is_imported(python, hook):
    done = python("-c", BUILD)
    assert done.stdout.splitlines()[-1:] == ["lska_ops.lska.module"], done.stdout + done.stderr
    # As if register() were called: both names of the parser, and unregister takes all of it back.
    code = (
        "from ultralytics import nn; import lska_ops; from ultralytics.nn import tasks\n"
        "assert nn.parse_model is tasks.parse_model and hasattr(nn.parse_model, '__wrapped__')\n"
        "lska_ops.unregister()\n"
        "assert nn.parse_model is tasks.parse_model and not hasattr(nn.parse_model, '__wrapped__')\n"
        "assert not hasattr(tasks, 'LSKA')"
    )
    assert python("-c", code).stderr == ""


def test_command_hook_imports_nothing_by_itself(python, hook):
    code = (
        "import sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'ultralytics', 'lska_ops')])\n"
        "print('_lska_ops_hook' in sys.modules)"
    )
    assert python("-c", code).stdout == "[]\nTrue\n"


def test_command_hook_is_taken_back(python, hook):
    assert hook.exists()
    done = python("-m", "lska_ops", "disable")
    assert done.stdout.startswith(f"off, removed {hook}") and not hook.exists()
    assert sorted(path.name for path in hook.parent.iterdir() if path.is_file()) == ["seen.pth"]
    assert python("-m", "lska_ops", "disable").stdout == "off\n"
    assert python("-c", BUILD).returncode


def test_command_doctor_tells_of_the_hook(python, hook):
    def line():
        printed = python("-m", "lska_ops", "doctor").stdout
        return next(line for line in printed.splitlines() if line.startswith("yolo hook"))

    assert line() == f"yolo hook    on ({hook}); `lska-ops disable` removes it"
    hook.with_suffix(".py").write_text("older = True", encoding="utf-8")
    assert line() == f"yolo hook    on, of another version ({hook}); `lska-ops enable` renews it"
    python("-m", "lska_ops", "enable")
    assert line().startswith("yolo hook    on (")
    python("-m", "lska_ops", "disable")
    assert line().startswith("yolo hook    off; `lska-ops enable` lets plain `yolo`, tune()")


def test_command_hook_never_breaks_ultralytics(python, hook, tmp_path):
    (tmp_path / "lska_ops.py").write_text("raise RuntimeError('broken')", encoding="utf-8")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from ultralytics.nn import tasks; print(tasks.parse_model)"
    done = python("-c", code, tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("<function parse_model")
    module = hook.with_suffix(".py")
    assert (
        f"lska_ops: not registered: RuntimeError('broken'); `lska-ops disable` removes {module}, which wanted it\n"
        in done.stderr
    )
    gone = "import sys; sys.modules['lska_ops'] = None\nfrom ultralytics.nn import tasks"  # as after pip uninstall
    done = python("-c", gone)
    assert done.returncode == 0 and done.stderr.startswith("lska_ops: not registered: ModuleNotFoundError(")
    assert done.stderr.endswith(f"it is not installed, so delete {module} and {hook}\n")


def test_command_without_a_word_lists_them(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert not said.out and all(
        f"\n    {word} " in said.err for word in ("doctor", "insert", "yolo", "convert")
    )


def test_command_whose_reader_has_enough_says_nothing():
    command = [sys.executable, "-m", "lska_ops", "doctor"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.stdout.close()  # as `head` does
    assert (started.stderr.read(), started.wait()) == (b"", 141)


def test_command_doctor_names_what_is_compiled(monkeypatch):
    info = dict(parts=["cpu", "cuda"], cuda_archs=["75", "90"], compiler="g++ 12", reasons={"plan": "why"})
    monkeypatch.setattr(_compiled, "problem", None)
    monkeypatch.setattr(_compiled, "build_info", lambda: info)
    assert doctor._compiled_parts() == "cpu and cuda (sm_75, sm_90), by g++ 12; no plan: why"
    info.update(parts=["cpu"], reasons={})
    assert doctor._compiled_parts() == "cpu, by g++ 12"


def test_command_doctor_tells_of_a_triton_of_another_torch(monkeypatch):
    monkeypatch.setattr(doctor._triton, "problem", lambda: None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.8.0"))
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    assert doctor._triton_version().startswith("triton is 3.8.0 and torch 2.11.0+cu130 is made for 3.6: ")
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    assert doctor._triton_version() == "3.8.0"


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "arguments are nothing; expected an op (lska, "),
        (["lska", "cpu"], "arguments are lska cpu; expected an op (lska, "),
        (["lsk", "cpu", "1"], "arguments are lsk cpu 1; expected an op (lska, "),
        (["lska", "cpu", "one"], "a backend (cuda, "),
        (["lska", "cuda", "1"], "lska: backend 'cuda' declined: "),
    ],
    ids=" ".join,
)
def test_command_problems_refuses_in_one_line(capsys, words, message):
    assert problems.main(*words) == 2
    said = capsys.readouterr()
    assert (
        said.err.startswith("problems: ")
        and message in said.err
        and said.err.count("\n") == 1
        and not said.out
    )


@pytest.mark.parametrize("word", ["enable", "disable"])
def test_command_hook_without_rights(monkeypatch, tmp_path, capsys, word):
    (tmp_path / "file").write_text("", encoding="utf-8")
    files = tuple(tmp_path / "file" / f"hook{suffix}" for suffix in (".pth", ".py"))
    monkeypatch.setattr(startup, "_files", lambda: files)
    if word == "disable":
        monkeypatch.setattr(Path, "exists", lambda path: True)
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lska_ops: {word}: ") and error.endswith(
        "expected an environment that you may write\n"
    )


def test_command_yolo_trains(tmp_path):
    data = write_digits(tmp_path / "digits", train=2, val=1)
    words = ["train", "model=yolo11n-LSKA.yaml", f"data={data}", f"project={tmp_path / 'runs'}", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "lska_ops", "yolo", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("runs/train/weights/last.pt"))


@pytest.mark.parametrize("words", [["version"], ["-h"], ["help"], ["trai"]], ids=lambda words: words[0])
def test_command_yolo_passes_its_words_on(tmp_path, words):
    stock = "import sys; sys.argv[0] = 'yolo'; from ultralytics.cfg import entrypoint; entrypoint()"
    env = {**os.environ, "PYTHONHASHSEED": "0"}  # 8.3.0 prints sets
    done = [
        subprocess.run(
            [sys.executable, *start, *words], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        for start in (["-c", stock], ["-m", "lska_ops", "yolo"])
    ]
    theirs, ours = ((each.returncode, each.stdout, each.stderr.splitlines()[-1:]) for each in done)
    assert ours == theirs and (ours[1] or ours[2])


def test_command_tune_knows_us_by_the_hook(python, hook, tmp_path):
    data = write_digits(tmp_path / "digits", train=2, val=1)
    code = (
        "import sys; from ultralytics import YOLO\n"
        "YOLO('yolo11n-LSKA.yaml').tune(data=sys.argv[1], project=sys.argv[2], iterations=1, epochs=1, imgsz=32, batch=2,\n"
        "    workers=0, device='cpu', amp=False, plots=False, save=True, val=True)"
    )
    done = python("-c", code, data, tmp_path / "runs", cwd=tmp_path)
    assert "training failure" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert list(tmp_path.glob("runs/**/weights/best.pt")), done.stdout + done.stderr
