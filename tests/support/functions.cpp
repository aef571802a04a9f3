#include "functions.hpp"

#include "kvc/encoder.h"
#include "kvc/operators.h"
#include "kvc/recurrent.h"
#include "kvc/transformer.h"
#include "kvc/wrapper.h"

namespace support {

std::vector<Function> functions(Specimen& s) {
  static const int32_t position[] = {3, 1}, sequence[] = {0, 1}, keep[] = {1, 1};
  static int32_t number;
  static uint64_t digest[2];
  static kvc_sequence_info info;
  static kvc_stats stats;
  static kvc_attention_desc attention;
  static kvc_rope_desc rope;
  static kvc_run runs[8];
  info.struct_size = sizeof info;
  stats.struct_size = sizeof stats;
  attention.struct_size = sizeof attention;
  attention.n_q_heads = Specimen::q_heads;
  rope.struct_size = sizeof rope;
  return {
      {"begin", [](kvc_cache* c) { return kvc_begin(c, 2, position, sequence, nullptr, 0, nullptr); }},
      {"fits", [](kvc_cache* c) { return kvc_fits(c, 2, position, sequence, nullptr); }},
      {"put", [&s](kvc_cache* c) { return kvc_put(c, 0, &s.k, &s.v); }},
      {"set_causal", [](kvc_cache* c) { return kvc_set_causal(c, 1, sequence); }},
      {"commit", [](kvc_cache* c) { return kvc_commit(c); }},
      {"commit_prefix", [](kvc_cache* c) { return kvc_commit_prefix(c, 2, sequence, keep); }},
      {"abort", [](kvc_cache* c) { return kvc_abort(c); }},
      {"can_resume", [](kvc_cache* c) { return kvc_can_resume(c, 0, 1, &number); }},
      {"resume", [](kvc_cache* c) { return kvc_resume(c, 0, 1, &number); }},
      {"copy_prefix", [](kvc_cache* c) { return kvc_copy_prefix(c, 0, 1, 2, &number); }},
      {"reorder", [](kvc_cache* c) { return kvc_reorder(c, 2, sequence, sequence); }},
      {"remove", [](kvc_cache* c) { return kvc_remove(c, 0, 1, KVC_SEQ_END); }},
      {"can_remove", [](kvc_cache* c) { return kvc_can_remove(c, 0, 1, KVC_SEQ_END); }},
      {"sequence_query", [](kvc_cache* c) { return kvc_sequence_query(c, 0, &info); }},
      {"cache_stats", [](kvc_cache* c) { return kvc_cache_stats(c, &stats); }},
      {"state_digest", [](kvc_cache* c) { return kvc_state_digest(c, digest); }},
      {"check", [](kvc_cache* c) { return kvc_check(c); }},
      {"bind_attention",
       [](kvc_cache* c) { return kvc_bind_attention(c, 0, 1, &attention, nullptr, nullptr); }},
      {"bind_rope", [](kvc_cache* c) { return kvc_bind_rope(c, 0, 1, &rope, nullptr); }},
      {"bind_scales", [](kvc_cache* c) { return kvc_bind_scales(c, 0, 1, nullptr, nullptr); }},
      {"bind_shift", [](kvc_cache* c) { return kvc_bind_shift(c, nullptr, nullptr); }},
      {"bind_operator",
       [](kvc_cache* c) { return kvc_bind_operator(c, 0, 1, KVC_MODE_ALL, nullptr); }},
      {"attention", [&s](kvc_cache* c) { return support::attention(c, 0, &s.q, &s.out, &s.lse); }},
      {"attention_extra",
       [&s](kvc_cache* c) {
         const kvc_attention_extra extra = support::extra(&s.bias, &s.mask, &s.weights);
         return support::attention(c, 0, &s.q, &s.out, &s.lse, &extra);
       }},
      {"put_attention",
       [&s](kvc_cache* c) { return support::put_attention(c, 0, &s.k, &s.v, &s.q, &s.out, &s.lse); }},
      {"get", [&s](kvc_cache* c) { return kvc_get(c, 0, &s.out, &s.lse); }},
      {"get_codes",
       [](kvc_cache* c) {
         kvc_tensor k{}, v{};
         return kvc_get_codes(c, 0, &k, nullptr, &v, nullptr);
       }},
      {"get_copy",
       [](kvc_cache* c) {
         kvc_tensor k{}, v{};
         return kvc_get_copy(c, 0, &k, &v);
       }},
      {"put_codes", [&s](kvc_cache* c) { return kvc_put_codes(c, 0, &s.k, nullptr, &s.v, nullptr); }},
      {"history", [](kvc_cache* c) { return kvc_history(c, 0, &number, &number); }},
      {"mask",
       [](kvc_cache* c) {
         kvc_tensor into{};
         return kvc_mask(c, 0, &into);
       }},
      {"gather", [](kvc_cache* c) { return kvc_gather(c, 0, 0, nullptr, nullptr); }},
      {"runs", [](kvc_cache* c) { return kvc_runs(c, 0, 0, 8, runs, &number); }},
  };
}

std::vector<Function> functions_of_other_kinds() {
  return {
      {"encoder_put", [](kvc_cache* c) { return kvc_encoder_put(c, -1, -1, nullptr, nullptr); }},
      {"encoder_share", [](kvc_cache* c) { return kvc_encoder_share(c, -1, -1); }},
      {"encoder_query", [](kvc_cache* c) { return kvc_encoder_query(c, -1, nullptr, nullptr); }},
      {"state_layout",
       [](kvc_cache* c) { return kvc_state_layout(c, -1, nullptr, nullptr, nullptr); }},
      {"state_get", [](kvc_cache* c) { return kvc_state_get(c, -1, 0, nullptr); }},
      {"state_put", [](kvc_cache* c) { return kvc_state_put(c, -1, 0, nullptr); }},
      {"state_conv", [](kvc_cache* c) { return kvc_state_conv(c, -1, nullptr); }},
      {"state_view", [](kvc_cache* c) { return kvc_state_view(c, -1, 0, -1, nullptr, nullptr); }},
      {"state_slots", [](kvc_cache* c) { return kvc_state_slots(c, -1, nullptr, nullptr); }},
      {"state_done", [](kvc_cache* c) { return kvc_state_done(c, -1, 0); }},
      {"state_gather", [](kvc_cache* c) { return kvc_state_gather(c, -1, 0, -1, -1, nullptr); }},
      {"checkpoint_take", [](kvc_cache* c) { return kvc_checkpoint_take(c, -1); }},
      {"checkpoint_list",
       [](kvc_cache* c) { return kvc_checkpoint_list(c, -1, -1, nullptr, nullptr); }},
      {"cache_child", [](kvc_cache* c) { return kvc_cache_child(c, -1, nullptr, nullptr); }},
      {"begin_rows",
       [](kvc_cache* c) { return kvc_begin_rows(c, -1, 8, nullptr, nullptr, nullptr, nullptr); }},
      {"fits_rows", [](kvc_cache* c) { return kvc_fits_rows(c, -1, 8, nullptr, nullptr, nullptr); }},
      {"rows_query", [](kvc_cache* c) { return kvc_rows_query(c, -1, -1, nullptr, nullptr); }},
      {"rows_set", [](kvc_cache* c) { return kvc_rows_set(c, -1, -1, nullptr, nullptr); }},
      {"insert", [](kvc_cache* c) { return kvc_insert(c, nullptr, -1); }},
      {"rows_view",
       [](kvc_cache* c) { return kvc_rows_view(c, -1, nullptr, nullptr, nullptr, nullptr); }},
      {"rows_fill",
       [](kvc_cache* c) { return kvc_rows_fill(c, -1, -1, -1, nullptr, nullptr, nullptr, nullptr); }},
  };
}

}  // namespace support
