"""Copied beside the installed packages by ``lska-ops enable``: registers as soon as ultralytics is imported.

Every start of Python runs this file, so it imports nothing heavy, and it never breaks somebody's ultralytics.
"""

import importlib.util
import sys

TARGET = "ultralytics.nn"  # complete when its own import is done, its parser included


class Finder:
    busy = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != TARGET or cls.busy:
            return None
        cls.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            cls.busy = False
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            try:
                import lska_ops

                lska_ops.register()
            except Exception as error:  # said, not raised: this process may not care for us
                print(f"lska_ops: not registered: {error!r}; {way_out(error)}", file=sys.stderr)

        spec.loader.exec_module = exec_module
        return spec


def way_out(error):
    """How to be rid of this file: its command goes with the package."""
    if isinstance(error, ModuleNotFoundError) and error.name == "lska_ops":
        return f"it is not installed, so delete {__file__} and {__file__.removesuffix('py')}pth"
    return f"`lska-ops disable` removes {__file__}, which wanted it"


sys.meta_path.insert(0, Finder)
