#include "lightning_rig.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "array.hpp"

namespace support {

LightningRig::LightningRig(kvc_device* device) : device_(device) {
  desc.struct_size = sizeof desc;
  desc.kind = KVC_LIGHTNING;
  desc.n_layers = 2;
  desc.n_kv_heads = 2;
  desc.head_dim_k = 5;
  desc.head_dim_v = 20;
  desc.max_sequences = 4;
  desc.max_batch = 16;
  lightning.checkpoint_interval = KVC_NONE;
}

void LightningRig::create() {
  if (n_q_heads == 0) n_q_heads = desc.n_kv_heads;
  if (slopes.empty())
    for (int32_t i = 0; i < desc.n_layers * desc.n_kv_heads; ++i)
      slopes.push_back(0.25f / static_cast<float>(1 << i));
  ASSERT_EQ(kvc_cache_create(device_, &desc, &lightning, &cache.handle), KVC_OK) << last_message();
  for (int32_t layer = 0; layer < desc.n_layers; ++layer)
    ASSERT_EQ(kvc_bind_decay(cache, layer, layer + 1, slopes.data() + layer * desc.n_kv_heads), KVC_OK)
        << last_message();
}

std::vector<int32_t> LightningRig::checkpoints(int32_t sequence) const {
  int32_t n = 0;
  EXPECT_EQ(kvc_checkpoint_list(cache, sequence, 0, nullptr, &n), KVC_OK);
  std::vector<int32_t> at(static_cast<size_t>(n));
  EXPECT_EQ(kvc_checkpoint_list(cache, sequence, n, at.data(), &n), KVC_OK);
  return at;
}

kvc_status LightningRig::begin(const std::vector<Token>& tokens, uint64_t salt) {
  std::vector<int32_t> position, sequence;
  std::vector<uint32_t> flags;
  std::vector<int32_t> next_of;
  for (int32_t s = 0; s < desc.max_sequences; ++s) next_of.push_back(next(s));
  for (const Token& token : tokens) {
    int32_t at = token.position;
    if (token.sequence >= 0) {
      int32_t& follows = next_of[static_cast<size_t>(token.sequence)];
      if (at < 0) at = follows;
      follows = at + 1;
    }
    position.push_back(at);
    sequence.push_back(token.sequence);
    flags.push_back(token.masked ? uint32_t{KVC_TOKEN_MASKED} : 0);
  }
  const kvc_status status = kvc_begin(cache, static_cast<int32_t>(tokens.size()), position.data(),
                                      sequence.data(), flags.data(), 0, nullptr);
  if (status != KVC_OK) return status;
  tokens_ = tokens;
  salt_ = salt;
  return status;
}

kvc_tensor LightningRig::tensor(std::vector<float>& data, int64_t heads, int64_t dim) const {
  return dense(data.data(), KVC_F32, {n_tokens(), heads, dim});
}

/// Rows that are not to be read are NaN.
void LightningRig::draw(int32_t layer) {
  const auto salt = salt_ + 3 * static_cast<uint64_t>(layer);
  const int64_t of_k = desc.n_kv_heads * desc.head_dim_k, of_v = desc.n_kv_heads * desc.head_dim_v;
  const int64_t of_q = n_q_heads * desc.head_dim_k;
  k_ = wave(salt, n_tokens() * of_k);
  v_ = wave(salt + 1, n_tokens() * of_v);
  q_ = wave(salt + 2, n_tokens() * of_q);
  out_.assign(static_cast<size_t>(n_tokens() * n_q_heads * desc.head_dim_v),
              std::numeric_limits<float>::quiet_NaN());
  const auto hide = [](std::vector<float>& rows, size_t token, int64_t n) {
    const auto first = rows.begin() + static_cast<ptrdiff_t>(token) * n;
    std::fill(first, first + n, std::numeric_limits<float>::quiet_NaN());
  };
  for (size_t t = 0; t < tokens_.size(); ++t) {
    if (tokens_[t].sequence < 0) hide(q_, t, of_q);
    if (tokens_[t].sequence >= 0 && !tokens_[t].masked) continue;
    hide(k_, t, of_k);
    hide(v_, t, of_v);
  }
}

kvc_status LightningRig::put(int32_t layer) {
  draw(layer);
  const kvc_tensor k = tensor(k_, desc.n_kv_heads, desc.head_dim_k);
  const kvc_tensor v = tensor(v_, desc.n_kv_heads, desc.head_dim_v);
  return kvc_put(cache, layer, &k, &v);
}

kvc_status LightningRig::attention(int32_t layer) {
  draw(layer);
  const kvc_tensor q = tensor(q_, n_q_heads, desc.head_dim_k);
  kvc_tensor out = tensor(out_, n_q_heads, desc.head_dim_v);
  return kvc_attention(cache, layer, &q, &out, nullptr);
}

kvc_status LightningRig::put_attention(int32_t layer) {
  draw(layer);
  const kvc_tensor k = tensor(k_, desc.n_kv_heads, desc.head_dim_k);
  const kvc_tensor v = tensor(v_, desc.n_kv_heads, desc.head_dim_v);
  const kvc_tensor q = tensor(q_, n_q_heads, desc.head_dim_k);
  kvc_tensor out = tensor(out_, n_q_heads, desc.head_dim_v);
  return kvc_put_attention(cache, layer, &k, &v, &q, &out, nullptr);
}

void LightningRig::pass(const std::vector<Token>& tokens, uint64_t salt) {
  ASSERT_EQ(begin(tokens, salt), KVC_OK) << last_message();
  for (int32_t layer = 0; layer < desc.n_layers; ++layer)
    ASSERT_EQ(put_attention(layer), KVC_OK) << last_message();
}

std::vector<float> LightningRig::state(int32_t layer, int32_t sequence) const {
  std::vector<float> values(static_cast<size_t>(desc.n_kv_heads * desc.head_dim_k * desc.head_dim_v));
  kvc_tensor into = dense(values.data(), KVC_F32,
                          {1, desc.n_kv_heads, desc.head_dim_k, desc.head_dim_v});
  EXPECT_EQ(kvc_lightning_read(cache, layer, sequence, 1, &into), KVC_OK) << last_message();
  return values;
}

}  // namespace support
