"""The module a model file names: ACmix."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from .. import _watchers  # not its function: torch 2.3 compiles constants to globals of that name here
from .._calls import check_number, follow_autocast, without_autocast
from .._module import FusedModule
from .._watchers import PLAIN_TENSORS
from .op import NAMES, acmix
from .reference import acmix as plain_acmix


class ACmix(FusedModule):
    """Local self-attention and convolution over shared projections; see :func:`lska_ops.acmix`.

    Args:
        in_planes: channels C_in of the map.
        out_planes: channels C_out of the result; None takes in_planes.
        kernel_att: window side of the attention in taps, odd.
        head: number of heads, a divisor of out_planes.
        kernel_conv: kernel side of the shift convolution, odd.
        stride: output every stride-th pixel of every stride-th row.
        dilation: pixels between the taps of the attention's window.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range, or head does not divide out_planes.
    """

    def __init__(self, in_planes, out_planes=None, kernel_att=7, head=4, kernel_conv=3, stride=1, dilation=1):
        in_planes = check_number("ACmix", "in_planes", in_planes)
        out_planes = in_planes if out_planes is None else check_number("ACmix", "out_planes", out_planes)
        kernel_att = check_number("ACmix", "kernel_att", kernel_att, odd=True)
        head = check_number("ACmix", "head", head)
        kernel_conv = check_number("ACmix", "kernel_conv", kernel_conv, odd=True)
        stride = check_number("ACmix", "stride", stride)
        dilation = check_number("ACmix", "dilation", dilation)
        if out_planes % head:
            divisors = ", ".join(str(n) for n in range(1, min(out_planes, 64) + 1) if out_planes % n == 0)
            raise ValueError(
                f"ACmix: head is {head}; expected a divisor of out_planes = {out_planes}: {divisors}"
            )
        super().__init__()
        self.in_planes, self.out_planes, self.head, self.head_dim = (
            in_planes,
            out_planes,
            head,
            out_planes // head,
        )
        self.kernel_att, self.kernel_conv, self.stride, self.dilation = (
            kernel_att,
            kernel_conv,
            stride,
            dilation,
        )
        self.rate1 = nn.Parameter(torch.full((1,), 0.5))
        self.rate2 = nn.Parameter(torch.full((1,), 0.5))
        self.conv1 = nn.Conv2d(in_planes, out_planes, 1)
        self.conv2 = nn.Conv2d(in_planes, out_planes, 1)
        self.conv3 = nn.Conv2d(in_planes, out_planes, 1)
        self.conv_p = nn.Conv2d(2, self.head_dim, 1)
        taps = kernel_conv * kernel_conv
        self.fc = nn.Conv2d(3 * head, taps, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            taps * self.head_dim, out_planes, kernel_conv,
            padding=kernel_conv // 2, stride=stride, groups=self.head_dim, bias=False,
        )  # fmt: skip
        self.reset_parameters()

    def reset_parameters(self):
        """Rates 0.5, and dep_conv as shifts: its input map t is moved by tap t, and all are summed."""
        with torch.no_grad():
            self.rate1.fill_(0.5)
            self.rate2.fill_(0.5)
            shifts = torch.eye(self.kernel_conv**2).view(-1, self.kernel_conv, self.kernel_conv)
            self.dep_conv.weight.copy_(shifts.expand_as(self.dep_conv.weight))

    def forward(self, x):
        if isinstance(x, torch.fx.Proxy):
            return self._as_a_leaf(x)
        weights = self._weights_to_fuse(x)
        if type(self.rate1) not in PLAIN_TENSORS or type(self.rate2) not in PLAIN_TENSORS:
            weights = None
        options = dict(head=self.head, kernel_att=self.kernel_att, stride=self.stride, dilation=self.dilation)
        if weights is not None:
            return acmix(x, *weights, self.rate1, self.rate2, **options)
        if x.dim() != 4:
            hint = (
                "; under torch.func.vmap give each map a batch axis, x[None]"
                if _watchers.torch_func_is_active()
                else ""
            )
            raise ValueError(f"ACmix: x has shape {list(x.shape)}; expected [B, C, H, W]{hint}")
        x, rates = follow_autocast(x, (self.rate1, self.rate2))
        q, k, v, _, fc, dep_conv = (getattr(self, name) for name in NAMES)
        y = plain_acmix(x, q, k, v, self._position, fc, dep_conv, *rates, **options)
        return y.to(x.dtype)  # autocast computes a softmax in float32

    def _published(self):
        ones = [(name, 1, 1, 1) for name in NAMES[:-1]]
        return [*ones, ("dep_conv", self.stride, 1, self.head_dim)]

    def _as_a_leaf(self, x):
        """One node of the graph that torch.fx traces, as layers of torch.nn are: the reflected borders follow
        from the sizes of a map, which a trace does not know."""
        if type(self).forward is not ACmix.forward or self._forward_hooks or self._forward_pre_hooks:
            raise TypeError(
                "torch.fx: an ACmix with hooks or a forward of its own cannot be traced, as these would run "
                "twice; give the Tracer an is_leaf_module that says True of it, or use torch.export"
            )
        path = x.tracer.path_of_module(self)
        if not path:
            raise TypeError(
                "torch.fx: ACmix cannot be traced on its own, since its borders follow from the sizes of x; "
                "trace the network that it is part of, where it becomes one node, or use torch.export"
            )
        return x.tracer.create_proxy("call_module", path, (x,), {})

    def __prepare_scriptable__(self):
        raise TypeError(
            "torch.jit.script: ACmix cannot be scripted, since its convolutions are handed to one function; "
            "use torch.jit.trace or torch.export"
        )

    def _position(self, loc):
        conv_p = self.conv_p
        weight = getattr(conv_p, "weight", None)
        own = weight.dtype if isinstance(weight, torch.Tensor) else None
        if own is None:  # an adapter's, that wraps the weight
            own = next((p.dtype for p in conv_p.parameters() if p.is_floating_point()), loc.dtype)
        with without_autocast(loc.device.type):
            # In float32 at least, where nobody can tell: a half dtype does not resolve neighbouring columns.
            if own != loc.dtype and self._may_read("conv_p", 1, 1, 1):
                weight, bias = conv_p.weight, conv_p.bias
                return F.conv2d(loc, weight.to(loc.dtype), None if bias is None else bias.to(loc.dtype))
            return conv_p(loc.to(own))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # The published module sets dep_conv.bias to None; some copies of it keep and train one.
        bias = state_dict.pop(f"{prefix}dep_conv.bias", None)
        if bias is not None:
            largest = bias.abs().max().item() if bias.numel() else 0.0
            warnings.warn(
                f"ACmix: {prefix}dep_conv.bias (largest magnitude {largest:.3g}) is dropped: "
                "the published module computes without it",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
