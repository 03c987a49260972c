"""Model files, registration and checkpoints with the stock ultralytics."""

import copy
import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
import ultralytics
import yaml
from ultralytics.nn import tasks
from ultralytics.utils import dist

import lska_ops
from lska_ops import LSKA, ACmix
from lska_ops.yolo import registration
from lska_ops.yolo.digits import write_digits
from lska_ops.yolo.registration import CFG, NAMES

SCALES = "nsmlx"
PARAMETERS = {
    "LSKA": (2_717_712, 9_818_048, 20_726_272, 25_983_744, 58_325_920),
    "ACmix": (2_920_426, 10_567_210, 21_992_970, 27_250_442, 61_110_538),
}


pytestmark = pytest.mark.usefixtures("registered")


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


@pytest.mark.versions
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
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_yolo_row_options(row, expected):
    if expected is None:
        with pytest.raises(
            ValueError,
            match=r"model YAML: row 1: LSKA: k_size is \d+; expected \d+ or \d+, the nearest that split",
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


def parser_with_a_branch():
    """The stock parser with the lines somebody who edits ultralytics would write."""
    source = inspect.getsource(inspect.unwrap(tasks.parse_model))
    branch = (
        r"\1elif m in OURS:\n\1    c2 = ch[f]\n\1    args = [c2] * (1 + (m in TWO)) + args\n"
        r"\1elif m is \2nn.BatchNorm2d:\n"
    )
    source, count = re.subn(r"( +)elif m is ((?:torch\.)?)nn\.BatchNorm2d:\n", branch, source)
    assert count == 1
    ours = registration.modules()
    names = {**vars(tasks), **ours, "OURS": set(ours.values()), "TWO": {ACmix, ours["SPPF_LSKA"]}}
    exec(source, names)
    return names["parse_model"]


def test_yolo_weights_and_random_state_as_without_us():
    d = rows([-1, 1, "LSKA", []], [-1, 2, "ACmix", [5]], [-1, 1, "C2f", [32]], [-3, 1, "SPPF_LSKA", [3, "7"]])
    built = []
    for parser in (parser_with_a_branch(), tasks.parse_model):
        torch.manual_seed(3)
        layers, save = parser(copy.deepcopy(d), 3, verbose=False)
        built.append((layers.state_dict(), save, torch.get_rng_state()))
    (by_hand, save, state), (ours, our_save, our_state) = built
    assert list(ours) == list(by_hand) and our_save == save and torch.equal(our_state, state)
    assert all(torch.equal(ours[name], value) for name, value in by_hand.items())


def patched():
    return (
        tasks.parse_model,
        tasks.check_yaml,
        importlib.import_module("ultralytics.nn").parse_model,
        dist.generate_ddp_file,
        tasks.BaseModel.load,
        tasks.torch_safe_load,
        set(vars(tasks)),
    )


@pytest.mark.versions
def test_yolo_register_twice_and_unregister():
    inside = patched()
    lska_ops.register()
    assert patched() == inside
    lska_ops.unregister()
    outside = patched()
    assert outside[0] is outside[2] and not any(name in outside[-1] for name in NAMES)
    assert all(a is not b for a, b in zip(inside[:-1], outside[:-1], strict=True))
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


def test_yolo_row_options_by_the_parsers_names():
    d = {**rows([-1, 1, "LSKA", ["nc"]]), "nc": 7}
    assert parse(d)[1].k_size == 7


def test_yolo_names_that_another_wrapper_supplies(monkeypatch):
    def supplying(inner):
        def theirs(*args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tasks, "Theirs", torch.nn.Identity, raising=False)
                return inner(*args, **kwargs)

        return theirs

    d = rows([-1, 1, "Theirs", []], [-1, 1, "LSKA", []])
    with pytest.raises(ValueError, match="row 1 names 'Theirs'") as error:
        parse(d)
    assert type(error.value.__cause__) is KeyError
    lska_ops.unregister()
    monkeypatch.setattr(tasks, "parse_model", supplying(tasks.parse_model))
    lska_ops.register()  # theirs is below ours
    assert type(parse(d)[2]) is LSKA
    lska_ops.unregister()
    monkeypatch.undo()
    lska_ops.register()
    monkeypatch.setattr(tasks, "parse_model", supplying(tasks.parse_model))  # and above
    assert type(parse(d)[2]) is LSKA


def test_yolo_register_undoes_what_it_did_where_it_fails(monkeypatch):
    lska_ops.unregister()
    before = patched()
    wrap = registration._wrap

    def failing(module, name, *args, **kwargs):
        if name == "generate_ddp_file":
            raise AttributeError(name)
        wrap(module, name, *args, **kwargs)

    monkeypatch.setattr(registration, "_wrap", failing)
    with pytest.raises(AttributeError):
        lska_ops.register()
    assert patched() == before
    monkeypatch.undo()
    lska_ops.register()
    assert type(parse(rows([-1, 1, "LSKA", []]))[1]) is LSKA


def test_yolo_register_from_many_threads(monkeypatch):
    lska_ops.unregister()
    before, wrap, seen = patched(), registration._wrap, []

    def slow(*args, **kwargs):
        time.sleep(0.05)
        wrap(*args, **kwargs)

    def work():
        lska_ops.register()
        seen.append(patched())

    monkeypatch.setattr(registration, "_wrap", slow)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and all(state == patched() for state in seen)
    lska_ops.unregister()
    assert patched() == before


@pytest.mark.parametrize("module", ["LSKA", "LSKATrivial", "LKA", "LKATrivial", "ACmix"])
def test_yolo_only_unpickling_registers(monkeypatch, module):
    lska_ops.unregister()
    monkeypatch.setattr(registration, "_unregistered_by_user", False)
    before = patched()
    layer = getattr(lska_ops, module)(8)
    for twin in (copy.deepcopy(torch.nn.Sequential(layer))[0], copy.copy(layer)):
        assert patched() == before
        assert type(twin) is type(layer) and list(twin.state_dict()) == list(layer.state_dict())
    deep = copy.deepcopy(layer)
    for mine, theirs in zip(deep.parameters(), layer.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine is not theirs
    x = torch.rand(1, 8, 9, 9)
    assert torch.equal(deep(x), layer(x))
    pickle.loads(pickle.dumps(layer))
    assert patched() != before


def test_yolo_worker_of_several_gpus_builds_the_model(tmp_path, monkeypatch):
    if "cloudpickle" in inspect.getsource(inspect.unwrap(dist.generate_ddp_file)):
        pytest.importorskip("cloudpickle", reason="cloudpickle is not installed; pip install cloudpickle")
    from ultralytics.models.yolo.detect import DetectionTrainer

    monkeypatch.setattr(dist, "USER_CONFIG_DIR", tmp_path)
    data = write_digits(tmp_path / "digits", train=2, val=1)
    overrides = dict(model="yolo11n-LSKA.yaml", data=str(data), device="cpu", project=str(tmp_path / "runs"))
    script = dist.generate_ddp_file(DetectionTrainer(overrides=overrides))
    with open(script, encoding="utf-8") as file:
        head, end, _ = file.read().partition("trainer.train()")
    assert end
    with open(script, "w", encoding="utf-8") as file:
        file.write(head + "trainer.setup_model(); print(type(trainer.model.model[17]))")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout.endswith("<class 'lska_ops.lska.module.LSKA'>\n"), done.stdout + done.stderr


def test_yolo_sppf_is_an_attribute_that_needs_ultralytics():
    code = (
        "import sys\n"
        "sys.modules['ultralytics'] = None\n"  # as if it were not installed
        "import lska_ops\n"
        "assert not hasattr(lska_ops, 'SPPF_LSKA') and 'SPPF_LSKA' in dir(lska_ops)\n"
        "try: lska_ops.SPPF_LSKA\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("SPPF_LSKA: ultralytics cannot be imported"), done.stderr
    assert done.stdout.endswith('pip install "lska_ops[yolo]"\n')


def test_yolo_no_file_is_shadowed_by_a_function():
    assert inspect.ismodule(importlib.import_module("lska_ops.yolo").registration)


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
        if module == "ACmix":  # queries by keys, and weights by values
            extra += 2 * layer.kernel_att**2 * channels * pixels
    assert round(ours - plain, 9) == round(2 * extra / 1e9, 9)


def test_yolo_checkpoint_opens_in_a_fresh_process(tmp_path):
    model = ultralytics.YOLO("yolo11n-LSKA.yaml")
    x = torch.rand(1, 3, 64, 64)
    model.model.eval()
    with torch.inference_mode():
        expected = model.model(x)[0]
    path = tmp_path / "best.pt"
    torch.save({"model": model.model, "train_args": {}, "epoch": -1, "ema": None}, path)
    torch.save((x, expected, torch.get_num_threads()), tmp_path / "io.pt")
    code = (
        "import sys, torch\n"
        "from ultralytics import YOLO\n"  # nothing of ours is imported
        "model = YOLO(sys.argv[1]).model.eval()\n"
        "x, expected, threads = torch.load(sys.argv[2])\n"
        "torch.set_num_threads(threads)\n"  # as where `expected` was made: sums depend on it
        "with torch.inference_mode(): assert torch.equal(model(x)[0], expected)\n"
        "again = YOLO('yolo11n-LSKA.yaml')\n"  # as train() does from a checkpoint's YAML
        "print('opened')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "io.pt"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("opened\n"), done.stdout + done.stderr
