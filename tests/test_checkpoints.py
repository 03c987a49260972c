"""Checkpoints and networks of others: their LSKA and ACmix become ours, and nothing that only shares the name."""

import copy
import importlib
import os
import subprocess
import sys
import types

import pytest
import torch
import ultralytics
from conftest import Published, published
from torch import nn
from ultralytics.nn import tasks

import lska_ops
from lska_ops import LKA, LSKA, ACmix, swap
from lska_ops.__main__ import main
from lska_ops.yolo import CheckpointError, convert
from lska_ops.yolo.checkpoints import foreign_names
from lska_ops.yolo.registration import NAMES

pytestmark = [pytest.mark.versions, pytest.mark.usefixtures("registered")]


class Gate(nn.Module):
    """LSKA and LKA as a fork has them: the same submodules, and a forward that calls them."""

    def __init__(self, ours):
        super().__init__()
        self.k_size = ours.k_size
        for name, child in ours.named_children():
            setattr(self, name, copy.deepcopy(child))

    def forward(self, x):
        attention = x
        for child in self.children():
            attention = child(attention)
        return x * attention


class Mix(nn.Module):
    """ACmix as published: with the modules that ours does without, and a dep_conv that may keep a bias."""

    def __init__(self, ours, bias=None):
        super().__init__()
        for name in ("in_planes", "out_planes", "head", "head_dim", "kernel_att", "kernel_conv", "stride", "dilation"):  # fmt: skip
            setattr(self, name, getattr(ours, name))
        self.rate1, self.rate2 = copy.deepcopy(ours.rate1), copy.deepcopy(ours.rate2)
        self.conv1, self.conv2, self.conv3, self.conv_p = (
            copy.deepcopy(m) for m in list(ours.children())[:4]
        )
        self.pad_att, self.unfold = nn.ReflectionPad2d(3), nn.Unfold(ours.kernel_att)
        self.softmax = nn.Softmax(dim=1)
        self.fc, self.dep_conv = copy.deepcopy(ours.fc), copy.deepcopy(ours.dep_conv)
        if bias is not None:
            self.dep_conv.bias = nn.Parameter(torch.full((ours.out_planes,), bias))

    def forward(self, x):
        convolutions = (self.conv1, self.conv2, self.conv3, self.conv_p, self.fc, self.dep_conv)
        weights = [(m.weight, m.bias) for m in convolutions[:4]] + [
            (m.weight, None) for m in convolutions[4:]
        ]
        options = dict(head=self.head, kernel_att=self.kernel_att, stride=self.stride, backend="reference")
        y = lska_ops.acmix(x, *weights, self.rate1, self.rate2, **options)
        return y if self.dep_conv.bias is None else y + self.rate2 * self.dep_conv.bias[:, None, None]


class Cbam(nn.Module):
    """Something else under the name."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 7, padding=3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.conv(x) * self.scale


BASES = {"LSKA": Gate, "LKA": Gate, "ACmix": Mix}


class Fork:
    """A class of a fork at its place, for as long as its file is written."""

    def __init__(self, module, name, base=None):
        self.module, self.name = module, name
        self.cls = type(name, (base or BASES[name],), {"__module__": module})

    def __enter__(self):
        self.made, self.before = [], None
        words = self.module.split(".")
        for i in range(len(words)):
            part = ".".join(words[: i + 1])
            try:
                importlib.import_module(part)
            except ImportError:
                sys.modules[part] = types.ModuleType(part)
                sys.modules[part].__path__ = []
                self.made.append(part)
        self.before = getattr(sys.modules[self.module], self.name, None)
        setattr(sys.modules[self.module], self.name, self.cls)
        return self.cls

    def __exit__(self, *_):
        delattr(sys.modules[self.module], self.name)
        if self.before is not None:
            setattr(sys.modules[self.module], self.name, self.before)
        for part in self.made:
            del sys.modules[part]


def model_with(name, *args):
    head = [[-1, 1, "Conv", [256, 3, 2]], [[2, 3], 1, "Detect", ["nc"]]]
    d = {"nc": 3, "depth_multiple": 1.0, "width_multiple": 0.25, "head": head,
         "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 1, name, list(args)]]}  # fmt: skip
    torch.manual_seed(0)
    return tasks.DetectionModel(d, verbose=False).eval()


def write_fork(path, module, name, *args, **options):
    """A checkpoint whose row 2 is a fork's class; gives what the model computes."""
    model = model_with(name, *args)
    expected = run(model)
    with Fork(module, name) as cls:
        theirs = cls(model.model[2], **options)
        theirs.i, theirs.f, theirs.type, theirs.np = 2, -1, f"{module}.{name}", 1
        model.model[2] = theirs
        torch.save({"model": model, "train_args": {}, "epoch": -1, "ema": None}, path)
    return expected


