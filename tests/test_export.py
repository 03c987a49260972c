"""Exported models run where this package is not, without an operator of ours, as exactly as ours does."""

import copy
import subprocess
import sys

import pytest
import torch
import ultralytics
from torch import nn

import lska_ops
from lska_ops.testing import UNIT

SIDE = 96

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module", params=["LSKA", "ACmix"])
def checkpoint(request, tmp_path_factory):
    """A trained-looking yolo11n with three modules, in a file."""
    lska_ops.register()
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"yolo11n-{request.param}.yaml").model.eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("export") / f"{request.param}.pt"
    torch.save({"model": model, "train_args": {}, "epoch": -1, "ema": None}, path)
    return path


def export(checkpoint, folder, **options):
    path = folder / checkpoint.name
    path.write_bytes(checkpoint.read_bytes())
    return ultralytics.YOLO(path).export(imgsz=SIDE, device="cpu", **options)


def eager(checkpoint):
    return torch.load(checkpoint, weights_only=False)["model"].float().eval()


def picture(B=1, H=SIDE, W=SIDE):
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(B))


def worst(error):
    """The largest error of the boxes, in pixels, and of the classes."""
    return torch.stack([part.abs().max() for part in (error[:, :4], error[:, 4:])])


def as_exact(y, model, x):
    """Against float64, y may be off by a few times what this very model in float32 is: both round as often.

    A runtime's sigmoid may round as near 1; so a class has at least the rounding of 1.
    """
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double())[0]
        own = worst(model(x)[0] - exact)
    y = torch.as_tensor(y).double()
    assert y.shape == exact.shape
    own = own.maximum(torch.tensor([0.0, UNIT[torch.float32]], dtype=own.dtype))
    return own[0] > 0 and (worst(y - exact) <= 16 * own).all()


def needs(*packages):
    for name in packages:
        pytest.importorskip(name, reason=f"{name} is not installed; pip install {name}")


@pytest.mark.versions
def test_export_torchscript_runs_without_us(tmp_path, checkpoint):
    file = export(checkpoint, tmp_path, format="torchscript")
    x = picture()
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys\nsys.modules['lska_ops'] = sys.modules['ultralytics'] = None\nimport torch\n"
        "model = torch.jit.load(sys.argv[1])\nassert 'lska_ops::' not in str(model.inlined_graph)\n"
        "y = model(torch.load(sys.argv[2]))\ntorch.save(y[0] if isinstance(y, (list, tuple)) else y, sys.argv[3])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file, tmp_path / "x.pt", tmp_path / "y.pt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert as_exact(torch.load(tmp_path / "y.pt"), eager(checkpoint), x)


@pytest.mark.parametrize(
    "dynamic", [pytest.param(False, marks=pytest.mark.versions), True], ids=["static", "dynamic"]
)
def test_export_onnx(tmp_path, checkpoint, dynamic):
    needs("onnx", "onnxruntime", "onnxslim")
    import onnx
    import onnxruntime

    file = export(checkpoint, tmp_path, format="onnx", dynamic=dynamic)
    graph = onnx.load(file).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    shapes = [(1, SIDE, SIDE), (2, 64, 160), (1, 32, 32)] if dynamic else [(1, SIDE, SIDE)]
    for B, H, W in shapes:
        x = picture(B, H, W)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert as_exact(y, eager(checkpoint), x), (B, H, W)


def test_export_openvino(tmp_path, checkpoint):
    needs("openvino")
    import openvino

    folder = export(checkpoint, tmp_path, format="openvino")
    core = openvino.Core()
    model = core.read_model(next(tmp_path.joinpath(folder).glob("*.xml")))
    assert all(op.get_type_info().version_id.startswith("opset") for op in model.get_ops())
    options = {"INFERENCE_PRECISION_HINT": "f32"}  # its default rounds to bfloat16 where the processor can
    compiled = core.compile_model(model, "CPU", options)
    x = picture()
    assert as_exact(compiled(x.numpy())[0], eager(checkpoint), x)


def test_export_torch_export(checkpoint):
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip(f"torch {torch.__version__} does not tell that it exports; torch 2.7 does")
    model, x = eager(checkpoint), picture()
    for layer in (model.model[i] for i in (17, 21, 25)):
        x = torch.randn(1, layer.conv1.in_channels, 12, 12)
        program = torch.export.export(layer, (x,))
        assert not any("lska_ops" in str(node.target) for node in program.graph.nodes)
        with torch.inference_mode():
            exact = copy.deepcopy(layer).double()(x.double())
            own, theirs = ((y - exact).abs().max() for y in (layer(x), program.module()(x)))
        assert 0 < own and theirs <= 16 * own


def test_export_fused_model_is_as_exact(checkpoint):
    model, x = eager(checkpoint), picture()
    with torch.inference_mode():
        y = copy.deepcopy(model).fuse(verbose=False)(x)[0]
    assert as_exact(y, model, x)
