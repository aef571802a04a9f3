#include "model/attention.hpp"
#include "model/oracle.hpp"
#include "vectors_players.hpp"

namespace players {
namespace {

class OraclePlayer final : public Player {
 public:
  explicit OraclePlayer(const Script& script) : oracle_(script.cache, script.causal) {
    for (model::Rope& rope : oracle_.rope)
      if (script.rope) rope = {0, 4, false, {1.0, 0.01}};
  }

  kvc_status begin(const Numbers& position, const Numbers& sequence, const Numbers& value) override {
    const auto n = static_cast<int32_t>(position.size());
    const kvc_status status = oracle_.begin(n, position.data(), sequence.data(), nullptr, 0);
    if (status != KVC_OK) return status;
    const auto dv = static_cast<size_t>(oracle_.cache.head_dim_v);
    const std::vector<float> k(position.size() * 4, 1.0f);
    std::vector<float> v(position.size() * dv, 0.0f);
    for (size_t i = 0; i < value.size(); ++i) v[i * dv + static_cast<size_t>(value[i])] = 1;
    for (int32_t layer = 0; layer < oracle_.cache.n_layers; ++layer) oracle_.put(layer, k, v);
    return status;
  }
  kvc_status fits(const Numbers& position, const Numbers& sequence) override {
    return oracle_.fits(static_cast<int32_t>(position.size()), position.data(), sequence.data(),
                        nullptr);
  }
  kvc_status set_causal(const Numbers& except) override {
    return oracle_.set_causal(static_cast<int32_t>(except.size()), except.data());
  }
  kvc_status commit() override { return oracle_.commit(); }
  kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) override {
    return oracle_.commit_prefix(static_cast<int32_t>(sequence.size()), sequence.data(), keep.data());
  }
  kvc_status abort() override { return oracle_.abort(); }
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) override {
    return oracle_.can_resume(sequence, want, best);
  }
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got) override {
    return oracle_.resume(sequence, want, got);
  }
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) override {
    return oracle_.copy_prefix(src, dst, len, got);
  }
  kvc_status reorder(const Numbers& dst, const Numbers& src) override {
    return oracle_.reorder(static_cast<int32_t>(dst.size()), dst.data(), src.data());
  }
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end) override {
    return oracle_.remove(sequence, begin, end);
  }

  Held visible(int32_t batch_index) override { return named(oracle_.visible(batch_index)); }
  Held held(int32_t sequence) override {
    return named(oracle_.sequences[static_cast<size_t>(sequence)].tokens);
  }
  int32_t next(int32_t sequence) override { return oracle_.info(sequence).next; }

 private:
  Held named(const std::vector<model::Token>& tokens) const {
    Held result;
    for (const model::Token& token : tokens) {
      const std::vector<double> one_hot = oracle_.value(1, token);
      for (size_t value = 0; value < one_hot.size(); ++value)
        if (one_hot[value] == 1) result.insert({token.position, static_cast<int32_t>(value)});
    }
    return result;
  }

  model::Oracle oracle_;
};

}  // namespace

std::unique_ptr<Player> make_oracle_player(const Script& script) {
  return std::make_unique<OraclePlayer>(script);
}

}  // namespace players
