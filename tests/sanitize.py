"""Random problems of both ops, forward and backward, under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/sanitize.py [problems of each op, 200]

Any report ends the run, and so does an answer outside of the bound: fresh memory is filled with 0xff, so that what a
kernel reads without having written it is NaN. Before that, a tensor that claims more memory than it has must be reported.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "asan"
FLAGS = "-g1 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
OPTIONS = {
    # torch and Python keep memory on purpose; glibc's malloc is replaced, so the fill reaches the kernels' scratch
    "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0:halt_on_error=1:max_malloc_fill_size=1073741824:malloc_fill_byte=255",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


def build() -> dict[str, str]:
    """Compiles csrc/ with the sanitizers; returns the environment that runs it."""
    sys.path.insert(0, str(ROOT))
    from rebuilt import package

    from build_backend.facts import collect

    command = [sys.executable, "-m", "build_backend", str(FOLDER), "--flags", FLAGS]
    subprocess.run(command, check=True, cwd=ROOT)

    def runtime(name):
        asked = [*collect().compiler.split(), f"-print-file-name={name}"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    return {
        **package(FOLDER, FOLDER / "_C.so"),
        **OPTIONS,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
    }


def lie(op: str) -> None:
    """Calls `op` with a map whose memory ends before its last row."""
    import numpy as np
    import torch

    from lska_ops.testing.problems import OPS, random_problem

    problem = next(p for p in map(lambda n: random_problem(op, n), range(1000)) if p.dtype == torch.float32)
    first = next(iter(problem.tensors))
    shape = problem.tensors[first].shape
    memory = np.ones(shape.numel() - shape[-1], np.float32)
    strides = [4 * n for n in torch.empty(shape).stride()]
    problem.tensors[first] = torch.from_numpy(np.lib.stride_tricks.as_strided(memory, shape, strides))
    if op == "acmix":
        t = problem.tensors
        options = problem.options.values()
        rest = [t[n] for n in ("conv_p", "fc", "dep_conv", "rate1", "rate2")]
        torch.ops.lska_ops.acmix_core_fwd_cpu(t["qkv"], *rest, *options)
    else:
        OPS[op].call(problem.tensors, problem.options, "cpu")


def solve_all(count: int) -> None:
    import torch

    from lska_ops import _compiled
    from lska_ops.testing.problems import OPS, random_problem, ratios, solve

    if _compiled.problem:
        sys.exit(_compiled.problem)
    assert Path(_compiled.__file__).is_relative_to(FOLDER), _compiled.__file__
    torch.set_num_threads(2)
    best = torch.ops.lska_ops.set_cpu_isa("")
    for op in OPS:
        for isa, part in ((best, count), ("baseline", count // 4)):
            torch.ops.lska_ops.set_cpu_isa(isa)
            for seed in range(100_000, 100_000 + part):
                problem = random_problem(op, seed)
                worst = max(ratios(problem, solve(problem, "cpu")).values())
                if not worst <= 1:
                    sys.exit(f"{worst:.3g} times the bound under the sanitizers: {problem.repro('cpu')}")
            print(f"{op}, {isa}: {part} problems, nothing to report", flush=True)


def main(count: int = 200) -> None:
    start = time.monotonic()
    environment = build()
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)

    def run(*words, **options):
        return subprocess.run([sys.executable, __file__, *words], env=environment, cwd=FOLDER, **options)

    for op in ("lska", "acmix"):
        said = run("lie", op, capture_output=True, text=True)
        report = [line for line in said.stderr.splitlines() if "ERROR: AddressSanitizer" in line]
        frames = [line for line in said.stderr.splitlines() if "csrc/" in line]
        if said.returncode == 0 or not report or not frames:
            sys.exit(f"{op}: reading past the end of x was not reported\n{said.stdout}{said.stderr}")
        print(f"{op}, a seeded read out of bounds: {report[0].split('ERROR: ')[1]}", flush=True)
    if run("solve", str(count)).returncode:
        sys.exit("the sanitizers, or the bound, reported the above")
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["lie", op]:
            lie(op)
        case ["solve", count]:
            solve_all(int(count))
        case words:
            main(*map(int, words))
