#include "kvc/encoder.h"

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"

using kvc::Cache, kvc::EncoderInputs, kvc::Status;
using kvc::capi::OfEncoderInputs, kvc::capi::When;

kvc_status kvc_encoder_put(kvc_cache* cache, int32_t layer, int32_t sequence, const kvc_tensor* k,
                           const kvc_tensor* v) noexcept {
  return kvc::capi::with_layer<OfEncoderInputs>(
      cache, layer, When::in_pass, {sequence},
      [&](EncoderInputs& inputs, Cache& c, int32_t own_layer) -> Status {
        if (Status s = inputs.ready_to_put_input(own_layer, sequence); s != Status::ok) return s;
        int64_t rows = 0;
        kvc::capi::KeysAndValues put;
        if (Status s = inputs.rows_of_input(sequence, kvc::capi::rows_of(k), &rows); s != Status::ok)
          return s;
        if (Status s = kvc::capi::read_keys_and_values(
                c.bounds(), c.device(), kvc::capi::TokenDims::input(rows), k, v, &put);
            s != Status::ok)
          return s;
        return inputs.put_input(own_layer, sequence, put.k, put.v);
      });
}

kvc_status kvc_encoder_share(kvc_cache* cache, int32_t sequence, int32_t source) noexcept {
  return kvc::capi::with_only<OfEncoderInputs>(
      cache, When::in_pass, {sequence, source},
      [&](EncoderInputs& inputs, Cache&) { return inputs.share(sequence, source); });
}

kvc_status kvc_encoder_query(const kvc_cache* cache, int32_t sequence, int32_t* position,
                             int32_t* length) noexcept {
  return kvc::capi::with_only<OfEncoderInputs>(cache, When::always, {sequence},
                                               [&](const EncoderInputs& inputs, const Cache&) {
                                                 return inputs.input_of(sequence, position, length);
                                               });
}
