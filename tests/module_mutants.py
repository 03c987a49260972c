"""Conditions left out of the rule for when a module may be fused, each of which the toolbox has to miss.

python tests/module_mutants.py [part of a name] [--tenth N]

Works on copies of the package in a temporary folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import seeded
from seeded import Mutant

MODULE, WATCHERS, BACKENDS = "_module.py", "_watchers.py", "_backends.py"
CALL = "nn.Conv2d, _Conv2d.__call__, _Conv2d._call_impl, _Conv2d.forward, _Conv2d._conv_forward, F.conv2d,"
PATCHES = '_is_patched(m, "forward", "_conv_forward", "_call_impl")'
HOOKS = "if m._forward_pre_hooks or m._forward_hooks or m._backward_pre_hooks or m._backward_hooks:"


def _without(attribute, place):
    """The list of what a call runs through, with what was found at first in place of this one."""
    return CALL.replace(f"{attribute},", f"_own[{place}] if _own else {attribute},", 1)


MUTANTS = [
    Mutant("nn.Conv2d replaced", MODULE, CALL, _without("nn.Conv2d", 0), "nothing or conv2d_replaced_afterwards"),
    Mutant("calls patched", MODULE, CALL, _without("_Conv2d.__call__", 1), "nothing or call_of_conv2d_patched"),
    Mutant("inner calls patched", MODULE, CALL, _without("_Conv2d._call_impl", 2), "nothing or inner_call_of_modules_patched"),
    Mutant("forward patched", MODULE, CALL, _without("_Conv2d.forward", 3), "nothing or forward_of_conv2d"),
    Mutant("inner forward patched", MODULE, CALL, _without("_Conv2d._conv_forward", 4), "nothing or inner_forward_of_conv2d"),
    Mutant("F.conv2d patched", MODULE, CALL, _without(" F.conv2d", 5), "nothing or functional_conv2d"),
    Mutant(
        "patched methods before our import", MODULE, "and files <= _FILES", "",
        "patched_before_the_import",
    ),
    Mutant(
        "patched function before our import", MODULE, "and isinstance(conv2d, types.BuiltinFunctionType)", "",
        "patched_before_the_import",
    ),
    Mutant("another class", MODULE, "type(m) is not _Conv2d or own is None", "own is None", "class_of_one_changed"),
    Mutant("forward pre-hooks", MODULE, HOOKS, HOOKS.replace("m._forward_pre_hooks or ", ""), "forward_pre_hook"),
    Mutant("forward hooks", MODULE, HOOKS, HOOKS.replace("m._forward_hooks or ", ""), "forward_hooks"),
    Mutant("backward pre-hooks", MODULE, HOOKS, HOOKS.replace("m._backward_pre_hooks or ", ""), "backward_pre_hook"),
    Mutant("backward hooks", MODULE, HOOKS, HOOKS.replace(" or m._backward_hooks", ""), "backward_hooks"),
    Mutant("one's forward patched", MODULE, PATCHES, PATCHES.replace('"forward", ', ""), "forward_of_one_patched"),
    Mutant(
        "one's inner forward patched", MODULE, PATCHES, PATCHES.replace(', "_conv_forward"', ""), "inner_forward_of_one",
    ),
    Mutant("one's call patched", MODULE, PATCHES, PATCHES.replace(', "_call_impl"', ""), "call_of_one_patched"),
    Mutant("parameters hidden", MODULE, 'elif _is_patched(m, "weight", "bias"):', "elif False:", "weight_hidden"),
    Mutant("emptied weights", MODULE, "if weight.dim() != 4:", "if False:", "emptied"),
    Mutant(
        "rates of a subclass", "acmix/module.py",
        "type(self.rate1) not in PLAIN_TENSORS or type(self.rate2) not in PLAIN_TENSORS", "False", "rate_of_a_subclass",
    ),
    Mutant(
        "weights of a subclass", MODULE, "type(weight) not in PLAIN_TENSORS or (", "(",
        "weight_of_a_subclass",
    ),
    Mutant(
        "a bias of a subclass", MODULE, "bias is not None and type(bias) not in PLAIN_TENSORS", "False",
        "bias_of_a_subclass",
    ),
    Mutant("stride", MODULE, "m.stride == (stride, stride)", "m.stride", "stride_changed"),
    Mutant("dilation", MODULE, "and m.dilation == (dilation, dilation)", "", "dilation_changed_alone"),
    Mutant("padding", MODULE, "and m.padding == (height // 2 * dilation, width // 2 * dilation)", "", "padding_moved"),
    Mutant("padding mode", MODULE, 'and m.padding_mode == "zeros"', "", "padding_mode_changed"),
    Mutant("groups", MODULE, "and m.groups == (groups or channels)", "", "groups_joined"),
    Mutant(
        "parameters of a replica", MODULE, 'if "weight" not in own and "_former_parameters" in m.__dict__:',
        "if False:", "replicas",
    ),
    Mutant("global hooks", MODULE, " or _has_any_global_hook():", ":", "global_hook"),
    Mutant("onlookers", MODULE, "if watched(x):", "if False:", "fx_trace"),
    Mutant("TorchScript's tracer", WATCHERS, "if torch.jit.is_tracing():", "if False:", "jit_trace"),
    Mutant(
        "torch.export", WATCHERS,
        "return torch.compiler._is_exporting_flag if _HAS_FLAG else torch.onnx.is_in_onnx_export()", "return False",
        "exported",
    ),
    Mutant("torch.func", WATCHERS, "exporting() or torch_func_is_active() or ", "exporting() or ", "gradients_of_a_functional_call"),
    Mutant(
        "forward-mode differentiation", WATCHERS, "torch_func_is_active() or forward_ad._current_level >= 0:", "torch_func_is_active():",
        "forward_mode",
    ),
    Mutant(
        "maps of a subclass", WATCHERS,
        "type(x) not in PLAIN_TENSORS and isinstance(x, (torch.Tensor, torch.fx.Proxy))", "isinstance(x, torch.fx.Proxy)",
        "map_of_a_subclass",
    ),
    Mutant("torch.fx", WATCHERS, "isinstance(x, (torch.Tensor, torch.fx.Proxy))", "isinstance(x, torch.Tensor)", "fx_trace"),
    Mutant(
        "function modes", WATCHERS, "if torch._C._len_torch_function_stack() and", "if False and", "function_mode",
    ),
    Mutant(
        "dispatch modes", WATCHERS, "return bool(torch._C._len_torch_dispatch_stack()) and", "return False and",
        "dispatch_mode or make_fx",
    ),
    Mutant(
        "known modes", WATCHERS, '    "torch.utils._device.DeviceContext",\n', "", "default_device",
    ),
    Mutant(
        "named backends under torch.func", BACKENDS, 'if asked != "reference" and (active :=', "if False and (active :=",
        "named_backend_declines",
    ),
]  # fmt: skip
RUN = (
    "import sys, pytest, lska_ops\n"
    "assert lska_ops.__file__.startswith(sys.argv[1]), lska_ops.__file__\n"
    "assert lska_ops._compiled.problem is None, lska_ops._compiled.problem\n"
    "sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', sys.argv[2], '-k', sys.argv[3]]))\n"
)


def run_tests(package: Path, tests: str):
    """The finished run of these of the toolbox on this copy of the package."""
    command = [sys.executable, "-c", RUN, str(package), str(seeded.ROOT / "tests" / "test_toolbox.py"), tests]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"the toolbox did not run:\n{done.stdout}{done.stderr}")
    return done


def killed_by(mutant: Mutant, folder: Path) -> str | None:
    package = folder / mutant.name.replace(" ", "_") / "lska_ops"
    shutil.copytree(seeded.ROOT / "lska_ops", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / mutant.file
    file.write_text(seeded.with_bug(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    done = run_tests(package, mutant.test)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0].split("::")[1].split(" - ")[0] if done.returncode and failed else None


def main(*words):
    began, mutants = time.monotonic(), seeded.chosen(MUTANTS, words)
    with tempfile.TemporaryDirectory(prefix="module_mutants_") as name:
        folder = Path(name).resolve()
        unchanged = folder / "unchanged" / "lska_ops"
        shutil.copytree(seeded.ROOT / "lska_ops", unchanged, ignore=shutil.ignore_patterns("__pycache__"))
        if mutants and run_tests(unchanged, " or ".join(m.test for m in mutants)).returncode:
            sys.exit("the toolbox fails without a bug")
        results = seeded.at_once(lambda mutant: killed_by(mutant, folder), mutants)
        return seeded.judge(mutants, results, lambda mutant: "module", began)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
