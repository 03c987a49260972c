"""Inside every PyTorch tool a module of ours is the convolutions it stands for.

Each tool of tools*.py is given a module of ours and a twin that calls the same convolutions; what
comes out is the same, and the fused path has run where it may and nowhere else.
"""

import contextlib
import copy
import subprocess
import sys
import warnings

import pytest
import tools_tracing  # noqa: F401 -- adds its tools
import tools_training  # noqa: F401 -- so does it
import torch
from tools import TOOLS
from torch import nn

from lska_ops import LSKA, ACmix, LSKATrivial, _calls, _compiled, acmix, lska, swap
from lska_ops._watchers import exporting
from lska_ops.acmix import op as acmix_op
from lska_ops.acmix.reference import acmix as plain_acmix
from lska_ops.lska import op as lska_op
from lska_ops.testing import PUBLISHED, relative_error

pytestmark = pytest.mark.versions


class Gate(nn.Module):
    """LSKA as published: its submodules, called in turn."""

    def __init__(self, ours):
        super().__init__()
        for name, child in ours.named_children():
            self.add_module(name, child)

    def forward(self, x):
        gate = x
        for convolution in self.children():
            gate = convolution(gate)
        return x * gate


class Mixed(nn.Module):
    """ACmix as published: its submodules, called in turn."""

    def __init__(self, ours):
        super().__init__()
        self.rate1, self.rate2 = ours.rate1, ours.rate2
        for name, child in ours.named_children():
            self.add_module(name, child)
        self.options = {n: getattr(ours, n) for n in ("head", "kernel_att", "stride", "dilation")}

    def forward(self, x):
        return plain_acmix(x, *self.children(), self.rate1, self.rate2, **self.options)


def sppf_lska():
    pytest.importorskip("ultralytics")
    from lska_ops import SPPF_LSKA

    return SPPF_LSKA(4, 4, k_size=7)


MODULES = {
    "LSKA": (lambda: LSKA(6, 11), 6),
    "LSKATrivial": (lambda: LSKATrivial(6, 5), 6),
    "ACmix": (lambda: ACmix(6, 8, kernel_att=3, head=4), 6),
    "SPPF_LSKA": (sppf_lska, 4),
}


def twin_of(module):
    module = copy.deepcopy(module)
    if isinstance(module, ACmix):
        return Mixed(module)
    if isinstance(module, (LSKA, LSKATrivial)):
        return Gate(module)
    module.lska = Gate(module.lska)
    return module


@pytest.fixture
def fused(monkeypatch):
    """Names of the fused ops that are started."""
    started = []
    for module in (lska_op, acmix_op):

        def op(direction, backend, kept=module._op):
            if not torch.compiler.is_compiling():  # which would trace the list
                started.append(f"{direction} {backend}")
            return kept(direction, backend)

        monkeypatch.setattr(module, "_op", op)
    return started


def made(name, built=None):
    build, channels = MODULES[name]
    torch.manual_seed(0)
    with (built or contextlib.nullcontext)():
        module = copy.deepcopy(build()).double()  # all of ultralytics' blocks share one activation
        with torch.no_grad():
            for p in module.parameters():
                p.normal_(std=0.5)
        return module, torch.randn(2, channels, 7, 6, dtype=torch.float64)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("tool", TOOLS)
def test_toolbox(tool, name, fused):
    tool = TOOLS[tool]
    module, x = made(name, tool.built)
    with (tool.built or contextlib.nullcontext)():
        expected = tool.run(twin_of(module), x.clone())
        assert not fused
        found = tool.run(module, x.clone())
    may_fuse = tool.fuses if isinstance(tool.fuses, bool) else name in tool.fuses
    assert bool(fused) == (may_fuse and _compiled.problem is None), fused
    ours = {n.replace(".inner.", "."): t for n, t in found.items()}
    theirs = {n.replace(".inner.", "."): t for n, t in expected.items()}
    assert ours and ours.keys() == theirs.keys()
    for n, t in theirs.items():
        assert relative_error(ours[n], t) <= PUBLISHED, n


def test_toolbox_is_whole():
    assert len(TOOLS) * len(MODULES) >= 160 and len(TOOLS) >= 40


@pytest.mark.parametrize("name", MODULES)
def test_toolbox_calls_a_replaced_convolution(name):
    """What a quantiser counts on: one call of its class for each convolution."""
    calls = []

    class Counting(nn.Conv2d):
        def forward(self, x):
            calls.append(self)
            return super().forward(x)

    kept, nn.Conv2d = nn.Conv2d, Counting
    try:
        module, x = made(name)
        module(x)
    finally:
        nn.Conv2d = kept
    assert (
        len(calls)
        == len(set(map(id, calls)))
        == {"LSKA": 5, "LSKATrivial": 3, "ACmix": 6, "SPPF_LSKA": 7}[name]
    )


# ---- what the tools of the table do not reach


def convolutions_of(module):
    return [(m.weight, m.bias) for m in module.children()]


