"""One call's launches, counted for each GPU: what the launchers start is interpreted in part, and once for all GPUs
that would run the same code on the same grid.
"""

import hashlib

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import calls, model, peers
from .count import Counters
from .gpus import WARP
from .machine_code import PEERS, PTX_OF, ROOT, machine_code

LANES = 1 << 16  # threads of a launch that are interpreted, about
PRODUCTS = {"bmm": 0, "mm": 0, "addmm": 1, "baddbmm": 1}  # and which argument is the left matrix
FREE = ("empty", "new_empty", "empty_strided", "empty_like", "new_empty_strided", "resize_", "set_")


class Torch(TorchDispatchMode):
    """What torch's own kernels have to do in a call. Products are not computed: nothing that is counted depends on
    their values."""

    def __init__(self):
        super().__init__()
        self.did = []  # (name, bytes, multiply-adds)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "lska_ops_host":
            with self:
                return function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        name = function.overloadpacket.__name__
        if name in PRODUCTS and (out := kwargs.get("out")) is not None:
            left = args[PRODUCTS[name]]
            moved = sum(_bytes(t) for t in (*args, out) if isinstance(t, torch.Tensor))
            self.did.append((f"aten::{name}", moved, out.numel() * left.shape[-1]))
            return out
        result = function(*args, **kwargs)
        if name not in FREE and not function.is_view and isinstance(result, torch.Tensor):
            given = [t for t in args if isinstance(t, torch.Tensor) and t is not result]
            self.did.append((f"aten::{name}", sum(map(_bytes, (*given, result))), 0))
        return result


def _bytes(t):
    """Of a tensor's elements, those that are repeated once."""
    return t.element_size() * int(
        np.prod([size for size, stride in zip(t.shape, t.stride(), strict=True) if stride])
    )


class Launched:
    """What `model.measured` asks of a launch."""

    def __init__(self, launch):
        self.name, self.grid, self.threads = launch.kernel.name, launch.grid, launch.threads
        self.shared = launch.shared_bytes


class Profiler:
    """Rows of calls on GPUs; keeps what it has counted of the call at hand."""

    def __init__(self, root=ROOT, lanes=LANES):
        self.root, self.lanes, self._hosts, self._counted = root, lanes, {}, {}

    def rows(self, problem, gpus, sources=False):
        """{gpu: (model.Row of each kernel and of all)} of a problem; with `sources` the rows' costly lines, too."""
        self._counted.clear()
        out = {}
        for gpu in gpus:
            launches, products = self._peers(problem, gpu) if _is_peer(problem) else self._ours(problem, gpu)
            out[gpu] = model.rows([m for m, _ in launches], products, gpu, problem)
            if sources:
                self.sources = [(m, where) for m, where in launches]
        return out

    def _ours(self, problem, gpu):
        """([(Measured, instructions by source line)], what torch did) of a call."""
        host = self._host(problem.op.split("_")[0], gpu.arch)
        host.ops.configure(0, *gpu.limits)
        given, found = calls.arguments(problem), []

        def choose(kernel, grid):
            launch = host.launches[-1]
            key = self._key(launch, len(host.launches))
            found.append((launch, key))
            if key in self._counted:
                launch.observer = None
                return ()
            self._counted[key] = launch.observer
            return sample(grid, launch.threads, problem.B, self.lanes)

        watch = Torch()
        with host.launching(lambda kernel, grid: Counters(), choose, may_read_unwritten="."), watch:
            getattr(host.ops, calls.op_name(problem))(*given)
        code = machine_code(problem.op.split("_")[0], gpu.arch, self.root)
        return [self._measured(launch, key, code) for launch, key in found], watch.did

    def _peers(self, problem, gpu):
        code, found = machine_code(PEERS, gpu.arch, self.root), []
        launches, products = peers.launches(problem, code.module)
        for number, launch in enumerate(launches):
            key = self._key(launch, number)
            if key not in self._counted:
                self._counted[key] = launch.observer = Counters()
                launch.run(sample(launch.grid, launch.threads, problem.B, self.lanes))
            found.append((launch, key))
        return [self._measured(launch, key, code) for launch, key in found], products

    def _measured(self, launch, key, code):
        counted = self._counted[key]
        if isinstance(counted, Counters):
            counted = self._counted[key] = counted.finished()
        blocks, kernel = code.blocks[launch.kernel.name], code.module[launch.kernel.name]
        resources = code.resources[launch.kernel.name]
        m = model.measured(Launched(launch), counted, blocks, kernel, resources)
        return m, (blocks, kernel, counted.warps)

    def _host(self, op, arch):
        family = PTX_OF[arch]
        if (op, family) not in self._hosts:
            from .host import Gpu

            code = machine_code(op, arch, self.root)
            self._hosts[op, family] = Gpu(host_library(self.root), [code.module])
        return self._hosts[op, family]

    def _key(self, launch, number):
        """Launches that are the same work: the same code on the same grid with the same sizes."""
        if not hasattr(launch.kernel, "profile_digest"):
            text = "".join(
                f"{i.opcode}{i.operands}{i.guard}" for b in launch.kernel.blocks for i in b.instructions
            )
            launch.kernel.profile_digest = hashlib.sha256(text.encode()).hexdigest()
        words = np.frombuffer(launch.arguments[: len(launch.arguments) // 8 * 8], np.uint64)
        sizes = np.where(
            words >> np.uint64(40), np.uint64(1), words
        ).tobytes()  # pointers are of this call alone
        if not words.size or (words >> np.uint64(40)).all():
            sizes = launch.arguments[len(words) * 8 :]
        return number, launch.kernel.profile_digest, launch.grid, launch.threads, launch.shared_bytes, sizes


def host_library(root):
    import sys

    sys.path.insert(0, str(root / "tests" / "host_cuda"))
    from build import build

    return build(ROOT / "build" / "host_cuda" if root == ROOT else root / "build" / "host_cuda", root=root)


def _is_peer(problem):
    return problem.op == "copy" or problem.op.startswith("eager")


def sample(grid, threads, B, lanes):
    """Numbers of the blocks to run: all; or those of the first image, where an axis of the grid goes by images; of
    these the first few along x with all that is along the others, so that tiles' halos meet their neighbours."""
    x, y, z = grid
    most = max(4, lanes // threads)
    if x * y * z <= most:
        return range(x * y * z)
    if B > 1 and z % B == 0:
        z //= B
    elif B > 1 and x % B == 0:
        x //= B
    if x * y * z > most:
        x = max(1, most // (y * z))
    if y * z > 2 * most:  # few along x will not do
        y, z = (most, 1) if z == 1 else (min(y, most), max(1, most // y))
    return [i + grid[0] * (j + grid[1] * k) for k in range(z) for j in range(y) for i in range(x)]


assert WARP == 32
