"""What there is a wheel for, and what each may ask of the system where it is installed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    platform: str  # the wheel's platform tag
    machine: str
    compiler: str | None  # None: zig's
    zig: str  # what zig links for
    library: str = "_C.so"
    cuda: bool = False
    packages: str = ""  # Debian's, where the compiler is in none that every build needs

    @property
    def tag(self) -> str:
        return f"py3-none-{self.platform}"

    @property
    def for_windows(self) -> bool:
        return self.compiler is None


TARGETS = {
    "x86_64": Target("manylinux_2_28_x86_64", "x86_64", "c++", "x86_64-linux-gnu.2.28", cuda=True),
    "aarch64": Target(
        "manylinux_2_28_aarch64",
        "aarch64",
        "aarch64-linux-gnu-g++",
        "aarch64-linux-gnu.2.28",
        packages="g++-aarch64-linux-gnu qemu-user-static",
    ),
    "win_amd64": Target("win_amd64", "x86_64", None, "x86_64-windows-gnu", "_C.dll"),
}
# What manylinux_2_28 promises: its glibc is 2.28 and its libraries are those of gcc 8.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
# Libraries that are on every such system, and torch's.
NEEDED = {
    "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libstdc++.so.6",
    "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libtorch_cpu.so",
}  # fmt: skip
# What a library for Windows may load: PyTorch's, and what every Windows has; in capital letters or not.
OF_WINDOWS = r"torch_cpu\.dll|kernel32\.dll|ucrtbase\.dll|api-ms-win-crt-[\w-]+\.dll"
