"""Runs commands and examples one after another in one process: ``python every_command.py REPORT STEPS``.

STEPS is JSON, a list of command lines: words for ``lska-ops``, or ``[an example's file, words...]``. REPORT
gets the list of their exit codes. Everything that they print goes where this process prints; once a command has
run, no character fails there, ultralytics' emoji in an example's log included. ``test_encodings.py`` starts it
in other locales and terminals.
"""

import json
import runpy
import sys
from pathlib import Path

from ultralytics.engine.model import Model

import lska_ops
from lska_ops.__main__ import main
from lska_ops.yolo import row_diff, startup

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = dict(epochs=1, imgsz=32, batch=2, workers=0, plots=False, project="训练")


def run(words):
    if not words[:1] or not words[0].endswith(".py"):
        return main(words)
    sys.argv[:] = words
    beside = Path(words[0])
    train, Model.train = Model.train, lambda model, /, **options: train(model, **{**options, **SHORT})
    try:
        runpy.run_path(str(beside if beside.exists() else EXAMPLES / beside), run_name="__main__")
    finally:
        Model.train = train
        lska_ops.unregister()
    return 0


def code_of(words):
    print("==", *words, file=sys.stderr)
    try:
        return run(words)
    except SystemExit as stopped:
        return stopped.code or 0


if __name__ == "__main__":
    row_diff._gflops = lambda model: (
        0.0
    )  # counted by the tests of insert; here it would take half of the time
    val = Model.val  # plots its curves once more, as at the end of the training
    Model.val = lambda model, /, **options: val(model, **{**options, "plots": False})
    startup._files = lambda: (Path("hook.pth").resolve(), Path("hook.py").resolve())  # not this environment's
    report, steps = Path(sys.argv[1]), json.loads(sys.argv[2])
    report.write_text(json.dumps([code_of(words) for words in steps]), encoding="utf-8")