def run(model):
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(x)[0]


PLACES = ("ultralytics.nn.modules.{}", "ultralytics.nn.{}", "ultralytics.nn.AddModules.{}", "ultralytics.nn.modules.block",
          "ultralytics.nn.modules.conv", "ultralytics.nn.tasks", "ultralytics.nn.extra_modules.attention", "nets.common")  # fmt: skip


@pytest.mark.parametrize("name, args", [("LSKA", [23]), ("ACmix", [5, 8]), ("LKA", [])])
@pytest.mark.parametrize("place", PLACES)
def test_checkpoints_of_forks_load_with_our_classes(tmp_path, place, name, args):
    module = place.format(name)
    expected = write_fork(tmp_path / "best.pt", module, name, *args)
    before, known = (
        set(sys.modules),
        {m: set(vars(sys.modules[m])) for m in ("ultralytics.nn.tasks", "ultralytics.nn.modules.block")},
    )
    assert foreign_names(tmp_path / "best.pt") == [(module, name)]
    model = ultralytics.YOLO(tmp_path / "best.pt").model
    assert type(model.model[2]) is getattr(lska_ops, name) and torch.equal(run(model), expected)
    assert not any(m.startswith(module) and m not in before for m in sys.modules)
    assert all(set(vars(sys.modules[m])) & set(NAMES) == names & set(NAMES) for m, names in known.items())
    assert tasks.LSKA is LSKA
    if name == "ACmix":
        assert list(model.model[2]._modules) == ["conv1", "conv2", "conv3", "conv_p", "fc", "dep_conv"]
    torch.save(model, tmp_path / "again.pt")
    assert foreign_names(tmp_path / "again.pt") == []


def test_checkpoints_without_register_do_not_load(tmp_path):
    write_fork(tmp_path / "best.pt", "ultralytics.nn.modules.block", "LSKA")
    lska_ops.unregister()
    with pytest.raises(AttributeError):
        ultralytics.YOLO(tmp_path / "best.pt")


def test_checkpoints_a_zero_bias_of_acmix_goes(tmp_path):
    expected = write_fork(tmp_path / "best.pt", "ultralytics.nn.modules.ACmix", "ACmix", bias=0.0)
    model = ultralytics.YOLO(tmp_path / "best.pt").model
    assert torch.equal(run(model), expected) and model.model[2].dep_conv.bias is None


