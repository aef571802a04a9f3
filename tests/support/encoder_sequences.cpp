#include <algorithm>

#include "encoder_world.hpp"

/// Calls on sequences, the constants of the model, and calls that encoder caches do not have.
namespace fuzz {

void EncoderWorld::can_resume() {
  const int32_t sequence = some_sequence(), want = some_position(sequence);
  Call made = call(EncoderOp::can_resume,
                   "sequence " + std::to_string(sequence) + " want " + std::to_string(want));
  state_may_change_ = false;
  int32_t best = -7, wanted = -7;
  const kvc_status expected = oracle_.can_resume(sequence, want, &wanted);
  const kvc_status status = kvc_can_resume(cache_, sequence, want, &best);
  if (status == KVC_OK) expect_equal(best, wanted, "best");
  judge(made, status, expected);
}

void EncoderWorld::resume() {
  const int32_t sequence = some_sequence();
  const int32_t want = random_.chance(0.3) ? INT32_MAX : some_position(sequence);
  Call made = call(EncoderOp::resume,
                   "sequence " + std::to_string(sequence) + " want " + std::to_string(want));
  int32_t got = -7, wanted = -7;
  const kvc_status expected = oracle_.resume(sequence, want, &wanted);
  const kvc_status status = kvc_resume(cache_, sequence, want, &got);
  if (status == KVC_OK) expect_equal(got, wanted, "got");
  judge(made, status, expected);
}

void EncoderWorld::copy_prefix() {
  const int32_t src = some_sequence();
  int32_t dst = some_sequence();
  if (dst == src && !random_.chance(0.1)) dst = (src + 1) % setup_.cache.max_sequences;
  const int32_t len = random_.chance(0.4) ? INT32_MAX : some_position(src);
  Call made = call(EncoderOp::copy_prefix, "src " + std::to_string(src) + " dst " +
                                               std::to_string(dst) + " len " + std::to_string(len));
  int32_t got = -7, wanted = -7;
  const kvc_status expected = oracle_.copy_prefix(src, dst, len, &wanted);
  const kvc_status status = kvc_copy_prefix(cache_, src, dst, len, &got);
  if (status == KVC_OK) expect_equal(got, wanted, "got");
  judge(made, status, expected);
}

void EncoderWorld::reorder() {
  Numbers dst, src;
  std::string arguments;
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    if (random_.chance(0.3)) continue;
    dst.push_back(random_.chance(0.02) ? some_sequence() : s);
    src.push_back(some_sequence());
    arguments += ' ' + std::to_string(src.back()) + "->" + std::to_string(dst.back());
  }
  if (random_.chance(0.5)) {
    std::reverse(dst.begin(), dst.end());
    std::reverse(src.begin(), src.end());
  }
  const int32_t n = random_.chance(0.01) ? -1 : static_cast<int32_t>(dst.size());
  Call made = call(EncoderOp::reorder, arguments);
  const kvc_status expected = oracle_.reorder(n, dst.data(), src.data());
  judge(made, kvc_reorder(cache_, n, dst.data(), src.data()), expected);
}

/// To the end, in the middle, or what either would return.
void EncoderWorld::remove(EncoderOp op) {
  const int32_t sequence = some_sequence();
  const int32_t begin = some_position(sequence);
  int32_t end = some_position(sequence);
  if (op == EncoderOp::remove_tail || (op == EncoderOp::can_remove && random_.chance(0.3))) {
    end = KVC_SEQ_END;
  } else if (begin >= 0 && random_.chance(0.5)) {  // short ranges leave something to move
    end = static_cast<int32_t>(std::min<int64_t>(int64_t{begin} + random_.below(3), INT32_MAX));
  }
  Call made = call(op, std::to_string(sequence) + " [" + std::to_string(begin) + ", " +
                           std::to_string(end) + ")");
  if (op == EncoderOp::can_remove) {
    state_may_change_ = false;
    const kvc_status expected = oracle_.can_remove(sequence, begin, end);
    return judge(made, kvc_can_remove(cache_, sequence, begin, end), expected);
  }
  const kvc_status expected = oracle_.remove(sequence, begin, end);
  judge(made, kvc_remove(cache_, sequence, begin, end), expected);
}

void EncoderWorld::bind_attention() {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const int32_t layer = random_.below(setup_.cache.n_layers);
  LayerAttention changed = setup_.attention[static_cast<size_t>(layer)];
  changed.desc.softcap = random_.pick({0.0f, 2.0f, 15.0f});
  changed.desc.scale = random_.pick({0.0f, 0.3f, 1.5f});
  const bool slopes = random_.chance(0.2);  // distances, which the keys do not have
  if (slopes) changed.slopes.assign(static_cast<size_t>(changed.desc.n_q_heads), 0.5f);
  Call made = call(EncoderOp::bind_attention,
                   "layer " + std::to_string(layer) + (slopes ? " slopes" : ""));
  state_may_change_ = false;
  const kvc_status expected = oracle_.pass_open ? KVC_E_BAD_STATE
                              : slopes          ? KVC_E_NOT_SUPPORTED
                                                : KVC_OK;
  if (expected == KVC_OK) changed.bind(oracle_.constants[static_cast<size_t>(layer)]);
  judge(made, changed.bind(cache_, layer), expected);
}

/// NOT_SUPPORTED before anything else is looked at, so that no argument matters.
void EncoderWorld::lacking() {
  const int32_t which = random_.below(3);
  Call made = call(EncoderOp::lacking, std::to_string(which));
  state_may_change_ = false;
  const int32_t number = odd_number();
  const kvc_status status = which == 0   ? kvc_set_causal(cache_, number, nullptr)
                            : which == 1 ? kvc_bind_rope(cache_, number, number, nullptr, nullptr)
                                         : kvc_bind_shift(cache_, nullptr, nullptr);
  judge(made, status, KVC_E_NOT_SUPPORTED);
}

}  // namespace fuzz
