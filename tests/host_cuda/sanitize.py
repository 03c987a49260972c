"""The host-run CUDA kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

    python tests/host_cuda/sanitize.py [problems, 60] [asan] [tsan]

Shared memory is a heap block of just the launched size, so a step beyond it is reported; a barrier is what orders two
threads, so a missing one is a data race. Before the problems, seeded bugs of each kind have to be reported. A third of
the problems is ACmix's for tensor cores: halves, in both layouts, of sizes that they serve.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build import ROOT, build, collect, compile_object, link

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
# What each sanitizer has to report: the source that compiles a file, what is right there, and what is wrong.
SEEDED = {
    "asan": (
        (
            "ops.cpp",
            "lska/kernels_plane.cuh",
            "float* biases = columns + r.planes * r.cols;",
            "float* biases = columns + r.planes * r.cols + 1;",
        ),
        (
            "acmix_products.cpp",
            "acmix/kernels_products_window.cuh",
            "n < l.dims / kProductsDims * kWarp;",
            "n <= l.dims / kProductsDims * kWarp;",
        ),
    ),
    "tsan": (
        (
            "ops.cpp",
            "lska/kernels_plane.cuh",
            "    barrier();\n    if (active)\n      write_run(map",
            "    if (active)\n      write_run(map",
        ),
        (
            "acmix_products.cpp",
            "acmix/kernels_products.cuh",
            "      wait_for_copies();\n      barrier();\n",
            "      wait_for_copies();\n",
        ),
    ),
}
MOST = 20_000  # elements of a map
SEEDED_COUNT = 6  # problems of each kind, in which a seeded bug has to be reported
REPORT = {"asan": "heap-buffer-overflow", "tsan": "data race"}


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


def seeded(name, library, bug):
    """The reports of this library with a bug."""
    source, file, right, wrong = bug
    with tempfile.TemporaryDirectory(prefix="host_cuda_") as folder:
        root = Path(folder)
        for part in ("csrc", "tests/host_cuda"):
            shutil.copytree(ROOT / part, root / part)
        changed = root / "csrc" / file
        text = changed.read_text(encoding="utf-8")
        if text.count(right) != 1:
            sys.exit(
                f"{name}: {file} has {text.count(right)} times what the seeded bug replaces; expected one"
            )
        changed.write_text(text.replace(right, wrong), encoding="utf-8")
        objects = {file.name: file for file in library.parent.glob("*.o")}
        made = source.replace(".cpp", ".o")
        objects[made] = compile_object(source, root / made, SANITIZERS[name], root)
        done = run(
            name, link(objects.values(), root / library.name, SANITIZERS[name]), SEEDED_COUNT, say=False
        )
        return done.returncode, done.stdout + done.stderr


def of_products(seed):
    """A problem of ACmix's products in one of their dtypes, every other in channels_last; and where it is computed."""
    from test_host_cuda_acmix import resized
    from test_host_cuda_acmix_products import DEVICES, HALF

    from lska_ops.testing.problems import LAYOUTS

    choice = random.Random(seed)
    G, D = choice.choice(((4, 8), (4, 16), (4, 24), (8, 8), (8, 16)))
    window, shift = choice.choice((3, 5, 7, 7, 9)), choice.choice((3, 3, 3, 5))
    stride, dilation = choice.choice(((1, 1), (1, 1), (2, 1), (1, 2)))
    H = choice.randint(1, 12)
    W = choice.randint(1, min(20, MOST // (3 * G * D * H)))
    problem = resized(seed, 1, G, D, window, shift, H, W, stride, dilation)
    problem.dtype, problem.layout = (
        choice.choice(list(HALF.values())),
        ("contiguous", "channels_last")[seed % 2],
    )
    problem.tensors = {n: None if t is None else t.to(problem.dtype) for n, t in problem.tensors.items()}
    problem.tensors["qkv"] = LAYOUTS[problem.layout](problem.tensors["qkv"])
    problem.grad_y = problem.grad_y.to(problem.dtype)
    return problem, choice.choice([name for name in DEVICES if name != "t4" or problem.dtype == HALF["f16"]])


def solve_all(library, count):
    import torch

    from lska_ops.acmix import op as acmix
    from lska_ops.acmix.compiled import too_much
    from lska_ops.lska import op as lska
    from lska_ops.testing.acmix import sizes
    from lska_ops.testing.problems import random_problem, ratios, solve

    sys.path.append(str(ROOT / "tests"))
    from test_host_cuda_acmix_products import on, plan

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

    def judge(problem):
        nonlocal solved
        if max(ratios(problem, solve(problem, "cpu"), "cuda").values()) > 1:
            sys.exit(f"beyond the bound: problem {problem.seed}, {problem.repro('cuda')}")
        solved += 1

    for op, seed in ((op, seed) for op in devices for seed in range(400_000, 400_000 + count)):
        problem = random_problem(op, seed)
        if problem.dtype == torch.float64 or next(iter(problem.tensors.values())).numel() > MOST:
            continue
        if op == "acmix":
            if too_much(**sizes(problem)):
                continue
        host.configure(seed % 7, *devices[op][seed % 4], 1 << 20)
        judge(problem)
    by_products = 0
    for seed in range(500_000, 500_000 + count):
        problem, device = of_products(seed)
        on(host, device, seed % 7)
        judge(problem)
        by_products += plan(problem, device, shift=problem.tensors["dep_conv"].shape[-1] == 3) is not None
    if by_products < count / 2:
        sys.exit(
            f"{by_products} of {count} problems for products were solved by them; expected half at least"
        )
    print(f"{solved} problems, forward and backward", flush=True)


def judge_by(name, count):
    """What a sanitizer says: of seeded bugs, and of the problems, of which it gets `count`."""
    library, said = build(ROOT / "build" / f"host_cuda_{name}", SANITIZERS[name]), []
    for bug in SEEDED[name]:
        code, report = seeded(name, library, bug)
        if code == 0 or REPORT[name] not in report:
            raise RuntimeError(f"{name}: a seeded {REPORT[name]} in {bug[1]} was not reported\n{report}")
        said.append(f"{name}: a seeded {REPORT[name]} in {bug[1]} is reported")
    print("\n".join(said), flush=True)
    if run(name, library, count).returncode:
        raise RuntimeError(f"{name} reported the above")


def main(count=60, *names):
    start = time.monotonic()
    names = names or tuple(SANITIZERS)
    with ThreadPoolExecutor(len(names)) as beside:  # each solves in one process
        judged = [beside.submit(judge_by, name, count if name == "asan" else count // 2) for name in names]
    for one in judged:
        if problem := one.exception():
            sys.exit(str(problem))
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["solve", library, count]:
            solve_all(library, int(count))
        case []:
            main()
        case [count, *names]:
            main(int(count), *names)
