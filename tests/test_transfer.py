"""Pretrained weights into models with our modules: every tensor, and boxes that differ by nothing."""

import copy
import inspect
import os
import subprocess
import sys

import pytest
import torch
import ultralytics
import yaml
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import dist

import lska_ops
from lska_ops import LKA, LSKA, ACmix, LKATrivial, LSKATrivial
from lska_ops.yolo import insert
from lska_ops.yolo.digits import write_digits
from lska_ops.yolo.model_file import InsertError
from lska_ops.yolo.registration import identity_start
from lska_ops.yolo.transfer import start_as_identity

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def said(logged):
    """What ultralytics' logger is told by us."""
    return lambda: [line.partition("lska_ops: ")[2] for line in logged if "lska_ops: " in line]


def trained(model, seed=0):
    """As after a training: no statistic of a BatchNorm is what it begins with."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=generator) / 9)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) + 0.5)
            m.weight.data.copy_(torch.rand(m.weight.shape, generator=generator) + 0.5)
            m.num_batches_tracked.fill_(7)
    return model.eval()


def build(d, **options):
    """The model of a YAML's name, file or text."""
    if isinstance(d, str) and "\n" in d:
        d = yaml.safe_load(d)
        d["scale"] = next(iter(d.get("scales", {"": 0})))  # insert() puts that of the name first
    if isinstance(d, dict):
        d = copy.deepcopy(d)
    name = str((d["backbone"] + d["head"])[-1][2] if isinstance(d, dict) else d)
    kinds = {"RTDETR": "RTDETRDetectionModel", "rtdetr": "RTDETRDetectionModel", "Segment": "SegmentationModel", "-seg": "SegmentationModel",
             "Pose": "PoseModel", "-pose": "PoseModel", "OBB": "OBBModel", "-obb": "OBBModel", "Classify": "ClassificationModel", "-cls": "ClassificationModel"}  # fmt: skip
    kind = next((kind for part, kind in kinds.items() if part in name), "DetectionModel")
    return getattr(tasks, kind)(d, ch=3, verbose=False, **options)


def boxes(model, side=96):
    x = torch.rand(1, 3, side, side + 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        y = model.eval()(x)
    while isinstance(y, (list, tuple)):
        y = y[0]
    return y


def saved(model, path):
    torch.save({"model": model, "train_args": {}, "epoch": -1, "ema": None}, path)
    return path


SMALL = {
    "nc": 3, "scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]}, "scale": "n",
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 1, "SPPF", [128, 5]]],
    "head": [[-1, 1, "Conv", [256, 3, 2]], [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 2], 1, "Concat", [1]],
             [-1, 1, "Conv", [128, 3, 1]], [[6, 3], 1, "Detect", ["nc"]]],
}  # fmt: skip


def small(*ours, at=6, **changes):
    """SMALL with rows of ours behind row `at`."""
    d = {**copy.deepcopy(SMALL), **changes}
    rows = d["backbone"] + d["head"]
    rows[at + 1 : at + 1] = [[-1, 1, name, list(args)] for name, *args in ours]
    for row in rows:
        f = row[0]
        if isinstance(f, list):
            row[0] = [j + len(ours) * (j >= at) if j >= 0 else j for j in f]
    d["backbone"], d["head"] = rows[:3], rows[3:]
    return d


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
@pytest.mark.parametrize(
    "scale, tensors", [pytest.param("n", 499, marks=pytest.mark.versions), ("m", 649), ("l", 1015)]
)
def test_transfer_every_tensor_and_no_pixel(tmp_path, said, scale, tensors, module):
    plain = trained(build(f"yolo11{scale}.yaml"))
    path = saved(plain, tmp_path / f"yolo11{scale}.pt")
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    assert len(before) == tensors
    model = ultralytics.YOLO(f"yolo11{scale}-{module}.yaml").load(path).model
    assert torch.equal(boxes(model), boxes(plain))
    assert said() == [f"{tensors}/{tensors} tensors of yolo11{scale}.pt, 3 {module} layers start as identity"]
    after = plain.state_dict()
    assert len(plain.model) == 24 and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
