"""The package beside a library that was compiled for a test: what tests/sanitize.py and tests/mutants.py run."""

import json
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package(folder: Path, library: Path) -> dict[str, str]:
    """Copies lska_ops with `library` in it to `folder`; returns the environment in which Python imports that copy."""
    target = folder / "lska_ops"
    shutil.copytree(
        ROOT / "lska_ops", target, ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True
    )
    (target / "_build_info.json").write_text(json.dumps({"parts": ["cpu"], "reasons": {}}))
    shutil.copyfile(library, target / "_C.so")
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
