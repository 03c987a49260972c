"""Choosing a backend, and saying why not."""

import subprocess
import sys

import pytest
import torch

from lska_ops import LSKA, ACmix, _backends, explain, lska

pytestmark = pytest.mark.versions


def call(backend):
    pairs = [(c.weight, c.bias) for c in LSKA(4).children()]
    return lska(torch.randn(1, 4, 5, 5), *pairs, dilation=2, backend=backend)


def test_backends_reference_is_last_and_takes_everything():
    assert _backends.ORDER[-1] == "reference"
    for op in _backends.WHY_NOT:
        assert _backends.WHY_NOT[op]["reference"](torch.empty(0)) is None
        assert tuple(_backends.WHY_NOT[op]) == _backends.ORDER


@pytest.mark.parametrize("op", _backends.WHY_NOT)
def test_backends_explain_marks_one_as_chosen(op):
    lines = explain(op, torch.randn(1, 4, 5, 5)).splitlines()
    assert [line.split(":")[0] for line in lines] == list(_backends.ORDER)
    assert sum(line.endswith("(chosen)") for line in lines) == 1


def test_backends_explain_where_the_environment_asks_for_one_that_declines(monkeypatch):
    monkeypatch.setenv("LSKA_OPS_BACKEND", "cuda")
    first, *lines = explain("lska", torch.randn(1, 4, 5, 5)).splitlines()
    assert first.startswith("lska: backend 'cuda' declined: x is on cpu; ") and "unset it" in first
    assert [line.split(":")[0] for line in lines] == list(_backends.ORDER)
    assert "(chosen)" not in "".join(lines)


def test_backends_explain_unknown_op():
    with pytest.raises(
        ValueError, match="explain: op is 'conv'; expected one of acmix, local_attention, lska, "
    ):
        explain("conv", torch.randn(1, 4, 5, 5))


def test_backends_environment_variable(monkeypatch):
    monkeypatch.setenv("LSKA_OPS_BACKEND", "reference")
    assert call("auto").shape == (1, 4, 5, 5)
    monkeypatch.setenv("LSKA_OPS_BACKEND", "fast")
    with pytest.raises(ValueError, match="lska: LSKA_OPS_BACKEND is 'fast'; expected one of auto"):
        call("auto")
    monkeypatch.setenv("LSKA_OPS_BACKEND", "")
    assert call("auto").shape == (1, 4, 5, 5)
    monkeypatch.setenv("LSKA_OPS_BACKEND", "fast")
    assert call("reference").shape == (1, 4, 5, 5)  # a name in the call is stronger


def test_backends_asked_for_by_name_never_falls_back(monkeypatch):
    declines = {
        op: {**reasons, "reference": lambda x, **_: "it is raining; wait"}
        for op, reasons in _backends.WHY_NOT.items()
    }
    monkeypatch.setattr(_backends, "WHY_NOT", declines)
    with pytest.raises(RuntimeError, match="lska: backend 'reference' declined: it is raining; wait"):
        call("reference")


def test_backends_auto_leaves_triton_on_a_cpu_to_those_who_ask_for_it(monkeypatch):
    """TRITON_INTERPRET=1, set to debug other kernels, is no wish for a slow interpreter of ours."""
    x = torch.empty(1, 4, 5, 5)
    monkeypatch.setitem(_backends.WHY_NOT["lska"], "triton", lambda x, **_: None)
    assert _backends.choose("lska", "auto", x) in ("cpu", "reference")
    assert _backends.choose("lska", "triton", x) == "triton"
    monkeypatch.setitem(_backends.WHY_NOT["lska"], "cpu", lambda x, **_: "it is raining; wait")
    assert _backends.choose("lska", "auto", x) == "reference"
    assert "triton: yes\n" in explain("lska", x)


def test_backends_import_needs_neither_ultralytics_nor_sklearn():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('ultralytics', 'sklearn', 'PIL', 'matplotlib', 'yaml'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import lska_ops, torch\n"
        "lska_ops.ACmix(8)(lska_ops.LSKA(8)(torch.randn(1, 8, 4, 4)))\n"
        "try: lska_ops.register()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'register: ultralytics cannot be imported; pip install "lska_ops[yolo]"\n'


def test_backends_doctor_names_every_backend():
    done = subprocess.run([sys.executable, "-m", "lska_ops", "doctor"], capture_output=True, text=True)
    only_reference = _backends.choose("lska", "auto", torch.randn(1, 4, 5, 5)) == "reference"
    assert done.returncode == (1 if only_reference else 0), done.stdout + done.stderr
    for word in (*_backends.ORDER, *_backends.WHY_NOT, torch.__version__):
        assert word in done.stdout


def test_backends_modules_of_both_ops_are_exported():
    assert ACmix.__module__ == "lska_ops.acmix.module" and LSKA.__module__ == "lska_ops.lska.module"


def test_backends_doctor_tells_of_a_name_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("LSKA_OPS_BACKEND", "nonsense")
    from lska_ops.doctor import doctor

    assert doctor() == 1
    said = capsys.readouterr().out
    assert (
        "asked for    'nonsense', by LSKA_OPS_BACKEND, which is no backend; expected one of auto, cuda"
        in said
    )
    assert "A fused backend is in use" not in said
