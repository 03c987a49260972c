"""Whole YOLO networks as ultralytics itself predicts with them and trains them, a call or a step each."""

import contextlib
import copy
import inspect
import os
from pathlib import Path

import numpy as np
import torch
from gate import Gate
from problems import Problem, Row

from lska_ops import LSKA, ACmix, _backends
from lska_ops.testing import Case

BOXES = 6  # a picture; what a picture of COCO has is about as many
CLASSES = 80
ASKED = {"plain": "auto", "ours": "auto", "reference": "reference"}


@contextlib.contextmanager
def asking(role):
    """While it lasts, calls that name no backend go to that of `role`."""
    before = os.environ.get("LSKA_OPS_BACKEND")
    os.environ["LSKA_OPS_BACKEND"] = ASKED[role]
    try:
        yield
    finally:
        os.environ.pop("LSKA_OPS_BACKEND")
        if before is not None:
            os.environ["LSKA_OPS_BACKEND"] = before


def trainer_of(model, data, folder, **options):
    """ultralytics' trainer of a model YAML, set up as it is before the first step."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    shared = dict(
        model=model,
        data=str(data),
        amp=False,
        workers=0,
        seed=0,
        project=str(folder),
        exist_ok=True,
        plots=False,
    )
    threads = torch.get_num_threads()
    trainer = DetectionTrainer(overrides={**shared, **options})
    setup = trainer._setup_train
    setup(*[1] * len(inspect.signature(setup).parameters))  # 8.3 asks for the number of processes
    trainer.model.train()
    torch.set_num_threads(threads)  # on a CPU ultralytics leaves a core out, for all that follows
    return trainer


def write_pictures(folder, count, side):
    """Noise with boxes of random classes, which costs what pictures cost; returns the data YAML."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images, labels = folder / "images", folder / "labels"
    for path in (images, labels):
        path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(images / f"{i}.png")
        boxes = [(*rng.uniform(0.3, 0.7, 2), *rng.uniform(0.1, 0.5, 2)) for _ in range(BOXES)]
        lines = [f"{rng.integers(CLASSES)} " + " ".join(f"{v:.4f}" for v in box) for box in boxes]
        (labels / f"{i}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = folder / "pictures.yaml"
    names = "\n".join(f"  {i}: '{i}'" for i in range(CLASSES))
    data.write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}\n", encoding="utf-8")
    return data


def yaml_of(scale, module):
    return f"{scale}.yaml" if module == "plain" else f"{scale}-{module}.yaml"


def ours_in(network):
    """{name: layer of ours}."""
    return {name: m for name, m in network.named_modules() if isinstance(m, (LSKA, ACmix))}


@torch.no_grad()
def without_symmetries(network):
    """The initial shifts and equal rates of ACmix would hide mistakes."""
    for layer in ours_in(network).values():
        if isinstance(layer, ACmix):
            for p in (layer.rate1, layer.rate2, layer.dep_conv.weight):
                p.normal_()


class Inference:
    """A random network as `predict` runs it, fused and in its memory format; nothing before or behind it."""

    def __init__(self, scale, module, B, side, dtype, device, folder):
        from ultralytics import YOLO
        from ultralytics.nn.autobackend import AutoBackend

        torch.manual_seed(0)
        torch.use_deterministic_algorithms(False)  # a trainer before may have asked for them, a user has not
        torch.backends.cudnn.deterministic = False
        network = YOLO(yaml_of(scale, module)).model
        without_symmetries(network)
        _settle(network, side)
        self.facts = facts_of(network, side)
        half = dtype == torch.float16
        self.network = AutoBackend(network.eval(), device=device, fp16=half, fuse=True, verbose=False)
        self.layers = ours_in(network)
        self.x = torch.rand(B, 3, side, side).to(device, dtype)

    def run(self):
        """What the network says, its first tensor."""
        with torch.inference_mode():
            y = self.network(self.x)
        while isinstance(y, (list, tuple)):
            y = y[0]
        return y

    def once(self):
        self.run()


@torch.no_grad()
def _settle(network, side):
    """BatchNorms get statistics: with the initial ones maps fade to denormal numbers, which are slow.

    They are those of pictures of that side: with others' the maps of a large network grow, until ACmix's
    logits are beyond what its error bound can follow.
    """
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    with asking("reference"):
        side = max(side, 320)  # of 64 px the last maps are too small for a variance
        network.train()(torch.rand(1, 3, side, side))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


