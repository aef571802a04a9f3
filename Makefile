# The front door. It holds no build logic: CMakeLists.txt describes the build, tools/setup what a machine needs for it.
.DEFAULT_GOAL := help
.PHONY: help demo demo-speech demo-windows demo-perplexity test test-long test-aarch64 smoke-aarch64 test-cuda test-frameworks bench bench-cuda bench-peers cuda-toolkit pictures fuzz campaign coverage lint format build python install uninstall check-places clean
.NOTPARALLEL:
SHELL := /bin/bash

JOBS := $(shell nproc)
ifeq ($(origin prefix),command line) # GNU's spelling
PREFIX := $(prefix)
endif
PREFIX ?= /usr/local
OPERATIONS ?= 1000000
# Operations per fuzz program under ASan and UBSan, where each costs about ten times as much.
SANITIZED_OPERATIONS ?= 50000
# The same under an emulator.
EMULATED_OPERATIONS ?= 200000
# How long each libFuzzer target runs; make test-long takes hours.
FUZZ_SECONDS ?= 20
LONG_FUZZ_SECONDS ?= 10800
DEMO ?=
BENCH ?=
PEERS ?=

# Stops unless a variable is an absolute path: $(call absolute,variable)
absolute = $(if $(filter /%,$(firstword $($(1)))),,$(error $(1) is "$($(1))": it must be an absolute path, as in $(1)=$$HOME/kvc))
say = @printf '\n== %s\n' "$(1)"
# Configures, then builds: $(call cmake,directory,options,targets)
cmake = @tools/configure build/$(1) $(2) && cmake --build build/$(1) --parallel $(JOBS) $(3)
# What root builds and records here belongs to the owner of the tree, who may want to build again.
give_back = @[ "$$(id -u)" != 0 ] || chown -Rh --reference=Makefile build
# Builds with sanitizers: $(call sanitized,directory,sanitizers,targets)
sanitized = $(call cmake,$(1),-DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF -DKVC_SANITIZE=$(2) \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKVC_SHORT_OPERATIONS=$(SANITIZED_OPERATIONS),$(3))
# All short tests of another kind of build: $(call optimised,build type,link-time optimisation)
optimised = $(call cmake,optimised-$(1)-$(2),-DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF -DCMAKE_BUILD_TYPE=$(1) \
  -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=$(2)) && $(call ctest,optimised-$(1)-$(2)) -L short
python = PYTHONPATH=build/python build/venv/bin/python
# The library for AArch64 and these of its tests: $(call aarch64,targets)
aarch64 = $(call cmake,aarch64,-DCMAKE_TOOLCHAIN_FILE=tools/aarch64.cmake -DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF \
  -DKVC_SHORT_OPERATIONS=$(EMULATED_OPERATIONS),$(1))
ctest = ctest --test-dir build/$(1) --output-on-failure --no-tests=error --parallel $(JOBS)

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: python ## a real language model generates text through kvc   DEMO='--prompt "…"' for its options
	$(call say,demo: SmolLM2-135M-Instruct, every key and value in a kvc cache)
	@$(python) examples/python/generate.py $(DEMO)

demo-speech: python ## a speech model writes down recordings through kvc   DEMO='--verify FILE.wav' for its options
	@tools/setup speech
	$(call say,demo-speech: Whisper tiny.en, keys and values of text and sound in one kvc cache)
	@$(python) examples/python/transcribe.py $(DEMO)

demo-windows: python ## a model of windows beside full layers answers through kvc   DEMO='--verify --text FILE' for its options
	$(call say,demo-windows: Gemma 3 270M, two caches that move as one)
	@$(python) examples/python/windows.py $(DEMO)

demo-perplexity: python ## what each storage type costs a model: perplexity, memory, speed   DEMO='--ggml --types f16,q8_0' for its options
	$(if $(filter --ggml,$(DEMO)),@tools/setup ggml)
	$(call say,demo-perplexity: SmolLM2-135M-Instruct reads a text from caches of every storage type)
	@PYTHONPATH=build/python build/$(if $(filter --ggml,$(DEMO)),venv-ggml,venv)/bin/python examples/python/perplexity.py $(DEMO)

