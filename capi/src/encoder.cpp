#include "kvc/encoder.h"

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"

using kvc::Cache, kvc::EncoderInputs, kvc::Status;
using kvc::capi::with_encoder_inputs;

kvc_status kvc_encoder_put(kvc_cache* cache, int32_t layer, int32_t sequence, const kvc_tensor* k,
                           const kvc_tensor* v) noexcept {
  return with_encoder_inputs(cache, [&](EncoderInputs& inputs, Cache& c) -> Status {
    if (Status s = inputs.ready_to_put_input(layer, sequence); s != Status::ok) return s;
    int64_t rows = 0;
    kvc::capi::KeysAndValues put;
    if (Status s = inputs.rows_of_input(sequence, kvc::capi::rows_of(k), &rows); s != Status::ok)
      return s;
    if (Status s = kvc::capi::read_keys_and_values(c.bounds(), c.device(), rows, k, v, &put);
        s != Status::ok)
      return s;
    return inputs.put_input(layer, sequence, put.k, put.v);
  });
}

kvc_status kvc_encoder_share(kvc_cache* cache, int32_t sequence, int32_t source) noexcept {
  return with_encoder_inputs(
      cache, [&](EncoderInputs& inputs, Cache&) { return inputs.share(sequence, source); });
}

kvc_status kvc_encoder_query(const kvc_cache* cache, int32_t sequence, int32_t* position,
                             int32_t* length) noexcept {
  return with_encoder_inputs(cache, [&](const EncoderInputs& inputs, const Cache&) {
    return inputs.input_of(sequence, position, length);
  });
}
