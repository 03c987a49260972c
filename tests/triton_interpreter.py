"""Solves random problems by Triton's interpreter, each kernel between guard pages; tests/test_triton.py runs it.

    python tests/triton_interpreter.py OP PASS FIRST COUNT

PASS is forward or backward. Prints each problem's command before it is solved, so that after a crash the last
line says which it was. The exit status is 1 where an answer is wrong.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys  # noqa: E402

import torch  # noqa: E402
import triton_guard  # noqa: E402

from lska_ops import _triton  # noqa: E402
from lska_ops.testing.problems import random_problem, ratios, solve  # noqa: E402

MOST_PLANES, MOST_PIXELS = 4, 150  # a program takes 20 ms and more here
REPEATED = 5  # every so many are solved twice


def small(op, first):
    """Problems that the interpreter solves quickly, in the dtypes that the kernels take."""
    seed = first
    while True:
        problem = random_problem(op, seed)
        B, C, H, W = next(iter(problem.tensors.values())).shape
        if problem.dtype != torch.float64 and B * C <= MOST_PLANES and H * W <= MOST_PIXELS:
            yield problem
        seed += 1


def wrong(problem, backward, again):
    """What is wrong with the answers, or None."""
    kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
    answers = solve(problem, "triton", backward)
    found = ratios(problem, answers, "triton")
    worst = max(found, key=found.get)
    if not found[worst] <= 1:  # NaN too: of what was not written
        return f"{worst} is {found[worst]:.3g} times the bound"
    if not all(torch.equal(problem.tensors[n].nan_to_num(), t.nan_to_num()) for n, t in kept.items()):
        return "an input was written to"
    if again:
        repeated = solve(problem, "triton", backward)
        if not all(torch.equal(answers[n], repeated[n]) for n in answers):
            return "another result than before"
    return None


def main(op, direction, first, count):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    _triton.launch = triton_guard.guarding(_triton.launch)
    problems = small(op, int(first))
    for i in range(int(count)):
        problem = next(problems)
        print(problem.repro("triton"), flush=True)
        if said := wrong(problem, direction == "backward", i % REPEATED == 0):
            print(said)
            return 1
    print(f"{count} problems within the bound")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