def call(name, module, x, **options):
    if name == "ACmix":
        rest = {n: getattr(module, n) for n in ("head", "kernel_att", "stride", "dilation")}
        return acmix(x, *convolutions_of(module), module.rate1, module.rate2, **rest, **options)
    *stages, conv1 = convolutions_of(module)
    return lska(x, *stages, *[None] * (4 - len(stages)), conv1, dilation=module._dilation, **options)


every_op = pytest.mark.parametrize("name", ["LSKA", "LSKATrivial", "ACmix"])
needs_cpu = pytest.mark.skipif(bool(_compiled.problem), reason=f"cpu: {_compiled.problem}")


@needs_cpu
@every_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_toolbox_flops_are_the_references(name, dtype, backward):
    from torch.utils.flop_counter import FlopCounterMode

    module, x = made(name)
    module, x = module.to(dtype), x.to(dtype).requires_grad_(backward)
    counted = {}
    for backend in ("cpu", "reference"):
        with FlopCounterMode(display=False) as counter:
            y = call(name, module, x, backend=backend)
            if backward:
                y.sum().backward()
        counted[backend] = counter.get_total_flops()
    assert counted["cpu"] == counted["reference"] > 0


@needs_cpu
def test_toolbox_flops_where_the_counter_is_imported_late():
    """In a fresh process: lska_ops does not import the counter, which imports Triton."""
    code = (
        "import sys, torch, lska_ops\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "m, x = lska_ops.LSKA(8), torch.randn(1, 8, 9, 9)\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "y = m(x)\n"
        "with FlopCounterMode(display=False) as counter: y.sum().backward()\n"
        "assert counter.get_total_flops() > 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_cpu
@every_op
def test_toolbox_named_backend_declines_what_it_has_no_rule_for(name):
    module, x = made(name)
    module.requires_grad_(False)
    wanted = "backend 'cpu' declined: torch.func.{} is active.* use backend=\"auto\""
    with pytest.raises(RuntimeError, match=wanted.format("vmap")):
        torch.vmap(lambda x: call(name, module, x, backend="cpu"))(x[None])
    with pytest.raises(RuntimeError, match=wanted.format("jvp")):
        torch.func.jvp(lambda x: call(name, module, x, backend="cpu"), (x,), (x,))
    y = torch.vmap(lambda x: call(name, module, x))(x[None].requires_grad_())
    assert y.requires_grad


def test_toolbox_fx_cannot_trace_acmix_alone():
    with pytest.raises(TypeError, match="torch.fx: ACmix .* trace the network that it is part of"):
        torch.fx.symbolic_trace(made("ACmix")[0])


@pytest.mark.parametrize("how", ["hook", "subclass"])
def test_toolbox_fx_refuses_an_acmix_of_which_a_part_would_run_twice(how):
    module, _ = made("ACmix")
    if how == "hook":
        module.register_forward_hook(lambda m, args, y: 2 * y)
    else:
        module.__class__ = type("Doubled", (ACmix,), {"forward": lambda self, x: 2 * ACmix.forward(self, x)})
    with pytest.raises(TypeError, match="torch.fx: an ACmix with hooks or a forward of its own"):
        torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), module))


@every_op
def test_toolbox_compiles_whole_under_a_default_device(name):
    torch._dynamo.reset()
    module, x = made(name)
    expected = module(x)
    torch.set_default_device("cpu")
    try:
        found = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    finally:
        torch.set_default_device(None)
    assert relative_error(found, expected) <= PUBLISHED


@every_op
def test_toolbox_a_weight_that_was_emptied_is_the_convolutions_to_refuse(name):
    module, x = made(name)
    module.conv1.weight.data = torch.empty(0, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="weight"):
        module(x)


