"""What every fused backend of every op must answer; the reference has answered in test_<op>.py."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lska_ops import LSKA, ACmix, LSKATrivial, _backends, _compiled, _watchers
from lska_ops.testing import PUBLISHED, relative_error
from lska_ops.testing.problems import LAYOUTS, OPS, random_problem, ratios, solve

pytestmark = pytest.mark.versions

# LSKA_OPS_TEST_PROBLEMS asks for fewer, where each takes long (sanitizers) or the machine is slow.
FORWARD, BACKWARD = (int(n) for n in os.environ.get("LSKA_OPS_TEST_PROBLEMS", "1000 500").split())
ON_CPU = torch.empty(1, 8, 8, 8)


def usable(op):
    """The fused backends of `op`; one that declines here is a skip with its own sentence."""
    for name, why_not in _backends.WHY_NOT[op].items():
        if name != "reference":
            reason = why_not(ON_CPU)
            skip = [pytest.mark.skip(reason=f"{name}: {reason}")] if reason else []
            yield pytest.param(op, name, id=f"{op}-{name}", marks=skip)


every_backend = pytest.mark.parametrize("op, backend", [case for op in OPS for case in usable(op)])


def check(problem, backend, backward=True):
    found = ratios(problem, solve(problem, backend, backward))
    worst = max(found, key=found.get)
    assert found[worst] <= 1, f"{worst} is {found[worst]:.3g} times the bound: {problem.repro(backend)}"


@every_backend
@pytest.mark.parametrize("part", range(10))
def test_kernels_forward_within_bound(op, backend, part):
    for seed in range(part * FORWARD // 10, (part + 1) * FORWARD // 10):
        check(random_problem(op, seed), backend, backward=False)


@every_backend
@pytest.mark.parametrize("part", range(10))
def test_kernels_gradients_within_bound(op, backend, part):
    for seed in range(10_000 + part * BACKWARD // 10, 10_000 + (part + 1) * BACKWARD // 10):
        check(random_problem(op, seed), backend)


def isas():
    if _compiled.problem:
        return []
    best = torch.ops.lska_ops.set_cpu_isa("")
    return ["baseline", "avx2", "avx512"][: ["baseline", "avx2", "avx512"].index(best)]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("op", OPS)
def test_kernels_older_instruction_sets_within_bound(op, isa):
    best = torch.ops.lska_ops.set_cpu_isa("")
    try:
        assert torch.ops.lska_ops.set_cpu_isa(isa) == isa
        for seed in range(20_000, 20_060):
            check(random_problem(op, seed), "cpu")
    finally:
        torch.ops.lska_ops.set_cpu_isa(best)


@every_backend
def test_kernels_repeat_bit_by_bit_on_any_number_of_threads(op, backend):
    threads = torch.get_num_threads()
    try:
        for seed in range(30):
            problem = random_problem(op, 30_000 + seed)
            torch.set_num_threads(1)
            first = solve(problem, backend)
            for n in (1, 2, 3, 5):
                torch.set_num_threads(n)
                again = solve(problem, backend)
                assert all(torch.equal(first[name], again[name]) for name in first), problem.repro(backend)
    finally:
        torch.set_num_threads(threads)


@every_backend
def test_kernels_write_every_element_and_leave_inputs_alone(op, backend):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    try:
        for seed in range(40):
            problem = random_problem(op, 40_000 + seed)
            kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
            grad_y = problem.grad_y.clone()
            for name, answer in solve(problem, backend).items():
                assert answer.isfinite().all(), f"{name}: {problem.repro(backend)}"
            assert all(torch.equal(problem.tensors[n], t) for n, t in kept.items())
            assert torch.equal(problem.grad_y, grad_y)
    finally:
        torch.use_deterministic_algorithms(False)


@every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_take_grad_y_in_any_layout(op, backend, layout):
    problem = random_problem(op, 50_000)
    given = problem.grad_y
    problem.grad_y = LAYOUTS["contiguous"](
        given if layout != "expanded" else given[:1].expand_as(given).clone()
    )
    expected = solve(problem, backend)
    problem.grad_y = LAYOUTS[layout](given)
    answers = solve(problem, backend)
    assert all(torch.equal(expected[name], answers[name]) for name in expected)


@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_kernels_pass_nan_and_infinity_on_like_pytorch(op, backend, value):
    for seed in range(60_000, 60_040):
        problem = random_problem(op, seed)
        if problem.dtype not in (torch.float32, torch.float64) or problem.layout == "expanded":
            continue
        first = next(iter(problem.tensors.values()))
        first[tuple((seed * n + n) % side for n, side in enumerate(first.shape, 1))] = value
        ours, theirs = solve(problem, backend), solve(problem, "reference")
        for name in ours.keys() - {"grad_conv_p_bias"}:  # zero, whatever the map holds
            a, b = ours[name].isfinite(), theirs[name].isfinite()
            if a.dim() == 4 and name not in ("y", "grad_x", "grad_qkv", "grad_conv1"):
                # PyTorch multiplies NaN with the zeros of its padding: a tap that hardly meets the map is NaN
                # there and right here. A middle tap of LSKA meets every pixel.
                assert (a | ~b).all(), f"{name}: {problem.repro(backend)}"
                middle = (..., a.shape[2] // 2, a.shape[3] // 2)
                a, b = (a[middle], b[middle]) if op == "lska" else (a[~a], b[~a])
            assert torch.equal(a, b), f"{name}: {problem.repro(backend)}"


@every_backend
def test_kernels_empty_batch(op, backend):
    problem = random_problem(op, 70_000)
    first = next(iter(problem.tensors))
    problem.tensors[first], problem.grad_y = problem.tensors[first][:0], problem.grad_y[:0]
    answers = solve(problem, backend)
    assert answers["y"].shape == problem.grad_y.shape
    assert all(not g.any() for name, g in answers.items() if name != "y")


def modules():
    torch.manual_seed(0)
    for m in (LSKA(6, 11), LSKATrivial(6), ACmix(8, 12, 5, 4)):
        with torch.no_grad():
            for p in m.parameters():
                p.normal_(std=0.5)
        yield pytest.param(m.double(), id=type(m).__name__)


@pytest.fixture(params=list(modules()))
def module(request):
    return request.param


def inputs(m, side=5):
    channels = m.in_planes if isinstance(m, ACmix) else m.conv1.in_channels
    return torch.randn(2, channels, side, side + 1, dtype=torch.float64, requires_grad=True)


@pytest.mark.skipif(bool(_compiled.problem), reason=f"cpu: {_compiled.problem}")
class TestCpu:
    """Of the module as a user calls it, which on a CPU takes the compiled backend."""

    def test_kernels_module_equals_reference(self, module, monkeypatch):
        x = inputs(module)
        answers = []
        for backend in ("cpu", "reference"):
            monkeypatch.setenv("LSKA_OPS_BACKEND", backend)
            y = module(x)
            wanted = [x, *module.parameters()]
            answers.append([y, *torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)])
        for ours, theirs in zip(*answers, strict=True):
            assert relative_error(ours, theirs) <= PUBLISHED or theirs.abs().max() <= PUBLISHED

    def test_kernels_gradcheck_first_and_second(self, module):
        x = inputs(module, 3)
        parameters = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}

        def run(x, *values):
            return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

        values = (x, *parameters.values())
        assert torch.autograd.gradcheck(run, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, values, fast_mode=True)

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_kernels_compile_without_graph_break(self, module, dynamic):
        torch._dynamo.reset()  # the limit of recompilations counts other tests' modules too
        compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for side in (6, 9):
            x = inputs(module, side)
            wanted = [x, *module.parameters()]
            expected, found = module(x), compiled(x)
            grads = torch.autograd.grad(expected.sum(), wanted), torch.autograd.grad(found.sum(), wanted)
            pairs = [(found, expected), *zip(*grads, strict=True)]
            if _watchers.COMPILES_OURS:
                assert all(torch.equal(a, b) for a, b in pairs)
            else:  # plain PyTorch was compiled
                assert all(relative_error(a, b) <= PUBLISHED or b.abs().max() <= PUBLISHED for a, b in pairs)

    def test_kernels_save_few_maps_for_backward(self, module):
        x = inputs(module, 20).float().detach().requires_grad_()
        m, kept = module.float(), {}

        def keep(t):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        weights = {p.untyped_storage().data_ptr() for p in m.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = m(x)
        module.double()
        maps = sum(size for at, size in kept.items() if at not in weights) / (y.numel() * 4)
        assert maps <= (2.1 if not isinstance(m, ACmix) else 5)

    def test_kernels_autocast_rounds_once(self, module):
        m = module.float()
        x = inputs(module).float()
        with torch.autocast("cpu", torch.bfloat16):
            y = m(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, m.bfloat16()(x.bfloat16()))
        module.double()

    def test_kernels_frozen_parameters_get_no_gradient(self, module):
        x = inputs(module).detach()
        first = next(module.parameters())
        first.requires_grad_(False)
        module.zero_grad()
        module(x).sum().backward()
        assert first.grad is None and all(p.grad is not None for p in list(module.parameters())[1:])
        first.requires_grad_(True)
        with torch.no_grad():
            assert not module(x).requires_grad
        with torch.inference_mode():
            assert module(x).is_inference()

    def test_kernels_one_bad_call_of_the_op_itself(self):
        x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 1, 4)
        with pytest.raises(RuntimeError, match="conv0h weight has shape .* expected an odd kernel size"):
            torch.ops.lska_ops.lska_cascade_fwd_cpu(x, w, None, w, None, None, None, None, None, 1)

    @pytest.mark.parametrize("op", OPS)
    def test_kernels_opcheck(self, op):
        if not hasattr(torch.library, "opcheck"):
            pytest.skip("torch has no opcheck; 2.4 has")
        for seed in (80_000, 80_001, 80_002):
            problem = random_problem(op, seed)
            for name, arguments in captured_calls(problem):
                torch.library.opcheck(getattr(torch.ops.lska_ops, name).default, arguments)

    @pytest.mark.parametrize("op", OPS)
    def test_kernels_fakes_are_as_results(self, op):
        for name, arguments in captured_calls(random_problem(op, 80_000)):
            call = getattr(torch.ops.lska_ops, name)
            with FakeTensorMode() as mode:
                fakes = call(*(mode.from_tensor(a) if torch.is_tensor(a) else a for a in arguments))
            for fake, result in zip(fakes, call(*arguments), strict=True):
                assert (fake.shape, fake.dtype) == (result.shape, result.dtype)


def captured_calls(problem):
    """(op name, arguments) of the registered ops that one forward and backward call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "lska_ops":
                calls.append(
                    (func.name().split("::")[1], tuple(a.detach() if torch.is_tensor(a) else a for a in args))
                )
            return func(*args, **(kwargs or {}))

    with Recorder():
        solve(problem, "cpu")
    assert len(calls) == 2
    return calls


