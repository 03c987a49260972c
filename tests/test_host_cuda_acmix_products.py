"""ACmix's forward on tensor cores, run on the CPU: which calls it serves, the bound, layouts, what is not finite."""

import itertools
from functools import cache

import pytest
import torch
from test_host_cuda import CACHE, library  # noqa: F401
from test_host_cuda_acmix import resized

from lska_ops import _plan, acmix
from lska_ops.acmix import op as acmix_op
from lska_ops.testing import UNIT
from lska_ops.testing.problems import LAYOUTS, ratios, solve

# In 64 KiB: the heads together whose share of the shift is whole octets of dims, or the reach of dilated windows.
WITHOUT_ROOM = ("dims that fill no product", "dilated", "dilated widely")
HALF = {"f16": torch.float16, "bf16": torch.bfloat16}
COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::to")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
# Shared memory, multiprocessors, architecture: large tiles, small ones, and many small ones.
DEVICES = {"h200": (227 << 10, 132, 90), "t4": (64 << 10, 40, 75), "busy": (99 << 10, 2, 89)}
# Each device with a layout and a dtype, as far as it has both: all of them everywhere would take minutes.
DEVICES_OF = {
    ("f16", "contiguous"): ("h200",),
    ("f16", "channels_last"): ("busy", "t4"),
    ("bf16", "contiguous"): ("busy",),
    ("bf16", "channels_last"): ("h200",),
}
# B, G, D, window, taps of the shift, H, W, stride, dilation; and how many kernels a forward pass is.
CASES = {
    "p5": (1, 4, 64, 7, 3, 20, 20, 1, 1, 2),
    "dims that fill no product": (2, 4, 24, 7, 3, 9, 13, 1, 1, 2),
    "fewer dims than a product": (1, 4, 8, 5, 3, 7, 10, 1, 1, 2),
    "eight heads": (1, 8, 16, 3, 3, 17, 12, 1, 1, 2),
    "eight heads, every other pixel": (1, 8, 16, 7, 3, 11, 18, 2, 1, 2),
    "every other pixel": (1, 4, 16, 7, 3, 21, 16, 2, 1, 2),
    "dilated": (1, 4, 16, 7, 3, 19, 26, 1, 2, 2),
    "dilated widely": (1, 4, 16, 3, 3, 24, 17, 1, 3, 2),
    "large window": (1, 4, 16, 9, 3, 12, 9, 1, 1, 2),
    "smaller than the window": (3, 4, 16, 9, 3, 2, 3, 1, 1, 2),
    "one pixel": (2, 4, 16, 7, 3, 1, 1, 1, 1, 2),
    "a row": (1, 4, 16, 7, 3, 1, 33, 1, 1, 2),
    "another shift": (1, 4, 16, 7, 5, 10, 10, 1, 1, 3),
    "three heads": (1, 3, 16, 5, 3, 9, 11, 1, 1, 3),
    "maps of the shift beyond keys and queries": (1, 4, 32, 3, 3, 9, 14, 1, 1, 2),
    "a window of others": (1, 4, 16, 11, 3, 9, 9, 1, 1, None),
}


def problem_of(case, dtype, seed=600_000):
    B, G, D, K, Kc, H, W, stride, dilation, _ = CASES[case]
    problem = resized(seed, B, G, D, K, Kc, H, W, stride, dilation)
    problem.dtype = HALF.get(dtype, dtype)
    problem.tensors = {n: None if t is None else t.to(problem.dtype) for n, t in problem.tensors.items()}
    problem.grad_y = problem.grad_y.to(problem.dtype)
    return problem


@pytest.fixture
def host(library, monkeypatch):  # noqa: F811
    monkeypatch.setattr(acmix_op, "_op", lambda name, backend: getattr(library, f"acmix_core_{name}_cuda"))
    on(library, "h200")
    yield library
    on(library, "h200")


def on(library, device, schedule=0):  # noqa: F811
    shared, multiprocessors, arch = DEVICES[device]
    library.configure(schedule, shared, multiprocessors, CACHE, arch)
    library.take_counters()


