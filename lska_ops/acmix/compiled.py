"""ACmix's compiled backends: what they accept, and what torch.compile has to know of their ops."""

import torch

from .. import _compiled

# What fits the shared memory of every GPU: csrc/acmix/plan.h has the same numbers.
MOST_REACH, MOST_SHIFT, MOST_HEADS, MOST_DIMS, MOST_STRIDE = 12, 2048, 64, 1024, 8


def why_not_cuda(x, **sizes):
    return _compiled.why_not_gpu(x) or too_much(**sizes)


def too_much(*, head=4, dims=16, kernel_att=7, kernel_conv=3, stride=1, dilation=1):
    """Why the CUDA kernels do not hold windows or heads of these sizes; None where they do.

    dims: of a head. kernel_conv is None where the shift is not computed.
    """
    if (reach := kernel_att // 2 * dilation) > MOST_REACH:
        return (
            f"the window reaches {reach} pixels and the CUDA kernels {MOST_REACH}; "
            "use a smaller kernel_att or dilation"
        )
    if dims > MOST_DIMS:
        return f"a head has {dims} dims and the CUDA kernels hold {MOST_DIMS}; use more heads"
    if stride > MOST_STRIDE:
        return f"stride is {stride} and the CUDA kernels take {MOST_STRIDE} at most; use a smaller stride"
    if kernel_conv is None:
        return None
    if head > MOST_HEADS:
        return f"{head} heads are more than the CUDA kernels hold, {MOST_HEADS}; use fewer heads"
    if (weights := head * kernel_conv**2) > MOST_SHIFT:
        return (
            f"{head} heads with {kernel_conv} x {kernel_conv} taps are {weights} weights of a map and the "
            f"CUDA kernels hold {MOST_SHIFT}; use fewer heads"
        )
    return None


def why_not_triton(x, **sizes):
    return "ACmix has no Triton kernels; use another backend"


def why_not_cpu(x, **options):
    if x.device.type != "cpu":
        return f"x is on {x.device.type}; move it to the CPU"
    if _compiled.problem:
        return f"the compiled library is missing ({_compiled.problem})"
    return None


def _core_fwd(qkv, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation):
    B, C3, H, W = qkv.shape
    side = [-(-H // stride), -(-W // stride)]
    lse_dtype = torch.promote_types(qkv.dtype, torch.float32)
    lse_shape = [0] if rate1 is None else [B, head, *side]
    return qkv.new_empty(B, C3 // 3, *side), qkv.new_empty(lse_shape, dtype=lse_dtype)


def _core_bwd(grad_y, qkv, lse, conv_p, fc, dep_conv, rate1, rate2, *options):
    like = (qkv, conv_p, fc, dep_conv, rate1, rate2)
    return tuple(qkv.new_empty([0] if t is None else t.shape) for t in like)


if _compiled.problem is None:
    for _backend in ("cpu", "cuda"):
        torch.library.register_fake(f"lska_ops::acmix_core_fwd_{_backend}", _core_fwd)
        torch.library.register_fake(f"lska_ops::acmix_core_bwd_{_backend}", _core_bwd)
