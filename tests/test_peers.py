"""ACmix's peers in the benchmarks are the same function, or say that they are not. No test here measures speed."""

import functools
import math
import sys
from types import ModuleType, SimpleNamespace

import acmix_peers
import gate
import goals
import peers
import pytest
import report
import suite
import timing
import torch
from acmix_peers import NATTEN, Declined
from gate import Gate
from goals import FLEX
from problems import Problem, Row

from lska_ops.testing import Case

CPU = torch.device("cpu")
TINY = Case("tiny", 8, 9, 7)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def tiny(kind, dtype=torch.float32, case=TINY, B=2, k=7):
    return Problem(Row(kind, case, B, k), dtype, CPU)


def judged(problem, provider):
    own, function = provider(problem)
    judge = Gate(problem)
    return judge.worst(judge.answers(own, own.runner(function)))


@every_dtype
@pytest.mark.parametrize("kind", ["acmix_fwd", "acmix_fwd_bwd"])
@pytest.mark.parametrize("case, k", [(TINY, 7), (Case("small", 8, 2, 5), 5)])
def test_peers_cached_position_is_the_same_function(kind, dtype, case, k):
    worst, ratio = judged(tiny(kind, dtype, case, k=k), acmix_peers.cached_position)
    assert ratio <= 1, worst


def test_peers_cached_position_makes_it_once(monkeypatch):
    """What is timed asks for no coordinates."""
    for kind in ("acmix_fwd", "acmix_fwd_bwd"):
        problem = tiny(kind)
        own, function = acmix_peers.cached_position(problem)
        with monkeypatch.context() as patched:
            patched.setattr(sys.modules["lska_ops.acmix.reference"], "coordinates", None)
            own.runner(function)()
            with pytest.raises(TypeError):
                problem.runner(problem.plain)()


@pytest.fixture
def flex_traced(monkeypatch):
    """FlexAttention as autograd sees it, captured tensors and all, but run as PyTorch's own operations: so it
    has a backward on the CPU, too."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention", reason="this torch has no FlexAttention")
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(acmix_peers, "_takes", lambda *_: None)
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(acmix_peers.torch, "compile", traced)
    torch._dynamo.reset()


@every_dtype
def test_peers_flex_attention_is_the_same_function(flex_traced, dtype):
    """conv_p's gradient too, which comes through the scalars that a score takes."""
    worst, ratio = judged(tiny("acmix_fwd_bwd", dtype), acmix_peers.flex_attention)
    assert ratio <= 1, worst


@pytest.mark.parametrize("part", ["multiplicity", "position"])
def test_peers_flex_attention_that_is_not_exact_is_told(flex_traced, monkeypatch, part):
    problem = tiny("acmix_fwd")
    if part == "multiplicity":
        monkeypatch.setattr(acmix_peers, "math", SimpleNamespace(log=lambda _: 0.0))
        assert not judged(problem, acmix_peers.flex_attention)[1] <= 1
        return
    own, function = acmix_peers.flex_attention(problem)
    judge, weight = Gate(problem), problem.module.conv_p.weight
    kept = weight.detach().clone()
    weight.data.zero_()
    results = own.runner(function)()
    weight.data.copy_(kept)
    assert not judge.worst(results)[1] <= 1
    assert judge.worst(own.runner(function)())[1] <= 1


def test_peers_flex_attention_compiled():
    """As it is timed on a CPU; elsewhere PyTorch makes the same of it for the GPU."""
    problem = tiny("acmix_fwd")
    try:
        worst, ratio = judged(problem, acmix_peers.flex_attention)
    except Declined as reason:
        pytest.skip(str(reason))
    assert ratio <= 1, worst


def stand_in(device="cuda", case=TINY, dtype=torch.float16, kind="acmix_fwd", **module):
    """A problem that only says what it is."""
    x = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(2, case.C, case.H, case.W))
    options = dict(head_dim=16, stride=1, dilation=1, kernel_att=7) | module
    return SimpleNamespace(x=x, module=SimpleNamespace(**options), row=Row(kind, case, 2, 7))


