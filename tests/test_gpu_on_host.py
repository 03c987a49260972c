"""The tests that `make gpu` runs, on the kernels as a CPU runs them: that the tests themselves are right.

Not all of them: graphs, streams and what is large need a GPU.
"""

import pytest
import test_gpu_acmix
import test_gpu_lska
import torch
from test_host_cuda import CACHE, library  # noqa: F401

from lska_ops import _backends
from lska_ops.acmix import op as acmix_op
from lska_ops.lska import op as lska_op
from lska_ops.testing import Case

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def on_host(library, monkeypatch):  # noqa: F811
    """The host's library in the place of the CUDA backend, for tensors on the CPU."""
    for module, prefix in ((lska_op, "lska"), (acmix_op, "acmix_core")):
        monkeypatch.setattr(module, "_op", lambda pass_, _, p=prefix: getattr(library, f"{p}_{pass_}_cuda"))
    for op in _backends.WHY_NOT:
        monkeypatch.setitem(_backends.WHY_NOT[op], "cuda", lambda *_, **__: None)
    for tests in (test_gpu_lska, test_gpu_acmix):
        monkeypatch.setattr(tests, "DEVICE", torch.device("cpu"))
    for name, few in (("FORWARD", 9), ("BACKWARD", 6)):
        monkeypatch.setattr(test_gpu_acmix, name, few)
        monkeypatch.setattr(test_gpu_lska, name, few)
    monkeypatch.setattr(
        test_gpu_acmix, "core_ops", lambda: (library.acmix_core_fwd_cuda, library.acmix_core_bwd_cuda)
    )
    library.configure(0, 227 << 10, 132, CACHE, 90)  # whose halves are products


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("tests", [test_gpu_lska, test_gpu_acmix], ids=["lska", "acmix"])
def test_gpu_on_host_random_problems(on_host, tests, dtype):
    name = "_acmix" if tests is test_gpu_acmix else ""
    for test, parts in (("forward_within_bound", 3), ("gradients_within_bound", 2)):
        for part in range(parts):
            getattr(tests, f"test_gpu{name}_{test}")(dtype, part)
    getattr(tests, f"test_gpu{name}_small_set_within_bound")(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16", "bf16"])
def test_gpu_on_host_acmix(on_host, dtype):
    test_gpu_acmix.judge(test_gpu_acmix.Row("acmix_fwd_bwd", Case("odd", 8, 17, 21), 2, 7), dtype)
    for attention in (True, False):
        test_gpu_acmix.test_gpu_acmix_halves_within_bound(dtype, attention)
    for op in ("local_attention", "shift_aggregate"):
        test_gpu_acmix.test_gpu_acmix_halves_as_functions_within_bound(op, dtype)
    for shape in ((1, 1, 1), (3, 4, 4), (0, 5, 5)):
        test_gpu_acmix.test_gpu_acmix_edges(shape, dtype)
    for layout in test_gpu_acmix.LAYOUTS:
        test_gpu_acmix.test_gpu_acmix_takes_any_layout(layout, dtype)
    test_gpu_acmix.test_gpu_acmix_answers_in_channels_last(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16", "bf16"])
def test_gpu_on_host_lska_takes_any_layout(on_host, dtype):
    for layout in test_gpu_lska.LAYOUTS:
        test_gpu_lska.test_gpu_takes_any_layout(layout, dtype)


def test_gpu_on_host_acmix_whatever_the_dtype(on_host):
    test_gpu_acmix.test_gpu_acmix_writes_every_element_and_leaves_inputs_alone()
    for dtype in DTYPES:
        test_gpu_acmix.test_gpu_acmix_passes_nan_on_like_pytorch(dtype)


def test_gpu_on_host_tells_a_wrong_kernel(on_host, library, monkeypatch):  # noqa: F811
    def wrong(pass_, _):
        op = getattr(library, f"acmix_core_{pass_}_cuda")
        return lambda *a: tuple(t * (1 + 2.0**-6) for t in op(*a)) if pass_ == "bwd" else op(*a)

    monkeypatch.setattr(acmix_op, "_op", wrong)
    test_gpu_acmix.test_gpu_acmix_forward_within_bound(torch.float32, 0)
    with pytest.raises(AssertionError, match="times the bound"):
        test_gpu_acmix.test_gpu_acmix_gradients_within_bound(torch.float32, 0)
