"""ACmix's CUDA kernels on a GPU; `make gpu` runs them. The same on a CPU: tests/test_host_cuda_acmix.py."""

import gc
import itertools

import pytest
import torch
from gate import Gate
from problems import Problem, Row
from test_gpu_lska import (
    DEVICE,
    SLEEP,
    check,
    every_dtype,
    exact_products,  # noqa: F401
    forward_and_backward,
    free_bytes,
    numbers,
    on_gpu,
    same,
)

import lska_ops
from lska_ops import ACmix, _compiled
from lska_ops.acmix import compiled
from lska_ops.testing import CASES, Case
from lska_ops.testing.acmix import sizes
from lska_ops.testing.problems import LAYOUTS, random_problem, ratios, solve

REASON = compiled.why_not_cuda(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"cuda: {REASON}")

FORWARD, BACKWARD = 150, 80  # problems for each dtype


def problems(dtype, count, first, op="acmix"):
    """The first `count` problems from this number on that are of this dtype and of sizes that CUDA takes."""
    every = (random_problem(op, seed) for seed in numbers(dtype, 10 * count, first))
    return itertools.islice((p for p in every if not compiled.too_much(**sizes(p))), count)


def problem_of(dtype, first):
    return next(problems(dtype, 1, first))


def module_and_map(dtype, C=16, side=20, B=2, **options):
    torch.manual_seed(0)
    x = torch.randn(B, C, side, side).to(DEVICE, dtype)
    return ACmix(C, **options).to(DEVICE, dtype), x.requires_grad_()


def half(problem, attention):
    """What the registered ops take for one half alone, after qkv."""
    names = ("conv_p", None, None, "rate1", None) if attention else (None, "fc", "dep_conv", None, "rate2")
    return [problem.tensors[n] if n else None for n in names], list(problem.options.values())


def core_ops():
    ops = torch.ops.lska_ops
    return ops.acmix_core_fwd_cuda, ops.acmix_core_bwd_cuda


