"""ACmix's halves as functions; random problems of both are in test_kernels.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import layouts

from lska_ops import ACmix, _watchers, local_attention, shift_aggregate
from lska_ops._backends import WHY_NOT
from lska_ops.testing import PUBLISHED, bound_ratio, relative_error
from lska_ops.testing.acmix import whole_call
from lska_ops.testing.problems import random_problem, ratios, solve

HALVES = {"local_attention": local_attention, "shift_aggregate": shift_aggregate}
G, D = 2, 3
C = G * D


def usable():
    """Every backend but cuda, which test_gpu_acmix.py tests; one that declines here is a skip with its own sentence."""
    for name, why_not in WHY_NOT["local_attention"].items():
        if name == "cuda":
            continue
        reason = why_not(torch.empty(1, C, 8, 8))
        marks = [pytest.mark.skip(reason=f"{name}: {reason}")] if reason else []
        yield pytest.param(name, marks=marks)


every_backend = pytest.mark.parametrize("backend", list(usable()))
every_half = pytest.mark.parametrize("half", HALVES)


def weights(half, dtype=torch.float64, kernel_conv=3):
    """conv_p's pair, or fc's and dep_conv's."""
    generator, n = torch.Generator().manual_seed(1), kernel_conv**2
    shapes = (
        ((D, 2, 1, 1), (D,)) if half == "local_attention" else ((n, 3 * G, 1, 1), (C, n, *[kernel_conv] * 2))
    )
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return (tuple(drawn),) if half == "local_attention" else tuple((weight, None) for weight in drawn)