@pytest.mark.parametrize("name, after", [("yolov5n", "P3"), ("yolov8n", "backbone"), ("yolov8n-p2", "P2"), ("yolov9t", "P4"), ("yolov10n", "P5"), ("yolo12n", "P3"),
                                         ("yolo26n", "SPPF"), ("rtdetr-l", "P4"), ("yolo11n-seg", "P3"), ("yolo11n-pose", "P4"), ("yolo11n-obb", "P5"), ("yolo11n-cls", "backbone")])  # fmt: skip
def test_transfer_in_every_family(said, name, after, module):
    try:
        text = insert(f"{name}.yaml", module, after)
    except InsertError as error:
        assert "does not exist" in str(error)
        pytest.skip(f"ultralytics {ultralytics.__version__} has no {name}.yaml; upgrade ultralytics")
    plain = trained(build(f"{name}.yaml"))
    model = build(text)
    model.load(plain)
    count = len(plain.state_dict())
    kind = "SPPF_LSKA" if (module, after) == ("LSKA", "SPPF") else module
    assert said() == [f"{count}/{count} tensors of the source, 1 {kind} layer starts as identity"]
    assert torch.equal(boxes(model, 160), boxes(plain, 160))  # RT-DETR wants 300 pixels of its maps


@pytest.mark.parametrize("module", [LSKA, LSKATrivial, LKA, LKATrivial, ACmix])
@pytest.mark.parametrize("shape", [(2, 16, 1, 1), (1, 16, 9, 5), (2, 32, 24, 31)])
def test_transfer_identity_gives_every_bit_back(module, shape):
    layer = module(shape[1])
    assert start_as_identity(layer) is None
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(shape).to(dtype)
        assert torch.equal(layer.to(dtype)(x), x)
        assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), x)


@pytest.mark.parametrize("options", [dict(head=8), dict(head=9), dict(head=1), dict(kernel_conv=5, head=18), dict(kernel_att=3)], ids=str)  # fmt: skip
def test_transfer_identity_of_every_acmix(options):
    layer = ACmix(72, **options)
    x = torch.randn(1, 72, 11, 7)
    assert not torch.equal(layer(x), x)
    assert start_as_identity(layer) is None
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (
            dict(in_planes=16, head=16),
            "ACmix has 16 heads and 9 taps; expected no more heads than kernel_conv squared",
        ),
        (dict(in_planes=16, out_planes=32), "ACmix changes the shape of its map"),
        (dict(in_planes=16, stride=2), "ACmix changes the shape of its map"),
    ],
    ids=str,
)
def test_transfer_acmix_that_cannot_be_the_identity(arguments, reason):
    layer = ACmix(**arguments)
    before = copy.deepcopy(layer.state_dict())
    assert start_as_identity(layer) == reason
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("module", [LSKA, LSKATrivial, LKA, LKATrivial, ACmix])
def test_transfer_identity_learns_with_every_weight(module):
    torch.manual_seed(0)
    layer = module(16)
    start_as_identity(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.randn(2, 16, 9, 9)) * torch.randn(2, 16, 9, 9)).sum().backward()
        optimizer.step()
    for name, p in layer.named_parameters():
        if name == "conv_p.bias":  # its gradient is zero by definition: it cancels in the softmax
            continue
        per_tap = p.grad.flatten(1).abs().sum(1) if p.dim() > 1 else p.grad.abs()
        assert per_tap.all(), name


def test_transfer_other_classes(said):
    plain = trained(build(SMALL))
    model = build(small(("LSKA",), nc=5))
    model.load(plain)
    theirs, ours = plain.state_dict(), model.state_dict()
    for name, value in theirs.items():
        number = int(name.split(".")[1])
        mine = ours[name.replace(f"model.{number}.", f"model.{number + (number > 6)}.", 1)]
        last = name.startswith("model.7.cv3") and name.split(".")[4] == "2"
        if last:
            assert mine.shape[0] == 5 and value.shape[0] == 3
        else:
            assert torch.equal(mine, value), name
    rest = sum(name.startswith("model.7.cv3") and name.split(".")[4] == "2" for name in theirs)
    count = len(theirs)
    assert said() == [
        f"{count - rest}/{count} tensors of the source (it has 3 classes, here are 5), 1 LSKA layer starts as identity"
    ]


