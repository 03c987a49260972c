"""LSKA and its sister designs: the reference, the modules, bad input."""

import copy
import pickle

import pytest
import torch
from conftest import Published, check_published, layouts, published

from lska_ops import LKA, LSKA, LKATrivial, LSKATrivial, lska
from lska_ops.lska.module import split_kernel
from lska_ops.testing import PUBLISHED, error_ratio, relative_error

DESIGNS = (LSKA, LSKATrivial, LKA, LKATrivial)
HALF = (torch.float16, torch.bfloat16)

pytestmark = pytest.mark.versions


def module(C=6, k_size=7, dtype=torch.float64, design=LSKA, seed=0):
    torch.manual_seed(seed)
    return design(C, k_size).to(dtype)


def arguments(m):
    convs = (m.conv0h, m.conv0v, m.conv_spatial_h, m.conv_spatial_v, m.conv1)
    return [(c.weight, c.bias) for c in convs]


@pytest.mark.parametrize("file", published("lska"))
def test_lska_equals_published(file):
    numbers = Published(file)
    check_published(LSKA(**numbers.arguments).double(), numbers, relative_error, PUBLISHED)


@pytest.mark.parametrize(
    "k_size, split",
    [(7, (3, 3, 2)), (11, (3, 5, 2)), (23, (5, 7, 3)), (35, (5, 11, 3)), (41, (5, 13, 3)), (53, (5, 17, 3)),
     (15, (3, 7, 2)), (17, (5, 5, 3)), (19, (3, 9, 2)), (27, (3, 13, 2)), (29, (5, 9, 3)), (47, (5, 15, 3)), (49, (9, 9, 5))],
)  # fmt: skip
def test_lska_kernel_split(k_size, split):
    k0, k1, d = split_kernel(k_size)
    assert (k0, k1, d) == split
    assert k0 == 2 * d - 1 and k1 % 2 == 1 and k0 + (k1 - 1) * d == k_size


@pytest.mark.parametrize("k_size", [7, 11, 15, 17, 23, 35, 53])
def test_lska_receptive_field_is_k_size(k_size):
    m = module(1, k_size)
    side = 2 * k_size + 1
    x = torch.randn(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    gate = m.conv1(m.conv_spatial_v(m.conv_spatial_h(m.conv0v(m.conv0h(x)))))
    gate[0, 0, side // 2, side // 2].backward()
    rows, columns = x.grad[0, 0].nonzero(as_tuple=True)
    assert rows.max() - rows.min() + 1 == k_size and columns.max() - columns.min() + 1 == k_size


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
def test_lska_dilation_option(dilation):
    k_size = 2 * dilation - 1 + 4 * dilation
    m = LSKA(3, k_size, dilation)
    assert m.conv_spatial_h.dilation == (dilation, dilation)
    assert m(torch.randn(1, 3, 5, 9)).shape == (1, 3, 5, 9)


def test_lska_gradcheck():
    m = module(3)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(p.detach().requires_grad_() for p in m.parameters())]

    def run(x, *flat):
        return lska(x, *zip(flat[::2], flat[1::2], strict=False), dilation=2)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("H, W", [(1, 1), (1, 7), (2, 3), (5, 1), (9, 4)])
def test_lska_small_maps_and_empty_batch(design, H, W):
    m = module(5, 11, torch.float32, design)
    assert m(torch.randn(2, 5, H, W)).isfinite().all()
    assert m(torch.randn(0, 5, H, W)).shape == (0, 5, H, W)


@pytest.mark.parametrize("kind", ["channels_last", "sliced", "transposed", "offset", "expanded"])
def test_lska_layouts(kind):
    m = module()
    x = layouts(torch.randn(2, 6, 9, 8, dtype=torch.float64))[kind]
    assert relative_error(m(x), m(x.clone(memory_format=torch.contiguous_format))) <= PUBLISHED


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("k_size, H, W", [(7, 12, 9), (23, 30, 28), (53, 20, 20)])
def test_lska_reference_within_bound(dtype, k_size, H, W):
    m = module(8, k_size, dtype)
    exact = copy.deepcopy(m).double()
    positive = copy.deepcopy(exact)
    for p in positive.parameters():
        p.data.abs_()
    x = torch.randn(2, 8, H, W).to(dtype)
    taps = sum(sum(c.kernel_size) for c in m.children()) + 8
    ratio = error_ratio(m(x), exact(x.double()), positive(x.double().abs()), operations=taps, roundings=6)
    assert ratio <= 1


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("design", DESIGNS)
def test_lska_autocast(design, dtype):
    m = module(4, 7, torch.float32, design)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = m(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in m.parameters())
    assert torch.equal(y, copy.deepcopy(m).to(dtype)(x.to(dtype)))
    m.conv1.register_forward_hook(lambda *args: None)  # the submodules are called now
    with torch.autocast("cpu", dtype):
        assert m(x).dtype == dtype


def test_lska_leaves_its_inputs_alone():
    m = module()
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    kept, state = x.clone(), copy.deepcopy(m.state_dict())
    m(x)
    assert torch.equal(x, kept)
    assert all(torch.equal(state[name], tensor) for name, tensor in m.state_dict().items())


@pytest.mark.parametrize("design", DESIGNS)
def test_lska_survives_pickle_and_deepcopy(design):
    m = module(4, 11, torch.float32, design)
    x = torch.randn(1, 4, 6, 6)
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m)):
        assert torch.equal(other(x), m(x))


