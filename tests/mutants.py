"""Seeded bugs in the CPU kernels, each of which the random problems have to catch.

    python tests/mutants.py [part of a name]

Works on a copy of the sources in a temporary folder; compiles only the AVX2 code of the op that is wrong.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = 60


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    right: str  # occurs once
    wrong: str


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
RUN = '''
import sys
import torch
from lska_ops import _compiled
from lska_ops.testing.lska import NAMES
from lska_ops.testing.problems import random_problem, ratios, solve
assert _compiled.problem is None and _compiled.__file__.startswith(sys.argv[2]), _compiled.problem
torch.ops.lska_ops.set_cpu_isa("avx2")


def cascade(problem, dtype):
    """The cascade by itself, which no public function calls."""
    tensors = {n: None if t is None else t.to(dtype) for n, t in problem.tensors.items()}
    parts = [tensors[n] for name in NAMES[:4] for n in (name, f"{name}_bias")]
    return torch.ops.lska_ops.lska_cascade_fwd_cpu(tensors["x"], *parts, problem.options["dilation"])


def wrong(problem):
    if not max(ratios(problem, solve(problem, "cpu")).values()) <= 1:
        return True
    if problem.op != "lska" or problem.dtype not in (torch.float16, torch.bfloat16):
        return False
    return not torch.equal(cascade(problem, problem.dtype), cascade(problem, torch.float32).to(problem.dtype))


for seed in range(200_000, 200_000 + int(sys.argv[3])):
    if wrong(random_problem(sys.argv[1], seed)):
        sys.exit(f"problem {seed - 200_000 + 1}")
'''


class Copy:
    """The sources in a folder of their own, compiled there once; then only what a mutant changes."""

    def __init__(self, folder: Path):
        from rebuilt import package

        self.folder = folder
        for name in ("csrc", "build_backend"):
            shutil.copytree(ROOT / name, folder / name)
        compiled = folder / "build" / "compiled"
        if (
            ROOT / "build" / "compiled"
        ).is_dir():  # with the times kept, what is up to date is not compiled again
            shutil.copytree(ROOT / "build" / "compiled", compiled)
        subprocess.run([sys.executable, "-m", "build_backend", "build/compiled"], cwd=folder, check=True)
        self._optimize_less(compiled / "build.ninja")
        sys.path.insert(0, str(ROOT))
        from build_backend.facts import collect

        self.ninja = [collect().ninja, "-f", "build/compiled/build.ninja"]
        self.link = (
            self._said([*self.ninja, "-t", "commands", "build/compiled/_C.so"]).strip().splitlines()[-1]
        )
        self.objects = [
            p for p in sorted(compiled.glob("*.o")) if ".avx2." in p.name or p.name.endswith(".cpu.o")
        ]
        self.environment = package(folder, compiled / "_C.so")

    def _optimize_less(self, file: Path) -> None:
        """What is compiled again and again, at -O1."""
        blocks = re.split(r"(?m)^(?=build )", file.read_text())
        often = [".avx2." in block.split(":")[0] for block in blocks]
        file.write_text(
            "".join(b.replace("-O3", "-O1") if o else b for b, o in zip(blocks, often, strict=True))
        )

    def _said(self, command):
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def compile(self, op: str) -> None:
        mine = [str(p.relative_to(self.folder)) for p in self.objects if p.name.startswith(f"{op}.")]
        built = subprocess.run([*self.ninja, *mine], cwd=self.folder, capture_output=True, text=True)
        if built.returncode:
            sys.exit(f"a mutant does not compile:\n{built.stdout}")
        subprocess.run(self.link, shell=True, cwd=self.folder, check=True)
        shutil.copyfile(self.folder / "build" / "compiled" / "_C.so", self.folder / "lska_ops" / "_C.so")

    def caught(self, ops: tuple[str, ...], problems: int = PROBLEMS) -> str | None:
        """How the problems of one of the ops catch what is compiled, or None."""
        return next((how for op in ops if (how := self._caught(op, problems))), None)

    def _caught(self, op: str, problems: int) -> str | None:
        command = [sys.executable, "-c", RUN, op, str(self.folder), str(problems)]
        run = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if run.returncode < 0:
            return f"signal {-run.returncode}"
        if run.returncode and not run.stderr.startswith("problem "):
            sys.exit(f"the problems did not run:\n{run.stderr}")
        return run.stderr.strip() or None


def main(part: str = "") -> int:
    start, survivors = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = Copy(Path(folder).resolve())
        for op, asked, mutants in GROUPS:
            copy.compile(op)
            if how := copy.caught(asked):
                sys.exit(f"{op}: the unchanged kernels are wrong: {how}")
            for mutant in mutants:
                if part not in mutant.name:
                    continue
                file = copy.folder / "csrc" / op / mutant.file
                text = file.read_text()
                if text.count(mutant.right) != 1:
                    sys.exit(
                        f"{op}, {mutant.name}: occurs {text.count(mutant.right)} times in {mutant.file}; expected once"
                    )
                file.write_text(text.replace(mutant.right, mutant.wrong))
                copy.compile(op)
                how = copy.caught(asked)
                file.write_text(text)
                survivors += how is None
                print(f"{op:6} {mutant.name:40} {f'killed by {how}' if how else 'SURVIVED'}", flush=True)
            copy.compile(op)
    print(f"{survivors} survived; {time.monotonic() - start:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
