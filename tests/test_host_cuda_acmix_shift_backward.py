"""The shift's backward on tensor cores, run on the CPU: which calls it serves, the bound, layouts, what is not finite."""

import itertools

import pytest
import torch
from test_host_cuda import library  # noqa: F401
from test_host_cuda_acmix import half, resized
from test_host_cuda_acmix_products import COPIES, DEVICES, HALF, host, on  # noqa: F401

from lska_ops.testing.problems import LAYOUTS, ratios, solve

# B, G, D, H, W.
CASES = {
    "p5": (1, 4, 64, 20, 20),
    "four by four pixels": (3, 4, 16, 4, 4),
    "dims of one octet": (2, 4, 8, 19, 26),
    "dims of three octets": (2, 4, 24, 9, 13),
    "eight heads": (2, 8, 16, 17, 12),
    "eight heads, dims of one octet": (1, 8, 8, 11, 40),
    "smaller than a tile": (3, 4, 16, 2, 3),
    "one pixel": (2, 4, 16, 1, 1),
    "a row": (1, 4, 16, 1, 33),
    "a column": (1, 4, 16, 33, 1),
}
# Of qkv and of grad_y.
LAYOUTS_OF_BOTH = list(itertools.product(("contiguous", "channels_last"), repeat=2))


def problem_of(case, dtype, layouts=("contiguous", "contiguous"), seed=610_000, stride=1):
    """With only the shift of any weight."""
    B, G, D, H, W = CASES[case]
    problem = resized(seed, B, G, D, 3, 3, H, W, stride)
    problem.dtype = HALF[dtype]
    problem.tensors = {n: None if t is None else t.to(problem.dtype) for n, t in problem.tensors.items()}
    problem.tensors["rate1"].zero_()
    problem.tensors["qkv"] = LAYOUTS[layouts[0]](problem.tensors["qkv"])
    problem.grad_y = LAYOUTS[layouts[1]](problem.grad_y.to(problem.dtype))
    return problem


def gradients(host, problem):  # noqa: F811
    """Of the shift alone."""
    given, options = half(problem, attention=False)
    y, _ = host.acmix_core_fwd_cuda(problem.tensors["qkv"], *given, *options)
    grads = host.acmix_core_bwd_cuda(problem.grad_y, problem.tensors["qkv"], torch.empty(0), *given, *options)
    names = ("grad_qkv", "grad_conv_p", "grad_fc", "grad_dep_conv", "grad_rate1", "grad_rate2")
    return {"y": y} | {n: g for n, g in zip(names, grads, strict=True) if g.numel()}


def check(problem, answers):
    found = ratios(problem, answers, "cuda")
    assert max(found.values()) <= 1, (found, problem.options, problem.tensors["qkv"].shape)


@pytest.mark.parametrize("layouts", LAYOUTS_OF_BOTH, ids="-".join)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES)
def test_host_cuda_acmix_shift_backward_within_bound(host, case, dtype, layouts):  # noqa: F811
    for n, device in enumerate(DEVICES):
        on(host, device, schedule=n)
        problem = problem_of(case, dtype, layouts, 610_000 + n)
        check(problem, gradients(host, problem))


def test_host_cuda_acmix_shift_backward_which_calls_it_serves(host):  # noqa: F811
    """By what is started: composite weights, their table, maps, sums, their sum, weights; or the same without a table."""
    few = itertools.product(("dims of one octet",), HALF, DEVICES, (1, 2))
    for case, dtype, device, stride in (*few, *itertools.product(CASES, ("f16",), ("t4",), (1,))):
        problem = problem_of(case, dtype, stride=stride)
        on(host, device)
        given, options = half(problem, attention=False)
        arguments = problem.grad_y, problem.tensors["qkv"], torch.empty(0), *given, *options
        host.acmix_core_bwd_cuda(*arguments)
        serves = stride == 1 and DEVICES[device][2] >= (80 if dtype == "bf16" else 75)
        assert host.take_counters()[2] == (6 if serves else 5)


@pytest.mark.parametrize("layouts", LAYOUTS_OF_BOTH, ids="-".join)
def test_host_cuda_acmix_shift_backward_reads_each_map_some_times(host, layouts):  # noqa: F811
    """No result shows where the definition makes up for what products were given wrong; but it reads more."""
    problem = problem_of("p5", "bf16", layouts)
    on(host, "busy")
    given, options = half(problem, attention=False)
    host.acmix_core_bwd_cuda(problem.grad_y, problem.tensors["qkv"], torch.empty(0), *given, *options)
    bytes_of_maps = 2 * (problem.tensors["qkv"].numel() + problem.grad_y.numel())
    assert host.take_counters()[0] < 10 * bytes_of_maps


