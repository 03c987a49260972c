"""What users do to a module: each tool gets a module and a map and returns results by name.

``tests/test_toolbox.py`` gives each tool a module of ours and one that calls its convolutions, and compares. A tool
is registered with what it leaves of the fused path: `fuses` says whether our module may still run it.
"""

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TOOLS = {}


@dataclass(frozen=True)
class Tool:
    run: Callable
    fuses: bool | tuple  # of the modules' names
    built: Callable | None  # a context in which the modules are made


def tool(fuses=False, built=None):
    def add(function):
        TOOLS[function.__name__] = Tool(function, fuses, built)
        return function

    return add


def convolutions(module):
    """Those that our fused path would go round; SPPF_LSKA has two of its own beside them."""
    return [m for m in getattr(module, "lska", module).modules() if isinstance(m, nn.Conv2d)]


def gradients(module, x):
    """y, and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    return after_backward(module, x, module(x))


def after_backward(module, x, y):
    y.square().sum().backward()
    assert x.grad is not None
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    # A position's bias has no influence: its gradient is zero but for rounding.
    grads = {n: g for n, g in grads.items() if not n.endswith("conv_p.bias")}
    return {"y": y.detach(), "grad x": x.grad, **grads}


@contextlib.contextmanager
def replaced(owner, name, value):
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


# ---- convolutions that are not torch's own


class Doubling(nn.Conv2d):
    """A quantiser's class: another result, so that whoever goes round it is found out."""

    def forward(self, x):
        return 2 * super().forward(x)


@tool(fuses=True)
def nothing(module, x):
    return gradients(module, x)


@tool(built=lambda: replaced(nn, "Conv2d", Doubling))
def conv2d_replaced_before_the_module_is_made(module, x):
    assert all(type(m) is Doubling for m in convolutions(module))
    return gradients(module, x)


@tool()
def conv2d_replaced_afterwards(module, x):
    with replaced(nn, "Conv2d", Doubling):
        return gradients(module, x)


@tool()
def forward_of_conv2d_patched(module, x):
    kept = nn.Conv2d.forward
    with replaced(nn.Conv2d, "forward", lambda self, x: 2 * kept(self, x)):
        return gradients(module, x)


@tool()
def inner_forward_of_conv2d_patched(module, x):
    kept = nn.Conv2d._conv_forward
    with replaced(nn.Conv2d, "_conv_forward", lambda self, *given: 2 * kept(self, *given)):
        return gradients(module, x)


@tool()
def functional_conv2d_patched(module, x):
    kept = F.conv2d
    with replaced(F, "conv2d", lambda *given, **named: 2 * kept(*given, **named)):
        return gradients(module, x)


@tool()
def call_of_modules_patched(module, x):
    kept = nn.Module.__call__
    twice = lambda self, x: 2 * kept(self, x) if isinstance(self, nn.Conv2d) else kept(self, x)  # noqa: E731
    with replaced(nn.Module, "__call__", twice):
        return gradients(module, x)


@tool()
def call_of_conv2d_patched(module, x):
    kept = nn.Module.__call__
    nn.Conv2d.__call__ = lambda self, x: 2 * kept(self, x)
    try:
        return gradients(module, x)
    finally:
        del nn.Conv2d.__call__


@tool()
def inner_call_of_modules_patched(module, x):
    kept = nn.Module._call_impl
    twice = lambda self, x: 2 * kept(self, x) if isinstance(self, nn.Conv2d) else kept(self, x)  # noqa: E731
    with replaced(nn.Module, "_call_impl", twice):
        return gradients(module, x)


@tool()
def class_of_one_changed(module, x):
    """As ModelOpt does it: a class made at run time."""
    last = convolutions(module)[-1]
    last.__class__ = type("QuantConv2d", (Doubling,), {})
    return gradients(module, x)


@tool()
def forward_of_one_patched(module, x):
    first = convolutions(module)[0]
    forward = first.forward
    first.forward = lambda x: 2 * forward(x)
    return gradients(module, x)


@tool()
def inner_forward_of_one_patched(module, x):
    """As pictures are made that tile: each convolution pads in its own way."""
    first = convolutions(module)[0]
    inner = first._conv_forward
    first._conv_forward = lambda *given: 2 * inner(*given)
    return gradients(module, x)


