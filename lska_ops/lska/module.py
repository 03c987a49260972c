"""The modules a model file names: LSKA, and the three designs its paper compares it with."""

from torch import nn

from .._calls import check_number
from .._module import FusedModule
from .op import lska
from .reference import lska as plain_lska


def split_kernel(k_size, dilation=None, op="LSKA"):
    """``(k0, k1, d)`` with ``k0 = 2d - 1``, k1 odd and ``k0 + (k1 - 1) * d == k_size``, the paper's rule.

    Without `dilation`, d = 2 is tried first below 23 and d = 3 from 23 up (the published table), then larger
    ones.

    Raises:
        TypeError: k_size or dilation is not an integer.
        ValueError: k_size has no such split; the message names the nearest sizes that have one.
    """
    check_number(op, "k_size", k_size)
    if dilation is not None:
        check_number(op, "dilation", dilation)
    if split := _split(k_size, dilation):
        return split
    nearest = [next((k for k in sizes if _split(k, dilation)), None) for sizes in _outwards(k_size, dilation)]
    rule = "an odd k0 + (k1 - 1) * d with k0 = 2d - 1 and k1 = 3, 5, ..."
    given = f" and d = {dilation}" if dilation is not None else ""
    raise ValueError(
        f"{op}: k_size is {k_size}; expected {rule}{given}; the nearest that work: "
        + ", ".join(str(k) for k in nearest if k is not None)
    )


def _split(k_size, dilation):
    first = (2, 3) if k_size < 23 else (3, 2)
    for d in (dilation,) if dilation is not None else (*first, *range(4, k_size // 4 + 1)):
        k0 = 2 * d - 1
        taps, rest = divmod(k_size - k0, d)
        if rest == 0 and taps >= 2 and taps % 2 == 0:
            return k0, taps + 1, d
    return None


def _outwards(k_size, dilation):
    return range(k_size - 1, 2, -1), range(k_size + 1, max(k_size, 0) + 8 * (dilation or 2))


def _depthwise(dim, height, width, dilation=1):
    padding = (height // 2 * dilation, width // 2 * dilation)
    return nn.Conv2d(dim, dim, (height, width), padding=padding, dilation=dilation, groups=dim)


class LSKA(FusedModule):
    """Large separable kernel attention; see :func:`lska_ops.lska`.

    Args:
        dim: channels C of the map.
        k_size: receptive field a side, in pixels: 7, 11, 23, 35, 41, 53 as published, or any other that
            splits.
        dilation: d of the split; None takes the published rule's.

    Raises:
        TypeError, ValueError: see :func:`split_kernel`.
    """

    def __init__(self, dim, k_size=7, dilation=None):
        check_number("LSKA", "dim", dim)
        k0, k1, d = split_kernel(k_size, dilation)
        super().__init__()
        self.k_size = k_size
        self.conv0h = _depthwise(dim, 1, k0)
        self.conv0v = _depthwise(dim, k0, 1)
        self.conv_spatial_h = _depthwise(dim, 1, k1, d)
        self.conv_spatial_v = _depthwise(dim, k1, 1, d)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        convs = (self.conv0h, self.conv0v, self.conv_spatial_h, self.conv_spatial_v, self.conv1)
        if self._must_call_submodules():
            return plain_lska(x, *convs)
        return lska(x, *((c.weight, c.bias) for c in convs), dilation=self.conv_spatial_h.dilation[1])


class LSKATrivial(FusedModule):
    """The paper's LSKA-trivial: 1xk then kx1, no dilated pair; see :func:`lska_ops.lska`.

    Args:
        dim: channels C of the map.
        k_size: receptive field a side, in pixels, odd.
        dilation: None or 1; the argument is there so that the four designs can be exchanged.

    Raises:
        TypeError, ValueError: k_size is not odd, or dilation is neither None nor 1.
    """

    def __init__(self, dim, k_size=7, dilation=None):
        _check_trivial("LSKATrivial", dim, k_size, dilation)
        super().__init__()
        self.k_size = k_size
        self.conv0h = _depthwise(dim, 1, k_size)
        self.conv0v = _depthwise(dim, k_size, 1)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        if self._must_call_submodules():
            return plain_lska(x, self.conv0h, self.conv0v, None, None, self.conv1)
        pairs = ((c.weight, c.bias) for c in (self.conv0h, self.conv0v))
        return lska(x, *pairs, None, None, (self.conv1.weight, self.conv1.bias), dilation=1)


class LKA(FusedModule):
    """The paper's LKA (VAN's): k0xk0 depthwise, then k1xk1 depthwise with dilation d, as a gate. Plain
    PyTorch.

    Args: as :class:`LSKA`.
    """

    def __init__(self, dim, k_size=7, dilation=None):
        check_number("LKA", "dim", dim)
        k0, k1, d = split_kernel(k_size, dilation, op="LKA")
        super().__init__()
        self.k_size = k_size
        self.conv0 = _depthwise(dim, k0, k0)
        self.conv_spatial = _depthwise(dim, k1, k1, d)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class LKATrivial(FusedModule):
    """The paper's LKA-trivial: one kxk depthwise convolution as a gate. Plain PyTorch.

    Args: as :class:`LSKATrivial`.
    """

    def __init__(self, dim, k_size=7, dilation=None):
        _check_trivial("LKATrivial", dim, k_size, dilation)
        super().__init__()
        self.k_size = k_size
        self.conv0 = _depthwise(dim, k_size, k_size)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        return x * self.conv1(self.conv0(x))


def _check_trivial(op, dim, k_size, dilation):
    check_number(op, "dim", dim)
    check_number(op, "k_size", k_size, odd=True)
    if dilation not in (None, 1):
        raise ValueError(
            f"{op}: dilation is {dilation!r}; expected None or 1, this design has no dilated convolution"
        )
