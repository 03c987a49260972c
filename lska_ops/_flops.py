"""FLOPs of our ops for torch.utils.flop_counter: what it counts for the convolutions that they stand for.

torch's own formula counts them, so that the figure is the reference's in every version, with every gradient
computed, as fused backward passes do. The products of ACmix's attention are elementwise in the reference, and
FlopCounterMode counts no such products; nor do we here (ultralytics' GFLOPs have them: yolo/gflops.py).

Formulas are handed over when a call finds the counter imported: it imports Triton, and lska_ops does not
without need.
"""

import math
import sys

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_COUNTER = "torch.utils.flop_counter"
_formulas = {}  # by op


def convolution(x, weight, y):
    """Of ``conv2d(x, weight)``, from the shapes of both and of the result."""
    return _torchs().conv_flop_count(list(x), list(weight), list(y), transposed=False)


def convolution_backward(x, weight, y, of_x=True):
    """Of the gradients of weight and, with `of_x`, of x."""

    def turned(shape):  # a weight's gradient is the convolution of x by grad_y, channels as the batch
        return [shape[1], shape[0], *shape[2:]]

    count = _torchs().conv_flop_count
    flops = count(turned(x), turned(y), turned(weight), transposed=False)
    return flops + (count(list(y), list(weight), list(x), transposed=True) if of_x else 0)


def register(op, formula):
    """`op` is one of ours, as in "lska_fwd_cpu"; `formula` gets its arguments, shapes in place of tensors."""
    _formulas[getattr(torch.ops.lska_ops, op)] = _of_shapes(formula)
    if _COUNTER in sys.modules:
        _add_to(_torchs().flop_registry)


def teach():
    """Hands the formulas to the counter, and to those that count already, which have copied its list."""
    if _COUNTER not in sys.modules:
        return
    _add_to(_torchs().flop_registry)
    if torch._C._len_torch_dispatch_stack():
        for mode in _get_current_dispatch_mode_stack():
            _add_to(getattr(getattr(mode, "counter", mode), "flop_registry", None))


def _add_to(registry):
    if registry is not None and not registry.keys() >= _formulas.keys():
        for op, formula in _formulas.items():
            registry.setdefault(op, formula)


def _torchs():
    return sys.modules[_COUNTER]


def _of_shapes(formula):
    def count(*given, **_):
        return formula(*(a.shape if isinstance(a, torch.Tensor) else a for a in given))

    return count


# ACmix's projections have it in their backward.
_formulas[torch.ops.aten.addbmm] = _of_shapes(lambda _, a, b: 2 * math.prod(a) * b[2])
