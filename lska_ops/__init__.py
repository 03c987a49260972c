"""Fused LSKA and ACmix for PyTorch and YOLO; ``python -m lska_ops doctor`` tells what runs here."""

from ._backends import explain
from .acmix import ACmix, acmix, local_attention, shift_aggregate
from .lska import LKA, LSKA, LKATrivial, LSKATrivial, lska
from .yolo import register, swap, unregister

__version__ = "0.1.0"

__all__ = [
    "ACmix",
    "LKA",
    "LKATrivial",
    "LSKA",
    "LSKATrivial",
    "acmix",
    "explain",
    "local_attention",
    "lska",
    "register",
    "shift_aggregate",
    "swap",
    "unregister",
]


def __getattr__(name):
    # Built from ultralytics' own SPPF, so it is imported when it is asked for; everything else needs torch
    # alone.
    if name == "SPPF_LSKA":
        try:
            from .yolo.blocks import SPPF_LSKA
        except ImportError as error:  # hasattr() and the like ask; only an AttributeError answers them
            raise AttributeError(
                f'SPPF_LSKA: ultralytics cannot be imported ({error}); pip install "lska_ops[yolo]"'
            ) from error
        return SPPF_LSKA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), "SPPF_LSKA"})
