"""The rules of the tree that a machine can check; CONTRIBUTING.md says why they are."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lska_ops"
ROLES = ("reference.py", "op.py", "module.py", "__init__.py")

# role -> what it may import besides the standard library; a name with a dot is inside the package
MAY_IMPORT = {
    "reference.py": {"torch"},
    "triton_kernels.py": {"torch", "triton", "._triton"},
    "triton_kernels_backward.py": {"torch", "triton", ".triton_kernels"},
    "triton_kernels_shift.py": {"torch", "triton", ".triton_kernels"},
    "triton_kernels_last.py": {"torch", "triton", ".triton_kernels"},
    "triton_launch.py": {
        "torch",
        "._triton",
        ".triton_kernels",
        ".triton_kernels_backward",
        ".triton_kernels_shift",
        ".triton_kernels_last",
    },
    "compiled.py": {"torch", "._compiled", "._flops", "._triton", ".triton_launch"},
    "op.py": {"torch", "._backends", "._calls", "._watchers", ".reference", ".compiled"},
    "halves.py": {"torch", "._backends", "._calls", "._watchers", ".op", ".reference"},
    "module.py": {"torch", "._calls", "._watchers", "._module", ".op", ".reference"},
}


def ops():
    return sorted(path.parent for path in PACKAGE.glob("*/op.py"))


def imports(path):
    """(line, name) of every import; relative ones as '.name', those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.lineno, node.module.split(".")[0]
            elif node.module:
                yield node.lineno, "." + node.module
            else:
                for alias in node.names:
                    yield node.lineno, "." + alias.name


def test_layout_every_op_has_the_same_files():
    assert [op.name for op in ops()] == ["acmix", "lska"]
    for op in ops():
        for role in ROLES:
            assert (op / role).is_file(), f"{op.name}/{role}"


@pytest.mark.parametrize("op", ops(), ids=lambda op: op.name)
def test_layout_import_table(op):
    import sys

    for path in op.glob("*.py"):
        allowed = MAY_IMPORT.get(path.name)
        if path.name == "__init__.py":
            continue
        assert allowed, f"{path} has no role; see CONTRIBUTING.md"
        for line, name in imports(path):
            assert name in allowed or name in sys.stdlib_module_names, f"{path}:{line} imports {name}"


def test_layout_only_yolo_imports_ultralytics():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "yolo":
            assert "ultralytics" not in {name for _, name in imports(path)}, path


def test_layout_yolo_imports_ultralytics_inside_functions():
    for path in (PACKAGE / "yolo").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            node
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for node in ast.walk(function)
        }
        for node in set(ast.walk(tree)) - inside:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found = [name for name in names if name.split(".")[0] == "ultralytics"]
            assert not found or path.name == "blocks.py", f"{path}:{node.lineno} imports {found[0]}"


def test_layout_tests_hold_no_tolerance():
    for path in (ROOT / "tests").glob("test_*.py"):
        found = re.findall(r"(?:r|a)tol\s*=\s*[\d.]", path.read_text(encoding="utf-8"))
        assert not found, f"{path}: judge by lska_ops.testing.error_ratio"


def opens_text(call):
    """Whether a call reads or writes text in whatever encoding the machine has; ruff sees it of some alone."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    said = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in said:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) == (name == "write_text")
    if name != "open" or ast.unparse(call.func) in ("tarfile.open", "Image.open", "os.open"):
        return False
    place = 1 if isinstance(call.func, ast.Name) else 0  # of the mode: open(file, mode), file.open(mode)
    mode = said.get("mode", call.args[place] if len(call.args) > place else ast.Constant("r"))
    return "b" not in getattr(mode, "value", "")


@pytest.mark.parametrize(
    "call, answer",
    [
        ("f.read_text()", True),
        ("f.write_text(x)", True),
        ("open(f)", True),
        ("open(f, 'a', newline='')", True),
        ("f.open('w')", True),
        ("open(f, mode='x')", True),
        ("f.read_text('utf-8')", False),
        ("f.write_text(x, encoding='utf-8')", False),
        ("open(f, 'rb')", False),
        ("f.open('wb')", False),
        ("os.open(f, flags)", False),
    ],
)
def test_layout_text_without_an_encoding_is_seen(call, answer):
    assert opens_text(ast.parse(call).body[0].value) is answer


def test_layout_text_is_utf8_on_every_machine():
    folders = (
        ROOT / name for name in ("lska_ops", "build_backend", "wheels", "benchmarks", "tests", "examples")
    )
    for path in [ROOT / "setup.py", *(file for folder in folders for file in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = isinstance(node, ast.Call) and opens_text(node)
            assert not found, f'{path}:{node.lineno} names no encoding; expected encoding="utf-8"'


def test_layout_readme_names_every_module_and_folder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("the tree is not a git checkout; clone the repository")
    for folder in {name.split("/")[0] + "/" for name in tracked if "/" in name and not name.startswith(".")}:
        assert folder in readme, f"README.md's map of the tree lacks {folder}"
    for name in ("LSKA", "LSKATrivial", "LKA", "LKATrivial", "ACmix", "SPPF_LSKA"):
        assert f"`{name}`" in readme
