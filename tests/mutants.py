"""Seeded bugs in the CPU kernels, each of which the random problems have to catch.

    python tests/mutants.py [part of a name] [--tenth N]

Works on copies of the sources in a temporary folder, two at a time; compiles only the AVX2 code that is wrong. The
problems run where every block of memory ends in a mark: what a kernel writes behind its result is no wrong number if
the next kernel writes there too.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import seeded
from rebuilt import package
from seeded import ROOT, Mutant

LSKA = [
    Mutant("last tap dropped", "cpu_line.h", "first(0), last(k) {", "first(0), last(k > 1 ? k - 1 : k) {"),
    Mutant(
        "wrong dilation", "cpu.cpp", "int(std::min(dilation, reach))", "int(std::min(dilation + 1, reach))"
    ),
    Mutant("bias at the border", "cpu_cascade.h", "conv0v_bias * inside[x]", "conv0v_bias * inside[W / 2]"),
    Mutant(
        "gate without bias",
        "cpu_kernels_gate.cpp",
        "(load_n(product + i, n) + b)",
        "(load_n(product + i, n) + b * A(0))",
    ),
    Mutant(
        "rows out of order",
        "cpu_rows.h",
        "const T* row = x.data + x.offset(y);",
        "const T* row = x.data + x.offset(x.H - 1 - y);",
    ),
    Mutant("bias gradient dropped", "cpu_kernels_backward.cpp", "sum0h_bias += total;", ""),
    Mutant(
        "column bias's gradient for the taps",
        "cpu_kernels_backward.cpp",
        "sum1h[t] += cascade.conv0v_bias * columns1h[t];",
        ";",
    ),
    Mutant(
        "last column",
        "cpu_kernels_backward.cpp",
        "for (int i = 0; i < W; ++i) grad_row[i] = row[cascade.column[i]];",
        "for (int i = 0; i + 1 < W; ++i) grad_row[i] = row[cascade.column[i]];",
    ),
    Mutant(
        "always accumulated",
        "cpu_kernels_forward.cpp",
        "      if (accumulate)\n",
        "      if (accumulate || sizeof(T) < 4)\n",
    ),
    Mutant("taps not turned around", "cpu_cascade.h", "flip ? k - 1 - t : t", "t"),
    Mutant(
        "parts of one image only",
        "cpu_kernels_gate.cpp",
        "for (int64_t p = 0; p < count; ++p) total",
        "for (int64_t p = 0; p < 1; ++p) total",
    ),
    Mutant(
        "plane: row's end not zero",
        "cpu_plane.h",
        "in_map.of(p + L <= end ? load(p) : load(p, int(W - int64_t(i) * L)))",
        "(p + L <= end ? load(p) : load(p, int(W - int64_t(i) * L)))",
    ),
    Mutant(
        "plane: bias of the first column everywhere",
        "cpu_plane.h",
        "conv0v, K0, column_bias, 1}, behind, columns)",
        "conv0v, K0, column_bias, 0}, behind, columns)",
    ),
    Mutant("plane: a spilled row", "cpu_plane.h", "if (y < whole_rows)", "if (y < whole_rows - 1 || y == 0)"),
    Mutant("plane: rows of one remainder", "cpu_plane.h", "(H - r + D - 1) / D", "(H + D - 1) / D"),
    Mutant(
        "plane: a band's last row",
        "cpu_plane.h",
        "H - y < band ? H - y : band",
        "H - y < band ? H - y : band - 1",
    ),
]
ACMIX = [
    Mutant("exp of 4 terms", "../common/simd_exp.h", "kExpTerms = 7", "kExpTerms = 4"),
    Mutant(
        "channel order of shift",
        "cpu_kernels_forward.cpp",
        "A* tile = f.tile + d * s.G * band * f.tile_pitch;\n    convolve(c, composite + d * s.G * c.n, s.G, [&](int64_t g, int64_t r, int64_t x, Vec<A> sum) {\n      store(tile + (g * band",
        "A* tile = f.tile;\n    convolve(c, composite + d * s.G * c.n, s.G, [&](int64_t g, int64_t r, int64_t x, Vec<A> sum) {\n      store(tile + ((g * s.D + d) * band",
    ),
    Mutant(
        "reflection repeats the border pixel",
        "cpu_lines.h",
        "const int64_t period = 2 * (length - 1);\n  const int64_t m = ((i % period) + period) % period;\n  return m < length ? m : period - m;",
        "const int64_t period = 2 * length;\n  const int64_t m = ((i % period) + period) % period;\n  return m < length ? m : period - 1 - m;",
    ),
    Mutant(
        "positions of the corners",
        "cpu_window.h",
        "w.dx[t * w.x_pitch + x] = A(double(at - folded(at + shift, s.W)) * x_step);",
        "w.dx[t * w.x_pitch + x] = A(double(-shift) * x_step);",
    ),
    Mutant("scale left out", "cpu_window.h", "return A(1. / __builtin_sqrt(double(D)));", "return A(D > 0);"),
    Mutant(
        "x and y exchanged",
        "cpu_window.h",
        "sum.x += of_d * conv_p[2 * d];\n    sum.y += of_d * conv_p[2 * d + 1];",
        "sum.y += of_d * conv_p[2 * d];\n    sum.x += of_d * conv_p[2 * d + 1];",
    ),
    Mutant(
        "dilation of the rows",
        "cpu_window.h",
        "dots.k = k + i * s.dilation * w.row_pitch;",
        "dots.k = k + i * w.row_pitch;",
    ),
    Mutant(
        "delta left out",
        "cpu_kernels_input_grad.cpp",
        "(load(weights + j) - delta) * scale;",
        "load(weights + j) * scale;",
    ),
    Mutant(
        "last band not folded",
        "cpu_kernels_input_grad.cpp",
        "y <= (s.Ho - 1) * s.stride + reach; ++y)",
        "y < (s.Ho - 1) * s.stride + reach; ++y)",
    ),
    Mutant(
        "columns not folded",
        "cpu_kernels_input_grad.cpp",
        "j < 2 * w.reach; ++j) line[",
        "j < 2 * w.reach - 1; ++j) line[",
    ),
    Mutant(
        "rows written before they are complete",
        "cpu_kernels_input_grad.cpp",
        "at_end ? s.H : top + rows * s.stride;",
        "at_end ? s.H : top + rows * s.stride + 1;",
    ),
    Mutant(
        "planes not cleared between bands",
        "cpu_kernels_input_grad.cpp",
        "memset(plane + kept * pitch, 0, rows * s.stride * pitch * sizeof(A));",
        "",
    ),
    Mutant("positions' gradient of y", "cpu_kernels_input_grad.cpp", "slope.y += of_row * dy[i];", ""),
    Mutant(
        "taps of the composite not turned",
        "cpu_kernels_shift.cpp",
        "taps + taps - 1 - i % taps) * maps",
        "taps + i % taps) * maps",
    ),
    Mutant(
        "grad of rate2",
        "cpu_kernels_shift.cpp",
        "= from_acc<T>(grad_dep * rate2);",
        "= from_acc<T>(grad_dep);",
    ),
    Mutant(
        "batch's last map",
        "cpu_kernels_shift.cpp",
        "for (int64_t b = 0; b < s.B; ++b) {",
        "for (int64_t b = 0; b < 1; ++b) {",
    ),
    Mutant("rate1 missing", "cpu_kernels_forward.cpp", "shifted + attended * rate1,", "shifted + attended,"),
]
HALVES = [
    Mutant(
        "shift alone, in the order of heads",
        "cpu_kernels_forward.cpp",
        "T* out = y + (d * s.G * s.Ho + yo) * s.Wo;",
        "T* out = y + (d * s.Ho + yo) * s.Wo;",
    ),
    Mutant(
        "attention alone, with a tile",
        "cpu_kernels_forward.cpp",
        "* f.tile_pitch + x) : Vec<A>{};",
        "* f.tile_pitch + x) : attended;",
    ),
    Mutant(
        "shift alone, last row", "cpu_kernels_input_grad.cpp", "write(0, 0, s.H);", "write(0, 0, s.H - 1);"
    ),
    Mutant(
        "attention alone, last pixels",
        "cpu_kernels_input_grad.cpp",
        "for (int64_t x = 0; x < s.W; x += kLanes<A>)\n          write_pixels",
        "for (int64_t x = 0; x + kLanes<A> <= s.W; x += kLanes<A>)\n          write_pixels",
    ),
]
# folder of csrc/, the random problems' ops, bugs
GROUPS = (
    ("lska", ("lska",), LSKA),
    ("acmix", ("acmix",), ACMIX),
    ("acmix", ("local_attention", "shift_aggregate"), HALVES),
)
FOLDER = {mutant: (folder, ops) for folder, ops, mutants in GROUPS for mutant in mutants}
# glibc's own check, at every free: a byte behind each block, and what it stands for in the block's last bytes.
MARKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3", "OMP_WAIT_POLICY": "passive"}
OVERRUN = "import ctypes, torch; x = torch.empty(5); ctypes.memset(x.data_ptr() + 20, 0, 1); del x"


class Copy:
    """The sources in a folder of their own, compiled there; then only what a mutant changes."""

    def __init__(self, folder: Path, objects: Path = ROOT / "build" / "compiled", parts: Path = ROOT):
        self.folder, self.compiled = folder, folder / "build" / "compiled"
        for name in ("csrc", "build_backend"):
            shutil.copytree(parts / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        if objects.is_dir():  # with the times kept, what is up to date is not compiled again
            shutil.copytree(objects, self.compiled, ignore=shutil.ignore_patterns("*.cuda.o"))
        if parts == ROOT:
            self._compile_all()
        self.environment = package(folder, self.compiled / "_C.so") | MARKED
        self.environment["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")

    def twin(self, folder: Path) -> "Copy":
        """Another copy of what is compiled here."""
        return Copy(folder, self.compiled, self.folder)

    def _compile_all(self) -> None:
        command = [sys.executable, "-m", "build_backend", "build/compiled"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the unchanged kernels do not compile:\n{done.stdout}{done.stderr}")
        file = self.compiled / "build.ninja"
        blocks = re.split(
            r"(?m)^(?=build )", file.read_text(encoding="utf-8")
        )  # what is compiled again and again, at -O1
        often = [".avx2." in block.split(":")[0] for block in blocks]
        file.write_text(
            "".join(b.replace("-O3", "-O1") if o else b for b, o in zip(blocks, often, strict=True)),
            encoding="utf-8",
        )

    def compile(self, op: str) -> None:
        from build_backend.facts import collect

        ninja = [collect().ninja, "-f", "build/compiled/build.ninja"]
        objects = sorted(self.compiled.glob(f"{op}.*.avx2.o")) + [self.compiled / f"{op}.cpu.o"]
        built = self._run([*ninja, *(str(p.relative_to(self.folder)) for p in objects)])
        if built.returncode:
            sys.exit(f"a mutant does not compile:\n{built.stdout}")
        link = self._run([*ninja, "-t", "commands", "build/compiled/_C.so"]).stdout.strip().splitlines()[-1]
        subprocess.run(link, shell=True, cwd=self.folder, check=True)
        shutil.copyfile(self.compiled / "_C.so", self.folder / "lska_ops" / "_C.so")

    def _run(self, command):
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def caught(self, op: str, last: int | None = None) -> tuple[int, str] | None:
        """The number of the problem that catches what is compiled, and how; or None. `last` is the last tried."""
        command = [sys.executable, str(ROOT / "tests" / "mutants_problems.py"), op, str(self.folder)]
        command += [] if last is None else [str(last)]
        run = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        number = int((run.stdout.split() or ["0"])[-1])
        if run.returncode < 0:
            return number, f"{op} problem {number}, signal {-run.returncode}"
        if run.returncode and run.stderr.strip() != "wrong":
            sys.exit(f"the problems did not run:\n{run.stderr}")
        return (number, f"{op} problem {number}") if run.returncode else None

    def check_marks(self) -> None:
        """A byte that is written behind a block has to be seen."""
        run = subprocess.run(
            [sys.executable, "-c", OVERRUN], env=self.environment, capture_output=True, text=True
        )
        if run.returncode >= 0:
            sys.exit(
                f"a write behind a block of memory went unseen (exit status {run.returncode}); "
                f"install glibc's {MARKED['LD_PRELOAD']}\n{run.stderr}"
            )


def killed_by(mutant: Mutant, unchanged: Copy, folder: Path, last: dict[str, int]) -> str | None:
    """How a problem caught it; `last` gets the number of the last problem of each op that caught a bug."""
    part, ops = FOLDER[mutant]
    copy = unchanged.twin(Path(tempfile.mkdtemp(dir=folder)) / "copy")
    file = copy.folder / "csrc" / part / mutant.file
    file.write_text(seeded.with_bug(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    copy.compile(part)
    found = next(((op, found) for op in ops if (found := copy.caught(op))), None)
    shutil.rmtree(copy.folder)
    if found is None:
        return None
    op, (number, how) = found
    last[op] = max(number, last.get(op, 0))
    return how


def main(*words: str) -> int:
    start, mutants = time.monotonic(), seeded.chosen(list(FOLDER), words)
    if not mutants:
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        folder, last = Path(name).resolve(), {}
        unchanged = Copy(folder / "unchanged")
        unchanged.check_marks()
        for part in sorted({FOLDER[mutant][0] for mutant in mutants}):
            unchanged.compile(part)
        results = seeded.at_once(lambda mutant: killed_by(mutant, unchanged, folder, last), mutants)
        status = seeded.judge(mutants, results, lambda mutant: FOLDER[mutant][0], start)
        # Problems that catch the kernels without a bug have told nothing.
        for found in seeded.at_once(lambda op: unchanged.caught(op, last[op]), sorted(last)):
            if found:
                sys.exit(f"the unchanged kernels are wrong, too: {found[1]}")
        print(f"the unchanged kernels are right there; {time.monotonic() - start:.0f} s", flush=True)
        return status


if __name__ == "__main__":
    sys.path.append(str(ROOT))
    sys.exit(main(*sys.argv[1:]))
