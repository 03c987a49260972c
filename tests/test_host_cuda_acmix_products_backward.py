"""ACmix's backward on tensor cores, run on the CPU: which calls it serves, the bound, layouts, what is not finite."""

import itertools
from functools import cache

import pytest
import torch
from test_host_cuda import library  # noqa: F401
from test_host_cuda_acmix_products import (  # noqa: F401
    CASES,
    COPIES,
    DEVICES,
    DEVICES_OF,
    HALF,
    check,
    host,
    near_the_mask,
    on,
    problem_of,
)

from lska_ops import _plan
from lska_ops.testing.problems import LAYOUTS, ratios, solve

SHAPES = [case for case, (*_, stride, _, kernels) in CASES.items() if stride == 1 and kernels]


def plan(problem, device, of_keys, shift=True):
    shared, multiprocessors, arch = DEVICES[device]
    t, o = problem.tensors, problem.options
    B, C, H, W = t["qkv"].shape
    return _plan.acmix_products_backward(
        of_keys, shift, B=B, C=C // 3, H=H, W=W, head=o["head"], kernel_att=o["kernel_att"],
        kernel_conv=t["dep_conv"].shape[-1], stride=o["stride"], dilation=o["dilation"], element=2,
        shared_bytes=shared, multiprocessors=multiprocessors, arch=arch, bfloat16=problem.dtype == torch.bfloat16,
    )  # fmt: skip


def in_layout(problem, layout):
    problem.tensors["qkv"] = LAYOUTS[layout](problem.tensors["qkv"])
    problem.grad_y = LAYOUTS[layout](problem.grad_y)
    return problem


