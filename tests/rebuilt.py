"""The package beside a library that was compiled for a test: what tests/sanitize.py, tests/mutants.py and benchmarks/gpu.py run."""

import json
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package(folder: Path, library: Path, info: dict | None = None) -> dict[str, str]:
    """Copies lska_ops with `library` in it to `folder`; returns the environment in which Python imports that copy.

    `info` is what its _build_info.json says. What was compiled beside the library, _plan, comes along.
    """
    target = folder / "lska_ops"
    shutil.copytree(
        ROOT / "lska_ops", target, ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True
    )
    (target / "_build_info.json").write_text(
        json.dumps(info or {"parts": ["cpu"], "reasons": {}}), encoding="utf-8"
    )
    for file in (library, *library.parent.glob("_plan*.so")):
        shutil.copyfile(file, target / ("_C.so" if file == library else file.name))
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
