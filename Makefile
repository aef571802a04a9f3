# The front door. It holds no build logic: CMakeLists.txt describes the build, tools/setup what a machine needs for it.
.DEFAULT_GOAL := help
.PHONY: help demo test test-long bench fuzz lint format build python install clean
.NOTPARALLEL:
SHELL := /bin/bash

JOBS := $(shell nproc)
PREFIX ?= /usr/local
OPERATIONS ?= 1000000
# Operations per fuzz program under ASan and UBSan, where each costs about ten times as much.
SANITIZED_OPERATIONS ?= 50000
DEMO ?=
BENCH ?=

say = @printf '\n== %s\n' "$(1)"
# Configures quietly (a failure shows all of it), then builds: $(call cmake,directory,options,targets)
cmake = @mkdir -p build/$(1) && { cmake -S . -B build/$(1) -G Ninja $(2) >build/$(1)/configure.log 2>&1 \
  || { cat build/$(1)/configure.log; exit 1; }; } && cmake --build build/$(1) --parallel $(JOBS) $(3)
python = PYTHONPATH=build/python build/venv/bin/python
ctest = ctest --test-dir build/$(1) --output-on-failure --no-tests=error --parallel $(JOBS)

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: python ## a real language model generates text through kvc   DEMO='--prompt "…"' for its options
	$(call say,demo: SmolLM2-135M-Instruct, every key and value in a kvc cache)
	@$(python) examples/python/generate.py $(DEMO)

test: ## everything that CI runs
	@tools/setup test
	$(call say,test 1/5: build with warnings as errors)
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	$(call say,test 2/5: all tests)
	@$(call ctest,developer) -L short
	$(call say,test 3/5: the Python package and its tests)
	@tools/build_python build/developer
	@$(python) -m pytest bindings/python/tests
	$(call say,test 4/5: all tests under ASan and UBSan)
	$(call cmake,sanitize,-DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF -DKVC_SANITIZE=address$(comma)undefined \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKVC_SHORT_OPERATIONS=$(SANITIZED_OPERATIONS))
	@$(call ctest,sanitize) -L short
	$(call say,test 5/5: what uses threads under TSan)
	$(call cmake,threads,-DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF -DKVC_SANITIZE=thread \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKVC_SHORT_OPERATIONS=$(SANITIZED_OPERATIONS),--target thread_tests)
	@$(call ctest,threads) -L threads
	$(call say,test: everything passed)

test-long: ## the campaigns that take hours
	@tools/setup test
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	@$(call ctest,developer) -C Long -L long --verbose

fuzz: ## random operations against the oracle   OPERATIONS=1000000
	@tools/setup test
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	$(call say,fuzz: $(OPERATIONS) random operations per program)
	@set -e; for program in build/developer/bin/fuzz_*; do \
	  printf '\n-- %s\n' "$${program##*/}"; "$$program" --operations $(OPERATIONS); done

bench: ## measure: limits of this machine, then kvc against them   BENCH=… for its options
	@tools/setup bench
	$(call cmake,release,,--target kvc_bench)
	@build/release/bin/kvc_bench $(BENCH)

lint: ## include rules, layout, warnings of gcc and clang
	@tools/setup lint
	@tools/check_includes && tools/check_includes --self
	@tools/format --check
	$(call say,lint: warnings of gcc)
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	$(call say,lint: warnings of clang)
	$(call cmake,clang,-DKVC_DEVELOPER=ON -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)

format: ## lay out the C++ sources with clang-format
	@tools/format

build: ## libkvc, shared and static, in build/release
	@tools/setup build
	$(call cmake,release)

python: build ## the Python package, in build/python
	@tools/setup demo
	@tools/build_python build/release

install: build ## into PREFIX=/usr/local
	@cmake --install build/release --prefix "$(PREFIX)"

clean: ## forget build/ (what was fetched stays in the cache)
	@rm -rf build

comma := ,
