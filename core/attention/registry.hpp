#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/attention/operator.hpp"
#include "core/base/status.hpp"

namespace kvc {

class Device;

/// The operators of a device by name: the built-in ones, and those of callers. Names may come and go while layers are bound to
/// what they named. Threads: any.
class OperatorRegistry {
 public:
  static constexpr size_t name_capacity = 32;  // its terminator included
  struct Entry {
    char name[name_capacity];
    std::shared_ptr<const AttentionOperator> op;
  };

  /// Takes memory for the names (std::bad_alloc).
  explicit OperatorRegistry(const std::shared_ptr<const Device>& device);

  /// Names in order of registration, an alias behind its operator. NOT_FOUND behind the last.
  Status at(int32_t index, Entry* out) const;
  Status find(const char* name, Entry* out) const;

  /// Adds an operator under its name and aliases. INVALID_ARGUMENT where one is taken, unless it may be replaced.
  Status add(const std::shared_ptr<const AttentionOperator>& op, bool replace);
  /// Takes an operator of a caller away, with all of its names: those of a built-in operator are that one's again. `out` keeps it
  /// until the caller lets it go.
  Status remove(const char* name, std::shared_ptr<const AttentionOperator>* out);

  const AttentionOperator* built_in(int32_t index) const;

 private:
  Status not_found(const char* name) const;
  const AttentionOperator* built_in(const char* name) const;

  const std::shared_ptr<const Device> device_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace kvc
