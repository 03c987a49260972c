"""ACmix's compiled backends: what they accept, and what torch.compile has to know of their ops."""

import torch

from .. import _compiled, _flops, _triton

# What fits the shared memory of every GPU: csrc/acmix/plan.h has the same numbers.
MOST_REACH, MOST_SHIFT, MOST_HEADS, MOST_DIMS, MOST_STRIDE = 12, 2048, 64, 1024, 8
MOST_SIDE = 1 << 15  # the Triton kernels count the pixels of a map in 32 bits
MOST_WEIGHTS = 1 << 31  # and the weights of fc and dep_conv as one convolution


def in_channels_last(x):
    """Whether a map lies in memory pixel by pixel, and not as NCHW has it, too."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


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


def why_not_triton(x, *, head=4, dims=16, kernel_conv=3, **window):
    if reason := _triton.why_not(x, "acmix"):
        return reason
    if (side := max(x.shape[2:])) > MOST_SIDE:
        return f"x has a side of {side} and the Triton kernels take {MOST_SIDE} at most; use smaller maps"
    if (weights := 3 * dims * (head * (kernel_conv or 0)) ** 2) >= MOST_WEIGHTS:
        return (
            f"{head} heads of {dims} dims with {kernel_conv} x {kernel_conv} taps are {weights} weights and "
            f"the Triton kernels hold less than {MOST_WEIGHTS}; use fewer heads"
        )
    return None


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


def _core_fwd_gpu(qkv, *rest):
    """As above, but y is in channels_last where qkv is."""
    y, lse = _core_fwd(qkv, *rest)
    return torch.empty_like(y, memory_format=torch.channels_last) if in_channels_last(qkv) else y, lse


def _core_bwd(grad_y, qkv, lse, conv_p, fc, dep_conv, rate1, rate2, *options):
    like = (qkv, conv_p, fc, dep_conv, rate1, rate2)
    return tuple(qkv.new_empty([0] if t is None else t.shape) for t in like)


def _core_bwd_gpu(grad_y, qkv, *rest):
    """As above, but qkv's gradient lies as qkv does."""
    grad_qkv, *grads = _core_bwd(grad_y, qkv, *rest)
    return torch.empty_like(qkv) if in_channels_last(qkv) else grad_qkv, *grads


def _core_flops(qkv, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation):
    return _flops_of(_flops.convolution, qkv, conv_p, fc, dep_conv, head, stride)


def _core_bwd_flops(grad_y, qkv, lse, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation):
    return _flops_of(_flops.convolution_backward, qkv, conv_p, fc, dep_conv, head, stride)


def _flops_of(count, qkv, conv_p, fc, dep_conv, head, stride):
    """The reference's convolutions from q, k, v on: of positions, of 3G maps a dim, and the grouped shift."""
    (B, C3, H, W), flops = qkv, 0
    if conv_p is not None:  # positions get no gradient
        D, nothing = conv_p[0], {} if count is _flops.convolution else {"of_x": False}
        flops += count((1, 2, H, W), conv_p, (1, D, H, W), **nothing)
    if fc is not None:
        C, taps = C3 // 3, fc[0]
        D = C // head
        flops += count((B, 3 * head, D, H * W), fc, (B, taps, D, H * W))
        flops += count((B, D * taps, H, W), dep_conv, (B, C, -(-H // stride), -(-W // stride)))
    return flops


def register_triton():
    """The ops of csrc/acmix/schema.h by Triton; imports it."""
    from . import triton_launch

    kernels = _triton.kernels_of(triton_launch)
    parameters = (
        "Tensor? conv_p, Tensor? fc, Tensor? dep_conv, Tensor? rate1, Tensor? rate2, int head, "
        "int kernel_att, int stride, int dilation"
    )
    schema = f"(Tensor qkv, {parameters}) -> (Tensor y, Tensor lse)"
    _triton.register("acmix_core_fwd", schema, triton_launch.fwd, _core_fwd_gpu, _core_flops, kernels)
    grads = ", ".join(["Tensor"] * 6)
    schema = f"(Tensor grad_y, Tensor qkv, Tensor lse, {parameters}) -> ({grads})"
    _triton.register("acmix_core_bwd", schema, triton_launch.bwd, _core_bwd_gpu, _core_bwd_flops, kernels)


if _compiled.problem is None:
    for _backend, _fakes in (("cpu", (_core_fwd, _core_bwd)), ("cuda", (_core_fwd_gpu, _core_bwd_gpu))):
        for _name, _fake, _count in zip(("fwd", "bwd"), _fakes, (_core_flops, _core_bwd_flops), strict=True):
            _compiled.register_fake(f"lska_ops::acmix_core_{_name}_{_backend}", _fake)
            _flops.register(f"acmix_core_{_name}_{_backend}", _count)