test: ## everything that CI runs
	@tools/setup test
	$(call say,test 1/7: build with warnings as errors)
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	$(call say,test 2/7: all tests)
	@$(call ctest,developer) -L short
	@awk '/ Test: / { ours = / fuzz_(operations|encoder|recurrent|wrapper)$$/ } ours && /^seed /, /^smallest/' \
	  build/developer/Testing/Temporary/LastTest.log
	$(call say,test 3/7: the Python package and its tests)
	@tools/build_python build/developer
	@KVC_ALL_TESTS=1 $(python) -m pytest bindings/python/tests --ignore bindings/python/tests/frameworks
	@$(python) -m pytest -q -p no:cacheprovider tests/pictures
	$(call say,test 4/7: random operations$(comma) bad input and kernels under ASan and UBSan)
	$(call sanitized,sanitize,address$(comma)undefined,--target sanitized_tests)
	@$(call ctest,sanitize) -L sanitized
	$(call say,test 5/7: what uses threads under TSan)
	$(call sanitized,threads,thread,--target thread_tests)
	@$(call ctest,threads) -L threads
	$(call say,test 6/7: libFuzzer on operations and descriptors)
	@if tools/setup has libclang-rt-dev; then $(MAKE) --no-print-directory campaign; \
	  else echo "libFuzzer: not run, clang is missing (Debian: apt-get install clang libclang-rt-dev)"; fi
	$(call say,test 7/7: AArch64 under qemu)
	@if tools/setup has g++-aarch64-linux-gnu && tools/setup has qemu-user; then $(MAKE) --no-print-directory smoke-aarch64; \
	  else echo "AArch64: not run, tools are missing (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)"; fi
	$(call say,test: everything passed)

test-long: lint ## lint, and the campaigns that take hours
	@tools/setup test
	$(call cmake,developer,-DKVC_DEVELOPER=ON,--target all cuda_planted_programs)
	@$(call ctest,developer) -C Long -L long --verbose
	$(call say,test-long: all tests under ASan and UBSan)
	$(call sanitized,sanitize,address$(comma)undefined)
	@$(call ctest,sanitize) -L short
	$(call say,test-long: all tests of a small library)
	$(call optimised,MinSizeRel,OFF)
	$(call say,test-long: all tests with link-time optimisation)
	$(call optimised,Release,ON)
	$(call say,test-long: all tests of a small library with link-time optimisation)
	$(call optimised,MinSizeRel,ON)
	$(call say,test-long: all tests for AArch64 under qemu)
	@$(MAKE) --no-print-directory test-aarch64
	@$(MAKE) --no-print-directory campaign FUZZ_SECONDS=$(LONG_FUZZ_SECONDS)

test-aarch64: ## the library and its tests for AArch64, under qemu
	@tools/setup aarch64
	$(call cmake,release,,--target kvc)
	$(call aarch64)
	@tests/callers/emulated build/release build/aarch64
	@$(call ctest,aarch64) -L short

smoke-aarch64: # needs build/developer
	$(call aarch64,--target smoke_tests)
	@tests/callers/emulated build/developer build/aarch64
	@$(call ctest,aarch64) -L smoke

test-cuda: ## the backend for CUDA on this machine's GPU
	@tools/setup test
	$(call cmake,developer,-DKVC_DEVELOPER=ON -DKVC_CUDA=ON)
	@$(call ctest,developer) -C Gpu -L gpu --verbose

test-frameworks: ## DLPack with PyTorch and JAX, and models of transformers over kvc (fetches gigabytes)
	@tools/setup test
	@tools/setup frameworks
	$(call cmake,developer,-DKVC_DEVELOPER=ON,--target kvc)
	@tools/build_python build/developer
	@PYTHONPATH=build/python build/venv-frameworks/bin/python -m pytest bindings/python/tests/frameworks

fuzz: ## random operations against the oracle   OPERATIONS=1000000
	@tools/setup test
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	$(call say,fuzz: $(OPERATIONS) random operations per program)
	@set -e; for program in build/developer/bin/fuzz_*; do \
	  printf '\n-- %s\n' "$${program##*/}"; "$$program" --operations $(OPERATIONS); done