def maps(*size, dtype=torch.float64, seed=0):
    """q, k and v, each with memory of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in "qkv"]


def call(half, q, k, v, pairs, **options):
    return HALVES[half](q, k, v, *pairs, **{"head": G, **options})


def leaves(q, k, v, pairs):
    return [t for t in (q, k, v, *(t for pair in pairs for t in pair)) if t is not None]


@every_half
@every_backend
@pytest.mark.parametrize("stride", [1, 2])
def test_halves_gradcheck_first_and_second(half, backend, stride):
    pairs = weights(half)
    given = [t.requires_grad_() for t in leaves(*maps(1, C, 3, 4), pairs)]

    def run(q, k, v, *parameters):
        again = (parameters,) if half == "local_attention" else tuple((w, None) for w in parameters)
        return call(half, q, k, v, again, stride=stride, backend=backend)

    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@every_half
def test_halves_reference_within_bound_in_float32(half):
    judged = 0
    for seed in range(90_000, 90_060):
        problem = random_problem(half, seed)
        if problem.dtype == torch.float32:
            answers = solve(problem, "reference")
            found = ratios(problem, {n: answers[n] for n in ("y", "grad_qkv")})
            assert max(found.values()) <= 1, (found, problem.repro("reference"))
            judged += 1
    assert judged


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options", [{}, dict(kernel_att=5, stride=2, dilation=2)], ids=["default", "stride_2"]
)
def test_halves_of_the_projections_are_acmix_within_bound(backend, options, dtype):
    torch.manual_seed(0)
    m = ACmix(12, C, head=G, **options)
    with torch.no_grad():
        for p in m.parameters():  # the initial shifts and equal rates would hide mistakes
            p.normal_(std=p[0].numel() ** -0.5)
    m = m.to(dtype)
    x = torch.randn(2, 12, 9, 8).to(dtype).requires_grad_()
    q, k, v = m.conv1(x), m.conv2(x), m.conv3(x)
    window = dict(kernel_att=m.kernel_att, dilation=m.dilation)
    common = dict(head=G, stride=m.stride)
    attended = local_attention(q, k, v, (m.conv_p.weight, m.conv_p.bias), backend=backend, **common, **window)
    shifted = shift_aggregate(
        q, k, v, (m.fc.weight, None), (m.dep_conv.weight, None), backend=backend, **common
    )
    y = m.rate1 * attended + m.rate2 * shifted
    inputs, grad_y = {"x": x, **dict(m.named_parameters())}, torch.randn(y.shape).to(dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), grad_y)
    answers = {"y": y, **dict(zip(inputs, grads, strict=True))}
    exact = {name: t.detach().double() for name, t in inputs.items()}
    allowed = whole_call(exact, {**common, **window}, dtype, grad_y.double(), plain=True)
    assert allowed.keys() == answers.keys()
    for name, out in answers.items():
        assert bound_ratio(out, *allowed[name]) <= 1, name


@every_backend
def test_halves_without_position_are_with_one_of_zero(backend):
    q, k, v = maps(2, C, 6, 5)
    none = local_attention(q, k, v, None, head=G, backend=backend)
    zero = local_attention(q, k, v, (torch.zeros(D, 2, 1, 1).double(), None), head=G, backend=backend)
    some = call("local_attention", q, k, v, weights("local_attention"), backend=backend)
    assert torch.equal(none, zero) and not torch.equal(none, some)


@every_backend
@pytest.mark.parametrize("bias", [True, False])
def test_halves_bias_of_position_changes_nothing(backend, bias):
    q, k, v = maps(1, C, 6, 5)
    weight, constant = weights("local_attention")[0]
    constant = constant.requires_grad_() if bias else None
    y = local_attention(q, k, v, (weight, constant), head=G, backend=backend)
    assert relative_error(y, local_attention(q, k, v, (weight, None), head=G)) <= PUBLISHED
    if bias:
        (grad,) = torch.autograd.grad(y.sum(), constant)
        assert grad.abs().max() <= PUBLISHED


@every_half
@every_backend
@pytest.mark.parametrize("H, W", [(1, 1), (1, 2), (2, 2), (4, 3), (3, 9)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_halves_small_maps_and_empty_batch(half, backend, H, W, stride):
    pairs, out = weights(half), (-(-H // stride), -(-W // stride))
    q, k, v = maps(2, C, H, W)
    y = call(half, q, k, v, pairs, stride=stride, backend=backend)
    assert relative_error(y, call(half, q, k, v, pairs, stride=stride, backend="reference")) <= PUBLISHED
    empty = [t[:0].requires_grad_() for t in (q, k, v)]
    y = call(half, *empty, pairs, stride=stride, backend=backend)
    assert y.shape == (0, C, *out)
    assert all(g.shape == (0, C, H, W) for g in torch.autograd.grad(y.sum(), empty))


@every_backend
def test_halves_one_pixel_attends_to_itself(backend):
    q, k, v = maps(1, C, 1, 1)
    assert relative_error(local_attention(q, k, v, None, head=G, backend=backend), v) <= PUBLISHED


@every_half
@every_backend
@pytest.mark.parametrize("kind", ["channels_last", "sliced", "transposed", "offset", "expanded"])
def test_halves_layouts(half, backend, kind):
    pairs = weights(half)
    q, k, v = (layouts(t)[kind].requires_grad_() for t in maps(2, C, 9, 6))
    plain = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in (q, k, v)]
    answers = []
    for three in ((q, k, v), plain):
        y = call(half, *three, pairs, backend=backend)
        answers.append([y, *torch.autograd.grad(y.square().sum(), three)])
        if kind == "channels_last" and three[0] is q:
            assert y.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(*answers, strict=True):
        assert relative_error(ours, theirs) <= PUBLISHED


def what_the_op_reads(monkeypatch):
    """The q, k, v that the registered op is called with, as addresses."""
    from lska_ops.acmix import op

    seen, real = [], op._op

    def recording(direction, backend):
        def run(*arguments):
            if direction == "fwd":
                seen.append((arguments[0].data_ptr(), tuple(arguments[0].shape)))
            return real(direction, backend)(*arguments)

        return run

    monkeypatch.setattr(op, "_op", recording)
    return seen


every_fused = pytest.mark.parametrize("backend", [p for p in usable() if p.values[0] != "reference"])


@every_half
@every_fused
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_halves_read_parts_of_one_tensor_where_they_lie(half, backend, recorded, layout, monkeypatch):
    seen, pairs = what_the_op_reads(monkeypatch), weights(half)
    qkv = torch.cat(maps(2, C, 5, 4), 1).contiguous(memory_format=layout).requires_grad_(recorded)
    y = call(half, *qkv.chunk(3, 1), pairs, backend=backend)
    assert seen == [(qkv.data_ptr(), (2, 3 * C, 5, 4))]
    assert y.is_contiguous(memory_format=layout)
    three = [t.detach().clone().requires_grad_(recorded) for t in qkv.chunk(3, 1)]
    copied = call(half, *three, pairs, backend=backend)
    assert torch.equal(y, copied) and seen[1][0] not in (qkv.data_ptr(), three[0].data_ptr())
    if recorded:
        (whole,) = torch.autograd.grad(y.square().sum(), qkv)
        assert torch.equal(whole, torch.cat(torch.autograd.grad(copied.square().sum(), three), 1))


@every_half
@every_fused
def test_halves_copy_what_does_not_lie_in_order(half, backend):
    pairs = weights(half)
    qkv = torch.cat(maps(2, C, 5, 4), 1)
    q, k, v = qkv.chunk(3, 1)
    wide = torch.zeros(2, 4 * C, 5, 4, dtype=torch.float64)  # room for a fourth behind each picture
    wide[:, : 3 * C] = qkv
    last = qkv.contiguous(memory_format=torch.channels_last).chunk(3, 1)
    beside = wide.contiguous(memory_format=torch.channels_last).chunk(4, 1)[:3]
    others = ((k, q, v), (q, v, k), (q, q, q), (v, k, q), wide.chunk(4, 1)[:3])
    for a, b, c in (*others, last[::-1], last[:2] + last[:1], (last[0], k, v), beside):
        expected = call(half, *(t.clone() for t in (a, b, c)), pairs, backend=backend)
        assert torch.equal(call(half, a, b, c, pairs, backend=backend), expected)


@every_half
@every_fused
def test_halves_notice_parts_changed_before_backward(half, backend):
    qkv = torch.cat(maps(2, C, 5, 4), 1).requires_grad_() * 1
    q, k, v = qkv.split(C, 1)
    y = call(half, q, k, v, weights(half), backend=backend)
    with pytest.raises(RuntimeError, match="modified"):
        qkv.mul_(2)
        y.sum().backward()


@every_half
@every_backend
@pytest.mark.parametrize("which", range(3))
def test_halves_gradients_only_where_wanted(half, backend, which):
    pairs, parts = weights(half), list(torch.cat(maps(1, C, 5, 4), 1).chunk(3, 1))
    expected = call(half, *(t.clone().requires_grad_() for t in parts), pairs, backend=backend)
    parts[which].requires_grad_()
    y = call(half, *parts, pairs, backend=backend)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert [t.grad is not None for t in parts] == [i == which for i in range(3)]
    with torch.inference_mode():
        assert call(half, *parts, pairs, backend=backend).is_inference()


@every_half
@every_backend
def test_halves_under_torch_func(half, backend):
    pairs, (q, k, v) = weights(half), torch.cat(maps(1, C, 5, 4), 1).chunk(3, 1)

    def run(*three):
        return call(half, *three, pairs, backend=backend).square().sum()

    found = torch.func.grad(run, (0, 1, 2))(q, k, v)
    three = [t.clone().requires_grad_() for t in (q, k, v)]
    for ours, theirs in zip(found, torch.autograd.grad(run(*three), three), strict=True):
        assert relative_error(ours, theirs) <= PUBLISHED


@every_half
@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_autocast(half, backend, dtype):
    pairs = [
        tuple(None if t is None else t.requires_grad_() for t in pair)
        for pair in weights(half, torch.float32)
    ]
    q, k, v = (t.requires_grad_() for t in maps(1, C, 6, 5, dtype=torch.float32))
    with torch.autocast("cpu", dtype):
        y = call(half, q, k, v, pairs, backend=backend)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves(q, k, v, pairs))
    low = [tuple(None if t is None else t.to(dtype) for t in pair) for pair in copy.deepcopy(pairs)]
    assert torch.equal(y, call(half, *(t.to(dtype) for t in (q, k, v)), low, backend=backend))


@every_half
@every_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_halves_compile_without_graph_break(half, backend, dynamic):
    if backend != "reference" and not _watchers.COMPILES_OURS:
        pytest.skip("torch.compile of fused functions needs torch 2.7; upgrade torch")
    torch._dynamo.reset()  # the limit of recompilations counts other tests' functions too
    pairs = weights(half)

    def run(qkv):
        return call(half, *qkv.chunk(3, 1), pairs, backend=backend)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for side in (6, 9):
        qkv = torch.cat(maps(2, C, side, side + 1), 1).requires_grad_()
        answers = []
        for function in (run, compiled):
            y = function(qkv)
            answers.append((y, *torch.autograd.grad(y.square().sum(), qkv)))
        assert all(relative_error(b, a) <= PUBLISHED for a, b in zip(*answers, strict=True))


@every_half
def test_halves_trace_to_other_sizes(half):
    pairs = weights(half)
    traced = torch.jit.trace(lambda q, k, v: call(half, q, k, v, pairs), tuple(maps(1, C, 8, 8)))
    for side in ((13, 11), (4, 9), (2, 3), (1, 1)):
        q, k, v = maps(2, C, *side)
        assert relative_error(traced(q, k, v), call(half, q, k, v, pairs)) <= PUBLISHED


@every_half
def test_halves_run_on_the_meta_device(half):
    pairs = [tuple(None if t is None else t.to("meta") for t in pair) for pair in weights(half)]
    q, k, v = (t.to("meta") for t in maps(2, C, 5, 6))
    assert call(half, q, k, v, pairs, stride=2).shape == (2, C, 3, 3)


@every_half
def test_halves_fused_keep_one_copy_for_backward(half):
    if reason := WHY_NOT[half]["cpu"](torch.empty(1)):
        pytest.skip(f"cpu: {reason}")
    qkv, kept = torch.cat(maps(1, C, 20, 20), 1).requires_grad_(), {}
    pairs = weights(half)

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = call(half, *qkv.chunk(3, 1), pairs, backend="cpu")
    of_weights = sum(t.nbytes for pair in pairs for t in pair if t is not None)
    lse = G * 20 * 20 * 8 if half == "local_attention" else 0
    assert qkv.data_ptr() in kept and sum(kept.values()) <= qkv.nbytes + lse + of_weights + 16
    assert y.requires_grad


def bad_calls():
    q, k, v = maps(1, C, 6, 6, dtype=torch.float32)
    w, attention, shift = (
        torch.randn,
        weights("local_attention", torch.float32),
        weights("shift_aggregate", torch.float32),
    )
    (conv_p, bias), (fc, _), (dep_conv, _) = attention[0], *shift
    return {
        "rank": (ValueError, "q has shape [6, 6, 6]; expected [B, C, H, W]", "local_attention", (q[0], k, v, *attention), {}),
        "no map": (TypeError, "q is a list; expected a tensor", "shift_aggregate", ([1.0], k, v, *shift), {}),
        "k": (ValueError, "k has shape [1, 6, 6, 5]; expected [1, 6, 6, 6]", "local_attention",
              (q, k[..., :5], v, *attention), {}),
        "v": (TypeError, "v is torch.float64; expected torch.float32 like q", "shift_aggregate",
              (q, k, v.double(), *shift), {}),
        "no v": (TypeError, "v is a NoneType; expected a tensor", "shift_aggregate", (q, k, None, *shift), {}),
        "head": (ValueError, "head is 4; expected a divisor of C = 6", "shift_aggregate", (q, k, v, *shift), {"head": 4}),
        "pair": (TypeError, "conv_p is a Tensor; expected the pair", "local_attention", (q, k, v, conv_p), {}),
        "position": (ValueError, "conv_p weight has shape [4, 2, 1, 1]; expected [3, 2, 1, 1]", "local_attention",
                     (q, k, v, (w(4, 2, 1, 1), None)), {}),
        "position bias": (ValueError, "conv_p bias has shape [4]; expected [3]", "local_attention",
                          (q, k, v, (conv_p, w(4))), {}),
        "no position": (TypeError, "conv_p weight is a NoneType; expected a tensor [3, 2, 1, 1]", "local_attention",
                        (q, k, v, (None, bias)), {}),
        "window": (ValueError, "kernel_att is 4; expected an odd integer", "local_attention", (q, k, v, *attention),
                   {"kernel_att": 4}),
        "dilation": (ValueError, "dilation is 0; expected an integer of at least 1", "local_attention",
                     (q, k, v, *attention), {"dilation": 0}),
        "stride": (TypeError, "stride is 2.0; expected an integer", "shift_aggregate", (q, k, v, *shift), {"stride": 2.0}),
        "no fc": (TypeError, "fc is a NoneType; expected the pair", "shift_aggregate", (q, k, v, None, shift[1]), {}),
        "fc": (ValueError, "fc weight has shape [9, 9, 1, 1]; expected [9, 6, 1, 1]", "shift_aggregate",
               (q, k, v, (w(9, 9, 1, 1), None), shift[1]), {}),
        "fc bias": (ValueError, "fc bias is given; expected None", "shift_aggregate", (q, k, v, (fc, w(9)), shift[1]), {}),
        "even": (ValueError, "dep_conv weight has kernel side 2; expected an odd one", "shift_aggregate",
                 (q, k, v, shift[0], (w(C, 4, 2, 2), None)), {}),
        "dep_conv": (ValueError, "dep_conv weight has shape [5, 9, 3, 3]; expected [6, 9, 3, 3]", "shift_aggregate",
                     (q, k, v, shift[0], (dep_conv[:5], None)), {}),
        "name": (ValueError, "backend is 'fast'; expected one of auto", "shift_aggregate", (q, k, v, *shift),
                 {"backend": "fast"}),
        "declined": (RuntimeError, "backend 'cuda' declined: x is on cpu; move it to a CUDA device", "local_attention",
                     (q, k, v, *attention), {"backend": "cuda"}),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_calls())
def test_halves_bad_call(case):
    kind, message, half, args, options = bad_calls()[case]
    with pytest.raises(kind) as error:
        HALVES[half](*args, **{"head": G, **options})
    assert str(error.value).startswith(f"{half}: ") and message in str(error.value)


@every_half
def test_halves_ask_the_backends_with_their_sizes(half, monkeypatch):
    asked = []
    monkeypatch.setitem(WHY_NOT, half, {"reference": lambda x, **sizes: asked.append(sizes)})
    window = dict(kernel_att=5, dilation=2) if half == "local_attention" else {}
    call(half, *maps(1, C, 5, 5), weights(half, kernel_conv=5), **window)
    own = dict(kernel_att=5, kernel_conv=None, dilation=2) if window else dict(kernel_att=1, kernel_conv=5)
    assert asked == [dict(head=G, dims=D, stride=1, **own)]


@pytest.mark.skipif(
    bool(WHY_NOT["acmix"]["cpu"](torch.empty(1))), reason="cpu: the compiled library is missing"
)
class TestOps:
    """The registered ops themselves, which take None for what a half has not."""

    def given(self):
        return (
            torch.randn(1, 3 * C, 5, 5),
            torch.randn(D, 2, 1, 1),
            torch.randn(9, 3 * G, 1, 1),
            torch.randn(C, 9, 3, 3),
        )

    def test_halves_absent_half_leaves_empty_tensors(self):
        qkv, conv_p, fc, dep_conv = self.given()
        one, window = torch.ones(1), (G, 3, 1, 1)
        fwd, bwd = torch.ops.lska_ops.acmix_core_fwd_cpu, torch.ops.lska_ops.acmix_core_bwd_cpu
        for weights_, empty in (
            ((conv_p, None, None, one, None), (1, 2, 4)),
            ((None, fc, dep_conv, None, one), (0, 3)),
        ):
            y, lse = fwd(qkv, *weights_, *window)
            assert lse.shape == ((1, G, 5, 5) if weights_[3] is not None else (0,))
            grads = bwd(torch.ones_like(y), qkv, lse, *weights_, *window)
            assert grads[0].shape == qkv.shape
            assert [i for i, g in enumerate(grads[1:]) if g.shape == (0,)] == list(empty)

    @pytest.mark.parametrize(
        "absent, words",
        [((3, 4), "rate1 and rate2 are missing; expected at least one of them"),
         ((0,), "one of conv_p and rate1 is missing"), ((3,), "one of conv_p and rate1 is missing"),
         ((1,), "some of fc, dep_conv and rate2 are missing"), ((4,), "some of fc, dep_conv and rate2 are missing")],
    )  # fmt: skip
    def test_halves_ops_refuse_in_words(self, absent, words):
        qkv, *rest = self.given()
        parameters = [None if i in absent else t for i, t in enumerate([*rest, torch.ones(1), torch.ones(1)])]
        with pytest.raises(RuntimeError, match=words):
            torch.ops.lska_ops.acmix_core_fwd_cpu(qkv, *parameters, G, 7, 1, 1)


def test_halves_dims_of_convolution_keep_the_published_order():
    """dep_conv's output channel c is dim c // G, head c % G: only that dim's q, k and v reach it."""
    q, k, v = maps(1, C, 5, 5)
    expected = call("shift_aggregate", q, k, v, weights("shift_aggregate"))
    q = q.clone()
    q[:, 1] += 1  # head 0, dim 1
    changed = (call("shift_aggregate", q, k, v, weights("shift_aggregate")) != expected).any((0, 2, 3))
    assert changed.tolist() == [c // G == 1 for c in range(C)]


def test_halves_shift_is_two_convolutions():
    q, k, v = maps(2, C, 6, 7)
    (fc, _), (dep_conv, _) = weights("shift_aggregate")
    maps_of_a_dim = torch.stack([t.view(2, G, D, 6, 7) for t in (q, k, v)], 1).flatten(1, 2)
    mixed = torch.einsum("pm,bmdhw->bdphw", fc[:, :, 0, 0], maps_of_a_dim).flatten(1, 2)
    expected = F.conv2d(mixed, dep_conv, padding=1, groups=D)
    assert (
        relative_error(call("shift_aggregate", q, k, v, [(fc, None), (dep_conv, None)]), expected)
        <= PUBLISHED
    )
