"""Command lines that know our names: ``lska-ops yolo``, and the opt-in hook for plain ``yolo`` and tune()."""

import sysconfig
from pathlib import Path

_HOOK = Path(__file__).with_name("hook.py")
_NAME = "_lska_ops_hook"


def yolo():
    """ultralytics' own command, on ``sys.argv``."""
    from ultralytics.cfg import entrypoint

    entrypoint()


def _files(folder=None):
    """(the line that Python runs at its start, the module it imports) of an environment."""
    folder = Path(folder or sysconfig.get_path("purelib"))
    return folder / f"{_NAME}.pth", folder / f"{_NAME}.py"


def enable():
    """Installs the hook for this Python environment; again, it renews it.

    Returns:
        Path: the file that turns it on.

    Raises:
        OSError: the environment's folder cannot be written.
    """
    line, module = _files()
    module.write_bytes(_HOOK.read_bytes())
    line.write_text(f"import {_NAME}\n", encoding="utf-8")  # last: Python must find what it imports
    return line


def disable():
    """Removes the hook.

    Returns:
        list of Path: the files that were there.

    Raises:
        OSError: they cannot be removed.
    """
    there = [path for path in _files() if path.exists()]
    for path in there:
        path.unlink()
    return there


def status():
    """One line on the hook of this environment."""
    line, module = _files()
    if not line.exists():
        return "off; `lska-ops enable` lets plain `yolo`, tune() and all they start know our names"
    if not module.exists() or module.read_bytes() != _HOOK.read_bytes():
        return f"on, of another version ({line}); `lska-ops enable` renews it"
    return f"on ({line}); `lska-ops disable` removes it"
