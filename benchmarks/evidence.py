"""Whether the CUDA kernels of this tree are those that ran on a GPU: `python benchmarks/evidence.py`.

`make gpu` leaves benchmarks/results/<gpu>/gpu.json with a hash of what nvcc compiles. Needs no torch.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from build_backend.compile import NVCC_FLAGS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
FILE = "gpu.json"


def cuda_sources(root=ROOT):
    """csrc/<op>/cuda*.cu and all that it includes of this tree."""
    found, left = set(), sorted((root / "csrc").glob("*/cuda*.cu"))
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        names = re.findall(r'(?m)^\s*#\s*include\s+"(csrc/[^"]+)"', file.read_text(encoding="utf-8"))
        left += [root / name for name in names]
    return sorted(found)


def cuda_hash(root=ROOT):
    digest = hashlib.sha256(NVCC_FLAGS.encode())
    for file in cuda_sources(root):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def read_all(results=RESULTS):
    """The evidence of every GPU, oldest first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob(f"*/{FILE}"))]
    return sorted(found, key=lambda data: data["environment"]["date"])


def tests_of(data):
    return data["stages"].get("tests", {"status": "not run"})


def sentence(results=RESULTS, root=ROOT):
    """What is known of these kernels on GPUs, in one line."""
    ran = [data for data in read_all(results) if tests_of(data).get("passed")]
    if not ran:
        return "cuda kernels have never run on a GPU; `make gpu` runs them"
    now, newest = cuda_hash(root), ran[-1]
    same = [data for data in ran if data["environment"]["cuda_hash"] == now]
    if not same:
        return f"cuda kernels changed since the evidence of {_of(newest)}; `make gpu` makes it anew"
    latest = same[-1]
    if tests_of(latest)["status"] != "ok":
        return f"cuda kernels failed their tests on a GPU: evidence of {_of(latest)}"
    return f"cuda kernels are those of the evidence of {_of(latest)}"


def _of(data):
    facts = data["environment"]
    return f"{facts['date'][:10]} ({facts['device']}, commit {facts['commit']})"


def measured_rows(before, data):
    """{row: hash of the kernels it was measured with}, the runs before this one included."""
    rows = data["stages"].get("benchmarks", {}).get("rows", {})
    return before | {row: data["environment"]["cuda_hash"] for row, status in rows.items() if status == "ok"}


def coverage(data):
    """How much of the benchmark was measured on this GPU, for the README; None where none of it was."""
    measured, facts = data.get("measured", {}), data["environment"]
    if not measured:
        return None
    every = max(len(measured), len(data["stages"].get("benchmarks", {}).get("rows", {})))
    older = sum(kernels != facts["cuda_hash"] for kernels in measured.values())
    return (
        f"{facts['device']}, {facts['date'][:10]}: {len(measured)} of {every} rows measured"
        + (f", {older} of them with earlier kernels" if older else "")
        + ("" if len(measured) == every else f"; `{FILE}` says why not the others")
        + "."
    )


if __name__ == "__main__":
    print(sentence())
