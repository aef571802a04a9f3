#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "abi.hpp"
#include "array.hpp"
#include "kvc/operators.h"
#include "model/attention.hpp"
#include "model/oracle.hpp"
#include "random.hpp"

/// A cache and the oracle, for tests of attention: passes with random keys and values, and the
/// comparison with double.
namespace support {

/// Everything that can change what attention does.
struct AttentionOptions {
  int32_t n_q_heads = 2, n_kv_heads = 2, head_dim_k = 64, head_dim_v = 64;
  uint32_t dtype_k = KVC_F32, dtype_v = KVC_F32;  // storage
  int32_t block_k = 0, block_v = 0, v_first = 0;
  bool rotated = false, interleaved = false, v_in_k = false;
  uint32_t dtype_in = KVC_F32;  // of the tensors that are put
  uint32_t dtype_q = KVC_F32, dtype_out = KVC_F32;
  int32_t reach = 0, memory = 0, chunk = 0, keep_first = 0;
  float scale = 0, softcap = 0;
  bool slopes = false, sinks = false, lse = false;
  bool rope = false, halves = false;
  bool shifts = false, shared = false, gaps = false, mixed = false, except = false, types = false;
  bool strided = false;
  bool bias = false, mask = false, weights = false;
  bool hidden_nan = false;  // every fifth token holds NaN, and bias or mask hides it from everyone
  int32_t padding = 0;
  std::string op;  // the operator that is bound; empty: none
  uint32_t op_modes = KVC_MODE_ALL;
  kvc_operator_desc op_desc = KVC_OPERATOR_DESC_INIT;
  std::string name;
};

/// The same with storage types and dimensions that go together, wherever two options do not.
AttentionOptions reconciled(AttentionOptions options);

/// Storage types by themselves and beside each other.
struct StorageOption {
  const char* name;
  void (*apply)(AttentionOptions&);
};
const std::vector<StorageOption>& storage_options();

class AttentionRig {
 public:
  AttentionRig(kvc_device* device, const AttentionOptions& options, int32_t capacity,
               int32_t max_batch, uint64_t seed);

  /// NaN in every cell; the cache is empty afterwards.
  void poison();
  /// Begins a pass and puts random keys and values.
  void open(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
            const std::vector<uint32_t>& flags = {});
  /// Attends with random queries and compares with double. The largest error, relative to the
  /// largest |v| that the row sees, in units of 1e-6.
  double attend_and_compare();
  /// kvc_get() and kvc_mask(), a textbook attention in double over them, and kvc_attention() again.
  void compare_textbook();
  void commit();
  void remove(int32_t sequence, int32_t begin, int32_t end);
  void copy(int32_t src, int32_t dst);

  AttentionOptions options;
  Random random;
  Cache cache;
  model::Oracle oracle;

 private:
  Array array(uint32_t dtype, const std::vector<int64_t>& shape);
  void put(Array& k, Array& v);
  void bind_rope();
  void bind_scales();
  void bind_operator(kvc_device* device);
  double dropout_factor(int32_t head, int32_t token, int32_t position, uint64_t dropout_seed) const;

  /// What a call adds, beside where its columns are.
  struct Extra {
    std::vector<Array> arrays;  // bias, mask and weights, as far as they are used
    kvc_attention_extra desc{};
    int32_t first_cell = 0, n_cells = 0;
    std::vector<std::map<int32_t, int32_t>> cell;  // of each sequence: position to cell
    model::Bias bias;
  };
  Extra make_extra();
  void compare_weights(const Array& weights, const Extra& extra, const model::AttentionResult& wanted);
};

/// A device of one thread that all tests of a program share.
kvc_device* shared_device();

}  // namespace support
