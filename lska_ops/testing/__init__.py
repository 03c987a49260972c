"""What is tried and how results are judged: cases and the error bound. For tests, benchmarks and users."""

from typing import NamedTuple

import torch


class Case(NamedTuple):
    """One map of a real model, without its batch."""

    id: str
    C: int
    H: int
    W: int


# Where the modules stand: YOLO11's three outputs at 640 px (l has m's widths), and VAN-B0's stages at 224 px.
CASES = (
    Case("yolo11n_p3", 64, 80, 80),
    Case("yolo11n_p4", 128, 40, 40),
    Case("yolo11n_p5", 256, 20, 20),
    Case("yolo11s_p3", 128, 80, 80),
    Case("yolo11s_p4", 256, 40, 40),
    Case("yolo11s_p5", 512, 20, 20),
    Case("yolo11m_p3", 256, 80, 80),
    Case("yolo11m_p4", 512, 40, 40),
    Case("yolo11m_p5", 512, 20, 20),
    Case("yolo11x_p3", 384, 80, 80),
    Case("yolo11x_p4", 768, 40, 40),
    Case("yolo11x_p5", 768, 20, 20),
    Case("van_b0_stage1", 32, 56, 56),
    Case("van_b0_stage2", 64, 28, 28),
    Case("van_b0_stage3", 160, 14, 14),
    Case("van_b0_stage4", 256, 7, 7),
)
KERNEL_SIZES = (7, 11, 23, 35, 41, 53)  # LSKA's receptive fields as published

# Unit roundoff and smallest subnormal of each dtype.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float64: 0.0, torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
PUBLISHED = 1e-10  # relative; float64 numbers made by the authors' modules


def gamma(n, u):
    """Largest relative error of n rounded operations in a row: ``n u / (1 - n u)``."""
    return n * u / (1 - n * u)


def error_ratio(out, r, A, operations, roundings=1):
    """How much of the allowed error `out` uses: largest ``|out - r| / bound``; at most 1 passes.

    ``bound = u (|r| + g A) + g A + tiny`` with ``g = gamma(operations)`` in the accumulation dtype: sums in
    float32 (float64 for float64), one rounding at the end. What rounds after each of several stages, as plain
    PyTorch does, passes ``roundings`` > 1: then every stage's rounding acts on A.

    Args:
        out: the result, any dtype.
        r: the reference in float64, on the same (already rounded) inputs.
        A: the same graph on absolute values, in float64.
        operations: n, operations on the longest path from an input to an output.
        roundings: how often a value on its way is rounded to the dtype of out.

    Returns:
        float: inf where out or r is not finite.
    """
    lost = gamma(operations, UNIT[torch.promote_types(out.dtype, torch.float32)]) * A
    if roundings > 1:
        lost = lost + gamma(roundings - 1, UNIT[out.dtype]) * (A + lost)
    return bound_ratio(out, r, lost)


def bound_ratio(out, r, lost):
    """Largest ``|out - r| / (u (|r| + lost) + lost + tiny)``: one rounding of a value off by ``lost``."""
    if out.numel() == 0:
        return 0.0
    bound = UNIT[out.dtype] * (r.abs() + lost) + lost + TINY[out.dtype]
    ratio = (out.double() - r).abs() / bound.clamp_min(1e-300)
    return torch.nan_to_num(ratio, nan=torch.inf, posinf=torch.inf).max().item()


def relative_error(out, expected):
    """Largest difference as a part of the largest expected magnitude."""
    return ((out - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()
