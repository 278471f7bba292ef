# make demo    tune on a real clip and render him following other poses; look at out/demo/
# make test    the whole test suite
# make check   formatting, lint, types
# make native  the C++ library, its host program and their tests, in build/native
# make gpu-records   check and time the kernels and the GPU path on this machine's GPU: see bench/results/
# Each sets up what it needs in .venv first.

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for name in python3 python3.12 python3.11 python; do \
	$$name -c '$(SUPPORTED)' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPED := build/typed
EXTENSION = setup.py $(wildcard runtime/native/cpu/*) $(addprefix runtime/native/,engines/native.cpp engines/engine.h engines/module.hpp core/error.hpp)
CPP = $(shell find runtime/native tests/native bench -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.inl')

.PHONY: demo test check format setup extractor dwpose native gpu-records clean

demo: $(INSTALLED) extractor
	$(BIN)/posecrafter demo --out out/demo

# -P: transformers looks for a package `kernels`, which is not the folder of that name here.
test: $(INSTALLED) extractor dwpose native
	$(BIN)/python -P -m pytest

# Editors and mypy cannot follow an editable install's import hook, so types are checked on a plain copy of the package.
check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	rm -rf $(TYPED) && $(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(TYPED) .
	cd $(TYPED) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p posecrafter

# RECORDS=--dry proves the script on a CPU. Where there is no .venv but a Python that has torch and triton, as on a GPU
# machine without a network, that one runs the checkout as it lies and nothing is installed. Memory that grows in place
# has no holes between a captured step's tensors; every variant has it.
gpu-records: export PYTORCH_CUDA_ALLOC_CONF ?= expandable_segments:True
gpu-records:
	@if test ! -e $(INSTALLED) && $(PYTHON) -c 'import torch, triton' 2>/dev/null; \
	then $(PYTHON) bench/from_checkout.py posecrafter.bench.gpu $(RECORDS); \
	else $(MAKE) $(INSTALLED) && $(BIN)/python -m posecrafter.bench.gpu $(RECORDS); fi

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

setup: $(INSTALLED) extractor

$(INSTALLED): pyproject.toml constraints.txt $(EXTENSION)
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' \
		|| { echo "Python 3.11 or 3.12 is needed; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	rm -f runtime/engines/_native*.so
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@ls runtime/engines/_native*.so >/dev/null 2>&1 || echo "The engine 'native' was not built: it needs GCC 12 or clang"
	touch $@

extractor: $(INSTALLED)
	$(BIN)/posecrafter poses setup

# The optional estimator's environment, which its tests run.
dwpose: $(INSTALLED)
	$(BIN)/posecrafter poses setup --estimator dwpose

# With OpenVINO's wheel in the environment its module is built too.
native: $(INSTALLED)
	runtime/native/tools.sh
	cmake -S . -B build/native -DPython3_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	cmake --build build/native --parallel 2
	ctest --test-dir build/native --output-on-failure

clean:
	rm -rf $(VENV) build dist out *.egg-info runtime/engines/_native*.so
