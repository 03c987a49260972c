"""What both ops' Triton kernels need: whether they may run, how ops are registered, how a kernel starts.

Imports Triton when a call on a GPU first asks for it, never before.
"""

import importlib
import os
import re
import sys
import threading
from functools import cache

import torch

from . import _flops

OLDEST_TORCH = (2, 6)
OLDEST_GPU = (8, 0)  # that Triton compiles for
# Which Triton each torch is made for: what its wheels for Linux require. Those for Windows require none.
MADE_FOR = {
    (2, 6): (3, 2), (2, 7): (3, 3), (2, 8): (3, 4), (2, 9): (3, 5), (2, 10): (3, 6),
    (2, 11): (3, 6), (2, 12): (3, 7), (2, 13): (3, 7), (2, 14): (3, 8),
}  # fmt: skip
# Triton reads it when a kernel is defined; its kernels then run on tensors of the CPU, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_registering = threading.Lock()


def why_not(x, op):
    """Why the Triton kernels of `op`, the name of its folder, do not take x; None where they do."""
    if x.device.type != "cuda" and not (INTERPRETED and x.device.type == "cpu"):
        return f"x is on {x.device.type}; move it to a CUDA device"
    if x.dtype == torch.float64:
        return "x is float64 and the Triton kernels compute in float32; use float32, or the reference"
    return _why_not_device(op, x.device.index or 0)


def _why_not_device(op, index):
    return _ask_device(op, index)


# What torch.compiler.assume_constant_result does; calling it would import all of torch._dynamo here.
_why_not_device._dynamo_marked_constant = True


@cache
def _ask_device(op, index):
    """What does not change while the process lives; registers the ops where the answer is None."""
    if reason := problem() or _why_not_start():
        return reason
    if not INTERPRETED and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < OLDEST_GPU:
            name = torch.cuda.get_device_name(index)
            compiled = "compile the CUDA kernels, which take 7.5, or " if sys.platform == "linux" else ""
            return (
                f"{name} has compute capability {capability[0]}.{capability[1]} and Triton needs 8.0; "
                f"{compiled}use a newer GPU"
            )
    with _registering:
        _register_once(op)
    return None


@cache
def _register_once(op):
    """Whatever the device: a second registration would destroy an op that another thread may be in."""
    importlib.import_module(f"{__package__}.{op}.compiled").register_triton()


def _why_not_start():
    """Why no kernel starts although Triton is there: it compiles code for the host at the first one."""
    if INTERPRETED:
        return None
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # of the compiler, the linker, the driver: Triton lets all of them through
        cure = "install gcc and Python's headers"
        if sys.platform == "win32":
            cure = "install the Visual C++ redistributable; an embedded Python needs include and libs, too"
        if other := mismatch():
            cure = f"{other}; otherwise {cure}"
        return f"triton cannot start kernels ({_one_line(error)}); {cure}"
    return None


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def problem():
    """Why Triton cannot be used in this process, whatever the device; None where it can."""
    if _release(torch.__version__) < OLDEST_TORCH:
        return f"torch is {torch.__version__} and the Triton kernels need 2.6 or newer; upgrade torch"
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken one raises more than ImportError
        return f"triton cannot be imported ({_one_line(error)}); {_how_to_get()}"
    return None


def mismatch():
    """What is so and what would help where another Triton is installed than this torch is made for, or None.

    Our kernels may run all the same; torch.compile is what breaks first.
    """
    version = getattr(importlib.import_module("triton"), "__version__", "")
    wanted, found = MADE_FOR.get(_release(torch.__version__)), _release(version)
    if wanted is None or found is None or found == wanted:
        return None
    this = f"triton is {version} and torch {torch.__version__} is made for {_dotted(wanted)}"
    return f"{this}: {_how_to_get('-U ')}"


def _how_to_get(option=""):
    """The Triton of this torch, on this system."""
    wanted = MADE_FOR.get(_release(torch.__version__))
    if sys.platform == "win32":
        below = f"<{wanted[0]}.{wanted[1] + 1}" if wanted else ""
        return f'pip install {option}"triton-windows{below}"'
    if sys.platform == "darwin":
        return "use the reference: there is no Triton for macOS"
    return f"install the one for this torch{', ' + _dotted(wanted) if wanted else ''}"


def _release(version):
    """(3, 6) from "3.6.0.post26"; None where it is no version."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers and (int(numbers[1]), int(numbers[2]))


def _dotted(release):
    return "{}.{}".format(*release)


def kernels_of(*modules):
    """All kernels that modules define or import."""
    return [value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")]


def register(name, schema, function, fake, flops, kernels):
    """The op ``lska_ops::<name>_triton``, which torch.compile sees through.

    Args:
        name: op and pass, as in ``lska_fwd``.
        schema: arguments and returns, as ``(Tensor x) -> Tensor``: the compiled ops' own.
        function: its implementation; starts its kernels by :func:`launch`.
        fake: makes tensors like the results from tensors like the arguments.
        flops: counts them from the arguments, shapes in place of tensors.
        kernels: those it may start.
    """
    # What an interpreted kernel does cannot be traced.
    make = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    make(f"lska_ops::{name}_triton", function, mutates_args=(), schema=schema).register_fake(fake)
    _flops.register(f"{name}_triton", flops)
    # torch.compile's cache on disk asks here whether a kernel has changed; it finds none behind launch().
    known = getattr(torch._library.triton, "triton_ops_to_kernels", None)
    if known is not None and not INTERPRETED:
        known[f"lska_ops::{name}_triton"] = list(kernels)


def launch(kernel, programs, *arguments, warps=4, stages=2, registers=None, **constants):
    """Starts `programs` programs of a kernel where its first argument, a tensor, is. Tests replace it.

    registers: what a thread may have. Without it NVIDIA's assembler spills a few where one block more fits.
    """
    options = dict(num_warps=warps, num_stages=stages)
    started = torch.library.wrap_triton(kernel) if not INTERPRETED else kernel
    if started is not kernel:  # traced by torch.compile, which chooses the device and the other options
        started[(programs,)](*arguments, **constants, **options)
        return
    if registers and torch.version.hip is None:
        options["maxnreg"] = registers
    with torch.cuda.device_of(arguments[0]):
        # Explicit, since what Triton takes by default differs between versions.
        kernel[(programs,)](*arguments, **constants, **options, enable_fp_fusion=True)
