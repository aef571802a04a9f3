#pragma once
#include <kvc/kvc.h>

#include <string>

namespace support {

/// What a reader without the source would miss in an error message; empty if nothing.
std::string fault_of(kvc_status status, const std::string& message);

}  // namespace support
