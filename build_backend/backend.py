"""The PEP 517 backend: setuptools', plus two things.

Where something is to be compiled it asks for ninja, pybind11 and, only if none is installed, torch. And where
the build cannot be what LSKA_OPS_BUILD asks for it stops with one line, before setuptools says anything.
"""

import setuptools
from setuptools import build_meta

from build_backend.decide import Plan, decide, with_requirements
from build_backend.facts import collect

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist


def get_requires_for_build_wheel(config_settings=None):
    plan, wanted = with_requirements(collect())
    _stop_early(plan)
    return build_meta.get_requires_for_build_wheel(config_settings) + wanted


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    _stop_early(decide(collect()))
    return build_meta.prepare_metadata_for_build_wheel(folder, config_settings)


def build_wheel(folder, config_settings=None, metadata_directory=None):
    _stop_early(decide(collect()))
    return build_meta.build_wheel(folder, config_settings, metadata_directory)


def build_editable(folder, config_settings=None, metadata_directory=None):
    _stop_early(decide(collect()))
    return build_meta.build_editable(folder, config_settings, metadata_directory)


get_requires_for_build_editable = get_requires_for_build_wheel
prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def _stop_early(plan: Plan) -> None:
    if int(setuptools.__version__.partition(".")[0]) < 77:  # it cannot read pyproject.toml, and says it badly
        raise SystemExit(f"lska_ops: setuptools is {setuptools.__version__}; pip install 'setuptools>=77'")
    if plan.error:
        raise SystemExit(plan.error)
