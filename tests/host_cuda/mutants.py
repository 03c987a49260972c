"""Seeded bugs in the CUDA kernels, each of which a test of tests/test_host_cuda*.py has to catch.

    python tests/host_cuda/mutants.py [part of "file: name"] [--tenth N]

Compiles only the op that is wrong, two bugs at a time; the others' objects are those that the tests built.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from acmix_mutants import ACMIX, GRADIENTS
from bands_mutants import BANDS
from products_backward_mutants import PRODUCTS_BACKWARD
from products_mutants import PRODUCTS
from tiles_mutants import BACKWARD_TILES, TILES

from build import ROOT, build, compile_object, link

sys.path.append(str(ROOT / "tests"))

import seeded  # noqa: E402
from seeded import Mutant  # noqa: E402

TRAFFIC, STREAMS = "reads_and_writes", "streams_within_bound"
LAST = "channels_last_within_bound"
LSKA = [
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
        "lska/kernels_line.cuh",
        "return (plane * m.H + row) * m.W + col;",
        "return int((plane * m.H + row) * m.W + col);",
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
        "copy_out(s, Lines{1, planes * tile.rows * W, 0}, rows, core);",
        "copy_out(s, Lines{1, max(1, planes - 1) * tile.rows * W, 0}, rows, core);",
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
        "copy_in(x, Lines{1, planes * tile.height * W, 0}, map, rows);",
        "for (int i = 0; i < 2; ++i) copy_in(x, Lines{1, planes * tile.height * W, 0}, map, rows);",
        TRAFFIC,
    ),
    Mutant(
        "gate without conv1's bias",
        "lska/kernels_gate.cuh",
        "v[i] = to_float(in[i]) * (to_float(gate[i]) + bias[i]);",
        "v[i] = to_float(in[i]) * to_float(gate[i]);",
    ),
    Mutant(
        "parts of the first image only",
        "lska/kernels_gate.cuh",
        "part < sums.count; part += sums.split",
        "part < min(sums.count, 1); part += sums.split",
        GRADIENTS,
    ),
    Mutant(
        "stage by stage: row and column exchanged",
        "lska/kernels_stages.cuh",
        "y = p / W, at = a.vertical ? y : p - y * W;",
        "y = p / W, at = a.vertical ? p - y * W : y;",
    ),
    Mutant(
        "channels_last: row and column exchanged",
        "lska/kernels_line.cuh",
        "channel * p.plane_pitch + row * p.pitch + col,",
        "channel * p.plane_pitch + col * p.pitch + row,",
        LAST,
    ),
    Mutant(
        "channels_last: a block's last channels are the next pixel's",
        "lska/kernels_line.cuh",
        "return {image * m.C + channel, min(r.planes, m.C - channel)};",
        "return {image * m.C + channel, r.planes};",
        LAST,
    ),
    Mutant(
        "channels_last: a tile's first row is the image's",
        "lska/kernels_line.cuh",
        "return ((image * m.H + row) * m.W + col) * m.C",
        "return (image * m.H * m.W + col) * m.C",
        LAST,
    ),
    Mutant(
        "channels_last: vectors of any number of channels",
        "lska/kernels_line.cuh",
        "return channels % kVector<T> == 0 && C % kVector<T> == 0 &&",
        "return channels % kVector<T> == 0 &&",
        LAST,
    ),
    Mutant(
        "channels_last: the gate's part of grad_x with the first channel's bias",
        "lska/kernels_backward.cuh",
        "return channel + i;",
        "return channel;",
        LAST,
    ),
    Mutant(
        "channels_last: a stage's neighbours are other channels",
        "lska/kernels_stages.cuh",
        "stride = (a.vertical ? W : 1) * lanes;",
        "stride = a.vertical ? W : 1;",
        LAST,
    ),
    Mutant(
        "channels_last: a warp's part of a stage's sums",
        "lska/kernels_stages.cuh",
        "writes && w < warps; ++w)",
        "writes && w + 1 < warps; ++w)",
        LAST,
    ),
    Mutant(
        "channels_last: grad_product's sums without the last row of a block",
        "lska/kernels_gate.cuh",
        "for (int r = 0; r < rows; ++r) total +=",
        "for (int r = 0; r < max(rows - 1, 1); ++r) total +=",
        LAST,
    ),
    Mutant(
        "channels_last: conv1's weight not transposed",
        "lska/launch.h",
        "transposed ? C : 1, transposed ? 1 : C)",
        "transposed ? 1 : C, transposed ? C : 1)",
        LAST,
    ),
    Mutant(
        "a map in another layout than x's taken as it is",
        "lska/launch.h",
        "    check_shape(op, name, t, {size.B, size.C, size.H, size.W});\n    return in_layout(t);",
        "    check_shape(op, name, t, {size.B, size.C, size.H, size.W});\n    return t;",
        LAST,
    ),
    Mutant(
        "channels_last: x copied to NCHW",
        "lska/launch.h",
        "channels_last = channels_last_in_memory(x);",
        "channels_last = false;",
        "copies_no_map",
    ),
    Mutant(
        "channels_last: every thread's channels are the first",
        "lska/kernels_gate.cuh",
        "divided_rest(nth * N, a.map.C)",
        "0 * divided_rest(nth * N, a.map.C)",
        LAST,
    ),
    Mutant(
        "gate: the plane changes one element late",
        "lska/kernels_gate.cuh",
        "if (!one && --left == 0) {",
        "if (!one && left-- == 0) {",
    ),
    Mutant(
        "gate: the second part of a plane's sums lost",
        "lska/kernels_gate.cuh",
        "(image * a.plan.parts + part) * a.map.C",
        "(image * a.plan.parts) * a.map.C",
        GRADIENTS,
    ),
    Mutant(
        "parts of other threads lost",
        "lska/kernels_gate.cuh",
        "nth == 0 && w < sums.split; ++w)",
        "nth == 0 && w < 1; ++w)",
        GRADIENTS,
    ),
    Mutant(
        "sums of conv1's bias begin with the taps' blocks",
        "lska/kernels_gate.cuh",
        "i = (block_x() - sums.first_block) * mine",
        "i = block_x() * mine",
        GRADIENTS,
    ),
]
MUTANTS = LSKA + TILES + BACKWARD_TILES + BANDS + ACMIX + PRODUCTS + PRODUCTS_BACKWARD
SECONDS = 300  # compiled and tested in less than thirty, two at a time
FORWARD = "forward_within_bound"  # of a bug that names no test
SOURCES = {
    "lska": "ops.cpp",
    "tiles": "tiles.cpp",
    "tiles_backward": "tiles_backward.cpp",
    "bands": "bands.cpp",
    "acmix": "acmix_ops.cpp",
    "acmix_products": "acmix_products.cpp",
    "acmix_products_shift": "acmix_products_shift.cpp",
    "acmix_products_backward": "acmix_products_backward.cpp",
}
# Which of them have the kernels of a file of ACmix's, or call its launchers and plans, if not all.
PRODUCTS_KERNELS = ("acmix_products", "acmix_products_shift", "acmix_products_backward")
ONLY = {
    "acmix/kernels_products.cuh": ("acmix_products",),
    "acmix/kernels_products_tile.cuh": PRODUCTS_KERNELS,
    "acmix/kernels_products_shift.cuh": PRODUCTS_KERNELS,
    "acmix/kernels_products_window.cuh": ("acmix_products", "acmix_products_backward"),
    "acmix/kernels_products_backward.cuh": ("acmix_products_backward",),
    "acmix/kernels_products_backward_tile.cuh": ("acmix_products_backward",),
    "acmix/kernels_products_shift_weights.cuh": ("acmix_products_shift",),
    "acmix/kernels_products_shift_backward.cuh": ("acmix_products_shift", "acmix_products_backward"),
    "acmix/launch_products.h": ("acmix",),
    "acmix/launch_products_backward.h": ("acmix",),
    "acmix/launch_products_shift_backward.h": ("acmix",),
    # But for their constants, which kernels have as well.
    "acmix/plan_products_backward.h": ("acmix",),
    "acmix/plan_products_shift_backward.h": ("acmix",),
}
FLAGS = "-O1"


def run_tests(tests, library: Path) -> int:
    """pytest's exit status of `tests`, its words, up to the first that fails; a signal ends what does not."""
    import pytest

    signal.alarm(SECONDS)
    os.environ["LSKA_OPS_HOST_CUDA"] = str(library)
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


