"""What was checked, as a table that nobody edits."""

import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

from .judge import dotted

HEAD = """\
# Wheels

Written by `make wheels`: what was checked of each file; below, why a check failed or was not run. Problems
are those solved within the bound, in an environment without a compiler.

| file | bytes | kernels | newest symbols | checks passed | problems | seconds |
|---|---|---|---|---|---|---|
"""


@dataclass
class Row:
    file: str
    bytes: int = 0
    parts: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    versions: dict = field(default_factory=dict)  # of symbols, the newest of each library
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def judge(self, said: list[str], check: str) -> None:
        """Notes what a check says: nothing, or the sentences of what is wrong."""
        self.failed += [f"{check}: {sentence}" for sentence in said]
        self.passed += [] if said or check in self.passed else [check]

    def line(self) -> str:
        parts = [f"cuda ({' '.join(self.archs)})" if part == "cuda" else part for part in self.parts]
        versions = [f"{name} {dotted(version)}" for name, version in sorted(self.versions.items())]
        cells = [
            f"`{self.file}`",
            f"{self.bytes:,}",
            ", ".join(parts) or "none",
            ", ".join(versions) or "none",
            ", ".join(self.passed) or "none",
            "; ".join(self.ran) or "none",
            f"{self.seconds:.0f}",
        ]
        return f"| {' | '.join(cells)} |\n"


def text(rows: list[Row], seconds: float) -> str:
    said = [f"- `{row.file}`, failed: {' '.join(s.split())}\n" for row in rows for s in row.failed]
    said += [f"- `{row.file}`, not run: {s}\n" for row in rows for s in row.skipped]
    day = time.strftime("%Y-%m-%d")
    end = f"\nAll of it took {seconds:.0f} s on {day}, on {platform.system()} {platform.machine()}.\n"
    return HEAD + "".join(row.line() for row in rows) + ("\n" + "".join(said) if said else "") + end


def write(file: Path, rows: list[Row], seconds: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text(rows, seconds), encoding="utf-8")
