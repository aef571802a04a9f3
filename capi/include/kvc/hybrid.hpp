// kvc/hybrid.hpp: one cache for a model whose layers differ, made from a description of its layers. For C++17 and later.
//
// Windows beside full attention, self attention beside cross attention, states beside keys and values: describe each layer, and
// layer i of the cache is layer i of the model. Layers with equal descriptions share a cache inside it. The calls of kvc/kvc.hpp
// reach all of these caches or none, and kvc/wrapper.h documents what each call does.
//
//   kvc::CacheDesc desc;  // n_layers is counted
//   desc.n_kv_heads = 1, desc.head_dim_k = 256, desc.capacity = 8192, desc.max_sequences = 4, desc.max_batch = 512;
//   kvc::CausalDesc window;
//   window.reach = 511;
//   std::vector<kvc::Layer> layers;
//   for (int i = 0; i < 18; ++i) layers.push_back(i % 6 == 5 ? kvc::Layer(desc) : kvc::Layer(desc, window));
//   kvc::Hybrid gemma(kvc::Device("cpu"), layers);
//   kvc::Pass pass(gemma, positions, sequences);
//   gemma.put(layer, …);
//
// A layer of the model that needs two caches (self attention and cross attention) is two layers here.
#ifndef KVC_HYBRID_HPP
#define KVC_HYBRID_HPP

#include <cstring>

#include "kvc.hpp"

namespace kvc {
inline namespace api_0_2 {

// What one layer needs of a cache. n_layers and kind of the descriptors are filled in.
class Layer {
 public:
  explicit Layer(const CacheDesc &desc, const CausalDesc &causal = {}) : kind_(Kind::causal), desc_(desc), causal_(causal) {}
  Layer(const CacheDesc &desc, const EncoderDesc &encoder) : kind_(Kind::encoder), desc_(desc), encoder_(encoder) {}
  Layer(const CacheDesc &desc, const RecurrentDesc &recurrent)
      : kind_(Kind::recurrent), desc_(desc), recurrent_(recurrent) {}

  // The cache of this many such layers.
  Cache create(const Device &device, std::int32_t n_layers) const {
    const CacheDesc desc = with(n_layers);
    switch (kind_) {
      case Kind::encoder: return Cache(device, desc, encoder_);
      case Kind::recurrent: return Cache(device, desc, recurrent_);
      default: return Cache(device, desc, causal_);
    }
  }
  std::uint64_t memory_bytes(const Device &device, std::int32_t n_layers) const {
    const CacheDesc desc = with(n_layers);
    switch (kind_) {
      case Kind::encoder: return Cache::memory_bytes(device, desc, encoder_);
      case Kind::recurrent: return Cache::memory_bytes(device, desc, recurrent_);
      default: return Cache::memory_bytes(device, desc, causal_);
    }
  }

  // No descriptor has padding, so equal bytes are equal values.
  friend bool operator==(const Layer &a, const Layer &b) noexcept {
    const auto same = [](const auto &x, const auto &y) { return std::memcmp(&x, &y, sizeof x) == 0; };
    return a.kind_ == b.kind_ && same(a.desc_, b.desc_) && same(a.causal_, b.causal_) && same(a.encoder_, b.encoder_) &&
           same(a.recurrent_, b.recurrent_);
  }
  friend bool operator!=(const Layer &a, const Layer &b) noexcept { return !(a == b); }

 private:
  CacheDesc with(std::int32_t n_layers) const {
    CacheDesc desc = desc_;
    desc.n_layers = n_layers;
    return desc;
  }

  Kind kind_;
  CacheDesc desc_;
  CausalDesc causal_;
  EncoderDesc encoder_;
  RecurrentDesc recurrent_;
};

// A wrapper of the caches that a model's layers need.
class Hybrid : public Cache {
 public:
  Hybrid(const Device &device, const std::vector<Layer> &layers) : Hybrid(Plan(layers), device) {}

  // The bytes that such a cache would take; allocates nothing.
  static std::uint64_t memory_bytes(const Device &device, const std::vector<Layer> &layers) {
    const Plan plan(layers);
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < plan.kinds.size(); ++i) bytes += plan.kinds[i]->memory_bytes(device, plan.counts[i]);
    return bytes;
  }

  // The caches inside, in the order in which their layers first appear. Two threads may put two of them at the same time.
  const std::vector<Cache> &children() const noexcept { return children_; }
  std::vector<Cache> &children() noexcept { return children_; }

 private:
  struct Plan {
    explicit Plan(const std::vector<Layer> &layers) {
      for (const Layer &layer : layers) {
        std::size_t child = 0;
        while (child < kinds.size() && *kinds[child] != layer) ++child;
        if (child == kinds.size()) kinds.push_back(&layer), counts.push_back(0);
        places.push_back({static_cast<std::int32_t>(child), counts[child]++});
      }
    }
    std::vector<const Layer *> kinds;
    std::vector<std::int32_t> counts;  // layers of each
    std::vector<ChildLayer> places;
  };

  Hybrid(const Plan &plan, const Device &device) : Hybrid(plan, create(plan, device)) {}
  Hybrid(const Plan &plan, std::vector<Cache> children)
      : Cache(wrap(pointers_to(children), plan.places)), children_(std::move(children)) {}

  static std::vector<Cache> create(const Plan &plan, const Device &device) {
    std::vector<Cache> children;
    for (std::size_t i = 0; i < plan.kinds.size(); ++i) children.push_back(plan.kinds[i]->create(device, plan.counts[i]));
    return children;
  }
  static std::vector<Cache *> pointers_to(std::vector<Cache> &children) {
    std::vector<Cache *> pointers;
    for (Cache &child : children) pointers.push_back(&child);
    return pointers;
  }

  std::vector<Cache> children_;
};

}  // namespace api_0_2
}  // namespace kvc

#endif
