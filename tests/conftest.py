import logging
import os
import sys
import tempfile

# ultralytics reads these when it is imported: no network, and no settings of the user's.
os.environ.update(
    YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_CONFIG_DIR=tempfile.mkdtemp(prefix="lska_ops_")
)

# OpenMP reads this when torch is imported. Two processes on few cores: a thread that waits by spinning takes the
# core of one that works; the whole run took four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pathlib import Path  # noqa: E402

# For build_backend and the benchmarks; at the end, so that an installed lska_ops is tested, not this tree's.
ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

DATA = Path(__file__).parent / "data"


@pytest.fixture
def registered():
    """ultralytics knows our modules while a test runs."""
    import lska_ops

    lska_ops.register()
    yield
    lska_ops.unregister()


@pytest.fixture
def logged():
    """All that ultralytics' logger is told."""
    from ultralytics.utils import LOGGER

    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


def published(op):
    """The files the authors' module of `op` made, as parameters of one test each."""
    files = sorted(DATA.glob(f"{op}_*.npz"))
    assert files, f"no published numbers of {op} in {DATA}"
    return [pytest.param(file, id=file.stem) for file in files]


class Published:
    """One published file: constructor arguments, state dict, input, output and gradients, all float64."""

    def __init__(self, file):
        with np.load(file) as arrays:
            self.tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.arguments = {n: int(t) for n, t in self._group("meta/").items()}
        self.state, self.gradients = self._group("state/"), self._group("grad/")
        self.x, self.y = self.tensors["input"], self.tensors["output"]
        self.grad_y, self.grad_x = self.tensors["grad_output"], self.tensors["grad_input"]

    def _group(self, prefix):
        return {n[len(prefix) :]: t for n, t in self.tensors.items() if n.startswith(prefix)}


def check_published(module, numbers, relative_error, limit):
    """The module reproduces output and every gradient of a published file."""
    module.load_state_dict(numbers.state, strict=True)
    x = numbers.x.clone().requires_grad_()
    y = module(x)
    y.backward(numbers.grad_y)
    parameters = dict(module.named_parameters())
    assert parameters.keys() == numbers.gradients.keys()
    assert relative_error(y, numbers.y) <= limit
    assert relative_error(x.grad, numbers.grad_x) <= limit
    for name, gradient in numbers.gradients.items():
        if name == "conv_p.bias":  # exactly zero: a constant shift of all positions; both sides round
            assert parameters[name].grad is None or parameters[name].grad.abs().max() <= limit
        else:
            assert relative_error(parameters[name].grad, gradient) <= limit, name


def layouts(x):
    """The same values in other strides, with NaN in every gap that a kernel must not read."""
    B, C, H, W = x.shape
    wide = x.new_full((B, C + 1, H + 2, W + 3), torch.nan)
    wide[:, 1:, 1:-1, 2:-1] = x
    flat = x.new_full((x.numel() + 5,), torch.nan)
    flat[5:] = x.flatten()
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": wide[:, 1:, 1:-1, 2:-1],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "offset": flat[5:].view_as(x),
        "expanded": x[:1].expand(B, C, H, W) if B > 1 else x[:, :1].expand(B, C, H, W),
    }
