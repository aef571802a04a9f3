#pragma once
#include "tests/bench/cuda/roofs.hpp"

/// One function per subject; each measures its figures and reports them.
namespace bench_cuda {

void decode_cases(const Roofs& roofs);
void prefill_cases(const Roofs& roofs);
void storage_cases(const Roofs& roofs);
void shared_cases(const Roofs& roofs);
void put_cases(const Roofs& roofs);
void state_cases(const Roofs& roofs);
void host_cases(const Roofs& roofs);

}  // namespace bench_cuda
