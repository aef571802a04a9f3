#pragma once
#include <string>
#include <vector>

#include "fuzz_counts.hpp"
#include "fuzz_setup.hpp"
#include "kvc/encoder.h"

/// The encoder caches that the random operations run on, and what a run counts.
namespace fuzz {

struct EncoderSetup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_encoder_desc encoder{};
  std::vector<LayerAttention> attention;  // [n_layers]

  std::string describe() const;
};

const std::vector<std::string>& encoder_setup_names();
EncoderSetup draw_encoder_setup(const std::string& name, support::Random& random);

enum class EncoderOp {
  begin,
  begin_reserve,
  fits,
  put,
  encoder_put,
  put_attention,
  share,
  attention,
  get,
  mask,
  history,
  gather,
  commit,
  commit_prefix,
  abort,
  can_resume,
  resume,
  copy_prefix,
  reorder,
  remove_tail,
  remove_middle,
  can_remove,
  bind_attention,
  lacking,  // calls that encoder caches do not have: they succeed in returning NOT_SUPPORTED
  state,    // check, sequence_query, encoder_query, runs, stats, digest
  count
};

const char* name(EncoderOp op);

/// What an operation met when it was called.
struct EncoderCircumstances {
  bool shared = false;  // an input that several sequences hold
  bool full = false;    // no free slot
  bool open = false;    // a pass
};

class EncoderCoverage : public Counts {
 public:
  EncoderCoverage();
  void record(EncoderOp op, bool succeeded, const EncoderCircumstances& met);
};

}  // namespace fuzz
