from .module import ACmix
from .op import acmix

__all__ = ["ACmix", "acmix"]
