"""The base class of our modules: what PyTorch and ultralytics do to a module from the outside still works."""

import copy
import sys

import torch
from torch import nn


def _has_any_global_hook():
    hooks = nn.modules.module  # where register_module_forward_hook and the like keep them, in every version
    return bool(
        hooks._global_forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_backward_pre_hooks
        or hooks._global_backward_hooks
    )


class FusedModule(nn.Module):
    """A module whose forward reads the parameters of its submodules without calling them."""

    def _must_call_submodules(self):
        # Hooks count FLOPs (thop), prune and normalise weights; a replaced or patched submodule (LoRA,
        # quantised, offloaded) has a forward of its own. (So has one in an exported graph, where its padding
        # is a constant: forward asks that first.)
        if _has_any_global_hook():
            return True
        patchable = not torch.compiler.is_compiling()  # torch 2.3 cannot compile this question
        for m in self._modules.values():
            if (
                type(m) is not nn.Conv2d
                or m._forward_pre_hooks
                or m._forward_hooks
                or m._backward_pre_hooks
                or m._backward_hooks
                or m.padding_mode != "zeros"
                or (patchable and "forward" in m.__dict__)
                or "weight" not in m._parameters  # put in its place as a plain tensor
                or "bias" not in m._parameters
            ):
                return True
        return False

    @staticmethod
    def _weights(convolutions):
        """(weight, bias) of each, past nn.Module's own attribute search, which takes longer than a check."""
        return [(own["weight"], own["bias"]) for own in [m._parameters for m in convolutions]]

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
