"""Says where a row of ours was put into a model YAML by hand and the numbers of other rows stayed behind.

Such a YAML builds and trains, and is worth nothing. `insert` moves the numbers; who edits by hand hears of it
here.
"""

import functools
import re
from pathlib import Path

import torch

from .outline import Outline
from .registration import NAMES

_said = set()  # once for the same rows of a file: ultralytics parses a model again when it trains


def warn(file, d, ours=NAMES):
    """One warning for each thing that looks unintended about the rows of ours in a parsed YAML."""
    from ultralytics.utils import LOGGER, RANK

    if RANK not in (-1, 0) or torch.empty(0).is_meta:  # a model without storage is only tried
        return
    key = str(d.get("yaml_file")), repr((d["backbone"], d["head"]))
    if key not in _said:
        _said.add(key)
        for problem in problems(d, ours):
            LOGGER.warning(f"lska_ops: {file}: {problem}")


def problems(d, ours=NAMES):
    """What looks unintended, a sentence each: rows of ours that no row reads, numbers that stayed behind."""
    outline = Outline(d)
    read = {j for i in range(len(outline.rows)) for j in outline.reads(i)}
    found = [
        f"no row reads row {i} ({row[2]}), so it has no effect; expected {_reader(outline, i)}"
        for i, row in enumerate(outline.rows[:-1])
        if row[2] in ours and i not in read
    ]
    name, stock = _stock_of(outline) or (None, None)
    if stock and (left := list(_left_behind(outline, stock))):
        found.append(
            f"is not wired as {name}: {'; '.join(left)}. A row that is put in moves the numbers below it"
            f"; {_command(outline, stock, name, d.get('scale'))}"
        )
    return found


def _reader(outline, i):
    """Who would read row i: those below that read what it reads."""
    source = outline.reads(i)[0]
    rows = enumerate(outline.rows)
    readers = [
        f"row {j} ({row[2]}) to read {i}, not {source}"
        for j, row in rows
        if j > i and source in outline.reads(j)
    ]
    return " or ".join(readers) or f"a row below it to read {i}"


def _command(outline, stock, name, scale):
    """The command that makes the network out of the stock file.

    Where more differs than rows of ours, or these are not alike: what else to do.
    """
    from ultralytics.nn import tasks

    from .insertion import options_of

    mine = [outline.rows[number] for number in outline.inserted.values()]
    words = {(row[2], *_options(options_of(row[2]), row[3])) for row in mine}
    places = [place for place, _, before in outline.inserted if not before]
    plain = _unlike(outline, stock)[0] == 0 and all(row[1] == 1 for row in mine)
    if not plain or len(words) != 1 or len(places) != len(mine) or min(places) < 0:
        return "take it out and let `python -m lska_ops insert` put it in"
    letter = "" if tasks.guess_model_scale(name) else scale or ""
    model = re.sub(r"\d+", rf"\g<0>{letter}", name, count=1)
    command = f"insert {model} {' '.join(*words)} --after {' '.join(map(str, sorted(places)))} -o new.yaml"
    return f"`python -m lska_ops {command}` moves them too, in a copy of {name}"


def _options(defaults, values):
    """The words of a command that say what a row says."""
    pairs = zip(defaults.items(), values, strict=False)
    return [f"{name}={value}" for (name, default), value in pairs if value != default]


def _left_behind(outline, stock):
    """Rows that name a number as the stock model does, where that is another row by now, the head's first;
    other differences are their author's."""
    pairs = list(zip(outline.plain, stock.plain, strict=True))
    for (i, module, here), (j, _, there) in [pairs[-1], *pairs[:-1]]:
        written, known = outline.written(i), stock.written(j)
        same = (a == b >= 0 and p != q for a, b, p, q in zip(written, known, here, there, strict=False))
        if len(written) == len(known) and any(same):
            expected = [
                f if f < 0 and p == q else outline.number(q, i)
                for f, p, q in zip(written, here, there, strict=True)
            ]
            yield f"row {i} ({module}) reads {written}, expected {expected}"


def _stock_of(outline):
    """(name, outline) of ultralytics' own model with these rows; of several the one with most of the same
    repeats and arguments."""
    same = [(name, known) for name, known in _stock(len(outline.plain)) if not known.differences(outline)]
    return min(same, key=lambda stock: _unlike(outline, stock[1]), default=None)


def _unlike(outline, stock):
    """(rows of other repeats or arguments, whether the head is another); the head's arguments follow the
    classes."""
    *pairs, head = zip(outline.plain, stock.plain, strict=True)
    other = sum(list(outline.rows[i][1:]) != list(stock.rows[j][1:]) for (i, *_), (j, *_) in pairs)
    return other, head[0][1] != head[1][1]


@functools.lru_cache
def _stock(rows):
    """Those of ultralytics' model YAMLs that have so many rows."""
    from ultralytics.utils import ROOT

    files = sorted(Path(ROOT, "cfg", "models").rglob("*.yaml"))
    found = ((file.name, _plain_outline(file, rows)) for file in files)
    return [(name, outline) for name, outline in found if outline]


def _plain_outline(file, rows):
    """None for a file that has other rows, or is no model YAML, or one with rows of ours: people keep their
    own files there, finished or not."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return None
    if len(re.findall(r"^ *- \[", text, re.M)) != rows:  # reading all as YAML would take a second
        return None
    try:
        outline = Outline(yaml.safe_load(text))
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    ours = any(row[2] in NAMES for row in outline.rows)
    return outline if len(outline.plain) == rows and not ours else None
