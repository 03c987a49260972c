"""Seeded bugs in the CUDA kernels, each of which a test of tests/test_host_cuda*.py has to catch.

python tests/host_cuda/mutants.py [part of "file: name"]
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
SUMS = "weight_gradients_of"
SECONDS = 300  # a test takes less than twenty, two at a time
MUTANTS = [
    Mutant(
        "missing barrier before a stage is written",
        "lska/kernels_plane.cuh",
        "    barrier();\n    if (active)\n      write_run(map",
        "    if (active)\n      write_run(map",
    ),
    Mutant(
        "missing barrier after rows entered",
        "lska/kernels_stream.cuh",
        "      barrier();\n      const int offset",
        "      const int offset",
        STREAMS,
    ),
    Mutant(
        "barrier that some threads skip",
        "lska/kernels_backward.cuh",
        "    if (step == 3) {\n",
        "    if (step == 3 && !here) return;\n    if (step == 3) {\n",
        GRADIENTS,
    ),
    Mutant(
        "halo one row short",
        "lska/kernels_line.cuh",
        "t.top = max(0, t.row - reach_v);",
        "t.top = max(0, t.row - reach_v + 1);",
    ),
    Mutant(
        "halo one column short",
        "lska/kernels_line.cuh",
        "t.width = min(m.W, t.col + t.cols + reach_h) - t.left;",
        "t.width = min(m.W, t.col + t.cols + max(reach_h - 1, 0)) - t.left;",
        STREAMS,
    ),
    Mutant(
        "wrong dilation at the right border",
        "lska/kernels_plane.cuh",
        "run.first = block * kRun * run.d + nth - block * run.d;",
        "run.first = block * kRun * run.d + nth - block * (run.d - (run.line == run.length - 1));",
    ),
    Mutant(
        "last tap dropped",
        "lska/kernels_line.cuh",
        "for (int t = 0; t < k; ++t, at += d) {",
        "for (int t = 0; t + 1 < k; ++t, at += d) {",
    ),
    Mutant(
        "last unrolled tap dropped",
        "lska/kernels_line.cuh",
        "if (j >= r && j - r < K) sum[r] = multiply_add(taps[j - r], v, sum[r]);",
        "if (j >= r && j - r < K - 1) sum[r] = multiply_add(taps[j - r], v, sum[r]);",
    ),
    Mutant(
        "biases of conv0h and conv_spatial_v exchanged",
        "lska/kernels_plane.cuh",
        "stage == 0   ? biases[4 * run.plane]",
        "stage == 0   ? biases[4 * run.plane + 3]",
    ),
    Mutant(
        "bias along columns as in the middle",
        "lska/kernels_line.cuh",
        "if (at >= 0 && at < W) sum += taps[t];",
        "sum += taps[t];",
    ),
    Mutant(
        "int32 index",
        "lska/kernels_plane.cuh",
        "const int64_t at = first_plane * a.map.H * W + int64_t(tile.row) * W;",
        "const int64_t at = int(first_plane * a.map.H * W + int64_t(tile.row) * W);",
        "offsets_beyond",
    ),
    Mutant(
        "int32 index in a stream",
        "lska/kernels_stream.cuh",
        "T* s = static_cast<T*>(a.s) + plane * H * W;",
        "T* s = static_cast<T*>(a.s) + int(plane * H * W);",
        "offsets_beyond",
    ),
    Mutant(
        "sum without an order: every tile adds to one place",
        "lska/kernels_backward.cuh",
        "(nth / C * blocks_y() + block_y()) * blocks_z() + block_z();",
        "nth / C * blocks_y() * blocks_z();",
        GRADIENTS,
    ),
    Mutant(
        "ring one slot short",
        "lska/kernels_stream.cuh",
        "slots1 = r.step + 2 * reach1;",
        "slots1 = r.step + 2 * reach1 - (reach1 > 0);",
        STREAMS,
    ),
    Mutant(
        "ring turns too late",
        "lska/kernels_stream.cuh",
        "slot -= slot >= p.slots ? p.slots : 0;",
        "slot -= slot > p.slots ? p.slots : 0;",
        STREAMS,
    ),
    Mutant(
        "drained rows lost",
        "lska/kernels_stream.cuh",
        "entered < bottom ? entered - reach0 : end0);",
        "entered - reach0);",
        STREAMS,
    ),
    Mutant(
        "taps not turned around",
        "lska/kernels_line.cuh",
        "(turned ? s.used - 1 - t : t)",
        "(turned && false ? s.used - 1 - t : t)",
        GRADIENTS,
    ),
    Mutant(
        "gradient of a tap counts the halo",
        "lska/kernels_backward.cuh",
        "const int end = min(run.length, begin + (vertical ? tile.rows : tile.cols));",
        "const int end = run.length;",
        GRADIENTS,
    ),
    Mutant(
        "columns' part of the tap gradients forgotten",
        "lska/kernels_backward.cuh",
        "if (summed == 1) sum += p.extra()[tap];",
        "",
        GRADIENTS,
    ),
    Mutant(
        "bias's gradient under another name",
        "lska/kernels_backward.cuh",
        "summed == 2 ? (k1 ? 1 : 2) : 4;",
        "summed == 2 ? 2 : 4;",
        GRADIENTS,
    ),
    Mutant(
        "shuffle of half a warp",
        "common/block_sum.cuh",
        "for (int mask = kWarp / 2;",
        "for (int mask = kWarp / 4;",
        GRADIENTS,
    ),
    Mutant("second plane's channel", "lska/kernels_line.cuh", "(channel + line / 4) % C;", "channel % C;"),
    Mutant(
        "last plane of a block left out",
        "lska/kernels_plane.cuh",
        "const Lines out{1, planes * tile.rows * W, 0};",
        "const Lines out{1, max(1, planes - 1) * tile.rows * W, 0};",
    ),
    Mutant(
        "a group's elements in the lanes' order",
        "lska/kernels_line.cuh",
        "rotate(v, (kVector<T> - by) % kVector<T>);",
        "rotate(v, by);",
    ),
    Mutant(
        "x read twice",
        "lska/kernels_plane.cuh",
        "  const Rows rows{W, r.pitch, r.by_cols};\n",
        "  const Rows rows{W, r.pitch, r.by_cols};\n  copy_in(x, Lines{1, planes * tile.height * W, 0}, map, rows);\n  barrier();\n",
        TRAFFIC,
    ),
    Mutant(
        "gate without conv1's bias",
        "lska/kernels_gate.cuh",
        "v[i] = to_float(in[i]) * (to_float(gate[i]) + bias);",
        "v[i] = to_float(in[i]) * to_float(gate[i]);",
    ),
    Mutant(
        "parts of the first image only",
        "lska/kernels_gate.cuh",
        "part < a.count; ++part",
        "part < min(a.count, int64_t(1)); ++part",
        GRADIENTS,
    ),
    Mutant(
        "stage by stage: row and column exchanged",
        "lska/kernels_stages.cuh",
        "const int64_t y = p / W, at = a.vertical ? y : p - y * W;",
        "const int64_t y = p / W, at = a.vertical ? p - y * W : y;",
    ),
]


# ACmix: what the issue of its kernels names, and what else could go wrong in a tile.
TILE, SHIFT, FORWARD = "acmix/kernels_tile.cuh", "acmix/kernels_shift.cuh", "acmix/kernels_forward.cuh"
QUERY, KEY, TILES = "acmix/kernels_query.cuh", "acmix/kernels_key.cuh", "tiles_within_bound"
MUTANTS += [
    Mutant(
        "multiplicity left out at corners",
        FORWARD,
        "const float times = count * w.count_x(x, tap_x);",
        "const float times = w.count_x(x, tap_x) > 1.f && count > 1.f ? 1.f : count * w.count_x(x, tap_x);",
    ),
    Mutant(
        "reflection repeats the border pixel",
        TILE,
        "const int period = 2 * (length - 1);\n  at = at < 0 ? -at : at;",
        "const int period = 2 * (length - 1);\n  at = at < 0 ? -at - 1 : at;",
    ),
    Mutant(
        "reflected only once",
        TILE,
        "at = at < period ? at : at % period;",
        "at = at < period ? at : 0;",
    ),
    Mutant(
        "a window's last column dropped",
        TILE,
        "for (int t = 0; t < K; ++t) sum[i][t] = multiply_add(q[i], w[4 + i + t - K / 2], sum[i][t]);",
        "for (int t = 0; t + 1 < K; ++t) sum[i][t] = multiply_add(q[i], w[4 + i + t - K / 2], sum[i][t]);",
    ),
    Mutant(
        "a window one column aside",
        TILE,
        "sum[d][i] = multiply_add(p[i], v[d][4 + i + t - K / 2], sum[d][i]);",
        "sum[d][i] = multiply_add(p[i], v[d][4 + i + t - K / 2 - (i == 3 && t > 0)], sum[d][i]);",
    ),
    Mutant(
        "log-sum-exp without the largest logit",
        FORWARD,
        "top + logarithm(sum));",
        "logarithm(sum));",
        GRADIENTS,
    ),
    Mutant(
        "log-sum-exp off by the scale",
        KEY,
        "exponential(scale * (weight + rises) - query[0]);",
        "exponential(scale * (weight + rises - query[0]));",
        GRADIENTS,
    ),
    Mutant(
        "attention's channels in the shift's order",
        FORWARD,
        "const int channel = h * a.D + dim + first + d;",
        "const int channel = (dim + first + d) * a.G + h;",
    ),
    Mutant(
        "shift's channels in attention's order",
        SHIFT,
        "float* out = total + ((dim + d) * a.G + g) * pixels + run.place;",
        "float* out = total + (g * (a.C / a.G) + dim + d) * pixels + run.place;",
    ),
    Mutant(
        "fc's inputs head by head",
        SHIFT,
        "const int64_t m = map % 3 * a.G + map / 3;",
        "const int64_t m = map;",
    ),
    Mutant(
        "position from the other side",
        TILE,
        "kKey ? there * a.stride - own : own * a.stride - there;",
        "kKey ? there * a.stride - own : there - own * a.stride;",
    ),
    Mutant(
        "query gradient without delta",
        QUERY,
        "weight *= rate1 * scale * (products[(tap_y * l.taps + tap_x) * band + n] - delta);",
        "weight *= rate1 * scale * products[(tap_y * l.taps + tap_x) * band + n];",
        GRADIENTS,
    ),
    Mutant(
        "key gradient counts a pair once",
        KEY,
        "const float p = rate1 * times * exponential",
        "const float p = rate1 * (times > 0.f ? 1.f : 0.f) * exponential",
        GRADIENTS,
    ),
    Mutant(
        "missing barrier before the softmax",
        FORWARD,
        "      barrier();\n      softmax<T>",
        "      softmax<T>",
    ),
    Mutant(
        "missing barrier before the next head is staged",
        FORWARD,
        "      const int dims = min(l.dims, a.D - t.dim);\n      barrier();",
        "      const int dims = min(l.dims, a.D - t.dim);",
        TILES,
    ),
    Mutant(
        "a region one row short",
        "acmix/plan.h",
        "(l.rows - 1) * scale + 1 + 2 * y, span",
        "(l.rows - 1) * scale + 1 + 2 * y - (y > 0), span",
    ),
    Mutant(
        "a column that is never loaded",
        "acmix/plan.h",
        "l.regular ? x - y : 0,",
        "l.regular && y ? x - y + 1 : 0,",
    ),
    Mutant(
        "a column that two rows share and both need",
        "acmix/plan.h",
        "overlaps && 2 * spare >= kAcmixRun",
        "overlaps && spare > 0",
    ),
    Mutant(
        "shift's taps not turned around",
        SHIFT,
        "const int tap = kTransposed ? 8 - 3 * dy - dx : 3 * dy + dx;",
        "const int tap = 3 * dy + dx;",
        GRADIENTS,
    ),
    Mutant(
        "weights' gradient counts pixels beyond the tile",
        SHIFT,
        "            if (x + i >= col + cols) continue;\n",
        "",
        "wide_maps",
    ),
    Mutant(
        "one thread's share of a sum lost",
        SHIFT,
        "for (int s = 0; s < a.splits; ++s) total",
        "for (int s = 0; s < max(1, a.splits - 1); ++s) total",
        GRADIENTS,
    ),
    Mutant(
        "weights' gradient by the query pass: taps not turned around",
        SHIFT,
        "multiply_add(grad[kAcmixAhead + 1 + j - tap], v[j], sum[part][tap]);",
        "multiply_add(grad[kAcmixAhead - 1 + j + tap], v[j], sum[part][tap]);",
        SUMS,
    ),
    Mutant(
        "weights' gradient by the query pass: a row of taps too many",
        SHIFT,
        "if (uint32_t(run.y - dy) >= uint32_t(a.Ho)) continue;",
        "if (run.y - dy < 0) continue;",
        SUMS,
    ),
    Mutant(
        "weights' gradient by the query pass: every image begins anew",
        SHIFT,
        "if (fast || tap == 0) out[part * a.G * taps + tap] += sum[part][tap];",
        "if (fast || tap == 0) out[part * a.G * taps + tap] = sum[part][tap];",
        SUMS,
    ),
    Mutant(
        "weights' gradient by the query pass: another head's place",
        SHIFT,
        "* 3 * a.G + head) * taps + line",
        "* 3 * a.G + a.G - 1 - head) * taps + line",
        SUMS,
    ),
    Mutant(
        "query pass: the last image of a block left out",
        QUERY,
        "for (; t.image < a.B; t.image += l.images) {",
        "for (; t.image < a.B - (a.B > 2); t.image += l.images) {",
        SUMS,
    ),
    Mutant(
        "rate2's gradient with rate2",
        SHIFT,
        "store(static_cast<T*>(a.grad_rate2), sum);",
        "store(static_cast<T*>(a.grad_rate2), rate2 * sum);",
        GRADIENTS,
    ),
    Mutant(
        "conv_p's gradient of the first band only",
        QUERY,
        "if (lane == 0) sums[2 * dim + i] += sum;",
        "if (lane == 0) sums[2 * dim + i] = sum;",
        GRADIENTS,
    ),
    Mutant(
        "pixels between the queries keep what was there",
        QUERY,
        "for (int dx = 0; dx < a.stride &&",
        "for (int dx = 0; dx < 1 &&",
        "writes_every_element",
    ),
    Mutant(
        "int32 index of a plane",
        FORWARD,
        "static_cast<const T*>(a.qkv) + (t.image * 3 * a.C + h * a.D) * plane;",
        "static_cast<const T*>(a.qkv) + int((t.image * 3 * a.C + h * a.D) * plane);",
        "offsets_beyond",
    ),
]


def run_test(mutant: Mutant, library: Path):
    """The finished run of the test that has to tell, or None where it did not end."""
    file = "tests/test_host_cuda_acmix.py" if mutant.file.startswith("acmix/") else "tests/test_host_cuda.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", mutant.test]
    environment = {**os.environ, "LSKA_OPS_HOST_CUDA": str(library), "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return None


def killed_by(mutant: Mutant, text: str, folder: Path) -> str | None:
    root = folder / mutant.name.replace(" ", "_").replace(":", "")
    for part in ("csrc", "tests/host_cuda"):
        shutil.copytree(ROOT / part, root / part)
    (root / "csrc" / mutant.file).write_text(text.replace(mutant.right, mutant.wrong))
    run = run_test(mutant, build(root / "build", "-O1", root))
    shutil.rmtree(root)
    if run is None:
        return f"{mutant.test}, which did not end in {SECONDS} s"
    if run.returncode < 0:
        return f"{mutant.test}, signal {-run.returncode}"
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    if run.returncode == 1 and failed:
        return failed[0].split("::")[1].split(" - ")[0]
    if run.returncode != 0:
        sys.exit(f"the tests did not run:\n{run.stdout}{run.stderr}")
    return None


def pass_unchanged(chosen, folder: Path) -> None:
    """Every test that has to tell passes where there is no bug."""
    library = build(folder / "unchanged", "-O1")
    for mutant in {(m.file.split("/")[0], m.test): m for m in chosen}.values():
        run = run_test(mutant, library)
        if run is None or run.returncode != 0:
            sys.exit(f"{mutant.test} fails without a seeded bug:\n{run.stdout if run else 'no end'}")


def main(part: str = "") -> int:
    start, chosen = time.monotonic(), [m for m in MUTANTS if part in f"{m.file}: {m.name}"]
    texts = {m.name: (ROOT / "csrc" / m.file).read_text() for m in chosen}
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
        pass_unchanged(chosen, Path(folder))
        results = pool.map(lambda m: killed_by(m, texts[m.name], Path(folder)), chosen)
        for mutant, how in zip(chosen, results, strict=True):
            survivors += how is None
            print(f"cuda   {mutant.name:52} {f'killed by {how}' if how else 'SURVIVED'}", flush=True)
    print(f"{survivors} of {len(chosen)} survived; {time.monotonic() - start:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
