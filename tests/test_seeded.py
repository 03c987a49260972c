"""Which seeded bugs are asked for, and what a wrong word is told."""

import importlib.util
import subprocess
import sys
import time
from itertools import product

import pytest
import seeded
from seeded import TENTHS, Mutant

TESTS = seeded.ROOT / "tests"
PARTS, OPS = ("csrc", "lska_ops"), ("common", "lska", "acmix")
MUTANTS = [Mutant(f"bug {n}", "file", "right", "wrong") for n in range(13)]


def names(*words):
    return [mutant.name for mutant in seeded.chosen(MUTANTS, words)]


def test_seeded_ten_tenths_are_all():
    tenths = [names("--tenth", str(n)) for n in range(TENTHS)]
    assert sorted(sum(tenths, [])) == sorted(names()) and all(tenths)
    assert names("--tenth=2", "bug 1") == ["bug 12"]  # a tenth of the list, whatever part of it is asked for


def test_seeded_tenth_follows_the_commit(capsys, monkeypatch):
    monkeypatch.setattr(seeded, "commit", lambda root: "0" * 38 + "1d")
    assert names("--tenth", "auto") == names("--tenth", str(0x1D % TENTHS))
    assert "tenth 9 of 0 to 9, by commit 000000000000" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--tenth", "10"], "--tenth is '10'; expected one of 0 to 9, or auto"),
        (["--tenth"], "--tenth is without a number; expected one of 0 to 9, or auto"),
        (["--tenth", "1", "--tenth", "2"], "--tenth is given twice; expected once"),
        (["--all"], "--all is no option; expected --tenth and a part of a bug's name"),
        (["bug", "1"], "2 parts of a name: 'bug', '1'; expected one, in quotes"),
        (["bag"], "no seeded bug's name has 'bag' in it"),
    ],
)
def test_seeded_wrong_words_are_answered_in_a_sentence(capsys, words, sentence):
    with pytest.raises(SystemExit) as ended:
        names(*words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"mutants: {sentence}\n"


def test_seeded_without_a_checkout_the_commit_is_not_guessed(capsys, tmp_path):
    with pytest.raises(SystemExit):
        seeded.chosen(MUTANTS, ["--tenth", "auto"], root=tmp_path)
    said = capsys.readouterr().err
    assert (
        said.startswith("mutants: --tenth auto takes the commit's hash, and ")
        and "name one of 0 to 9" in said
    )


def test_seeded_a_survivor_fails(capsys):
    bugs = MUTANTS[:2]
    assert seeded.judge(bugs, ["a test", None], lambda m: "op", time.monotonic()) == 1
    assert seeded.judge(bugs, ["a test", "signal 6"], lambda m: "op", time.monotonic()) == 0
    assert "bug 1" in capsys.readouterr().out


def seeded_bugs(of):
    """All that a value of a module holds."""
    if isinstance(of, Mutant):
        return {of}
    if isinstance(of, dict):
        of = [*of, *of.values()]
    return set().union(*map(seeded_bugs, of)) if isinstance(of, list | tuple) else set()


@pytest.mark.parametrize("file", sorted(f.relative_to(TESTS) for f in TESTS.rglob("*mutants.py")), ids=str)
def test_seeded_bugs_all_fit_the_sources(file):
    """A list that no longer does ends where it is tried: of a tenth, only with every tenth commit."""
    spec = importlib.util.spec_from_file_location(f"bugs_of_{file.stem}", TESTS / file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS / file.parent)
        spec.loader.exec_module(module)
    bugs = set().union(*(seeded_bugs(value) for name, value in vars(module).items() if name.isupper()))
    folders = [seeded.ROOT / f for f in ("csrc", "lska_ops", *(f"{a}/{b}" for a, b in product(PARTS, OPS)))]
    for bug in bugs:
        counts = [
            (f / bug.file).read_text(encoding="utf-8").count(bug.right)
            for f in folders
            if (f / bug.file).is_file()
        ]
        assert 1 in counts, (bug.name, bug.file, counts)
    assert bugs


def test_seeded_bug_that_no_longer_fits_is_named():
    with pytest.raises(SystemExit, match="bug 0: occurs 2 times in file; expected once"):
        seeded.with_bug("right and right", MUTANTS[0])


@pytest.mark.parametrize(
    "file", ["mutants.py", "host_cuda/mutants.py", "triton_mutants.py", "ptx/mutants.py"]
)
def test_seeded_every_list_reads_the_same_words(file):
    command = [sys.executable, str(seeded.ROOT / "tests" / file), "--tenth", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr == "mutants: --tenth is 'x'; expected one of 0 to 9, or auto\n"
