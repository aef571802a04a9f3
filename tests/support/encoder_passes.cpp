#include <algorithm>
#include <cmath>
#include <sstream>

#include "encoder_world.hpp"

/// begin … abort, puts and sharing.
namespace fuzz {
namespace {

std::string text(const std::vector<int32_t>& numbers) {
  std::ostringstream result;
  result << "[";
  for (const int32_t number : numbers) result << ' ' << number;
  result << " ]";
  return result.str();
}

}  // namespace

std::string EncoderWorld::Batch::text() const {
  std::string result = "n " + std::to_string(n) + " position " + fuzz::text(position) +
                       " sequence " + fuzz::text(sequence) + " flags [";
  for (const uint32_t each : flags) result += ' ' + std::to_string(each);
  return result + " ]";
}

EncoderWorld::Batch EncoderWorld::draw_batch() {
  Batch batch;
  batch.n = random_.chance(0.15) ? setup_.cache.max_batch
                                 : random_.between(1, setup_.cache.max_batch);
  Numbers next;
  for (const model::EncoderSequence& sequence : oracle_.sequences) next.push_back(sequence.next);
  const bool mixed = random_.chance(0.5);
  const bool gaps = random_.chance(setup_.cache.flags & KVC_CACHE_STRICT ? 0.01 : 0.2);
  const double carry = random_.pick({0.0, 0.3, 0.6, 1.0});
  std::vector<char> carries(next.size(), 0);
  int32_t sequence = random_.below(setup_.cache.max_sequences);
  for (int32_t i = 0; i < batch.n; ++i) {
    if (mixed || random_.chance(0.2)) sequence = random_.below(setup_.cache.max_sequences);
    const bool padding = random_.chance(0.08);
    const auto s = static_cast<size_t>(sequence);
    if (padding) {
      batch.position.push_back(odd_number());
      batch.sequence.push_back(KVC_NONE);
      batch.flags.push_back(0);
      continue;
    }
    int64_t position = next[s];
    if (gaps && random_.chance(0.5))
      position += random_.chance(0.02) ? random_.pick({100000, INT32_MAX - 2}) : random_.below(5);
    position = std::min<int64_t>(position, INT32_MAX - 2);
    next[s] = static_cast<int32_t>(position) + 1;
    const bool carrier = !carries[s] && random_.chance(carry);
    carries[s] = carries[s] || carrier;
    batch.position.push_back(static_cast<int32_t>(position));
    batch.sequence.push_back(sequence);
    batch.flags.push_back(carrier ? uint32_t{KVC_TOKEN_ENCODER_INPUT} : 0u);
  }
  if (random_.chance(0.04)) spoil(batch);
  if (random_.chance(0.1)) batch.flags.clear();
  return batch;
}

/// Makes the batch illegal, or most likely so.
void EncoderWorld::spoil(Batch& batch) {
  const auto i = static_cast<size_t>(random_.below(batch.n));
  switch (random_.below(6)) {
    case 0: batch.sequence[i] = odd_number(); break;
    case 1: batch.position[i] = odd_number(); break;
    case 2: batch.position[i] = std::max(batch.position[i], 1) - 1; break;
    case 3:
      batch.n = random_.pick({0, -1, INT32_MIN, INT32_MAX, setup_.cache.max_batch + 1});
      break;
    case 4: batch.flags[i] |= random_.pick<uint32_t>({1u, 4u, 2u, 1u << 15, 7u << 16}); break;
    default:
      for (uint32_t& flags : batch.flags) flags = KVC_TOKEN_ENCODER_INPUT;
      break;
  }
}

void EncoderWorld::begin() {
  const Batch batch = draw_batch();
  const uint32_t* flags = batch.flags.empty() ? nullptr : batch.flags.data();
  Call made = call(EncoderOp::begin, batch.text());
  const kvc_status expected = oracle_.begin(batch.n, batch.position.data(), batch.sequence.data(),
                                            flags, 0);
  judge(made,
        kvc_begin(cache_, batch.n, batch.position.data(), batch.sequence.data(), flags, 0, nullptr),
        expected);
}

void EncoderWorld::begin_reserve() {
  const int32_t n = random_.chance(0.05) ? odd_number() : random_.between(1, setup_.cache.max_batch);
  std::vector<uint32_t> flags(static_cast<size_t>(setup_.cache.max_batch), KVC_TOKEN_ENCODER_INPUT);
  if (random_.chance(0.05)) flags[0] = 1;
  const uint32_t* const given = random_.chance(0.3) ? flags.data() : nullptr;
  Call made = call(EncoderOp::begin_reserve, "n " + std::to_string(n) + (given ? " flags" : ""));
  const kvc_status expected = oracle_.begin(n, nullptr, nullptr, given, KVC_BEGIN_RESERVE);
  judge(made, kvc_begin(cache_, n, nullptr, nullptr, given, KVC_BEGIN_RESERVE, nullptr), expected);
}

void EncoderWorld::fits() {
  const Batch batch = draw_batch();
  const uint32_t* flags = batch.flags.empty() ? nullptr : batch.flags.data();
  Call made = call(EncoderOp::fits, batch.text());
  state_may_change_ = false;
  const kvc_status expected = oracle_.fits(batch.n, batch.position.data(), batch.sequence.data(),
                                           flags);
  judge(made, kvc_fits(cache_, batch.n, batch.position.data(), batch.sequence.data(), flags),
        expected);
}

// ---- Inputs ----------------------------------------------------------------------------------------------------

EncoderWorld::KeysAndValues EncoderWorld::draw_keys_and_values(int32_t n) {
  const int64_t heads = setup_.cache.n_kv_heads;
  const auto dtype = [&] { return random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16}); };
  KeysAndValues drawn = {support::Array(dtype(), {n, heads, oracle_.cache.head_dim_k}, random_),
                         support::Array(dtype(), {n, heads, oracle_.cache.head_dim_v}, random_)};
  for (support::Array* array : {&drawn.k, &drawn.v}) {
    array->fill(random_);
    if (n < 1 || random_.chance(0.97)) continue;
    // Beyond f16, infinite, tiny, between two neighbours of a 16-bit type.
    const double special = random_.pick({1e6, -70000.0, 65519.9, HUGE_VAL, -0.0, 1e-7, 6e-8, 1e-40,
                                         1.00048828125, 1.00390625, 3.4e38});
    array->set(random_.below(static_cast<int32_t>(array->count())), special);
  }
  return drawn;
}

