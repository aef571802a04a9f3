#include "kvc/rows.h"

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"

/// Passes of rows, and what belongs to a row of a batch.
namespace kvc::capi {
namespace {

/// What kvc_begin_rows() and kvc_fits_rows() take.
struct RowsArguments {
  int32_t q_len;
  uint32_t flags;
  const int32_t* valid;
  const kvc_tensor* attention_mask;
  const int32_t* token_types;
};

/// A mask may reach any number of columns here: what it must reach depends on the rows, and each kind knows.
Status read_attention_mask(const kvc_tensor* from, int64_t n_rows, int64_t q_len, Tensor* to) {
  if (from == nullptr) return Status::ok;
  const bool per_token = from->ndim == 4;
  const int64_t reach = from->ndim == 2 || per_token ? from->shape[from->ndim - 1] : 0;
  if (reach < 0)
    return fail(Status::shape, "attention_mask.shape[%d] is %lld, not 0 or more", from->ndim - 1,
                static_cast<long long>(reach));
  const Expected expected = per_token ? Expected{4, {n_rows, 1, q_len, reach}, "batch, 1, q_len, n"}
                                      : Expected{2, {n_rows, reach}, "batch, n"};
  const DeviceInfo host;
  return read_tensor("attention_mask", from, expected, Direction::in, host, to, Elements::shown);
}

/// A reserve pass holds nothing: only its lengths count.
Status read_rows(const Cache& cache, const RowsArguments& given, RowTokens* rows, Batch* batch) {
  constexpr uint32_t known = KVC_ROWS_RESERVE | KVC_ROWS_NOT_CAUSAL | KVC_ROWS_POSTPADDED |
                             KVC_ROWS_REPLAY;
  if ((given.flags & ~known) != 0) {
    return unknown_bits(
        "flags", given.flags & ~known,
        "KVC_ROWS_RESERVE, KVC_ROWS_NOT_CAUSAL, KVC_ROWS_POSTPADDED and KVC_ROWS_REPLAY");
  }
  const CacheBounds& bounds = cache.bounds();
  rows->q_len = given.q_len;
  batch->rows = rows;
  batch->replay = (given.flags & KVC_ROWS_REPLAY) != 0;
  const bool reserve = (given.flags & KVC_ROWS_RESERVE) != 0;
  if (!reserve) {
    rows->valid = given.valid;
    rows->types = given.token_types;
    rows->not_causal = (given.flags & KVC_ROWS_NOT_CAUSAL) != 0;
    rows->postpadded = (given.flags & KVC_ROWS_POSTPADDED) != 0;
  }
  const Status s = check_row_lengths(*rows, bounds.max_sequences,
                                     bounds.max_batch / bounds.max_sequences);
  if (s != Status::ok) return s;
  batch->n_tokens = bounds.max_sequences * given.q_len;
  if (reserve) return Status::ok;
  if (rows->postpadded && given.valid != nullptr)
    return fail(Status::invalid_argument,
                "valid must be null with KVC_ROWS_POSTPADDED, which reads it off attention_mask");
  if (rows->postpadded && given.attention_mask == nullptr)
    return fail(Status::invalid_argument,
                "attention_mask is null, and KVC_ROWS_POSTPADDED reads off it which tokens count");
  return read_attention_mask(given.attention_mask, bounds.max_sequences, given.q_len,
                             &rows->attention_mask);
}

/// Calls `body(const Cache&)` inside a cache whose handle another call has entered first.
template <class Body>
Status within(const kvc_cache* handle, Body body) {
  return static_cast<Status>(with_cache(handle, body));
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::Rows, kvc::Status;
using kvc::capi::OfRows, kvc::capi::RowsArguments;

kvc_status kvc_begin_rows(kvc_cache* cache, int32_t q_len, uint32_t flags, const int32_t* valid,
                          const kvc_tensor* attention_mask, const int32_t* token_types,
                          void* stream) noexcept {
  return kvc::capi::with_object(cache, [&](const kvc::capi::CacheObject& object, Cache& c) {
    return kvc::capi::on_facet<OfRows>(c, [&](Rows&, Cache&) -> Status {
      if (Status s = kvc::capi::check_not_wrapped(object); s != Status::ok) return s;
      if (stream != nullptr && !c.device().takes_stream)
        return kvc::fail(Status::invalid_argument,
                         "stream is set, but the device of the cache takes none: pass null");
      kvc::RowTokens rows;
      kvc::Batch batch;
      const RowsArguments given = {q_len, flags, valid, attention_mask, token_types};
      if (Status s = kvc::capi::read_rows(c, given, &rows, &batch); s != Status::ok) return s;
      batch.stream = stream;
      return c.begin(batch, (flags & KVC_ROWS_RESERVE) != 0);
    });
  });
}

kvc_status kvc_fits_rows(const kvc_cache* cache, int32_t q_len, uint32_t flags, const int32_t* valid,
                         const kvc_tensor* attention_mask, const int32_t* token_types) noexcept {
  return kvc::capi::with_facet<OfRows>(cache, [&](const Rows&, const Cache& c) -> Status {
    kvc::RowTokens rows;
    kvc::Batch batch;
    const RowsArguments given = {q_len, flags, valid, attention_mask, token_types};
    if (Status s = kvc::capi::read_rows(c, given, &rows, &batch); s != Status::ok) return s;
    return c.fits(batch, (flags & KVC_ROWS_RESERVE) != 0);
  });
}

kvc_status kvc_rows_query(const kvc_cache* cache, int32_t row_begin, int32_t n, int32_t* index,
                          int32_t* starts) noexcept {
  return kvc::capi::with_facet<OfRows>(
      cache, [&](const Rows&, const Cache& c) { return c.query_rows(row_begin, n, index, starts); });
}

kvc_status kvc_rows_set(kvc_cache* cache, int32_t row_begin, int32_t n, const int32_t* index,
                        const int32_t* starts) noexcept {
  return kvc::capi::with_object(cache, [&](const kvc::capi::CacheObject& object, Cache& c) {
    return kvc::capi::on_facet<OfRows>(c, [&](Rows&, Cache&) -> Status {
      if (Status s = kvc::capi::check_not_wrapped(object); s != Status::ok) return s;
      return c.set_rows(row_begin, n, index, starts);
    });
  });
}

kvc_status kvc_insert(kvc_cache* cache, const kvc_cache* other, int32_t slot) noexcept {
  return kvc::capi::with_object(cache, [&](const kvc::capi::CacheObject& object, Cache& c) {
    return kvc::capi::on_facet<OfRows>(c, [&](Rows&, Cache&) -> Status {
      const auto insert = [&](const Cache& from) -> Status {
        if (Status s = kvc::capi::check_not_wrapped(object); s != Status::ok) return s;
        if (other == cache)
          return kvc::fail(Status::invalid_argument, "other must not be the cache itself");
        return c.insert(from, slot);
      };
      return other == cache ? insert(c) : kvc::capi::within(other, insert);
    });
  });
}