def weights(C, G, dtype=torch.float32, K_c=3):
    generator = torch.Generator().manual_seed(C + G)
    shapes = ((C // G, 2, 1, 1), (K_c * K_c, 3 * G, 1, 1), (C, K_c * K_c, K_c, K_c), (1,), (1,))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def test_gpu_acmix_chooses_the_cuda_backend():
    _, x = module_and_map(torch.float16)
    assert "cuda: yes (chosen)" in lska_ops.explain("acmix", x)


@every_dtype
@pytest.mark.parametrize("part", range(3))
def test_gpu_acmix_forward_within_bound(dtype, part):
    for problem in problems(dtype, FORWARD // 3, 500_000 + part * 10_000):
        check(problem, backward=False)


@every_dtype
@pytest.mark.parametrize("part", range(2))
def test_gpu_acmix_gradients_within_bound(dtype, part):
    for problem in problems(dtype, BACKWARD // 2, 550_000 + part * 10_000):
        check(problem)


@every_dtype
@pytest.mark.parametrize("op", ["local_attention", "shift_aggregate"])
def test_gpu_acmix_halves_as_functions_within_bound(op, dtype):
    for problem in problems(dtype, BACKWARD // 2, 590_000, op):
        check(problem)


@pytest.mark.small_set
@every_dtype
def test_gpu_acmix_small_set_within_bound(dtype):
    """What compute-sanitizer watches: few, since there each takes long; then a map of several tiles."""
    for problem in problems(dtype, 3, 580_000):
        check(problem)
    judge(Row("acmix_fwd_bwd", Case("tiles", 16, 24, 40), 1, 7), dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):  # both halves by products, in halves
        judge(Row("acmix_fwd_bwd", Case("products", 64, 8, 12), 1, 7), dtype, memory_format=memory_format)


def judge(row, dtype, acmix=lska_ops.acmix, memory_format=torch.contiguous_format, backend="cuda"):
    """The whole call, its projections included, and once more from q, k, v on."""
    problem = Problem(row, dtype, DEVICE).like(memory_format=memory_format)
    pairs, m, options = problem.pairs(), problem.module, problem.options()
    run = problem.runner(lambda x: acmix(x, *pairs, m.rate1, m.rate2, **options, backend=backend))
    gate = Gate(problem)
    worst, ratio = gate.worst(gate.answers(problem, run), backend)
    assert ratio <= 1, f"{row.id} {dtype}: {worst} is {ratio:.3g} times the bound"


MODELS = [case for case in CASES if case.id.startswith(("yolo11n", "van_b0"))]
LARGE = [
    Case("wide", 8, 16, 320),
    Case("tall", 8, 320, 16),
    Case("odd", 20, 77, 61),
    Case("p2", 16, 160, 160),
]


@every_dtype
@pytest.mark.parametrize("case", [*MODELS, *LARGE], ids=lambda case: case.id)
def test_gpu_acmix_real_maps_within_bound(case, dtype):
    judge(Row("acmix_fwd_bwd", case, 2, 7), dtype)


@every_dtype
@pytest.mark.parametrize("k", [3, 5, 9])
def test_gpu_acmix_other_windows_within_bound(k, dtype):
    judge(Row("acmix_fwd_bwd", Case("window", 64, 40, 40), 2, k), dtype)


@every_dtype
def test_gpu_acmix_uses_more_than_48_kib_of_shared_memory(dtype):
    """What a kernel has to opt in to; plan.h says that this shape does."""
    case = Case("large", 768, 40, 40)
    if "plan" in _compiled.build_info()["parts"]:
        from lska_ops import _plan

        shared = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
        size = dict(B=1, C=case.C, H=case.H, W=case.W, head=4, kernel_att=7, kernel_conv=3)
        size |= dict(stride=1, dilation=1, element=torch.empty(0, dtype=dtype).element_size())
        arch = int("{}{}".format(*torch.cuda.get_device_capability(0)))
        if dtype != torch.float32:
            device = dict(shared_bytes=shared, multiprocessors=132, arch=arch)
            plan = _plan.acmix_products(True, True, **size, **device, bfloat16=dtype == torch.bfloat16)
        if dtype == torch.float32 or plan is None:
            plan = _plan.acmix("forward", True, True, **size, shared_bytes=shared, multiprocessors=132)
        assert plan["shared_bytes"] > 48 << 10
    judge(Row("acmix_fwd_bwd", case, 1, 7), dtype)


@every_dtype
@pytest.mark.parametrize("attention", [True, False], ids=["attention", "shift"])
def test_gpu_acmix_halves_within_bound(dtype, attention):
    """The registered ops without the other half, judged as the whole with the other's rate zero."""
    forward, backward = core_ops()
    for problem in problems(dtype, 8, 590_000):
        there = on_gpu(problem)
        given, options = half(there, attention)
        y, lse = forward(there.tensors["qkv"], *given, *options)
        grads = backward(there.grad_y, there.tensors["qkv"], lse, *given, *options)
        other = "rate2" if attention else "rate1"
        problem.tensors[other] = torch.zeros_like(problem.tensors[other])
        answers = {"y": y.cpu(), "grad_qkv": grads[0].cpu()}
        names = ("conv_p", "fc", "dep_conv", "rate1", "rate2")
        for name, part, grad in zip(names, given, grads[1:], strict=True):
            assert grad.shape == ((0,) if part is None else part.shape)
            if part is not None:
                answers[f"grad_{name}"] = grad.cpu()
        found = ratios(problem, answers, "cuda")
        worst = max(found, key=found.get)
        assert found[worst] <= 1, f"{worst} is {found[worst]:.3g} times the bound: {problem.repro('cuda')}"


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 40), (2, 40, 1), (1, 2, 3), (3, 4, 4), (0, 5, 5)])
def test_gpu_acmix_edges(shape, dtype):
    B, H, W = shape
    for options in (dict(), dict(stride=2), dict(kernel_att=9, dilation=3)):
        x = torch.randn(B, 8, H, W).to(DEVICE, dtype).requires_grad_()
        module = ACmix(8, head=2, **options).to(DEVICE, dtype)
        y, *grads = forward_and_backward(module, x)
        stride = module.stride
        assert y.shape == (B, 8, -(-H // stride), -(-W // stride)) and y.isfinite().all()
        assert all(g.isfinite().all() for g in grads)
        if B == 0:
            assert all(not g.any() for g in grads)


@every_dtype
def test_gpu_acmix_repeats_bit_by_bit(dtype):
    for C, side, B in ((256, 20, 16), (64, 80, 2), (16, 160, 1)):
        module, x = module_and_map(dtype, C, side, B)
        first = forward_and_backward(module, x)
        for number in range(5):
            dirt = torch.full((number + 1, 1 << 20), torch.nan, device=DEVICE)  # others' memory, given back
            del dirt
            assert same(first, forward_and_backward(module, x))


def test_gpu_acmix_writes_every_element_and_leaves_inputs_alone():
    torch.use_deterministic_algorithms(True, warn_only=True)  # with it torch.empty is filled with NaN
    try:
        for dtype in (torch.float32, torch.float16):
            for given in problems(dtype, 20, 600_000):
                problem = on_gpu(given)
                kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
                for name, answer in solve(problem, "cuda").items():
                    assert answer.isfinite().all(), f"{name}: {problem.repro('cuda')}"
                assert all(torch.equal(problem.tensors[n], t) for n, t in kept.items())
    finally:
        torch.use_deterministic_algorithms(False)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpu_acmix_takes_any_layout(layout, dtype):
    problem = on_gpu(problem_of(dtype, 610_000))
    problem.tensors["qkv"] = LAYOUTS["expanded"](problem.tensors["qkv"]).contiguous()
    expected = solve(problem, "cuda")
    problem.tensors["qkv"] = LAYOUTS[layout](problem.tensors["qkv"])
    problem.grad_y = LAYOUTS["channels_last"](problem.grad_y)
    answers = solve(problem, "cuda")
    assert all(torch.equal(expected[n], answers[n]) for n in expected)


@every_dtype
def test_gpu_acmix_answers_in_channels_last(dtype):
    def acmix(x, *given, **options):
        y = lska_ops.acmix(x, *given, **options)
        assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
        return y

    judge(Row("acmix_fwd_bwd", Case("last", 16, 20, 20), 2, 7), dtype, acmix, torch.channels_last)


@every_dtype
def test_gpu_acmix_is_captured_in_a_graph(dtype):
    """Nothing in it may wait for the GPU; what is replayed reads the inputs of then."""
    module, x = module_and_map(dtype, side=40)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_and_backward(module, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(module, x)
    for seed in range(3):
        values = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
        x.detach().copy_(values)
        graph.replay()
        assert same(forward_and_backward(module, x), captured)


def test_gpu_acmix_works_on_the_current_stream():
    """x is written late, on a side stream; a kernel on any other stream would not wait for it."""
    module, x = module_and_map(torch.float16)
    values = torch.randn_like(x)
    with torch.no_grad():
        expected = module(values)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            module(values)  # this stream's first memory comes from the driver, which may wait
            stream.synchronize()
            torch.cuda._sleep(SLEEP)
            x.detach().copy_(values)
            y = module(x)
            ended = torch.cuda.Event()
            ended.record()
        assert not ended.query(), "the call waited for the GPU"
        stream.synchronize()
    assert torch.equal(y, expected)


def test_gpu_acmix_works_where_x_is():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU; a second one would show that the kernels run where x is")
    for problem in problems(torch.float32, 5, 620_000):
        check(problem, device="cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dynamic", [False, True])
@every_dtype
def test_gpu_acmix_compiles_without_graph_break(dtype, dynamic):
    torch._dynamo.reset()
    acmix = torch.compile(lska_ops.acmix, fullgraph=True, dynamic=dynamic)
    for side in (20, 28):
        judge(Row("acmix_fwd_bwd", Case("compiled", 16, side, side), 2, 7), dtype, acmix)


@every_dtype
def test_gpu_acmix_opcheck(dtype):
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "lska_ops":
                calls.append((func, tuple(a.detach() if torch.is_tensor(a) else a for a in args)))
            return func(*args, **(kwargs or {}))

    with Recorder():
        solve(on_gpu(problem_of(dtype, 630_000)), "cuda")
    names = [func.name() for func, _ in calls]
    assert names == ["lska_ops::acmix_core_fwd_cuda", "lska_ops::acmix_core_bwd_cuda"]
    for func, arguments in calls:
        torch.library.opcheck(func, arguments)


@every_dtype
def test_gpu_acmix_passes_nan_on_like_pytorch(dtype):
    for problem in problems(dtype, 12, 640_000):
        if problem.layout == "expanded":
            continue
        qkv, n = problem.tensors["qkv"], problem.seed
        qkv[tuple((n * i + i) % side for i, side in enumerate(qkv.shape, 1))] = torch.nan
        problem = on_gpu(problem)
        ours, theirs = solve(problem, "cuda", False)["y"], solve(problem, "reference", False)["y"]
        # fc multiplies every map of a dim, and PyTorch multiplies NaN with the zeros that pad its convolution.
        assert (ours.isfinite() | ~theirs.isfinite()).all(), problem.repro("cuda")
        assert not ours.isfinite().all() or theirs.isfinite().all(), problem.repro("cuda")


def test_gpu_acmix_refuses_in_words_before_launch():
    forward, _ = core_ops()
    qkv, good = torch.randn(1, 24, 5, 5, device=DEVICE), weights(8, 2)
    for wrong, words in (
        ((qkv, *good, 3, 7, 1, 1), r"qkv has shape \[1, 24, 5, 5\]; expected \[B, 3C, H, W\]"),
        ((qkv, None, None, None, None, None, 2, 7, 1, 1), "rate1 and rate2 are missing"),
        ((qkv, *good, 2, 15, 1, 2), "the window reaches 14 pixels; expected at most 12"),
        (
            (qkv, good[0].cpu(), *good[1:], 2, 7, 1, 1),
            "conv_p is on the CPU; expected it where qkv is, on cuda:0",
        ),
    ):
        with pytest.raises(RuntimeError, match=words):
            forward(*wrong)
    module, x = module_and_map(torch.float64)
    pairs = [(c.weight, c.bias) for c in module.children()]
    with pytest.raises(RuntimeError, match="x is float64 and the CUDA kernels compute in float32"):
        lska_ops.acmix(x, *pairs, module.rate1, module.rate2, head=4, backend="cuda")
    torch.cuda.synchronize()


@every_dtype
def test_gpu_acmix_allocates_no_windows(dtype):
    """All windows of k and v would be 98 maps; forward and backward together take but a few."""
    C, side = 64, 80
    qkv, given = torch.randn(4, 3 * C, side, side).to(DEVICE, dtype), weights(C, 4, dtype)
    (forward, backward), map_bytes = core_ops(), 4 * C * side * side * 4  # of floats
    grad_y = torch.randn(4, C, side, side).to(DEVICE, dtype)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y, lse = forward(qkv, *given, 4, 7, 1, 1)
    backward(grad_y, qkv, lse, *given, 4, 7, 1, 1)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 12 * map_bytes


def test_gpu_acmix_out_of_memory_leaves_no_partial_state():
    module, x = module_and_map(torch.float32, C=8, side=1024, B=4, head=2)  # maps of 128 MiB
    if free_bytes() < 6 << 30:
        pytest.skip("less than 6 GB of GPU memory is free; free some")
    expected = forward_and_backward(module, x)
    kept = [t.clone() for t in (x.detach(), *module.parameters())]
    total = torch.cuda.get_device_properties(0).total_memory
    for maps in (0.5, 2, 3.5, 5):  # how far the call comes: with 3.5, q, k and v are there, with five y is
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + maps * x.nbytes) / total)
        try:
            with pytest.raises(RuntimeError):
                forward_and_backward(module, x)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.synchronize()
        gc.collect()  # what the error's frames held
        assert torch.cuda.memory_allocated() == before
        assert same(kept, (x.detach(), *module.parameters()))
        assert same(expected, forward_and_backward(module, x))


def test_gpu_acmix_offsets_beyond_two_to_the_31():
    """q, k and v of 2^32 elements, of which the last pixel of v is not zero: attention to itself alone."""
    C, side, G = 1 << 17, 104, 64
    if free_bytes() < 14 << 30:
        pytest.skip("less than 14 GB of GPU memory is free; free some")
    qkv = torch.zeros(1, 3 * C, side, side, dtype=torch.float16, device=DEVICE)
    assert qkv.numel() > 2**31
    qkv[0, -1, -1, -1] = 3
    rate, conv_p = torch.ones(1).half().to(DEVICE), torch.zeros(C // G, 2, 1, 1).half().to(DEVICE)
    y, _ = core_ops()[0](qkv, conv_p, None, None, rate, None, G, 1, 1, 1)
    assert y[0, -1, -1, -1] == 3 and y[0, -1].count_nonzero() == 1 and not y[0, :-1].any()


def test_gpu_acmix_gradients_beyond_two_to_the_31():
    """A batch of which only the last image has a grad_y: its gradients are those of that image alone."""
    C, side = 8, 64
    B = 2**31 // (3 * C * side * side) + 16
    if free_bytes() < 40 << 30:
        pytest.skip("less than 40 GB of GPU memory is free; free some")
    small, generator = problem_of(torch.float16, 650_000), torch.Generator().manual_seed(5)
    names, shapes = ("conv_p", "fc", "dep_conv", "rate1", "rate2"), [w.shape for w in weights(C, 2)]
    small.tensors = {"qkv": torch.randn(1, 3 * C, side, side, generator=generator).half()}
    small.tensors |= {
        n: (torch.randn(s, generator=generator) / 4).half() for n, s in zip(names, shapes, strict=True)
    }
    small.tensors["conv_p_bias"] = None
    small.layout, small.options = "contiguous", dict(head=2, kernel_att=7, stride=1, dilation=1)
    small.grad_y = torch.randn(1, C, side, side, generator=generator).half()
    large = on_gpu(small)
    large.tensors["qkv"] = torch.zeros(B, 3 * C, side, side, dtype=torch.float16, device=DEVICE)
    large.grad_y = torch.zeros(B, C, side, side, dtype=torch.float16, device=DEVICE)
    large.tensors["qkv"][-1], large.grad_y[-1] = (
        small.tensors["qkv"][0].to(DEVICE),
        small.grad_y[0].to(DEVICE),
    )
    answers = solve(large, "cuda")
    assert not answers["y"][:-1].any() and not answers["grad_qkv"][:-1].any()
    answers = {n: (t[-1:] if n in ("y", "grad_qkv") else t).cpu() for n, t in answers.items()}
    found = ratios(small, answers, "cuda")
    assert max(found.values()) <= 1, found