kvc_status EncoderWorld::spoil(KeysAndValues& put) {
  if (!random_.chance(0.02)) return KVC_OK;
  --put.v.tensor()->shape[0];
  return KVC_E_SHAPE;
}

void EncoderWorld::put() {
  const int32_t sequence = oracle_.only_carrying();
  const int32_t layer = missing_layer(sequence), n = some_length(sequence);
  KeysAndValues drawn = draw_keys_and_values(n);
  Call made = call(EncoderOp::put, "layer " + std::to_string(layer) + " n " + std::to_string(n));
  kvc_status expected = oracle_.may_put(layer, n);
  if (expected == KVC_OK) expected = spoil(drawn);
  if (expected == KVC_OK) oracle_.put_input(layer, sequence, n, drawn.k.floats(), drawn.v.floats());
  judge(made, kvc_put(cache_, layer, drawn.k.tensor(), drawn.v.tensor()), expected);
}

void EncoderWorld::encoder_put() {
  const int32_t sequence = carrying_sequence(), layer = missing_layer(sequence);
  const int32_t n = some_length(sequence);
  KeysAndValues drawn = draw_keys_and_values(n);
  Call made = call(EncoderOp::encoder_put, "layer " + std::to_string(layer) + " sequence " +
                                               std::to_string(sequence) + " n " + std::to_string(n));
  kvc_status expected = oracle_.may_put_input(layer, sequence, n);
  if (expected == KVC_OK) expected = spoil(drawn);
  if (expected == KVC_OK) oracle_.put_input(layer, sequence, n, drawn.k.floats(), drawn.v.floats());
  judge(made, kvc_encoder_put(cache_, layer, sequence, drawn.k.tensor(), drawn.v.tensor()), expected);
}

void EncoderWorld::share() {
  const int32_t sequence = carrying_sequence(), source = some_sequence();
  Call made = call(EncoderOp::share,
                   "sequence " + std::to_string(sequence) + " source " + std::to_string(source));
  const kvc_status expected = oracle_.share(sequence, source);
  judge(made, kvc_encoder_share(cache_, sequence, source), expected);
}

// ---- The end ---------------------------------------------------------------------------------------------------

void EncoderWorld::commit() {
  Call made = call(EncoderOp::commit, "");
  const kvc_status expected = oracle_.commit();
  judge(made, kvc_commit(cache_), expected);
}

void EncoderWorld::commit_prefix() {
  Numbers sequence, keep;
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    if (random_.chance(0.4)) continue;
    const auto most = static_cast<int32_t>(
        std::count(oracle_.pass.sequence.begin(), oracle_.pass.sequence.end(), s));
    sequence.push_back(s);
    keep.push_back(random_.below(most + 1));
    if (random_.chance(0.02)) keep.back() = random_.chance(0.5) ? most + 1 : odd_number();
  }
  if (random_.chance(0.02)) {
    sequence.push_back(random_.chance(0.5) ? 0 : odd_number());
    keep.push_back(0);
  }
  const int32_t n = random_.chance(0.01) ? -1 : static_cast<int32_t>(sequence.size());
  Call made = call(EncoderOp::commit_prefix, "sequence " + text(sequence) + " keep " + text(keep));
  const kvc_status expected = oracle_.commit_prefix(n, sequence.data(), keep.data());
  judge(made, kvc_commit_prefix(cache_, n, sequence.data(), keep.data()), expected);
}

void EncoderWorld::abort() {
  Call made = call(EncoderOp::abort, "");
  const kvc_status expected = oracle_.abort();
  judge(made, kvc_abort(cache_), expected);
}

}  // namespace fuzz
