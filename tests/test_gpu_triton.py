"""LSKA's Triton kernels on a GPU: what test_gpu_lska.py asks of the CUDA kernels; `make gpu` runs it.

By Triton's interpreter and compiled for GPUs that are not there: tests/test_triton.py.
"""

import pytest
import test_gpu_lska as asked
import torch
from test_gpu_lska import exact_products  # noqa: F401

import lska_ops
from lska_ops.lska import compiled
from lska_ops.testing import Case

REASON = compiled.why_not_triton(
    torch.empty(1, 1, 1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
)
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"triton: {REASON}")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(autouse=True)
def by_triton(monkeypatch):
    """Modules, too."""
    monkeypatch.setattr(asked, "BACKEND", "triton")
    monkeypatch.setattr(asked, "FORWARD", 30)  # each new size may be a compilation
    monkeypatch.setattr(asked, "BACKWARD", 16)
    monkeypatch.setenv("LSKA_OPS_BACKEND", "triton")


def test_gpu_triton_accepts():
    assert "triton: yes (chosen)" in lska_ops.explain("lska", torch.empty(1, 8, 8, 8, device="cuda"))


@every_dtype
def test_gpu_triton_random_problems_within_bound(dtype):
    asked.test_gpu_forward_within_bound(dtype, 0)
    asked.test_gpu_gradients_within_bound(dtype, 0)


@every_dtype
@pytest.mark.parametrize("k", [7, 53])
@pytest.mark.parametrize("case", [*asked.MODELS[:3], Case("odd", 5, 161, 77)], ids=lambda case: case.id)
def test_gpu_triton_real_maps_within_bound(case, k, dtype):
    asked.judge(asked.Row("lska_fwd_bwd", case, 2, k), dtype)


@every_dtype
def test_gpu_triton_edges_and_layouts(dtype):
    for shape in ((1, 1, 1, 1), (2, 3, 1, 40), (2, 3, 40, 1), (0, 4, 5, 5)):
        asked.test_gpu_edges(shape, dtype)
    for layout in asked.LAYOUTS:
        asked.test_gpu_takes_any_layout(layout, dtype)


@every_dtype
def test_gpu_triton_repeats_and_is_captured_in_a_graph(dtype):
    asked.test_gpu_repeats_bit_by_bit(dtype)
    asked.test_gpu_is_captured_in_a_graph(dtype)


def test_gpu_triton_writes_every_element_and_leaves_inputs_alone():
    asked.test_gpu_writes_every_element_and_leaves_inputs_alone()


def test_gpu_triton_passes_nan_on_like_pytorch():
    asked.test_gpu_passes_nan_on_like_pytorch()


def test_gpu_triton_works_on_the_current_stream_and_where_x_is():
    asked.test_gpu_works_on_the_current_stream()
    asked.test_gpu_works_where_x_is()


@pytest.mark.parametrize("dynamic", [False, True])
@every_dtype
def test_gpu_triton_is_seen_through_by_torch_compile(dtype, dynamic):
    """Inductor compiles the kernels once more; what it makes of them is judged like ours."""
    torch._dynamo.reset()
    for seed in asked.numbers(dtype, 2, 660_000):
        problem = asked.on_gpu(asked.random_problem("lska", seed))
        pairs = [None if (w := problem.tensors[n]) is None else (w, problem.tensors[f"{n}_bias"])
                 for n in ("conv0h", "conv0v", "conv_spatial_h", "conv_spatial_v", "conv1")]  # fmt: skip
        run = torch.compile(lska_ops.lska, fullgraph=True, dynamic=dynamic)
        y = run(problem.tensors["x"], *pairs, **problem.options, backend="triton")
        found = asked.ratios(asked.random_problem("lska", seed), {"y": y.cpu()}, "triton")
        assert found["y"] <= 1, problem.repro("triton")


@every_dtype
def test_gpu_triton_opcheck(dtype):
    asked.test_gpu_opcheck(dtype)


def test_gpu_triton_offsets_beyond_two_to_the_31():
    for side in (64, 1024):
        asked.test_gpu_offsets_beyond_two_to_the_31(side)
    asked.test_gpu_gradients_beyond_two_to_the_31()
