"""Seeded bugs in the CUDA kernels, each of which a test of tests/test_host_cuda.py has to catch.

python tests/host_cuda/mutants.py [part of a name]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build import ROOT, build


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    right: str  # occurs once
    wrong: str
    test: str = "forward_within_bound"  # who has to kill it


GRADIENTS, TRAFFIC, STREAMS = "gradients_within_bound", "reads_and_writes", "streams_within_bound"
SECONDS = 60  # a test takes ten at most
MUTANTS = [
    Mutant(
        "missing barrier before a stage is written",
        "kernels_plane.cuh",
        "    barrier();\n    if (active)\n      write_run(map",
        "    if (active)\n      write_run(map",
    ),
    Mutant(
        "missing barrier after rows entered",
        "kernels_stream.cuh",
        "      barrier();\n      const int offset",
        "      const int offset",
        STREAMS,
    ),
    Mutant(
        "barrier that some threads skip",
        "kernels_backward.cuh",
        "    if (step == 3) {\n",
        "    if (step == 3 && !here) return;\n    if (step == 3) {\n",
        GRADIENTS,
    ),
    Mutant(
        "halo one row short",
        "kernels_line.cuh",
        "t.top = max(0, t.row - reach_v);",
        "t.top = max(0, t.row - reach_v + 1);",
    ),
    Mutant(
        "halo one column short",
        "kernels_line.cuh",
        "t.width = min(m.W, t.col + t.cols + reach_h) - t.left;",
        "t.width = min(m.W, t.col + t.cols + max(reach_h - 1, 0)) - t.left;",
        STREAMS,
    ),
    Mutant(
        "wrong dilation at the right border",
        "kernels_plane.cuh",
        "run.first = block * kRun * run.d + nth - block * run.d;",
        "run.first = block * kRun * run.d + nth - block * (run.d - (run.line == run.length - 1));",
    ),
    Mutant(
        "last tap dropped",
        "kernels_line.cuh",
        "for (int t = 0; t < k; ++t, at += d) {",
        "for (int t = 0; t + 1 < k; ++t, at += d) {",
    ),
    Mutant(
        "last unrolled tap dropped",
        "kernels_line.cuh",
        "if (j >= r && j - r < K) sum[r] = multiply_add(taps[j - r], v, sum[r]);",
        "if (j >= r && j - r < K - 1) sum[r] = multiply_add(taps[j - r], v, sum[r]);",
    ),
    Mutant(
        "biases of conv0h and conv_spatial_v exchanged",
        "kernels_plane.cuh",
        "stage == 0   ? biases[4 * run.plane]",
        "stage == 0   ? biases[4 * run.plane + 3]",
    ),
    Mutant(
        "bias along columns as in the middle",
        "kernels_line.cuh",
        "if (at >= 0 && at < W) sum += taps[t];",
        "sum += taps[t];",
    ),
    Mutant(
        "int32 index",
        "kernels_plane.cuh",
        "const int64_t at = first_plane * a.map.H * W + int64_t(tile.row) * W;",
        "const int64_t at = int(first_plane * a.map.H * W + int64_t(tile.row) * W);",
        "offsets_beyond",
    ),
    Mutant(
        "int32 index in a stream",
        "kernels_stream.cuh",
        "T* s = static_cast<T*>(a.s) + plane * H * W;",
        "T* s = static_cast<T*>(a.s) + int(plane * H * W);",
        "offsets_beyond",
    ),
    Mutant(
        "sum without an order: every tile adds to one place",
        "kernels_backward.cuh",
        "(nth / C * blocks_y() + block_y()) * blocks_z() + block_z();",
        "nth / C * blocks_y() * blocks_z();",
        GRADIENTS,
    ),
    Mutant(
        "ring one slot short",
        "kernels_stream.cuh",
        "slots1 = r.step + 2 * reach1;",
        "slots1 = r.step + 2 * reach1 - (reach1 > 0);",
        STREAMS,
    ),
    Mutant(
        "ring turns too late",
        "kernels_stream.cuh",
        "slot -= slot >= p.slots ? p.slots : 0;",
        "slot -= slot > p.slots ? p.slots : 0;",
        STREAMS,
    ),
    Mutant(
        "drained rows lost",
        "kernels_stream.cuh",
        "entered < bottom ? entered - reach0 : end0);",
        "entered - reach0);",
        STREAMS,
    ),
    Mutant(
        "taps not turned around",
        "kernels_line.cuh",
        "(turned ? s.used - 1 - t : t)",
        "(turned && false ? s.used - 1 - t : t)",
        GRADIENTS,
    ),
    Mutant(
        "gradient of a tap counts the halo",
        "kernels_backward.cuh",
        "const int end = min(run.length, begin + (vertical ? tile.rows : tile.cols));",
        "const int end = run.length;",
        GRADIENTS,
    ),
    Mutant(
        "columns' part of the tap gradients forgotten",
        "kernels_backward.cuh",
        "if (summed == 1) sum += p.extra()[tap];",
        "",
        GRADIENTS,
    ),
    Mutant(
        "bias's gradient under another name",
        "kernels_backward.cuh",
        "summed == 2 ? (k1 ? 1 : 2) : 4;",
        "summed == 2 ? 2 : 4;",
        GRADIENTS,
    ),
    Mutant(
        "shuffle of half a warp",
        "kernels_backward.cuh",
        "for (int mask = kWarp / 2;",
        "for (int mask = kWarp / 4;",
        GRADIENTS,
    ),
    Mutant("second plane's channel", "kernels_line.cuh", "(channel + line / 4) % C;", "channel % C;"),
    Mutant(
        "last plane of a block left out",
        "kernels_plane.cuh",
        "const Lines out{1, planes * tile.rows * W, 0};",
        "const Lines out{1, max(1, planes - 1) * tile.rows * W, 0};",
    ),
    Mutant(
        "a group's elements in the lanes' order",
        "kernels_line.cuh",
        "rotate(v, (kVector<T> - by) % kVector<T>);",
        "rotate(v, by);",
    ),
    Mutant(
        "x read twice",
        "kernels_plane.cuh",
        "  const Rows rows{W, r.pitch, r.by_cols};\n",
        "  const Rows rows{W, r.pitch, r.by_cols};\n  copy_in(x, Lines{1, planes * tile.height * W, 0}, map, rows);\n  barrier();\n",
        TRAFFIC,
    ),
    Mutant("gate without conv1's bias", "kernels_gate.cuh", "v[i] *= gate[i] + bias;", "v[i] *= gate[i];"),
    Mutant(
        "parts of the first image only",
        "kernels_gate.cuh",
        "part < a.count; ++part",
        "part < min(a.count, int64_t(1)); ++part",
        GRADIENTS,
    ),
    Mutant(
        "stage by stage: row and column exchanged",
        "kernels_stages.cuh",
        "const int64_t y = p / W, at = a.vertical ? y : p - y * W;",
        "const int64_t y = p / W, at = a.vertical ? p - y * W : y;",
    ),
]


def killed_by(mutant: Mutant, text: str, folder: Path) -> str | None:
    root = folder / mutant.name.replace(" ", "_").replace(":", "")
    for part in ("csrc", "tests/host_cuda"):
        shutil.copytree(ROOT / part, root / part)
    (root / "csrc" / "lska" / mutant.file).write_text(text.replace(mutant.right, mutant.wrong))
    library = build(root / "build", "-O1", root)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/test_host_cuda.py",
        "-k",
    ]
    environment = {**os.environ, "LSKA_OPS_HOST_CUDA": str(library), "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            [*command, mutant.test],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{mutant.test}, which did not end in {SECONDS} s"
    shutil.rmtree(root)
    if run.returncode < 0:
        return f"{mutant.test}, signal {-run.returncode}"
    if run.returncode == 1:
        failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
        return failed[0].split("::")[1].split(" - ")[0] if failed else mutant.test
    if run.returncode != 0:
        sys.exit(f"the tests did not run:\n{run.stdout}{run.stderr}")
    return None


def main(part: str = "") -> int:
    start, chosen = time.monotonic(), [m for m in MUTANTS if part in m.name]
    texts = {m.name: (ROOT / "csrc" / "lska" / m.file).read_text() for m in chosen}
    for mutant in chosen:
        if texts[mutant.name].count(mutant.right) != 1:
            sys.exit(
                f"{mutant.name}: occurs {texts[mutant.name].count(mutant.right)} times in {mutant.file}; expected once"
            )
    survivors = 0
    with (
        tempfile.TemporaryDirectory(prefix="cuda_mutants_") as folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        results = pool.map(lambda m: killed_by(m, texts[m.name], Path(folder)), chosen)
        for mutant, how in zip(chosen, results, strict=True):
            survivors += how is None
            print(f"cuda   {mutant.name:52} {f'killed by {how}' if how else 'SURVIVED'}", flush=True)
    print(f"{survivors} of {len(chosen)} survived; {time.monotonic() - start:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
