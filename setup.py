"""Compiles csrc/ while the package is built; build_backend/decide.py decides what of it. The rest is in
pyproject.toml."""

import json
import os
import shutil
import sys
import time
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

from build_backend.compile import LIBRARY, PLAN, compile_parts, describe
from build_backend.decide import PARTS, decide
from build_backend.facts import ROOT, collect

INFO = "_build_info.json"
FILES = ((LIBRARY, "cpu"), (PLAN, "plan"))


class Lska(Distribution):
    @cached_property
    def plan(self):  # what will be compiled, and afterwards what was
        return decide(collect())

    def has_ext_modules(self):
        return bool(self.plan.parts)


class Build(build):
    sub_commands = [*build.sub_commands, ("build_compiled", None)]


class BuildCompiled(Command):
    """Puts the compiled parts and INFO beside the Python files: in place for an editable install."""

    description = "compile csrc/"
    user_options = []
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        facts, start = collect(), time.monotonic()
        plan = compile_parts(self.distribution.plan, facts, ROOT / "build" / "compiled")
        if plan.error:
            raise SystemExit(plan.error)
        self.distribution.plan = plan
        for name, part in FILES:
            place(ROOT / "build" / "compiled" / name if part in plan.parts else None, self.folder / name)
        info = {
            **describe(plan, facts),
            "reasons": plan.reasons,
            "mode": facts.mode,
            "jobs": plan.jobs,
            "seconds": round(time.monotonic() - start, 1),
        }
        if "cpu" in plan.parts:
            info["bytes"] = (self.folder / LIBRARY).stat().st_size
        (self.folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        self.report(plan, facts, info["seconds"])

    def report(self, plan, facts, seconds):
        if not plan.parts:
            say(f"*** NOTHING COMPILED, pure Python: {plan.reasons['cpu']} ***")
            return
        say(f"compiled {', '.join(plan.parts)} in {seconds} s")
        for part in PARTS:
            if part in plan.reasons:
                stars = "***" if part != "cuda" or facts.cuda_sources else ""
                say(f"{stars} without {part}: {plan.reasons[part]} {stars}".strip())

    @property
    def folder(self):
        folder = ROOT / "lska_ops" if self.editable_mode else Path(self.build_lib, "lska_ops")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def get_outputs(self):
        parts = self.distribution.plan.parts
        names = [name for name, part in FILES if part in parts] + [INFO]
        return [str(Path(self.build_lib, "lska_ops", name)) for name in names]

    def get_output_mapping(self):
        return {out: f"lska_ops/{Path(out).name}" for out in self.get_outputs()} if self.editable_mode else {}

    def get_source_files(self):
        return []  # MANIFEST.in names them


class BdistWheel(bdist_wheel):
    """The wheel's tag says what was compiled, which is known only afterwards."""

    def run(self):
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        if self.distribution.has_ext_modules() and "plan" not in self.distribution.plan.parts:
            return "py3", "none", platform  # the library alone knows nothing of Python
        return python, abi, platform


def say(line):
    print(f"lska_ops: {line}", file=sys.stderr)


def place(source, target):
    """Replaces `target` in one step, as a running Python may have it mapped; without a source, removes it."""
    if source is None:
        target.unlink(missing_ok=True)
        return
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


setup(
    distclass=Lska,
    cmdclass={"build": Build, "build_compiled": BuildCompiled, "bdist_wheel": BdistWheel},
)
