"""ACmix's CUDA kernels on the CPU, as tests/test_host_cuda.py has LSKA's."""

import itertools
import random
from functools import partial

import pytest
import torch
from test_host_cuda import CACHE, library, reserved  # noqa: F401

from lska_ops.acmix import compiled
from lska_ops.acmix import op as acmix_op
from lska_ops.testing.acmix import sizes
from lska_ops.testing.problems import LAYOUTS, random_problem, ratios, solve

FORWARD, BACKWARD = 240, 120
# Shared memory and multiprocessors: whole heads and dims by dims, both halves at once and one after the other.
DEVICES = {
    "h100": (227 << 10, 132),
    "t4": (64 << 10, 40),
    "one": (227 << 10, 1),
    "many": (99 << 10, 5000),
    "narrow": (48_000, 2),
}


@pytest.fixture
def host(library, monkeypatch):  # noqa: F811
    """The library, taking the place of the CPU backend behind acmix's core."""
    monkeypatch.setattr(acmix_op, "_op", lambda name, backend: getattr(library, f"acmix_core_{name}_cuda"))
    on(library)
    yield library
    on(library)
    library.only(0, 0)


def on(library, device="h100", schedule=0):  # noqa: F811
    library.configure(schedule, *DEVICES[device], CACHE)
    library.take_counters()


def problem_of(seed, op="acmix"):
    """The problem of this number, of a dtype and sizes that CUDA takes."""
    while (problem := random_problem(op, seed)).dtype == torch.float64 or compiled.too_much(**sizes(problem)):
        seed += 1_000_000
    return problem


def check(problem, backward):
    found = ratios(problem, solve(problem, "cpu", backward), "cuda")
    worst = max(found, key=found.get)
    assert found[worst] <= 1, (
        f"{worst} is {found[worst]:.3g} times the bound: problem {problem.seed}, {problem.repro('cuda')}"
    )


def half(problem, attention):
    """What the registered ops take for one half alone, after qkv."""
    t, o = problem.tensors, problem.options
    names = ("conv_p", None, None, "rate1", None) if attention else (None, "fc", "dep_conv", None, "rate2")
    return [t[n] if n else None for n in names], list(o.values())


def check_half(host, problem, attention):
    """One half, judged as the whole without the other."""
    given, options = half(problem, attention)
    other = "rate2" if attention else "rate1"
    y, lse = host.acmix_core_fwd_cuda(problem.tensors["qkv"], *given, *options)
    grads = host.acmix_core_bwd_cuda(problem.grad_y, problem.tensors["qkv"], lse, *given, *options)
    assert attention or lse.shape == (0,)
    problem.tensors[other] = torch.zeros_like(problem.tensors[other])
    answers = {"y": y, "grad_qkv": grads[0]}
    names = ("conv_p", "fc", "dep_conv", "rate1", "rate2")
    for name, part, grad in zip(names, given, grads[1:], strict=True):
        assert grad.shape == ((0,) if part is None else part.shape)
        if part is not None:
            answers[f"grad_{name}"] = grad
    found = ratios(problem, answers, "cuda")
    worst = max(found, key=found.get)
    assert found[worst] <= 1, f"{worst} is {found[worst]:.3g} times the bound: {problem.repro('cuda')}"


def parts(device, count, first):
    part = count // len(DEVICES)
    return range(first + list(DEVICES).index(device) * part, first + (list(DEVICES).index(device) + 1) * part)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_forward_within_bound(host, device):
    for seed in parts(device, FORWARD, 500_000):
        for schedule in (0, seed):
            on(host, device, schedule)
            check(problem_of(seed), backward=False)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_gradients_within_bound(host, device):
    for seed in parts(device, BACKWARD, 510_000):
        for schedule in (0, seed):
            on(host, device, schedule)
            check(problem_of(seed), backward=True)


