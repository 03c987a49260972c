"""The host-run CUDA kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

    python tests/host_cuda/sanitize.py [problems, 60] [asan] [tsan]

Shared memory is a heap block of just the launched size, so a step beyond it is reported; a barrier is what orders two
threads, so a missing one is a data race. Before the problems, one seeded bug of each kind has to be reported.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from build import ROOT, build, collect

SANITIZERS = {
    "asan": "-g1 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer",
    "tsan": "-g1 -O1 -fsanitize=thread",
}
RUNTIMES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0:halt_on_error=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0:ignore_noninstrumented_modules=1",
    "OMP_NUM_THREADS": "1",
}
# What each sanitizer has to report: a file, what is right there, and what is wrong.
SEEDED = {
    "asan": (
        "lska/kernels_plane.cuh",
        "float* biases = columns + r.planes * r.cols;",
        "float* biases = columns + r.planes * r.cols + 1;",
        "heap-buffer-overflow",
    ),
    "tsan": (
        "lska/kernels_plane.cuh",
        "    barrier();\n    if (active)\n      write_run(map",
        "    if (active)\n      write_run(map",
        "data race",
    ),
}


def environment(name):
    def runtime(library):
        asked = [*collect().compiler.split(), f"-print-file-name={library}"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    return {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(map(runtime, RUNTIMES[name]))}


def run(name, library, count, say=True):
    command = [sys.executable, __file__, "solve", str(library), str(count)]
    if name == "tsan":  # it wants its addresses where the kernel does not randomize them to
        command = [
            *filter(None, [shutil.which("setarch")]),
            *(["-R"] if shutil.which("setarch") else []),
            *command,
        ]
    return subprocess.run(command, env=environment(name), text=True, capture_output=not say)


def seeded(name):
    """The reports of a library with this sanitizer's bug."""
    file, right, wrong, _ = SEEDED[name]
    with tempfile.TemporaryDirectory(prefix="host_cuda_") as folder:
        root = Path(folder)
        for part in ("csrc", "tests/host_cuda"):
            shutil.copytree(ROOT / part, root / part)
        source = root / "csrc" / file
        text = source.read_text()
        if text.count(right) != 1:
            sys.exit(
                f"{name}: {file} has {text.count(right)} times what the seeded bug replaces; expected one"
            )
        source.write_text(text.replace(right, wrong))
        done = run(name, build(root / "build", SANITIZERS[name], root), 6, say=False)
        return done.returncode, done.stdout + done.stderr


def solve_all(library, count):
    import torch

    from lska_ops.acmix import op as acmix
    from lska_ops.acmix.compiled import too_much
    from lska_ops.lska import op as lska
    from lska_ops.testing.acmix import sizes
    from lska_ops.testing.problems import random_problem, ratios, solve

    torch.set_num_threads(1)
    torch.ops.load_library(library)
    host = torch.ops.lska_ops_host
    lska._op = lambda name, backend: getattr(host, f"lska_{name}_cuda")
    acmix._op = lambda name, backend: getattr(host, f"acmix_core_{name}_cuda")
    devices = {
        "lska": ((232448, 132), (20_000, 4), (8_000, 1000), (1_000, 1)),
        "acmix": ((232448, 132), (232448, 1), (65536, 40), (48_000, 2)),
    }
    solved = 0
    for op, seed in ((op, seed) for op in devices for seed in range(400_000, 400_000 + count)):
        problem = random_problem(op, seed)
        if problem.dtype == torch.float64 or next(iter(problem.tensors.values())).numel() > 20_000:
            continue
        if op == "acmix":
            if too_much(**sizes(problem)):
                continue
        host.configure(seed % 7, *devices[op][seed % 4], 1 << 20)
        if max(ratios(problem, solve(problem, "cpu"), "cuda").values()) > 1:
            sys.exit(f"beyond the bound: problem {seed}, {problem.repro('cuda')}")
        solved += 1
    print(f"{solved} problems, forward and backward", flush=True)


def main(count=60, *names):
    start = time.monotonic()
    for name in names or SANITIZERS:
        flags = SANITIZERS[name]
        code, said = seeded(name)
        expected = SEEDED[name][-1]
        if code == 0 or expected not in said:
            sys.exit(f"{name}: a seeded {expected} was not reported\n{said}")
        print(f"{name}: a seeded {expected} is reported", flush=True)
        library = build(ROOT / "build" / f"host_cuda_{name}", flags)
        if run(name, library, count if name == "asan" else count // 2).returncode:
            sys.exit(f"{name} reported the above")
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["solve", library, count]:
            solve_all(library, int(count))
        case []:
            main()
        case [count, *names]:
            main(int(count), *names)
