"""The Triton backend without a GPU: its sentences, its kernels by the interpreter, and compiled ahead of time."""

import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lska_ops
from lska_ops import _backends, _triton
from lska_ops.acmix import compiled as acmix_compiled
from lska_ops.lska import compiled
from lska_ops.testing.problems import LAYOUTS

TESTS = Path(__file__).parent
ON_GPU = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16, shape=(1, 8, 8, 8))
REASON = _triton.problem()
needs_triton = pytest.mark.skipif(bool(REASON), reason=f"triton: {REASON}")
OPS = ("acmix", "lska")
COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::to", "aten::_to_copy")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::sum")
# What one process of the interpreter does after the other: see triton_interpreter.py. Backward judges y too: of
# each op 40 problems forward, 20 of them backward.
TASKS = {
    "lska": ("lska:edges", "lska:forward:700000:20", "lska:backward:710000:20"),
    "acmix": (
        "acmix:edges",
        "acmix:forward:800000:20",
        "acmix:backward:810000:20",
        "local_attention:backward:830000:10",
        "shift_aggregate:backward:850000:10",
    ),
}
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a program may have


def says(reason, *words):
    what_is_so, _, what_would_help = reason.partition("; ")
    assert what_would_help and "\n" not in reason
    for word in words:
        assert word in reason


@pytest.fixture
def gpu(monkeypatch):
    """A machine on which nothing is missing: an RTX 4090, torch 2.9, Triton."""
    machine = SimpleNamespace(
        capability=(8, 9), import_error=None, start_error=None, registered=[], triton_version="3.5.1"
    )
    _triton._ask_device.cache_clear()
    monkeypatch.setattr(_triton, "_register_once", cache(_triton._register_once.__wrapped__))
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: machine.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "RTX 4090")

    def get_current_target():
        if machine.start_error:
            raise machine.start_error

    def import_module(name):
        if name == "triton" and machine.import_error:
            raise machine.import_error
        active = SimpleNamespace(get_current_target=get_current_target)

        def register():
            machine.registered.append(name)
            time.sleep(0.05)  # another thread comes in between

        return SimpleNamespace(
            driver=SimpleNamespace(active=active),
            register_triton=register,
            __version__=machine.triton_version,
        )

    monkeypatch.setattr(_triton, "importlib", SimpleNamespace(import_module=import_module))
    yield machine
    _triton._ask_device.cache_clear()


def test_triton_accepts_where_nothing_is_missing(gpu):
    assert compiled.why_not_triton(ON_GPU) is None


def test_triton_declines_a_map_elsewhere(gpu):
    says(compiled.why_not_triton(torch.empty(1, 1, 1, 1)), "x is on cpu; move it to a CUDA device")


def test_triton_declines_float64(gpu):
    x = SimpleNamespace(device=ON_GPU.device, dtype=torch.float64)
    says(compiled.why_not_triton(x), "x is float64 and the Triton kernels compute in float32")


