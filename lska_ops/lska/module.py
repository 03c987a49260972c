"""The modules a model file names: LSKA, and the three designs its paper compares it with."""

import itertools
import math

import torch
from torch import nn

from .._calls import check_number, follow_autocast
from .._module import FusedModule
from .op import NAMES, OPTIONAL, lska
from .reference import gate as plain_gate


def split_kernel(k_size, dilation=None, op="LSKA"):
    """``(k0, k1, d)`` with ``k0 = 2d - 1``, k1 odd and ``k0 + (k1 - 1) * d == k_size``, the paper's rule.

    Without `dilation`, d = 2 is tried first below 23 and d = 3 from 23 up (the published table), then larger
    ones.

    Raises:
        TypeError: k_size or dilation is not an integer.
        ValueError: k_size has no such split; the message names the nearest sizes that have one.
    """
    k_size = check_number(op, "k_size", k_size, at_least=-math.inf)
    if dilation is not None:
        dilation = check_number(op, "dilation", dilation)
    if split := _split(k_size, dilation):
        return split
    nearest = " or ".join(map(str, _nearest(k_size, dilation)))
    given = dilation if dilation is not None else "2, 3, ... (1 where dilation=1 is given)"
    raise ValueError(
        f"{op}: k_size is {k_size}; expected {nearest}, the nearest that split into k0 + (k1 - 1) * d with "
        f"k0 = 2d - 1, k1 = 3, 5, ... and d = {given}"
    )


def _split(k_size, dilation):
    # k_size + 1 = 2jd with j >= 2: where neither 2 nor 3 divides it, the smallest d is at most the root.
    first = (2, 3) if k_size < 23 else (3, 2)
    for d in (dilation,) if dilation is not None else (*first, *range(4, math.isqrt(max(k_size, 0)) + 2)):
        k0 = 2 * d - 1
        taps, rest = divmod(k_size - k0, d)
        if rest == 0 and taps >= 2 and taps % 2 == 0:
            return k0, taps + 1, d
    return None


def _nearest(k_size, dilation):
    """The sizes below and above that split; there is none below the smallest."""
    if dilation is None:
        smaller, larger = range(k_size - 1, 2, -1), itertools.count(max(k_size, 0) + 1)
        found = (next((k for k in sizes if _split(k, None)), None) for sizes in (smaller, larger))
        return [k for k in found if k is not None]
    step = 2 * dilation
    below, above = k_size // step * step - 1, ((k_size + 1) // step + 1) * step - 1
    return [k for k in (below,) if k >= 2 * step - 1] + [max(above, 2 * step - 1)]


def _depthwise(dim, height, width, dilation=1):
    padding = (height // 2 * dilation, width // 2 * dilation)
    return nn.Conv2d(dim, dim, (height, width), padding=padding, dilation=dilation, groups=dim)


class _Gate(FusedModule):
    """``x * conv1(depthwise stages)``: what the four designs share."""

    _has_fused_form = False
    _stages = ()  # names, in the order of forward

    def __init__(self, dim, k_size, **stages):
        super().__init__()
        self.k_size = k_size
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        if torch.jit.is_scripting():  # TorchScript knows neither backends nor functions that are handed over
            gate = x
            for stage in self.children():
                gate = stage(gate)
            return x * gate
        else:
            return self._forward(x)

    @torch.jit.unused
    def _forward(self, x):
        weights = self._weights_to_fuse(x)
        if weights is not None:
            *stages, conv1 = weights
            missing = [None] * (4 - len(stages))
            return lska(x, *stages, *missing, conv1, dilation=self._dilation)
        x, _ = follow_autocast(x)
        return plain_gate(x, self.conv1, *[getattr(self, name) for name in self._stages])

    def _published(self):
        if not self._has_fused_form:
            return None
        d = self._dilation
        return [(name, 1, d if name in OPTIONAL else 1, None) for name in self._stages] + [("conv1", 1, 1, 1)]


class LSKA(_Gate):
    """Large separable kernel attention; see :func:`lska_ops.lska`.

    Args:
        dim: channels C of the map.
        k_size: receptive field a side, in pixels: 7, 11, 23, 35, 41, 53 as published, or any other that
            splits.
        dilation: d of the split; None takes the published rule's.

    Raises:
        TypeError, ValueError: see :func:`split_kernel`.
    """

    _has_fused_form = True
    _stages = NAMES[:4]
    __jit_unused_properties__ = ["_dilation"]

    def __init__(self, dim, k_size=7, dilation=None):
        dim = check_number("LSKA", "dim", dim)
        k0, k1, d = split_kernel(k_size, dilation)
        super().__init__(
            dim,
            k_size,
            conv0h=_depthwise(dim, 1, k0),
            conv0v=_depthwise(dim, k0, 1),
            conv_spatial_h=_depthwise(dim, 1, k1, d),
            conv_spatial_v=_depthwise(dim, k1, 1, d),
        )

    @property
    def _dilation(self):
        dilation = getattr(self._modules["conv_spatial_h"], "dilation", None)
        return dilation[1] if isinstance(dilation, tuple) else 0  # 0 where it was replaced by something else


class LSKATrivial(_Gate):
    """The paper's LSKA-trivial: 1xk then kx1, no dilated pair; see :func:`lska_ops.lska`.

    Args:
        dim: channels C of the map.
        k_size: receptive field a side, in pixels, odd.
        dilation: None or 1; the argument is there so that the four designs can be exchanged.

    Raises:
        TypeError, ValueError: k_size is not odd, or dilation is neither None nor 1.
    """

    _has_fused_form = True
    _stages, _dilation = NAMES[:2], 1

    def __init__(self, dim, k_size=7, dilation=None):
        dim, k = _check_trivial("LSKATrivial", dim, k_size, dilation)
        super().__init__(dim, k, conv0h=_depthwise(dim, 1, k), conv0v=_depthwise(dim, k, 1))


class LKA(_Gate):
    """The paper's LKA (VAN's): k0xk0 depthwise, then k1xk1 depthwise with dilation d, as a gate. Plain
    PyTorch.

    Args: as :class:`LSKA`.
    """

    _stages = ("conv0", "conv_spatial")

    def __init__(self, dim, k_size=7, dilation=None):
        dim = check_number("LKA", "dim", dim)
        k0, k1, d = split_kernel(k_size, dilation, op="LKA")
        super().__init__(dim, k_size, conv0=_depthwise(dim, k0, k0), conv_spatial=_depthwise(dim, k1, k1, d))


class LKATrivial(_Gate):
    """The paper's LKA-trivial: one kxk depthwise convolution as a gate. Plain PyTorch.

    Args: as :class:`LSKATrivial`.
    """

    _stages = ("conv0",)

    def __init__(self, dim, k_size=7, dilation=None):
        dim, k = _check_trivial("LKATrivial", dim, k_size, dilation)
        super().__init__(dim, k, conv0=_depthwise(dim, k, k))


def _check_trivial(op, dim, k_size, dilation):
    if dilation not in (None, 1):
        raise ValueError(
            f"{op}: dilation is {dilation!r}; expected None or 1, this design has no dilated convolution"
        )
    return check_number(op, "dim", dim), check_number(op, "k_size", k_size, odd=True)