def plan(problem, device, attention=True, shift=True):
    shared, multiprocessors, arch = DEVICES[device]
    t, o = problem.tensors, problem.options
    B, C, H, W = t["qkv"].shape
    return _plan.acmix_products(
        attention, shift, B=B, C=C // 3, H=H, W=W, head=o["head"], kernel_att=o["kernel_att"],
        kernel_conv=t["dep_conv"].shape[-1], stride=o["stride"], dilation=o["dilation"], element=2,
        shared_bytes=shared, multiprocessors=multiprocessors, arch=arch, bfloat16=problem.dtype == torch.bfloat16,
    )  # fmt: skip


def check(problem, backward=False):
    found = ratios(problem, solve(problem, "cpu", backward), "cuda")
    assert max(found.values()) <= 1, (found, problem.options, problem.tensors["qkv"].shape)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES)
def test_host_cuda_acmix_products_within_bound(host, case, dtype, layout):
    for n, device in enumerate(DEVICES_OF[dtype, layout]):
        problem = problem_of(case, dtype, 600_000 + n)
        problem.tensors["qkv"] = LAYOUTS[layout](problem.tensors["qkv"])
        on(host, device, schedule=n)
        check(problem)
        kernels = CASES[case][-1]
        if kernels and DEVICES[device][2] >= (80 if dtype == "bf16" else 75):
            assert plan(problem, device, shift=False)
            together = plan(problem, device) is not None
            assert together == (kernels == 2) or (device == "t4" and case in WITHOUT_ROOM)
            assert host.take_counters()[2] == (2 if together else 3)


