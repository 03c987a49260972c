"""Says where a row of ours was put into a model YAML by hand and the numbers of other rows stayed behind.

Such a YAML builds and trains, and is worth nothing. `insert` moves the numbers; who edits by hand hears of it
here.
"""

import functools
import re
from pathlib import Path

from .registration import NAMES
from .transfer import Outline, few

_said = set()  # once in a process: ultralytics parses a model again when it trains


def warn(file, d):
    """One warning for each thing that looks unintended about the rows of ours in a parsed YAML."""
    from ultralytics.utils import LOGGER, RANK

    for problem in problems(d):
        text = f"lska_ops: {file}: {problem}"
        if RANK in (-1, 0) and text not in _said:
            _said.add(text)
            LOGGER.warning(text)


def problems(d):
    """What looks unintended, a sentence each: rows of ours that no row reads, numbers that stayed behind."""
    rows, reads = [*d["backbone"], *d["head"]], []
    for i, (f, *_) in enumerate(rows):
        reads.append([j if j >= 0 else i + j for j in (f if isinstance(f, (list, tuple)) else [f])])
    read = {j for row in reads for j in row}
    found = [
        f"no row reads row {i} ({row[2]}), so it has no effect; expected its number in the `from` of another"
        for i, row in enumerate(rows[:-1])
        if row[2] in NAMES and i not in read
    ]
    outline = Outline(d)
    name, known = _stock_of(outline) or (None, outline)
    wrong = [
        f"row {i} ({module}) reads {reads[i]}, expected {[outline.number(place) for place in there]}"
        for (i, module, here), (_, _, there) in zip(outline.plain, known.plain, strict=True)
        if here != there
    ]
    if wrong:
        found.append(
            f"is not wired as {name}: {few(wrong)}. A row that is put in moves the numbers of those below; "
            "`python -m lska_ops insert` moves them along"
        )
    return found


def _stock_of(outline):
    """(name, outline) of ultralytics' own model with these rows; of several the one that reads most alike."""

    def unlike(stock):
        known = stock[1]
        return len(known.other_reads(outline)), known.plain[-1][1] != outline.plain[-1][1]

    same = [(name, known) for name, known in _stock(len(outline.plain)) if not known.differences(outline)]
    return min(same, key=unlike, default=None)


@functools.lru_cache
def _stock(rows):
    """Those of ultralytics' model YAMLs that have so many rows."""
    import yaml
    from ultralytics.utils import ROOT

    found = []
    for file in sorted(Path(ROOT, "cfg", "models").rglob("*.yaml")):
        text = file.read_text(encoding="utf-8", errors="ignore")
        if len(re.findall(r"^ *- \[", text, re.M)) == rows:  # reading them all as YAML would take a second
            d = yaml.safe_load(text)
            found.append((file.name, Outline(d)))
    return found