@tool()
def call_of_one_patched(module, x):
    first = convolutions(module)[0]
    call = first._call_impl
    first._call_impl = lambda *given: 2 * call(*given)
    return gradients(module, x)


class Lora(nn.Module):
    """An adapter that wraps a convolution, and has neither its attributes nor its parameters."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.full((1,), 0.5, dtype=inner.weight.dtype))

    def forward(self, x):
        return self.inner(x) * (1 + self.scale)


def _wrap_each(module, names):
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Conv2d) and (names is None or name in names):
                setattr(owner, name, Lora(child))


@tool()
def adapter_around_the_last(module, x):
    _wrap_each(module, {"conv1"})
    return gradients(module, x)


@tool()
def adapter_around_each(module, x):
    _wrap_each(module, None)
    return gradients(module, x)


# ---- hooks


@tool()
def forward_hooks(module, x):
    for m in convolutions(module):
        m.register_forward_hook(lambda m, args, y: 2 * y)
    return gradients(module, x)


@tool()
def forward_pre_hook_of_one(module, x):
    convolutions(module)[-1].register_forward_pre_hook(lambda m, args: (2 * args[0],))
    return gradients(module, x)


@tool()
def backward_hooks(module, x):
    for m in convolutions(module):
        m.register_full_backward_hook(
            lambda m, grad_x, grad_y: tuple(None if g is None else 2 * g for g in grad_x)
        )
    return gradients(module, x)


@tool()
def backward_pre_hook_of_one(module, x):
    convolutions(module)[-1].register_full_backward_pre_hook(lambda m, grad_y: (2 * grad_y[0],))
    return gradients(module, x)


@tool()
def global_hook(module, x):
    double = lambda m, args, y: 2 * y if isinstance(m, nn.Conv2d) else None  # noqa: E731
    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        return gradients(module, x)
    finally:
        handle.remove()


# ---- weights that are computed


@tool()
def weight_norm_by_hooks(module, x):
    for m in convolutions(module):
        weight_norm(m)
    return gradients(module, x)


@tool()
def weight_norm_by_parametrization(module, x):
    for m in convolutions(module):
        parametrizations.weight_norm(m)
    return gradients(module, x)


@tool()
def spectral_norm_by_hooks(module, x):
    torch.manual_seed(1)
    for m in convolutions(module):
        spectral_norm(m)
    return gradients(module.eval(), x)


@tool()
def spectral_norm_by_parametrization(module, x):
    torch.manual_seed(1)
    for m in convolutions(module):
        parametrizations.spectral_norm(m)
    return gradients(module.eval(), x)


class Cubed(nn.Module):
    def forward(self, weight):
        return weight**3


@tool()
def parametrization_of_one(module, x):
    parametrize.register_parametrization(convolutions(module)[-1], "weight", Cubed())
    return gradients(module, x)


@tool()
def pruned_weights(module, x):
    for m in convolutions(module):
        prune.l1_unstructured(m, "weight", 0.5)
    return gradients(module, x)


@tool(fuses=True)
def pruned_for_good(module, x):
    for m in convolutions(module):
        prune.l1_unstructured(m, "weight", 0.5)
        prune.remove(m, "weight")
    return gradients(module, x)


@tool()
def weight_put_in_as_a_tensor(module, x):
    """As FSDP's first version does it."""
    last = convolutions(module)[-1]
    weight = last.weight
    del last.weight
    last.weight = weight.detach() * 2
    return gradients(module, x)


@tool()
def weight_hidden_by_a_tensor(module, x):
    last = convolutions(module)[-1]
    last.__dict__["weight"] = last.weight.detach() * 2
    return gradients(module, x)


class Logged(torch.Tensor):
    """A subclass with no operations but a class of its own."""


@tool()
def weight_of_a_subclass(module, x):
    last = convolutions(module)[-1]
    last.weight = nn.Parameter(last.weight.detach().as_subclass(Logged))
    return {"y": module(x).detach().as_subclass(torch.Tensor)}


@tool()
def bias_of_a_subclass(module, x):
    first = convolutions(module)[0]
    first.bias = nn.Parameter(first.bias.detach().as_subclass(Logged))
    return {"y": module(x).detach().as_subclass(torch.Tensor)}


@tool(fuses=("LSKA", "LSKATrivial", "SPPF_LSKA"))
def rate_of_a_subclass(module, x):
    if hasattr(module, "rate1"):
        module.rate1 = nn.Parameter(module.rate1.detach().as_subclass(Logged))
    return {"y": module(x).detach().as_subclass(torch.Tensor)}


