#pragma once
#include <functional>
#include <string>
#include <vector>

#include "abi.hpp"

namespace support {

/// Calls that must fail: each with its status and a message that keeps to the rules (message_rules.hpp), and leaves digest and
/// check alone.
class BadInput {
 public:
  /// `cache` is watched; null: only status and message.
  explicit BadInput(const kvc_cache* cache) : cache_(cache) {}

  /// One call. `what` names it.
  void expect(kvc_status expected, const std::string& what, const std::function<kvc_status()>& call);

  int32_t calls() const { return calls_; }

 private:
  const kvc_cache* cache_;
  int32_t calls_ = 0;
};

/// A descriptor with room behind it, as a program built against a newer kvc would pass.
template <class Descriptor>
struct Longer {
  Descriptor known;
  unsigned char tail[32];
};

/// Calls with every wrong struct_size, and with a tail that the library does not know.
template <class Descriptor>
void expect_struct_sizes(BadInput& bad, const std::string& what, const Descriptor& good,
                         const std::function<kvc_status(const Descriptor*)>& call) {
  const auto size = static_cast<uint32_t>(sizeof good);
  for (const uint32_t wrong : {0u, 1u, 4u, 7u, size - 1, size - 4, UINT32_MAX, 1u << 31}) {
    Longer<Descriptor> desc{};
    desc.known = good;
    desc.known.struct_size = wrong;
    bad.expect(KVC_E_INVALID_ARGUMENT, what + ": struct_size " + std::to_string(wrong),
               [&] { return call(&desc.known); });
  }
  for (const size_t at : {size_t{0}, size_t{31}}) {
    Longer<Descriptor> desc{};
    desc.known = good;
    desc.known.struct_size = size + 32;
    desc.tail[at] = 1;
    bad.expect(KVC_E_VERSION, what + ": a field from the future", [&] { return call(&desc.known); });
  }
  Longer<Descriptor> desc{};
  desc.known = good;
  desc.known.struct_size = size + 32;
  bad.expect(KVC_OK, what + ": fields from the future that are zero",
             [&] { return call(&desc.known); });
}

/// A way to spoil a tensor, and what the call then says.
struct Fault {
  enum Use { read, written, broadcast };

  std::string what;
  kvc_status expected;
  std::function<void(kvc_tensor&)> spoil;
};

/// What can be wrong with a tensor that is good: shape, strides, type, device, flags, memory. The
/// leading extents of a broadcast one must not fit where its last ones belong.
std::vector<Fault> faults(const kvc_tensor& good, Fault::Use use);

/// Calls with every fault of one tensor, and with none of its data. Of elements below four bytes 2^61 fit the address range, and
/// more places are aligned.
void expect_faults(BadInput& bad, const std::string& name, kvc_tensor& tensor, bool written,
                   const std::function<kvc_status()>& call);

/// The status is the one that is wanted, and the message of a failure holds the word.
void expect(kvc_status wanted, const char* word, kvc_status got);

/// The message of the last failure holds each of the words.
void expect_words(const std::string& what, const std::vector<std::string>& words);

/// A small cache with something in it, tensors that fit it, and a batch that it would take.
class Specimen {
 public:
  explicit Specimen(kvc_device* device, uint64_t flags = 0, bool rope = false);

  /// Opens a pass of two tokens (sequences 0 and 1) and puts the first `n_layers` layers.
  void open(int32_t n_layers);
  /// Makes bias, mask and weights fit the open pass; open() does.
  void shape_extras();
  /// Puts one token at the next position of a sequence and commits it.
  void append(int32_t sequence);

  static constexpr int32_t n_layers = 2, kv_heads = 2, dk = 4, dv = 3, q_heads = 4;
  static constexpr int32_t max_sequences = 3, capacity = 8, max_batch = 4, cells = 12;

  Cache cache;
  float k_data[max_batch * kv_heads * dk] = {};
  float v_data[max_batch * kv_heads * dv] = {};
  float q_data[max_batch * q_heads * dk] = {};
  float out_data[max_batch * q_heads * dv] = {};
  float lse_data[max_batch * q_heads] = {};
  float bias_data[q_heads * 2 * cells] = {};
  float weights_data[q_heads * 2 * cells] = {};
  uint8_t mask_data[q_heads * 2 * cells] = {};
  kvc_tensor k{}, v{}, q{}, out{}, lse{};  // for a pass of two tokens
  kvc_tensor bias{}, mask{}, weights{};    // for the pass that is open
};

}  // namespace support
