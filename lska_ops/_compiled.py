"""Loads the compiled library, once, when imported; remembers in one sentence why it could not.

>>> from lska_ops import _compiled
>>> _compiled.problem  # None: torch.ops.lska_ops has the compiled ops
"""

import json
from pathlib import Path

import torch

OLDEST_TORCH = (2, 11)
_FOLDER = Path(__file__).resolve().parent


def build_info(folder: Path = _FOLDER) -> dict | None:
    """What was compiled when lska_ops was installed, and why the rest was not; None if it was never built."""
    file = folder / "_build_info.json"
    return json.loads(file.read_text()) if file.is_file() else None


def load(folder: Path = _FOLDER, torch_version: str = torch.__version__) -> str | None:
    """Loads the library in `folder`; returns what is so and what would help, or None if it is loaded."""
    try:
        info = build_info(folder)
    except (OSError, ValueError) as error:
        return f"{folder / '_build_info.json'} cannot be read ({error}); reinstall lska_ops"
    if info is None:
        return (
            f"{folder} was never built; install it with `pip install .` or, to work on it, `pip install -e .`"
        )
    if "cpu" not in info["parts"]:
        return info["reasons"]["cpu"]
    if tuple(int(n) for n in torch_version.split(".")[:2]) < OLDEST_TORCH:
        return f"torch is {torch_version} and the compiled library needs 2.11 or newer; upgrade torch"
    library = folder / "_C.so"
    if not library.is_file():
        return f"{library} is missing, though it was built; reinstall lska_ops"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library} cannot be loaded in torch {torch_version} ({_line(error)}); reinstall lska_ops"
    return None


def cuda_problem(folder: Path = _FOLDER) -> str | None:
    """Why there are no CUDA kernels in the library, or None."""
    if problem:
        return f"the compiled library is missing ({problem})"
    info = build_info(folder)
    if "cuda" in info["parts"]:
        return None
    return f"the compiled library has no CUDA part ({info['reasons'].get('cuda', 'it was left out')})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


problem = load()
