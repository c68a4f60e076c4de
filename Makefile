# Set-up, build and the everyday jobs in one word each. With CMake directly: see CMakePresets.json.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-aarch64 test-sanitizers fuzz format format-check lint clean

CMAKE := .venv/bin/cmake
CTEST := .venv/bin/ctest
JOBS ?= $(shell nproc)

FOLDERS := $(wildcard benchmarks examples generators lowering runtime schedules tests tools)
SOURCES = find $(FOLDERS) -name '*.cpp' -o -name '*.h' -o -name '*.hpp'
LINTED = find generators lowering runtime schedules tools -name '*.cpp'

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing (packages, .venv with Halide, CMake, Ninja)
	@scripts/bootstrap

build: setup ## set up and build everything; the program is build/bin/pagegrad
	@$(CMAKE) --preset release
	@$(CMAKE) --build build --parallel $(JOBS)

demo: build ## gradients of real attention data with every schedule, checked and timed
	@build/bin/pagegrad demo

test: build ## build, then run all tests
	@$(CTEST) --test-dir build --output-on-failure --parallel $(JOBS)

test-aarch64: ## build for aarch64, then run those tests under qemu that depend on the processor
	@scripts/bootstrap --aarch64
	@$(CMAKE) --preset release
	@$(CMAKE) --build build --parallel $(JOBS) --target pagegrad-halide_generators
	@$(CMAKE) --preset aarch64
	@$(CMAKE) --build build-aarch64 --parallel $(JOBS)
	@$(CTEST) --preset aarch64 --parallel $(JOBS)

# What to build with sanitizers, and which of the tests to run.
SANITIZED_TARGET ?= all
SANITIZED_TESTS ?= .

test-sanitizers: build ## run all tests with sanitizers: of addresses and undefined behaviour, then of threads
	@set -e; for sanitizer in asan tsan; do \
	    $(CMAKE) --preset $$sanitizer; \
	    $(CMAKE) --build build-$$sanitizer --parallel $(JOBS) --target $(SANITIZED_TARGET); \
	    $(CTEST) --preset $$sanitizer --parallel $(JOBS) --tests-regex '$(SANITIZED_TESTS)'; \
	done

# How long to look for new failures.
FUZZ_SECONDS ?= 60

fuzz: ## call the C interface with descriptors that libFuzzer makes up
	@scripts/bootstrap --checks
	@$(CMAKE) --preset release
	@$(CMAKE) --build build --parallel $(JOBS) --target pagegrad
	@$(CMAKE) --preset fuzz
	@$(CMAKE) --build build-fuzz --parallel $(JOBS) --target fuzz_descriptors
	@mkdir -p build-fuzz/found
	@ASAN_OPTIONS=allocator_may_return_null=1 build-fuzz/tests/fuzz/fuzz_descriptors \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=512 -artifact_prefix=build-fuzz/ \
	    build-fuzz/found tests/fuzz/corpus

format: ## format all C++ sources
	@$(SOURCES) | xargs clang-format-19 -i

format-check: ## fail if a C++ source is not formatted
	@$(SOURCES) | xargs clang-format-19 --dry-run -Werror

lint: build ## run clang-tidy on everything but tests and benchmarks
	@$(LINTED) | xargs -P $(JOBS) -n 1 clang-tidy-19 -p build --quiet

clean: ## remove what was built; .venv stays
	@rm -rf build build-debug build-asan build-tsan build-fuzz build-aarch64