def test_lska_calls_submodules_that_carry_hooks():
    m = module(3, 7)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    without, calls = m(x), []
    for conv in m.children():
        conv.register_forward_hook(lambda *args: calls.append(args[0]))
    assert relative_error(m(x), without) <= PUBLISHED and calls == list(m.children())


def changes():
    """What must make a module call its submodules: how it is done to one of them, and what it does to the result."""
    from torch.nn.modules.module import register_module_forward_hook

    def double(*args):
        return args[-1] * 2

    def patch(conv):
        forward = conv.forward
        conv.forward = lambda x: forward(x) * 2

    return {
        "forward hook": lambda conv: conv.register_forward_hook(double),
        "forward pre-hook": lambda conv: conv.register_forward_pre_hook(lambda m, args: args[0] * 2),
        "patched forward": patch,
        "global hook": lambda conv: register_module_forward_hook(
            lambda m, args, y: y * 2 if m is conv else None
        ),
        "padding mode": lambda conv: setattr(conv, "padding_mode", "circular"),
    }


@pytest.mark.parametrize("change", changes())
def test_lska_sees_changes_of_a_submodule(change):
    m = module(3, 7, torch.float32)
    x = torch.randn(1, 3, 6, 6)
    before = m(x)
    handle = changes()[change](m.conv0h)
    try:
        if change == "padding mode":
            m.conv0h._reversed_padding_repeated_twice = [1, 1, 0, 0]
        assert not torch.equal(m(x), before)
    finally:
        if hasattr(handle, "remove"):
            handle.remove()


def test_lska_backward_hooks_of_a_submodule_fire():
    m, calls = module(3, 7, torch.float32), []
    m.conv0h.register_full_backward_pre_hook(lambda *args: calls.append("pre"))
    m.conv0v.register_full_backward_hook(lambda *args: calls.append("full"))
    m(torch.randn(1, 3, 6, 6, requires_grad=True)).sum().backward()
    assert sorted(calls) == ["full", "pre"]


@pytest.mark.parametrize("design", DESIGNS)
def test_lska_runs_on_the_meta_device(design):
    m = module(4, 7, torch.float32, design).to("meta")
    assert m(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 4, 5, 6)
    m.conv1.register_forward_hook(lambda *args: None)
    assert m(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 4, 5, 6)


