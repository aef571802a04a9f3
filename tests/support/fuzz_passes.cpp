#include <algorithm>
#include <cmath>
#include <sstream>

#include "fuzz_world.hpp"

/// begin … abort.
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

World::Batch World::draw_batch() {
  Batch batch;
  const int32_t most = setup_.cache.max_batch;
  batch.n = random_.chance(0.15) ? most : random_.between(1, most);
  Numbers next;
  for (const model::Sequence& sequence : oracle_.sequences) next.push_back(sequence.next);
  const bool mixed = random_.chance(0.5);
  const double gaps = setup_.cache.flags & KVC_CACHE_STRICT ? 0.01 : 0.2;
  const bool with_gaps = random_.chance(gaps);
  int32_t sequence = random_.below(setup_.cache.max_sequences);
  for (int32_t i = 0; i < batch.n; ++i) {
    if (mixed || random_.chance(0.2)) sequence = random_.below(setup_.cache.max_sequences);
    int32_t& at = next[static_cast<size_t>(sequence)];
    int64_t position = at;
    if (with_gaps && random_.chance(0.5)) {
      const int32_t kind = random_.below(40);
      if (kind < 30)
        position += random_.below(4);
      else if (kind < 39)
        position += random_.below(60);
      else
        position += random_.pick({100000, 40000000, INT32_MAX - 2});
    }
    at = static_cast<int32_t>(std::min<int64_t>(position, INT32_MAX - 2));
    batch.position.push_back(at++);
    batch.sequence.push_back(sequence);
    batch.flags.push_back(random_.chance(0.3) ? uint32_t{KVC_TOKEN_SEES_LATER} : 0u);
  }
  if (random_.chance(0.2)) give_types(batch);
  if (random_.chance(0.2)) pad(batch);
  if (random_.chance(0.03)) spoil(batch);
  return batch;
}

/// Types for stretches of each sequence's tokens; rarely one that begins twice.
void World::give_types(Batch& batch) {
  std::vector<uint32_t> current(oracle_.sequences.size(), 0);
  uint32_t newest = random_.chance(0.1) ? 0xfff0u : 0;
  const bool repeats = random_.chance(0.05);
  for (size_t i = 0; i < batch.sequence.size(); ++i) {
    uint32_t& type = current[static_cast<size_t>(batch.sequence[i])];
    if (!random_.chance(0.7)) {
      if (newest < 0xffffu) ++newest;
      type = random_.chance(0.3) || newest == 0xffffu ? 0 : repeats ? 1 : newest;
    }
    batch.flags[i] |= type << KVC_TOKEN_TYPE_SHIFT;
  }
}

/// Makes some tokens padding, whose positions mean nothing; the others keep the places that they have.
void World::pad(Batch& batch) {
  const double share = random_.chance(0.1) ? 1.0 : random_.unit();
  for (size_t i = 0; i < batch.sequence.size(); ++i) {
    if (!random_.chance(share)) continue;
    batch.sequence[i] = KVC_NONE;
    batch.position[i] = odd_number();
    batch.flags[i] = 0;
  }
}

/// NaN in the rows of padding tokens: they are never read.
void World::spoil_padding(support::Array& array) {
  if (!oracle_.pass_open || oracle_.pass.sequence.empty()) return;
  const int64_t row = array.count() / oracle_.pass.n_tokens;
  for (size_t t = 0; t < oracle_.pass.sequence.size(); ++t) {
    if (oracle_.pass.sequence[t] != KVC_NONE) continue;
    for (int64_t i = 0; i < row; ++i) array.set(static_cast<int64_t>(t) * row + i, std::nan(""));
  }
}

/// Makes the batch illegal, or most likely so.
void World::spoil(Batch& batch) {
  const auto i = static_cast<size_t>(random_.below(batch.n));
  switch (random_.below(6)) {
    case 0: batch.sequence[i] = odd_number(); break;
    case 1: batch.position[i] = odd_number(); break;
    case 2:
      batch.position[i] = std::max(0, std::max(batch.position[i], 0) - random_.between(1, 3));
      break;
    case 3:
      batch.n = random_.pick({0, -1, INT32_MIN, INT32_MAX, setup_.cache.max_batch + 1});
      break;
    case 4: batch.flags[i] |= random_.pick<uint32_t>({4u, 2u, 1u << 15, 7u << 16}); break;
    default: std::reverse(batch.position.begin(), batch.position.end()); break;
  }
}

