"""Compiles csrc/ into a folder, for tests: against another torch's headers, or with a sanitizer.

python -m build_backend build/asan --flags "-g -fsanitize=address,undefined"
python -m build_backend build/floor --torch /path/to/site-packages/torch
"""

import argparse
from dataclasses import replace
from pathlib import Path

from build_backend.compile import LIBRARY, compile_parts
from build_backend.decide import decide
from build_backend.facts import collect, torch_facts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m build_backend", description="Compiles csrc/ into a folder."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", type=Path, help="the torch folder whose headers to use")
    parser.add_argument("--cuda", action="store_true", help="the CUDA part too")
    parser.add_argument("--without-plan", action="store_true", help="not _plan, which needs pybind11")
    parser.add_argument("--flags", default="", help="more flags for the compiler and the linker")
    options = parser.parse_args()
    facts = collect()
    facts = replace(facts, mode="require", cuda_sources=options.cuda and facts.cuda_sources)
    if options.torch:
        facts = replace(facts, **torch_facts(options.torch))
    if options.without_plan:
        facts = replace(facts, pybind11="left out", python_headers="left out")
    plan = decide(facts)
    if options.without_plan:
        plan = replace(plan, parts=tuple(part for part in plan.parts if part != "plan"))
    if not plan.error:
        plan = compile_parts(plan, facts, options.folder.resolve(), options.flags)
    if plan.error:
        raise SystemExit(plan.error)
    print(options.folder / LIBRARY)


if __name__ == "__main__":
    main()
