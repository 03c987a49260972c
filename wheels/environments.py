"""Fresh environments with a torch that is already installed somewhere, and without a compiler."""

import json
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT = 1800  # seconds of a command; a process that an emulator holds up ends, too


class Environment:
    """A new environment that sees what `base` has installed, behind what is installed into itself."""

    def __init__(self, folder: Path, base: Path):
        subprocess.run([base / "bin" / "python", "-m", "venv", folder], check=True)
        self.folder, self.python = folder, [folder / "bin" / "python"]
        self.empty = folder / "empty"
        self.empty.mkdir()
        theirs, mine = (site_packages(folder / "bin" / "python") for folder in (base, self.folder))
        (mine / "base.pth").write_text(f"{theirs}\n", encoding="utf-8")

    def run(self, *arguments, **variables: str) -> subprocess.CompletedProcess:
        """Python where no source tree is and, without another PATH, no program, so no compiler either."""
        environment = {"PATH": str(self.empty), "HOME": str(self.empty), "LANG": "C.UTF-8"}
        environment |= {
            k: v for k, v in os.environ.items() if k.upper().startswith(("PIP_", "HTTPS_", "SSL_"))
        }
        environment |= variables
        command = list(map(str, [*self.python, *arguments]))
        try:
            return subprocess.run(
                command,
                cwd=self.empty,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            return subprocess.CompletedProcess(command, 124, f"{said}\nstopped after {LIMIT} s")

    def install(self, file: Path, **variables: str) -> str | None:
        """What pip says where it fails."""
        done = self.run("-m", "pip", "install", "--no-deps", file, **variables)
        return done.stdout[-2000:] if done.returncode else None

    def answers(self, problems: int, *isas: str) -> dict:
        """What inside.py finds here, and the exit status and words of `lska-ops doctor`."""
        done = self.run(HERE / "inside.py", problems, *isas)
        if done.returncode:
            raise SystemExit(f"inside.py fails: {done.stdout[-2000:]}")
        doctor = self.run(self.folder / "bin" / "lska-ops", "doctor")
        found = json.loads(done.stdout.splitlines()[-1])
        return {**found, "doctor": doctor.stdout, "doctor_status": doctor.returncode}


def site_packages(python: Path) -> Path:
    ask = "import sysconfig; print(sysconfig.get_path('platlib'))"
    done = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def best_isa(flags: str) -> str:
    """The most demanding of the instruction sets that a processor with these flags of /proc/cpuinfo has."""
    has = set(flags.split())
    if not has >= {"avx2", "fma", "f16c"}:
        return "baseline"
    return "avx512" if has >= {"avx512f", "avx512vl", "avx512bw", "avx512dq"} else "avx2"


def judged(answers: dict, folder: Path, isa: str | None) -> list[str]:
    """What is wrong with the answers of an environment in `folder`; `isa` is what a library has to use, None
    where a wheel has no library."""
    said = list(answers["wrong"])
    if not Path(answers["file"]).is_relative_to(folder):
        said.append(f"lska_ops was imported from {answers['file']}; expected it in {folder}")
    if isa and answers["problem"]:
        said.append(f"the library was not loaded: {answers['problem']}")
    if not isa and not answers["problem"]:
        said.append("a library was loaded; expected none in this wheel")
    if answers["isa"] != isa:
        said.append(
            f"the kernels in use are {answers['isa']}'s; expected {isa}'s, the best this processor has"
        )
    wanted = ["ValueError: lska: conv0h weight has shape [4, 1, 1, 4]; expected"]
    wanted += ["lska_cascade_fwd_cpu: conv0v weight has shape [4, 1, 1, 4]; expected"] if isa else []
    said += [f"a bad call was answered {answers['refused']}; expected {sentence!r}" for sentence in wanted
             if not any(sentence in answer for answer in answers["refused"])]  # fmt: skip
    line = "cpu: yes (chosen)" if isa else "reference: yes (chosen)"
    if answers["doctor_status"] != (not isa) or line not in answers["doctor"]:
        said.append(f"doctor does not say {line!r}: {answers['doctor'][-500:]}")
    return said
