"""``python -m lska_ops doctor``: versions, devices, backends, and what would help."""

import importlib.metadata
import os
import platform
import sys

import torch

from . import _backends, _compiled, _triton
from .yolo.startup import status

TESTED_ULTRALYTICS = "8.3.0 to 8.4.190"
OLDEST_TORCH = "2.3"


def doctor():
    """Prints what runs on this machine.

    Returns:
        int: 0 when a fused backend is usable on some device here, 1 when only the reference is.
    """
    asked = os.environ.pop("LSKA_OPS_BACKEND", None)  # what would run without it is what has to be known
    try:
        return _doctor(asked)
    finally:
        if asked is not None:
            os.environ["LSKA_OPS_BACKEND"] = asked


def _doctor(asked):
    print(f"lska_ops     {_version('lska_ops')}")
    print(f"python       {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"torch        {torch.__version__} (oldest that works: {OLDEST_TORCH})")
    print(f"ultralytics  {_version('ultralytics')} (tested: {TESTED_ULTRALYTICS})")
    print(f"yolo hook    {status()}")
    print(f"compiled     {_compiled_parts()}")
    print(f"triton       {_triton_version()}")
    if asked in _backends.ACCEPTED_NAMES:
        print(f"asked for    {asked}, by LSKA_OPS_BACKEND; unset it to let every call choose, as below")
    elif asked:
        names = ", ".join(_backends.ACCEPTED_NAMES)
        print(f"asked for    {asked!r}, by LSKA_OPS_BACKEND, which is no backend; expected one of {names}")
    devices = [torch.device("cpu")]
    print(f"cpu          {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        devices.append(torch.device("cuda", i))
        print(f"cuda:{i}       {torch.cuda.get_device_name(i)}")
    fused = False
    for device in devices:
        x = torch.empty(1, 8, 8, 8, device=device)
        for ops in _by_backends():
            print(f"\n{', '.join(ops)} on {device}")
            print("  " + _backends.explain(ops[0], x).replace("\n", "\n  "))
            fused = fused or _backends.choose(ops[0], "auto", x) != "reference"
    if asked and asked not in _backends.ACCEPTED_NAMES:
        print("\nNo call works while LSKA_OPS_BACKEND names no backend.")
        return 1
    if fused:
        print("\nA fused backend is in use.")
        return 0
    print(
        "\nOnly the reference (plain PyTorch) is usable: results are right, nothing is faster. "
        "The sentences behind `no` say what would help."
    )
    return 1


def _by_backends():
    """Lists of ops that the same backends answer for."""
    found = {}
    for op, reasons in _backends.WHY_NOT.items():
        found.setdefault(id(reasons), []).append(op)
    return list(found.values())


def _compiled_parts():
    """What `pip install` compiled, and in one sentence why not the rest."""
    if _compiled.problem:
        return f"no: {_compiled.problem}"
    info = _compiled.build_info()
    reasons = [f"; no {part}: {reason}" for part, reason in info["reasons"].items()]
    archs = ", ".join(f"sm_{arch}" for arch in info.get("cuda_archs", ()))
    parts = [f"{part} ({archs})" if part == "cuda" else part for part in info["parts"]]
    return f"{' and '.join(parts)}, by {info['compiler']}{''.join(reasons)}"


def _triton_version():
    """Of the Triton that is installed, or in one sentence why it is of no use."""
    if problem := _triton.problem():
        return f"no: {problem}"
    return _triton.mismatch() or sys.modules["triton"].__version__


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return (
            'not installed; pip install "lska_ops[yolo]"'
            if distribution == "ultralytics"
            else "not installed"
        )
