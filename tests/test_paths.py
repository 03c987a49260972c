"""Every path of the kernels is taken by the random problems that the tests solve: where one is not, a bug there is
found by nobody.

The tests themselves run here, with a recorder in place of what solves and judges.
"""

import pytest
import torch

from lska_ops import _compiled

info = _compiled.build_info()
if _compiled.problem or "plan" not in info["parts"]:
    pytest.skip("the kernels were not built; see `python -m lska_ops doctor`", allow_module_level=True)

import paths  # noqa: E402
import test_host_cuda as lska_on_host  # noqa: E402
import test_host_cuda_acmix as acmix_on_host  # noqa: E402
import test_kernels  # noqa: E402

from lska_ops.testing.problems import OPS  # noqa: E402

FEW = 5  # problems that have to take a path
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}


def lacking(every, seen, least):
    """What is taken by less than `least` of the problems; `seen` are the sets of paths that they take."""
    counts = {path: sum(path in of for of in seen) for path in every}
    return {path: count for path, count in counts.items() if count < least}


class Solved:
    """The problems that a test of test_kernels.py solves: (problem, whether backward)."""

    def __init__(self, monkeypatch):
        self.problems = []
        monkeypatch.setattr(test_kernels, "check", self.check)

    def check(self, problem, backend, backward=True):
        self.problems.append((problem, backward))

    def taken(self, isa, threads=2):
        width = VECTOR_BYTES[isa]
        for problem, backward in self.problems:
            if problem.op == "lska":
                yield paths.lska_cpu(problem, width, backward)
            else:
                yield paths.acmix_cpu(problem, width, threads, backward)


@pytest.fixture(scope="module")
def solved_on_cpu():
    """By op, all that the two large tests solve; they are drawn once."""
    found = {}
    for op in OPS:
        with pytest.MonkeyPatch.context() as monkeypatch:
            found[op] = Solved(monkeypatch)
            for part in range(10):
                test_kernels.test_kernels_forward_within_bound(op, "cpu", part)
                test_kernels.test_kernels_gradients_within_bound(op, "cpu", part)
    return found


@pytest.mark.parametrize("isa", VECTOR_BYTES)
@pytest.mark.parametrize("op", OPS)
def test_paths_of_cpu_are_all_taken(solved_on_cpu, op, isa):
    rare = lacking(paths.of_cpu(op, VECTOR_BYTES[isa]), list(solved_on_cpu[op].taken(isa)), FEW)
    assert not rare, f"{op}, {isa}: problems are too few on these paths: {rare}"


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
@pytest.mark.parametrize("op", OPS)
def test_paths_of_older_instruction_sets_are_all_taken(monkeypatch, op, isa):
    """On a machine that has a newer set, so that these problems alone run the older one's code."""
    solved = Solved(monkeypatch)
    monkeypatch.setattr(torch.ops.lska_ops, "set_cpu_isa", lambda isa: isa)
    test_kernels.test_kernels_older_instruction_sets_within_bound(op, isa)
    rare = lacking(paths.of_cpu(op, VECTOR_BYTES[isa]), list(solved.taken(isa)), 1)
    assert not rare, f"{op}, {isa}: no problem takes {', '.join(rare)}"


class Host:
    """In place of the host-run library: remembers the limits that a test sets."""

    def __init__(self, monkeypatch):
        self.limits, self.seen = None, {"lska": [], "acmix": []}
        monkeypatch.setattr(lska_on_host, "check", self.lska)
        monkeypatch.setattr(acmix_on_host, "check", self.acmix)
        monkeypatch.setattr(acmix_on_host, "check_half", self.half)

    def configure(self, schedule, shared_bytes, multiprocessors, cache_bytes):
        self.limits = (shared_bytes, multiprocessors)

    def take_counters(self):
        return [0, 0, 8, 0]  # a test of a call's kernels wants eight

    def lska(self, problem, backward):
        self.seen["lska"].append(paths.lska_cuda(problem, *self.limits, backward))

    def acmix(self, problem, backward):
        self.seen["acmix"].append(paths.acmix_cuda(problem, *self.limits, backward))

    def half(self, host, problem, attention):
        half = "attention" if attention else "shift"
        self.seen["acmix"].append(paths.acmix_cuda(problem, *self.limits, True, half))


@pytest.fixture
def host(monkeypatch):
    return Host(monkeypatch)


def test_paths_of_cuda_lska_are_all_taken(host):
    for device in lska_on_host.DEVICES:
        lska_on_host.test_host_cuda_forward_within_bound(host, device)
        lska_on_host.test_host_cuda_gradients_within_bound(host, device)
        lska_on_host.test_host_cuda_channels_last_within_bound(host, device)
    lska_on_host.test_host_cuda_streams_within_bound(host)
    lska_on_host.test_host_cuda_gradients_of_tiles_within_bound(host)
    rare = lacking(paths.LSKA_CUDA, host.seen["lska"], FEW)
    assert not rare, f"problems are too few on these paths: {rare}"


def test_paths_of_cuda_acmix_are_all_taken(host):
    for device in acmix_on_host.DEVICES:
        acmix_on_host.test_host_cuda_acmix_forward_within_bound(host, device)
        acmix_on_host.test_host_cuda_acmix_gradients_within_bound(host, device)
        for half in (True, False):
            acmix_on_host.test_host_cuda_acmix_halves_are_the_whole_without_the_other(host, device, half)
        for op in ("local_attention", "shift_aggregate"):
            acmix_on_host.test_host_cuda_acmix_public_halves_within_bound(host, device, op)
    for part in range(4):
        acmix_on_host.test_host_cuda_acmix_tiles_within_bound(host, part)
    for room in acmix_on_host.SUMMED:
        acmix_on_host.test_host_cuda_acmix_weight_gradients_of_the_query_pass_within_bound(
            host, 7, 3, 1, room
        )
    rare = lacking(paths.ACMIX_CUDA, host.seen["acmix"], FEW)
    assert not rare, f"problems are too few on these paths: {rare}"


def test_paths_that_no_problem_takes_are_named():
    assert lacking(("a", "b", "c"), [{"a", "b"}, {"a"}], 2) == {"b": 1, "c": 0}
