#include "recurrent_setup.hpp"

#include <sstream>

#include "state_world.hpp"

namespace fuzz {

RecurrentSetup draw_recurrent_setup(const std::string& name, support::Random& random,
                                    const InCommon& common) {
  RecurrentSetup setup;
  setup.name = name;
  const auto is = [&](const char* other) { return name == other; };
  kvc_cache_desc& cache = setup.cache;
  cache.struct_size = sizeof cache;
  cache.kind = KVC_RECURRENT;
  cache.n_layers = random.between(1, 3);
  cache.max_sequences = common.sequences(random.between(1, 4));
  cache.max_batch = common.batch(random.between(1, 8));
  if (is("strict") || random.chance(0.05)) cache.flags |= KVC_CACHE_STRICT;
  if (random.chance(0.3)) cache.flags |= KVC_CACHE_ZERO_ON_FREE;
  if (random.chance(0.1)) cache.flags |= KVC_CACHE_PREFAULT;
  kvc_recurrent_desc& recurrent = setup.recurrent;
  recurrent = KVC_RECURRENT_DESC_INIT;
  const int32_t parts = random.below(4);  // both, twice as often as one
  if (parts != 0) recurrent.state_size = random.pick<int64_t>({1, 2, 3, 6, 8, 12, 35});
  if (parts != 1) {
    recurrent.conv_channels = random.between(1, 5);
    recurrent.conv_dim = random.between(1, 4);
  } else if (random.chance(0.3)) {
    recurrent.conv_channels = 3;  // a part without columns is none
  }
  const auto dtype = [&] { return random.pick<uint32_t>({0u, KVC_F32, KVC_F16, KVC_BF16}); };
  recurrent.dtype_state = dtype();
  recurrent.dtype_conv = dtype();
  if (is("approximate") || random.chance(0.3)) recurrent.flags |= KVC_RECURRENT_APPROXIMATE;
  if (random.chance(0.2)) recurrent.flags |= KVC_RECURRENT_HOST_CHECKPOINTS;
  draw_checkpoints(name, random, recurrent);
  return setup;
}

std::string RecurrentSetup::describe() const {
  std::ostringstream text;
  text << name << ": layers " << cache.n_layers << " sequences " << cache.max_sequences
       << " max_batch " << cache.max_batch << " flags " << cache.flags << " | state "
       << recurrent.state_size << " conv " << recurrent.conv_channels << " x " << recurrent.conv_dim
       << std::hex << " dtype_state 0x" << recurrent.dtype_state << " dtype_conv 0x"
       << recurrent.dtype_conv << std::dec << " flags " << recurrent.flags << " checkpoints "
       << recurrent.checkpoints << " interval " << recurrent.checkpoint_interval << " min_pos "
       << recurrent.checkpoint_min_pos << " draft_states " << recurrent.draft_states;
  return text.str();
}

}  // namespace fuzz
