"""LSKA's CUDA kernels on the CPU: what tests/host_cuda/runner.h runs has to answer as the fused backends do.

The library is compiled here, from the sources that nvcc compiles, the first time it is needed.
"""

import contextlib
import ctypes
import itertools
import math
import os
import random
import sys
from pathlib import Path

import pytest
import torch

from build_backend.decide import abi
from lska_ops import _compiled
from lska_ops.lska import LSKA
from lska_ops.lska import op as lska_op
from lska_ops.testing import problems
from lska_ops.testing.problems import LAYOUTS, random_problem, ratios, solve

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "host_cuda"))

if _compiled.problem:
    pytest.skip(f"cpu: {_compiled.problem}", allow_module_level=True)

from build import build  # noqa: E402

FORWARD, BACKWARD = 400, 200
SHARED, MULTIPROCESSORS, CACHE = 227 << 10, 132, 50 << 20
# (schedule, shared memory, multiprocessors, L2): all kernels get work, from whole planes to stage by stage.
DEVICES = {
    "h100": (SHARED, MULTIPROCESSORS, CACHE),
    "t4": (64 << 10, 40, 4 << 20),
    "strips": (20_000, 4, 1 << 14),
    "tiles": (8_000, 1000, 1 << 14),
    "stages": (1_000, 1, 0),
}


@pytest.fixture(scope="module")
def library():
    # tests/host_cuda/mutants.py runs these tests on libraries with a bug.
    given = os.environ.get("LSKA_OPS_HOST_CUDA")
    torch.ops.load_library(given or str(build(ROOT / "build" / "host_cuda")))
    return torch.ops.lska_ops_host


@pytest.fixture
def host(library, monkeypatch):
    """The library, taking the place of the CPU backend in lska()."""
    monkeypatch.setattr(lska_op, "_op", lambda name, backend: getattr(library, f"lska_{name}_cuda"))
    on(library)
    yield library
    on(library)
    library.only(0, 0)


def on(library, device="h100", schedule=0):
    library.configure(schedule, *DEVICES[device])
    library.take_counters()


def problem_of(seed):
    """The problem of this number in a dtype that CUDA takes."""
    while (problem := random_problem("lska", seed)).dtype == torch.float64:
        seed += 1_000_000
    return problem


def check(problem, backward):
    found = ratios(problem, solve(problem, "cpu", backward), "cuda")
    worst = max(found, key=found.get)
    assert found[worst] <= 1, (
        f"{worst} is {found[worst]:.3g} times the bound: problem {problem.seed}, {problem.repro('cuda')}"
    )


