"""A Python of 64-bit ARM with torch, run by qemu on another machine: what a wheel for it is tried in.

Debian's Python comes from apt-get, which installs nothing here; torch and its requirements from pip. That
torch asks for CUDA's libraries, gigabytes that nothing would call: empty ones with their names and symbols
take their place.
"""

import re
import shutil
import subprocess
from pathlib import Path

from .environments import Environment
from .library import PYTHON, run

QEMU, GCC = "qemu-aarch64-static", "aarch64-linux-gnu-gcc"
PACKAGES = (
    "libc6 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libssl3 zlib1g libffi8 libexpat1 "
    "libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libstdc++6 libgcc-s1 libcrypt1"
).split()
REQUIREMENTS = (
    "numpy typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec filelock setuptools".split()
)
PLATFORMS = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_28", "2_27", "2_17")]
FOR_ARM = [*PLATFORMS, "--platform=manylinux2014_aarch64", "--python-version=311", "--only-binary=:all:"]
INSTALL = [*PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", *FOR_ARM]


def missing() -> str | None:
    """Why there is no emulator, and what helps."""
    for command, package in ((QEMU, "qemu-user-static"), (GCC, "g++-aarch64-linux-gnu")):
        if not shutil.which(command):
            return f"{command} was not found; apt-get install {package}"
    if not shutil.which("apt-get") or "bookworm" not in Path("/etc/os-release").read_text(encoding="utf-8"):
        return "Debian 12's Python for ARM was not found; run on Debian 12"
    return None


class Emulated(Environment):
    """Like an environment with torch, in `folder`, which is kept for the next time."""

    def __init__(self, folder: Path, torch: str):
        self.folder, self.root, self.site, self.cuda = (
            folder / name for name in ("new", "root", "site", "cuda")
        )
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self.root.mkdir(parents=True)
            unpack_debian(folder / "apt", self.root)
            run(*INSTALL, "--target", self.site, f"torch=={torch}", *REQUIREMENTS)
            stand_ins(self.site / "torch", self.cuda)
            (folder / "ready").touch()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.empty = self.folder / "empty"
        self.empty.mkdir(parents=True)
        libraries = [self.cuda, *(self.root / f"{lib}/aarch64-linux-gnu" for lib in ("usr/lib", "lib"))]
        variables = {
            "PYTHONPATH": f"{self.folder}:{self.site}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "OMP_WAIT_POLICY": "passive",
        }
        said = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
        python = self.root / "usr" / "bin" / "python3.11"
        self.python = [shutil.which(QEMU), "-L", self.root, *said, python]

    def install(self, file: Path, **variables: str) -> str | None:
        try:
            run(*INSTALL, "--target", self.folder, file)
        except SystemExit as error:
            return str(error)


def unpack_debian(state: Path, root: Path) -> None:
    """Debian's packages for ARM into `root`; apt's own state and this machine's packages stay as they are."""
    for folder in ("lists/partial", "cache/archives/partial", "downloads"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
    }
    apt = ["apt-get", *(f"-o{name}={value}" for name, value in options.items())]
    run(*apt, "update")
    run(*apt, "download", *PACKAGES, cwd=state / "downloads")
    for package in (state / "downloads").glob("*.deb"):
        run("dpkg-deb", "-x", package, root)


def stand_ins(torch: Path, out: Path) -> None:
    """A library for each of CUDA's that torch's name: every function answers 0."""
    out.mkdir()
    files = [*torch.glob("lib/*.so*"), *torch.glob("_C*.so")]
    needed, versions, asked, defined = set(), {}, {}, set()
    for file in files:
        said = subprocess.run(["readelf", "-WdV", file], capture_output=True, text=True).stdout
        needed |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", said))
        for library, names in re.findall(r"File: (\S+)  Cnt: \d+\n((?: .*Name: .*\n)+)", said):
            versions.setdefault(library, set()).update(re.findall(r"Name: (\S+)", names))
        for name in run("nm", "-D", "-u", "--format=just-symbols", file).split():
            name, _, version = name.partition("@")
            asked.setdefault(version, set()).add(name)
        names = run("nm", "-D", "--defined-only", "--format=just-symbols", file).split()
        defined |= {name.partition("@")[0] for name in names}
    here = re.compile(r"(lib(c|m|z|dl|rt|pthread|stdc\+\+|gcc_s)|ld-linux-aarch64)\.so")
    missing = sorted(name for name in needed - {file.name for file in files} if not here.match(name))
    source, script = out / "source.c", out / "script.map"
    for number, library in enumerate(missing):
        nodes = {version: asked.get(version, set()) for version in versions.get(library, ())}
        others = {name for name in asked[""] - defined if re.match("_*(cu|nv|nccl)", name)}
        names = sorted(set().union(*nodes.values(), others if number == 0 else ()))
        source.write_text(
            "".join(f"void *{name}(void) {{ return 0; }}\n" for name in names), encoding="utf-8"
        )
        lines = [
            f"{node} {{ global: {' '.join(f'{n};' for n in names)} }};\n" for node, names in nodes.items()
        ]
        script.write_text("".join(lines), encoding="utf-8")
        scripts = [f"-Wl,--version-script={script}"] if nodes else []
        run(GCC, "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", *scripts, "-o", out / library, source)