def available_memory():
    """Bytes that can be used without swapping; what files keep in memory can be given up."""
    if not os.path.exists("/proc/meminfo"):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open("/proc/meminfo", encoding="utf-8") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


@pytest.mark.skipif(bool(_compiled.problem), reason=f"cpu: {_compiled.problem}")
@every_backend
def test_kernels_refuse_forward_mode_differentiation(op, backend):
    """Without a formula for it the op would answer with a derivative of zero."""
    problem = random_problem(op, 5)
    first = next(iter(problem.tensors))

    def function(x):
        return OPS[op].call({**problem.tensors, first: x}, problem.options, backend)

    x = problem.tensors[first]
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))


def test_kernels_offsets_beyond_two_to_the_31():
    if reason := _backends.WHY_NOT["lska"]["cpu"](torch.empty(1)):
        pytest.skip(f"cpu: {reason}")
    C, side = 2100, 1024
    if available_memory() < 12e9:
        pytest.skip("less than 12 GB of memory is available; free some")
    x = torch.zeros(1, C, side, side, dtype=torch.float16)
    assert x.numel() > 2**31
    x[0, -1, -1, -1] = 1
    taps = torch.ones(C, 1, 1, 1, dtype=torch.float16)
    s = torch.ops.lska_ops.lska_cascade_fwd_cpu(x, taps, None, taps, None, None, None, None, None, 1)
    assert s[0, -1, -1, -1] == 1 and s[0].count_nonzero() == 1


def test_kernels_repro_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "lska_ops.testing.problems", "lska", "reference", "3"],
        capture_output=True,
        text=True,
    )
    assert (
        "python -m lska_ops.testing.problems lska reference 3" in done.stdout and "grad_x" in done.stdout
    ), done.stderr
