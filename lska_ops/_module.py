"""The base class of our modules: what PyTorch and ultralytics do to a module from the outside still works.

A fused forward reads the parameters of the submodules without calling them. It may do so where nobody could
tell the difference: :meth:`FusedModule._weights_to_fuse` is the one rule for when that is, and
`tests/test_toolbox.py` the table of tools that rely on it.
"""

import copy
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn

from ._calls import check_channels
from ._watchers import PLAIN_TENSORS, watched

# Not nn.Conv2d, which a quantiser may have replaced before we were imported.
_Conv2d = nn.modules.conv.Conv2d
# Where torch's code is, by two functions that nobody patches.
_FILES = {f.__code__.co_filename for f in (nn.modules.conv._ConvNd.extra_repr, nn.Module.extra_repr)}
# Whether torch.compile understands a question about a module's own attributes: torch 2.3 does not.
_ASKS_FOR_PATCHES = hasattr(torch.compiler, "set_stance")
_own = None  # what a call of a convolution runs through, as torch has it; found when it is first unpatched


def _convolutions_are_torchs_own():
    """Nobody has replaced or patched the class, what a call of it runs through, or the function behind."""
    global _own
    now = (
        nn.Conv2d, _Conv2d.__call__, _Conv2d._call_impl, _Conv2d.forward, _Conv2d._conv_forward, F.conv2d,
    )  # fmt: skip
    if _own is None and _are_by_torch(*now):
        _own = now
    return now == _own


def _are_by_torch(cls, *functions):
    """By where their code is: a wrapper may have copied names."""
    *methods, conv2d = functions
    files = {getattr(getattr(f, "__code__", None), "co_filename", None) for f in methods}
    return (
        (cls.__module__, cls.__qualname__) == ("torch.nn.modules.conv", "Conv2d")
        and files <= _FILES
        and isinstance(conv2d, types.BuiltinFunctionType)
    )


# torch.compile asks while it traces.
_convolutions_are_torchs_own._dynamo_marked_constant = True


def _has_any_global_hook():
    hooks = nn.modules.module  # where register_module_forward_hook and the like keep them, in every version
    return bool(
        hooks._global_forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_backward_pre_hooks
        or hooks._global_backward_hooks
    )


def _own_parameters(m):
    """m's parameters by name, where weight and bias are parameters; or None."""
    own = m._parameters
    if "weight" not in own and "_former_parameters" in m.__dict__:  # a replica that nn.DataParallel made
        own = {**own, **m._former_parameters}
    elif _is_patched(m, "weight", "bias"):  # which hide the parameters
        return None
    return own if "weight" in own and "bias" in own else None


def _is_patched(m, *names):
    """Whether m has attributes of its own by these names, where torch.compile understands the question."""
    if _ASKS_FOR_PATCHES or not torch.compiler.is_compiling():
        for name in names:
            if name in m.__dict__:
                return True
    return False


def _is_plain(m, own, stride, dilation, groups):
    """Whether calling m, whose parameters are `own`, does what its published convolution does and no more."""
    if type(m) is not _Conv2d or own is None:
        return False
    if m._forward_pre_hooks or m._forward_hooks or m._backward_pre_hooks or m._backward_hooks:
        return False
    if _is_patched(m, "forward", "_conv_forward", "_call_impl"):
        return False
    weight, bias = own["weight"], own["bias"]
    if type(weight) not in PLAIN_TENSORS or (bias is not None and type(bias) not in PLAIN_TENSORS):
        return False
    if weight.dim() != 4:  # emptied or packed by whoever shards or offloads it
        return False
    channels, _, height, width = weight.shape
    return (
        m.stride == (stride, stride)
        and m.dilation == (dilation, dilation)
        and m.padding == (height // 2 * dilation, width // 2 * dilation)
        and m.padding_mode == "zeros"
        and m.groups == (groups or channels)
    )


class FusedModule(nn.Module):
    """A module whose forward can read the parameters of its convolutions without calling them."""

    def _published(self):
        """(name, stride, dilation, groups) of each convolution that the fused path stands for, in its order;
        groups is None for one channel each; the padding keeps a map's size. None: there is no fused path."""
        return None

    def _may_read(self, name, stride, dilation, groups):
        """Whether nobody could tell that a convolution is not called but its parameters read."""
        m = self._modules[name]
        patched = not _convolutions_are_torchs_own() or _has_any_global_hook()
        return not patched and _is_plain(m, _own_parameters(m), stride, dilation, groups)

    def _weights_to_fuse(self, x):
        """(weight, bias) of each convolution; or None where the submodules have to be called.

        That is so where somebody follows the call (`_watchers.py`); where torch's convolution was replaced or
        patched; where a submodule has hooks (they count FLOPs, prune, normalise weights), was replaced or
        patched (LoRA, quantised, offloaded), has a parametrization or tensors in its parameters' place; and
        where it has other than the published values of attributes that the fused path does not read.

        Raises:
            TypeError, ValueError: x is no map of as many channels as the first convolution takes.
        """
        if watched(x):
            return None
        modules = self._modules
        channels = getattr(next(iter(modules.values())), "in_channels", None)  # an adapter may not say
        if channels is not None:
            check_channels(type(self).__name__, x, channels)
        published = self._published()
        if published is None or not _convolutions_are_torchs_own() or _has_any_global_hook():
            return None
        weights = []
        for name, stride, dilation, groups in published:
            m = modules[name]
            own = _own_parameters(m)
            if not _is_plain(m, own, stride, dilation, groups):
                return None
            weights.append((own["weight"], own["bias"]))
        return weights

    def __setstate__(self, state):
        # A checkpoint opened in a process that has not imported lska_ops: ultralytics will want to parse its
        # YAML.
        super().__setstate__(state)
        if "ultralytics.nn.tasks" in sys.modules:
            from .yolo.registration import register_after_unpickling

            register_after_unpickling()

    def __deepcopy__(self, memo):
        # As copy does it but for __setstate__: a copy (the EMA of a training makes one) is no checkpoint.
        twin = memo[id(self)] = self.__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __copy__(self):
        twin = self.__new__(type(self))
        twin.__dict__ = self.__dict__.copy()
        return twin
