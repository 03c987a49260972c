"""LSKA's compiled backends: what they accept, and what torch.compile has to know of their ops."""

from functools import cache

import torch

from .. import _compiled


def why_not_cpu(x):
    if x.device.type != "cpu":
        return f"x is on {x.device.type}; move it to the CPU"
    if _compiled.problem:
        return f"the compiled library is missing ({_compiled.problem})"
    return None


OLDEST_GPU = (7, 5)


def why_not_cuda(x):
    if x.device.type != "cuda":
        return f"x is on {x.device.type}; move it to a CUDA device"
    if x.dtype == torch.float64:
        return "x is float64 and the CUDA kernels compute in float32; use float32, or the reference"
    return _why_not_device(x.device.index or 0)


def _why_not_device(index):
    return _ask_device(index)


# What torch.compiler.assume_constant_result does; calling it would import all of torch._dynamo here.
_why_not_device._dynamo_marked_constant = True


@cache
def _ask_device(index):
    """What does not change while the process lives; asked once for each device."""
    if reason := _compiled.cuda_problem():
        return f"{reason}; reinstall lska_ops with nvcc, see `python -m lska_ops doctor`"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_GPU:
        name = torch.cuda.get_device_name(index)
        return f"{name} has compute capability {capability[0]}.{capability[1]}; use a GPU of 7.5 or newer"
    archs = _compiled.build_info()["cuda_archs"]
    if not _runs_on(capability, archs):
        return (
            f"the kernels were compiled for {', '.join(archs)}, this GPU is {capability[0]}{capability[1]}; "
            "reinstall lska_ops where nvcc is, without LSKA_OPS_CUDA_ARCHS"
        )
    # The driver runs a toolkit of its own major version, whatever the minor one, but not a later one.
    driver, toolkit = torch.ops.lska_ops.cuda_versions()
    if driver // 1000 < toolkit // 1000:
        return (
            f"the GPU's driver supports CUDA {_version(driver)} and the kernels were compiled with "
            f"{_version(toolkit)}; update the driver, or reinstall lska_ops with an older nvcc"
        )
    return None


def _runs_on(capability, archs):
    """Machine code serves later minor versions of its major one; the last PTX all later ones."""
    compiled = [divmod(int(arch.rstrip("af")), 10) for arch in archs]
    same = any(major == capability[0] and minor <= capability[1] for major, minor in compiled)
    return same or tuple(capability) >= compiled[-1]


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"


def _map_like(x):
    """What the launchers return for x: its own order where that is NCHW or channels_last, else NCHW."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _cascade_fwd(x, *weights_and_dilation):
    return _map_like(x)


def _fwd(x, *rest):
    keeps_product = rest[-1] and x.dtype in (torch.float32, torch.float64)
    return _map_like(x), _map_like(x) if keeps_product else x.new_empty(0)


def _fwd_cuda(x, *rest):
    """Unlike the CPU's, the product stays in the layout the kernels read, whatever x's is."""
    nchw = torch.contiguous_format
    return _map_like(x), torch.empty_like(x, memory_format=nchw) if rest[-1] else x.new_empty(0)


def _bwd(grad_y, x, product, *rest):
    weights = rest[:10]
    shapes = [(0,) if w is None else w.shape for w in weights[::2]]
    grads = [x.new_empty(shape) for s in shapes for shape in (s, s[:1])]
    if weights[4] is None:  # LSKA-trivial: the gradients of the pair that is not there are empty
        grads[4:8] = [x.new_empty(shape) for shape in ((0, 1, 1, 0), (0,), (0, 1, 0, 1), (0,))]
    return _map_like(x), *grads


if _compiled.problem is None:
    torch.library.register_fake("lska_ops::lska_cascade_fwd_cpu", _cascade_fwd)
    torch.library.register_fake("lska_ops::lska_fwd_cpu", _fwd)
    torch.library.register_fake("lska_ops::lska_bwd_cpu", _bwd)
    torch.library.register_fake("lska_ops::lska_cascade_fwd_cuda", _cascade_fwd)
    torch.library.register_fake("lska_ops::lska_fwd_cuda", _fwd_cuda)
    torch.library.register_fake("lska_ops::lska_bwd_cuda", _bwd)
