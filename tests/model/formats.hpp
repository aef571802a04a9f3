#pragma once
#include <cstddef>
#include <cstdint>

#include "kvc/kvc.h"

/// The number formats of kvc_tensor, worked out from their definition in double arithmetic. Nothing
/// here is shared with the library: a conversion that is wrong there is found because it is done
/// differently here.
namespace model {

/// Bytes of one element; 0 for what no tensor has. Codes of one byte have no value here: storage.hpp reads them.
size_t element_bytes(uint32_t dtype);

/// The value nearest to `value` that the format holds, ties to even; beyond the largest it is
/// infinity.
double round_to(uint32_t dtype, double value);

/// The distance between neighbouring values of the format at `value`: one rounding errs by at most
/// half of it.
double spacing(uint32_t dtype, double value);

/// Element `index` of an array of the format. store() rounds.
double load(const void* data, uint32_t dtype, int64_t index);
void store(void* data, uint32_t dtype, int64_t index, double value);

}  // namespace model
