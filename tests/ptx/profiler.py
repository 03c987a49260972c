"""One call's launches, counted for each GPU: what the launchers start is interpreted in part, and once for all GPUs
that would run the same code on the same grid.
"""

import hashlib

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import calls, model, peers, triton_calls
from .build import build
from .count import SECTOR, Counters
from .host import Gpu
from .machine_code import PEERS, PTX_OF, ROOT, machine_code

LANES = 1 << 14  # threads of a launch that are interpreted, about
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
        if name in FREE:
            return result.zero_()  # what blocks that are not run leave out may steer others, as NaN would
        if not function.is_view and isinstance(result, torch.Tensor):
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
        self.root, self.lanes, self._hosts = root, lanes, {}
        self.rank = 0  # of the plan that our kernels take, by the planner's cost
        self._counted, self._modelled = {}, {}  # of the call at hand

    def close(self):
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def rows(self, problem, gpus):
        """(gpu, model.Row of each kernel, of torch's, and of all) for one GPU after the other; in between `sources`
        has what the rows' source lines cost."""
        self._counted.clear()
        self._modelled.clear()
        for gpu in gpus:
            op = op_of(problem)
            if op == "triton" and gpu.arch != triton_calls.ARCH:
                continue
            of = {PEERS: self._peers, "triton": self._triton}.get(op, self._ours)
            found, products = of(problem, gpu)
            self.sources = found
            yield gpu, model.rows([m for m, _ in found], products, gpu, problem)

    def _ours(self, problem, gpu):
        """([(Measured, instructions by source line)], what torch did) of a call."""
        host = self._host(op_of(problem), gpu.arch)
        host.ops.configure(0, *gpu.limits, gpu.arch, self.rank)
        given, found = calls.arguments(problem), []

        def choose(kernel, grid):
            launch = host.launches[-1]
            key = self._key(launch)
            found.append((launch, key))
            if key in self._counted:
                launch.observer = None
                return ()
            self._counted[key] = launch.observer
            return sample(grid, launch.threads, problem.B, self.lanes)

        watch = Torch()
        with host.launching(lambda kernel, grid: Counters(), choose, may_read_unwritten="."), watch:
            getattr(host.ops, calls.op_name(problem))(*given)
        code = machine_code(op_of(problem), gpu.arch, self.root)
        return [self._measured(launch, key, code) for launch, key in found], watch.did

    def _peers(self, problem, gpu):
        code, found = machine_code(PEERS, gpu.arch, self.root), []
        launches, products = peers.launches(problem, code.module)
        for launch in launches:
            key = self._key(launch)
            if key not in self._counted:
                self._counted[key] = launch.observer = Counters()
                launch.run(sample(launch.grid, launch.threads, problem.B, self.lanes))
            found.append((launch, key))
        return [self._measured(launch, key, code) for launch, key in found], products

    def _triton(self, problem, gpu):
        def some(launch):
            return sample(launch.grid, launch.threads, problem.B, self.lanes)

        found = []
        given = calls.arguments(problem)
        with Torch() as watch:
            launched = triton_calls.launches(problem, given, some)
        for launch, counters, blocks, resources in launched:
            counted = counters.finished()
            m = model.measured(Launched(launch), counted, blocks, launch.kernel, resources)
            found.append((m, (blocks, launch.kernel, counted.warps)))
        return found, watch.did

    def _measured(self, launch, key, code):
        if isinstance(self._counted[key], Counters):
            self._counted[key] = self._counted[key].finished()
        if (key, code.arch) not in self._modelled:  # a call in parts starts the same work again
            counted, name = self._counted[key], launch.kernel.name
            blocks, kernel = code.blocks(name), code.module[name]
            m = model.measured(Launched(launch), counted, blocks, kernel, code.resources(name))
            self._modelled[key, code.arch] = m, (blocks, kernel, counted.warps)
        return self._modelled[key, code.arch]

    def _host(self, op, arch):
        family = PTX_OF[arch]
        if (op, family) not in self._hosts:
            code = machine_code(op, arch, self.root)
            self._hosts[op, family] = Gpu(host_library(self.root), [code.module])
        return self._hosts[op, family]

    def _key(self, launch):
        """The same for launches that are the same work: code, grid, sizes, and where pointers lie in their sector."""
        if not hasattr(launch.kernel, "digest"):
            text = "".join(
                f"{[(i.opcode, i.operands, i.guard) for i in block.instructions]}{block.target}"
                for block in launch.kernel.blocks
            )
            launch.kernel.digest = hashlib.sha256(text.encode()).hexdigest()
        whole = len(launch.arguments) // 8 * 8
        words = np.frombuffer(launch.arguments[:whole], np.uint64)
        sizes = np.where(words >> np.uint64(44), words % np.uint64(SECTOR), words).tobytes()
        rest = launch.arguments[whole:]
        return launch.kernel.digest, launch.grid, launch.threads, launch.shared_bytes, sizes, rest


def host_library(root):
    return build(root / "build" / "host_cuda", root=root)


def op_of(problem):
    """The folder of csrc/ that its kernels are in, PEERS, or "triton"."""
    op = problem.op.split("_")[0]
    return op if op in ("lska", "acmix", "triton") else PEERS


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
