"""Model files, registration and checkpoints with the stock ultralytics."""

import copy
import importlib
import subprocess
import sys

import pytest
import torch
import ultralytics
import yaml
from ultralytics.nn import tasks

import lska_ops
from lska_ops import LSKA, ACmix
from lska_ops.yolo.register import CFG, NAMES

SCALES = "nsmlx"
PARAMETERS = {
    "LSKA": (2_717_712, 9_818_048, 20_726_272, 25_983_744, 58_325_920),
    "ACmix": (2_920_426, 10_567_210, 21_992_970, 27_250_442, 61_110_538),
}


@pytest.fixture(autouse=True)
def registered():
    lska_ops.register()
    yield
    lska_ops.unregister()


def rows(*layers, head="Detect", scale="n"):
    """A small model: one downsampling convolution, `layers`, three levels, a head."""
    heads = {
        "Detect": ["nc"],
        "Segment": ["nc", 32, 64],
        "Pose": ["nc", [17, 3]],
        "OBB": ["nc", 1],
        "Classify": ["nc"],
    }
    backbone = [[-1, 1, "Conv", [64, 3, 2]], *layers]
    levels = [[-1, 1, "Conv", [128, 3, 2]], [-1, 1, "Conv", [256, 3, 2]]]
    n = len(backbone) - 1
    at = [n, n + 1, n + 2] if head != "Classify" else -1
    return {
        "nc": 3, "kpt_shape": [17, 3], "scales": {"n": [0.5, 0.25, 1024], "l": [1.0, 1.0, 512]}, "scale": scale,
        "backbone": backbone, "head": [*levels, [at, 1, head, heads[head]]],
    }  # fmt: skip


