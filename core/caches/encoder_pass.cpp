#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/encoder.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Begin --------------------------------------------------------------------------------------------------------------

Status EncoderCache::open_pass(const Batch& batch) {
  n_carrying_ = 0;
  book_.for_each_carrying([this](int32_t sequence) {
    carrying_[sequence] = n_carrying_;
    carrying_slot_[n_carrying_++] = book_.sequence(sequence).then.slot;
  });
  std::fill_n(was_put_, int64_t{n_carrying_} * bounds_.n_layers, uint8_t{0});
  std::fill_n(missing_, bounds_.n_layers, n_carrying_);
  pass_.open(batch.n_tokens, n_carrying_ == 0, batch.replay);
  is_planned_ = false;
  return device_info_.plans_ahead ? make_plan() : Status::ok;
}

/// The length of an input is that of the tensors of its put, which a graph cannot change.
Status EncoderCache::check_replayed(const Batch& batch) const {
  for (int32_t token = 0; batch.flags != nullptr && token < batch.n_tokens; ++token) {
    if ((batch.flags[token] & token_encoder_input) == 0) continue;
    return fail(
        Status::not_supported,
        "token_flags[%d] has KVC_TOKEN_ENCODER_INPUT: graphs attend to inputs and put none; "
        "begin passes that carry inputs without KVC_BEGIN_REPLAY",
        token);
  }
  return Status::ok;
}

// ---- Put ----------------------------------------------------------------------------------------------------------------

/// The sequence whose input put() stores: the only one that carries one.
Status EncoderCache::ready_to_put(int32_t layer) const {
  if (Status s = pass_.need_pass(); s != Status::ok) return s;
  if (pass_.is_open() && n_carrying_ == 0)
    return fail(Status::bad_state,
                "no token of the pass carries an encoder input: flag one with "
                "KVC_TOKEN_ENCODER_INPUT in kvc_begin");
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (pass_.is_reserve()) return need_no_recording("a put of an encoder's input");
  if (n_carrying_ > 1) {
    return fail(Status::invalid_argument,
                "%d sequences carry an encoder input in this pass; for kvc_put it must be one: put "
                "each with kvc_encoder_put",
                n_carrying_);
  }
  return ready_to_put_input(layer, only_carrying());
}

Status EncoderCache::ready_to_put_input(int32_t layer, int32_t index) const {
  if (Status s = pass_.need_pass(); s != Status::ok) return s;
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (Status s = check_sequence(index, bounds_.max_sequences); s != Status::ok) return s;
  if (pass_.is_reserve()) return need_no_recording("a put of an encoder's input");
  const InputBook::Sequence& sequence = book_.sequence(index);
  if (sequence.carrier < 0)
    return fail(Status::invalid_argument,
                "sequence %d carries no encoder input in this pass: one of its tokens must be "
                "flagged with KVC_TOKEN_ENCODER_INPUT in kvc_begin",
                index);
  if (sequence.shares) {
    return fail(
        Status::invalid_argument,
        "sequence %d shares the input of another (kvc_encoder_share): what is put must be its own",
        index);
  }
  return Status::ok;
}

int32_t EncoderCache::only_carrying() const {
  int32_t only = -1;
  book_.for_each_carrying([&only](int32_t sequence) { only = sequence; });
  return only;
}

Status EncoderCache::rows_to_put(int64_t offered, int64_t* rows) const {
  return rows_of_input(pass_.is_reserve() ? 0 : only_carrying(), offered, rows);
}

/// The first put of an input sets its length.
Status EncoderCache::rows_of_input(int32_t sequence, int64_t offered, int64_t* rows) const {
  *rows = offered;
  if (!pass_.is_reserve() && any_put(sequence)) {
    *rows = book_.length(book_.sequence(sequence).then.slot);
    return Status::ok;
  }
  if (offered >= 1 && offered <= bounds_.capacity) return Status::ok;
  return fail(Status::shape, "k has %lld positions, not 1 to %d, which is capacity",
              static_cast<long long>(offered), bounds_.capacity);
}

bool EncoderCache::any_put(int32_t sequence) const {
  const uint8_t* first = &was_put(carrying_[sequence], 0);
  return std::any_of(first, first + bounds_.n_layers, [](uint8_t put) { return put != 0; });
}

LayerStorage EncoderCache::storage_at(int32_t layer, int32_t slot) const {
  LayerStorage storage = layers_[layer].storage;
  for (Slab* slab : {&storage.k, &storage.v}) {
    *slab = slab->from_cell(slot * bounds_.capacity);
    slab->n_cells = bounds_.capacity;
  }
  return storage;
}

