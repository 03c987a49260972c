"""The host-run launchers, tests/host_cuda, with the PTX interpreter in place of the fibers.

gpu = Gpu(build(ROOT / "build" / "host_cuda"), [Module(file.read_text()) for file in ptx("lska")])
with gpu.launching() as launches:
    torch.ops.lska_ops_host.lska_fwd_cuda(...)
"""

import contextlib
import ctypes
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import torch

from .build import ROOT, build, ptx
from .machine import Launch
from .memory import Memory
from .parse import Module

_TAKES_OVER = ctypes.CFUNCTYPE(
    ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64
)


class Gpu:
    """torch.ops.lska_ops_host. Kernels may reach tensors that are made while a Gpu is there, until `close`."""

    _open = 0  # how many there are; they share what is watched

    def __init__(self, library, modules):
        torch.ops.load_library(str(library))
        self.ops, self._library = torch.ops.lska_ops_host, ctypes.CDLL(str(library))
        self._library.host_cuda_tensors.restype = ctypes.c_int64
        self._kernels = {name: module for module in modules for name in module}
        self._names = _functions(library)
        self._callback = _TAKES_OVER(self._launched)
        self.launches, self.ran = [], set()  # of what is going on; all kernels ever, by name
        Gpu._open += 1
        self._library.host_cuda_watch(1)

    def close(self):
        Gpu._open -= 1
        self._library.host_cuda_watch(int(Gpu._open > 0))

    @classmethod
    def of(cls, *ops, arch=80, files="cuda*.cu"):
        """With the kernels of these ops, or of some of their files, compiled where they are not yet."""
        library = build(ROOT / "build" / "host_cuda")
        # tests/ptx/mutants.py runs tests on kernels with a bug.
        root = Path(os.environ.get("LSKA_OPS_PTX_SOURCES", ROOT))
        return cls(
            library,
            [Module(file.read_text(encoding="utf-8")) for op in ops for file in ptx(op, arch, root, files)],
        )

    @property
    def kernels(self):
        return sorted(self._kernels)

    @contextlib.contextmanager
    def launching(self, observe=None, choose=None, may_read_unwritten=""):
        """Launches in this context are interpreted; yields their list.

        Args:
            observe: a function of kernel and grid to the launch's Observer, or None.
            choose: a function of kernel and grid to the numbers of the blocks to run; without it all.
            may_read_unwritten: of kernels whose name has a match of this pattern, reads of shared memory that
                nobody has written are counted alone; of others they are an error.
        """
        self._observe, self._choose, self._may = observe, choose, may_read_unwritten
        self.launches, self._error = [], None
        self._library.host_cuda_take_over(self._callback)
        try:
            yield self.launches
        except RuntimeError:
            if self._error is None:
                raise
            raise self._error from None  # which the launcher could only pass on in words
        finally:
            self._library.host_cuda_take_over(ctypes.cast(None, _TAKES_OVER))

    def _launched(self, place, x, y, z, threads, shared, arguments, size):
        try:
            name = self._names[place]
            if name not in self._kernels:
                raise KeyError(f"{name} is in no PTX file")
            kernel, grid = self._kernels[name][name], (x, y, z)
            launch = Launch(
                kernel,
                grid,
                threads,
                shared,
                ctypes.string_at(arguments, size),
                observer=self._observe and self._observe(kernel, grid),
                memory=Memory(self._tensors()),
                allow_unwritten=bool(self._may and re.search(self._may, name)),
            )
            self.launches.append(launch)
            launch.run(self._choose and self._choose(kernel, grid))
            self.ran.add(name)
            return None
        except BaseException as error:  # cannot leave through C
            self._error = error
            self._said = ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode())
            return ctypes.addressof(self._said)

    def _tensors(self):
        n = self._library.host_cuda_tensors(None, ctypes.c_int64(0))
        pairs = np.zeros((n, 2), np.int64)
        self._library.host_cuda_tensors(ctypes.c_void_p(pairs.ctypes.data), ctypes.c_int64(n))
        return pairs.tolist()


def _functions(library):
    """The library's functions by their place in it, hidden ones too; a name is as nvcc mangles it."""
    said = subprocess.run(["nm", str(library)], check=True, capture_output=True, text=True).stdout
    names = {}
    for line in said.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in "tTwW" and words[2].startswith("_Z") and "_kernel" in words[2]:
            names[int(words[0], 16)] = words[2]
    return names
