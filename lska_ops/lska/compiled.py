"""LSKA's fused backends: what they accept, and what torch.compile has to know of their ops."""

import torch

from .. import _compiled, _flops, _triton

MOST_SIDE = 1 << 14  # whose square, and a band of it, the Triton kernels count in 32 bits


def why_not_cpu(x, **options):
    if x.device.type != "cpu":
        return f"x is on {x.device.type}; move it to the CPU"
    if _compiled.problem:
        return f"the compiled library is missing ({_compiled.problem})"
    return None


def why_not_cuda(x, **options):
    return _compiled.why_not_gpu(x)


def why_not_triton(x, **options):
    if reason := _triton.why_not(x, "lska"):
        return reason
    if (side := max(x.shape[2:])) > MOST_SIDE:
        return f"x has a side of {side} and the Triton kernels take {MOST_SIDE} at most; use smaller maps"
    return None


def _map_like(x):
    """What the launchers return for x: its own order where that is NCHW or channels_last, else NCHW."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _cascade_fwd(x, *weights_and_dilation):
    return _map_like(x)


def _fwd(x, *rest):
    keeps_product = rest[-1] and x.dtype in (torch.float32, torch.float64)
    return _map_like(x), _map_like(x) if keeps_product else x.new_empty(0)


def _fwd_gpu(x, *rest):
    """Unlike the CPU's, the product is kept in every dtype."""
    return _map_like(x), _map_like(x) if rest[-1] else x.new_empty(0)


def _bwd(grad_y, x, product, *rest):
    weights = rest[:10]
    shapes = [(0,) if w is None else w.shape for w in weights[::2]]
    grads = [x.new_empty(shape) for s in shapes for shape in (s, s[:1])]
    if weights[4] is None:  # LSKA-trivial: the gradients of the pair that is not there are empty
        grads[4:8] = [x.new_empty(shape) for shape in ((0, 1, 1, 0), (0,), (0, 1, 0, 1), (0,))]
    return _map_like(x), *grads


def _flops_of(x, weights_and_biases, count):
    return sum(count(x, weight, x) for weight in weights_and_biases[::2] if weight is not None)


def _cascade_flops(x, *rest):
    return _flops_of(x, rest[:8], _flops.convolution)


def _fwd_flops(x, *rest):
    return _flops_of(x, rest[:10], _flops.convolution)


def _bwd_flops(grad_y, x, product, *rest):
    return _flops_of(x, rest[:10], _flops.convolution_backward)


DEPTHWISE = (
    "Tensor conv0h, Tensor? conv0h_bias, Tensor conv0v, Tensor? conv0v_bias, Tensor? conv_spatial_h, "
    "Tensor? conv_spatial_h_bias, Tensor? conv_spatial_v, Tensor? conv_spatial_v_bias, "
)


def register_triton():
    """The ops of csrc/lska/schema.h by Triton; imports it."""
    from . import triton_launch

    kernels = _triton.kernels_of(triton_launch.kernels, triton_launch.backward, triton_launch.last)
    weights = f"{DEPTHWISE}Tensor conv1, Tensor? conv1_bias, int dilation"
    grads = ", ".join(["Tensor"] * 11)
    schema = f"(Tensor x, {DEPTHWISE}int dilation) -> Tensor"
    _triton.register(
        "lska_cascade_fwd", schema, triton_launch.cascade_fwd, _cascade_fwd, _cascade_flops, kernels
    )
    schema = f"(Tensor x, {weights}, bool keep_product) -> (Tensor y, Tensor product)"
    _triton.register("lska_fwd", schema, triton_launch.fwd, _fwd_gpu, _fwd_flops, kernels)
    schema = f"(Tensor grad_y, Tensor x, Tensor product, {weights}) -> ({grads})"
    _triton.register("lska_bwd", schema, triton_launch.bwd, _bwd, _bwd_flops, kernels)


if _compiled.problem is None:
    for _backend, _fake_fwd in (("cpu", _fwd), ("cuda", _fwd_gpu)):
        for _name, _fake, _count in (
            ("cascade_fwd", _cascade_fwd, _cascade_flops),
            ("fwd", _fake_fwd, _fwd_flops),
            ("bwd", _bwd, _bwd_flops),
        ):
            _compiled.register_fake(f"lska_ops::lska_{_name}_{_backend}", _fake)
            _flops.register(f"lska_{_name}_{_backend}", _count)
