# The front door. It holds no build logic: CMakeLists.txt describes the build, tools/setup what a machine needs for it.
.DEFAULT_GOAL := help
.PHONY: help build

JOBS := $(shell nproc 2>/dev/null || echo 2)

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## libkvc, shared and static, in build/release
	@cmake -S . -B build/release -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@cmake --build build/release --parallel $(JOBS)