void World::begin(const Batch& batch, bool with_flags) {
  Call made = call(Op::begin, batch.sequence,
                   "n " + std::to_string(batch.n) + " position " + text(batch.position) +
                       " sequence " + text(batch.sequence) + (with_flags ? " flags" : ""));
  const uint32_t* flags = with_flags ? batch.flags.data() : nullptr;
  const int32_t* position = batch.position.data();
  const int32_t* sequence = batch.sequence.data();
  const kvc_status expected = oracle_.begin(batch.n, position, sequence, flags, 0);
  judge(made, kvc_begin(cache_, batch.n, position, sequence, flags, 0, nullptr), expected);
}

void World::begin_reserve() {
  const int32_t n = random_.chance(0.05) ? odd_number() : random_.between(1, setup_.cache.max_batch);
  Call made = call(Op::begin_reserve, {}, "n " + std::to_string(n));
  const kvc_status expected = oracle_.begin(n, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE);
  judge(made, kvc_begin(cache_, n, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), expected);
}

void World::fits() {
  const Batch batch = draw_batch();
  Call made = call(Op::fits, batch.sequence,
                   "n " + std::to_string(batch.n) + " position " + text(batch.position) +
                       " sequence " + text(batch.sequence));
  state_may_change_ = false;
  const int32_t* position = batch.position.data();
  const int32_t* sequence = batch.sequence.data();
  const uint32_t* flags = random_.chance(0.5) ? batch.flags.data() : nullptr;
  const kvc_status expected = oracle_.fits(batch.n, position, sequence, flags);
  judge(made, kvc_fits(cache_, batch.n, position, sequence, flags), expected);
}

void World::fill_values(support::Array& array) {
  array.fill(random_);
  if (random_.chance(0.97)) return;
  // Beyond f16, infinite, tiny, between two neighbours of a 16-bit type.
  const double special = random_.pick({1e6, -70000.0, 65519.9, HUGE_VAL, -0.0, 1e-7, 6e-8, 1e-40,
                                       1.00048828125, 1.00390625, 3.4e38});
  array.set(random_.below(static_cast<int32_t>(array.count())), special);
}

void World::put_values(int32_t layer, support::Array& k, support::Array& v) {
  Call made = call(Op::put, oracle_.pass_open ? oracle_.pass.sequence : Numbers(),
                   "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.put(layer, k.floats(), v.floats());
  judge(made, kvc_put(cache_, layer, k.tensor(), v.tensor()), expected);
}

void World::put(int32_t layer) {
  // Rather a layer that is still missing, but sometimes one a second time.
  for (int32_t tries = 0; tries < 4 && oracle_.pass_open && !random_.chance(0.1); ++tries) {
    const Numbers done = put_layers();
    if (std::find(done.begin(), done.end(), layer) == done.end()) break;
    layer = some_layer();
  }
  const int64_t n = oracle_.pass_open ? oracle_.pass.n_tokens : 1;
  const int64_t heads = setup_.cache.n_kv_heads;
  const auto dtype = [&] { return random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16}); };
  support::Array k(dtype(), {n, heads, oracle_.cache.head_dim_k}, random_);
  support::Array v(dtype(), {n, heads, oracle_.cache.head_dim_v}, random_);
  fill_values(k);
  fill_values(v);
  spoil_padding(k);
  spoil_padding(v);
  put_values(layer, k, v);
}

void World::set_causal() {
  Numbers except;
  const int32_t n = oracle_.pass_open ? oracle_.pass.n_tokens : 1;
  for (int32_t i = random_.below(4); i > 0; --i) except.push_back(random_.below(n));
  if (random_.chance(0.05)) except.push_back(random_.chance(0.5) ? n : odd_number());
  const bool negative = random_.chance(0.02);
  const int32_t count = negative ? -1 : static_cast<int32_t>(except.size());
  Call made = call(Op::set_causal, oracle_.pass_open ? oracle_.pass.sequence : Numbers(),
                   text(except));
  const kvc_status expected = oracle_.set_causal(count, except.data());
  judge(made, kvc_set_causal(cache_, count, except.data()), expected);
}

void World::commit() {
  Call made = call(Op::commit, oracle_.pass.sequence, "");
  const kvc_status expected = oracle_.commit();
  judge(made, kvc_commit(cache_), expected);
}

void World::commit_prefix() {
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
  Call made = call(Op::commit_prefix, oracle_.pass.sequence,
                   "sequence " + text(sequence) + " keep " + text(keep));
  const kvc_status expected = oracle_.commit_prefix(n, sequence.data(), keep.data());
  judge(made, kvc_commit_prefix(cache_, n, sequence.data(), keep.data()), expected);
}

void World::abort() {
  Call made = call(Op::abort, oracle_.pass.sequence, "");
  const kvc_status expected = oracle_.abort();
  judge(made, kvc_abort(cache_), expected);
}

}  // namespace fuzz