@pytest.mark.parametrize("repeats", [1, 3])
def test_transfer_several_rows_and_repeats(said, repeats):
    plain = trained(build(SMALL))
    d = small(("LSKA", 7), ("ACmix",), ("LSKA", 11))
    d["head"][4][1] = repeats
    model = build(d)
    model.load(plain)
    assert torch.equal(boxes(model), boxes(plain))
    count = len(plain.state_dict())
    assert said() == [
        f"{count}/{count} tensors of the source, 2 LSKA layers and 1 ACmix layer start as identity"
    ]


def test_transfer_sppf_both_ways(said):
    plain = trained(build(SMALL))
    d = small()
    d["backbone"][2] = [-1, 1, "SPPF_LSKA", []]
    model, back = build(d), build(SMALL)
    model.load(plain)
    assert torch.equal(boxes(model), boxes(plain))
    back.load(model)
    assert torch.equal(boxes(back), boxes(plain))
    count = len(plain.state_dict())
    assert said() == [
        f"{count}/{count} tensors of the source, 1 SPPF_LSKA layer starts as identity",
        f"{count}/{count} tensors of the source, its 1 SPPF_LSKA layer left out",
    ]


def test_transfer_from_ours_to_other_places(said):
    ours = trained(build(small(("LSKA",), ("ACmix",))))
    count = len(ours.state_dict())
    here = {name: len(layer.state_dict()) for name, layer in (("LSKA", LSKA(8)), ("ACmix", ACmix(8)))}
    plain = build(SMALL)
    plain.load(ours)
    for i, j in {0: 0, 2: 2, 6: 6, 9: 7}.items():
        theirs, mine = ours.model[i].state_dict(), plain.model[j].state_dict()
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    other = build(small(("LSKA",), at=3))
    other.load(ours)
    same = build(small(("ACmix",), ("LSKA",)))
    same.load(ours)
    assert torch.equal(same.model[8].conv1.weight, ours.model[7].conv1.weight)
    wider = build(small(("LSKA", 11), ("ACmix",)))
    wider.load(ours)
    assert torch.equal(wider.model[7](x := torch.randn(1, 32, 8, 8)), x)
    rest = count - sum(here.values())
    assert said() == [
        f"{rest}/{rest} tensors of the source, its 1 LSKA layer and 1 ACmix layer left out",
        f"{rest}/{rest} tensors of the source, 1 LSKA layer starts as identity, its 1 LSKA layer and 1 ACmix layer left out",
        f"{count}/{count} tensors of the source",
        f"{rest + here['ACmix']}/{rest + here['ACmix']} tensors of the source, 1 LSKA layer starts as identity, its 1 LSKA layer left out",
    ]


def test_transfer_to_the_same_model_says_nothing_of_ours(said):
    ours = trained(build(small(("LSKA",), ("ACmix",))))
    twin = build(small(("LSKA",), ("ACmix",)))
    twin.load({"model": ours, "ema": None})
    assert torch.equal(boxes(twin), boxes(ours)) and said() == []


def test_transfer_without_ours_is_ultralytics_own(said):
    plain, twin = trained(build(SMALL)), build(SMALL)
    twin.load(plain)
    assert torch.equal(boxes(twin), boxes(plain)) and said() == []
    twin.load(nn.Sequential(nn.Conv2d(3, 3, 1)))  # no network of rows
    assert said() == []