def test_lska_pruning_takes_effect():
    from torch.nn.utils import prune

    m = module(3, 7, torch.float32)
    x = torch.randn(1, 3, 6, 6)
    prune.l1_unstructured(m.conv1, "weight", amount=1.0)
    assert torch.allclose(m(x), x * m.conv1.bias.view(1, -1, 1, 1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_lska_compiles_without_graph_break(dynamic):
    m = module(4, 7)
    torch._dynamo.reset()  # the limit of recompilations counts other tests' modules too
    compiled = torch.compile(m, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for side in (6, 9):
        x = torch.randn(1, 4, side, side, dtype=torch.float64)
        assert relative_error(compiled(x), m(x)) <= PUBLISHED


def test_lska_traces_to_other_sizes():
    m = module(4, 7).eval()
    traced = torch.jit.trace(m, torch.randn(1, 4, 8, 8, dtype=torch.float64))
    x = torch.randn(2, 4, 13, 11, dtype=torch.float64)
    assert relative_error(traced(x), m(x)) <= PUBLISHED


@pytest.mark.parametrize(
    "design, k_size", [(LSKA, 8), (LSKA, 9), (LKA, 13), (LSKA, 3), (LSKA, 0), (LSKA, -7)]
)
def test_lska_unreachable_k_size_names_the_nearest(design, k_size):
    with pytest.raises(ValueError, match=rf"^{design.__name__}: k_size is {k_size}; expected") as error:
        design(4, k_size)
    if k_size == 9:
        assert "expected 7 or 11, the nearest that split into" in str(error.value)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (4, 5, 5), (1, 4, 0, 5)])
def test_lska_module_names_itself_when_the_map_does_not_fit(design, shape, hooked):
    m = design(4)
    if hooked:
        m.conv1.register_forward_hook(lambda *args: None)
    with pytest.raises(
        ValueError, match=rf"^{design.__name__}: x has shape \[{', '.join(map(str, shape))}\]; expected"
    ):
        m(torch.randn(shape))


def bad_calls():
    m = module(4, 7, torch.float32)
    x, (h, v, sh, sv, g) = torch.randn(1, 4, 8, 8), arguments(m)
    w = torch.randn
    return {
        "rank": (ValueError, "x has shape [4, 8, 8]; expected [B, C, H, W]", (x[0], h, v, sh, sv, g), {}),
        "channels": (ValueError, "conv0h weight has shape [4, 1, 1, 3]; expected [C, 1, 1, k] with C = 2 and k odd",
                     (x[:, :2], h, v, sh, sv, g), {}),
        "even": (ValueError, "conv0h weight has shape [4, 1, 1, 6]", (x, (w(4, 1, 1, 6), None), v, sh, sv, g), {}),
        "lengths": (ValueError, "conv0v weight has shape [4, 1, 5, 1]; expected [4, 1, 3, 1], as long as conv0h",
                    (x, h, (w(4, 1, 5, 1), None), sh, sv, g), {}),
        "gate": (ValueError, "conv1 weight has shape [8, 4, 1, 1]; expected [C, C, 1, 1] with C = 4",
                 (x, h, v, sh, sv, (w(8, 4, 1, 1), None)), {}),
        "bias": (ValueError, "conv1 bias has shape [3]; expected [4]", (x, h, v, sh, sv, (g[0], w(3))), {}),
        "dtype": (TypeError, "conv0h weight is torch.float32; expected torch.float16", (x.half(), h, v, sh, sv, g), {}),
        "integers": (TypeError, "x is torch.int64", (x.long(), h, v, sh, sv, g), {}),
        "no pair": (TypeError, "conv0h is a Parameter; expected the pair (weight, bias)", (x, h[0], v, sh, sv, g), {}),
        "half a pair": (ValueError, "conv_spatial_v is None", (x, h, v, sh, None, g), {}),
        "empty side": (ValueError, "x has shape [1, 4, 0, 8]", (x[:, :, :0], h, v, sh, sv, g), {}),
        "dilation": (ValueError, "dilation is 0; expected an integer of at least 1", (x, h, v, sh, sv, g), {"dilation": 0}),
        "backend": (ValueError, "backend is 'gpu'; expected one of auto", (x, h, v, sh, sv, g), {"backend": "gpu"}),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_calls())
def test_lska_bad_call(case):
    kind, message, args, options = bad_calls()[case]
    with pytest.raises(kind) as error:
        lska(*args, **{"dilation": 2, **options})
    assert str(error.value).startswith("lska: ") and message in str(error.value)


@pytest.mark.parametrize(
    "design, args, message",
    [(LSKA, (0,), "dim is 0"), (LSKA, ("64",), "dim is '64'"), (LSKA, (4, 7.0), "k_size is 7.0"),
     (LSKATrivial, (4, 8), "k_size is 8"), (LKATrivial, (4, 7, 2), "dilation is 2; expected None or 1"),
     (LSKA, (4, 21, 2), "expected 19 or 23, the nearest that split into"),
     (LSKA, (4, -7), "k_size is -7; expected 7, the nearest that"),
     (LSKA, (4, -10**9), "expected 7, the nearest that")],
)  # fmt: skip
def test_lska_bad_construction(design, args, message):
    with pytest.raises((TypeError, ValueError)) as error:
        design(*args)
    assert str(error.value).startswith(f"{design.__name__}: ") and message in str(error.value)