def test_triton_declines_an_older_torch(gpu, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    says(
        compiled.why_not_triton(ON_GPU),
        "torch is 2.5.1+cu121 and the Triton kernels need 2.6",
        "upgrade torch",
    )


@pytest.mark.parametrize("error", [ImportError("No module\nnamed x"), AttributeError("No module named x")])
def test_triton_declines_without_triton(gpu, error):
    gpu.import_error = error
    says(compiled.why_not_triton(ON_GPU), "triton cannot be imported (No module named x)", "install the one")


@pytest.mark.parametrize("error", [RuntimeError("Failed to find\nC compiler."), AssertionError()])
def test_triton_declines_where_its_first_launch_would_fail(gpu, error):
    gpu.start_error = error
    why = " ".join(str(error).split()) or "AssertionError"
    says(compiled.why_not_triton(ON_GPU), f"triton cannot start kernels ({why}); install gcc and Python's")
    assert not gpu.registered


@pytest.fixture
def on(gpu, monkeypatch):
    """The same machine with another system, torch and Triton."""

    def change(platform="win32", torch_version="2.9.1", triton_version="3.5.1"):
        _triton._ask_device.cache_clear()
        monkeypatch.setattr(_triton, "sys", SimpleNamespace(platform=platform))
        monkeypatch.setattr(torch, "__version__", torch_version)
        gpu.triton_version = triton_version

    return change


@pytest.mark.parametrize(
    "platform, torch_version, cure",
    [
        ("win32", "2.6.0+cu124", 'pip install "triton-windows<3.3"'),
        ("win32", "2.7.1+cu128", 'pip install "triton-windows<3.4"'),
        ("win32", "2.8.0+cu128", 'pip install "triton-windows<3.5"'),
        ("win32", "2.9.1+cu130", 'pip install "triton-windows<3.6"'),
        ("win32", "2.10.0+cu130", 'pip install "triton-windows<3.7"'),
        ("win32", "2.11.0+cu130", 'pip install "triton-windows<3.7"'),
        ("win32", "2.12.0+cu130", 'pip install "triton-windows<3.8"'),
        ("win32", "2.13.0+cu130", 'pip install "triton-windows<3.8"'),
        ("win32", "2.14.1+cu130", 'pip install "triton-windows<3.9"'),
        ("win32", "9.0.0", 'pip install "triton-windows"'),
        ("linux", "2.14.1+cpu", "install the one for this torch, 3.8"),
        ("linux", "9.0.0", "install the one for this torch"),
        ("darwin", "2.14.1", "use the reference: there is no Triton for macOS"),
    ],
)
def test_triton_that_is_missing_is_named_for_system_and_torch(gpu, on, platform, torch_version, cure):
    on(platform, torch_version)
    gpu.import_error = ModuleNotFoundError("No module named 'triton'")
    assert compiled.why_not_triton(ON_GPU) == f"triton cannot be imported (No module named 'triton'); {cure}"


def test_triton_table_has_the_pair_that_is_installed():
    torch_release = _triton._release(torch.__version__)
    if REASON or torch_release not in _triton.MADE_FOR:
        pytest.skip(REASON or f"torch is {torch.__version__}, which the table lacks; add a row")
    assert _triton._release(importlib.import_module("triton").__version__) == _triton.MADE_FOR[torch_release]
    assert _triton.mismatch() is None


@pytest.mark.parametrize(
    "platform, torch_version, triton_version, said",
    [
        ("win32", "2.11.0", "3.6.0", None),
        ("win32", "2.11.0", "3.8.0.post29", 'triton is 3.8.0.post29 and torch 2.11.0 is made for 3.6: pip install -U "triton-windows<3.7"'),
        ("win32", "2.14.1", "3.6.0", 'triton is 3.6.0 and torch 2.14.1 is made for 3.8: pip install -U "triton-windows<3.9"'),
        ("linux", "2.9.1", "3.2.0", "triton is 3.2.0 and torch 2.9.1 is made for 3.5: install the one for this torch, 3.5"),
        ("win32", "9.0.0", "3.8.0", None),
        ("linux", "2.9.1", "unknown", None),
    ],
)  # fmt: skip
def test_triton_of_another_torch_is_said_and_used(gpu, on, platform, torch_version, triton_version, said):
    on(platform, torch_version, triton_version)
    assert _triton.mismatch() == said
    assert compiled.why_not_triton(ON_GPU) is None


@pytest.mark.parametrize(
    "triton_version, before", [("3.5.1", ""), ("3.8.0", "triton is 3.8.0 and torch 2.9.1 ")]
)
def test_triton_that_cannot_start_on_windows(gpu, on, triton_version, before):
    on("win32", triton_version=triton_version)
    gpu.start_error = OSError("DLL load failed")
    reason = compiled.why_not_triton(ON_GPU)
    says(
        reason,
        f"triton cannot start kernels (DLL load failed); {before}",
        "install the Visual C++ redistributable",
    )
    assert "gcc" not in reason and ("; otherwise " in reason) is bool(before)


def test_triton_on_windows_does_not_send_an_old_gpu_to_nvcc(gpu, on):
    on("win32")
    gpu.capability = (7, 5)
    assert compiled.why_not_triton(ON_GPU).endswith("and Triton needs 8.0; use a newer GPU")


def test_triton_registers_once_for_all_devices_and_threads(gpu):
    devices = [SimpleNamespace(**{**vars(ON_GPU), "device": torch.device("cuda", i)}) for i in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(compiled.why_not_triton, 2 * devices)) == {None}
    assert gpu.registered == ["lska_ops.lska.compiled"]


def test_triton_declines_an_old_gpu_but_no_gpu_of_amd(gpu, monkeypatch):
    gpu.capability = (7, 5)
    reason = compiled.why_not_triton(ON_GPU)
    says(reason, "RTX 4090 has compute capability 7.5 and Triton needs 8.0; compile the CUDA kernels")
    assert acmix_compiled.why_not_triton(ON_GPU) == reason and not gpu.registered
    _triton._ask_device.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert compiled.why_not_triton(ON_GPU) is None


@pytest.mark.parametrize("op", ("lska", "acmix"))
def test_triton_below_8_0_leaves_calls_to_the_cuda_kernels(gpu, monkeypatch, op):
    gpu.capability = (7, 5)
    monkeypatch.setitem(_backends.WHY_NOT[op], "cuda", lambda x, **_: None)
    assert _backends.choose(op, "auto", ON_GPU) == "cuda"
    with pytest.raises(RuntimeError, match=f"^{op}: backend 'triton' declined: RTX 4090 has .* needs 8.0; "):
        _backends.choose(op, "triton", ON_GPU)
    monkeypatch.setitem(_backends.WHY_NOT[op], "cuda", lambda x, **_: "nvcc was not found; install it")
    monkeypatch.setattr(_backends, "_warned", False)
    with pytest.warns(UserWarning, match="nvcc was not found; install it.* triton: RTX 4090 .* needs 8.0; "):
        assert _backends.choose(op, "auto", ON_GPU) == "reference"


def test_triton_declines_a_side_beyond_its_counting(gpu):
    x = SimpleNamespace(device=ON_GPU.device, dtype=torch.float16, shape=(1, 1, 2, 16385))
    says(compiled.why_not_triton(x), "x has a side of 16385", "take 16384 at most; use smaller maps")


def test_triton_declines_more_of_acmix_than_it_counts(gpu):
    why_not = acmix_compiled.why_not_triton
    assert why_not(ON_GPU) is None and why_not(ON_GPU, head=2, dims=8, kernel_conv=None, stride=3) is None
    x = SimpleNamespace(device=ON_GPU.device, dtype=torch.float16, shape=(1, 12, 2, 32769))
    says(why_not(x), "x has a side of 32769", "take 32768 at most; use smaller maps")
    says(
        why_not(ON_GPU, head=512, dims=128, kernel_conv=5),
        "512 heads of 128 dims with 5 x 5 taps",
        "use fewer",
    )


def test_triton_is_chosen_where_cuda_declines(gpu, monkeypatch):
    monkeypatch.setitem(_backends.WHY_NOT["lska"], "cuda", lambda x, **_: "nvcc was not found; install it")
    assert _backends.choose("lska", "auto", ON_GPU) == "triton"


def test_triton_answer_is_a_constant_for_torch_compile():
    def marked():
        pass

    torch.compiler.assume_constant_result(marked)
    assert marked.__dict__ == _triton._why_not_device.__dict__


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_triton_copies_no_map(monkeypatch, op, layout, dtype):
    """Forward and backward as modules call them, the kernels left out; and the answers lie as x does."""
    launches = importlib.import_module(f"lska_ops.{op}.triton_launch")
    called = importlib.import_module(f"lska_ops.{op}.op")
    started = []
    monkeypatch.setattr(_triton, "launch", lambda kernel, *_, **__: started.append(kernel.fn.__name__))
    monkeypatch.setattr(called, "_op", lambda way, backend: getattr(launches, way))
    monkeypatch.setitem(_backends.WHY_NOT[op], "triton", lambda x, **_: None)
    monkeypatch.setenv("LSKA_OPS_BACKEND", "triton")
    module = {"lska": lambda: lska_ops.LSKA(16, 11), "acmix": lambda: lska_ops.ACmix(16)}[op]().to(dtype)
    x, grad_y = (LAYOUTS[layout](torch.randn(3, 16, 31, 29).to(dtype)) for _ in range(2))
    x.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        y = module(x)
        grad_x, *_ = torch.autograd.grad(y, [x, *module.parameters()], grad_y)
    assert {f"{op}_{'pair_last' if op == 'lska' else 'shift_fwd_last'}_kernel" in started} == {
        layout == "channels_last"
    }
    assert y.stride() == grad_x.stride() == x.stride()

    def by_product(event):  # how a CPU multiplies and adds up is its own matter
        return event is not None and (event.name in PRODUCTS or by_product(event.cpu_parent))

    sizes = [
        (event.name, max((torch.Size(s).numel() for s in event.input_shapes if s), default=0))
        for event in seen.events()
        if not by_product(event)
    ]
    assert not [(name, size) for name, size in sizes if name in COPIES and size >= x.numel()]
    assert any(size >= x.numel() for _, size in sizes), "nothing was seen"


def test_triton_is_not_imported_before_it_is_used():
    code = (
        "import sys, time, torch\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'triton': raise ImportError('refused')\n"
        "before = 'triton' in sys.modules\n"
        "start = time.process_time()\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import lska_ops\n"
        "assert time.process_time() - start < 1\n"
        "x = torch.randn(1, 8, 4, 4)\n"
        "lska_ops.ACmix(8)(lska_ops.LSKA(8)(x))\n"
        "assert ('triton' in sys.modules) == before\n"
        "print(lska_ops.explain('lska', x))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton: no, x is on cpu; move it to a CUDA device" in done.stdout


def triton_version():
    return tuple(map(int, importlib.import_module("triton").__version__.split(".")[:2]))


def child(script, *words):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",  # a crash must not take along what was said
        "PYTHONPATH": str(Path(lska_ops.__file__).parent.parent),
    }
    command = [sys.executable, TESTS / script, *map(str, words)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip


@pytest.fixture(scope="module")
def children(request):
    """All that takes long and is asked for, beside each other: {(op, what): process}."""
    started, asked = {}, " ".join(item.name for item in request.session.items)
    for op in OPS:
        if "random_problems" in asked:
            started[op, "interpreted"] = child("triton_interpreter.py", *TASKS[op])
        if "compiles_for_every_gpu" in asked:
            started[op, "ahead"] = child("triton_ahead.py", op)
    yield started
    for process in started.values():
        process.kill()
        process.wait()
        process.stdout.close()


def ended(process):
    """(exit status, what it said); of a crash the last line names the problem."""
    said, _ = process.communicate()
    last = "\n".join(said.strip().splitlines()[-12:])
    assert process.returncode >= 0, f"signal {-process.returncode}, a step outside of a tensor: {last}"
    return process.returncode, said, last


@needs_triton
@pytest.mark.parametrize("op", OPS)
def test_triton_random_problems_within_bound_and_edges(children, op):
    code, said, last = ended(children[op, "interpreted"])
    assert code == 0, last
    assert said.count(" problems within the bound") == len(TASKS[op]) - 1 and f"{op}: edges" in said


@pytest.mark.versions  # Triton 3.2 comes with the middle pair's torch
@needs_triton
@pytest.mark.parametrize("op", OPS)
def test_triton_compiles_for_every_gpu_spills_nothing_and_copies_no_few_bytes(children, op):
    code, said, last = ended(children[op, "ahead"])
    assert code == 0, last
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    archs = {line["arch"] for line in found}
    assert archs == set(SHARED) if triton_version() >= (3, 3) else archs == {80, 86, 89, 90}
    for line in found:
        assert line["local"] == line["stack"] == line["narrow_copies"] == 0, line
        assert line["shared"] <= SHARED[line["arch"]] << 10, line
    kernels = {line["kernel"] for line in found}
    for arch in archs:
        assert {line["kernel"] for line in found if line["arch"] == arch} == kernels
        used = {}
        for line in found:
            if line["arch"] == arch:
                used[line["kernel"]] = max(used.get(line["kernel"], 0), line["registers"])
        print(f"sm_{arch}:", ", ".join(f"{name} {n}" for name, n in used.items()))


@needs_triton
def test_triton_compiles_where_home_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", os.devnull)  # no folder, not even root's
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    process = child("triton_ahead.py", "lska", 90)
    assert process.stdout.readline().startswith("{")  # one kernel is enough
    process.kill()
    process.communicate()


@needs_triton
def test_triton_guard_pages_are_forbidden():
    """The judge itself: a kernel that reads one element too far is a crash."""
    code = (
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch, triton, triton.language as tl, triton_guard\n"
        "from lska_ops import _triton\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from too_far import copy\n"
        "start = triton_guard.guarding(_triton.launch)\n"
        "x = torch.randn(1024)\n"
        "for by in (0, 0, int(sys.argv[3])):\n"
        "    start(copy, 1, x, torch.empty(1024), by)\n"
        "    print(by)\n"
    )
    kernel = (
        "import triton, triton.language as tl\n"
        "@triton.jit\n"
        "def copy(x, y, by):\n"
        "    i = tl.arange(0, 1024)\n"
        "    tl.store(y + i, tl.load(x + i + by))\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "too_far.py").write_text(kernel, encoding="utf-8")
        for by in (1, -1):
            done = subprocess.run(
                [sys.executable, "-u", "-c", code, TESTS, folder, str(by)], capture_output=True, text=True
            )  # what is in a buffer when a signal comes is never said
            assert done.stdout.split() == ["0", "0"] and done.returncode < 0, done.stderr


@needs_triton
def test_triton_kernels_are_known_to_the_cache_of_torch_compile():
    known = getattr(torch._library.triton, "triton_ops_to_kernels", None)
    if known is None:
        pytest.skip("triton: this torch does not ask which kernels an op has")
    _triton._register_once("lska")
    for op in (torch.ops.lska_ops.lska_fwd_triton, torch.ops.lska_ops.lska_bwd_triton):
        names = {kernel.fn.__name__ for kernel in known[op.default._name]}
        assert {"lska_pair_kernel", "lska_gate_fwd_kernel", "lska_gram_bwd_kernel"} < names


@needs_triton
def test_triton_is_seen_through_by_torch_compile(monkeypatch):
    """Traced on a CPU, where the kernels cannot run: the graphs hold the kernels, not an opaque op."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    monkeypatch.setattr(
        driver, "_active", SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    )
    monkeypatch.setitem(_backends.WHY_NOT["lska"], "triton", lambda x, **_: None)
    _triton._register_once("lska")
    graphs = []

    def keep(graph, inputs):
        graphs.append([n for n in graph.graph.nodes if n.op == "call_function"])
        outputs = [n and n.meta["val"] for n in next(iter(graph.graph.find_nodes(op="output"))).args[0]]

        def empty(t):
            return torch.zeros([int(s) for s in t.shape], dtype=t.dtype) if torch.is_tensor(t) else t and 7

        return make_boxed_func(lambda *_: [empty(t) for t in outputs])

    C = 4
    x = torch.randn(2, C, 7, 7, requires_grad=True)
    shapes = [(C, 1, 1, 3), (C, 1, 3, 1), (C, 1, 1, 5), (C, 1, 5, 1), (C, C, 1, 1)]
    pairs = [(torch.randn(shape, requires_grad=True), torch.randn(C)) for shape in shapes]
    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    run = torch.compile(lska_ops.lska, fullgraph=True, dynamic=True, backend=backend)
    run(x, *pairs, dilation=2, backend="triton").sum().backward()
    assert len(graphs) == 2
    started = [[n.kwargs["kernel_idx"] for n in graph if "kernel_idx" in n.kwargs] for graph in graphs]
    names = [{kernel_side_table.get_kernel(i).fn.__name__ for i in found} for found in started]
    assert names[0] == {"lska_bands_kernel", "lska_pair_kernel", "lska_gate_fwd_kernel"}
    assert {"lska_gate_bwd_kernel", "lska_mix_bwd_kernel", "lska_gram_bwd_kernel"} < names[1]
    assert not any("lska_ops" in str(n.target) for graph in graphs for n in graph)
