from .module import LKA, LSKA, LKATrivial, LSKATrivial
from .op import lska

__all__ = ["LKA", "LKATrivial", "LSKA", "LSKATrivial", "lska"]
