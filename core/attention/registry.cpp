#include "core/attention/registry.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/device.hpp"

namespace kvc {
namespace {

/// Calls visit(name) for the operator's name and its aliases.
template <class Visit>
void for_each_name(const AttentionOperator& op, Visit visit) {
  visit(op.name);
  for (const char* const* alias = op.aliases; alias != nullptr && *alias != nullptr; ++alias)
    visit(*alias);
}

/// The device's own operators live as long as the library: nothing counts their users.
std::shared_ptr<const AttentionOperator> unowned(const AttentionOperator* op) {
  return {std::shared_ptr<void>(), op};
}

OperatorRegistry::Entry entry_of(const char* name, const std::shared_ptr<const AttentionOperator>& op) {
  OperatorRegistry::Entry entry = {};
  std::snprintf(entry.name, sizeof entry.name, "%s", name);
  entry.op = op;
  return entry;
}

auto named(auto& entries, const char* name) {
  return std::find_if(entries.begin(), entries.end(), [name](const OperatorRegistry::Entry& entry) {
    return std::strcmp(entry.name, name) == 0;
  });
}

}  // namespace

OperatorRegistry::OperatorRegistry(const std::shared_ptr<const Device>& device) : device_(device) {
  for (int32_t i = 0; const AttentionOperator* op = built_in(i); ++i) {
    for_each_name(*op, [&](const char* name) { entries_.push_back(entry_of(name, unowned(op))); });
  }
}

const AttentionOperator* OperatorRegistry::built_in(int32_t index) const {
  return device_->attention_operator(index);
}

const AttentionOperator* OperatorRegistry::built_in(const char* name) const {
  for (int32_t i = 0; const AttentionOperator* op = built_in(i); ++i) {
    bool has_name = false;
    for_each_name(*op, [&](const char* own) { has_name |= std::strcmp(own, name) == 0; });
    if (has_name) return op;
  }
  return nullptr;
}

Status OperatorRegistry::at(int32_t index, Entry* out) const {
  const std::lock_guard lock(mutex_);
  const auto n = static_cast<int32_t>(entries_.size());
  if (index >= n)
    return fail(Status::not_found, "i %d is past the last of the %d names of operators", index, n);
  *out = entries_[static_cast<size_t>(index)];
  return Status::ok;
}

/// The caller holds the lock.
Status OperatorRegistry::not_found(const char* name) const {
  char list[message_capacity] = {};
  size_t used = 0;
  for (const Entry& entry : entries_) {
    const int length = std::snprintf(list + used, sizeof list - used, "%s%s", used > 0 ? ", " : "",
                                     entry.name);
    used = std::min(used + static_cast<size_t>(length), sizeof list - 1);
  }
  return fail(Status::not_found, "the device has no operator %.40s; it has %s", name, list);
}

Status OperatorRegistry::find(const char* name, Entry* out) const {
  const std::lock_guard lock(mutex_);
  const auto found = named(entries_, name);
  if (found == entries_.end()) return not_found(name);
  *out = *found;
  return Status::ok;
}

Status OperatorRegistry::add(const std::shared_ptr<const AttentionOperator>& op, bool replace) {
  std::vector<Entry> entries;  // outlives the lock: what it lets go of may call its owner
  const std::lock_guard lock(mutex_);
  entries = entries_;
  Status status = Status::ok;
  for_each_name(*op, [&](const char* name) {
    const auto taken = named(entries, name);
    if (taken == entries.end()) {
      entries.push_back(entry_of(name, op));
    } else if (replace && taken->op != op) {
      taken->op = op;
    } else if (status == Status::ok) {
      status = fail(Status::invalid_argument,
                    "the name %s is taken: choose another one, or pass KVC_OPERATOR_REPLACE", name);
    }
  });
  if (status != Status::ok) return status;
  entries_.swap(entries);
  return Status::ok;
}

Status OperatorRegistry::remove(const char* name, std::shared_ptr<const AttentionOperator>* out) {
  const std::lock_guard lock(mutex_);
  const auto found = named(entries_, name);
  if (found == entries_.end()) return not_found(name);
  const std::shared_ptr<const AttentionOperator> op = found->op;
  if (!op->is_callers)
    return fail(Status::not_supported, "the operator %s is built in: it stays", op->name);
  *out = op;
  std::erase_if(entries_, [&](Entry& entry) {
    if (entry.op != op) return false;
    entry.op = unowned(built_in(entry.name));
    return entry.op == nullptr;
  });
  return Status::ok;
}

}  // namespace kvc
