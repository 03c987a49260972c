"""What CI runs in."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKE = """#!/usr/bin/env bash
printf '%s ' "$@" >> "$(dirname "$0")/words"
echo >> "$(dirname "$0")/words"
env > "$(dirname "$0")/environment-$1"
"""
COMPILERS = ("g++-11", "clang++", "aarch64-linux-gnu-g++", "qemu-aarch64-static")


def tools(folder, *names):
    """Programs that write down how they were called."""
    for name in names:
        (folder / name).write_text(MAKE, encoding="utf-8")
        (folder / name).chmod(0o755)


def test_ci_words_see_nothing_of_the_shell_that_starts_it(tmp_path):
    """Where a variable of the builder's is needed, the words fail for everybody else."""
    tools(tmp_path, "make", *COMPILERS)
    kept = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "CI": "true",
        "PIP_CERT": "/a path/with, $signs\nand lines",
        "https_proxy": "http://proxy:1",
    }
    left_out = {
        "PYTHONUNBUFFERED": "1",
        "LSKA_OPS_BACKEND": "reference",
        "PYTHONPATH": "/nowhere",
        "TERM": "x",
    }
    command = ["bash", str(ROOT / ".ci" / "run")]
    done = subprocess.run(command, env=kept | left_out, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    assert {"setup", "demo", "test", "check", "compilers"} <= {word.split()[0] for word in words}
    for word in words:
        said = (tmp_path / f"environment-{word.split()[0]}").read_text(encoding="utf-8")
        assert all(f"{name}={value}\n" in said for name, value in kept.items()), word
        assert not any(f"{name}={value}\n" in said for name, value in left_out.items()), word
        names = {line.partition("=")[0] for line in said.splitlines() if "=" in line}
        ours = {name for name in names if name.startswith("LSKA_OPS_")}
        assert names - ours - kept.keys() <= {"PWD", "OLDPWD", "SHLVL", "_"}, word  # bash's own


@pytest.mark.parametrize("apt", [True, False])
def test_ci_installs_the_compilers_that_are_missing_or_says_that_it_cannot(apt, tmp_path):
    tools(tmp_path, "make", *(["apt-get"] if apt else []))
    for name in ("bash", "env", "dirname", "git"):
        (tmp_path / name).symlink_to(shutil.which(name))
    command = [shutil.which("bash"), str(ROOT / ".ci" / "run")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    if apt:
        assert done.returncode == 0, done.stderr
        installed = next(word.split() for word in words if word.startswith("install "))
        assert {"g++-11", "clang", "g++-aarch64-linux-gnu"} <= set(installed)
        assert words.index("compilers ") > words.index(" ".join(installed) + " ")
    else:
        assert done.returncode == 1 and "apt-get was not found; " in done.stderr
        assert "compilers " not in words
