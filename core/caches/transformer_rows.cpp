#include <algorithm>

#include "core/base/planted.hpp"
#include "core/caches/planted_scales.hpp"
#include "core/caches/transformer.hpp"

/// Rows that become copies of others: of the same cache, of another one, and of what callers hand in.
namespace kvc {
namespace {

constexpr int32_t most_stretches = 4;  // of a row: two rings, each with an edge
constexpr int32_t cells_per_store = 256;

/// Where the positions [begin, end) of a row lie in two books, as stretches of cells. Returns how many there are.
int32_t find_stretches(const RowBook& from, int32_t source, const RowBook& to, int32_t destination,
                       int32_t begin, int32_t end, CellStretch (&stretches)[most_stretches]) {
  int32_t n = 0;
  for (int32_t at = begin; at < end; at += stretches[n++].n) {
    const int32_t left = std::min(from.rules().columns - from.rules().column(at),
                                  to.rules().columns - to.rules().column(at));
    stretches[n] = {from.cell(source, at), to.cell(destination, at), std::min(end - at, left)};
  }
  return n;
}

}  // namespace

// ---- Within the cache -----------------------------------------------------------------------------------------------------

Status TransformerCache::copy_stretches(const TransformerCache& from, const CellStretch* stretch,
                                        int32_t n, bool exchange) {
  for (int32_t layer = 0; n > 0 && layer < bounds_.n_layers; ++layer) {
    const bool inserts = &from != this;
    const auto storage_of = [&](const LayerStorage& storage) {
      return inserts ? with_scales_unless(Bug::inserted_without_scales, storage) : storage;
    };
    const CopyParams params = {storage_of(from.layers_[layer].storage),
                               storage_of(layers_[layer].storage), stretch, n, exchange};
    const Status copied = on_device_->copy(params, *from.on_device_);
    if (Status s = health_.after(copied); s != Status::ok) return s;
  }
  return Status::ok;
}

/// What a row holds below `end`.
Status TransformerCache::copy_row(const TransformerCache& from, int32_t source, int32_t destination,
                                  int32_t end) {
  CellStretch stretches[most_stretches];
  const int32_t first = from.book_.sequence(source).first;
  const int32_t n = find_stretches(from.book_, source, book_, destination, first, end, stretches);
  return copy_stretches(from, stretches, n, false);
}

Status TransformerCache::copy(int32_t source, int32_t destination, int32_t position) {
  if (Status s = copy_row(*this, source, destination, position); s != Status::ok) return s;
  book_.copy_prefix(source, destination, position);
  return follow_book();
}

/// Two rows change places, free cells and all.
Status TransformerCache::exchange_rows(int32_t a, int32_t b) {
  const int32_t columns = book_.rules().columns;
  const CellStretch whole = {a * columns, b * columns, columns};
  return copy_stretches(*this, &whole, 1, true);
}

/// Rows that are no sources, or no longer, take their copies first. What is then left are cycles, which exchanges resolve
/// without a spare row.
Status TransformerCache::apply_reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  for (int32_t i = 0; planted(Bug::rows_reordered_in_turn) && i < n; ++i)
    (void)copy_row(*this, source[i], destination[i], book_.sequence(source[i]).next);
  constexpr int32_t done = -1;
  std::fill_n(moves_, bounds_.max_sequences, Move{done, 0});
  for (int32_t i = 0; i < n; ++i) {
    if (destination[i] == source[i]) continue;
    moves_[destination[i]].source = source[i];
    ++moves_[source[i]].n_uses;
  }
  for (int32_t i = 0; i < n; ++i) {
    // A copy may be the last one made of its source, which may then take its own.
    for (int32_t row = destination[i]; moves_[row].source != done && moves_[row].n_uses == 0;) {
      const int32_t from = moves_[row].source;
      if (Status s = copy_row(*this, from, row, book_.sequence(from).next); s != Status::ok)
        return s;
      moves_[row].source = done;
      --moves_[from].n_uses;
      row = from;
    }
  }
  for (int32_t i = 0; i < n; ++i) {
    for (int32_t row = destination[i]; moves_[row].source != done;) {
      const int32_t from = moves_[row].source;
      moves_[row].source = done;
      if (moves_[from].source == done)
        break;  // the last exchange of the cycle gave both rows theirs
      if (Status s = exchange_rows(from, row); s != Status::ok) return s;
      row = from;
    }
  }
  book_.reorder(n, destination, source);
  return follow_book();
}

Status TransformerCache::apply_set(int32_t row_begin, int32_t n, const int32_t* index,
                                   const int32_t* starts) {
  book_.set(row_begin, n, index, starts);
  return follow_book();
}

// ---- From another cache -----------------------------------------------------------------------------------------------------

