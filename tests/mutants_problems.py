"""The problems that tests/mutants.py solves with one build of the CPU kernels, in a process of its own.

    python mutants_problems.py OP FOLDER [LAST]

So many, and then those that take a path of the kernels which few before them took; none after the one of number LAST.
Prints each one's number before it is solved.
"""

import sys
from collections import Counter

import paths
import torch

from lska_ops import _compiled
from lska_ops.testing.lska import NAMES
from lska_ops.testing.problems import random_problem, ratios, solve

FIRST, PROBLEMS, MOST = 200_000, 60, 2000
EACH = 3  # problems on every path
VECTOR_BYTES, THREADS = 32, 2


def taken(problem):
    if problem.op == "lska":
        return paths.lska_cpu(problem, VECTOR_BYTES, backward=True)
    return paths.acmix_cpu(problem, VECTOR_BYTES, THREADS, backward=True)


def problems(op):
    """Which to solve, with their numbers, so that every path of the op that some problem takes is taken by EACH at least."""
    seen = Counter()
    for number in range(1, MOST + 1):
        problem = random_problem(op, FIRST + number)
        of = taken(problem)
        if number <= PROBLEMS or any(seen[path] < EACH for path in of):
            seen.update(of)
            yield number, problem
        elif min(seen[path] for path in paths.of_cpu(op, VECTOR_BYTES)) >= EACH:
            return
    rare = [path for path in paths.of_cpu(op, VECTOR_BYTES) if seen[path] < EACH]
    sys.exit(f"{MOST} problems of {op} seldom take: {', '.join(rare)}")


def cascade(problem, dtype):
    """The cascade by itself, which no public function calls."""
    tensors = {n: None if t is None else t.to(dtype) for n, t in problem.tensors.items()}
    parts = [tensors[n] for name in NAMES[:4] for n in (name, f"{name}_bias")]
    return torch.ops.lska_ops.lska_cascade_fwd_cpu(tensors["x"], *parts, problem.options["dilation"])


def wrong(problem):
    if not max(ratios(problem, solve(problem, "cpu")).values()) <= 1:
        return True
    if problem.op != "lska":
        return False
    # Its result is a block of its own, whose end is marked: in a whole call others lie behind it.
    of_dtype = cascade(problem, problem.dtype)
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return False
    return not torch.equal(of_dtype, cascade(problem, torch.float32).to(problem.dtype))


def main(op, folder, last=MOST):
    assert _compiled.problem is None and _compiled.__file__.startswith(folder), _compiled.problem
    torch.ops.lska_ops.set_cpu_isa("avx2")
    torch.set_num_threads(THREADS)
    for number, problem in problems(op):
        if number > int(last):
            return
        print(number, flush=True)
        if wrong(problem):
            sys.exit("wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
