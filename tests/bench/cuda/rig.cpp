#include "tests/bench/cuda/rig.hpp"

#include <kvc/operators.h>
#include <kvc/storage.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "core/base/half.hpp"

namespace bench_cuda {

namespace runtime = kvc::cuda::runtime;

namespace {

/// Rows of K and V come from a table at an offset that differs from pass to pass and from layer to layer.
constexpr int32_t spare_rows = 509;

/// Cells that the cache reserves for a sequence at a time.
constexpr int32_t block_cells = 32;

uint16_t stored(float x, uint32_t dtype) {
  return dtype == KVC_F16 ? kvc::f32_to_f16(x) : kvc::f32_to_bf16(x);
}
float loaded(uint16_t x, uint32_t dtype) {
  return dtype == KVC_F16 ? kvc::f16_to_f32(x) : kvc::bf16_to_f32(x);
}

/// Of many, some are drawn and repeated, at a distance that no row and no tile has.
std::vector<uint16_t> normal_numbers(std::mt19937& random, size_t n, uint32_t dtype) {
  constexpr size_t drawn = (size_t{1} << 20) - 3;
  std::normal_distribution<float> normal;
  std::vector<uint16_t> made(n);
  for (size_t i = 0; i < n; ++i)
    made[i] = i < drawn ? stored(normal(random), dtype) : made[i - drawn];
  return made;
}

kvc_device* open_device(const char* name) {
  kvc_device* device = nullptr;
  gpu::must(kvc_device_open(name, nullptr, nullptr, &device), name);
  return device;
}

}  // namespace

Setup Setup::scaled() const {
  Setup s = *this;
  if (!options.tiny) return s;
  s.n_q_heads = std::max(1, 2 * n_q_heads / n_kv_heads);
  s.n_kv_heads = 2;
  s.sequences = std::min(sequences, 3);
  s.context = context == 0 ? 0 : context < 4096 ? 32 : 64;
  s.tokens = tokens == 1 ? 1 : std::min(tokens, 24);
  s.least_bytes = 0;
  return s;
}

double Setup::bytes_seen() const {
  kvc_storage_info info = KVC_STORAGE_INFO_INIT;
  gpu::must(kvc_storage_query(dtype, head_dim, 0, &info), "storage");
  const double cells = is_shared ? context + sequences * tokens
                                 : static_cast<double>(sequences) * (context + tokens);
  return 2 * cells * n_kv_heads * static_cast<double>(info.bytes_per_row);
}

double Setup::operations() const {
  const double n = tokens, later = sees_later ? n * n : n * (n + 1) / 2;
  return 4.0 * sequences * (n * context + later) * n_q_heads * head_dim;
}

Rig::Rig(const Setup& setup, const Roofs& roofs)
    : setup_(setup.scaled()),
      max_batch_(std::max(options.tiny ? 128 : 2048, setup_.sequences * setup_.tokens)) {
  const double wanted = std::max(static_cast<double>(roofs.bytes_beyond_cache()), setup.least_bytes);
  const double layers = std::ceil(wanted / setup_.bytes_seen());
  layers_ = options.tiny ? 2 : static_cast<int32_t>(std::clamp(layers, 2.0, 128.0));
  gpu_ = create("cuda:0", layers_);
  cpu_ = create("cpu", 1);
  if (setup_.runtime_dtype != 0) bind_operator();
  make_inputs();
  fill();
  check_runs();
  expect();
}

Rig::~Rig() {
  gpu::must(kvc_cache_destroy(cpu_), "destroy");
  gpu::must(kvc_cache_destroy(gpu_), "destroy");
  gpu::destroy_stream(stream_);
}

kvc_cache* Rig::create(const char* name, int32_t layers) {
  kvc_device* const device = open_device(name);
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  desc.n_layers = layers;
  desc.n_kv_heads = setup_.n_kv_heads;
  desc.max_q_heads = setup_.n_q_heads;
  desc.head_dim_k = desc.head_dim_v = setup_.head_dim;
  desc.dtype_k = desc.dtype_v = setup_.dtype;
  desc.max_sequences = setup_.sequences + (setup_.is_scattered() ? 1 : 0);
  desc.capacity = setup_.context + setup_.tokens;
  if (setup_.is_scattered()) {
    const int32_t passes_per_block = block_cells / setup_.sequences;
    desc.cells = desc.capacity = block_cells * (setup_.context / passes_per_block + 2);
  }
  if (setup_.is_shared) desc.cells = setup_.context + setup_.sequences * setup_.tokens;
  desc.max_batch = max_batch_;
  kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
  kvc_cache* cache = nullptr;
  gpu::must(kvc_cache_create(device, &desc, &causal, &cache), "create");
  gpu::must(kvc_device_close(device), "close");
  kvc_attention_desc attention = KVC_ATTENTION_DESC_INIT;
  attention.n_q_heads = setup_.n_q_heads;
  gpu::must(kvc_bind_attention(cache, 0, layers, &attention, nullptr, nullptr), "bind");
  return cache;
}

void Rig::bind_operator() {
  kvc_device* const device = open_device("cuda:0");
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.runtime_dtype = setup_.runtime_dtype;
  kvc_operator* op = nullptr;
  gpu::must(kvc_operator_create(device, "flash", &desc, &op), "operator");
  gpu::must(kvc_bind_operator(gpu_, 0, layers_, KVC_MODE_PREFILL, op), "bind_operator");
  gpu::must(kvc_operator_destroy(op), "destroy an operator");
  gpu::must(kvc_device_close(device), "close");
}

void Rig::make_inputs() {
  const auto numbers = [&](int32_t n_rows, int32_t n_heads, uint32_t dtype,
                           std::unique_ptr<gpu::Memory>* there) {
    const auto n = static_cast<size_t>(n_rows) * static_cast<size_t>(n_heads * setup_.head_dim);
    Numbers made = normal_numbers(random_, n, dtype);
    *there = std::make_unique<gpu::Memory>(n * sizeof made[0]);
    (*there)->write(made.data(), (*there)->bytes());
    return made;
  };
  k_ = numbers(max_batch_ + spare_rows, setup_.n_kv_heads, KVC_BF16, &k_there_);
  v_ = numbers(max_batch_ + spare_rows, setup_.n_kv_heads, KVC_BF16, &v_there_);
  for (int32_t s = 0; s < setup_.sequences; ++s) {
    for (int32_t i = 0; i < setup_.tokens; ++i) {
      position_.push_back(setup_.context + i);
      sequence_.push_back(s);
    }
  }
  token_flags_.assign(position_.size(), setup_.sees_later ? uint32_t{KVC_TOKEN_SEES_LATER} : 0u);
  q_ = numbers(n_tokens(), setup_.n_q_heads, setup_.dtype_q, &q_there_);
  out_there_ = std::make_unique<gpu::Memory>(q_.size() * sizeof(float));
}

kvc_tensor Rig::rows(int32_t layer, bool on_gpu, bool is_v, int32_t n) {
  const auto first = static_cast<size_t>((n_filled_ * 61 + layer * 17) % spare_rows);
  const size_t at = first * static_cast<size_t>(setup_.n_kv_heads * setup_.head_dim);
  const gpu::Memory& there = is_v ? *v_there_ : *k_there_;
  void* const data = on_gpu ? static_cast<void*>(there.data() + at * sizeof(uint16_t))
                            : static_cast<void*>((is_v ? v_ : k_).data() + at);
  return gpu::tensor(data, on_gpu, KVC_BF16, {n, setup_.n_kv_heads, setup_.head_dim});
}

kvc_tensor Rig::queries(bool on_gpu) {
  void* const data = on_gpu ? static_cast<void*>(q_there_->data()) : static_cast<void*>(q_.data());
  return results(data, on_gpu, setup_.dtype_q);  // of the same shape
}
kvc_tensor Rig::results(void* data, bool on_gpu, uint32_t dtype) const {
  return gpu::tensor(data, on_gpu, dtype, {n_tokens(), setup_.n_q_heads, setup_.head_dim});
}

/// A cache gives a sequence blocks of neighbouring cells while there are any. So a sequence of its own takes all cells, and gives up
/// one block after another, which the others share.
void Rig::occupy() {
  const int32_t n_cells = block_cells * (setup_.context / (block_cells / setup_.sequences) + 2);
  while (n_occupied_ < n_cells) {
    const int32_t n = std::min(n_cells - n_occupied_, max_batch_);
    std::vector<int32_t> position(static_cast<size_t>(n)),
        sequence(position.size(), setup_.sequences);
    for (int32_t& p : position) p = n_occupied_++;
    gpu::must(kvc_begin(gpu_, n, position.data(), sequence.data(), nullptr, 0, stream_), "begin");
    gpu::must(kvc_commit(gpu_), "commit");
  }
}
void Rig::give_up_a_block() {
  int32_t got = 0;
  n_occupied_ -= block_cells;
  gpu::must(kvc_resume(gpu_, setup_.sequences, n_occupied_, &got), "resume");
}

/// Histories in runs: a pass has the next tokens of every sequence, whose runs come in random order. Else one sequence after another.
void Rig::fill() {
  if (setup_.is_scattered()) occupy();
  const bool one_by_one = setup_.run == 0;
  const int32_t n_sequences = setup_.is_shared ? 1 : setup_.sequences;
  const int32_t together = one_by_one ? 1 : n_sequences;
  const int32_t run = one_by_one ? max_batch_ : setup_.run;
  const int32_t per_pass =  // tokens of a sequence
      setup_.is_scattered() ? 1 : std::max(1, max_batch_ / (together * run)) * run;
  for (int32_t first = 0; first < n_sequences; first += together) {
    for (int32_t at = 0; at < setup_.context; at += per_pass) {
      if (setup_.is_scattered() && at % (block_cells / together) == 0) give_up_a_block();
      std::vector<int32_t> position, sequence, order(static_cast<size_t>(together));
      const int32_t end = std::min(at + per_pass, setup_.context);
      for (int32_t begin = at; begin < end; begin += run) {
        for (int32_t s = 0; s < together; ++s) order[static_cast<size_t>(s)] = first + s;
        std::shuffle(order.begin(), order.end(), random_);
        for (const int32_t s : order) {
          for (int32_t p = begin; p < std::min(begin + run, end); ++p) {
            position.push_back(p);
            sequence.push_back(s);
          }
        }
      }
      fill_pass(position, sequence);
    }
  }
  if (setup_.is_scattered()) give_up_a_block();  // for the measured pass
  for (int32_t to = n_sequences; to < setup_.sequences; ++to) {
    for (kvc_cache* cache : {gpu_, cpu_}) {
      int32_t got = 0;
      gpu::must(kvc_copy_prefix(cache, 0, to, setup_.context, &got), "copy_prefix");
    }
  }
}

void Rig::fill_pass(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence) {
  const auto n = static_cast<int32_t>(position.size());
  for (kvc_cache* cache : {gpu_, cpu_}) {
    const bool on_gpu = cache == gpu_;
    gpu::must(kvc_begin(cache, n, position.data(), sequence.data(), nullptr, 0,
                        on_gpu ? stream_ : nullptr),
              "begin");
    for (int32_t layer = 0; layer < (on_gpu ? layers_ : 1); ++layer) {
      const kvc_tensor k = rows(layer, on_gpu, false, n), v = rows(layer, on_gpu, true, n);
      gpu::must(kvc_put(cache, layer, &k, &v), "put");
    }
    gpu::must(kvc_commit(cache), "commit");
  }
  ++n_filled_;
}

/// Cells must lie as the name of the figure says, by and large: runs that are to be short may lie beside each other, and long ones
/// may go on elsewhere.
void Rig::check_runs() {
  int32_t n = 0;
  gpu::must(kvc_runs(gpu_, 0, setup_.sequences - 1, 0, nullptr, &n), "runs");
  const int32_t least = setup_.run == 0 ? 0 : setup_.context / setup_.run / 2;
  const int32_t most = setup_.run == 0 ? 2 + setup_.context / 1024 : setup_.context / setup_.run;
  if (n < least || n > most)
    gpu::fail("a history lies in " + std::to_string(n) + " runs, not in " + std::to_string(least) +
              " to " + std::to_string(most));
}

void Rig::begin(uint32_t flags) {
  const bool is_planned = flags != KVC_BEGIN_RESERVE;
  gpu::must(kvc_begin(gpu_, n_tokens(), is_planned ? position_.data() : nullptr,
                      is_planned ? sequence_.data() : nullptr,
                      is_planned ? token_flags_.data() : nullptr, flags, stream_),
            "begin");
}

void Rig::open() {
  begin(0);
  put_all();
}

void Rig::put_all() {
  for (int32_t layer = 0; layer < layers_; ++layer) {
    const kvc_tensor k = rows(layer, true, false, n_tokens()),
                     v = rows(layer, true, true, n_tokens());
    gpu::must(kvc_put(gpu_, layer, &k, &v), "put");
  }
}

void Rig::attend_all() {
  const kvc_tensor q = queries(true);
  kvc_tensor out = results(out_there_->data(), true, setup_.dtype_q);
  for (int32_t layer = layers_; layer-- > 0;)
    gpu::must(kvc_attention(gpu_, layer, &q, &out, nullptr), "attention");
}

void Rig::put_attend_all() {
  const kvc_tensor q = queries(true);
  kvc_tensor out = results(out_there_->data(), true, setup_.dtype_q);
  for (int32_t layer = layers_; layer-- > 0;) {
    const kvc_tensor k = rows(layer, true, false, n_tokens()),
                     v = rows(layer, true, true, n_tokens());
    gpu::must(kvc_put_attention(gpu_, layer, &k, &v, &q, &out, nullptr), "put_attention");
  }
}

/// What the CPU computes from the same numbers.
void Rig::expect() {
  gpu::must(kvc_begin(cpu_, n_tokens(), position_.data(), sequence_.data(), token_flags_.data(), 0,
                      nullptr),
            "begin");
  const kvc_tensor k = rows(0, false, false, n_tokens()), v = rows(0, false, true, n_tokens());
  const kvc_tensor q = queries(false);
  expected_.resize(q_.size());
  kvc_tensor out = results(expected_.data(), false, KVC_F32);
  gpu::must(kvc_put_attention(cpu_, 0, &k, &v, &q, &out, nullptr), "put_attention");
  gpu::must(kvc_abort(cpu_), "abort");
}

double Rig::distance(const std::vector<float>& got) const {
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double x = double{expected_[i]};
    difference += (x - double{got[i]}) * (x - double{got[i]});
    size += x * x;
  }
  return std::sqrt(difference / size);
}

