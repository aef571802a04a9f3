#pragma once
#include "core/base/status.hpp"
#include "core/caches/create.hpp"
#include "kvc/kvc.h"

namespace kvc::capi {

/// Reads the descriptors of a cache and checks them. NOT_SUPPORTED for what is reserved comes behind everything that is wrong,
/// bounds included (cache.h).
Status read_request(const kvc_cache_desc* desc, const void* kind_desc, CacheRequest* request);

}  // namespace kvc::capi
