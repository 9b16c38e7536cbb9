# `make demo` and `make test` set up what is missing, once, and run. They need Python 3.11+, a C++ compiler and make.
#
#   make demo        train a network on handwritten digits with closed-form gradients
#   make test        lint, types, pytest and sanitize: what continuous integration runs
#   make bench       verify, time, and write benchmarks/results and the tables in docs
#   make wheels      build the sdist and the wheels for Linux, and test them, each in an environment of its own (needs
#                    x86-64 Linux, Python 3.11 and a newer one, and g++-aarch64-linux-gnu)
#   make test-arm64  the survey of all kernels and the tests of the core on ARM64, emulated (Debian on x86-64)
#   make survey-arm64, make test-old-cpu    the survey alone, there and on an x86-64 processor of 2008, emulated
#   make docs        build the site into build/docs/html, check its links, and read it in Chromium
#   make compilers   compile with GCC 12 to 16 and Clang, compare the bits, and run clang-tidy
#   make tidy        clang-tidy alone
#   make test-pythons    one wheel with later Pythons (these three need Linux, root and debootstrap: tools/debian.sh)
#   make test-torch TORCH_VERSION=2.11.0    the tests of xhat.torch with other versions of PyTorch ("2.11.0 2.14.1")
#   make clean       back to a fresh clone
#
# PYTHON is the interpreter (make test PYTHON=python3.12), PROCESSES the number of processes that pytest runs in. PyTorch
# is installed if pip finds a build of it for the CPU; without one, everything that needs it is left out, unless CI is
# set: then that is an error.

PYTHON ?= python3
VENV ?= .venv
PROCESSES ?= 2

VERSION := $(shell $(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
MADE := $(VENV)/made-for-$(VERSION)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := install --quiet --constraint constraints.txt --build-constraint constraints-build.txt
EXTRAS := demo,doctor,lens,jax,flax,equinox,keras,test
# A file's tests share what they compute, so they stay in one process; files start in the order of their names.
PYTEST := -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

# What the compiled engine is made from.
ENGINE := $(shell find kernels -type f) CMakeLists.txt pyproject.toml constraints-build.txt
# An editable installation maps each Python file by name, so it is made again when one is added, moved or removed.
MODULES := $(shell find src -name '*.py' | sort | cksum | tr ' ' '-')

.DELETE_ON_ERROR:
.PHONY: demo test set-up lint types pytest sanitize bench docs wheels clean
.PHONY: test-arm64 survey-arm64 test-old-cpu compilers tidy test-pythons test-torch

demo: $(MADE)/engine $(MADE)/with-demo $(MADE)/torch
	$(BIN)/xhat demo

# The two builds of the kernels, the installation of packages, and what needs only these run side by side: each has phases
# that use one core or wait for the network. The tests then have the machine for themselves.
test:
	$(MAKE) --jobs=3 set-up lint types
	$(MAKE) --jobs=1 pytest sanitize

lint: $(MADE)/with-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MADE)/with-$(EXTRAS) $(MADE)/torch
	@if test -e $(MADE)/torch; then $(BIN)/mypy; \
	else echo "Types are checked where PyTorch is: many of them are its classes."; fi

pytest: $(MADE)/engine $(MADE)/with-$(EXTRAS) $(MADE)/torch $(MADE)/architectures
	$(BIN)/python $(PYTEST)

bench: $(MADE)/engine $(MADE)/with-bench $(MADE)/torch
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.exactness
	$(BIN)/python -m benchmarks.tolerances
	$(BIN)/python -m benchmarks.torch_bench

# The pages of the reference are made anew, since a name may have gone. Every warning is an error: Sphinx's by its own
# option, and numpydoc's about the sections of docstrings by Python's.
docs: $(MADE)/engine $(MADE)/with-$(EXTRAS) $(MADE)/with-docs $(MADE)/torch
	rm -rf build/docs docs/reference/generated
	$(BIN)/python -W "error:Unknown section:UserWarning" -m sphinx --fail-on-warning --keep-going --quiet \
	    --jobs auto --doctree-dir build/docs/doctrees docs build/docs/html
	$(BIN)/python -m pytest -q tests/test_site.py

clean:
	rm -rf $(VENV) build dist wheelhouse xhat-demo docs/reference/generated .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------------------- environment
# Stamps lie in the environment that they describe, by version: removing it removes them too.

set-up: $(MADE)/engine $(MADE)/with-$(EXTRAS) $(MADE)/torch $(MADE)/architectures

# An environment of this version is kept as it is; one of another version is made anew.
$(MADE)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    "xhat needs Python 3.11 or newer, and $(PYTHON) is older. Name one: make PYTHON=python3.12")'
	@test "$$($(BIN)/python -c 'import sys; print("python%d.%d" % sys.version_info[:2])' 2>/dev/null)" = $(VERSION) \
	    || { echo "$(PYTHON) -m venv $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	$(PIP) install --quiet --constraint constraints.txt pip
	@mkdir -p $(MADE)
	@touch $@

$(MADE)/modules-$(MODULES): | $(MADE)/python
	@rm -f $(MADE)/modules-*
	@touch $@

# Python files are used where they are; the kernels are compiled again when they have changed.
$(MADE)/engine: $(ENGINE) $(MADE)/modules-$(MODULES) | $(MADE)/python
	@echo "Compiling the kernels, which takes a few minutes"
	$(PIP) $(INSTALL) --no-deps $(if $(CI),--config-settings cmake.define.XHAT_WARNINGS=ON) --editable .
	@touch $@

# What an extra needs, beside the engine. The order-only prerequisite keeps two runs of pip from writing at once.
$(MADE)/with-%: constraints.txt pyproject.toml | $(MADE)/torch
	$(PIP) $(INSTALL) --only-deps '.[$*]'
	@touch $@

# On Linux a plain torch is a CUDA build with several GB of libraries, on ARM too, so a version is asked for that says
# that it is for the CPU; elsewhere there is no other. What the environment has already is left as it is.
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)$(if $(filter Linux,$(shell uname -s)),+cpu)
WITHOUT_TORCH := pip is offered no $(TORCH) here, so what needs PyTorch is left out. Say where there is one \
    (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS), or install any torch into $(VENV) yourself.