campaign: ## libFuzzer, with clang   FUZZ_SECONDS=20 for each target
	$(call cmake,libfuzzer,-DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
	  -DKVC_SANITIZE=address$(comma)undefined$(comma)fuzzer-no-link -DKVC_FUZZ_SECONDS=$(FUZZ_SECONDS),--target fuzz_campaigns)
	@$(call ctest,libfuzzer) -L campaign --verbose

coverage: ## statements and branches of core/ and capi/src that the tests execute; fails below gcovr.cfg's limits
	@tools/setup test
	$(call cmake,coverage,-DKVC_DEVELOPER=ON -DKVC_PLANT_BUGS=OFF -DKVC_COVERAGE=ON -DKVC_SHORT_OPERATIONS=100000)
	@find build/coverage -name '*.gcda' -delete
	@$(call ctest,coverage) -L short -R '^(unit|conformance|fuzz|replay)_' -E handle_table
	@build/venv/bin/gcovr build/coverage

bench: ## measure: limits of this machine, then kvc against them   BENCH=… for its options
	@tools/setup bench
	$(call cmake,release,,--target kvc_bench)
	@build/release/bin/kvc_bench $(BENCH)

bench-cuda: ## measure the backend for CUDA on this machine's GPU: its limits, then kvc against them   BENCH=… for its options
	@tools/setup bench
	$(call cmake,release,-DKVC_CUDA=ON,--target kvc kvc_cuda kvc_bench_cuda)
	@build/release/bin/kvc_bench_cuda $(BENCH)

bench-peers: python ## measure kvc beside OpenVINO, PyTorch, ONNX Runtime, llama.cpp (fetches gigabytes)   PEERS=… for its options
	@tools/setup peers
	$(call cmake,release,,--target kvc_bench)
	@PYTHONPATH=build/python build/venv-peers/bin/python tests/bench/peers $(PEERS)

cuda-toolkit: ## NVIDIA's compiler as pinned wheels, outside the tree, for builds with KVC_CUDA (fetches 100 MB)
	@tools/setup cuda

pictures: ## docs/pictures, from the recorded measurements and two examples
	@tools/setup test
	$(call cmake,release,,--target kvc)
	@tools/build_python build/release
	@build/venv/bin/python tools/draw_roofline docs/PERFORMANCE.md docs/pictures/roofline.svg
	@$(python) -m kvc inspect -o docs/pictures/cache.svg examples/python/life_of_a_cache.py
	@$(python) -m kvc inspect -o docs/pictures/hybrid.svg examples/python/life_of_a_hybrid.py

lint: ## include rules, layout, warnings of gcc and clang, clang-tidy, the ABI against its baseline
	@tools/setup lint
	@tools/check_includes && tools/check_includes --self
	@tools/format --check
	$(call say,lint: warnings of gcc)
	$(call cmake,developer,-DKVC_DEVELOPER=ON)
	$(call say,lint: warnings of clang)
	$(call cmake,clang,-DKVC_DEVELOPER=ON -DKVC_CUDA=OFF -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
	$(call say,lint: clang-tidy)
	@tools/tidy build/clang
	$(call say,lint: the ABI against its baseline)
	@tests/abi/diff build/developer/lib/libkvc.so

format: ## lay out the C++ sources with clang-format
	@tools/format

build: ## libkvc, shared and static, in build/release
	@tools/setup build
	$(call cmake,release)
	$(give_back)

python: ## the Python package, in build/python
	@tools/setup demo
	$(call cmake,release,,--target kvc)
	@tools/build_python build/release

install: check-places build ## into PREFIX=/usr/local
	@cmake --install build/release --prefix "$(PREFIX)"
	$(give_back)

uninstall: check-places ## remove what was installed into PREFIX=/usr/local
	@pkgconfig/uninstall build/release "$(PREFIX)"

check-places: # a shell may leave the ~ of PREFIX=~/kvc as it is
	$(call absolute,PREFIX)
	$(if $(DESTDIR),$(call absolute,DESTDIR))

clean: ## forget build/ (what was fetched stays in the cache)
	@rm -rf build

comma := ,