def depthwise(C, k0, k1, dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(k0 + k1)
    shapes = [(C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1)]
    weights = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    biases = [torch.randn(C, generator=generator).to(dtype) if bias else None for _ in shapes]
    return [t for pair in zip(weights, biases, strict=True) for t in pair]


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_forward_within_bound(host, device):
    part = FORWARD // len(DEVICES)
    first = 300_000 + list(DEVICES).index(device) * part
    for seed in range(first, first + part):
        for schedule in (0, seed):
            on(host, device, schedule)
            check(problem_of(seed), backward=False)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_gradients_within_bound(host, device):
    part = BACKWARD // len(DEVICES)
    first = 310_000 + list(DEVICES).index(device) * part
    for seed in range(first, first + part):
        for schedule in (0, seed):
            on(host, device, schedule)
            check(problem_of(seed), backward=True)


def in_channels_last(seed):
    """The problem of this number with a map in channels_last, and in every other one grad_y too."""
    problem = problem_of(seed)
    while problem.tensors["x"].shape[1] == 1 or problem.tensors["x"][0, 0].numel() == 1:
        seed += 1000  # where both layouts are one
        problem = problem_of(seed)
    problem.tensors["x"] = problem.tensors["x"].contiguous(memory_format=torch.channels_last)
    problem.layout = "channels_last"
    if seed % 2:
        problem.grad_y = problem.grad_y.contiguous(memory_format=torch.channels_last)
    return problem


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_channels_last_within_bound(host, device):
    first = 390_000 + list(DEVICES).index(device) * 50
    for seed in range(first, first + 50):
        for schedule in (0, seed):
            on(host, device, schedule)
            check(in_channels_last(seed), backward=True)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_cascade_is_the_same_in_both_layouts(host, device):
    """Bit by bit, where the same kernel computes it."""
    same = 0
    for seed in range(395_000, 395_030):
        problem = in_channels_last(seed)
        plans = [
            plan_of(problem, *DEVICES[device][:2], backward=False, channels_last=n) for n in (True, False)
        ]
        if plans[0]["kernel"] != plans[1]["kernel"]:
            continue
        same, x, answers = same + 1, problem.tensors["x"], []
        parts = [problem.tensors[n] for w in problems.OPS["lska"].NAMES[:4] for n in (w, f"{w}_bias")]
        for given in (x, x.contiguous()):
            on(host, device, seed)
            answers.append(host.lska_cascade_fwd_cuda(given, *parts, problem.options["dilation"]))
            assert answers[-1].stride() == given.stride()
        assert torch.equal(*answers), problem.repro("cuda")
    assert same >= 3, same


def large(seed):
    """A problem of few channels on a map larger than the random ones, and limits of a device."""
    while (problem := problem_of(seed)).tensors["x"].shape[1] > 4:
        seed += 1000
    choice = random.Random(seed)
    B, C = problem.tensors["x"].shape[:2]
    shape = (B, C, choice.randint(45, 130), choice.randint(20, 100))
    generator = torch.Generator().manual_seed(seed)
    x, problem.grad_y = (torch.randn(shape, generator=generator).to(problem.dtype) for _ in range(2))
    problem.tensors["x"] = LAYOUTS["sliced" if seed % 3 == 0 else "contiguous"](x)
    return problem, choice.choice((3_000, 6_000, 9_000, 14_000, 24_000)), choice.choice((1, 1000))


def plan_of(problem, shared, multiprocessors, backward, **layout):
    from lska_ops import _plan

    B, C, H, W = problem.tensors["x"].shape
    k0, w1 = problem.tensors["conv0h"].shape[3], problem.tensors["conv_spatial_h"]
    size = dict(B=B, C=C, H=H, W=W, k0=k0, k1=0 if w1 is None else w1.shape[3], **problem.options)
    return _plan.lska(backward, **size, shared_bytes=shared, multiprocessors=multiprocessors, **layout)


def test_host_cuda_streams_within_bound(host):
    seen = {"strips": 0, "bands": 0, "both": 0, "short reach": 0, "streams": 0}
    for seed in range(370_000, 370_400):
        problem, shared, multiprocessors = large(seed)
        plan = plan_of(problem, shared, multiprocessors, backward=False)
        if plan["kernel"] != "stream":
            continue
        _, bands, strips = plan["grid"]
        for what, so in zip(
            seen,
            (strips > 1, bands > 1, min(bands, strips) > 1, plan["reach_v"] < plan["step"], True),
            strict=True,
        ):
            seen[what] += so
        host.configure(seed, shared, multiprocessors, CACHE)
        check(problem, backward=False)
    assert min(seen.values()) >= 5, seen


def test_host_cuda_gradients_of_tiles_within_bound(host):
    tiles = 0
    for seed in range(380_000, 380_080):
        problem, shared, multiprocessors = large(seed)
        plan = plan_of(problem, 2 * shared, multiprocessors, backward=True)
        tiles += plan["kernel"] == "plane" and min(plan["grid"][1:]) > 1
        host.configure(seed, 2 * shared, multiprocessors, CACHE)
        check(problem, backward=True)
    assert tiles >= 5, tiles


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_cascade_is_rounded_once(host, device):
    for seed in range(320_000, 320_020):
        problem, kept = problem_of(seed), []
        for dtype in (problem.dtype, torch.float32):
            on(host, device)
            t = {n: None if v is None else v.to(dtype) for n, v in problem.tensors.items()}
            parts = [t[n] for name in problems.OPS["lska"].NAMES[:4] for n in (name, f"{name}_bias")]
            kept.append(host.lska_cascade_fwd_cuda(t["x"], *parts, problem.options["dilation"]))
        assert torch.equal(kept[0], kept[1].to(problem.dtype)), problem.repro("cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_repeats_bit_by_bit_on_any_schedule(host, device):
    for seed in range(330_000, 330_010):
        on(host, device)
        problem = problem_of(seed)
        first = solve(problem, "cpu")
        for schedule in (1, 2, 3):
            on(host, device, schedule)
            again = solve(problem, "cpu")
            assert all(torch.equal(first[n], again[n]) for n in first), problem.repro("cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_writes_every_element_and_leaves_inputs_alone(host, device):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    try:
        for seed in range(340_000, 340_020):
            on(host, device, seed)
            problem = problem_of(seed)
            kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
            for name, answer in solve(problem, "cpu").items():
                assert answer.isfinite().all(), f"{name}: {problem.repro('cuda')}"
            assert all(torch.equal(problem.tensors[n], t) for n, t in kept.items())
    finally:
        torch.use_deterministic_algorithms(False)


def check_not_finite(problem):
    """NaN and infinity are where PyTorch has them."""
    ours, theirs = solve(problem, "cpu"), solve(problem, "reference")
    for name in ours:
        a, b = ours[name].isfinite(), theirs[name].isfinite()
        if a.dim() == 4 and name not in ("y", "grad_x", "grad_conv1"):
            # PyTorch multiplies NaN with the zeros of its padding; a middle tap meets every pixel of the map.
            assert (a | ~b).all(), f"{name}: {problem.repro('cuda')}"
            a, b = (t[..., t.shape[2] // 2, t.shape[3] // 2] for t in (a, b))
        assert torch.equal(a, b), f"{name}: {problem.repro('cuda')}"


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_passes_nan_and_infinity_on_like_pytorch(host, device):
    for seed, value in itertools.product(range(350_000, 350_012), (torch.nan, torch.inf)):
        problem = problem_of(seed)
        if problem.dtype != torch.float32 or problem.layout == "expanded":
            continue
        x = problem.tensors["x"]
        x[tuple((seed * n + n) % side for n, side in enumerate(x.shape, 1))] = value
        on(host, device)
        check_not_finite(problem)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_cuda_takes_any_layout(host, layout):
    problem = problem_of(360_000)
    problem.tensors["x"] = LAYOUTS["expanded"](problem.tensors["x"]).contiguous()
    expected = solve(problem, "cpu")
    problem.tensors["x"] = LAYOUTS[layout](problem.tensors["x"])
    for name in LAYOUTS if layout == "channels_last" else ("contiguous", "channels_last"):
        problem.grad_y = LAYOUTS[name](problem.grad_y) if name != "expanded" else problem.grad_y
        answers = solve(problem, "cpu")
        if layout in ("channels_last", "offset"):  # other kernels, other products
            check(problem, backward=True)
        if layout == "channels_last":
            assert answers["y"].shape[1] > 1
            for answer in (answers["y"], answers["grad_x"]):
                assert answer.is_contiguous(memory_format=torch.channels_last) and not answer.is_contiguous()
        elif layout != "offset":
            assert all(torch.equal(expected[n], answers[n]) for n in expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 1, 40), (2, 3, 40, 1), (1, 2, 2, 3), (0, 4, 5, 5), (2, 0, 5, 5)]
)
def test_host_cuda_edges(host, device, shape):
    on(host, device)
    C = shape[1]
    x = torch.randn(shape, dtype=torch.float64).float()
    parts = depthwise(C, 5, 17)
    s = host.lska_cascade_fwd_cuda(x, *parts, 3)
    assert s.shape == x.shape
    if x.numel():
        expected = torch.ops.lska_ops.lska_cascade_fwd_cpu(x.double(), *[t.double() for t in parts], 3)
        assert ((s.double() - expected).abs() <= 2.0**-16 * (1 + expected.abs().max())).all()
    conv1 = torch.randn(C, C, 1, 1)
    grads = host.lska_bwd_cuda(torch.randn(shape), x, x.new_empty(0), *parts, conv1, None, 3)
    assert [g.shape for g in grads[1:9]] == [t.shape for t in parts] and grads[0].shape == x.shape
    if not x.numel():
        assert all(not g.any() for g in grads)


def minimum(x, maps):
    return maps * x.numel() * x.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("k0, k1, d", [(3, 3, 2), (5, 7, 3), (5, 17, 3)])
@pytest.mark.parametrize("C, side", [(3, 80), (5, 40), (7, 20), (9, 14), (32, 7)])
def test_host_cuda_forward_reads_and_writes_planes_once(library, C, side, k0, k1, d, dtype):
    for shared in (64 << 10, SHARED):
        library.configure(0, shared, 1, CACHE)
        x = torch.randn(2, C, side, side).to(dtype)
        parts = depthwise(C, k0, k1, dtype)
        library.take_counters()
        library.lska_cascade_fwd_cuda(x, *parts, d)
        loaded, stored, launches, _ = library.take_counters()
        weights = sum(t.numel() * t.element_size() for t in parts)
        assert stored == minimum(x, 1) and launches == 1
        # Weights are read once for each image; small maps show it. Small memory may take half a plane at a time.
        again = 1.05 if shared == SHARED or k0 > 3 else 1.15
        assert loaded - 2 * 2 * weights <= again * minimum(x, 1)
        if side >= 40:
            assert loaded + stored <= again * minimum(x, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("shared", [64 << 10, 99 << 10, 163 << 10, 227 << 10], ids=lambda n: f"{n >> 10}K")
@pytest.mark.parametrize("side", [160, 320])
def test_host_cuda_streams_read_little_twice(library, side, shared, dtype):
    library.configure(0, shared, 1, CACHE)
    x = torch.randn(1, 2, side, side).to(dtype)
    library.take_counters()
    library.lska_cascade_fwd_cuda(x, *depthwise(2, 7, 17, dtype), 3)  # no published pair, which has tiles
    loaded, stored, launches, _ = library.take_counters()
    assert launches == 1 and stored == minimum(x, 1)
    assert loaded + stored <= 1.25 * minimum(x, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10], ids=lambda n: f"{n >> 10}K")
@pytest.mark.parametrize("C, side", [(2, 80), (5, 40), (7, 20)])
def test_host_cuda_backward_reads_and_writes_maps_once(library, C, side, shared, dtype):
    library.configure(0, shared, 1, CACHE)
    x, ds = torch.randn(2, 2, C, side, side).to(dtype)
    parts = depthwise(C, 5, 17, dtype, bias=False)
    library.take_counters()
    _, sums = library.cascade_bwd(x, ds, *parts[::2], 3)
    weights = library.weight_bytes()  # every block reads the taps of its channels once
    loaded, stored, launches, blocks = library.take_counters()
    of_a_channel = sum(t[0].numel() * t.element_size() for t in parts[::2])
    assert 0 < weights <= blocks * min(C, 16) * of_a_channel
    assert launches == 1 and stored <= minimum(x, 1) + minimum(sums, 1)
    gate = minimum(x, 2)  # grad_y and product
    assert loaded + stored <= 1.3 * (minimum(x, 2) + minimum(ds, 1)) + gate + minimum(sums, 1) + weights


@contextlib.contextmanager
def reserved(bytes_):
    """Memory that is only reserved: what is not touched takes none."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long],
    )
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    read_write, private_anonymous_noreserve = 3, 0x4022
    at = libc.mmap(None, bytes_, read_write, private_anonymous_noreserve, -1, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        pytest.skip(f"{bytes_ >> 30} GB of address space cannot be reserved; raise the limit")
    try:
        yield (ctypes.c_char * bytes_).from_address(at)
    finally:
        libc.munmap(at, bytes_)


def test_host_cuda_offsets_beyond_two_to_the_31(library):
    """Maps of 2^32 elements: only the last block runs."""
    C, side = 1 << 20, 64
    assert C * side * side > 2**31
    with reserved(C * side * side * 2) as memory:
        x = torch.frombuffer(memory, dtype=torch.float16).view(1, C, side, side)
        x[0, -1, -1, -1] = 3
        taps = torch.ones(C, 1, 1, 1, dtype=torch.float16)
        try:
            for shared in (SHARED, 6_000, 500):  # a plane in shared memory; a stream; stage by stage
                library.configure(0, shared, 1, CACHE)
                library.only(C - 1, C)
                library.take_counters()
                s = library.lska_cascade_fwd_cuda(x, taps, None, taps, None, None, None, None, None, 1)
                _, _, launches, blocks = library.take_counters()
                assert s[0, -1, -1, -1] == 3 and s[0, -1].count_nonzero() == 1
                assert blocks < 10 * launches
                del s
            # The same in channels_last, whose last pixel has the last channels: planes; stage by stage.
            x = torch.frombuffer(memory, dtype=torch.float16).view(1, side, side, C).permute(0, 3, 1, 2)
            for shared, block, all_blocks in ((SHARED, C // 16 * 8 - 1, C // 16 * 8), (100, 255, 65535)):
                library.configure(0, shared, 1, CACHE)
                library.only(block, all_blocks)
                library.take_counters()
                s = library.lska_cascade_fwd_cuda(x, taps, None, taps, None, None, None, None, None, 1)
                assert s[0, -1, -1, -1] == 3
                del s
        finally:
            library.only(0, 0)
            library.configure(0, SHARED, MULTIPROCESSORS, CACHE)
            del x


def test_host_cuda_refuses_in_words(library):
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 1, 4)
    good = depthwise(4, 3, 3)
    for wrong, words in (
        ((x.double(), *good, 1), "x has dtype Double; expected float32, float16 or bfloat16"),
        ((x[0], *good, 1), r"x has shape \[4, 5, 5\]; expected \[B, C, H, W\]"),
        ((x, w, None, *good[2:], 1), r"conv0h weight has shape \[4, 1, 1, 4\]; expected an odd kernel size"),
        ((x, *good[:4], None, None, *good[6:], 1), "one of conv_spatial_h and conv_spatial_v is missing"),
        ((x, *good, 0), "dilation is 0; expected at least 1"),
        ((x, good[0], good[1][:2], *good[2:], 1), r"conv0h bias has shape \[2\]; expected \[4\]"),
        ((x.half(), *good, 1), "conv0h weight has dtype Float; expected x's, Half"),
    ):
        with pytest.raises(RuntimeError, match=words):
            library.lska_cascade_fwd_cuda(*wrong)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_host_cuda_takes_all_images_at_once_where_the_cache_is_small(library, layout):
    """Of GPUs; tests, whose limits have no compute capability, take images by the cache that they name."""
    C, rest = 8, (torch.randn(8, 8, 1, 1), torch.randn(8), 1, False)
    x, started = LAYOUTS[layout](torch.randn(6, C, 20, 20)), {}
    for cache, arch in ((1 << 14, 0), (4 << 20, 75), (1 << 14, 75), (64 << 20, 75)):
        library.configure(0, 64 << 10, 1, cache, arch)
        library.take_counters()
        library.lska_fwd_cuda(x, *depthwise(C, 3, 3), *rest)
        started[cache, arch] = library.take_counters()[2]
    library.configure(0, SHARED, MULTIPROCESSORS, CACHE)
    least = started[64 << 20, 75]
    assert started.pop((1 << 14, 0)) > least and set(started.values()) == {least}


def test_host_cuda_says_out_of_memory_where_torch_cannot_allocate(library):
    """What trains with ever smaller batches looks for these words; over ATen torch's own sentence arrives."""
    x, C = torch.randn(1, 1, 1, 1).expand(1 << 16, 1 << 10, 1 << 10, 1 << 10), 1 << 10
    words = "lska_cascade_fwd_cuda: PyTorch failed in it, most often because the device is out of memory: .*"
    with pytest.raises(RuntimeError, match=f"{words if abi(torch.__version__) == 'stable' else ''}allocate"):
        library.lska_cascade_fwd_cuda(x, *depthwise(C, 3, 3), 1)


COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::to", "aten::_to_copy")


def copies(call, elements):
    """What `call` copies or casts: [(operation, elements)] of those with at least so many."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as run:
        call()
    sizes = [(e.name, max((math.prod(s) for s in e.input_shapes if s), default=0)) for e in run.events()]
    assert any(name.startswith(("aten::bmm", "aten::mm")) for name, _ in sizes), "nothing was seen"
    return [(name, size) for name, size in sizes if name in COPIES and size >= elements]


@pytest.mark.parametrize("device", ["h100", "tiles", "stages"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_host_cuda_copies_no_map(host, layout, dtype, device):
    on(host, device)
    module = LSKA(16, 11).to(dtype)
    x, grad_y = (LAYOUTS[layout](torch.randn(3, 16, 12, 9).to(dtype)) for _ in range(2))
    x.requires_grad_()
    answers = []

    def call():
        y = module(x)
        answers.extend([y, *torch.autograd.grad(y, [x, *module.parameters()], grad_y)])

    with torch.no_grad():
        assert copies(lambda: answers.append(module(x)), x.numel() // x.shape[0]) == []
    assert copies(call, x.numel() // x.shape[0]) == []
    assert all(answer.stride() == x.stride() for answer in answers[:3]), "not in x's layout"
    # A map that comes in another layout than x's is copied, once.
    other = torch.contiguous_format if layout == "channels_last" else torch.channels_last
    other = grad_y.contiguous(memory_format=other)
    y = module(x)
    found = copies(lambda: torch.autograd.grad(y, [x], other), x.numel() // x.shape[0])
    assert [name for name, _ in found] == ["aten::copy_"]


@pytest.mark.parametrize("B", [1, 4])
def test_host_cuda_casts_weights_once_a_step(host, B):
    """Under autocast: as often as autocast itself would for convolutions, whatever a call is divided into."""
    host.configure(0, SHARED, 1, 1)  # an image at a time
    module, x = LSKA(8, 11), torch.randn(B, 8, 10, 10, dtype=torch.bfloat16)
    weights = list(module.parameters())
    ys = []

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            ys.append(module(x))

    casts = [name for name, _ in copies(step, 1) if name == "aten::_to_copy"]
    assert len(casts) == len(weights) == 10
    grads = []
    casts = copies(lambda: grads.extend(torch.autograd.grad(ys[0], weights, torch.ones_like(x))), 1)
    assert [name for name, _ in casts].count("aten::_to_copy") == len(weights), "one a gradient, to float32"
    assert all(g.dtype == torch.float32 for g in grads)
