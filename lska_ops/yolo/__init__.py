"""Everything that knows ultralytics. Importing this package imports nothing of it."""

from .registration import register, unregister

__all__ = ["register", "unregister"]
