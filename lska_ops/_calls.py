"""What the public functions do before a backend runs: check the arguments, follow autocast.

The error grammar is *op, argument, got, expected*.
"""

import contextlib
import operator

import torch
from torch.autograd import forward_ad

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)


def check_map(op, x, name="x"):
    """x is a 4-D map of a supported dtype with at least one pixel."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a tensor [B, C, H, W]")
    if x.dim() != 4:
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}; expected [B, C, H, W]")
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} is {x.dtype}; expected float64, float32, float16 or bfloat16")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}; expected H and W of at least 1")


def check_channels(op, x, channels):
    """x is a map with as many channels as the module was made for."""
    check_map(op, x)
    if x.shape[1] != channels:
        raise ValueError(f"{op}: x has shape {list(x.shape)}; expected [B, {channels}, H, W]")


def shape_of(value):
    return value.shape if isinstance(value, torch.Tensor) else ()


def first_misfit(x, parameters, shapes):
    """Index of the first parameter that is no tensor of its shape, with the dtype and device of x; or None.

    Parameters come as weight, bias, weight, bias, ...: a bias may be None. So may what has no shape.
    """
    dtype, device = x.dtype, x.device
    for i, (t, shape) in enumerate(zip(parameters, shapes)):  # noqa: B905 -- as long by construction
        if t is None and (i % 2 or shape is None):
            continue
        if not isinstance(t, torch.Tensor) or t.shape != shape or t.dtype != dtype or t.device != device:
            return i
    return None


def misfit(op, name, parameter, shape, x, expected=None, like="x"):
    """Raises what is wrong with what :func:`first_misfit` found; `expected` where a shape says too little.

    `like`: what the call calls x.
    """
    expected = list(shape) if expected is None else expected
    if not isinstance(parameter, torch.Tensor):
        raise TypeError(f"{op}: {name} is a {type(parameter).__name__}; expected a tensor {expected}")
    if parameter.shape != shape:
        raise ValueError(f"{op}: {name} has shape {list(parameter.shape)}; expected {expected}")
    if parameter.dtype != x.dtype:
        raise TypeError(
            f"{op}: {name} is {parameter.dtype}; expected {x.dtype} like {like}, "
            "or a call under torch.autocast"
        )
    raise ValueError(f"{op}: {name} is on {parameter.device}; expected {x.device} like {like}")


def check_pair(op, name, pair):
    """A convolution is handed over as (weight, bias)."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"{op}: {name} is a {type(pair).__name__}; expected the pair (weight, bias), bias may be None"
        )


def needs_grad(tensors):
    """Whether autograd has to record a call with these tensors, None among them.

    Forward-mode differentiation says so too: autograd.Function then refuses, where a bare op would answer 0.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def check_number(op, name, value, *, odd=False, at_least=1):
    """A size option as an int, odd where the window must have a middle."""
    what, given = "an odd integer" if odd else "an integer", value
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        try:
            value = None if isinstance(value, bool) else operator.index(value)  # numpy's integers
        except TypeError:
            value = None
        if value is None:
            raise TypeError(f"{op}: {name} is {given!r}; expected {what}")
    if value < at_least or (odd and value % 2 == 0):
        raise ValueError(f"{op}: {name} is {value}; expected {what} of at least {at_least}")
    return value


# torch 2.3 asks for the autocast of each device by a function of its own.
_ONE_FOR_ALL_DEVICES = hasattr(torch, "get_autocast_dtype")


def autocast_dtype(device_type):
    """The dtype autocast computes in on this device, or None where it is off or unknown."""
    if _ONE_FOR_ALL_DEVICES:
        # Of devices without autocast (meta; mps in torch 2.4) the other two questions raise.
        known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
        return (
            torch.get_autocast_dtype(device_type)
            if known and torch.is_autocast_enabled(device_type)
            else None
        )
    if device_type == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if device_type == "cuda" and torch.is_autocast_enabled() else None


def without_autocast(device_type):
    """The context in which autocast is off."""
    if autocast_dtype(device_type) is None:
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def follow_autocast(x, parameters=()):
    """x and the parameters in autocast's dtype; who computes with them does it :func:`without_autocast`.

    A float64 x, which autocast leaves as it is, keeps its parameters as they are too.
    """
    dtype = autocast_dtype(x.device.type) if isinstance(x, torch.Tensor) else None
    if dtype is None or x.dtype == torch.float64:
        return x, list(parameters)

    def cast(t):
        return t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    return cast(x), [cast(p) for p in parameters]