def touched(mutant: Mutant) -> tuple[str, ...]:
    """The sources whose kernels it is in."""
    folder = mutant.file.split("/")[0]
    part = "tiles" if mutant in TILES else "tiles_backward" if mutant in BACKWARD_TILES else folder
    part = "bands" if mutant in BANDS else part
    if folder == "acmix":
        return ONLY.get(mutant.file) or tuple(name for name in SOURCES if name.startswith("acmix"))
    return tuple(SOURCES) if folder == "common" else (part,)


def asked(mutant: Mutant) -> list[str]:
    """The test that has to tell, as pytest's words."""
    if mutant in BACKWARD_TILES:
        return ["tests/test_host_cuda_tiles_backward.py", "-k", mutant.test or "tiles_gradients_within_bound"]
    if mutant in BANDS:
        return ["tests/test_host_cuda_bands.py", "-k", mutant.test]
    if mutant in PRODUCTS_BACKWARD:
        files = (f"tests/test_host_cuda_acmix_{part}_backward.py" for part in ("products", "shift"))
        return [*files, "-k", mutant.test]
    if mutant in PRODUCTS:
        return ["tests/test_host_cuda_acmix_products.py", "-k", mutant.test]
    op = "_acmix" if mutant.file.startswith("acmix/") else "_tiles" if mutant in TILES else ""
    return [f"tests/test_host_cuda{op}.py", "-k", mutant.test or FORWARD]


