"""Everything that needs a GPU, in one go and under nine minutes: `make gpu`.

Environment, build for this GPU alone, tests, compute-sanitizer, benchmarks, networks: results/<gpu>/gpu.json
is written as each stage ends, yolo.csv, lska.csv and acmix.csv with each row. Makes no environment, downloads
nothing. With --dry-run it goes as far as it can without a GPU.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from evidence import FILE, RESULTS, ROOT, measured_rows, sentence
from stages import Failed, Stages, call, tail

sys.path.append(str(ROOT / "tests"))
from rebuilt import package  # noqa: E402

TOTAL = 525  # seconds for all, so that ten minutes do not cut it off
LIMITS = {
    "environment": 60, "build": 200, "tests": 170, "memcheck": 50, "racecheck": 50, "networks": 75,
    "benchmarks": TOTAL,
}  # fmt: skip
TESTS = ("test_gpu_lska.py", "test_gpu_acmix.py", "test_gpu_triton.py", "test_gpu_triton_acmix.py")
FILES = r"test_gpu_\w+\.py"
DRY_ARCH = "90"
DRY_LIMITS = {**LIMITS, "build": 1500, "tests": 300, "benchmarks": 300}  # a CI machine has few cores
SEEDS = {"tests": "problem numbers in tests/test_gpu_lska.py and test_gpu_acmix.py", "benchmarks": 0}


class Gpu:
    """The stages' work. `env` is where Python finds what was built, from the build on."""

    def __init__(self, args, folder):
        self.args, self.folder, self.env, self.facts = args, folder, None, {}
        self.dry = args.dry_run

    def environment(self, seconds):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        code, said = call([sys.executable, ROOT / "benchmarks" / "gpu_facts.py"], seconds, env=env, say=False)
        if code != 0:
            raise Failed(_ended(code, seconds, said), output=tail(said))
        self.facts = json.loads(said.strip().splitlines()[-1])
        if self.facts["missing"]:
            raise Failed("; ".join(self.facts["missing"]))
        if not self.facts["gpu"] and not self.dry:
            raise Failed(f"no GPU: {self.facts['why_no_gpu']}; DRY=1 goes as far as it can without one")
        return {}

    def build(self, seconds):
        archs = [DRY_ARCH] if self.dry else ["".join(map(str, self.facts["capability"]))]
        if self.dry and self.args.build:  # where the tree's own build may be, then nothing is compiled again
            archs = re.findall(r"\w+", os.environ.get("LSKA_OPS_CUDA_ARCHS", "")) or archs
        out = Path(self.args.build or self.folder / "build").resolve()
        if self.args.library:
            library, result = Path(self.args.library), {"library": "given, not built"}
        else:
            command = [sys.executable, "-m", "build_backend", out, "--cuda"]
            command += [] if self.facts["plan"] else ["--without-plan"]
            env = {**os.environ, "LSKA_OPS_CUDA_ARCHS": ";".join(archs)}
            code, said = self.call(command, seconds, env, ROOT)
            if code != 0:
                raise Failed(_ended(code, seconds, said), output=tail(said))
            library, result = out / "_C.so", {"archs": archs}
        plan = any(library.parent.glob("_plan*.so"))
        parts = ["cpu", "cuda", *(["plan"] if plan else [])]
        reasons = {} if plan else {"plan": "pybind11 or Python.h was not found"}
        info = {
            "parts": parts,
            "reasons": reasons,
            "cuda_archs": archs,
            "source_hash": self.facts["source_hash"],
        }
        self.env = package(self.folder / "package", library, info)
        return result | {"parts": parts, "bytes": library.stat().st_size}

    def tests(self, seconds):
        code, said = self.pytest(["--collect-only", "-q"] if self.dry else ["-v"], seconds)
        if self.dry:
            found = len(re.findall(rf"(?m)^\S*{FILES}::", said))
            if code != 0 or not found:
                raise Failed(_ended(code, seconds, said), output=tail(said))
            return {"collected": found}
        result = outcomes(said)
        # A test that declines says that the GPU is not used: then nothing was shown.
        unused = [why for why in result["skipped_because"] if why.startswith(("cuda: ", "triton: "))]
        if code != 0 or unused or not result["passed"]:
            raise Failed(unused[0] if unused else _ended(code, seconds, said), **result, output=tail(said))
        return result

    def pytest(self, words, seconds, before=(), **env):
        command = [
            *before,
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            *TESTS,
            *words,
        ]
        return self.call(command, seconds, {**self.env, **env}, ROOT / "tests")

    def call(self, command, seconds, env, cwd):
        """Where nothing but the end counts, what a command says is printed only if it fails."""
        code, said = call(command, seconds, env=env, cwd=cwd, say=not self.dry)
        if self.dry and code != 0:
            print("\n".join(tail(said)))
        return code, said

    def sanitizer(self, tool):
        def work(seconds):
            found = shutil.which(
                "compute-sanitizer", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin"
            )
            if found is None:
                return {"status": "not run: compute-sanitizer was not found"}
            before = [found, "--tool", tool, "--error-exitcode", "99"]
            # PyTorch asks the driver for what it may not have; the launchers look at their own errors.
            before += ["--report-api-errors", "no", "--kernel-regex", "kns=lska_ops"]
            # Each tensor its own allocation: a step beyond it does not fall into another's memory.
            env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            code, said = self.pytest(["-v", "-m", "small_set"], seconds, before, **env)
            result = outcomes(said)
            if code is None and not result["failed"]:
                return {"status": "not run: out of time", **result}
            if code != 0 or not result["passed"]:
                raise Failed(_ended(code, seconds, said), **result, output=tail(said))
            return result

        return work

    def networks(self, seconds):
        """Whole YOLO networks, which alone need ultralytics."""
        code, said = call([sys.executable, "-c", "import ultralytics"], seconds, env=self.env, say=False)
        if code != 0:
            why = _ended(code, seconds, said)
            return {"status": f"not run: ultralytics cannot be imported ({why}); pip install ultralytics"}
        (self.folder / "facts.json").write_text(json.dumps(self.facts["line"]), encoding="utf-8")
        command = [
            sys.executable,
            ROOT / "benchmarks" / "bench_yolo.py",
            "--device",
            "cuda",
            "--dtype",
            "fp16",
        ]
        command += ["--facts", self.folder / "facts.json", "--out", self.results.parent]
        code, said = call([*command, "--seconds", f"{seconds - 30:.0f}"], seconds, env=self.env, cwd=ROOT)
        wrong = re.findall(r"(?m)^.*WRONG: .*$", said)
        if wrong or code not in (0, None):
            raise Failed(wrong[0].strip() if wrong else _ended(code, seconds, said), output=tail(said))
        # What was measured by then is in the CSV.
        return {"status": "not run: out of time"} if code is None else {}

    def benchmarks(self, seconds):
        state = self.folder / "rows.json"
        command = [sys.executable, ROOT / "benchmarks" / "gpu_rows.py", "--state", state]
        if self.dry:
            command += ["--construct"]
        else:
            command += ["--seconds", f"{seconds - 15:.0f}", "--out", self.results]
            command += ["--facts", self.folder / "facts.json"]
            (self.folder / "facts.json").write_text(json.dumps(self.facts["line"]), encoding="utf-8")
        code, said = self.call(command, seconds, self.env, ROOT)
        result = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
        wrong = [
            f"{row}: {s}" for row, s in result.get("rows", {}).items() if s.startswith(("failed", "WRONG"))
        ]
        if code != 0 or wrong:
            raise Failed(wrong[0] if wrong else _ended(code, seconds, said), **result, output=tail(said))
        return result

    @property
    def results(self):
        return Path(self.args.out or (self.folder if self.dry else RESULTS)) / self.facts["slug"]