# ---- attributes changed by hand


@tool()
def padding_mode_changed(module, x):
    for m in convolutions(module):
        if any(m.padding):
            m.padding_mode = "replicate"
            m._reversed_padding_repeated_twice = [n for p in reversed(m.padding) for n in (p, p)]
    return gradients(module, x)


@tool()
def dilation_and_padding_changed(module, x):
    m = next(m for m in convolutions(module) if any(m.padding))
    m.dilation, m.padding = (2, 2), tuple(2 * p for p in m.padding)
    return gradients(module, x)


@tool()
def stride_changed(module, x):
    """Of a gate, until one pixel is left of it; of ACmix's projections, so that it sees a quarter of the map."""
    if hasattr(module, "rate1"):
        for name in ("conv1", "conv2", "conv3"):
            getattr(module, name).stride = (2, 2)
    else:
        convolutions(module)[-1].stride = tuple(x.shape[2:])
    return gradients(module, x)


@tool()
def dilation_changed_alone(module, x):
    """The maps no longer fit, and that is said."""
    next(m for m in reversed(convolutions(module)) if any(m.padding)).dilation = (3, 3)
    with pytest.raises(RuntimeError, match="size"):
        module(x)
    return {"refused": torch.ones(1)}


@tool()
def padding_moved(module, x):
    """One less on one convolution and one more on the next: the same size."""
    depthwise = [m for m in convolutions(module) if m.padding[1] and m.kernel_size[0] == 1]
    if len(depthwise) < 2:
        pytest.skip("the module has one convolution with padding along a row; a pair is needed")
    first, second = depthwise[:2]
    first.padding, second.padding = (0, first.padding[1] - 1), (0, second.padding[1] + 1)
    return gradients(module, x)


@tool()
def padding_by_name(module, x):
    for m in convolutions(module):
        if m.stride == (1, 1):
            m.padding = "same"
            total = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
            m._reversed_padding_repeated_twice = [n for t in reversed(total) for n in (t // 2, t - t // 2)]
    return gradients(module, x)


@tool()
def groups_joined(module, x):
    """A 1x1 convolution made grouped, as structured pruning can leave it."""
    m = next(
        m
        for m in convolutions(module)
        if m.kernel_size == (1, 1) and m.groups == 1 and m.in_channels % 2 == 0
    )
    m.groups, m.weight = 2, nn.Parameter(m.weight.detach()[:, : m.in_channels // 2].clone())
    return gradients(module, x)


# ---- modes and tensors that look on


@contextlib.contextmanager
def recorded():
    """Names of the functions that a TorchFunctionMode sees."""
    seen = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", str(function)))
            return function(*args, **(kwargs or {}))

    with Recorder():
        yield seen


@tool()
def function_mode(module, x):
    with recorded() as seen:
        found = gradients(module, x)
    assert seen.count("conv2d") >= len(convolutions(module))
    return found


@tool()
def dispatch_mode(module, x):
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Recorder():
        found = gradients(module, x)
    assert seen.count("aten.convolution.default") >= len(convolutions(module))
    return found


@tool()
def map_of_a_subclass(module, x):
    y = module(x.as_subclass(Logged))
    assert type(y) is Logged
    return {"y": y.detach().as_subclass(torch.Tensor)}


@tool(fuses=True)
def default_device(module, x):
    with torch.device("cpu"):
        return gradients(module, x)


@tool(fuses=True)
def fake_tensors(module, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = module(mode.from_tensor(x))
    return {"shape": torch.tensor(y.shape)}


# It follows modules by hooks of all, which torch 2.3 had not: there it counts our ops by their formulas.
@tool(fuses=importlib.util.find_spec("torch.utils.module_tracker") is None)
def flop_counter(module, x):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        found = gradients(module, x)
    return {**found, "flops": torch.tensor(counter.get_total_flops())}


@tool(fuses=True)
def batched_gradients(module, x):
    """Of which autograd computes several at once, by vmap over what was recorded."""
    x = x.clone().requires_grad_()
    y = module.eval()(x)
    (grads,) = torch.autograd.grad(y, x, torch.stack([y.detach(), y.detach().cos()]), is_grads_batched=True)
    return {"grads x": grads}