def test_host_cuda_acmix_products_backward_of_their_lse_within_bound(host):
    for case, layout in itertools.product(
        ("dilated", "every other pixel", "p5"), ("contiguous", "channels_last")
    ):
        problem = problem_of(case, "f16")
        problem.tensors["qkv"] = LAYOUTS[layout](problem.tensors["qkv"])
        check(problem, backward=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_cuda_acmix_products_answer_in_the_layout_of_qkv(host, layout):
    problem = problem_of("dims that fill no product", "f16")
    expected = solve(problem, "cpu", False)["y"]
    qkv = LAYOUTS[layout](problem.tensors["qkv"])
    if layout == "expanded":
        expected = solve(with_qkv(problem, qkv.contiguous()), "cpu", False)["y"]
    y = solve(with_qkv(problem, qkv), "cpu", False)["y"]
    assert torch.equal(y, expected)
    last = qkv.is_contiguous(memory_format=torch.channels_last) and not qkv.is_contiguous()
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def with_qkv(problem, qkv):
    problem.tensors = {**problem.tensors, "qkv": qkv}
    return problem


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_host_cuda_acmix_products_copy_no_map(host, layout, dtype):
    """From x on: the projections are made in the layout that the kernels read, with tensor cores or without."""
    torch.manual_seed(1)
    C, G = 64, 4
    x = (
        torch.randn(2, C, 12, 20)
        .to(dtype)
        .contiguous(
            memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
    )
    pairs = {
        n: (torch.randn(C, C, 1, 1).to(dtype) / 8, torch.randn(C).to(dtype))
        for n in ("conv1", "conv2", "conv3")
    }
    pairs |= {"conv_p": (torch.randn(C // G, 2, 1, 1).to(dtype), None)}
    pairs |= {"fc": (torch.randn(9, 12, 1, 1).to(dtype) / 4, None)}
    pairs |= {"dep_conv": (torch.randn(C, 9, 3, 3).to(dtype) / 3, None)}
    rates = torch.ones(1).to(dtype), torch.ones(1).to(dtype)
    options = dict(head=G, kernel_att=7, stride=1, dilation=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        y = acmix_op._fused("cuda", x, pairs, *rates, options)
    assert y.stride() == x.stride()

    def by_product(event):  # how a CPU multiplies is its own matter
        return event is not None and (event.name in PRODUCTS or by_product(event.cpu_parent))

    copies = [
        (e.name, e.input_shapes)
        for e in seen.events()
        if e.name in COPIES and any(torch.Size(s).numel() >= x.numel() for s in e.input_shapes if s)
        if not by_product(e)
    ]
    assert any(by_product(e) for e in seen.events())
    assert not copies
    expected = acmix(
        x.double(), *(tuple(None if t is None else t.double() for t in pairs[n]) for n in acmix_op.NAMES),
        *(r.double() for r in rates), head=G, backend="reference",
    )  # fmt: skip
    assert (y.double() - expected).abs().max() < 0.01 * expected.abs().max()


# A case, where it is computed, a channel, and a pixel. By the definition one warp works while others go on to what
# comes next: to other dims (the first four), in the second half of 16 walks, and to attention.
PLACES = (
    ("dims that fill no product", "h200", "f16", 30, (3, 4)),
    ("dims that fill no product", "h200", "f16", 30, (8, 11)),
    ("dims that fill no product", "h200", "bf16", 30, (3, 4)),
    ("dims that fill no product", "h200", "bf16", 30, (8, 11)),
    ("large window", "busy", "f16", 30, (8, 5)),
    ("maps of the shift beyond keys and queries", "h200", "f16", 7, (4, 7)),
)


@cache
def plain_y(case, dtype):
    return solve(problem_of(case, dtype), "cpu", False)["y"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e4], ids=str)
@pytest.mark.parametrize("part", range(3), ids="qkv")
def test_host_cuda_acmix_products_what_is_not_finite_stays_in_its_windows(host, part, value):
    """Products would carry it to all 16 queries of a warp, and to the other pixel of a pair."""
    for case, device, dtype, channel, (y, x) in PLACES:
        on(host, device)
        problem, plain = problem_of(case, dtype), plain_y(case, dtype)
        qkv = problem.tensors["qkv"].clone()
        qkv[-1, part * (qkv.shape[1] // 3) + channel, y, x] = value
        ours = solve(with_qkv(problem, qkv), "cpu", False)["y"]
        near = torch.zeros(qkv.shape[2:], dtype=torch.bool)
        reach = 1 if part == 0 else problem.options["kernel_att"] // 2
        near[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
        assert torch.equal(ours[:-1], plain[:-1])
        # By the definition there, too, where a warp's others are.
        far = ours[-1][:, ~near] - plain[-1][:, ~near]
        assert (far.abs() <= 2 * UNIT[problem.dtype] * plain[-1][:, ~near].abs() + 1e-3).all()
        assert not torch.equal(ours[-1][:, near], plain[-1][:, near])
        if value == 3e4:
            check(problem)
        else:
            assert not ours[-1][:, near].isfinite().all()


def test_host_cuda_acmix_products_logits_beyond_what_masks_reach_within_bound(host):
    """Such a key is none of the query's, but of others in its warp."""
    problem = problem_of("p5", "f16")
    q, k, _ = problem.tensors["qkv"].unflatten(1, (3, 4, -1)).unbind(1)
    for n, (head, corner) in enumerate(itertools.product(range(4), (4, 12))):
        q[0, head, 0, corner, corner] = k[0, head, 0, corner + 1, corner + 5] = 4e4 + 3e3 * n
    check(problem)


def test_host_cuda_acmix_products_slopes_beyond_what_masks_reach(host):
    """By which a key beyond the window has more than all in it. One key has all the weight, whatever is rounded."""
    problem = problem_of("p5", "bf16")  # whose slopes go as far as that
    q, _, _ = problem.tensors["qkv"].unflatten(1, (3, 4, -1)).unbind(1)
    q.zero_()
    q[0, 0, :, 4, 4] = 2.0**48
    problem.tensors["conv_p"].fill_(2.0**50)
    ours = solve(problem, "cpu", False)["y"].double()
    problem.tensors = {name: None if t is None else t.double() for name, t in problem.tensors.items()}
    expected = solve(problem, "reference", False)["y"]
    assert (ours - expected).abs().max() <= 0.01 * expected.abs().max()


NEAR_THE_MASK = {"f16": 2.0**15, "bf16": 2.0**50}


def near_the_mask(dtype):
    """A product of the size of what masks are, of a query and a key that it does not see, which are in one warp's."""
    problem = problem_of("p5", dtype)
    q, k, v = problem.tensors["qkv"].unflatten(1, (3, 4, -1)).unbind(1)
    for of_head in (q, k):
        of_head[:, 0] = 0
    q[0, 0, 0, 4, 4] = k[0, 0, 0, 5, 9] = NEAR_THE_MASK[dtype]
    v[0, 0, :, 5, 9] = 100
    problem.tensors["conv_p"].zero_()
    return problem


@pytest.mark.parametrize("dtype", HALF)
def test_host_cuda_acmix_products_logits_near_the_mask_within_bound(host, dtype):
    check(near_the_mask(dtype))


def test_host_cuda_acmix_products_steep_slopes_within_bound(host):
    """Two parts of 8 bits are not enough for them: the backward pass would see it by the lse."""
    for case in ("fewer dims than a product", "eight heads"):
        problem = problem_of(case, "bf16")
        problem.tensors["conv_p"] *= 256
        check(problem, backward=True)


def test_host_cuda_acmix_products_weights_far_apart_within_bound(host):
    """Composite weights of which the smallest are 2^-32 of the largest, where pixels under the large ones are zero."""
    problem = problem_of("dims that fill no product", "f16")
    t = problem.tensors
    t["fc"][0, 1:] = 0  # its large planes make the weights of q of head 0 alone
    t["fc"][:, 1:] *= 2.0**-18
    t["dep_conv"][:, 1:] *= 2.0**-14
    t["qkv"] *= 64  # so that a half can tell what comes of the small ones
    t["qkv"][:, :24] = 0
    t["rate1"].zero_()
    t["rate2"].fill_(2.0**15)
    check(problem)


def test_host_cuda_acmix_products_repeat_bit_by_bit_on_any_schedule(host):
    for case, dtype in itertools.product(("p5", "dilated", "eight heads"), HALF):
        problem = problem_of(case, dtype)
        on(host, "busy")
        first = solve(problem, "cpu", False)["y"]
        for schedule in (1, 7):
            on(host, "busy", schedule)
            assert torch.equal(solve(problem, "cpu", False)["y"], first)


def test_host_cuda_acmix_products_which_devices_have_them():
    f16, bf16 = (problem_of("p5", dtype) for dtype in HALF)
    assert plan(f16, "t4") and not plan(bf16, "t4")
    assert plan(f16, "h200") and plan(bf16, "h200")


@pytest.mark.parametrize("head, H, W", [(4, 40, 1 << 22), (1, 4, (1 << 24) - 1)])
def test_host_cuda_acmix_products_leave_maps_whose_tiles_they_cannot_divide(head, H, W):
    """A tile's row is the product with an inverse, which is exact for tiles times tiles in a row below 2^32."""
    for K in (3, 7):
        found = _plan.acmix_products(
            True, True, B=1, C=head, H=H, W=W, head=head, kernel_att=K, kernel_conv=3, stride=1, dilation=1,
            element=2, shared_bytes=227 << 10, multiprocessors=132, arch=90, bfloat16=False,
        )  # fmt: skip
        assert found is None or found["grid"][0] * -(-W // found["cols"]) < 1 << 32


@pytest.mark.parametrize("device", DEVICES)
def test_host_cuda_acmix_products_plans_fit(device):
    for case, dtype in itertools.product(CASES, ("f16",)):
        problem = problem_of(case, dtype)
        if found := plan(problem, device, shift=CASES[case][-1] == 2):
            stride, dilation = problem.options["stride"], problem.options["dilation"]
            assert found["shared_bytes"] <= DEVICES[device][0]
            assert found["rows"] % (4 * dilation) == found["cols"] % (4 * dilation) == 0
            H, W = (-(-n // stride) for n in problem.tensors["qkv"].shape[2:])
            tiles = (
                -(-H // found["rows"]) * -(-W // found["cols"]) * problem.options["head"] // found["heads"]
            )
            assert found["grid"] == (tiles, 1, problem.tensors["qkv"].shape[0])
