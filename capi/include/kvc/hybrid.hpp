// kvc/hybrid.hpp: one cache for a model whose layers differ, made from a description of its layers. For C++17 and later.
//
// Windows beside full attention, self attention beside cross attention, states beside keys and values, linear attention beside
// softmax: describe each layer, and layer i of the cache is layer i of the model. Layers with equal descriptions share a cache
// inside it; a type, a head size, heads of V or a ring's reach of 0 equal what they stand for. The calls of kvc/kvc.hpp reach all
// of these caches or none, and kvc/wrapper.h documents what each call does.
//
//   kvc::CacheDesc desc;  // n_layers is counted
//   desc.n_kv_heads = 1, desc.head_dim_k = 256, desc.capacity = 8192, desc.max_sequences = 4, desc.max_batch = 512;
//   kvc::CausalDesc window;
//   window.reach = 511;
//   std::vector<kvc::Layer> layers;
//   for (int i = 0; i < 18; ++i) layers.push_back(i % 6 == 5 ? kvc::Layer{desc} : kvc::Layer{desc, window});
//   kvc::Hybrid gemma(kvc::Device("cpu"), layers);
//   kvc::Pass pass(gemma, positions, sequences);
//   gemma.put(layer, …);
//   pass.commit();
//
// A layer of the model that needs two caches (self attention and cross attention) is two layers here.
#ifndef KVC_HYBRID_HPP
#define KVC_HYBRID_HPP

#include <cstring>
#include <type_traits>

#include "kvc.hpp"

namespace kvc {
inline namespace api_0_2 {

// What one layer needs of a cache. Leave desc.n_layers at 0: layers are counted.
struct Layer {
  CacheDesc desc;
  KindDesc kind = {};

  // No descriptor has padding, so equal bytes are equal values.
  friend bool operator==(const Layer &a, const Layer &b) noexcept {
    const auto same_kind = [&](const auto &mine) {
      const auto *other = std::get_if<std::decay_t<decltype(mine)>>(&b.kind);
      return other != nullptr && std::memcmp(&mine, other, sizeof mine) == 0;
    };
    return std::memcmp(&a.desc, &b.desc, sizeof a.desc) == 0 && std::visit(same_kind, a.kind);
  }
  friend bool operator!=(const Layer &a, const Layer &b) noexcept { return !(a == b); }
};

// A wrapper of the caches that a model's layers need. An error that one of them causes names the first layer that lies in it.
class Hybrid : public Cache {
 public:
  Hybrid(const Device &device, const std::vector<Layer> &layers) : Hybrid(device, Plan(layers)) {}

  // The bytes that such a cache would take; allocates nothing.
  static std::uint64_t memory_bytes(const Device &device, const std::vector<Layer> &layers) {
    std::uint64_t bytes = 0;
    Plan(layers).for_each_child(
        [&](const CacheDesc &desc, const KindDesc &kind) { bytes += Cache::memory_bytes(device, desc, kind); });
    return bytes;
  }

  // The caches inside, in the order in which their layers first appear. Two threads may put two of them at the same time.
  const std::vector<Cache> &children() const noexcept { return children_; }
  std::vector<Cache> &children() noexcept { return children_; }

  // Destroys the caches inside too. The destructor does the same but cannot report BUSY. Closing twice is allowed.
  void close() {
    Cache::close();
    for (Cache &child : children_) child.close();
  }

 private:
  class Plan {
   public:
    explicit Plan(const std::vector<Layer> &layers) {
      for (std::size_t i = 0; i < layers.size(); ++i) {
        if (layers[i].desc.n_layers != 0)
          raise(KVC_E_INVALID_ARGUMENT, "layer " + std::to_string(i) + " has n_layers " +
                                            std::to_string(layers[i].desc.n_layers) + ", not 0: layers are counted");
        const Layer layer = spelled_out(layers[i]);
        std::size_t child = 0;
        while (child < children_.size() && spelled_out(*children_[child].layer) != layer) ++child;
        if (child == children_.size()) children_.push_back({&layers[i], i, 0});
        places.push_back({static_cast<std::int32_t>(child), children_[child].n_layers++});
      }
      if (layers.empty()) raise(KVC_E_INVALID_ARGUMENT, "there are no layers: give one for each of the model");
      if (children_.size() > KVC_MAX_CHILDREN)
        raise(KVC_E_INVALID_ARGUMENT, "the layers need " + std::to_string(children_.size()) +
                                          " caches, one for each that differs from those before it; at most " +
                                          std::to_string(KVC_MAX_CHILDREN) + " move as one");
    }

    template <typename Call>
    void for_each_child(const Call &call) const {
      for (const Child &child : children_) {
        CacheDesc desc = child.layer->desc;
        desc.n_layers = child.n_layers;
        try {
          call(desc, child.layer->kind);
        } catch (const Error &error) {
          raise(error.status(), "layer " + std::to_string(child.first) + ": " + error.message());
        }
      }
    }

    std::vector<ChildLayer> places;

   private:
    // With what each 0 stands for in its place.
    static Layer spelled_out(Layer layer) {
      const auto spell = [](std::uint32_t &dtype) { dtype = dtype == 0 ? std::uint32_t{KVC_F32} : dtype; };
      if (auto *states = std::get_if<RecurrentDesc>(&layer.kind)) {
        spell(states->dtype_state);
        spell(states->dtype_conv);
        return layer;
      }
      CacheDesc &desc = layer.desc;
      spell(desc.dtype_k);
      if ((desc.flags & KVC_CACHE_V_IN_K) == 0) spell(desc.dtype_v);
      if (desc.head_dim_v == 0) desc.head_dim_v = desc.head_dim_k;
      if (auto *causal = std::get_if<CausalDesc>(&layer.kind)) spell(causal->mask_dtype);
      if (auto *encoder = std::get_if<EncoderDesc>(&layer.kind)) spell(encoder->mask_dtype);
      if (auto *rows = std::get_if<TransformerDesc>(&layer.kind)) {
        spell(rows->mask_dtype);
        if (rows->value_heads == 0) rows->value_heads = desc.n_kv_heads;
        const bool is_ring = (rows->flags & KVC_TRANSFORMER_RING) != 0;
        if (is_ring && rows->reach == 0 && desc.capacity > 0) rows->reach = desc.capacity - 1;
      }
      return layer;
    }

    struct Child {
      const Layer *layer;
      std::size_t first;  // of the layers in it
      std::int32_t n_layers;
    };
    std::vector<Child> children_;
  };

  Hybrid(const Device &device, const Plan &plan) : Hybrid(plan, create(device, plan)) {}
  Hybrid(const Plan &plan, std::vector<Cache> children)
      : Cache(wrap(pointers_to(children), plan.places)), children_(std::move(children)) {}

  static std::vector<Cache> create(const Device &device, const Plan &plan) {
    std::vector<Cache> children;
    plan.for_each_child([&](const CacheDesc &desc, const KindDesc &kind) { children.emplace_back(device, desc, kind); });
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
