#include <algorithm>

#include "fuzz_kind.hpp"

/// begin … abort, and the batches that they are given.
namespace fuzz {

std::string Batch::text() const {
  std::string result = "n " + std::to_string(n) + " position " + fuzz::text(position) +
                       " sequence " + fuzz::text(sequence);
  for (size_t i = 0; i < flags.size(); ++i) {
    result += i == 0 ? " flags [" : "";
    result += ' ' + std::to_string(flags[i]) + (i + 1 == flags.size() ? " ]" : "");
  }
  return result;
}

Batch KindWorld::draw_batch() {
  Batch batch;
  const int32_t most = oracle().cache.max_batch;
  batch.n = random_.chance(0.15) ? most : random_.between(1, most);
  Numbers next;
  for (int32_t s = 0; s < n_sequences(); ++s) next.push_back(oracle().next(s));
  const bool mixed = random_.chance(0.5);
  const bool with_gaps = random_.chance(oracle().cache.flags & KVC_CACHE_STRICT ? 0.01 : 0.2);
  int32_t sequence = random_.below(n_sequences());
  for (int32_t i = 0; i < batch.n; ++i) {
    if (mixed || random_.chance(0.2)) sequence = random_.below(n_sequences());
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
  }
  batch.flags.resize(batch.sequence.size());
  give_flags(batch);
  if (random_.chance(0.2)) pad(batch);
  if (random_.chance(0.03)) spoil(batch);
  const bool none = std::count(batch.flags.begin(), batch.flags.end(), 0u) ==
                    static_cast<ptrdiff_t>(batch.flags.size());
  if (none && random_.chance(0.7)) batch.flags.clear();
  return batch;
}

/// Makes some tokens padding, whose positions mean nothing; the others keep the places that they have.
void KindWorld::pad(Batch& batch) {
  const double share = random_.chance(0.1) ? 1.0 : random_.unit();
  for (size_t i = 0; i < batch.sequence.size(); ++i) {
    if (!random_.chance(share)) continue;
    batch.sequence[i] = KVC_NONE;
    batch.position[i] = odd_number();
    batch.flags[i] = 0;
  }
}

/// Makes the batch illegal, or most likely so.
void KindWorld::spoil(Batch& batch) {
  const auto i = static_cast<size_t>(random_.below(batch.n));
  switch (random_.below(7)) {
    case 0: batch.sequence[i] = odd_number(); break;
    case 1: batch.position[i] = odd_number(); break;
    case 2:
      batch.position[i] = std::max(0, std::max(batch.position[i], 0) - random_.between(1, 3));
      break;
    case 3:
      batch.n = random_.pick({0, -1, INT32_MIN, INT32_MAX, oracle().cache.max_batch + 1});
      break;
    case 4: batch.flags[i] |= random_.pick<uint32_t>({1u, 2u, 4u, 1u << 15, 7u << 16}); break;
    case 5: batch.flags.assign(batch.flags.size(), KVC_TOKEN_ENCODER_INPUT); break;
    default: std::reverse(batch.position.begin(), batch.position.end()); break;
  }
}

void KindWorld::begin(const Batch& batch) {
  Call made = call(Op::begin, batch.sequence, batch.text());
  const kvc_status expected = oracle().begin(batch.n, batch.position.data(), batch.sequence.data(),
                                             batch.token_flags(), 0);
  judge(made,
        kvc_begin(handle(), batch.n, batch.position.data(), batch.sequence.data(),
                  batch.token_flags(), 0, nullptr),
        expected);
}

void KindWorld::begin_reserve() {
  const int32_t n = random_.chance(0.05) ? odd_number()
                                         : random_.between(1, oracle().cache.max_batch);
  const uint32_t flag = random_.pick<uint32_t>({KVC_TOKEN_ENCODER_INPUT, KVC_TOKEN_SEES_LATER, 4u});
  const std::vector<uint32_t> flags(static_cast<size_t>(oracle().cache.max_batch), flag);
  const uint32_t* const given = random_.chance(0.2) ? flags.data() : nullptr;
  Call made = call(Op::begin_reserve, {},
                   "n " + std::to_string(n) + (given ? " flags " + std::to_string(flag) : ""));
  const kvc_status expected = oracle().begin(n, nullptr, nullptr, given, KVC_BEGIN_RESERVE);
  judge(made, kvc_begin(handle(), n, nullptr, nullptr, given, KVC_BEGIN_RESERVE, nullptr), expected);
}

void KindWorld::fits() {
  const Batch batch = draw_batch();
  Call made = query(Op::fits, batch.sequence, batch.text());
  const kvc_status expected = oracle().fits(batch.n, batch.position.data(), batch.sequence.data(),
                                            batch.token_flags());
  judge(made,
        kvc_fits(handle(), batch.n, batch.position.data(), batch.sequence.data(), batch.token_flags()),
        expected);
}

void KindWorld::set_causal() {
  Numbers except;
  const auto n = static_cast<int32_t>(n_tokens());
  for (int32_t i = random_.below(4); i > 0; --i) except.push_back(random_.below(n));
  if (random_.chance(0.05)) except.push_back(random_.chance(0.5) ? n : odd_number());
  const int32_t count = random_.chance(0.02) ? -1 : static_cast<int32_t>(except.size());
  Call made = call(Op::set_causal, oracle().batch().sequence, text(except));
  const kvc_status expected = oracle().set_causal(count, except.data());
  judge(made, kvc_set_causal(handle(), count, except.data()), expected);
}

void KindWorld::commit() {
  Call made = call(Op::commit, oracle().batch().sequence, "");
  const kvc_status expected = oracle().commit();
  judge(made, kvc_commit(handle()), expected);
}

void KindWorld::commit_prefix() {
  Numbers sequence, keep;
  for (int32_t s = 0; s < n_sequences(); ++s) {
    if (random_.chance(0.4)) continue;
    const int32_t most = oracle().tokens_of(s);
    sequence.push_back(s);
    keep.push_back(random_.below(most + 1));
    if (random_.chance(0.02)) keep.back() = random_.chance(0.5) ? most + 1 : odd_number();
  }
  if (random_.chance(0.02)) {
    sequence.push_back(random_.chance(0.5) ? 0 : odd_number());
    keep.push_back(0);
  }
  const int32_t n = random_.chance(0.01) ? -1 : static_cast<int32_t>(sequence.size());
  Call made = call(Op::commit_prefix, oracle().batch().sequence,
                   "sequence " + text(sequence) + " keep " + text(keep));
  const kvc_status expected = oracle().commit_prefix(n, sequence.data(), keep.data());
  judge(made, kvc_commit_prefix(handle(), n, sequence.data(), keep.data()), expected);
}

void KindWorld::abort() {
  Call made = call(Op::abort, oracle().batch().sequence, "");
  const kvc_status expected = oracle().abort();
  judge(made, kvc_abort(handle()), expected);
}

// ---- NaN in free cells -------------------------------------------------------------------------

/// n tokens at the next places of one sequence, or of all in turn.
Batch KindWorld::next_tokens(int32_t n) {
  Batch batch;
  batch.n = n;
  const bool one = random_.chance(0.5);
  const int32_t first = random_.below(n_sequences());
  std::map<int32_t, int32_t> taken;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t s = one ? first : (first + i) % n_sequences();
    batch.sequence.push_back(s);
    batch.position.push_back(
        static_cast<int32_t>(std::min<int64_t>(int64_t{oracle().next(s)} + taken[s]++, INT32_MAX)));
  }
  batch.flags.resize(batch.sequence.size());
  give_poison_flags(batch);
  return batch;
}

/// A pass of NaN that is aborted leaves NaN in the cells that come next, and the state as it was. No pass is open.
void KindWorld::poison_by_abort() {
  log_.push_back("poison by an aborted pass");
  Batch batch;
  for (int32_t n = oracle().cache.max_batch; n > 0; n /= 2) {
    batch = next_tokens(n);
    if (oracle().fits(n, batch.position.data(), batch.sequence.data(), batch.token_flags()) == KVC_OK)
      break;
    batch.n = 0;
  }
  if (batch.n == 0) return;
  if (kvc_begin(handle(), batch.n, batch.position.data(), batch.sequence.data(),
                batch.token_flags(), 0, nullptr) != KVC_OK)
    differ("begin of a pass of NaN: " + support::last_message());
  put_nan(batch);
  if (kvc_abort(handle()) != KVC_OK) differ("abort: " + support::last_message());
  ++counts_.poisonings;
  state_may_change_ = false;
  compare_all();
}

}  // namespace fuzz