/// One more input of the pass has its K and V in the layer, or needs none.
void EncoderCache::note_one_less_missing(int32_t layer) {
  if (--missing_[layer] == 0) pass_.note_put(layer);
}

Status EncoderCache::put(int32_t layer, const Tensor& k, const Tensor& v) {
  if (Status s = ready_to_put(layer); s != Status::ok) return s;
  return pass_.is_reserve() ? Status::ok : put_input(layer, only_carrying(), k, v);
}

/// Calls store(storage, rows) for the slot of the input.
template <class Store>
Status EncoderCache::put_rows(int32_t layer, int32_t sequence, int64_t offered, Store store) {
  if (Status s = ready_to_put_input(layer, sequence); s != Status::ok) return s;
  if (pass_.is_reserve()) return Status::ok;
  const int32_t slot = book_.sequence(sequence).then.slot;
  const auto rows = static_cast<int32_t>(offered);
  if (book_.length(slot) != rows) set_length(slot, rows);
  if (Status s = health_.after(store(storage_at(layer, slot), rows)); s != Status::ok) return s;
  uint8_t& put = was_put(carrying_[sequence], layer);
  if (put == 0) note_one_less_missing(layer);
  put = 1;
  return Status::ok;
}

Status EncoderCache::put_input(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) {
  return put_rows(layer, sequence, k.shape[0], [&](const LayerStorage& storage, int32_t rows) {
    return on_device_->store({storage, entries_, rows, k, v});
  });
}

Status EncoderCache::put_codes(int32_t layer, const Codes& codes) {
  if (Status s = ready_to_put(layer); s != Status::ok) return s;
  if (pass_.is_reserve()) return Status::ok;
  return put_rows(
      layer, only_carrying(), codes.k.shape[0], [&](const LayerStorage& storage, int32_t rows) {
        return on_device_->store_codes(
            {storage, entries_, rows, codes.k, codes.k_scales, codes.v, codes.v_scales});
      });
}

void EncoderCache::set_length(int32_t slot, int32_t length) {
  book_.set_length(slot, length);
  is_planned_ = false;
}

Status EncoderCache::share(int32_t sequence, int32_t source) {
  if (Status s = pass_.need_pass(); s != Status::ok) return s;
  if (pass_.is_reserve()) {
    if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
    if (Status s = check_sequence(source, bounds_.max_sequences); s != Status::ok) return s;
    if (sequence != source) return need_no_recording("kvc_encoder_share");
    return fail(Status::invalid_argument, "sequence and source are both %d; they must differ",
                sequence);
  }
  const bool is_known = sequence >= 0 && sequence < bounds_.max_sequences;
  const bool put = is_known && book_.sequence(sequence).carrier >= 0 && any_put(sequence);
  if (Status s = book_.check_share(sequence, source, put); s != Status::ok) return s;
  book_.share(sequence, source);
  carrying_slot_[carrying_[sequence]] = -1;
  const int32_t n_layers = bounds_.n_layers - planted(Bug::sharer_owes_put);
  for (int32_t layer = 0; layer < n_layers; ++layer) note_one_less_missing(layer);
  is_planned_ = false;
  return follow_book();
}

// ---- The end of a pass ---------------------------------------------------------------------------------------------------------

/// The first n positions of a slot become zeros in a layer.
Status EncoderCache::clear(int32_t layer, int32_t slot, int32_t n) {
  if (n == 0) return Status::ok;
  return health_.after(on_device_->clear({storage_at(layer, slot), entries_, n}));
}

/// With zero_on_free the slots that became free become zeros.
Status EncoderCache::follow_book() {
  for (int32_t i = 0; bounds_.zero_on_free && i < book_.n_freed(); ++i) {
    for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
      if (Status s = clear(layer, book_.freed()[i], bounds_.capacity); s != Status::ok) return s;
    }
  }
  book_.forget_freed();
  return health_.status();
}

/// In a layer that was not put, an input that stays holds zeros.
Status EncoderCache::settle_unput() {
  if (pass_.is_fully_put() || planted(Bug::unput_input_stale)) return Status::ok;
  for (int32_t i = 0; i < n_carrying_; ++i) {
    const int32_t slot = carrying_slot_[i];
    if (slot < 0 || book_.is_free(slot)) continue;
    for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
      if (was_put(i, layer) != 0) continue;
      if (Status s = clear(layer, slot, book_.length(slot)); s != Status::ok) return s;
    }
  }
  return Status::ok;
}

}  // namespace kvc
