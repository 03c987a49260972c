"""Everything that knows ultralytics. Importing this package imports nothing of it."""

from .insertion import insert, remove
from .model_file import InsertError
from .registration import register, unregister

__all__ = ["InsertError", "insert", "register", "remove", "unregister"]
