"""Runs in an environment where a wheel is installed: what a user has, and 100 random problems of each op.

python inside.py [problems of each op, 100] [instruction sets, the best alone]: one line of JSON.
"""

import json
import platform
import sys
import time


def main(problems: int = 100, *isas: str) -> dict:
    start = time.monotonic()
    import torch

    import lska_ops
    from lska_ops import _compiled
    from lska_ops.testing.problems import OPS, random_problem, ratios, solve

    said = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "file": lska_ops.__file__,
        "problem": _compiled.problem,
        "isa": None,
        "refused": refused(torch, lska_ops),
        "wrong": [],
        "problems": 0,
    }
    backend = "reference" if _compiled.problem else "cpu"
    if backend == "cpu":
        said["isa"] = torch.ops.lska_ops.set_cpu_isa("")
    for isa in isas or [said["isa"]]:
        if isa:
            torch.ops.lska_ops.set_cpu_isa(isa)
        for op in OPS:
            for seed in range(problems):
                problem = random_problem(op, seed)
                worst = max(ratios(problem, solve(problem, backend), backend).values())
                said["problems"] += 1
                if not worst <= 1:
                    said["wrong"].append(f"{worst} times the bound, {isa}: {problem.repro(backend)}")
    said["seconds"] = round(time.monotonic() - start, 1)
    return said


def refused(torch, lska_ops) -> list[str]:
    """The answers to a bad call of the function and, where there is one, of the library itself."""
    x, good, bad = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 1, 3), torch.ones(4, 1, 1, 4)
    said = []
    try:
        lska_ops.lska(x, (bad, None), (bad, None), None, None, (torch.ones(4, 4, 1, 1), None), dilation=1)
    except ValueError as error:
        said.append(f"ValueError: {error}")
    if hasattr(torch.ops.lska_ops, "lska_cascade_fwd_cpu"):
        try:
            torch.ops.lska_ops.lska_cascade_fwd_cpu(x, good, None, bad, None, None, None, None, None, 1)
        except RuntimeError as error:
            said.append(f"RuntimeError: {error}".partition("\n")[0])
    return said


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:2]), *sys.argv[2:])))
