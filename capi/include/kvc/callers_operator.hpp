// kvc/callers_operator.hpp: attention operators of your own. Part of <kvc/kvc.hpp>; operators.h is the manual.
//
//   class Mine : public kvc::CallersOperator {
//     void forward_native(const kvc::OperatorCall &call) const override {
//       std::vector<float> seen(call->n_tokens * call.columns());
//       call.mask({seen, {call->n_tokens, call.columns()}});  // 0 or minus infinity
//       …                                                     // from *call->q, *call->k and *call->v to *call->out
//     }
//   };
//   kvc::OperatorInfo info;
//   info.modes = KVC_MODE_ALL, info.features = KVC_FEATURE_WINDOW | KVC_FEATURE_GROUPED;  // what it lacks is refused
//   kvc::operator_register(device, "mine", info, std::make_shared<Mine>());
//   const kvc::Operator mine(device, "mine");
//   cache.bind_operator(0, n_layers, KVC_MODE_ALL, &mine);
#ifndef KVC_CALLERS_OPERATOR_HPP
#define KVC_CALLERS_OPERATOR_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base.hpp"
#include "device.hpp"
#include "operators.h"

namespace kvc {
inline namespace api_0_2 {

// What an operator has. `devices` 0: that on which it is registered; `storage` and the other sets of types 0: f32.
struct OperatorInfo : kvc_operator_info {
  OperatorInfo() noexcept : kvc_operator_info(KVC_OPERATOR_INFO_INIT) {}
};

// One call, valid until the function returns.
class OperatorCall {
 public:
  explicit OperatorCall(const kvc_operator_call &call) noexcept : call_(call) {}

  const kvc_operator_call *operator->() const noexcept { return &call_; }
  const kvc_operator_call &operator*() const noexcept { return call_; }

  // Of k, v, masks, biases and weights.
  std::int32_t columns() const noexcept { return static_cast<std::int32_t>(call_.k->shape[call_.batch > 0 ? 1 : 0]); }
  // What the queries see, [n_tokens, columns], rows: [batch, 1, q_len, columns].
  void mask(Tensor into) const { check(kvc_call_mask(&call_, into.get())); }
  // The positions of the columns for one sequence; -1: no query of it sees the cell.
  std::vector<std::int32_t> positions(std::int32_t sequence) const {
    std::vector<std::int32_t> found(static_cast<std::size_t>(columns()));
    positions(sequence, columns(), found.data());
    return found;
  }
  // The same without an allocation, of the first `capacity` columns.
  void positions(std::int32_t sequence, std::int32_t capacity, std::int32_t *position) const {
    check(kvc_call_positions(&call_, sequence, capacity, position));
  }

 private:
  const kvc_operator_call &call_;
};

// An operator of yours. Its functions run on the thread that called attention(), for several caches on several threads at once.
// They may not call the cache (Busy).
//
// An exception becomes the error of the call that runs the function: an Error keeps its status, std::bad_alloc is
// OutOfMemory, any other is InvalidArgument. The cache is then as it was; only DeviceFailure and InternalError poison it. The
// message names the operator. Where the call was made through these headers, it ends in what the exception said (255 bytes).
class CallersOperator {
 public:
  virtual ~CallersOperator() = default;

  // Throws NotSupported, with the reason, if it cannot do what is needed. What OperatorInfo says was compared before.
  virtual void supports(const kvc_operator_needs &) const {}
  // Attends: writes *call->out, and what else is not null.
  virtual void forward_native(const OperatorCall &call) const = 0;
  // In its place on KVC_CPU, and on KVC_CUDA with tensors there.
  virtual void forward_cpu(const OperatorCall &call) const { forward_native(call); }
  virtual void forward_cuda(const OperatorCall &call) const { forward_native(call); }
};

namespace detail {

// What an exception of a caller's operator said in the last call on this thread.
inline char (&thrown() noexcept)[256] {
  static thread_local char text[256] = "";
  return text;
}

// Throws if a call failed that may run a caller's operator.
template <typename Call>
void check_call(const Call &call) {
  thrown()[0] = '\0';
  const kvc_status status = call();
  if (status == KVC_OK) return;
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  raise(status, thrown()[0] == '\0' ? message : std::string(message) + ": " + thrown());
}

// The status of what `run` throws. C sees no exception.
template <typename Run>
kvc_status status_of(const Run &run) noexcept {
  const auto say = [](const char *what) {
    const std::size_t length = std::min(std::char_traits<char>::length(what), sizeof thrown() - 1);
    std::copy_n(what, length, thrown());
    thrown()[length] = '\0';
  };
  try {
    run();
    thrown()[0] = '\0';  // what a call that it made itself left there
    return KVC_OK;
  } catch (const Error &error) {
    say(error.message().c_str());
    return error.status();
  } catch (const std::bad_alloc &error) {
    say(error.what());
    return KVC_E_OUT_OF_MEMORY;
  } catch (const std::exception &error) {
    say(error.what());
    return KVC_E_INVALID_ARGUMENT;
  } catch (...) {
    say("an exception that is no std::exception");
    return KVC_E_INVALID_ARGUMENT;
  }
}

// The table of functions of a CallersOperator. `user` is a shared pointer to it on the heap.
struct CallersFunctions {
  using Held = std::shared_ptr<const CallersOperator>;

  static const CallersOperator &of(void *user) noexcept { return **static_cast<const Held *>(user); }
  static kvc_status supports(void *user, const kvc_operator_needs *needs) noexcept {
    return status_of([&] { of(user).supports(*needs); });
  }
  static kvc_status forward_native(void *user, const kvc_operator_call *call) noexcept {
    return status_of([&] { of(user).forward_native(OperatorCall(*call)); });
  }
  static kvc_status forward_cpu(void *user, const kvc_operator_call *call) noexcept {
    return status_of([&] { of(user).forward_cpu(OperatorCall(*call)); });
  }
  static kvc_status forward_cuda(void *user, const kvc_operator_call *call) noexcept {
    return status_of([&] { of(user).forward_cuda(OperatorCall(*call)); });
  }
  static void release(void *user) noexcept { delete static_cast<const Held *>(user); }
};

}  // namespace detail

// Adds an operator of yours to a device: "mine", or "mine,alias,another". flags: KVC_OPERATOR_REPLACE. The device, and whatever
// is bound to it, keep `op` for as long as they need it; the last call that lets go of it destroys it, unless you keep it too.
inline void operator_register(const Device &device, const char *names, const OperatorInfo &info,
                              std::shared_ptr<const CallersOperator> op, std::uint32_t flags = 0) {
  if (op == nullptr) raise(KVC_E_INVALID_ARGUMENT, "op is null");
  using Functions = detail::CallersFunctions;
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.supports = Functions::supports;
  functions.forward_native = Functions::forward_native;
  functions.forward_cpu = Functions::forward_cpu;
  functions.forward_cuda = Functions::forward_cuda;
  functions.release = Functions::release;
  auto user = std::make_unique<Functions::Held>(std::move(op));
  check(kvc_operator_register(device.handle(), names, flags, &info, &functions, user.get()));
  static_cast<void>(user.release());  // from now on the library releases it
}

// Takes it away, with all of its names; those of a built-in operator name that one again. Layers and operators that exist keep it.
inline void operator_unregister(const Device &device, const char *name) {
  check(kvc_operator_unregister(device.handle(), name));
}

}  // namespace api_0_2
}  // namespace kvc

#endif
