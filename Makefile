# What people and CI run. Everything works in .venv, which the first target makes.
#   make PYTHON=python3.12   another Python (3.11 or newer)
#   make EXTRA=cuda          another runtime than the CPU's: cuda, webgpu, or nothing at all (EXTRA=)

EXTRA ?= cpu
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell command -v $(p) 2>/dev/null)) python3)
ARGS ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
comma := ,
EXTRAS := $(if $(EXTRA),$(EXTRA)$(comma))test,dev
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

MODEL ?= smollm2-135m
LISTEN ?= 127.0.0.1:7420
FAULTS ?= 200
SEED ?= 1
HOURS ?= 1
CODE := src tests examples benchmarks scripts

.PHONY: fuzz help build wheel test-webgpu test-compiled run-example run-worker test test-unit test-slow test-lan chaos soak check lint format format-check types layers proto bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(STAMP)  ## .venv with hyperlane and everything that tests and checks need

$(STAMP): pyproject.toml scripts/bootstrap.py
	@"$(PYTHON)" scripts/bootstrap.py $(VENV)
	@echo "installing hyperlane[$(EXTRAS)] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@rm -f $(VENV)/.installed-*
	@touch $@

run-example: build  ## a chat answer from two worker processes on this machine
	$(BIN)/hyperlane pull $(MODEL)
	$(BIN)/python examples/example_inference.py $(ARGS)

run-worker: build  ## a worker that other machines' heads may use (LISTEN=HOST:PORT)
	$(BIN)/hyperlane worker --listen $(LISTEN) $(ARGS)

# What takes one core runs on all of them; tests with worker processes have the machine to themselves.
test: build  ## unit, contract and cluster tests
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile tests/unit tests/contract
	$(BIN)/python -m pytest tests/cluster
else
	$(BIN)/python -m pytest $(ARGS)
endif

test-unit: build  ## the pure-Python tests alone: no runtime, no model, any system
	$(BIN)/python -m pytest tests/unit $(ARGS)

test-slow: build  ## the tests marked slow
	$(BIN)/python -m pytest tests -m slow --timeout=3600 $(ARGS)

test-lan: build  ## machines on a LAN of network namespaces (Linux, root and iproute2; otherwise skipped)
	$(BIN)/python -m pytest tests/lan $(ARGS)

# HYPERLANE_TEST_NEEDS: what must be there, so that its tests fail rather than be skipped.
# Real models take a card: WEBGPU_TESTS="not cuda" has them too.
WEBGPU_TESTS ?= not cuda and not webgpu-smollm2 and not webgpu-gemma3
test-webgpu: build  ## WebGPU's conformance suite, and CPU and WebGPU in one pipeline; on the processor where there is no card (Linux)
	HYPERLANE_TEST_NEEDS=webgpu $(BIN)/python scripts/with_vulkan.py $(BIN)/python -m pytest -m "" tests/contract/test_engine_webgpu.py \
		tests/slow/test_mixed_devices.py -k "$(WEBGPU_TESTS)" $(ARGS)

chaos: build  ## faults of every kind under load (FAULTS=200 SEED=1; ARGS="--model smollm2-135m --wire int8")
	$(BIN)/python benchmarks/chaos.py --faults $(FAULTS) --seed $(SEED) $(ARGS)

# What hypothesis and schemathesis try is multiplied by TIMES; atheris runs SECONDS for each of its targets.
TIMES ?= 20
SECONDS ?= 60
FUZZED := tests/unit/wire/test_wire_fuzz.py tests/unit/models/test_gguf_fuzz.py tests/unit/models/test_safetensors_header.py \
	tests/unit/api/test_api_fuzz.py tests/contract/test_api_schema.py tests/contract/test_hostile_control.py

fuzz: build  ## hostile input for longer: TIMES=20 as much as in the tests, then SECONDS=60 for each target of atheris
	HYPERLANE_TEST_FUZZ=$(TIMES) $(BIN)/python -m pytest $(FUZZED) --timeout=3600 $(ARGS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris \
		&& $(BIN)/python tests/fuzz/coverage_guided.py --seconds $(SECONDS) \
		|| { $(BIN)/python -c "import atheris" 2>/dev/null && exit 1; echo "atheris cannot be installed here: fuzzing guided by coverage was left out"; }

soak: build  ## hours of steady and bursty load with a fault every minute (HOURS=1)
	$(BIN)/python benchmarks/soak.py --hours $(HOURS) --seed $(SEED) $(ARGS)

wheel: build  ## a wheel in dist/, the data path compiled where there is a C compiler (ARGS=--compiled: or fail)
	$(BIN)/python scripts/build_wheel.py $(ARGS)

# The same tests with the wheel instead of this clone's source: what is compiled, and what uses it most.
COMPILED_VENV ?= $(VENV)-compiled
test-compiled: build  ## unit, contract and cluster tests of the data path, with the compiled wheel
	rm -rf dist $(COMPILED_VENV)
	$(BIN)/python scripts/build_wheel.py --compiled
	@"$(PYTHON)" scripts/bootstrap.py $(COMPILED_VENV)
	@$(subst $(VENV),$(COMPILED_VENV),$(BIN))/python -m pip install --quiet --quiet --disable-pip-version-check "$$(ls dist/hyperlane-*.whl)[$(EXTRA),test]"
	$(subst $(VENV),$(COMPILED_VENV),$(BIN))/python -m pytest tests/unit/wire tests/unit/head tests/unit/stage tests/contract tests/cluster $(ARGS)

check: format-check lint types layers  ## format, lint, types, import contract

format-check: build
	$(BIN)/ruff format --check $(CODE)

lint: build  ## ruff
	$(BIN)/ruff check $(CODE)

types: build  ## mypy, strict
	$(BIN)/mypy

layers: build  ## the import contract
	$(BIN)/lint-imports

format: build  ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only --exit-zero $(CODE)
	$(BIN)/ruff format $(CODE)

proto: build  ## regenerate the gRPC code from proto/
	$(BIN)/python scripts/generate_proto.py

bench: build  ## prefill, decode and hop figures of this machine
	$(BIN)/hyperlane bench $(MODEL) $(ARGS)

clean:  ## remove everything that make made here
	rm -rf $(VENV) $(COMPILED_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