def resized(seed, B, G, D, K, Kc, H, W, stride=1, dilation=1):
    """The problem of this number with other sizes."""
    problem, generator = problem_of(seed), torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator) * scale).to(problem.dtype)

    problem.options.update(head=G, kernel_att=K, stride=stride, dilation=dilation)
    problem.tensors.update(
        qkv=normal(B, 3 * G * D, H, W),
        conv_p=normal(D, 2, 1, 1),
        conv_p_bias=None,
        fc=normal(Kc * Kc, 3 * G, 1, 1, scale=(3 * G) ** -0.5),
        dep_conv=normal(G * D, Kc * Kc, Kc, Kc, scale=1 / Kc),
    )
    problem.grad_y = normal(B, G * D, -(-H // stride), -(-W // stride))
    return problem


def larger(seed):
    """A problem on a map of several tiles, with a published window."""
    choice = random.Random(seed)
    G, D = choice.choice(((1, 24), (2, 7), (4, 4), (4, 16), (8, 2), (1, 64), (2, 32), (1, 192), (1, 96)))
    K, Kc = choice.choice((3, 5, 7, 7, 7, 9)), choice.choice((1, 3, 3, 3, 5))
    H, W = (choice.randint(20, 50) if D < 32 else choice.randint(9, 20) for _ in range(2))
    stride, dilation = choice.choice(((1, 1), (1, 1), (1, 1), (2, 1), (1, 2)))
    return resized(seed, 1, G, D, K, Kc, H, W, stride, dilation), choice.choice(list(DEVICES))


@pytest.mark.parametrize("part", range(4))
def test_host_cuda_acmix_tiles_within_bound(host, part):
    for seed in range(520_000 + 10 * part, 520_000 + 10 * part + 10):
        problem, device = larger(seed)
        on(host, device, seed)
        check(problem, backward=True)


# B, G, D, H, W, bytes of shared memory: room for a head's dims at once, and for few of them.
SUMMED = {"whole heads": (5, 2, 3, 21, 17, 40 << 10), "dims by dims": (5, 2, 16, 12, 14, 72 << 10)}


@pytest.mark.parametrize("room", SUMMED)
@pytest.mark.parametrize("K, Kc, dilation", [(7, 3, 1), (5, 5, 1), (3, 3, 2)])
def test_host_cuda_acmix_weight_gradients_of_the_query_pass_within_bound(host, K, Kc, dilation, room):
    """Two tiles or more, and blocks with several images: windows by runs of pixels and one by one."""
    from lska_ops import _plan

    B, G, D, H, W, shared = SUMMED[room]
    for seed in (524_000, 524_001, 524_002):
        problem = resized(seed, B, G, D, K, Kc, H, W, dilation=dilation)
        size = dict(B=B, C=G * D, H=H, W=W, head=G, kernel_att=K, kernel_conv=Kc, stride=1, dilation=dilation)
        size |= dict(element=problem.dtype.itemsize, shared_bytes=shared, multiprocessors=4)
        plan = _plan.acmix("query", True, True, **size, shift_grad=True)
        assert plan["grid"][1] * plan["grid"][2] >= 2 and plan["images"] < B, plan
        assert (plan["dims"] == D) == (room == "whole heads"), plan
        host.configure(seed, shared, 4, CACHE)
        host.take_counters()
        check(problem, backward=True)
        # Forward: compose, and one kernel. Backward: compose, query, key, three sums: none reads all maps again.
        assert host.take_counters()[2] == 8


def test_host_cuda_acmix_wide_maps_within_bound(host):
    """Rows that no block holds whole, cut where runs of four do not end."""
    for seed in (525_000, 525_001):
        problem, _ = larger(seed)
        G, generator = 8, torch.Generator().manual_seed(seed)
        problem.options.update(head=G, stride=1, dilation=1)
        normal = partial(torch.randn, generator=generator, dtype=torch.float32)
        problem.tensors = {n: t if t is None else t.float() for n, t in problem.tensors.items()}
        problem.tensors.update(
            qkv=normal(1, 3 * G, 3, 297),
            conv_p=normal(1, 2, 1, 1),
            fc=normal(9, 3 * G, 1, 1),
            dep_conv=normal(G, 9, 3, 3),
        )
        problem.dtype, problem.grad_y = torch.float32, normal(1, G, 3, 297)
        on(host, "narrow")
        check(problem, backward=True)
        check_half(host, problem, attention=False)  # whose weight gradients a kernel of its own adds up


@pytest.mark.parametrize("attention", [True, False], ids=["attention", "shift"])
@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_halves_are_the_whole_without_the_other(host, device, attention):
    for seed in range(530_000, 530_012):
        on(host, device, seed)
        check_half(host, problem_of(seed), attention)


@pytest.mark.parametrize("op", ["local_attention", "shift_aggregate"])
@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_public_halves_within_bound(host, device, op):
    for seed in parts(device, BACKWARD, 535_000):
        on(host, device, seed)
        check(problem_of(seed, op), backward=True)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_repeats_bit_by_bit_on_any_schedule(host, device):
    for seed in range(540_000, 540_008):
        on(host, device)
        problem = problem_of(seed)
        first = solve(problem, "cpu")
        for schedule in (1, 2, 3):
            on(host, device, schedule)
            again = solve(problem, "cpu")
            assert all(torch.equal(first[n], again[n]) for n in first), problem.repro("cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_writes_every_element_and_leaves_inputs_alone(host, device):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    try:
        for seed in range(550_000, 550_012):
            on(host, device, seed)
            problem = problem_of(seed)
            kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
            for name, answer in solve(problem, "cpu").items():
                assert answer.isfinite().all(), f"{name}: {problem.repro('cuda')}"
            assert all(torch.equal(problem.tensors[n], t) for n, t in kept.items())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_passes_nan_and_infinity_on_like_pytorch(host, device):
    judged = 0
    for seed, value in itertools.product(range(560_000, 560_010), (torch.nan, torch.inf)):
        problem = problem_of(seed)
        if problem.dtype != torch.float32 or problem.layout == "expanded":
            continue
        qkv = problem.tensors["qkv"]
        qkv[tuple((seed * n + n) % side for n, side in enumerate(qkv.shape, 1))] = value
        on(host, device)
        ours, theirs = solve(problem, "cpu", False)["y"], solve(problem, "reference", False)["y"]
        # fc multiplies every map of a dim, and PyTorch multiplies NaN with the zeros that pad its convolution.
        assert (ours.isfinite() | ~theirs.isfinite()).all(), problem.repro("cuda")
        assert not ours.isfinite().all() or theirs.isfinite().all(), problem.repro("cuda")
        judged += not theirs.isfinite().all()
    assert judged >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_cuda_acmix_takes_any_layout(host, layout):
    problem = problem_of(570_000)
    problem.tensors["qkv"] = LAYOUTS["expanded"](problem.tensors["qkv"]).contiguous()
    expected = solve(problem, "cpu")
    problem.tensors["qkv"] = LAYOUTS[layout](problem.tensors["qkv"])
    answers = solve(problem, "cpu")
    assert all(torch.equal(expected[n], answers[n]) for n in expected)


# B, G, D, window, taps of the shift, H, W, stride, dilation: channels that fill 16 bytes and that do not, tiles of
# several rows and columns, windows by runs and one by one.
IN_PLACE = (
    (2, 4, 16, 7, 3, 21, 26, 1, 1),
    (1, 2, 24, 5, 3, 17, 30, 2, 1),
    (1, 4, 8, 3, 3, 19, 18, 1, 2),
    (2, 3, 7, 5, 5, 13, 10, 1, 1),
    (1, 8, 2, 9, 1, 33, 9, 1, 1),
    (2, 2, 3, 7, 3, 1, 7, 1, 1),
)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_reads_and_writes_channels_last_in_place(host, device):
    """Both halves and each alone, bit by bit as in NCHW, without a copy of a map."""
    for n, (B, G, D, K, Kc, H, W, stride, dilation) in enumerate(IN_PLACE):
        problem = resized(575_000 + n, B, G, D, K, Kc, H, W, stride, dilation)
        dtype = (torch.float32, torch.float32, torch.float16)[(n + list(DEVICES).index(device)) % 3]
        on(host, device, n)
        tensors = {name: None if t is None else t.to(dtype) for name, t in problem.tensors.items()}
        names = ("conv_p", "fc", "dep_conv", "rate1", "rate2")
        in_last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
        qkv, grad_y = tensors["qkv"].contiguous(), problem.grad_y.to(dtype).contiguous()
        last, grad_last = in_last(qkv), in_last(grad_y)
        for given in (names, names[::3], names[1:3] + names[4:]):
            call = [*(tensors[name] if name in given else None for name in names), G, K, stride, dilation]
            y, lse = host.acmix_core_fwd_cuda(qkv, *call)
            grads = host.acmix_core_bwd_cuda(grad_y, qkv, lse, *call)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
                y_last, lse_last = host.acmix_core_fwd_cuda(last, *call)
                grads_last = host.acmix_core_bwd_cuda(grad_last, last, lse, *call)
                mixed = host.acmix_core_bwd_cuda(grad_y, last, lse, *call)
                other = host.acmix_core_bwd_cuda(grad_last, qkv, lse, *call)
            assert torch.equal(y, y_last) and torch.equal(lse, lse_last), (n, given)
            for name, *of in zip(("qkv", *names), grads, grads_last, mixed, other, strict=True):
                assert all(torch.equal(of[0], t) for t in of[1:]), (n, given, name)
            for t in (y_last, grads_last[0], mixed[0]):
                assert t.is_contiguous(memory_format=torch.channels_last)
            assert other[0].is_contiguous()
            copies = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::to")
            assert not [e.name for e in seen.events() if e.name in copies]


def weights(C, G, dtype=torch.float32, Kc=3):
    shapes = ((C // G, 2, 1, 1), (Kc * Kc, 3 * G, 1, 1), (C, Kc * Kc, Kc, Kc), (1,), (1,))
    generator = torch.Generator().manual_seed(C + G)
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 40), (2, 40, 1), (1, 2, 3), (3, 4, 4), (0, 5, 5)])
def test_host_cuda_acmix_edges(host, device, shape):
    (B, H, W), C, G = shape, 6, 2
    generator = torch.Generator().manual_seed(7)
    qkv, grad_y = (torch.randn(B, n * C, H, W, generator=generator) for n in (3, 1))
    for options in ((7, 1, 1), (7, 2, 1), (9, 1, 3)):
        on(host, device)
        given, stride = weights(C, G), options[1]
        y, lse = host.acmix_core_fwd_cuda(qkv, *given, G, *options)
        assert y.shape == (B, C, -(-H // stride), -(-W // stride)) and lse.shape == (B, G, *y.shape[2:])
        grad = grad_y[..., : y.shape[2], : y.shape[3]].contiguous()
        grads = host.acmix_core_bwd_cuda(grad, qkv, lse, *given, G, *options)
        assert [g.shape for g in grads] == [qkv.shape, *(t.shape for t in given)]
        if B == 0:
            assert all(not g.any() for g in grads)
            continue
        problem = random_problem("acmix", 0)
        problem.dtype, problem.grad_y = torch.float32, grad
        names = ("conv_p", "fc", "dep_conv", "rate1", "rate2")
        problem.tensors = {"qkv": qkv, "conv_p_bias": None, **dict(zip(names, given, strict=True))}
        problem.options = dict(zip(("head", "kernel_att", "stride", "dilation"), (G, *options), strict=True))
        answers = {"y": y, "grad_qkv": grads[0]}
        answers |= {f"grad_{n}": g for n, g in zip(names, grads[1:], strict=True)}
        found = ratios(problem, answers, "cuda")
        assert max(found.values()) <= 1, found


def bytes_per_image(host, C, side, dtype, multiprocessors, G=4):
    """What an image adds, weights apart, as parts of the maps that have to move: forward, backward.

    Counted as the difference of four images and two, on a GPU with as many multiprocessors for each."""
    found = []
    for B, count in zip((2, 4), multiprocessors, strict=True):
        host.configure(0, 227 << 10, count, CACHE)
        generator = torch.Generator().manual_seed(B)
        qkv, grad_y = (torch.randn(B, n * C, side, side, generator=generator).to(dtype) for n in (3, 1))
        given = weights(C, G, dtype)
        host.take_counters()
        y, lse = host.acmix_core_fwd_cuda(qkv, *given, G, 7, 1, 1)
        counts = [host.weight_bytes(), *host.take_counters()]
        host.acmix_core_bwd_cuda(grad_y, qkv, lse, *given, G, 7, 1, 1)
        found.append(counts + [host.weight_bytes(), *host.take_counters()])
    each = [(b - a) / 2 for a, b in zip(*found, strict=True)]
    forward, backward = (each[i + 1] + each[i + 2] - each[i] for i in (0, 5))
    N = C * side * side * torch.empty(0, dtype=dtype).element_size()
    return forward / (4 * N), backward / (7 * N)


# The most that an image may add, as parts of what has to move: forward q, k, v in and y out; backward, in float16 and
# in float32, q, k, v and grad_y in, three gradients out. 1.6 and 2.5 were wanted; where it is more, it is stated here
# and in CONTRIBUTING.md. "B16": few tiles of 20 x 20 fill no GPU, so they are cut smaller.
TRAFFIC = {
    (64, 80, "busy"): (1.6, 2.1, 2.3),
    (64, 80, "B16"): (1.6, 2.1, 2.3),
    (128, 40, "busy"): (1.6, 2.25, 3.0),
    (128, 40, "B16"): (1.6, 2.5, 3.15),
    (256, 20, "busy"): (1.6, 2.95, 3.75),
    (256, 20, "B16"): (2.5, 4.45, 4.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("C, side, load", TRAFFIC)
def test_host_cuda_acmix_reads_maps_once_but_for_halos(library, C, side, load, dtype):  # noqa: F811
    """On a GPU that any image keeps busy, and with a multiprocessor's share of 16 images on 132 of them."""
    shares = [1, 1] if load == "busy" else [132 // 16 * n for n in (2, 4)]
    forward, backward = bytes_per_image(library, C, side, dtype, shares)
    most = TRAFFIC[C, side, load]
    assert forward <= most[0] and backward <= most[1 if dtype == torch.float16 else 2], (forward, backward)


def test_host_cuda_acmix_allocates_no_windows(host):
    """All windows of k and v would be 98 maps; a call may hold the gradients, floats for them, and parts."""
    C, side = 64, 80
    qkv, given = torch.randn(1, 3 * C, side, side), weights(C, 4)
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as seen:
        y, lse = host.acmix_core_fwd_cuda(qkv, *given, 4, 7, 1, 1)
        host.acmix_core_bwd_cuda(torch.ones_like(y), qkv, lse, *given, 4, 7, 1, 1)
    taken = [e.self_cpu_memory_usage for e in seen.events() if e.self_cpu_memory_usage > 0]
    assert taken and max(taken) <= 3 * y.nbytes
    assert sum(taken) <= 12 * y.nbytes


def test_host_cuda_acmix_offsets_beyond_two_to_the_31(library):  # noqa: F811
    """q, k and v of 2^32 elements: only the last block runs."""
    from lska_ops import _plan

    C, side, G, shared = 1 << 16, 192, 64, 227 << 10
    assert (C - C // G) * side * side > 2**31  # where the last head begins
    size = dict(
        B=1, C=C, H=side, W=side, head=G, kernel_att=1, kernel_conv=1, stride=1, dilation=1, element=2
    )
    grid = _plan.acmix("forward", True, False, **size, shared_bytes=shared, multiprocessors=1)["grid"]
    with reserved(3 * C * side * side * 2) as memory:
        qkv = torch.frombuffer(memory, dtype=torch.float16).view(1, 3 * C, side, side)
        qkv[0, -1, -1, -1] = 3  # the last pixel of v, the only one in its window
        rate, conv_p = torch.ones(1).half(), torch.zeros(C // G, 2, 1, 1).half()
        try:
            library.configure(0, shared, 1, CACHE)
            library.only(grid[0] * grid[1] * grid[2] - 1, 1 << 40)
            library.take_counters()
            y, _ = library.acmix_core_fwd_cuda(qkv, conv_p, None, None, rate, None, G, 1, 1, 1)
            _, _, _, blocks = library.take_counters()
            assert blocks == 1 and y[0, -1, -1, -1] == 3
        finally:
            library.only(0, 0)
            del qkv


def test_host_cuda_acmix_refuses_in_words(library):  # noqa: F811
    qkv, good = torch.randn(1, 24, 5, 5), weights(8, 2)
    for wrong, words in (
        ((qkv.double(), *good, 2, 7, 1, 1), "qkv has dtype Double; expected float32, float16 or bfloat16"),
        ((qkv, *good, 3, 7, 1, 1), r"qkv has shape \[1, 24, 5, 5\]; expected \[B, 3C, H, W\]"),
        ((qkv, None, None, None, None, None, 2, 7, 1, 1), "rate1 and rate2 are missing"),
        ((qkv, None, *good[1:], 2, 7, 1, 1), "one of conv_p and rate1 is missing"),
        ((qkv, *good[:2], None, *good[3:], 2, 7, 1, 1), "some of fc, dep_conv and rate2 are missing"),
        ((qkv, *good, 2, 6, 1, 1), "kernel_att = 6"),
        ((qkv, *good, 2, 15, 1, 2), "the window reaches 14 pixels; expected at most 12"),
        (
            (qkv, good[0][:3], *good[1:], 2, 7, 1, 1),
            r"conv_p has shape \[3, 2, 1, 1\]; expected \[4, 2, 1, 1\]",
        ),
        ((qkv.half(), *good, 2, 7, 1, 1), "conv_p has dtype Float; expected Half"),
    ):
        with pytest.raises(RuntimeError, match=words):
            library.acmix_core_fwd_cuda(*wrong)
