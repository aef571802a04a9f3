#include <algorithm>

#include "fuzz_kind.hpp"

#include "kvc/recurrent.h"

/// Calls on sequences.
namespace fuzz {

void KindWorld::can_resume() {
  const int32_t sequence = some_sequence();
  const int32_t want = random_.chance(0.1) ? odd_number() : some_position(sequence);
  Call made = query(Op::can_resume, {sequence},
                    "sequence " + std::to_string(sequence) + " want " + std::to_string(want));
  int32_t best = -7, expected_best = -7;
  const kvc_status expected = oracle().can_resume(sequence, want, &expected_best);
  const kvc_status status = kvc_can_resume(handle(), sequence, want, &best);
  if (status == KVC_OK) expect_equal(best, expected_best, "best");
  judge(made, status, expected);
}

void KindWorld::resume() {
  const int32_t sequence = some_sequence();
  int32_t want = random_.chance(0.02) ? odd_number() : some_position(sequence);
  if (random_.chance(0.3)) want = INT32_MAX;
  Call made = call(Op::resume, {sequence},
                   "sequence " + std::to_string(sequence) + " want " + std::to_string(want));
  int32_t got = -7, expected_got = -7;
  const bool wants_answer = random_.chance(0.9);
  const kvc_status expected = oracle().resume(sequence, want, &expected_got);
  const kvc_status status = kvc_resume(handle(), sequence, want, wants_answer ? &got : nullptr);
  if (status == KVC_OK && wants_answer) expect_equal(got, expected_got, "got");
  judge(made, status, expected);
}

void KindWorld::copy_prefix() {
  const int32_t src = some_sequence();
  int32_t dst = some_sequence();
  if (dst == src && !random_.chance(0.1)) dst = (src + 1) % n_sequences();
  int32_t len = random_.chance(0.02) ? odd_number() : some_position(src);
  if (random_.chance(0.4)) len = INT32_MAX;
  Call made = call(
      Op::copy_prefix, {src, dst},
      "src " + std::to_string(src) + " dst " + std::to_string(dst) + " len " + std::to_string(len));
  int32_t got = -7, expected_got = -7;
  const kvc_status expected = oracle().copy_prefix(src, dst, len, &expected_got);
  const kvc_status status = kvc_copy_prefix(handle(), src, dst, len, &got);
  if (status == KVC_OK) expect_equal(got, expected_got, "got");
  judge(made, status, expected);
}

void KindWorld::reorder() {
  Numbers dst, src;
  std::string arguments;
  for (int32_t s = 0; s < n_sequences(); ++s) {
    if (random_.chance(0.3)) continue;
    dst.push_back(random_.chance(0.01) ? some_sequence() : s);
    src.push_back(some_sequence());
  }
  for (size_t i = dst.size(); i > 1; --i) {
    const auto other = static_cast<size_t>(random_.below(static_cast<int32_t>(i)));
    std::swap(dst[i - 1], dst[other]);
    std::swap(src[i - 1], src[other]);
  }
  for (size_t i = 0; i < dst.size(); ++i)
    arguments += std::to_string(dst[i]) + "<-" + std::to_string(src[i]) + " ";
  const int32_t n = random_.chance(0.01) ? -1 : static_cast<int32_t>(dst.size());
  Numbers named = dst;
  named.insert(named.end(), src.begin(), src.end());
  Call made = call(Op::reorder, named, arguments);
  const kvc_status expected = oracle().reorder(n, dst.data(), src.data());
  judge(made, kvc_reorder(handle(), n, dst.data(), src.data()), expected);
}

void KindWorld::remove(Op op, int32_t sequence, int32_t begin, int32_t end) {
  Call made = call(op, {sequence},
                   "sequence " + std::to_string(sequence) + " [" + std::to_string(begin) + ", " +
                       std::to_string(end) + ")");
  expect_removal(sequence, begin, end);
  Shifting shifting = Shifting::none;
  if (oracle().can_remove(sequence, begin, end) == KVC_OK)
    shifting = oracle().refusal(sequence, begin, end) == KVC_OK ? Shifting::all
                                                                : Shifting::until_refusal;
  const kvc_status expected = oracle().remove(sequence, begin, end);
  const kvc_status status = kvc_remove(handle(), sequence, begin, end);
  if (status == expected) compare_removal(shifting);
  judge(made, status, expected);
}

void KindWorld::remove_tail() {
  const int32_t sequence = some_sequence();
  const int32_t begin = random_.chance(0.02) ? odd_number() : some_position(sequence);
  int32_t end = KVC_SEQ_END;
  if (random_.chance(0.2) && oracle().is_sequence(sequence)) end = oracle().next(sequence);
  remove(Op::remove_tail, sequence, begin, end);
}

void KindWorld::remove_middle() {
  const int32_t sequence = some_sequence();
  int32_t begin = some_position(sequence);
  int32_t end = some_position(sequence);
  if (begin > end && !random_.chance(0.02)) std::swap(begin, end);
  // Short ranges leave something to move.
  if (random_.chance(0.5))
    end = static_cast<int32_t>(std::min<int64_t>(int64_t{begin} + random_.between(1, 3), INT32_MAX));
  if (random_.chance(0.01)) begin = odd_number();
  remove(Op::remove_middle, sequence, begin, end);
}

/// What remove() would return, to the end or not.
void KindWorld::can_remove() {
  const int32_t sequence = some_sequence();
  int32_t begin = some_position(sequence), end = some_position(sequence);
  if (begin > end && !random_.chance(0.02)) std::swap(begin, end);
  if (random_.chance(0.3)) end = KVC_SEQ_END;
  if (random_.chance(0.01)) begin = odd_number();
  Call made = query(
      Op::can_remove, {sequence},
      std::to_string(sequence) + " [" + std::to_string(begin) + ", " + std::to_string(end) + ")");
  const kvc_status expected = oracle().can_remove(sequence, begin, end);
  judge(made, kvc_can_remove(handle(), sequence, begin, end), expected);
}

void KindWorld::checkpoint_take() {
  const int32_t sequence = some_sequence();
  Call made = call(Op::checkpoint_take, {sequence}, "sequence " + std::to_string(sequence));
  const kvc_status expected = oracle().checkpoint_take(sequence);
  judge(made, kvc_checkpoint_take(handle(), sequence), expected);
}

}  // namespace fuzz