@pytest.mark.parametrize(
    "problem, reason",
    [
        (stand_in(head_dim=8), "FlexAttention takes 16 dims a head or more on a GPU; these are 8"),
        (stand_in(case=Case("low", 8, 4, 40)), "met three times where a side is at most 4; use a larger map"),
        (stand_in(stride=2), "written for stride 1"),
        (stand_in("cpu", kind="acmix_fwd_bwd"), "FlexAttention has no backward on a CPU; see the forward rows"),
        (stand_in("cpu", dtype=torch.float64), "FlexAttention takes no float64 on a CPU"),
    ],
)  # fmt: skip
def test_peers_flex_attention_declines_in_words(problem, reason, monkeypatch):
    monkeypatch.setattr(acmix_peers, "find_spec", lambda _: True)
    with pytest.raises(Declined, match=reason):
        acmix_peers._takes(problem, 3)
    acmix_peers._takes(stand_in(), 3)


def test_peers_flex_attention_declines_where_torch_lacks_it(monkeypatch):
    monkeypatch.setattr(acmix_peers, "find_spec", lambda _: None)
    with pytest.raises(Declined, match="has no FlexAttention; upgrade torch"):
        acmix_peers._takes(stand_in(), 3)


def test_peers_natten_declines_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "natten.functional", None)
    with pytest.raises(Declined, match="natten is not installed; pip install natten"):
        acmix_peers.natten(tiny("acmix_fwd"))


def test_peers_natten_is_shown_as_another_function(monkeypatch, capsys):
    """A made-up natten: what it is called with, and that nobody takes its time for ours or PyTorch's best."""
    asked = []

    def na2d(q, k, v, kernel_size, dilation):
        asked.append((q.shape, kernel_size, dilation, q.is_contiguous()))
        return v

    functional = ModuleType("natten.functional")
    functional.na2d = na2d
    monkeypatch.setitem(sys.modules, "natten", ModuleType("natten"))
    monkeypatch.setitem(sys.modules, "natten.functional", functional)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(suite, "providers", lambda op: {"eager": peers.eager, NATTEN: acmix_peers.natten})
    rows = suite.measure(tiny("acmix_fwd_bwd"), 1, 0, timing.cpu_turn)
    line = next(line for line in rows if line["provider"] == NATTEN)
    assert line["status"] == "ok, another function" and line["role"] == "another function"
    assert line["error_ratio"] == "" and line["ms"] > 0
    assert asked[0] == ((2, 9, 7, 4, 2), 7, 1, True)
    line["ms"] = 1e-6
    assert goals.line_of(rows, "pytorch")["provider"] == "eager" and goals.line_of(rows, "ours") is None
    report.print_row(rows)
    assert "not the same function" in capsys.readouterr().out


def test_peers_are_those_of_the_row():
    assert set(peers.ACMIX) == {"eager, cached position", FLEX, NATTEN}
    assert not set(peers.ACMIX) & set(peers.providers("lska")) and set(peers.ACMIX) < set(
        peers.providers("acmix")
    )
    roles = {name: peers.role_of(name) for name in peers.providers("acmix")}
    assert roles[FLEX] == roles["eager"] == "pytorch" and roles["cuda"] == "ours"
    assert [name for name, role in roles.items() if role == "another function"] == [NATTEN]


@pytest.fixture
def few_images(monkeypatch):
    """A gate that takes two images' truth at once."""
    monkeypatch.setattr(gate, "MOST", 2 * 49 * math.prod(TINY[1:]))


@pytest.mark.parametrize("kind", ["acmix_fwd", "acmix_fwd_bwd"])
def test_peers_gate_judges_the_last_images_of_a_large_batch(few_images, kind):
    problem = tiny(kind, B=5)
    judge, grad_y = Gate(problem), problem.grad_y.clone()
    assert (judge.images, judge.batch) == (2, 5) and len(judge.problem.x) == 2
    run = problem.runner(problem.plain)
    results = judge.answers(problem, run)
    assert torch.equal(problem.grad_y, grad_y) and judge.worst(results)[1] <= 1
    for i, name in enumerate(problem.names()):
        wrong = [*results[:i], 1.5 * results[i] + (0.1 if name == "conv_p.bias" else 0.01), *results[i + 1 :]]
        assert not judge.worst(wrong)[1] <= 1, name
    strange = results[0].clone()
    strange[0, 0, 0, 0] = torch.nan
    assert judge.worst([strange, *results[1:]]) == ("an image that is not judged", math.inf)
    if kind == "acmix_fwd_bwd":
        assert judge.worst(run())[1] > 1  # gradients of the whole batch are not those of the judged


def test_peers_gate_judges_all_of_a_batch_that_fits():
    assert gate.images_judged(tiny("acmix_fwd", B=5)) == 5
    large = SimpleNamespace(row=Row("acmix_fwd", TINY, 64, 7), x=torch.empty(64, 384, 80, 80, device="meta"))
    assert gate.images_judged(large) == 1