def test_transfer_opt_out(said):
    plain = trained(build(SMALL))
    lska_ops.register(identity_start=False)
    lska_ops.register()  # as whoever else calls it
    model = build(small(("LSKA",)))
    before = copy.deepcopy(model.model[7].state_dict())
    model.load(plain)
    assert all(torch.equal(value, before[name]) for name, value in model.model[7].state_dict().items())
    assert torch.equal(model.model[6].conv.weight, plain.model[6].conv.weight)
    count = len(plain.state_dict())
    lska_ops.register(identity_start=True)
    model.load(plain)
    assert torch.equal(boxes(model), boxes(plain))
    lska_ops.register(identity_start=False)
    lska_ops.unregister()
    lska_ops.register()
    assert identity_start()  # unregister() forgets the choice
    for wrong in ("no", 0, 1.0):
        with pytest.raises(TypeError) as error:
            lska_ops.register(identity_start=wrong)
        assert str(error.value) == f"register: identity_start is {wrong!r}; expected True, False or None"
    assert identity_start()
    assert said() == [
        f"{count}/{count} tensors of the source",
        f"{count}/{count} tensors of the source, 1 LSKA layer starts as identity",
    ]


def changed_row(i, row):
    d = copy.deepcopy(SMALL)
    section, n = ("backbone", i) if i < 3 else ("head", i - 3)
    d[section][n] = row
    return d


