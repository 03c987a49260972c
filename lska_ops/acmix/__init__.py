from .halves import local_attention, shift_aggregate
from .module import ACmix
from .op import acmix

__all__ = ["ACmix", "acmix", "local_attention", "shift_aggregate"]