@pytest.mark.parametrize("name", MODULES)
def test_toolbox_quantised_network_around_a_module(name, fused):
    """prepare_fx of a whole network: its convolutions are quantised, LSKA's among them; ACmix is called as it is."""
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    module, x = made(name)
    C = x.shape[1]
    network = nn.Sequential(nn.Conv2d(C, C, 1), module.float(), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = fx.prepare_fx(network, get_default_qconfig_mapping("x86"), (x.float(),))
        prepared(x.float())
        quantised = fx.convert_fx(prepared)
    fused.clear()
    assert quantised(x.float()).shape == network(x.float()).shape
    assert sum("quantized" in type(m).__module__ for m in quantised.modules()) >= (
        1 if name == "ACmix" else 4
    )


BEFORE = {
    "Conv2d": "conv.Conv2d = nn.Conv2d = type('D', (nn.Conv2d,), {'forward': lambda s, x: 2 * forward(s, x)})",
    "Conv2d.forward": "nn.Conv2d.forward = wraps(forward)(lambda s, x: 2 * forward(s, x))",
    "F.conv2d": "F.conv2d = lambda *given, **named: 2 * conv2d(*given, **named)",
    "Module.__call__": "nn.Module.__call__ = wraps(call)(lambda s, x: (1 + isinstance(s, nn.Conv2d)) * call(s, x))",
}


@pytest.mark.parametrize("patched", BEFORE)
def test_toolbox_conv2d_patched_before_the_import(patched):
    """In a fresh process. What was there when lska_ops was imported is not torch's own, whatever its name."""
    code = (
        "import torch\nfrom functools import wraps\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        "from torch.nn.modules import conv\n"
        "forward, conv2d, call = nn.Conv2d.forward, F.conv2d, nn.Module.__call__\n"
        f"{BEFORE[patched]}\n"
        "from lska_ops import LSKA\n"
        "m, x = LSKA(4).double(), torch.randn(1, 4, 5, 5).double()\n"
        "gate = x\nfor c in m.children(): gate = c(gate)\n"
        "assert torch.equal(m(x), x * gate)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_cpu
def test_toolbox_fuses_when_a_patch_is_gone():
    """In a fresh process: one that was there while lska_ops was imported."""
    code = (
        "from torch import nn\ncall = nn.Module.__call__\n"
        "nn.Module.__call__ = lambda s, x: call(s, x)\n"
        "import torch\nfrom lska_ops import LSKA\n"
        "m, x = LSKA(4), torch.randn(1, 4, 5, 5)\n"
        "assert m._weights_to_fuse(x) is None\n"
        "nn.Module.__call__ = call\n"
        "assert m._weights_to_fuse(x) is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_toolbox_network_trained_quantised_and_converted(name):
    """prepare_qat_fx to convert_fx, as README says it for ACmix."""
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qat_qconfig_mapping

    module, x = made(name)
    C, x = x.shape[1], x.float()
    network = nn.Sequential(nn.Conv2d(C, C, 1), module.float(), nn.ReLU()).train()
    mapping = get_default_qat_qconfig_mapping("x86").set_object_type(ACmix, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = fx.prepare_qat_fx(network, mapping, (x,))
        prepared(x).sum().backward()
        quantised = fx.convert_fx(prepared.eval())
    assert quantised(x).shape == network.eval()(x).shape
    assert sum("quantized" in type(m).__module__ for m in quantised.modules()) >= (
        1 if name == "ACmix" else 4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_toolbox_acmix_calls_every_convolution_that_has_a_hook_in_any_dtype(dtype):
    module, x = made("ACmix")
    calls = []
    for name, m in module.named_children():
        m.register_forward_hook(lambda *_, name=name: calls.append(name))
    module.to(dtype)(x.to(dtype))
    assert sorted(calls) == sorted(name for name, _ in module.named_children())


def test_toolbox_acmix_asks_for_a_batch_under_vmap():
    module, x = made("ACmix")
    with pytest.raises(ValueError, match=r"ACmix: x has shape \[6, 7, 6\]; expected .* x\[None\]"):
        torch.vmap(module)(x)


class OnlyReflections(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "reflection_pad" in str(function):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("deterministic", [False, True])
def test_toolbox_acmix_reflects_without_a_kernel_that_has_no_deterministic_gradient(deterministic):
    """A map on the meta device stands for one on a GPU."""
    module, x = made("ACmix")
    module, x = module.to("meta"), x.to("meta").requires_grad_()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with OnlyReflections() as mode:
            module(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert bool(mode.seen) != deterministic


def test_toolbox_autocast_of_a_device_that_has_none(monkeypatch):
    """As torch 2.4 answers for an Apple GPU."""
    if not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("torch asks for each device by a function of its own; 2.4 has one for all")
    enabled = torch.is_autocast_enabled

    def asked(*device):
        if device == ("mps",):
            raise RuntimeError(
                "unknown device type for autocast in get_autocast_dispatch_key_from_device_type"
            )
        return enabled(*device)

    monkeypatch.setattr(torch, "is_autocast_enabled", asked)
    available = torch.amp.is_autocast_available
    monkeypatch.setattr(
        torch.amp, "is_autocast_available", lambda device: device != "mps" and available(device)
    )
    assert [_calls.autocast_dtype(device) for device in ("mps", "meta", "cpu")] == [None] * 3
    with torch.autocast("cpu", torch.bfloat16):
        assert _calls.autocast_dtype("cpu") == torch.bfloat16


@every_op
def test_toolbox_swap_under_another_default_device(name):
    ours, x = made(name)
    if name == "LSKATrivial":
        pytest.skip("swap knows published modules; LSKATrivial is called so by nobody else")
    theirs = type(name, (Mixed if name == "ACmix" else Gate,), {})(ours)
    if name == "ACmix":
        for attribute in (
            "in_planes",
            "out_planes",
            "head",
            "head_dim",
            "kernel_att",
            "kernel_conv",
            "stride",
            "dilation",
        ):
            setattr(theirs, attribute, getattr(ours, attribute))
    expected = theirs(x)
    torch.set_default_device("meta")
    try:
        assert swap(theirs, verbose=False) == [""]
    finally:
        torch.set_default_device(None)
    assert type(theirs) is type(ours) and relative_error(theirs(x), expected) <= PUBLISHED


def test_toolbox_torch_compile_is_no_export():
    """torch 2.9 to 2.11 answer torch.compiler.is_exporting() with True while they compile."""
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip(f"torch {torch.__version__} does not tell that it exports; torch 2.7 does")
    torch._dynamo.reset()
    found = torch.compile(lambda x: x + exporting(), fullgraph=True, backend="eager")(torch.zeros(1))
    assert not found.any()
