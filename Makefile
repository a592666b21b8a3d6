.DEFAULT_GOAL := help
.PHONY: help setup build test stress demo bench format lint clean

PYTHON := .venv/bin/python
BUILD := build/release
# Tracked files and new ones that git does not ignore.
FILES = git ls-files --cached --others --exclude-standard --deduplicate

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the apt packages and the Python environment, where missing
	@script/setup.sh

build: setup ## Build the library, the Python package, the forge executable, tests and benchmarks
	@cmake --preset release
	@cmake --build --preset release -j $(shell nproc)

test: build ## Run all tests, C++ and Python
	@$(PYTHON) script/run_tests

# Longer than a test may take: some minutes to build, and the sanitizer makes everything ten times as slow.
stress: setup ## Run backward passes of four threads under the thread sanitizer
	@cmake --preset tsan
	@cmake --build --preset tsan -j $(shell nproc) --target torch_tests
	@TSAN_OPTIONS=suppressions=tests/tsan.supp FORGE_STRESS=2000 build/tsan/torch_tests --gtest_filter='*Threads*'

demo: build ## Train a small model with and without stored gradients
	@script/demo

bench: build ## Measure a layer against the peers, into build/bench/layer.json
	@mkdir -p build/bench
	@$(PYTHON) bench/peers.py layer --json build/bench/layer.json

format: setup ## Rewrite the C++ and Python sources in the project's format
	@$(FILES) '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r clang-format -i
	@$(PYTHON) -m ruff check --fix .

# The OpenMP file is left out of clang-tidy: Debian's clang comes without omp.h.
# Its own build folder, in which nothing is built, for the flags of every file by itself.
lint: setup ## Check format, Python sources and (core only) C++ sources
	@$(FILES) '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r clang-format --dry-run -Werror
	@$(PYTHON) -m ruff check .
	@cmake --preset release -B build/lint -DFORGE_BATCHES=OFF >/dev/null
	@$(FILES) 'forge/base/*.cpp' 'forge/rules/*.cpp' 'forge/formats/*.cpp' 'forge/gradient/*.cpp' \
	  'forge/plan/*.cpp' ':!forge/base/openmp_executor.cpp' | xargs -r -n 1 clang-tidy --quiet -p build/lint

clean: ## Remove what was built; the Python environment stays
	@rm -rf build
