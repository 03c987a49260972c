"""csrc/lska/plan.h and csrc/acmix/plan.h: random problems on the limits of every GPU the kernels are compiled for."""

import itertools
import math
import random

import pytest
from ptx.gpus import GPUS

from lska_ops import _compiled
from lska_ops.acmix.compiled import too_much
from lska_ops.testing.lska import PUBLISHED_SPLITS

info = _compiled.build_info()
if not info or "plan" not in info["parts"]:
    pytest.skip("lska_ops._plan was not built; see `python -m lska_ops doctor`", allow_module_level=True)

from lska_ops import _plan  # noqa: E402

PROBLEMS = 100_000
# compute capability: bytes of shared memory a block may opt in to, multiprocessors of one such GPU
DEVICES = {
    75: (64 << 10, 40),
    80: (163 << 10, 108),
    86: (99 << 10, 84),
    87: (163 << 10, 16),
    89: (99 << 10, 128),
    90: (227 << 10, 132),
    100: (227 << 10, 148),
    110: (227 << 10, 20),
    120: (99 << 10, 170),
}
RUN = 8  # outputs of one thread


def draw(choice):
    k0, k1, d = choice.choice(PUBLISHED_SPLITS)
    if choice.random() < 0.5:
        k0, k1, d = (choice.randrange(1, n, 2) for n in (20, 60, 40))
    if choice.random() < 0.1:
        k1 = 0
    largest = choice.choice((8, 32, 100, 400, 3000, 2**30 - 1))
    H, W = (choice.randint(1, largest) for _ in range(2))
    C = choice.choice((1, 3, 64, 96, 256, 768))
    B = choice.randint(1, max(1, min(2**31 // C, choice.choice((1, 4, 64, 5000, 2**31)))))
    last = choice.random() < 0.3
    return dict(B=B, C=C, H=H, W=W, k0=k0, k1=k1, dilation=d, channels_last=last)


def split(total, part, count):
    """`count` parts cover `total` once: all but the last are full, none is empty."""
    return part * (count - 1) < total <= part * count


def runs(length, dilation):
    return dilation * math.ceil(math.ceil(length / dilation) / RUN)


def check(size, plan, shared_bytes):
    x, y, z = plan["grid"]
    planes = size["B"] * size["C"]
    assert 1 <= x < 2**31 and 1 <= y < 2**16 and 1 <= z < 2**16
    assert 32 <= plan["threads"] <= 1024 and plan["threads"] % 32 == 0
    assert 0 <= plan["shared_bytes"] <= shared_bytes
    of_images = size["channels_last"] and plan["kernel"] == "plane"  # a block's planes are of one image
    if of_images:
        assert x == size["B"] * math.ceil(size["C"] / plan["planes"]) and plan["planes"] <= size["C"]
    else:
        assert split(planes, plan["planes"], x)
    assert split(size["H"], plan["band"], y) and split(size["W"], plan["strip"], z)
    if plan["kernel"] == "stages":
        return
    rows, cols = plan["rows"], plan["cols"]
    halo_v, halo_h = (plan["reach_v"] if y > 1 else 0), (plan["reach_h"] if z > 1 else 0)
    assert rows >= min(size["H"], plan["band"] + 2 * halo_v)
    assert cols >= min(size["W"], plan["strip"] + 2 * halo_h)
    assert plan["pitch"] % 2 == 1 and plan["pitch"] >= cols
    assert plan["planes"] == 1 or (y, z) == (1, 1) or of_images
    if plan["kernel"] == "plane":
        # Indices are 32 bits, and n / d without a division is exact only for n d < 2^32.
        assert plan["planes"] * rows * cols * max(rows, cols) < 2**32
        needed = max(rows * runs(cols, d) for d in (1, plan["dilation_h"]))
        needed = max(needed, *(cols * runs(rows, d) for d in (1, plan["dilation_v"])))
        assert plan["threads"] >= plan["planes"] * needed, "an output has no thread"
        if plan["threads_per_plane"]:
            assert plan["threads_per_plane"] % 32 == 0 and plan["threads_per_plane"] >= needed
            assert plan["threads"] == plan["planes"] * plan["threads_per_plane"]
    else:
        assert plan["step"] >= 1 and plan["step"] * cols * cols < 2**32


@pytest.mark.parametrize("part", range(10))
def test_plan_covers_every_output_once_within_limits(part):
    choice = random.Random(part)
    kernels = set()
    for _ in range(PROBLEMS // 10):
        size = draw(choice)
        backward_on = choice.choice(list(DEVICES))
        for capability, (shared_bytes, multiprocessors) in DEVICES.items():
            limits = dict(shared_bytes=shared_bytes, multiprocessors=multiprocessors)
            for backward in (False, True) if capability == backward_on else (False,):
                plan = _plan.lska(backward, **size, **limits)
                kernels.add((backward, plan["kernel"], size["channels_last"]))
                try:
                    check(size, plan, shared_bytes)
                except AssertionError as error:
                    raise AssertionError(
                        f"{error}\n_plan.lska({backward}, **{size}, **{limits}) = {plan}"
                    ) from None
    every = {(b, k, n) for b in (False, True) for k in ("plane", "stages") for n in (False, True)}
    assert kernels == every | {(False, "stream", False)}


def test_plan_runs_cover_each_line_once():
    for length in range(1, 120):
        for d in range(1, min(length, 12) + 1):
            covered = [
                nth // d * RUN * d + nth % d + r * d for nth in range(runs(length, d)) for r in range(RUN)
            ]
            inside = sorted(at for at in covered if at < length)
            assert inside == list(range(length)), (length, d)


@pytest.mark.parametrize("capability", DEVICES)
def test_plan_published_maps_stay_in_shared_memory(capability):
    shared_bytes, multiprocessors = DEVICES[capability]
    for k0, k1, d in PUBLISHED_SPLITS:
        for C, side in ((64, 80), (128, 40), (256, 20), (160, 14), (256, 7)):
            size = dict(B=16, C=C, H=side, W=side, k0=k0, k1=k1, dilation=d)
            plan = _plan.lska(False, **size, shared_bytes=shared_bytes, multiprocessors=multiprocessors)
            assert plan["kernel"] == "plane" and plan["grid"][1:] == (1, 1), size
            plan = _plan.lska(True, **size, shared_bytes=shared_bytes, multiprocessors=multiprocessors)
            assert plan["kernel"] == "plane", size
            if capability != 75:  # 64 KiB do not hold three maps of 80 x 80
                assert plan["grid"][1:] == (1, 1), size
        size = dict(B=16, C=64, H=320, W=320, k0=k0, k1=k1, dilation=d)
        plan = _plan.lska(False, **size, shared_bytes=shared_bytes, multiprocessors=multiprocessors)
        assert plan["kernel"] == "stream", size


def draw_tiles(choice):
    """Sizes that tiles may serve, and some that they must not."""
    k0, k1, d = choice.choice(PUBLISHED_SPLITS) if choice.random() < 0.9 else (5, 5, 2)
    largest = choice.choice((20, 40, 90, 400, 3000, 2**30 - 1))
    H, W = (choice.choice((20, 40, 80, choice.randint(1, largest))) for _ in range(2))
    B, C = choice.choice((1, 3, 16, 300, 70_000)), choice.choice((2, 3, 16, 24, 64, 256, 768))
    if B * C * H * W >= 2**62:  # no map has as many bytes
        B = H = 1
    return dict(B=B, C=C, H=H, W=W, k0=k0, k1=k1, dilation=d, channels_last=choice.random() < 0.5)


def check_tiles(size, plan, shared_bytes):
    x, y, z = plan["grid"]
    H, W, rows, cols = size["H"], size["W"], plan["rows"], plan["cols"]
    assert 1 <= x < 2**31 and 1 <= y < 2**16 and 1 <= z < 2**16
    assert 128 <= plan["threads"] <= plan["most_threads"] and plan["threads"] % 32 == 0
    assert 0 < plan["shared_bytes"] <= shared_bytes
    assert rows % plan["down"] == 0 and cols % plan["across"] == 0 and rows <= H and cols <= W
    assert split(W, cols, plan["tiles_x"]) and split(H, rows, y // plan["tiles_x"])
    assert y % plan["tiles_x"] == 0
    rows_alone = size["channels_last"] and plan["down"] != plan["across"]
    assert not plan["whole"] or (H == plan["down"] and (rows_alone or W == plan["across"]))
    if size["channels_last"]:
        assert size["C"] % 2 == 0 and split(size["C"], plan["channels"], x) and z == size["B"]
        return
    assert size["W"] % 4 == 0 and z == 1 and split(size["B"] * size["C"], plan["planes"], x)
    assert plan["planes"] == 1 or (rows, cols) == (H, W)
    assert plan["x_pitch"] % 2 == plan["map_pitch"] % 2 == 1 and 2 * plan["map_pitch"] >= cols
    # n / d without a division is exact only for n d < 2^32.
    lines = plan["planes"] * min(H, rows + 52)
    assert lines * (cols // plan["across"] + 1) * lines < 2**32 and plan["planes"] * cols * cols < 2**32


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_plan_holds_as_many_blocks_as_the_profile_says(gpu):
    for warps, registers, shared in itertools.product(
        range(4, 33), range(64, 256, 8), range(0, 40 << 10, 1000)
    ):
        if warps * registers > 65536 // 32:
            continue
        threads = 32 * warps
        given = dict(shared_bytes=gpu.block_shared << 10, arch=gpu.arch)
        found = _plan.resident_blocks(threads, registers, shared, **given)
        exact = gpu.resident(threads, registers, shared)[0]
        assert found == min(exact, 1024 // threads if gpu.arch == 75 else 1536 // threads), (
            threads,
            registers,
            shared,
        )


@pytest.mark.parametrize("part", range(4))
def test_plan_tiles_cover_every_output_within_limits(part):
    choice = random.Random(part)
    seen = set()
    for _ in range(500):
        size = draw_tiles(choice)
        shared_bytes, multiprocessors = DEVICES[choice.choice(list(DEVICES))]
        limits = dict(shared_bytes=shared_bytes, multiprocessors=multiprocessors)
        plans = {element: _plan.lska_tiles(**size, **limits, element=element) for element in (2, 4)}
        said = f"_plan.lska_tiles(**{size}, **{limits}) = {plans}"
        # The dtypes agree bit for bit but for one rounding: all have tiles, or none.
        assert (plans[2] is None) == (plans[4] is None), said
        for plan in plans.values():
            if plan is None:
                continue
            try:
                check_tiles(size, plan, shared_bytes)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{said}") from None
            seen.add((size["channels_last"], plan["shape"]))
    assert len(seen) > 20, seen


@pytest.mark.parametrize("capability", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_plan_tiles_serve_published_maps(capability, channels_last):
    shared_bytes, multiprocessors = DEVICES[capability]
    limits = dict(shared_bytes=shared_bytes, multiprocessors=multiprocessors, element=2)
    for (k0, k1, d), (C, side), B in itertools.product(
        PUBLISHED_SPLITS, ((64, 80), (128, 40), (256, 20), (384, 80), (768, 40)), (1, 16)
    ):
        size = dict(B=B, C=C, H=side, W=side, k0=k0, k1=k1, dilation=d, channels_last=channels_last)
        plan = _plan.lska_tiles(**size, **limits)
        assert plan, size
        if B == 1 and side == 80:  # blocks for nearly all; k 53 had rather walk all rows
            enough = 0.85 * multiprocessors if k1 < 17 else min(0.85 * multiprocessors, 64)
            assert math.prod(plan["grid"]) >= enough, (size, plan)


@pytest.mark.parametrize("capability", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_plan_tiles_serve_maps_of_any_side(capability, channels_last):
    shared_bytes, multiprocessors = DEVICES[capability]
    limits = dict(shared_bytes=shared_bytes, multiprocessors=multiprocessors)
    for (k0, k1, d), side in itertools.product(PUBLISHED_SPLITS, range(20, 161, 4)):
        size = dict(B=16, C=64, H=side, W=side, k0=k0, k1=k1, dilation=d, channels_last=channels_last)
        assert _plan.lska_tiles(**size, **limits, element=2), size
        assert _plan.lska_tiles(**size, **limits, element=4), size
        if side % 16 == 8:
            assert _plan.lska_tiles_backward(**size, **limits, element=2), size


# pass, attention, shift, sums of the shift's weight gradients
ACMIX_PASSES = (
    ("forward", True, True, False),
    ("forward", True, False, False),
    ("forward", False, True, False),
    ("query", True, True, False),
    ("query", True, True, True),
    ("query", True, False, False),
    ("key", True, True, False),
    ("key", True, False, False),
    ("key", False, True, False),
)


def draw_acmix(choice):
    """Sizes that compiled.too_much accepts."""
    head, kernel_conv = choice.choice((1, 2, 3, 4, 8, 16, 64)), choice.choice((1, 3, 3, 5, 7))
    kernel_att, dilation = choice.choice((1, 3, 5, 7, 7, 9, 11, 25)), choice.choice((1, 1, 1, 2, 3))
    D, stride = choice.choice((1, 2, 7, 16, 32, 64, 96, 192, 500, 1024)), choice.choice((1, 1, 2, 3, 8))
    sizes = dict(head=head, kernel_att=kernel_att, kernel_conv=kernel_conv, stride=stride, dilation=dilation)
    if too_much(dims=D, **sizes):
        return draw_acmix(choice)
    H, W = (choice.randint(1, choice.choice((4, 20, 90, 400, 3000))) for _ in range(2))
    shape = dict(B=choice.choice((1, 2, 16, 64, 5000)), C=head * D, H=H, W=W, element=choice.choice((2, 4)))
    return sizes | shape


@pytest.mark.parametrize("part", range(4))
def test_plan_acmix_covers_every_pixel_once_within_limits(part):
    choice = random.Random(part)
    for _ in range(150):
        size = draw_acmix(choice)
        shared_bytes, multiprocessors = DEVICES[choice.choice(list(DEVICES))]
        limits = dict(shared_bytes=shared_bytes, multiprocessors=multiprocessors)
        weights = _plan.acmix_shift_grad(**size, **limits)
        assert weights["fits"] and weights["shared_bytes"] <= shared_bytes, (size, limits, weights)
        x, y, z = weights["grid"]
        assert 1 <= x < 2**31 and 1 <= y < 2**16 and 1 <= z < 2**16 and y <= weights["units"]
        assert 1 <= weights["tasks"] * weights["splits"] <= 256
        maps, quads, taps = weights["parts"] * size["head"], -(-size["head"] // 4), size["kernel_conv"] ** 2
        of_map = quads * (size["kernel_conv"] if size["stride"] == 1 and taps == 9 else taps)
        assert split(maps * of_map, weights["tasks"], z * weights["parts"] // 3), (size, limits, weights)
        for which, attention, shift, sums in ACMIX_PASSES:
            plan = _plan.acmix(which, attention, shift, **size, **limits, shift_grad=sums)
            said = f"_plan.acmix({which!r}, {attention}, {shift}, **{size}, **{limits}, shift_grad={sums}) = {plan}"
            if not plan["fits"]:
                assert attention and shift, f"what each half needs fits every GPU: {said}"
                continue
            H, W = (size[n] if which == "key" else math.ceil(size[n] / size["stride"]) for n in "HW")
            x, y, z = plan["grid"]
            D = size["C"] // size["head"]
            blocks = 1 if shift and attention else size["head"] if attention else math.ceil(D / plan["dims"])
            assert x < 2**31 and max(y, z) < 2**16, said
            if sums:  # a block has every x-th image; blocks that all run at once would not have fewer
                assert x == plan["images"] <= size["B"], said
                assert x == 1 or x * y * z <= multiprocessors, said
                at_once = max(1, multiprocessors // (y * z))
                assert math.ceil(size["B"] / x) == math.ceil(size["B"] / at_once), said
            else:
                assert x == size["B"] * blocks and plan["images"] == size["B"], said
            assert split(H, plan["rows"], y) and split(W, plan["cols"], z), said
            assert 0 < plan["shared_bytes"] <= shared_bytes, said
            assert 1 <= plan["band"] <= plan["rows"] and 1 <= plan["dims"] <= D, said
            assert plan["band"] == plan["rows"] or plan["dims"] == D or not attention, said
            assert plan["cols"] % 4 == 0 or z == 1, said  # runs of four start at aligned addresses


@pytest.mark.parametrize("capability", DEVICES)
def test_plan_acmix_computes_both_halves_at_once_where_it_can(capability):
    shared_bytes, multiprocessors = DEVICES[capability]
    for C, side in ((64, 80), (128, 40), (256, 20)):
        size = dict(B=16, C=C, H=side, W=side, head=4, kernel_att=7, kernel_conv=3, stride=1, dilation=1)
        plan = _plan.acmix(
            "forward",
            True,
            True,
            **size,
            element=2,
            shared_bytes=shared_bytes,
            multiprocessors=multiprocessors,
        )
        assert plan["fits"] and plan["regular"], size


def check_backward_tiles(size, plan, shared):
    B, C, H, W = (size[name] for name in "BCHW")
    groups, tiles, images = plan["grid"]
    assert images == B and plan["parts"] == tiles * B
    assert (groups - 1) * plan["channels"] < C <= groups * plan["channels"]
    down = tiles // plan["tiles_x"]
    assert (down - 1) * plan["rows"] < H <= down * plan["rows"]
    assert (plan["tiles_x"] - 1) * plan["cols"] < W <= plan["tiles_x"] * plan["cols"]
    assert plan["shared_bytes"] <= shared and 0 < plan["threads"] <= 384 and plan["threads"] % 32 == 0


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    "shared, multiprocessors", [(227 << 10, 132), (163 << 10, 108), (99 << 10, 28), (64 << 10, 40)]
)
def test_plan_backward_tiles_cover_the_map_and_fit(shared, multiprocessors, channels_last):
    for (k0, k1, d), (C, H, W), B, element in itertools.product(
        PUBLISHED_SPLITS,
        ((64, 80, 80), (256, 20, 20), (768, 40, 40), (6, 1, 7), (18, 161, 33)),
        (1, 16),
        (2, 4),
    ):
        size = dict(B=B, C=C, H=H, W=W, k0=k0, k1=k1, dilation=d, channels_last=channels_last)
        limits = dict(shared_bytes=shared, multiprocessors=multiprocessors)
        plan = _plan.lska_tiles_backward(**size, **limits, element=element)
        said = f"_plan.lska_tiles_backward(**{size}, **{limits}, element={element}) = {plan}"
        assert plan, said
        try:
            check_backward_tiles(size, plan, shared)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{said}") from None


@pytest.mark.parametrize("part", range(4))
def test_plan_backward_tiles_of_any_map_fit(part):
    """The largest maps, which no tile serves, too."""
    choice, serving = random.Random(part), 0
    for _ in range(100):
        size, element = draw_tiles(choice), choice.choice((2, 4))
        shared, multiprocessors = DEVICES[choice.choice(list(DEVICES))]
        limits = dict(shared_bytes=shared, multiprocessors=multiprocessors)
        plan = _plan.lska_tiles_backward(**size, **limits, element=element)
        if plan is None:
            continue
        serving += 1
        try:
            check_backward_tiles(size, plan, shared)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n_plan.lska_tiles_backward(**{size}, **{limits}, element={element}) = {plan}"
            ) from None
    assert serving > 20
    for H, W, channels_last in (
        (2000, 540_000, False),
        (540_000, 2000, False),
        (2**30 - 1, 2, False),
        (1, 2**27, True),
    ):
        size = dict(B=1, C=2 if channels_last else 1, H=H, W=W, k0=5, k1=7, dilation=3)
        size["channels_last"], limits = channels_last, dict(shared_bytes=227 << 10, multiprocessors=132)
        if plan := _plan.lska_tiles_backward(**size, **limits, element=2):
            check_backward_tiles(size, plan, 227 << 10)
