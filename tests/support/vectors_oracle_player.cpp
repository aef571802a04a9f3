#include "model/encoder_oracle.hpp"
#include "model/oracle.hpp"
#include "model/recurrent_oracle.hpp"
#include "model/wrapper_oracle.hpp"
#include "vectors_players.hpp"

namespace players {
namespace {

/// A child and its oracle.
class OracleChild : public Child {
 public:
  virtual model::Kind& oracle() = 0;
};

class CausalOracleChild final : public OracleChild {
 public:
  explicit CausalOracleChild(const ChildScript& script) : oracle_(script.cache, script.causal) {
    for (model::Rope& rope : oracle_.rope)
      if (script.rope) rope = {0, 4, false, {1.0, 0.01}};
  }
  model::Kind& oracle() override { return oracle_; }

  void put(const Pass& pass, const std::set<int32_t>&) override {
    const auto dv = static_cast<size_t>(oracle_.cache.head_dim_v);
    const std::vector<float> k(pass.position.size() * 4, 1.0f);
    std::vector<float> v(pass.position.size() * dv, 0.0f);
    for (size_t i = 0; i < pass.value.size(); ++i)
      v[i * dv + static_cast<size_t>(pass.value[i])] = 1;
    for (int32_t layer = 0; layer < n_layers; ++layer) oracle_.put(layer, k, v);
  }
  json seen() override {
    json result = json::array();
    for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) result.push_back(named(oracle_.visible(t)));
    return result;
  }
  json held(int32_t sequence) override {
    return named(oracle_.sequences[static_cast<size_t>(sequence)].tokens);
  }

 private:
  json named(const std::vector<model::Token>& tokens) const {
    json result = json::array();
    for (const model::Token& token : tokens) {
      const std::vector<double> one_hot = oracle_.value(1, token);
      const auto found = std::find(one_hot.begin(), one_hot.end(), 1.0);
      const int64_t value = found == one_hot.end() ? -1 : found - one_hot.begin();
      result.push_back({token.position, value});
    }
    return result;
  }

  model::Oracle oracle_;
};

class EncoderOracleChild final : public OracleChild {
 public:
  explicit EncoderOracleChild(const ChildScript& script) : oracle_(script.cache, script.encoder) {}
  model::Kind& oracle() override { return oracle_; }

  void put(const Pass& pass, const std::set<int32_t>& shared) override {
    const auto row = static_cast<size_t>(oracle_.cache.n_kv_heads * oracle_.cache.head_dim_k);
    for (const Input& input : pass.inputs) {
      if (shared.count(input.sequence) != 0) continue;
      const std::vector<float> values(static_cast<size_t>(input.length) * row,
                                      static_cast<float>(input.number + 1));
      for (int32_t layer = 0; layer < n_layers; ++layer)
        oracle_.put_input(layer, input.sequence, input.length, values, values);
    }
  }
  json seen() override {
    json result = json::array();
    for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
      const int32_t input = oracle_.seen(t);
      result.push_back(input < 0 ? json({-1, 0}) : json({number(input), length(input)}));
    }
    return result;
  }
  json held(int32_t sequence) override {
    const model::EncoderSequence& held = oracle_.sequences[static_cast<size_t>(sequence)];
    if (held.input < 0) return nullptr;
    return json({held.at, number(held.input), length(held.input)});
  }

 private:
  int32_t length(int32_t input) const { return oracle_.inputs[static_cast<size_t>(input)].length; }
  int32_t number(int32_t input) const {
    return length(input) == 0 ? -1 : static_cast<int32_t>(oracle_.value(1, input, 0)[0]) - 1;
  }

  model::EncoderOracle oracle_;
};

class RecurrentOracleChild final : public OracleChild {
 public:
  explicit RecurrentOracleChild(const ChildScript& script)
      : oracle_(script.cache, script.recurrent) {}
  model::Kind& oracle() override { return oracle_; }

