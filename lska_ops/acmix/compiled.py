"""ACmix's compiled backends: what they accept, and what torch.compile has to know of their ops."""

import torch

from .. import _compiled


def why_not_cuda(x):
    if x.device.type != "cuda":
        return f"x is on {x.device.type}; move it to a CUDA device"
    return "this version of lska_ops has no CUDA kernels for ACmix; use the reference"


def why_not_cpu(x):
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
