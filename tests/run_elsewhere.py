"""Solves random problems of both ops with a library that another environment built.

python tests/run_elsewhere.py LIBRARY [problems of each op, 60]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rebuilt import package

RUN = """
import sys, torch
from lska_ops import _compiled
from lska_ops.testing.problems import OPS, random_problem, ratios, solve
assert _compiled.problem is None, _compiled.problem
for op in OPS:
    for seed in range(int(sys.argv[1])):
        problem = random_problem(op, seed)
        worst = max(ratios(problem, solve(problem, "cpu")).values())
        assert worst <= 1, (worst, problem.repro("cpu"))
print(f"in torch {torch.__version__}: {sys.argv[1]} problems of each op within the bound")
"""


def main(library, problems="60"):
    with tempfile.TemporaryDirectory(prefix="elsewhere_") as folder:
        environment = package(Path(folder), Path(library))
        return subprocess.run([sys.executable, "-c", RUN, problems], env=environment, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
