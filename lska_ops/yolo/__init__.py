"""Everything that knows ultralytics. Importing this package imports nothing of it."""

from .register import register, unregister

__all__ = ["register", "unregister"]