class Training:
    """A step of ultralytics' own trainer: forward, loss, backward, clipping, optimizer, EMA; no loading."""

    def __init__(self, scale, module, B, side, dtype, device, folder):
        data = write_pictures(Path(folder) / f"pictures-{B}-{side}", B, side)
        self.trainer = trainer_of(
            yaml_of(scale, module), data, folder, name=f"{scale}-{module}", imgsz=side, batch=B, nbs=B,
            device="cpu" if device.type == "cpu" else 0, optimizer="AdamW", lr0=1e-4, mosaic=0.0, cache=False,
        )  # fmt: skip
        self.half = dtype == torch.float16
        if self.half:  # mixed precision, without the check for which ultralytics downloads a model
            self.trainer.amp, self.trainer.scaler = True, torch.cuda.amp.GradScaler()
        network = self.trainer.model
        without_symmetries(network)
        self.facts, self.layers = facts_of(network, side), ours_in(network)
        network.train()
        self.batch = self.trainer.preprocess_batch(next(iter(self.trainer.train_loader)))

    def once(self):
        """Forward, loss and backward; not scaled, for a first scale is a guess that may be too large."""
        self._loss().backward()
        self.trainer.optimizer.zero_grad()

    def run(self):
        self.trainer.scaler.scale(self._loss()).backward()
        self.trainer.optimizer_step()

    def _loss(self):
        with torch.autocast("cuda", enabled=self.half):
            return self.trainer.model(self.batch)[0].sum()


def facts_of(network, side):
    """Its size: parameters and GFLOPs of a picture."""
    from ultralytics.utils.torch_utils import get_flops

    return dict(
        parameters=sum(p.numel() for p in network.parameters()), gflops=float(get_flops(network, side))
    )


class LayerProblem(Problem):
    """A layer of ours on the very map that it gets in its network."""

    def __init__(self, layer, x, y, grad_y):
        B, C, H, W = x.shape
        kind = ("acmix" if isinstance(layer, ACmix) else "lska") + ("_fwd" if grad_y is None else "_fwd_bwd")
        k = layer.kernel_att if isinstance(layer, ACmix) else 7  # of LSKA nothing here depends on it
        self.row = Row(kind, Case(f"{C}x{H}x{W}", C, H, W), B, k)
        self.module = copy.deepcopy(layer).to(y.dtype)
        self.x = x.detach().clone().to(y.dtype).requires_grad_(self.row.backward)
        self.y, self.grad_y = y.detach().clone(), torch.zeros_like(y) if grad_y is None else grad_y

    def backend(self):
        """Which computes it where nobody names one, and otherwise why the device's own does not."""
        op, options = self.row.op, self.options() if self.row.op == "acmix" else {}
        name = _backends.choose(op, "auto", self.x, **options)
        why_not = _backends.WHY_NOT[op][self.x.device.type](self.x, **options)
        return name, why_not


def watched(network):
    """{layer's name: its problem}, from one call of the network by ours."""
    seen, hooks = {}, []

    def watch(name):
        def hook(layer, inputs, y):
            seen[name] = [layer, inputs[0], y, None]
            if y.requires_grad:
                y.register_hook(lambda grad: seen[name].__setitem__(3, grad.clone()))

        return hook

    for name, layer in network.layers.items():
        hooks.append(layer.register_forward_hook(watch(name)))
    with asking("ours"):
        network.once()
    for hook in hooks:
        hook.remove()
    return {name: LayerProblem(*values) for name, values in seen.items()}


def judge(network):
    """{role: (status, error ratio, backend)} of ours and the reference: the worst layer, judged by gate.py.

    Of ours it is the output that the network itself made; gradients are made again from the same maps.
    """
    found = {"ours": [], "reference": []}
    for name, problem in watched(network).items():
        gate = Gate(problem, most=1)  # ACmix's last image: its truth takes seconds an image, for each layer
        for role, verdicts in found.items():
            with asking(role):
                backend, why_not = problem.backend()
                if role == "ours" and backend == "reference":
                    return {"ours": (f"declined: {why_not}", "", ""), "reference": ("ok", "", "reference")}
                results = gate.answers(problem, problem.runner(problem.module))
            if role == "ours":
                results = (problem.y, *results[1:])
            worst, ratio = gate.worst(results, backend if role == "ours" else None)
            verdicts.append((ratio, f"{worst} of {name}", backend))
    return {role: _verdict(verdicts) for role, verdicts in found.items()}


def _verdict(verdicts):
    ratio, worst, backend = max(verdicts, key=lambda v: v[0] if v[0] == v[0] else float("inf"))
    status = "ok" if ratio <= 1 else f"WRONG: {worst} has {ratio:.3g} times the allowed error"
    return status, ratio, backend