$(MADE)/torch: constraints.txt | $(MADE)/python
	@if $(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(INSTALL) '$(TORCH)' 2>$@.said; then \
	    touch $@; \
	else \
	    { grep -q 'ERROR: .*$(TORCH)' $@.said && echo "$(WITHOUT_TORCH)" && test -z "$(CI)"; } \
	        || { cat $@.said; exit 1; }; \
	fi

# Triton tests the kernels for GPUs without one. Its wheels are for Linux; it comes without torch's CUDA packages.
TRITON := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' '-')),$(PIP) $(INSTALL) --no-deps triton,true)

# Published networks for the tests of xhat.torch. They depend on torchvision, and that on a CUDA build of torch, so
# they come without what they ask for; what they need of it is the extra `architectures`. And what exports to ONNX.
$(MADE)/architectures: constraints.txt pyproject.toml | $(MADE)/with-$(EXTRAS)
	@test ! -e $(MADE)/torch || { \
	    $(PIP) $(INSTALL) --no-deps timm torchvision segmentation-models-pytorch && \
	    $(PIP) $(INSTALL) --only-deps '.[architectures,onnx]' && $(TRITON) && touch $@; }

# ----------------------------------------------------------------------------------------------- sanitizers
# The kernels once more, compiled with AddressSanitizer and UBSan, in an environment that holds nothing else and finds the
# rest in the first one (but not the xhat there: its import hook works only in its own environment). Python files are used
# where they are here too, so only a change of the kernels compiles them again.

SANITIZE := build/sanitize-$(VERSION)
RUNTIME = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
SANITIZED = LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0 $(SANITIZE)/venv/bin/python

ifeq ($(shell uname -s),Linux)
set-up: $(SANITIZE)/made
sanitize: $(SANITIZE)/made $(MADE)/with-$(EXTRAS)
	$(SANITIZED) -c 'import sys; from xhat import _kernels; sys.exit(not _kernels.__file__.startswith(sys.prefix))'
	OMP_NUM_THREADS=2 $(SANITIZED) tests/survey.py > $(SANITIZE)/survey.json
	OMP_NUM_THREADS=2 $(SANITIZED) tests/fuzz_changed.py
	$(SANITIZED) $(PYTEST) tests/test_ops.py tests/test_numpy.py tests/test_properties.py
else
sanitize:
	@echo "The sanitizers run on Linux, with GCC."
endif

$(SANITIZE)/made: $(ENGINE) $(MADE)/modules-$(MODULES) | $(MADE)/python
	$(BIN)/python -m venv --clear --without-pip $(SANITIZE)/venv
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $(SANITIZE)/first.pth
	mv $(SANITIZE)/first.pth $(SANITIZE)/venv/lib/$(VERSION)/site-packages
	$(PIP) --python $(SANITIZE)/venv/bin/python $(INSTALL) --no-deps --config-settings build-dir=$(SANITIZE)/cmake \
	    --config-settings cmake.define.XHAT_SANITIZE=ON --editable .
	@touch $@

# ----------------------------------------------------------------------------------------- other processors
# Emulated; what that needs is unpacked in build, and nothing is installed.

test-arm64: $(MADE)/engine $(MADE)/with-test
	PYTHON=$(BIN)/python PROCESSES=$(PROCESSES) tools/arm64.sh tests

survey-arm64: $(MADE)/engine $(MADE)/with-test
	PYTHON=$(BIN)/python tools/arm64.sh survey

test-old-cpu: $(MADE)/engine $(MADE)/with-test
	PYTHON=$(BIN)/python tools/old_cpu.sh

# -------------------------------------------------------------------------------------------------- release

wheels:
	tools/wheels.sh

# ------------------------------------------------------------------------- other compilers, and later Pythons
# In a Debian of their own, which tools/debian.sh makes (Linux, as root).

compilers:
	tools/debian.sh tools/compilers.sh

tidy:
	tools/debian.sh tools/compilers.sh clang-tidy

test-pythons:
	tools/debian.sh tools/pythons.sh

# ------------------------------------------------------------------------------- other versions of PyTorch
# What docs/torch-versions.md has. TORCH_VERSION is one version or several.

test-torch: $(MADE)/engine $(MADE)/with-$(EXTRAS) $(MADE)/architectures
	VENV=$(VENV) tools/torch_versions.sh $(TORCH_VERSION)
