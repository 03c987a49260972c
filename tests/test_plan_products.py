"""ACmix's planner of products on tensor cores, held against what the profiler counted of its plans and of others."""

import csv

import pytest

from lska_ops import _compiled

info = _compiled.build_info()
if not info or "plan" not in info["parts"]:
    pytest.skip("lska_ops._plan was not built; see `python -m lska_ops doctor`", allow_module_level=True)

from ptx import calls, plans  # noqa: E402
from ptx.gpus import GPUS  # noqa: E402

BY_NAME = {gpu.name: gpu for gpu in GPUS}
WORST = 1.2  # times the best plan's microseconds
# Where the planner falls short of that, and by how much: most read NCHW or few dims, pixel by pixel.
SHORT = {
    ("T4", "acmix_bwd 64x14x52 B2 k5 head8 fp16 channels_last", "query"): 1.34,
    ("RTX 4090", "acmix_bwd 32x30x77 B8 bf16 channels_last", "key"): 1.27,
    ("Orin", "acmix_bwd 64x60x8 B8 k3 fp16 NCHW", "key"): 1.23,
    ("Orin", "acmix_bwd 64x54x76 B1 fp16 NCHW", "key"): 1.22,
    ("A100", "acmix_fwd 256x81x43 B1 k5 head8 dilation2 bf16 channels_last", "forward"): 1.21,
}


@pytest.fixture(scope="module")
def committed():
    """{(gpu, problem, kernel): lines by rank}."""
    found = {}
    with open(plans.FILE, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault((line["gpu"], line["problem"], line["kernel"]), []).append(line)
    return found


def test_plan_products_are_judged_on_all_problems(committed):
    expected = {(gpu.name, str(problem)) for problem, gpu in plans.problems()}
    assert {key[:2] for key in committed} == expected and len(expected) == plans.PROBLEMS >= 200


def test_plan_products_choose_what_was_counted(committed):
    """A planner that chooses otherwise has to be counted again: python -m ptx.plans."""
    for (gpu, problem, kernel), lines in committed.items():
        for line in lines:
            now = plans.chosen(calls.parse(problem), BY_NAME[gpu], int(line["rank"]))[kernel]
            assert (line["grid"], int(line["threads"]), int(line["shared"])) == now, (
                gpu,
                problem,
                line["rank"],
            )


def test_plan_products_are_never_far_from_the_best(committed):
    regrets = {
        key: float(lines[0]["predicted_us"]) / min(float(line["predicted_us"]) for line in lines)
        for key, lines in committed.items()
    }
    assert all(lines[0]["rank"] == "0" for lines in committed.values())
    assert sum(len(lines) > 1 for lines in committed.values()) > 0.9 * len(committed)
    far = {key: round(regret, 2) for key, regret in regrets.items() if regret > WORST}
    assert far == SHORT
