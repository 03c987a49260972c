"""ACmix: the reference, the module, bad input."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Published, check_published, layouts, published

from lska_ops import ACmix, acmix
from lska_ops._backends import WHY_NOT
from lska_ops.acmix.reference import coordinates, position_offsets, reflect_pad, windows
from lska_ops.testing import PUBLISHED, UNIT, bound_ratio, relative_error
from lska_ops.testing.acmix import whole_call
from lska_ops.testing.problems import random_problem, ratios, solve

HALF = (torch.float16, torch.bfloat16)

pytestmark = pytest.mark.versions


def module(*args, dtype=torch.float64, seed=0, **options):
    """An ACmix away from its initial values, where shifts and equal rates would hide mistakes."""
    torch.manual_seed(seed)
    m = ACmix(*args, **options)
    with torch.no_grad():
        for p in (m.rate1, m.rate2, m.dep_conv.weight):
            p.normal_()
    return m.to(dtype)


def arguments(m):
    convs = (m.conv1, m.conv2, m.conv3, m.conv_p, m.fc, m.dep_conv)
    return [*((c.weight, c.bias) for c in convs), m.rate1, m.rate2]


@pytest.mark.parametrize("file", published("acmix"))
def test_acmix_equals_published(file):
    numbers = Published(file)
    check_published(ACmix(**numbers.arguments).double(), numbers, relative_error, PUBLISHED)


def test_acmix_initial_values():
    m = ACmix(12, 24, head=4)
    assert m.rate1.tolist() == [0.5] and m.rate2.tolist() == [0.5]
    assert m.dep_conv.bias is None and m.fc.bias is None
    for channel in m.dep_conv.weight:
        for tap, kernel in enumerate(channel):
            assert kernel.sum() == 1 and kernel[tap // 3, tap % 3] == 1


@pytest.mark.parametrize("H, W", [(1, 1), (1, 5), (2, 2), (3, 4), (9, 2), (12, 12)])
@pytest.mark.parametrize("reach", [1, 3, 8])
def test_acmix_reflection_goes_on(H, W, reach):
    x = torch.randn(2, 3, H, W, dtype=torch.float64)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    assert np.array_equal(reflect_pad(x, reach).numpy(), expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_acmix_window_taps(stride, dilation):
    K, (H, W) = 3, (7, 6)
    x = torch.randn(1, 2, H, W, dtype=torch.float64)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (dilation, dilation), (dilation, dilation)), mode="reflect")
    found = windows(x, K, stride, dilation)
    assert found.shape == (1, 2, K * K, -(-H // stride), -(-W // stride))
    for t in range(K * K):
        rows = (np.arange(0, H, stride) + t // K * dilation)[:, None]
        columns = np.arange(0, W, stride) + t % K * dilation
        assert np.array_equal(found[:, :, t].numpy(), padded[:, :, rows, columns])


def test_acmix_coordinates():
    x, y = coordinates(3, 5, torch.float64, "cpu")[0]
    assert x[0].tolist() == [-1, -0.5, 0, 0.5, 1] and y[:, 0].tolist() == [-1, 0, 1]
    assert coordinates(1, 1, torch.float32, "cpu").flatten().tolist() == [-1, -1]


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"dilation": 2}, {"head": 2, "kernel_conv": 1}], ids=str
)
def test_acmix_gradcheck(options):
    m = module(4, 4, 3, **{"head": 2, **options})
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = {name: p.detach().requires_grad_() for name, p in m.named_parameters()}

    def run(x, *values):
        return torch.func.functional_call(m, dict(zip(parameters, values, strict=False)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(run, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("H, W", [(1, 1), (1, 2), (2, 2), (2, 4), (4, 3), (3, 9)])
@pytest.mark.parametrize("options", [{}, {"kernel_att": 11}, {"stride": 2}, {"dilation": 3}], ids=str)
def test_acmix_small_maps_and_empty_batch(H, W, options):
    m, stride = module(8, dtype=torch.float32, **options), options.get("stride", 1)
    out = (-(-H // stride), -(-W // stride))
    y = m(torch.randn(2, 8, H, W))
    assert y.shape == (2, 8, *out) and y.isfinite().all()
    assert m(torch.randn(0, 8, H, W)).shape == (0, 8, *out)


def test_acmix_one_pixel_attends_to_itself():
    m = module(8)
    x = torch.randn(1, 8, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        m.rate1.fill_(1)
        m.rate2.zero_()
    assert relative_error(m(x), m.conv3(x)) <= PUBLISHED


@pytest.mark.parametrize("kind", ["channels_last", "sliced", "transposed", "offset", "expanded"])
def test_acmix_layouts(kind):
    m = module(8, 16)
    x = layouts(torch.randn(2, 8, 9, 6, dtype=torch.float64))[kind]
    assert relative_error(m(x), m(x.clone(memory_format=torch.contiguous_format))) <= PUBLISHED


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_acmix_autocast(dtype):
    m = module(8, dtype=torch.float32)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = m(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in m.parameters())
    assert torch.equal(y, copy.deepcopy(m).to(dtype)(x.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_acmix_positions_are_subtracted_before_they_are_rounded(dtype):
    # On a wide map the step between columns is below what a half dtype resolves near 1.
    window = (7, 1, 1)
    conv_p = module(8).conv_p

    def of(loc):
        return F.conv2d(loc, conv_p.weight.to(loc.dtype), conv_p.bias.to(loc.dtype))

    exact = position_offsets(of, 5, 500, window, torch.float64, "cpu")
    largest = of(coordinates(5, 500, torch.float64, "cpu")).abs().max()
    lost = 8 * UNIT[torch.float32] * largest.expand_as(exact)  # of p itself, in float32
    assert bound_ratio(position_offsets(of, 5, 500, window, dtype, "cpu"), exact, lost) <= 1


@pytest.mark.parametrize("part", range(4))
def test_acmix_reference_within_bound_in_float32(part):
    for seed in range(90_000 + 25 * part, 90_000 + 25 * part + 25):
        problem = random_problem("acmix", seed)
        if problem.dtype == torch.float32:
            answers = solve(problem, "reference")
            found = ratios(problem, {n: answers[n] for n in ("y", "grad_qkv", "grad_fc", "grad_dep_conv")})
            assert max(found.values()) <= 1, (found, problem.repro("reference"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (2, 5), (9, 8), (20, 17)], ids=str)
@pytest.mark.parametrize(
    "options",
    [dict(), dict(head=1, kernel_att=3), dict(kernel_att=5, kernel_conv=5, stride=2, dilation=2)],
    ids=["default", "one_head", "stride_2"],
)
@pytest.mark.parametrize("backend", WHY_NOT["acmix"])
def test_acmix_whole_call_within_bound(backend, options, size, dtype):
    """Every result of the module, projections included; `plain` for the reference."""
    if reason := WHY_NOT["acmix"][backend](torch.empty(1, 8, 8, 8)):
        pytest.skip(f"{backend}: {reason}")
    torch.manual_seed(0)
    m = ACmix(12, 16, **options)
    with torch.no_grad():
        for p in m.parameters():  # the initial shifts and equal rates would hide mistakes
            p.normal_(std=p[0].numel() ** -0.5)
    m = m.to(dtype)
    x = torch.randn(2, 12, *size).to(dtype).requires_grad_()
    convs = (m.conv1, m.conv2, m.conv3, m.conv_p, m.fc, m.dep_conv)
    options = dict(head=m.head, kernel_att=m.kernel_att, stride=m.stride, dilation=m.dilation)
    y = acmix(x, *((c.weight, c.bias) for c in convs), m.rate1, m.rate2, **options, backend=backend)
    inputs, grad_y = {"x": x, **dict(m.named_parameters())}, torch.randn(y.shape).to(dtype)
    answers = {
        "y": y,
        **dict(zip(inputs, torch.autograd.grad(y, list(inputs.values()), grad_y), strict=True)),
    }
    exact = {name: t.detach().double() for name, t in inputs.items()}
    allowed = whole_call(exact, options, dtype, grad_y.double(), plain=backend == "reference")
    assert allowed.keys() == answers.keys()
    for name, out in answers.items():
        assert bound_ratio(out, *allowed[name]) <= 1, name


def test_acmix_hooks_keep_the_dtype_of_autocast():
    m = module(8, dtype=torch.float32)
    m.conv1.register_forward_hook(lambda *args: None)
    with torch.autocast("cpu", torch.bfloat16):
        assert m(torch.randn(1, 8, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("hooked", [False, True])
def test_acmix_runs_on_the_meta_device(hooked):
    m = module(8, dtype=torch.float32).to("meta")
    if hooked:
        m.conv1.register_forward_hook(lambda *args: None)
    assert m(torch.empty(2, 8, 5, 6, device="meta")).shape == (2, 8, 5, 6)


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (8, 5, 5)])
def test_acmix_module_names_itself_when_the_map_does_not_fit(shape):
    with pytest.raises(ValueError, match="^ACmix: x has shape .* expected"):
        ACmix(8)(torch.randn(shape))


def test_acmix_survives_pickle_and_deepcopy():
    m = module(8, 16, 5, 2)
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m)):
        assert torch.equal(other(x), m(x))


def test_acmix_calls_submodules_that_carry_hooks():
    m = module(8)
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    without, calls = m(x), []
    for conv in m.children():
        conv.register_forward_hook(lambda *args: calls.append(args[0]))
    assert relative_error(m(x), without) <= PUBLISHED and set(calls) == set(m.children())


def test_acmix_drops_dep_conv_bias_with_a_message():
    m = ACmix(8)
    state = {**m.state_dict(), "dep_conv.bias": torch.full((8,), 0.25)}
    with pytest.warns(UserWarning, match=r"dep_conv.bias \(largest magnitude 0.25\) is dropped"):
        torch.nn.Sequential(m).load_state_dict({f"0.{name}": t for name, t in state.items()}, strict=True)
    assert "dep_conv.bias" in state and m.dep_conv.bias is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.load_state_dict(m.state_dict(), strict=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_acmix_compiles_without_graph_break(dynamic):
    m = module(8)
    torch._dynamo.reset()  # the limit of recompilations counts other tests' modules too
    compiled = torch.compile(m, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for side in (6, 9):
        x = torch.randn(1, 8, side, side, dtype=torch.float64)
        assert relative_error(compiled(x), m(x)) <= PUBLISHED


def test_acmix_traces_to_other_sizes():
    m = module(8).eval()
    traced = torch.jit.trace(m, torch.randn(1, 8, 8, 8, dtype=torch.float64))
    for side in ((13, 11), (4, 9), (2, 3), (1, 1)):
        x = torch.randn(2, 8, *side, dtype=torch.float64)
        assert relative_error(traced(x), m(x)) <= PUBLISHED


def bad_calls():
    m = module(8, 12, head=4, dtype=torch.float32)
    x, good = torch.randn(1, 8, 6, 6), arguments(m)

    def swap(i, value):
        return [x, *good[:i], value, *good[i + 1 :]]

    w = torch.randn
    return {
        "rank": (ValueError, "x has shape [8, 6, 6]; expected [B, C, H, W]", [x[0], *good], {}),
        "channels": (ValueError, "conv1 weight has shape [12, 8, 1, 1]; expected [12, 3, 1, 1]", [x[:, :3], *good], {}),
        "head": (ValueError, "head is 5; expected a divisor of C_out = 12", [x, *good], {"head": 5}),
        "fc": (ValueError, "fc weight has shape [9, 9, 1, 1]; expected [9, 12, 1, 1]", swap(4, (w(9, 9, 1, 1), None)), {}),
        "fc bias": (ValueError, "fc bias is given; expected None", swap(4, (good[4][0], w(9))), {}),
        "position": (ValueError, "conv_p weight has shape [4, 2, 1, 1]; expected [3, 2, 1, 1]",
                     swap(3, (w(4, 2, 1, 1), None)), {}),
        "rate": (ValueError, "rate1 has shape []; expected [1]", swap(6, torch.tensor(0.5)), {}),
        "window": (ValueError, "kernel_att is 4; expected an odd integer", [x, *good], {"kernel_att": 4}),
        "stride": (TypeError, "stride is 2.0; expected an integer", [x, *good], {"stride": 2.0}),
        "dtype": (TypeError, "conv1 weight is torch.float32; expected torch.float16 like x", [x.half(), *good], {}),
        "no tensor": (TypeError, "conv1 weight is a list; expected a tensor", swap(0, ([1.0], None)), {}),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_calls())
def test_acmix_bad_call(case):
    kind, message, args, options = bad_calls()[case]
    with pytest.raises(kind) as error:
        acmix(*args, **{"head": 4, **options})
    assert str(error.value).startswith("acmix: ") and message in str(error.value)


@pytest.mark.parametrize(
    "args, options, message",
    [((10,), {}, "head is 4; expected a divisor of out_planes = 10: 1, 2, 5, 10"), ((8, 8, 6), {}, "kernel_att is 6"),
     ((8,), {"kernel_conv": 2}, "kernel_conv is 2"), ((8,), {"stride": 0}, "stride is 0"), ((-8,), {}, "in_planes is -8"),
     (("8",), {}, "in_planes is '8'"), ((8, 8, 7, 2.0), {}, "head is 2.0")],
)  # fmt: skip
def test_acmix_bad_construction(args, options, message):
    with pytest.raises((TypeError, ValueError)) as error:
        ACmix(*args, **options)
    assert str(error.value).startswith("ACmix: ") and message in str(error.value)