@pytest.mark.parametrize("name", ["LSKA", "ACmix"])
def test_checkpoints_that_only_share_the_name_are_refused(tmp_path, name):
    path, module = tmp_path / "best.pt", "ultralytics.nn.modules.block"
    model = model_with(name)
    with Fork(module, name, Cbam) as cls:
        model.model[2] = cls(32)
        torch.save({"model": model, "train_args": {}, "epoch": -1, "ema": None}, path)
    wanted = ", ".join(getattr(lska_ops, name)(8).state_dict())
    message = (
        f"best.pt: {module}.{name} only shares the name: it has scale [1], conv.weight [1, 32, 7, 7], conv.bias [1]; "
        f"expected those of the published {name}: {wanted}"
    )
    with pytest.raises(CheckpointError) as error:
        ultralytics.YOLO(path)
    assert str(error.value) == message
    with pytest.raises(CheckpointError) as error:
        convert(path, tmp_path / "new.pt")
    assert str(error.value) == message and [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_checkpoints_a_trained_bias_of_acmix_is_refused(tmp_path):
    write_fork(tmp_path / "best.pt", "ultralytics.nn.tasks", "ACmix", bias=0.5)
    with pytest.raises(CheckpointError, match=r"only shares the name: it has .*"):
        ultralytics.YOLO(tmp_path / "best.pt")


@pytest.mark.parametrize("change", ["dilation", "padding", "groups", "missing", "extra"])
def test_checkpoints_other_convolutions_are_refused(change):
    module = type("LSKA", (Gate,), {})(LSKA(16, 23))
    if change in ("dilation", "padding"):
        setattr(module.conv_spatial_h, change, (0, 4) if change == "padding" else (1, 5))
    elif change == "groups":
        module.conv0h = nn.Conv2d(16, 16, (1, 5), padding=(0, 2))
    elif change == "missing":
        del module.conv0v
    else:
        module.norm = nn.BatchNorm2d(16)
    with pytest.raises(
        CheckpointError, match=r"swap: the model \(.*LSKA\) only shares the name: it has conv0"
    ):
        swap(module)
    assert type(module) is not LSKA


def test_checkpoints_a_forks_own_installed_class_stays(tmp_path, monkeypatch):
    write_fork(tmp_path / "best.pt", "ultralytics.nn.modules.block", "LSKA")
    block = importlib.import_module("ultralytics.nn.modules.block")
    theirs = type("LSKA", (Gate,), {"__module__": block.__name__})
    monkeypatch.setattr(block, "LSKA", theirs, raising=False)
    assert type(ultralytics.YOLO(tmp_path / "best.pt").model.model[2]) is theirs


@pytest.mark.parametrize("name", ["LSKA", "ACmix"])
def test_checkpoints_converted_open_in_a_fresh_process(tmp_path, capsys, name):
    expected = write_fork(tmp_path / "old.pt", f"ultralytics.nn.AddModules.{name}", name)
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    assert main(["convert", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert f"written: {new}, with lska_ops in place of ultralytics.nn.AddModules.{name}.{name}\n" in printed
    assert {file.name for file in tmp_path.iterdir()} == {"old.pt", "new.pt"}
    torch.save(expected, tmp_path / "y.pt")
    code = (
        "import sys, torch\nfrom ultralytics import YOLO\nmodel = YOLO(sys.argv[1]).model.eval()\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"  # as where y.pt was made: sums depend on it
        "x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))\n"
        "with torch.inference_mode(): print(torch.equal(model(x)[0], torch.load(sys.argv[2])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, new, tmp_path / "y.pt", str(torch.get_num_threads())],
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("True\n"), done.stdout + done.stderr


def ours(path):
    torch.save({"model": model_with("LSKA")}, path)


@pytest.mark.parametrize(
    "make, out, message",
    [
        (None, "new.pt", "old.pt: does not exist; expected a checkpoint"),
        (lambda path: path.write_bytes(b""), "new.pt", "old.pt: is no checkpoint (File is not a zip file); expected a file that torch.save wrote"),
        (lambda path: path.write_bytes(b"PK nonsense"), "new.pt", "old.pt: is no checkpoint ("),
        (ours, "new.pt", "old.pt: names no LSKA, LSKATrivial, LKA, LKATrivial or ACmix of a fork"),
        (ours, "new.onnx", "convert: out is "),
        (ours, "old.pt", "expected a new file in a folder that exists"),
        (ours, "no/new.pt", "expected a new file in a folder that exists"),
    ],
)  # fmt: skip
def test_checkpoints_convert_refuses(tmp_path, capsys, make, out, message):
    old = tmp_path / "old.pt"
    if make:
        make(old)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert main(["convert", str(old), str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lska_ops: ") and message in error and error.count("\n") == 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_checkpoints_a_pickle_that_is_cut_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "old.pt", "w") as archive:
        archive.writestr("old/data.pkl", b"\x80\x02cno")
    with pytest.raises(CheckpointError, match="old.pt: is no checkpoint"):
        convert(tmp_path / "old.pt", tmp_path / "new.pt")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_checkpoints_names_are_read_in_every_protocol(tmp_path, protocol):
    with Fork("nets.common", "LSKA") as cls:
        modules = [cls(LSKA(8)), cls(LSKA(8)), nn.Conv2d(1, 1, 1)]
        torch.save({"ema": modules, "LSKA": "nets"}, tmp_path / "a.pt", pickle_protocol=protocol)
    assert foreign_names(tmp_path / "a.pt") == [("nets.common", "LSKA")]


class Backbone(nn.Module):
    """As in a VAN or ResNet: modules in blocks, one of them in two places."""

    def __init__(self, names):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(16), type(name, (BASES[name],), {})(getattr(lska_ops, name)(16)), nn.GELU()
            )
            for name in names
        )
        self.again = self.stages[0][1]

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.again(x)


def test_swap_in_any_network(capsys):
    network = Backbone(["LSKA", "ACmix", "LKA"]).eval()
    x = torch.randn(2, 3, 20, 17)
    with torch.no_grad():
        expected = network(x)
    weights, names = network.state_dict(), [name for name, _ in network.named_parameters()]
    calls = []
    network.again.register_forward_hook(lambda *_: calls.append(1))
    inner = network.stages[1][1].conv1.register_forward_pre_hook(lambda *_: calls.append(2))
    assert swap(network) == ["stages.0.1", "stages.1.1", "stages.2.1"]
    assert calls == []  # the check that they compute the same runs nobody's hooks
    assert capsys.readouterr() == ("", "lska_ops: swap: 1 LSKA and 1 ACmix and 1 LKA are ours now: stages.0.1, stages.1.1, stages.2.1\n")  # fmt: skip
    assert [type(stage[1]) for stage in network.stages] == [LSKA, ACmix, LKA]
    assert network.again is network.stages[0][1]
    assert network.state_dict().keys() == weights.keys() and names == [
        name for name, _ in network.named_parameters()
    ]
    assert all(value.data_ptr() == weights[name].data_ptr() for name, value in network.state_dict().items())
    with torch.no_grad():
        y = network(x)
    assert calls == [1, 2, 1]  # hooks of the modules stay
    inner.remove()
    with lska_backend("reference"), torch.no_grad():
        assert torch.equal(network(x), expected)
    assert y.shape == expected.shape
    assert swap(network) == [] and swap(network, verbose=False) == []
    none = "Backbone has no LSKA, LSKATrivial, LKA, LKATrivial or ACmix of others"
    assert capsys.readouterr().err == f"lska_ops: swap: {none}; it has 1 LSKA and 1 ACmix and 1 LKA of ours\n"
    assert swap(nn.Linear(1, 1)) == []
    assert capsys.readouterr().err == f"lska_ops: swap: {none.replace('Backbone', 'Linear')}\n"


class lska_backend:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = os.environ.get("LSKA_OPS_BACKEND")
        os.environ["LSKA_OPS_BACKEND"] = self.name

    def __exit__(self, *_):
        os.environ.pop("LSKA_OPS_BACKEND")
        if self.before is not None:
            os.environ["LSKA_OPS_BACKEND"] = self.before


@pytest.mark.parametrize("op", ["lska", "acmix"])
def test_swap_computes_the_published_numbers(op):
    for parameters in published(op):
        numbers = Published(parameters.values[0])
        ours = (LSKA if op == "lska" else ACmix)(**numbers.arguments).double()
        ours.load_state_dict(numbers.state)
        base = Gate if op == "lska" else Mix
        theirs = type("LSKA" if op == "lska" else "ACmix", (base,), {})(ours)
        with torch.no_grad():
            expected = ours(numbers.x)
            assert swap(theirs) == [""] and torch.equal(theirs(numbers.x), expected)


class Sigmoid(Gate):
    def forward(self, x):
        attention = x
        for child in self.children():
            attention = child(attention)
        return x * attention.sigmoid()


class Pair(Gate):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    "base, message",
    [
        (
            Sigmoid,
            r"swap: 1 \(.*LSKA\) computes something else: it differs by \S+ where the largest value is",
        ),
        (Pair, r"swap: 1 \(.*LSKA\) gives something else than one map; expected the published LSKA"),
    ],
)
def test_swap_refuses_another_forward_and_changes_nothing(base, message):
    good, bad = (type("LSKA", (cls,), {})(LSKA(8)) for cls in (Gate, base))
    network = nn.Sequential(good, bad)
    with pytest.raises(CheckpointError, match=message):
        swap(network)
    assert not isinstance(good, LSKA) and not isinstance(bad, LSKA)


def test_swap_needs_no_ultralytics():
    code = (
        "import sys\nsys.modules['ultralytics'] = None\n"
        "import lska_ops, torch\nprint(lska_ops.swap(torch.nn.Sequential(torch.nn.ReLU())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("fork", [False, True])
@pytest.mark.parametrize("name", ["LSKA", "ACmix", "SPPF_LSKA"])
def test_checkpoints_load_safely(tmp_path, name, fork):
    if not hasattr(tasks, "_SafeLoad"):
        pytest.skip(
            f"ultralytics {ultralytics.__version__} has no ULTRALYTICS_SAFE_LOAD; upgrade ultralytics"
        )
    if fork and name == "SPPF_LSKA":
        return
    path = tmp_path / "best.pt"
    if fork:
        write_fork(path, "ultralytics.nn.AddModules.attention", name)
    else:
        torch.save({"model": model_with(name), "train_args": {}, "epoch": -1, "ema": None}, path)
    code = (
        "import sys, lska_ops\nlska_ops.register()\nfrom ultralytics import YOLO\n"
        "print(type(YOLO(sys.argv[1]).model.model[2]).__module__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
    )
    assert done.stdout.strip().splitlines()[-1:] == [getattr(lska_ops, name).__module__], (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(
    "saved", [{"w": torch.ones(2)}, {"model": None, "ema": None}, {"model": torch.zeros(3)}]
)
def test_checkpoints_without_a_network_are_read_as_by_stock_ultralytics(tmp_path, saved):
    torch.save(saved, tmp_path / "file.pt")
    assert tasks.torch_safe_load(str(tmp_path / "file.pt"))[0].keys() == saved.keys()


def test_swap_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="swap: model is dict; expected a torch.nn.Module"):
        lska_ops.swap({})