def parse(d):
    return tasks.parse_model(copy.deepcopy(d), 3, verbose=False)[0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("module", PARAMETERS)
def test_yolo_seed_models_by_bare_name(module, scale):
    model = tasks.DetectionModel(tasks.yaml_model_load(f"yolo11{scale}-{module}.yaml"), verbose=False)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[module][SCALES.index(scale)]
    assert model.yaml["scale"] == scale
    found = [m for m in model.model if type(m).__name__ == module]
    assert [m.i for m in found] == [17, 21, 25] and model.model[-1].f == [17, 21, 25]


@pytest.mark.parametrize("module", PARAMETERS)
def test_yolo_bundled_models_are_yolo11_with_three_rows_more(module):
    plain = yaml.safe_load((CFG / f"yolo11-{module}.yaml").read_text(encoding="utf-8"))
    assert [i for i, row in enumerate(plain["backbone"] + plain["head"]) if row[2] == module] == [17, 21, 25]
    official = tasks.yaml_model_load("yolo11n.yaml")
    assert plain["backbone"] == official["backbone"]
    kept = [row for row in plain["head"] if row[2] != module]
    assert [row[1:] for row in kept] == [row[1:] for row in official["head"]]


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
@pytest.mark.parametrize("suffix", ["", "-seg", "-pose", "-obb", "-cls"])
def test_yolo_every_task_builds_and_runs(module, suffix):
    d = tasks.yaml_model_load(f"yolo11n{suffix}.yaml")
    before = len(d["backbone"]) + len(d["head"]) - 2  # in front of the head, after the last level
    d["head"].insert(len(d["head"]) - 1, [-1, 1, module, []])
    if d["head"][-1][0] != -1:
        d["head"][-1][0][-1] = before + 1
    kinds = {
        "": "DetectionModel",
        "-seg": "SegmentationModel",
        "-pose": "PoseModel",
        "-obb": "OBBModel",
        "-cls": "ClassificationModel",
    }
    model = getattr(tasks, kinds[suffix])(d, ch=3, nc=4, verbose=False).eval()
    assert sum(type(m).__name__ == module for m in model.modules()) == 1
    with torch.inference_mode():
        model(torch.rand(1, 3, 64, 96))


@pytest.mark.parametrize(
    "name", ["yolov8n.yaml", "yolo12n.yaml", "rtdetr-l.yaml", "yolov5n.yaml", "yolov10n.yaml"]
)
@pytest.mark.parametrize("module", NAMES)
def test_yolo_other_families_build(name, module):
    try:
        d = tasks.yaml_model_load(name)
    except FileNotFoundError:
        pytest.skip(f"ultralytics {ultralytics.__version__} has no {name}; upgrade ultralytics")
    d["head"].insert(len(d["head"]) - 1, [-1, 1, module, []])
    kind = tasks.RTDETRDetectionModel if name.startswith("rtdetr") else tasks.DetectionModel
    model = kind(d, ch=3, nc=4, verbose=False)
    assert sum(type(m).__name__ == module for m in model.model) == 1


@pytest.mark.parametrize(
    "row, expected",
    [
        ([-1, 1, "LSKA", [23]], lambda m: m.k_size == 23),
        ([-1, 1, "LSKA", [19, 3]], None),
        ([-1, 1, "LSKA", [21, 5]], None),
        ([-1, 1, "LSKA", [29, 5]], lambda m: m.conv_spatial_h.dilation == (5, 5)),
        ([-1, 1, "LSKA", ["23"]], lambda m: m.k_size == 23),
        ([-1, 1, "LSKATrivial", [9]], lambda m: m.conv0h.kernel_size == (1, 9)),
        ([-1, 1, "LKA", [23]], lambda m: m.conv_spatial.dilation == (3, 3)),
        ([-1, 1, "LKATrivial", [5]], lambda m: m.conv0.kernel_size == (5, 5)),
        (
            [-1, 1, "ACmix", [5, 8]],
            lambda m: (m.kernel_att, m.head, m.in_planes, m.out_planes) == (5, 8, 16, 16),
        ),
        ([-1, 1, "ACmix", [7, 4, 3, 2]], lambda m: m.stride == 2),
        ([-1, 1, "SPPF_LSKA", []], lambda m: m.lska.k_size == 11 and m.m.kernel_size == 5),
        ([-1, 1, "SPPF_LSKA", [3, 7]], lambda m: m.lska.k_size == 7 and m.m.kernel_size == 3),
    ],
    ids=str,
)
def test_yolo_row_options(row, expected):
    if expected is None:
        with pytest.raises(
            ValueError, match=r"model YAML: row 1: LSKA: k_size is \d+; expected .* the nearest that work"
        ):
            parse(rows(row))
        return
    layer = parse(rows(row))[1]
    assert type(layer).__name__ == row[2] and expected(layer)


@pytest.mark.parametrize("scale, times", [("n", 2), ("l", 3)])
def test_yolo_repeats_follow_the_depth(scale, times):
    layer = parse(rows([-1, 3, "LSKA", []], scale=scale))[1]
    assert [type(m) for m in layer] == [LSKA] * times


def test_yolo_several_rows_one_after_the_other_and_at_a_distance():
    layers = parse(rows([-1, 1, "LSKA", []], [-1, 1, "ACmix", []], [0, 1, "LSKA", [11]], [[-1, 1], 1, "Concat", [1]],
                        [-1, 1, "ACmix", []]))  # fmt: skip
    assert layers[2].in_planes == 16 and layers[3].conv1.in_channels == 16 and layers[5].in_planes == 32


def test_yolo_first_row_gets_the_pictures_channels():
    d = rows()
    d["backbone"].insert(0, [-1, 1, "LSKA", []])
    d["head"][-1][0] = [1, 2, 3]
    assert parse(d)[0].conv1.in_channels == 3


def test_yolo_weights_and_random_state_as_without_us():
    torch.manual_seed(3)
    ours = parse(rows([-1, 1, "LSKA", []]))
    after = torch.rand(1)
    torch.manual_seed(3)
    by_hand = parse(rows([-1, 1, "nn.Identity", []]))
    first = {n: p for n, p in by_hand.named_parameters() if n.startswith("0.")}
    assert all(torch.equal(p, dict(ours.named_parameters())[n]) for n, p in first.items())
    torch.manual_seed(3)
    parse(rows([-1, 1, "LSKA", []]))
    assert torch.equal(torch.rand(1), after)


def patched():
    return (
        tasks.parse_model,
        tasks.check_yaml,
        importlib.import_module("ultralytics.nn").parse_model,
        set(vars(tasks)),
    )


def test_yolo_register_twice_and_unregister():
    inside = patched()
    lska_ops.register()
    assert patched() == inside
    lska_ops.unregister()
    outside = patched()
    assert outside[0] is outside[2] and not any(name in outside[3] for name in NAMES)
    assert all(a is not b for a, b in zip(inside[:3], outside[:3], strict=False))
    with pytest.raises(FileNotFoundError):
        tasks.yaml_model_load("yolo11n-LSKA.yaml")
    with pytest.raises(KeyError, match="LSKA"):
        parse(rows([-1, 1, "LSKA", []]))
    lska_ops.unregister()
    lska_ops.register()
    assert type(parse(rows([-1, 1, "LSKA", []]))[1]) is LSKA


def test_yolo_unregister_below_a_wrapper_of_somebody_else(monkeypatch):
    ours = tasks.parse_model

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    monkeypatch.setattr(tasks, "parse_model", theirs)
    lska_ops.unregister()
    assert tasks.parse_model is theirs
    with pytest.raises(KeyError, match="LSKA"):
        parse(rows([-1, 1, "LSKA", []]))


def test_yolo_leaves_a_forks_own_class_alone(monkeypatch):
    lska_ops.unregister()

    class LSKA(torch.nn.Identity):
        pass

    monkeypatch.setattr(tasks, "LSKA", LSKA, raising=False)
    lska_ops.register()
    assert type(parse(rows([-1, 1, "LSKA", []], [-1, 1, "ACmix", []]))[1]) is LSKA
    lska_ops.unregister()
    assert tasks.LSKA is LSKA


@pytest.mark.parametrize(
    "row, message",
    [
        ([-1, 1, "LSKA", [8]], "row 1: LSKA: k_size is 8; expected"),
        ([-1, 1, "ACmix", [7, 5]], "row 1: ACmix: head is 5; expected a divisor of out_planes = 16"),
        ([-1, 1, "LSKA", [7, 2, 1]], "row 1 (LSKA) has arguments [7, 2, 1]; expected at most 2: ['k_size', 'dilation']"),
        ([-1, 1, "SPPF_LSKA", [1024, 5]], "row 1: SPPF_LSKA: k (the pooling window; channel counts are filled in) is 1024"),
        ([-1, 1, "LSKAA", []], "row 1 names 'LSKAA', which neither ultralytics nor lska_ops has; did you mean LSKA"),
        ([[-1, 0], 1, "LSKA", []], "row 1 (LSKA) reads from [-1, 0]; expected one row"),
        ([-1, 1, "LSKA", ["k_size=23"]], "LSKA: k_size is 'k_size=23'; expected an integer"),
        ([-1, 1, "LSKA", [{"k_size": 23}]], "row 1: LSKA: k_size is {'k_size': 23}; expected an integer"),
    ],
    ids=str,
)  # fmt: skip
def test_yolo_bad_row(row, message):
    with pytest.raises((TypeError, ValueError)) as error:
        parse(rows(row))
    assert message in str(error.value)


@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_yolo_flops_are_counted(module):
    from ultralytics.utils.torch_utils import get_flops

    plain = get_flops(tasks.DetectionModel("yolo11n.yaml", verbose=False))
    ours = get_flops(tasks.DetectionModel(f"yolo11n-{module}.yaml", verbose=False))
    if plain == 0:
        pytest.skip("thop is not installed; pip install ultralytics-thop")
    extra = 0
    for channels, side in ((64, 80), (128, 40), (256, 20)):
        layer, pixels = {"LSKA": LSKA, "ACmix": ACmix}[module](channels), side * side
        for name, conv in layer.named_children():
            extra += (
                conv.weight.numel() * pixels * (layer.head_dim if name == "fc" else 1)
            )  # fc runs once for each dim
    assert round(ours - plain, 9) == round(2 * extra / 1e9, 9)


def test_yolo_checkpoint_opens_in_a_fresh_process(tmp_path):
    model = ultralytics.YOLO("yolo11n-LSKA.yaml")
    x = torch.rand(1, 3, 64, 64)
    model.model.eval()
    with torch.inference_mode():
        expected = model.model(x)[0]
    path = tmp_path / "best.pt"
    torch.save({"model": model.model, "train_args": {}, "epoch": -1, "ema": None}, path)
    torch.save((x, expected), tmp_path / "io.pt")
    code = (
        "import sys, torch\n"
        "from ultralytics import YOLO\n"  # nothing of ours is imported
        "model = YOLO(sys.argv[1]).model.eval()\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "with torch.inference_mode(): assert torch.equal(model(x)[0], expected)\n"
        "again = YOLO('yolo11n-LSKA.yaml')\n"  # as train() does from a checkpoint's YAML
        "print('opened')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "io.pt"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("opened\n"), done.stdout + done.stderr
