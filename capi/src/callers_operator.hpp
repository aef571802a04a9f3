#pragma once
#include <memory>

#include "core/attention/operator.hpp"
#include "core/attention/registry.hpp"
#include "core/device.hpp"
#include "kvc/operators.h"

namespace kvc::capi {

/// An operator of a caller's functions, as the core calls it. Its end releases what the caller passed.
struct CallersOperator : AttentionOperator {
  ~CallersOperator();

  kvc_operator_functions functions = {};
  void* user = nullptr;
  DeviceInfo device;
  static constexpr size_t most_names = 16;
  char names[most_names * OperatorRegistry::name_capacity] = {};  // the name and its aliases, each with its terminator
  const char* alias_list[most_names] = {};                        // ends with null
  bool is_registered = false;  // only then there is something to release
};

/// What kvc_operator_register() takes.
Status make_callers_operator(const char* names, const kvc_operator_info* info,
                             const kvc_operator_functions* functions, void* user,
                             const DeviceInfo& device, std::shared_ptr<CallersOperator>* out);

}  // namespace kvc::capi
