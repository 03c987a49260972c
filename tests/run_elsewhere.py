"""Loads a library that was built in another environment, and solves random problems of both ops with it.

python tests/run_elsewhere.py FOLDER, which holds _C.so and _build_info.json
"""

import importlib.util
import sys
from pathlib import Path

import torch

FORWARD_AND_BACKWARD = 60  # problems of each op


def main(folder):
    package = Path(importlib.util.find_spec("lska_ops").origin).parent
    spec = importlib.util.spec_from_file_location("lska_ops._compiled", package / "_compiled.py")
    compiled = importlib.util.module_from_spec(spec)
    # The module loads the library beside it when it runs; the one to try is loaded in its place.
    source = (package / "_compiled.py").read_text(encoding="utf-8").replace("problem = load()", "")
    exec(compile(source, spec.origin, "exec"), compiled.__dict__)
    compiled.problem = compiled.load(Path(folder))
    assert compiled.problem is None, compiled.problem
    sys.modules["lska_ops._compiled"] = compiled

    from lska_ops.testing.problems import OPS, random_problem, ratios, solve

    for op in OPS:
        for seed in range(FORWARD_AND_BACKWARD):
            problem = random_problem(op, seed)
            found = ratios(problem, solve(problem, "cpu"))
            assert max(found.values()) <= 1, (found, problem.repro("cpu"))
    print(
        f"{folder}/_C.so in torch {torch.__version__}: {FORWARD_AND_BACKWARD} problems of each op within the bound"
    )


if __name__ == "__main__":
    main(sys.argv[1])
