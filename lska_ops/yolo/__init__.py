"""Everything that knows ultralytics. Importing this package imports nothing of it."""

from .checkpoints import CheckpointError, convert, swap
from .insertion import insert, remove
from .model_file import InsertError
from .registration import register, unregister

__all__ = ["CheckpointError", "InsertError", "convert", "insert", "register", "remove", "swap", "unregister"]
