"""Puts a compiled library into a wheel, and says in it what it was compiled from."""

import json
import os
import re
import shutil
from pathlib import Path

from build_backend.compile import describe
from build_backend.decide import Facts, Plan
from build_backend.facts import ROOT

from .library import PYTHON, run
from .targets import Target

INFO = "_build_info.json"
# What a wheel's _build_info.json holds for the sentences of lska_ops/_compiled.py.
FROM_SOURCE = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary lska-ops lska-ops"
ANY = (
    "the wheel for any system, py3-none-any, has no compiled library; on Linux with a compiler "
    f"`{FROM_SOURCE}` makes one"
)
NO_CUDA = f"this wheel has no CUDA kernels; where nvcc is, `{FROM_SOURCE}` compiles them"
ON_WINDOWS = "this wheel has no CUDA kernels; on NVIDIA GPUs Triton runs where triton-windows is installed"


def pure_and_source(folder: Path) -> tuple[Path, Path]:
    """The wheel without a library, which holds for every system, and the sdist it was made from."""
    made = folder / "made"
    shutil.rmtree(made, ignore_errors=True)
    environment = {**os.environ, "LSKA_OPS_BUILD": "off"}
    run(*PYTHON, "-m", "build", "--no-isolation", "--outdir", made, ROOT, env=environment)
    sdist, wheel = next(made.glob("*.tar.gz")), next(made.glob("*-py3-none-any.whl"))
    reasons = dict.fromkeys(("cpu", "cuda", "plan"), ANY)
    return repacked(wheel, "py3-none-any", {"parts": [], "reasons": reasons}, folder), sdist


def with_library(pure: Path, target: Target, plan: Plan, facts: Facts, library: Path, folder: Path) -> Path:
    """`pure` with the library in it, as the target's wheel."""
    without = ON_WINDOWS if target.for_windows else NO_CUDA
    info = {
        **describe(plan, facts),
        "reasons": {} if "cuda" in plan.parts else {"cuda": without},
        "bytes": library.stat().st_size,
    }
    return repacked(pure, target.tag, info, folder, library)


def repacked(wheel: Path, tag: str, info: dict, folder: Path, library: Path | None = None) -> Path:
    """A copy of the wheel in `folder` with another tag, _build_info.json and library."""
    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    run(*PYTHON, "-m", "wheel", "unpack", "--dest", unpacked, wheel)
    (root,) = unpacked.iterdir()
    # From source nothing is compiled on Windows, so that no command helps there.
    info = {**info, "wheel": tag, "from_source": None if tag.endswith("win_amd64") else FROM_SOURCE}
    (root / "lska_ops" / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    if library:
        shutil.copyfile(library, root / "lska_ops" / library.name)
    (file,) = root.glob("*.dist-info/WHEEL")
    text = re.sub(r"(?m)^Tag: .*$", f"Tag: {tag}", file.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^Root-Is-Purelib: .*$", f"Root-Is-Purelib: {str(library is None).lower()}", text)
    file.write_text(text, encoding="utf-8")
    run(*PYTHON, "-m", "wheel", "pack", "--dest", folder, root)
    return next(folder.glob(f"*-{tag}.whl"))
