"""What a machine with a GPU is, and what it lacks for `make gpu`: JSON on the last line of stdout."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from build_backend.decide import FIRST_STABLE, release  # noqa: E402

QUIET = 0.1  # of the GPU's time that others use, above which no result is publishable
SMI = (
    "name", "driver_version", "clocks.current.sm", "clocks.current.memory", "clocks.max.sm",
    "clocks.max.memory", "clocks_throttle_reasons.active", "temperature.gpu", "power.draw",
    "utilization.gpu", "memory.used",
)  # fmt: skip


def nvidia_smi(fields=SMI):
    """{field: as nvidia-smi says it} of the first GPU that it lists, or None where it is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    found = {}
    for field in fields:  # one by one: a single name that this version does not know would take all with it
        asked = [tool, f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
        found[field] = (
            done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
        )
    return found


def busy(smi):
    """How much of the GPU others use, 0 to 1; None where nobody says."""
    said = (smi or {}).get("utilization.gpu") or ""
    number = said.removesuffix("%").strip()
    return int(number) / 100 if number.isdigit() else None


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(torch, build):
    """What has to be there and is not, in one line each."""
    if torch is None:
        yield "torch was not found; give a Python that has it: make gpu PYTHON=..."
        return
    if release(torch.__version__) < FIRST_STABLE:
        yield f"torch is {torch.__version__}; needs {'.'.join(map(str, FIRST_STABLE))} or newer"
    if build.compiler_problem:
        yield build.compiler_problem
    if build.nvcc is None:
        yield "nvcc was not found; install the CUDA toolkit, or put it on PATH"
    if build.ninja is None:
        yield "ninja was not found; install it"
    for name in ("numpy", "pytest"):
        if version(name) is None:
            yield f"{name} was not found; install it"


def collect():
    from build_backend.compile import source_hash
    from build_backend.facts import collect as build_facts

    build = build_facts()
    try:
        import torch
    except ImportError:
        torch = None
    facts = {
        "missing": list(missing(torch, build)),
        "nvcc": "{}.{}".format(*build.nvcc_version), "compiler": build.compiler_version,
        "plan": build.pybind11 is not None and build.python_headers is not None,
        "compute-sanitizer": shutil.which("compute-sanitizer"),
        "triton": version("triton"), "pytest": version("pytest"), "numpy": version("numpy"),
        "source_hash": source_hash(),
    }  # fmt: skip
    if torch is None:
        return facts
    import report
    from evidence import cuda_hash

    smi = nvidia_smi()
    gpu = torch.cuda.is_available()
    load = busy(smi)
    line = report.environment(torch.device("cuda" if gpu else "cpu"), load or 0.0, QUIET)
    if load is None:  # who cannot tell does not publish
        line |= {"load": "unknown", "quiet": "no"}
    facts |= line | {
        "line": line, "slug": report.slug(line), "gpu": gpu, "cuda_hash": cuda_hash(),
        "nvidia_smi": smi, "cuda_runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "why_no_gpu": None if gpu else why_no_gpu(torch),
    }  # fmt: skip
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "capability": list(torch.cuda.get_device_capability()), "gpus": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory, "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
        }  # fmt: skip
    return facts


def why_no_gpu(torch):
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        return " ".join(str(error).split())
    return "torch.cuda.is_available() is False"


if __name__ == "__main__":
    print(json.dumps(collect()))