@pytest.mark.parametrize("layouts", LAYOUTS_OF_BOTH, ids="-".join)
def test_host_cuda_acmix_shift_backward_copies_no_map(host, layouts):  # noqa: F811
    problem = problem_of("dims of one octet", "f16", layouts)
    given, options = half(problem, attention=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        host.acmix_core_bwd_cuda(problem.grad_y, problem.tensors["qkv"], torch.empty(0), *given, *options)
    assert any("acmix_core_bwd" in e.name for e in seen.events())
    assert not [e.name for e in seen.events() if e.name in COPIES]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", ["dims of three octets", "eight heads"])
def test_host_cuda_acmix_shift_backward_with_attention_within_bound(host, case, dtype):  # noqa: F811
    """Whose maps are another kernel's, and the weights' gradients are not."""
    problem = problem_of(case, dtype, ("channels_last", "contiguous"))
    problem.tensors["rate1"].fill_(0.5)
    check(problem, solve(problem, "cpu", True))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("of", ["qkv", "grad_y"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e3], ids=str)
def test_host_cuda_acmix_shift_backward_what_is_not_finite_stays_where_it_is(host, value, of, dtype):  # noqa: F811
    """Products would carry it to other inputs and, from a border, to taps that do not read it."""
    on(host, "busy")  # where a block has tiles of both images
    plain = problem_of("dims of three octets", dtype)
    without = gradients(host, plain)
    for y, x in (4, 5), (0, 0), (8, 12), (3, 12):
        problem = problem_of("dims of three octets", dtype)
        target = problem.tensors["qkv"] if of == "qkv" else problem.grad_y
        target[1, 30, y, x] = value
        ours = gradients(host, problem)
        if value == 3e3:  # more, and halves of the answer are infinite
            check(problem, ours)
            continue
        finite = {n: exact.isfinite() for n, exact in by_definition(problem).items()}
        for name, there in finite.items():
            assert torch.equal(ours[name].isfinite(), there), (name, y, x)
        check(plain, without | {n: torch.where(there, ours[n], without[n]) for n, there in finite.items()})


def by_definition(problem):
    """The shift's gradients in float64, in which no pixel meets what is beyond the map."""
    t, grad_y = {n: v.double() for n, v in problem.tensors.items() if v is not None}, problem.grad_y.double()
    (B, C, H, W), G = grad_y.shape, problem.options["head"]
    D = C // G
    maps = t["qkv"].reshape(B, 3 * G, D, H, W)  # part and head
    fc, dep_conv = t["fc"].flatten(1), t["dep_conv"].reshape(D, G, 9, 3, 3)
    weights = torch.einsum("dgpyx,pm->dgmyx", dep_conv, fc)
    grads = grad_y.reshape(B, D, G, H, W)
    of_maps, of_weights = torch.zeros_like(maps), torch.zeros_like(weights)
    for ty, tx in itertools.product(range(3), repeat=2):
        here = (..., slice(max(1 - ty, 0), H + min(1 - ty, 0)), slice(max(1 - tx, 0), W + min(1 - tx, 0)))
        there = (..., slice(max(ty - 1, 0), H + min(ty - 1, 0)), slice(max(tx - 1, 0), W + min(tx - 1, 0)))
        of_maps[there] += torch.einsum("dgm,bdgyx->bmdyx", weights[..., ty, tx], grads[here])
        of_weights[..., ty, tx] = torch.einsum("bdgyx,bmdyx->dgm", grads[here], maps[there])
    return {
        "grad_qkv": t["rate2"] * of_maps.reshape(B, 3 * C, H, W),
        "grad_fc": t["rate2"] * torch.einsum("dgmyx,dgpyx->pm", of_weights, dep_conv)[..., None, None],
        "grad_dep_conv": t["rate2"] * torch.einsum("dgmyx,pm->dgpyx", of_weights, fc).reshape(C, 9, 3, 3),
        "grad_rate2": (of_weights * weights).sum().reshape(1),
    }


def test_host_cuda_acmix_shift_backward_by_definition_is_the_reference(host):  # noqa: F811
    problem = problem_of("dims of three octets", "f16")
    check(problem, {"y": gradients(host, problem)["y"]} | by_definition(problem))


def test_host_cuda_acmix_shift_backward_weights_far_apart_within_bound(host):  # noqa: F811
    """Composite weights of which the smallest are 2^-30 of the largest, where grad_y under the large ones is zero."""
    problem = problem_of("dims of three octets", "f16")
    problem.tensors["fc"][:, 1:] *= 2.0**-14
    problem.tensors["dep_conv"][1::4] *= 2.0**-14
    problem.grad_y[:, 0::4] = 0
    check(problem, gradients(host, problem))


def test_host_cuda_acmix_shift_backward_repeats_bit_by_bit_on_any_schedule(host):  # noqa: F811
    for case, dtype in itertools.product(("dims of one octet", "eight heads"), HALF):
        problem = problem_of(case, dtype)
        on(host, "busy")
        first = gradients(host, problem)
        for schedule in (1, 7):
            on(host, "busy", schedule)
            assert all(torch.equal(again, first[n]) for n, again in gradients(host, problem).items())
