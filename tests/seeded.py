"""What the lists of seeded bugs share: a bug, which of them are asked for, and what is said of each.

    python tests/mutants.py [part of a name] [--tenth N]

Without words all bugs are tried. N from 0 to 9 is every tenth bug of the list from the N-th on; "auto" takes the
commit's hash modulo 10, so that CI tries another tenth with another commit.
"""

import os
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TENTHS = 10
UNEXPECTED = 100  # the exit status of a child that an exception ends


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    right: str  # occurs once
    wrong: str
    test: str = ""  # who has to kill it, where the list leaves a choice


class Refused(Exception):
    """What is wrong with the words, in one sentence."""


def commit(root: Path = ROOT) -> str:
    """The hash of the commit that is checked out."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    except OSError as error:
        raise Refused(f"--tenth auto asks git for the commit, and git does not run ({error}); "
                      f"name one of 0 to {TENTHS - 1}") from None  # fmt: skip
    if asked.returncode:
        raise Refused(f"--tenth auto takes the commit's hash, and {root} is no git checkout with a commit; "
                      f"name one of 0 to {TENTHS - 1}")  # fmt: skip
    return asked.stdout.strip()


def tenth_of(word: str, root: Path = ROOT) -> tuple[int, str]:
    """The number that `--tenth word` means, and how it came about."""
    if word == "auto":
        found = commit(root)
        number = int(found, 16) % TENTHS
        return number, f"tenth {number} of 0 to {TENTHS - 1}, by commit {found[:12]}"
    if word not in map(str, range(TENTHS)):
        raise Refused(f"--tenth is {word!r}; expected one of 0 to {TENTHS - 1}, or auto")
    return int(word), f"tenth {word} of 0 to {TENTHS - 1}"


def read(words: list[str], root: Path = ROOT) -> tuple[str, int | None, str]:
    """Part of a name, the tenth or None for all, and what is to be said of the choice."""
    part, tenth, said = "", None, "all"
    words, parts = list(words), []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--tenth":
            if not equals and not words:
                raise Refused(f"--tenth is without a number; expected one of 0 to {TENTHS - 1}, or auto")
            if tenth is not None:
                raise Refused("--tenth is given twice; expected once")
            tenth, said = tenth_of(value if equals else words.pop(0), root)
        elif word.startswith("-"):
            raise Refused(f"{word} is no option; expected --tenth and a part of a bug's name")
        else:
            parts.append(word)
    if len(parts) > 1:
        raise Refused(f"{len(parts)} parts of a name: {', '.join(map(repr, parts))}; expected one, in quotes")
    part = "".join(parts)
    return part, tenth, said + (f", named ...{part}..." if part else "")


def chosen(mutants, words, name=lambda mutant: mutant.name, root: Path = ROOT):
    """The items of a list that are asked for; `name` is what the part of a name is looked for in.

    Ends the process, after one sentence, where the words are wrong or no bug has such a name.
    """
    try:
        part, tenth, said = read(words, root)
        named = [m for m in mutants if part in name(m)]
        if not named:
            raise Refused(f"no seeded bug's name has {part!r} in it")
    except Refused as error:
        print(f"mutants: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    found = [m for i, m in enumerate(mutants) if m in named and tenth in (None, i % TENTHS)]
    print(f"{len(found)} of {len(mutants)} seeded bugs: {said}", flush=True)
    return found


def with_bug(text: str, mutant: Mutant) -> str:
    """The file's text with the bug; the process ends where the right one is not there just once."""
    if (found := text.count(mutant.right)) != 1:
        sys.exit(f"{mutant.name}: occurs {found} times in {mutant.file}; expected once")
    return text.replace(mutant.right, mutant.wrong)


def at_once(work, items, workers: int = 2):
    """work(item) of each, in their order; so many are worked on at a time."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, items)


class Ended(NamedTuple):
    """A child's end."""

    status: int  # negative: the signal
    said: str


def forked(tasks, workers: int = 2):
    """The Ended of each task in turn. A task is called in a child of its own and returns an exit status.

    Children share what is imported here, which takes longer than most of them live.
    """
    tasks, running, ended, turn = iter(enumerate(tasks)), {}, {}, 0
    with tempfile.TemporaryDirectory(prefix="said_") as folder:
        while True:
            while len(running) < workers and (task := next(tasks, None)):
                said = Path(folder) / str(task[0])
                running[_fork(task[1], said)] = task[0], said
            if not running:
                return
            child, status = os.wait()
            nth, said = running.pop(child)
            ended[nth] = Ended(
                os.waitstatus_to_exitcode(status), said.read_text(errors="replace", encoding="utf-8")
            )
            while turn in ended:
                yield ended.pop(turn)
                turn += 1


def _fork(task, said: Path) -> int:
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = UNEXPECTED
    try:
        with open(said, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = task()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def judge(mutants, results, title, start: float) -> int:
    """The exit status. `results` say of each bug in turn how it was caught, or None where it survived."""
    survivors = 0
    for mutant, how in zip(mutants, results, strict=True):
        survivors += how is None
        print(f"{title(mutant):6} {mutant.name:52} {f'killed by {how}' if how else 'SURVIVED'}", flush=True)
    print(f"{survivors} of {len(mutants)} survived; {time.monotonic() - start:.0f} s", flush=True)
    return int(survivors > 0)
