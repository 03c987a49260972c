"""What a number needs to be judged: where and when it was measured; and the CSVs that hold both."""

import csv
import datetime
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PROVENANCE = (
    "device", "threads", "isa", "date", "commit", "dirty", "lska_ops", "torch", "python", "load", "quiet",
)  # fmt: skip


def environment(device, load, quiet_load):
    """Columns that all lines of a run share."""
    import lska_ops

    cuda = device.type == "cuda"
    commit = _git("rev-parse", "--short", "HEAD")
    # Results and the block made from them are what a run itself changes.
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README*.md")
    return dict(
        device=torch.cuda.get_device_name() if cuda else _cpu_name(),
        threads=torch.get_num_threads(),
        isa=f"sm_{''.join(map(str, torch.cuda.get_device_capability()))}" if cuda
        else torch.backends.cpu.get_cpu_capability(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit or "unknown",
        dirty="unknown" if not commit else "yes" if changed else "no",
        lska_ops=lska_ops.__version__, torch=torch.__version__, python=platform.python_version(),
        load=f"{load:.2f}", quiet="yes" if load <= quiet_load else "no",
    )  # fmt: skip


def _git(*words):
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _cpu_name():
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(facts):
    """Folder of one device: other threads or another instruction set are another device; not beside a GPU."""
    threads = "" if facts["isa"].startswith("sm_") else f" {facts['threads']}t"
    return re.sub(r"[^a-z0-9]+", "-", f"{facts['device']} {facts['isa']}{threads}".lower()).strip("-")


def machine(facts):
    return f"{facts['device']}, {facts['isa']}, {facts['threads']} threads, torch {facts['torch']}"


def run_of(facts):
    dirty = " with uncommitted changes" if facts["dirty"] == "yes" else ""
    return f"{facts['date']}, commit {facts['commit']}{dirty}, load before {facts['load']}"


def headline(facts):
    return f"{machine(facts)}, {run_of(facts)}"


def heads(lines):
    """A title for each machine and torch that lines come from: its runs, and which may not be published."""
    titles = {}
    for facts in {headline(line): line for line in lines}.values():
        refused = "" if facts["quiet"] == "yes" else " — *not publishable: other work was running*"
        titles.setdefault(machine(facts), []).append(run_of(facts) + refused)
    for title, runs in titles.items():
        yield f"**{title}** ({'; '.join(runs)})"


def write_table(file, columns, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        table.writeheader()
        for line in lines:
            table.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in line.items()})


def read(file):
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