def serves(problem, device):
    along = problem.tensors["dep_conv"].shape[-1] == 3 and problem.options["head"] in (4, 8)
    return all(plan(problem, device, of_keys, along) for of_keys in (False, True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", SHAPES)
def test_host_cuda_acmix_products_backward_within_bound(host, case, dtype, layout):  # noqa: F811
    for n, device in enumerate(DEVICES_OF[dtype, layout]):
        problem = in_layout(problem_of(case, dtype, 600_000 + n), layout)
        on(host, device, schedule=n)
        check(problem, backward=True)
        o = problem.options
        assert serves(problem, device) == (o["kernel_att"] < 9 and o["dilation"] < 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_cuda_acmix_products_backward_answers_in_the_layout_of_qkv(host, layout):  # noqa: F811
    problem = problem_of("dims that fill no product", "f16")
    if layout == "expanded":
        problem.tensors["qkv"] = LAYOUTS[layout](problem.tensors["qkv"]).contiguous()
        problem.grad_y = LAYOUTS[layout](problem.grad_y).contiguous()
    expected = solve(problem, "cpu", True)
    found = solve(in_layout(problem, layout), "cpu", True)
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_host_cuda_acmix_products_backward_copy_no_map(host, layout):  # noqa: F811
    problem = in_layout(problem_of("p5", "f16"), layout)
    t = problem.tensors
    parameters = [t[n] for n in ("conv_p", "fc", "dep_conv", "rate1", "rate2")]
    options = problem.options
    rest = [options[n] for n in ("head", "kernel_att", "stride", "dilation")]
    _, lse = host.acmix_core_fwd_cuda(t["qkv"], *parameters, *rest)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        grad_qkv, *_ = host.acmix_core_bwd_cuda(problem.grad_y, t["qkv"], lse, *parameters, *rest)
    assert grad_qkv.stride() == t["qkv"].stride()
    copies = [
        (e.name, e.input_shapes)
        for e in seen.events()
        if e.name in COPIES
        and any(torch.Size(s).numel() >= problem.grad_y.numel() for s in e.input_shapes if s)
    ]
    assert any("acmix_core_bwd" in e.name for e in seen.events())
    assert not copies


# Dtype and layout, and the pixel that is not finite.
PLACES = {("f16", "contiguous"): (3, 4), ("bf16", "channels_last"): (8, 11)}
# How far from it the gradients of q, k and v hear of it: a query of its keys, they of every query that shares one with
# them, v of no other v, and all of the shift's neighbours.
REACH = {"q": (0, 3, 3), "k": (3, 6, 6), "v": (3, 6, None), "grad_y": (1, 3, 3)}


@cache
def plain_answers(dtype, layout):
    return solve(in_layout(problem_of("dims that fill no product", dtype), layout), "cpu", True)


@pytest.mark.parametrize("dtype, layout", PLACES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("part", REACH)
def test_host_cuda_acmix_products_backward_what_is_not_finite_stays_where_it_is_seen(
    host,  # noqa: F811
    part,
    value,
    dtype,
    layout,
):
    """As the definition has it: products would carry it to the 16 pixels of a warp, and the shift's to a pair."""
    problem, plain = problem_of("dims that fill no product", dtype), plain_answers(dtype, layout)
    y, x = PLACES[dtype, layout]
    changed = in_layout(problem_of("dims that fill no product", dtype), layout)
    maps = dict(zip("qkv", changed.tensors["qkv"].chunk(3, 1), strict=True)) | {"grad_y": changed.grad_y}
    maps[part][1, 30, y, x] = value
    ours = solve(changed, "cpu", True)["grad_qkv"]
    assert torch.equal(ours[0], plain["grad_qkv"][0])
    of_maps = (g[1].chunk(3) for g in (ours, plain["grad_qkv"]))
    for reach, found, expected in zip(REACH[part], *of_maps, strict=True):
        if reach is not None:
            near = (..., slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1))
            assert not found[near].isfinite().all()
            found[near] = expected[near]
    judged = ratios(problem, plain | {"grad_qkv": ours}, "cuda")  # what does not hear of it is as it was
    assert max(judged.values()) <= 1, judged


def test_host_cuda_acmix_products_backward_logits_beyond_what_masks_reach_within_bound(host):  # noqa: F811
    """Such a key is none of the query's, but of others in its warp; and of the key's warp the query is, too."""
    problem = problem_of("fewer dims than a product", "f16")
    q, k, _ = problem.tensors["qkv"].unflatten(1, (3, 4, -1)).unbind(1)
    q[..., 0, 2, 2] = k[..., 0, 5, 4] = 4e4
    problem.tensors["rate2"] /= 64  # or its weights' gradients are infinite
    check(problem, backward=True)


@pytest.mark.parametrize("dtype", HALF)
def test_host_cuda_acmix_products_backward_logits_near_the_mask_within_bound(host, dtype):  # noqa: F811
    problem = near_the_mask(dtype)
    problem.grad_y = problem.grad_y / 2**14  # for gradients that halves hold
    check(problem, backward=True)


def test_host_cuda_acmix_products_backward_infinite_logits_stay_where_they_are_seen(host):  # noqa: F811
    """A key that weighs nothing, so that no sum of weights tells of it; zero times it is no number for who sees it."""
    problem, (y, x) = problem_of("dims that fill no product", "bf16"), (3, 4)
    q, k, _ = problem.tensors["qkv"].chunk(3, 1)
    q.abs_()
    plain = solve(problem, "cpu", True)["grad_qkv"]
    k[1, 30, y, x] = -torch.inf
    ours = solve(problem, "cpu", True)["grad_qkv"][1, 24:48]  # q's of the same head
    expected = torch.ones_like(ours, dtype=torch.bool)
    expected[6, max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] = False
    assert torch.equal(ours.isfinite(), expected)
    assert plain.isfinite().all()


@pytest.mark.parametrize("case, times", [("p5", 256), ("eight heads", 256), ("a row", 1024)])
@pytest.mark.parametrize("device", ["h200", "busy"])
def test_host_cuda_acmix_products_backward_steep_slopes_within_bound(host, device, case, times):  # noqa: F811
    """Gradients of a query's logits add up to zero but for their rounding, which a tile's corner is far enough to show."""
    on(host, device)
    problem = problem_of(case, "bf16")
    problem.tensors["conv_p"] *= times
    check(problem, backward=True)


def test_host_cuda_acmix_products_backward_small_and_large_gradients_within_bound(host):  # noqa: F811
    """Gradients that a loss's scale has made small or large, of which halves hold no part as they are."""
    for dtype, scale in itertools.product(HALF, (2.0**-12, 2.0**8)):
        problem = problem_of("dims that fill no product", dtype)
        problem.grad_y = (problem.grad_y * scale).to(problem.dtype)
        check(problem, backward=True)


def test_host_cuda_acmix_products_backward_repeat_bit_by_bit_on_any_schedule(host):  # noqa: F811
    problem = problem_of("dims that fill no product", "bf16")
    first = solve(problem, "cpu", True)
    for schedule in (1, 2, 3):
        on(host, "h200", schedule)
        again = solve(problem, "cpu", True)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_products_backward_plans_fit(device):
    for case, of_keys, shift in itertools.product(SHAPES, (False, True), (False, True)):
        problem = problem_of(case, "f16")
        found = plan(problem, device, of_keys, shift)
        if found is None:
            continue
        assert found["shared_bytes"] <= DEVICES[device][0]
        assert found["threads"] <= 384
        H, W = problem.tensors["qkv"].shape[2:]
        assert found["rows"] * -(-H // found["rows"]) >= H and found["cols"] * -(-W // found["cols"]) >= W
