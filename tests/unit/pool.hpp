#pragma once
#include <gtest/gtest.h>

#include <memory>

#include "core/base/thread_pool.hpp"

/// A pool of threads that ends with its scope.
struct PoolDeleter {
  void operator()(kvc::ThreadPool* pool) const { kvc::ThreadPool::destroy(pool); }
};
using PoolPointer = std::unique_ptr<kvc::ThreadPool, PoolDeleter>;

inline PoolPointer make_pool(int32_t n_threads) {
  kvc::ThreadPool* pool = nullptr;
  EXPECT_EQ(kvc::ThreadPool::create(n_threads, &pool), kvc::Status::ok);
  return PoolPointer(pool);
}