def try_out(mutant: Mutant, unchanged: dict[str, Path], folder: Path) -> int:
    root = folder / mutant.name.replace(" ", "_").replace(":", "").replace("/", "_")
    for part in ("csrc", "tests/host_cuda"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    file = root / "csrc" / mutant.file
    file.write_text(seeded.with_bug(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    objects = unchanged | {
        op: compile_object(SOURCES[op], root / f"{op}.o", FLAGS, root) for op in touched(mutant)
    }
    return run_tests(asked(mutant), link(objects.values(), root / "host_cuda.so"))


def killed_by(mutant: Mutant, ended: seeded.Ended, told: list) -> str | None:
    """How a test caught it; `told` gets the words for pytest of what has to pass where there is no bug."""
    if ended.status < 0:
        told.append(asked(mutant))
        end = f"did not end in {SECONDS} s" if ended.status == -signal.SIGALRM else f"signal {-ended.status}"
        return f"{mutant.test or FORWARD}, {end}"
    failed = [line[7:].split(" - ")[0] for line in ended.said.splitlines() if line.startswith("FAILED ")]
    if ended.status == 1 and failed:
        told.append([failed[0]])
        return failed[0].split("::")[1]
    if ended.status != 0:
        sys.exit(f"the tests did not run:\n{ended.said}")
    return None


def pass_unchanged(told: list, library: Path) -> None:
    """Every test that caught a bug passes where there is none."""
    tests = [list(words) for words in sorted(set(map(tuple, told)))]
    runs = seeded.forked(partial(run_tests, words, library) for words in tests)
    for words, ended in zip(tests, runs, strict=True):
        if ended.status:
            sys.exit(f"{words} fails without a seeded bug:\n{ended.said}")


def main(*words: str) -> int:
    start = time.monotonic()
    mutants = seeded.chosen(MUTANTS, words, lambda m: f"{m.file}: {m.name}")
    for mutant in mutants:
        seeded.with_bug((ROOT / "csrc" / mutant.file).read_text(encoding="utf-8"), mutant)
    if not mutants:
        return 0
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory(prefix="cuda_mutants_") as name:
        folder = Path(name)
        built = build(ROOT / "build" / "host_cuda").parent
        unchanged = {op: built / source.replace(".cpp", ".o") for op, source in SOURCES.items()}
        import lska_ops.testing.problems  # noqa: F401  torch and all: once for all children

        told = []
        children = seeded.forked(partial(try_out, mutant, unchanged, folder) for mutant in mutants)
        results = (killed_by(*pair, told) for pair in zip(mutants, children, strict=True))
        status = seeded.judge(mutants, results, lambda mutant: "cuda", start)
        pass_unchanged(told, link(unchanged.values(), folder / "unchanged.so"))
        print(f"without a bug these tests pass; {time.monotonic() - start:.0f} s", flush=True)
        return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