/// Whether rows of the other cache are stored as those of this one.
Status TransformerCache::check_same(const TransformerCache& other) const {
  const auto scales_differ = [](const float* a, const float* b, int32_t n) {
    return a != nullptr && !std::equal(a, a + n, b);
  };
  const RowRules &rules = book_.rules(), &of_other = other.book_.rules();
  struct {
    const char* name;
    int64_t here, there;
  } const fields[] = {
      {"n_layers", bounds_.n_layers, other.bounds_.n_layers},
      {"n_kv_heads", bounds_.n_kv_heads, other.bounds_.n_kv_heads},
      {"value_heads", bounds_.value_heads, other.bounds_.value_heads},
      {"head_dim_k", bounds_.head_dim_k, other.bounds_.head_dim_k},
      {"head_dim_v", bounds_.head_dim_v, other.bounds_.head_dim_v},
      {"KVC_CACHE_V_IN_K", bounds_.v_in_k, other.bounds_.v_in_k},
      {"v_first", bounds_.v_first, other.bounds_.v_first},
      {"KVC_TRANSFORMER_RING", rules.ring, of_other.ring},
      {"capacity of a ring", rules.ring ? rules.length : 0, of_other.ring ? of_other.length : 0}};
  for (const auto& field : fields) {
    if (field.here == field.there) continue;
    return fail(Status::invalid_argument,
                "%s is %lld here and %lld in other: rows are inserted as they are stored",
                field.name, static_cast<long long>(field.here), static_cast<long long>(field.there));
  }
  for (const char side : {'k', 'v'}) {
    const RowFormat& here = side == 'k' ? bounds_.row_k : bounds_.row_v;
    const RowFormat& there = side == 'k' ? other.bounds_.row_k : other.bounds_.row_v;
    if (here.type == there.type && here.block == there.block && here.rotation == there.rotation)
      continue;
    return fail(Status::invalid_argument,
                "%c is stored as %s (block %d, rotation %d) here and as %s (block %d, rotation %d) "
                "in other: rows are inserted as they are stored",
                side, format_of(here.type).name, here.block, here.rotation,
                format_of(there.type).name, there.block, there.rotation);
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    const KvLayers::Layer &here = layers_[layer], &there = other.layers_[layer];
    if (!scales_differ(here.k_scales, there.k_scales, bounds_.n_kv_heads) &&
        !scales_differ(here.v_scales, there.v_scales, bounds_.value_heads))
      continue;
    return fail(Status::invalid_argument,
                "the scales of layer %d (kvc_bind_scales) differ in other: rows are inserted as "
                "they are stored",
                layer);
  }
  return Status::ok;
}

Status TransformerCache::check_insert(const Cache& other, int32_t slot) const {
  const auto* const from = dynamic_cast<const TransformerCache*>(&other);
  if (from == nullptr) {
    return fail(Status::invalid_argument,
                "other is a cache of another kind; it must be a transformer cache");
  }
  const int32_t n = from->bounds_.max_sequences;
  if (slot < 0 || slot > bounds_.max_sequences - n) {
    return fail(Status::invalid_argument,
                "slot %d and the %d rows of other are no rows of [0, %d), which is max_sequences",
                slot, n, bounds_.max_sequences);
  }
  if (Status s = check_same(*from); s != Status::ok) return s;
  if (from->device_info_.type != device_info_.type || from->device_info_.id != device_info_.id) {
    return fail(Status::device_mismatch, "other is on device %d:%d, the cache on %d:%d",
                from->device_info_.type, from->device_info_.id, device_info_.type, device_info_.id);
  }
  return book_.check_insert(from->book_, slot);
}

Status TransformerCache::apply_insert(const Cache& other, int32_t slot) {
  const auto& from = static_cast<const TransformerCache&>(other);
  for (int32_t row = 0; row < from.bounds_.max_sequences; ++row) {
    const Status s = copy_row(from, row, slot + row, from.book_.sequence(row).next);
    if (s != Status::ok) return s;
  }
  book_.insert(from.book_, slot);
  return follow_book();
}

// ---- From the caller --------------------------------------------------------------------------------------------------------

Status TransformerCache::check_fill(int32_t layer, int32_t row_begin, int32_t n) const {
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (n < 0 || row_begin < 0 || row_begin > bounds_.max_sequences - n) {
    return fail(Status::invalid_argument, "row_begin %d and n %d name no rows of [0, %d)",
                row_begin, n, bounds_.max_sequences);
  }
  return Status::ok;
}

/// Columns of a tensor [n, columns, heads, …] of one row, as [columns, heads, …].
static Tensor columns_of(const Tensor& tensor, int32_t row, int32_t first_column) {
  if (tensor.data == nullptr) return tensor;
  return tensor.from_row(row).first_of_all().from_row(first_column);
}

Status TransformerCache::fill_rows(int32_t layer, int32_t row_begin, int32_t n,
                                   const Filling& filling) {
  if (Status s = need_no_recording("kvc_rows_fill"); s != Status::ok) return s;
  if (Status s = pass_.need_no_pass("kvc_rows_fill works"); s != Status::ok) return s;
  int32_t cell[cells_per_store];
  for (int32_t row = 0; row < n; ++row) {
    for (int32_t column = 0, count = 0; column < filling.columns; column += count) {
      count = std::min(cells_per_store, filling.columns - column);
      for (int32_t i = 0; i < count; ++i) {
        const bool is_held = book_.holds_column(row_begin + row, column + i) ||
                             planted(Bug::columns_filled_unheld);
        cell[i] = is_held ? (row_begin + row) * n_columns() + column + i : -1;
      }
      const auto part = [&](const Tensor& tensor) { return columns_of(tensor, row, column); };
      const Codes& codes = filling.codes;
      const Filling stretch = {
          count,
          part(filling.k),
          part(filling.v),
          {part(codes.k), part(codes.k_scales), part(codes.v), part(codes.v_scales)}};
      if (Status s = fill_cells(layer, cell, count, stretch); s != Status::ok) return s;
    }
  }
  return Status::ok;
}

Status TransformerCache::fill_cells(int32_t layer, const int32_t* cell, int32_t n,
                                    const Filling& from) {
  const LayerStorage& storage = layers_[layer].storage;
  const Codes& codes = from.codes;
  if (from.k.data != nullptr || from.v.data != nullptr) {
    const Status s = health_.after(on_device_->store({storage, cell, n, from.k, from.v}));
    if (s != Status::ok) return s;
  }
  if (codes.k.data == nullptr && codes.v.data == nullptr) return Status::ok;
  return health_.after(
      on_device_->store_codes({storage, cell, n, codes.k, codes.k_scales, codes.v, codes.v_scales}));
}

}  // namespace kvc