  void put(const Pass& pass, const std::set<int32_t>&) override {
    layer_.clear();
    for (const model::RecurrentRows& rows : oracle_.layout()) {
      Numbers values;
      for (const int32_t token : rows.tokens)
        values.push_back(pass.value[static_cast<size_t>(token)]);
      const int32_t before = oracle_.pass.before[static_cast<size_t>(rows.sequence)].state;
      layer_.push_back(layer_rows(rows.sequence, memory(before), values,
                                  static_cast<int32_t>(rows.states.size())));
    }
    std::vector<float> x, h;
    for (const int32_t value : pass.value)
      x.insert(x.end(), static_cast<size_t>(oracle_.recurrent.conv_channels),
               static_cast<float>(value + 1));
    for (const LayerRows& each : layer_)
      for (const Memory& row : each.rows)
        h.insert(h.end(), static_cast<size_t>(oracle_.recurrent.state_size),
                 static_cast<float>(row.h));
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      if (oracle_.has(KVC_PART_CONV)) oracle_.conv(layer, x);
      oracle_.put(layer, KVC_PART_RECURRENT, h);
    }
  }
  json seen() override { return described(layer_); }
  json held(int32_t s) override {
    const model::RecurrentSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    const Memory now = memory(sequence.state);
    json checkpoints = json::array();
    for (const model::Checkpoint& each : sequence.checkpoints)
      checkpoints.push_back({each.at, memory(each.state).h, int{each.approximate}});
    return json({now.h, now.columns, int{sequence.approximate}, checkpoints});
  }

 private:
  Memory memory(int32_t state) const {
    Memory result{static_cast<int64_t>(oracle_.values(state, 1, KVC_PART_RECURRENT)[0]), {}};
    const std::vector<float> conv = oracle_.values(state, 1, KVC_PART_CONV);
    for (int32_t i = 0; i < (conv.empty() ? 0 : oracle_.recurrent.conv_dim); ++i)
      result.columns.push_back(static_cast<int64_t>(conv[static_cast<size_t>(i)]));
    return result;
  }

  model::RecurrentOracle oracle_;
  std::vector<LayerRows> layer_;
};

class OraclePlayer final : public Player {
 public:
  explicit OraclePlayer(const Script& script) {
    std::vector<model::Kind*> oracles;
    for (const ChildScript& child : script.children) {
      std::unique_ptr<OracleChild> made;
      if (child.cache.kind == KVC_CAUSAL) made = std::make_unique<CausalOracleChild>(child);
      if (child.cache.kind == KVC_ENCODER) made = std::make_unique<EncoderOracleChild>(child);
      if (child.cache.kind == KVC_RECURRENT) made = std::make_unique<RecurrentOracleChild>(child);
      oracles.push_back(&made->oracle());
      if (auto* encoder = dynamic_cast<model::EncoderOracle*>(oracles.back())) encoder_ = encoder;
      children.push_back(std::move(made));
    }
    top_ = oracles[0];
    if (!script.wrapped) return;
    wrapper_ = std::make_unique<model::WrapperOracle>(oracles);
    top_ = wrapper_.get();
  }

  kvc_status begin(const Pass& pass) override {
    return top_->begin(pass.n(), pass.position.data(), pass.sequence.data(), pass.token_flags(), 0);
  }
  kvc_status fits(const Pass& pass) override {
    return top_->fits(pass.n(), pass.position.data(), pass.sequence.data(), pass.token_flags());
  }
  kvc_status share(int32_t sequence, int32_t source) override {
    return encoder_->share(sequence, source);
  }
  kvc_status set_causal(const Numbers& except) override {
    return top_->set_causal(static_cast<int32_t>(except.size()), except.data());
  }
  kvc_status commit() override { return top_->commit(); }
  kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) override {
    return top_->commit_prefix(static_cast<int32_t>(sequence.size()), sequence.data(), keep.data());
  }
  kvc_status abort() override { return top_->abort(); }
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) override {
    return top_->can_resume(sequence, want, best);
  }
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got) override {
    return top_->resume(sequence, want, got);
  }
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) override {
    return top_->copy_prefix(src, dst, len, got);
  }
  kvc_status reorder(const Numbers& dst, const Numbers& src) override {
    return top_->reorder(static_cast<int32_t>(dst.size()), dst.data(), src.data());
  }
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end) override {
    return top_->remove(sequence, begin, end);
  }
  kvc_status checkpoint_take(int32_t sequence) override { return top_->checkpoint_take(sequence); }
  int32_t next(int32_t sequence) override { return top_->next(sequence); }
  support::Digest digest() override { return {}; }  // what it holds is compared in full

 private:
  model::Kind* top_ = nullptr;
  model::EncoderOracle* encoder_ = nullptr;  // the only one
  std::unique_ptr<model::WrapperOracle> wrapper_;
};

}  // namespace

std::unique_ptr<Player> make_oracle_player(const Script& script) {
  return std::make_unique<OraclePlayer>(script);
}

}  // namespace players