def outcomes(said):
    """How many tests ended how, from `pytest -v`: also of one that was stopped half way."""
    ended = re.findall(rf"({FILES}::\S+) (PASSED|FAILED|ERROR|SKIPPED)\b", said)
    names = {kind: [name.split("::", 1)[1] for name, k in ended if k == kind] for _, kind in ended}
    return {
        "passed": len(names.get("PASSED", ())),
        "failed": sorted({*names.get("FAILED", ()), *names.get("ERROR", ())}),
        "skipped": len(names.get("SKIPPED", ())),
        "skipped_because": sorted(set(re.findall(r"(?m)^SKIPPED \[\d+\] \S+: (.+)$", said))),
    }


def _ended(code, seconds, said):
    if code is None:
        return f"out of time: more than {seconds:.0f} s"
    last = [line for line in said.splitlines() if line.strip()][-1:]
    return f"exit status {code}: {last[0].strip()[:300] if last else 'it said nothing'}"


def run(args, folder, make=Gpu, total=TOTAL):
    """The exit status."""
    limits = DRY_LIMITS if args.dry_run else LIMITS
    total = sum(limits.values()) if args.dry_run else total
    stages, gpu = Stages(None, total, say_limits=not args.dry_run), make(args, folder)
    stages.data |= {"dry": args.dry_run, "seeds": SEEDS}
    if stages.run("environment", limits["environment"], gpu.environment) is not None:
        stages.file = gpu.results / ("dry-run.json" if args.dry_run else FILE)
        before = (
            json.loads(stages.file.read_text(encoding="utf-8")).get("measured", {})
            if stages.file.is_file()
            else {}
        )
        stages.data |= {"environment": gpu.facts, "measured": before}
        stages.write()
        go_on(stages, gpu, limits)
        stages.data["measured"] = measured_rows(before, stages.data)
        stages.write()
    for problem in stages.problems():
        print(f"NOT OK  {problem}")
    print(f"\n{sentence(Path(args.out) if args.out else RESULTS)}")
    kept = stages.file if args.out or not args.dry_run else None  # a dry run's is temporary
    print(f"{stages.total - stages.left():.0f} s; {kept or 'no result is kept'}")
    return int(bool(stages.problems()))


def go_on(stages, gpu, limits):
    """What follows once it is known where we are."""
    if stages.run("build", limits["build"], gpu.build) is None:
        return
    stages.run("tests", limits["tests"], gpu.tests)
    if gpu.dry:
        if (
            stages.run("benchmarks", limits["benchmarks"], gpu.benchmarks) is not None
            and not stages.problems()
        ):
            print("\ndry run: the next step needs a GPU; everything before it works")
        return
    for tool in ("memcheck", "racecheck"):
        stages.run(tool, limits[tool], gpu.sanitizer(tool), optional=True)
    stages.run("benchmarks", limits["benchmarks"], gpu.benchmarks)
    stages.run("networks", limits["networks"], gpu.networks, optional=True)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="FOLDER", help="default: benchmarks/results")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="as far as it goes without a GPU; for sm_90, with --build for LSKA_OPS_CUDA_ARCHS",
    )
    parser.add_argument(
        "--build", metavar="FOLDER", help="where to compile, and what to keep; default: temporary"
    )
    parser.add_argument("--library", metavar="FILE", help="this compiled library; compile none")
    return parser.parse_args(arguments)


def main(arguments=None):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    with tempfile.TemporaryDirectory(prefix="lska_gpu_") as folder:
        return run(parse(arguments), Path(folder))


if __name__ == "__main__":
    sys.exit(main())
