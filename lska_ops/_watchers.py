"""Who follows a call from the outside and understands PyTorch's own operations only: then plain PyTorch runs.

Tracers (TorchScript, ONNX, torch.export, torch.fx, make_fx), torch.func's transforms and forward-mode
differentiation, modes that look at every function or operation, and tensors with operations of their own.
"""

from functools import cache

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# By name, as some are of later versions. They ask nothing of an operation that ours do not answer: a device
# for new tensors; FLOPs (_flops.py); shapes (our ops have fakes); which results to keep for backward.
KNOWN_MODES = frozenset((
    "torch.utils._device.DeviceContext",
    "torch.utils.flop_counter.FlopCounterMode",
    "torch.utils.flop_counter._FlopCounterMode",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils.checkpoint._CachingTorchDispatchMode",
    "torch.utils.checkpoint._CachedTorchDispatchMode",
))  # fmt: skip
# A subclass (DTensor, quantised weights, what a user logs with) has operations of its own, but the fake one.
PLAIN_TENSORS = (torch.Tensor, nn.Parameter, torch._subclasses.fake_tensor.FakeTensor)

# Until torch 2.6 torch.compile looks like torch.export, whose program must run without us, and that of 2.3
# follows no autograd.Function like ours either: both see plain PyTorch.
COMPILES_OURS = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 7)
_HAS_FLAG = hasattr(torch.compiler, "_is_exporting_flag")  # from torch 2.7 on


def exporting():
    """True inside a tracer whose result must run without us: TorchScript, ONNX, torch.export."""
    if torch.jit.is_tracing():
        return True
    # The flag tells truly; is_exporting() is True while torch 2.9 to 2.11 compile. Where there is one, ONNX
    # exports by torch.export or TorchScript: to ask it takes longer than all else here.
    return torch.compiler._is_exporting_flag if _HAS_FLAG else torch.onnx.is_in_onnx_export()


def transform_without_rule():
    """The name of an active torch.func transform that the fused ops have no rule for, or None."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    active = {str(interpreter.key()).rpartition(".")[2] for interpreter in stack}
    return next((f"torch.func.{name}" for name in ("vmap", "jvp") if name.capitalize() in active), None)


def torch_func_is_active():
    """True inside of a torch.func transform."""
    return torch._C._are_functorch_transforms_active()


# torch.compile asks while it traces, when it is inside of the transforms that it traces.
torch_func_is_active._dynamo_marked_constant = transform_without_rule._dynamo_marked_constant = True


def watched(x):
    """Whether plain PyTorch has to compute with x, the map of a call, because somebody looks on."""
    if exporting() or torch_func_is_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():  # torch.compile follows modes itself
        return not COMPILES_OURS
    if type(x) not in PLAIN_TENSORS and isinstance(x, (torch.Tensor, torch.fx.Proxy)):
        return True
    if torch._C._len_torch_function_stack() and _any_unknown(_get_current_function_mode_stack()):
        return True
    return bool(torch._C._len_torch_dispatch_stack()) and _any_unknown(_get_current_dispatch_mode_stack())


def _any_unknown(modes):
    return not all(_is_known(type(mode)) for mode in modes)


@cache
def _is_known(mode):
    return f"{mode.__module__}.{mode.__qualname__}" in KNOWN_MODES