/// Products in f32 are off by some 1e-6; factors that are rounded to bf16 or f16 by up to their last place each.
double Rig::allowed_of(uint32_t dtype) const {
  const auto last_place = [](uint32_t type) {
    return type == KVC_BF16 ? 0x1p-8 : type == KVC_F16 ? 0x1p-11 : 0;
  };
  return 1e-5 + 2 * last_place(setup_.runtime_dtype) + last_place(dtype);
}

Error Rig::exact_error() {
  std::vector<float> got(expected_.size(), std::nanf(""));
  out_there_->write(got.data(), got.size() * sizeof(float));
  open();
  const kvc_tensor q = queries(true);
  kvc_tensor out = results(out_there_->data(), true, KVC_F32);
  gpu::must(kvc_attention(gpu_, 0, &q, &out, nullptr), "attention");
  close();
  gpu::need(runtime::synchronize(stream_), "synchronize");
  out_there_->read(got.data(), got.size() * sizeof(float));
  return {distance(got), allowed_of(KVC_F32)};
}

Error Rig::last_error() {
  gpu::need(runtime::synchronize(stream_), "synchronize");
  std::vector<uint16_t> read(expected_.size());
  std::vector<float> got(expected_.size());
  out_there_->read(read.data(), read.size() * sizeof read[0]);
  for (size_t i = 0; i < got.size(); ++i) got[i] = loaded(read[i], setup_.dtype_q);
  return {distance(got), allowed_of(setup_.dtype_q)};
}

}  // namespace bench_cuda
