"""The base class of our modules: what PyTorch and ultralytics do to a module from the outside still works."""

import copy
import sys

from torch import nn

from ._backends import exporting


class FusedModule(nn.Module):
    """A module whose forward reads the parameters of its submodules without calling them."""

    def _must_call_submodules(self):
        # Hooks count FLOPs (thop), prune and normalise weights; a replaced submodule (LoRA, quantised) has
        # its own forward; and in an exported graph a submodule's padding is a constant.
        return exporting() or any(
            type(m) is not nn.Conv2d or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
            for m in self.children()
        )

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
