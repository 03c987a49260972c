"""Teaches thop, by which ultralytics counts GFLOPs, the products of ACmix's attention.

thop counts the convolutions of a module by itself, as they are its submodules. Per pixel and head a query
meets K*K keys of D dims, and as many weights meet values: 2 K*K C multiplications a pixel.
"""

import importlib

import torch
from torch import nn


def add_rule():
    """Adds it; returns what takes it back, or None where thop is missing or has one by somebody else."""
    from ..acmix import ACmix

    try:
        thop = importlib.import_module("thop.profile")  # thop.profile is also a function
    except ImportError:
        return None
    rules = thop.register_hooks
    if ACmix in rules:
        return None
    whole = _stands_for_its_submodules(thop.profile)

    def count(m, args, y):
        m.total_ops += 2 * m.kernel_att**2 * y.numel()
        if whole:
            m.total_ops += sum(child.total_ops for child in m.children())

    rules[ACmix] = count
    return lambda: rules.pop(ACmix) if rules.get(ACmix) is count else None


def _stands_for_its_submodules(profile):
    """Whether a module's rule replaces those of its submodules, as up to thop 2.1.2; later they are added."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.inner(x)

    with torch.device("cpu"):
        macs, *_ = profile(
            nn.Sequential(Outer()),
            (torch.zeros(1, 1, 1, 1),),
            {Outer: lambda m, args, y: None},
            verbose=False,
        )
    return macs == 0
