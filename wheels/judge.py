"""What a wheel must not hold, ask for or show. A judgement is a list of sentences, empty if all is well."""

import re
import subprocess
import zipfile
from pathlib import Path

from .targets import NEEDED, NEWEST, OF_WINDOWS, Target

# SSE2 is all that an x86-64 processor is bound to have; these are of later sets.
BEYOND_SSE2 = re.compile(
    r"\t(?:p(?:shufb|alignr|abs[bwd]|hadd\w+|hsub\w+|sign[bwd]|maddubsw|mulhrsw|mull[d]|min[su][bdw]|max[su][bdw]|"
    r"movsx\w+|movzx\w+|blendvb|blendw|insr[bdq]|extr[bdq]|test|cmpeqq|cmpgtq|ackusdw|opcnt)|blend\w+|round[sp][sd]|"
    r"dpp[sd]|insertps|extractps|h(?:add|sub)p[sd]|addsubp[sd]|mov(?:ddup|shdup|sldup)|lddqu|crc32\w*|v\w+)\s"
)
# Of these unsigned bytes and signed words are SSE2's own.
SSE2 = re.compile(r"\tp(?:minub|maxub|minsw|maxsw)\s")


def contents(names: list[str], library: str | None) -> list[str]:
    """What a wheel with these files holds beside the package, or lacks of it."""
    allowed = re.compile(r"lska_ops/(?:\w+/)*(?:\w+\.py|cfg/[\w.-]+\.yaml)|lska_ops-[^/]+\.dist-info/.+")
    wanted = {"lska_ops/_build_info.json", *([f"lska_ops/{library}"] if library else [])}
    said = [f"{name} is in the wheel, which is for users; expected the package alone" for name in names
            if not allowed.fullmatch(name) and name not in wanted]  # fmt: skip
    said += [f"{name} is not in the wheel" for name in sorted(wanted - set(names))]
    return said


def versions(symbols: str) -> dict[str, tuple[int, ...]]:
    """The newest version of each library's symbols in `readelf --dyn-syms`: {"GLIBC": (2, 17), ...}."""
    found = {}
    for name, number in re.findall(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", symbols):
        version = tuple(map(int, number.split(".")))
        found[name] = max(found.get(name, version), version)
    return found


def elf(symbols: str, dynamic: str) -> list[str]:
    """Of a library of Linux: what `readelf --dyn-syms` and `readelf --dynamic` say against manylinux_2_28."""
    said = []
    for name, version in versions(symbols).items():
        if version > NEWEST[name]:
            of_version = re.findall(rf"(\S+)@{name}_{re.escape(dotted(version))}\b", symbols)
            said.append(
                f"{', '.join(sorted(set(of_version)))} is of {name} {dotted(version)}; expected "
                f"{dotted(NEWEST[name])} or older: give old_runtime.cpp what is missing there"
            )
    for line in symbols.splitlines():
        words = line.split()
        # number, value, size, type, bind, visibility, section, name
        if len(words) >= 8 and words[4] in ("GLOBAL", "WEAK", "UNIQUE") and words[6] not in ("UND", "Ndx"):
            said.append(f"{words[7]} is exported; expected nothing: see hidden.map")
    needed = set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.+)\]", dynamic))
    said += [f"the library needs {name}, which not every system has" for name in sorted(needed - NEEDED)]
    said += [] if "libtorch_cpu.so" in needed else ["the library does not name libtorch_cpu.so"]
    said += ["the library has a run path"] if re.search(r"\((RPATH|RUNPATH)\)", dynamic) else []
    return said


def pe(headers: str) -> list[str]:
    """Of a library of Windows: what `objdump -p` says of what it loads and what others may call."""
    loads = re.findall(r"DLL Name: (\S+)", headers)
    said = [f"the library loads {name}, which not every Windows has" for name in sorted(loads)
            if not re.fullmatch(OF_WINDOWS, name, re.IGNORECASE)]  # fmt: skip
    said += [] if "torch_cpu.dll" in loads else ["the library does not load torch_cpu.dll"]
    names = re.findall(r"(?m)^\s+\[ *\d+\](?: \+base\[ *\d+\])? +(?:[0-9a-f]+ +)?([A-Za-z_?@]\S*)$", headers)
    return said + [f"{name} is exported; expected nothing: see link_for_windows" for name in names]


def thrown(answers: dict) -> list[str]:
    """What is wrong with what Python hears of an op that throws; thrown.py asks."""
    wanted = {
        "sentence": "RuntimeError: throws: got sentence; expected another",
        "number": "RuntimeError: an exception of a type that is not known",
        "memory": "RuntimeError: std::bad_alloc",
        "nothing": "nothing",
    }
    return [f"an op that throws a {name} was answered {answers.get(name)!r}; expected {sentence!r}"
            for name, sentence in wanted.items() if answers.get(name) != sentence]  # fmt: skip


def old_processors(assembly: str) -> list[str]:
    """Instructions beyond SSE2 in what `objdump -d` says of the baseline kernels of x86-64."""
    found = sorted({m[0].strip() for m in BEYOND_SSE2.finditer(assembly) if not SSE2.match(m[0])})
    return [f"the baseline kernels have {name}, which is beyond SSE2" for name in found]


def local_memory(said: str) -> list[str]:
    """GPU kernels that keep something beside their registers, by `cuobjdump --dump-resource-usage`."""
    found, arch, of_all = [], None, 0
    for of, name, stack, local in re.findall(
        r"arch = (sm_\w+)|Function (\S+?):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said
    ):
        arch, of_all = of or arch, of_all + bool(name)
        if name and (stack, local) != ("0", "0"):
            found.append(
                f"{name} for {arch} has {stack} bytes of stack and {local} of local memory; expected none"
            )
    return found or ([] if of_all else ["cuobjdump found no kernel in the library"])


def functions(assembly: str) -> dict[str, str]:
    """{name: instructions and relocations} of what `objdump -dr --no-addresses` says of an object.

    g++ writes instantiated templates in another order from run to run.
    """
    blocks = re.split(r"(?m)^<(\S+)>:$", assembly)[1:]
    bodies = (
        re.sub(r"(?m)^(Disassembly of section .*|\S+: +file format .*)?\n", "", body) for body in blocks[1::2]
    )
    return dict(zip(blocks[::2], bodies, strict=True))


def other_code(name: str, here: str, there: str) -> list[str]:
    """Where an object's assembly differs from that of the same object of a source build."""
    mine, theirs = functions(here), functions(there)
    names = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
    said = f"{name} has {len(names)} functions that differ from the source build's, {names[:1]} among them"
    return [said] if names or not mine else []


def auditwheel(target: Target, said: str) -> list[str]:
    """What `auditwheel repair --plat auto` answers: the wheel's own tag beside the oldest that it finds."""
    found = re.search(rf"Fixed-up wheel written to \S+?-py3-none-(\S+_{target.machine})\.whl", said)
    tags = [int(glibc) for glibc in re.findall(r"manylinux_2_(\d+)_", found[1])] if found else []
    if tags and max(tags) <= NEWEST["GLIBC"][1]:
        return []
    return [f"auditwheel refuses the wheel: {' '.join(said.split())[-500:]}"]


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def readelf(library: Path) -> tuple[str, str]:
    def ask(flag):
        return subprocess.run(
            ["readelf", "-W", flag, library], capture_output=True, text=True, check=True
        ).stdout

    return ask("--dyn-syms"), ask("--dynamic")