@pytest.mark.parametrize(
    "source, message",
    [
        (changed_row(1, [-1, 1, "GhostConv", [128, 3, 2]]), "the source does not fit: its row 1 is GhostConv, row 1 here is Conv; tensors are taken by name alone; 1 LSKA layer starts at random"),
        (changed_row(6, [-1, 1, "C3", [128]]), "the source does not fit: its row 6 is C3, row 6 here is Conv; tensors are taken by name alone; 1 LSKA layer starts at random"),
        ({**SMALL, "backbone": SMALL["backbone"][:2], "head": [[-1, 1, "Conv", [64, 3, 2]], [[1, 2], 1, "Detect", ["nc"]]]},
         "the source does not fit: it has 4 rows beside ours, here are 8; tensors are taken by name alone; 1 LSKA layer starts at random"),
        (changed_row(1, [-1, 1, "Conv", [128, 5, 2]]), "the source does not fit: its row 1 has conv.weight [32, 16, 5, 5], row 1 (Conv) here [32, 16, 3, 3]; 1 LSKA layer starts at random"),
        (changed_row(7, [[2, 3], 1, "Detect", ["nc"]]), "not wired as in the source: row 8 (Detect)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_transfer_says_what_does_not_fit(said, source, message):
    model, source = build(small(("LSKA",))), build(source)
    start = copy.deepcopy(model.model[7].state_dict())
    model.load(source)
    assert said()[0] == message
    if "wired" not in message:
        assert all(torch.equal(value, start[name]) for name, value in model.model[7].state_dict().items())


def test_transfer_another_scale_does_not_fit(said):
    build(small(("LSKA",))).load(build({**SMALL, "scale": "s"}))
    line = said()[0]
    assert line.startswith(
        "the source does not fit: its row 1 has conv.weight [64, 32, 3, 3], row 1 (Conv) here [32, 16, 3, 3]; its row 2 has"
    )
    assert line.endswith("; it is of scale s, this model of scale n; 1 LSKA layer starts at random")


def test_transfer_another_family_does_not_fit(said):
    ultralytics.YOLO("yolo11n-LSKA.yaml").model.load(build("yolov8n.yaml"))
    assert said() == [
        "the source does not fit: it has 23 rows beside ours, here are 24; it is made from yolov8n.yaml, this model from "
        "yolo11n-LSKA.yaml; tensors are taken by name alone; 3 LSKA layers start at random"
    ]


def test_transfer_by_name_alone_says_what_that_leaves_at_random(said):
    source, model = build(small(("LSKA",), ("ACmix",))), small(("LSKA",), ("ACmix",))
    model["head"][-1] = [-1, 1, "Conv", [16, 1]]
    model["head"].append([[8, 3], 1, "Detect", ["nc"]])  # one row more behind ours, whose numbers stay
    build(model).load(source)
    assert said()[0].endswith("; tensors are taken by name alone")


def test_transfer_from_something_else_than_a_network_of_rows(said):
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)

    model = build(small(("LSKA",), ("ACmix",)))
    model.load(Backbone())
    assert said() == [
        "the source is no network of ultralytics (Backbone); tensors are taken by name alone; "
        "1 LSKA layer and 1 ACmix layer start at random"
    ]


def test_transfer_row_that_cannot_be_the_identity(said):
    plain = trained(build(SMALL))
    build(small(("ACmix", 7, 16))).load(plain)
    count = len(plain.state_dict())
    assert said() == [
        f"{count}/{count} tensors of the source, row 7 starts at random: ACmix has 16 heads and 9 taps; expected no more heads than kernel_conv squared"
    ]


class Enough(Exception):
    pass


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits", train=2, val=1)


OFFLINE = dict(device="cpu", amp=False, workers=0, imgsz=64, epochs=1, plots=False, val=False)


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_transfer_through_train(tmp_path, digits, said, module):
    plain = trained(build("yolo11n.yaml", nc=10))
    path = saved(plain, tmp_path / "yolo11n.pt")
    d = {**tasks.yaml_model_load(f"yolo11n-{module}.yaml"), "nc": 10}
    (tmp_path / "yolo11n-ten.yaml").write_text(yaml.safe_dump(d), encoding="utf-8")
    model = ultralytics.YOLO(tmp_path / "yolo11n-ten.yaml").load(path)

    def compare(trainer):
        assert torch.equal(boxes(trainer.model), boxes(plain))
        raise Enough

    model.add_callback("on_train_start", compare)
    with pytest.raises(Enough):
        model.train(data=str(digits), project=str(tmp_path / "runs"), **OFFLINE)
    assert "start as identity" in said()[0]


def worker(tmp_path, monkeypatch, overrides):
    """The script ultralytics starts per GPU, up to its model, in a process of its own; what it prints."""
    if "cloudpickle" in inspect.getsource(inspect.unwrap(dist.generate_ddp_file)):
        pytest.importorskip("cloudpickle", reason="cloudpickle is not installed; pip install cloudpickle")
    from ultralytics.models.yolo.detect import DetectionTrainer

    monkeypatch.setattr(dist, "USER_CONFIG_DIR", tmp_path)
    script = dist.generate_ddp_file(DetectionTrainer(overrides=overrides))
    with open(script, encoding="utf-8") as file:
        head, end, _ = file.read().partition("trainer.train()")
    assert end
    with open(script, "w", encoding="utf-8") as file:
        file.write(
            head
            # Both in this process, on one thread: on more, MKL chooses at run time how it divides small sums.
            + "trainer.setup_model(); import torch; from ultralytics import YOLO; torch.set_num_threads(1)\n"
            "    x, plain, maps = torch.rand(2, 3, 64, 64), YOLO('yolo11n.pt').model, ([], [])\n"
            "    for m, seen in zip((trainer.model, plain), maps):\n"
            "        for layer in m.eval().model[:-1]:\n"
            "            if type(layer).__name__ != 'LSKA':\n"
            "                layer.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))\n"
            "    with torch.inference_mode():\n"
            "        (a, b), (c, d) = ([m(x)[0] for m in (trainer.model, plain)] for _ in range(2))\n"
            "    print('boxes are equal:', torch.equal(a, b), (a - b).abs().max().item())\n"
            "    print('each equals itself:', torch.equal(a, c), torch.equal(b, d))\n"
            "    print('rows of other maps:', [i for i, (p, q) in enumerate(zip(*maps)) if not torch.equal(p, q)])"
        )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, cwd=tmp_path)
    return done.stdout + done.stderr


@pytest.mark.parametrize("start", [True, False])
def test_transfer_in_the_worker_of_several_gpus(tmp_path, digits, monkeypatch, start):
    plain = trained(build("yolo11n.yaml", nc=10))
    path = saved(plain, tmp_path / "yolo11n.pt")
    lska_ops.register(identity_start=start)
    overrides = dict(model="yolo11n-LSKA.yaml", pretrained=str(path), data=str(digits), device="cpu", project=str(tmp_path / "runs"))  # fmt: skip
    printed = worker(tmp_path, monkeypatch, overrides)
    assert "499/499 tensors of yolo11n.pt" in printed, printed
    assert ("start as identity" in printed) == start, printed
    assert f"boxes are equal: {start}" in printed, printed
