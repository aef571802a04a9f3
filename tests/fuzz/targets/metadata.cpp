// libFuzzer: metadata from JSON made of the fuzzer's bytes. What can be read is written and read back the same, and is resolved to
// something that is resolved already.
#include <cstring>
#include <string>

#include "fuzz/targets/require.hpp"
#include "kvc/metadata.h"
#include "support/abi.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  kvc_metadata metadata = KVC_METADATA_INIT;
  metadata.kind = data[0] % 2 == 0 ? KVC_TRANSFORMER : KVC_LIGHTNING;
  kvc_metadata again = metadata;
  const kvc_metadata untouched = metadata;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const kvc_status status = kvc_metadata_from_json(text.data(), text.size(), &metadata);
  require(status == KVC_OK || status == KVC_E_CORRUPT, "from_json");
  if (status != KVC_OK) {
    require(std::memcmp(&metadata, &untouched, sizeof metadata) == 0,
            "a failed call wrote something");
    require(!support::last_message().empty(), "a failure without a message");
    return 0;
  }
  char written[512];
  size_t length = 0;
  require(kvc_metadata_to_json(&metadata, written, sizeof written, &length) == KVC_OK, "to_json");
  require(length == std::strlen(written), "a text longer than its room");
  require(kvc_metadata_from_json(written, length, &again) == KVC_OK,
          "from_json of what was written");
  require(std::memcmp(&metadata, &again, sizeof metadata) == 0, "something else was read back");
  if (kvc_metadata_resolve(&metadata) != KVC_OK) {
    require(std::memcmp(&metadata, &again, sizeof metadata) == 0, "a failed call wrote something");
    return 0;
  }
  again = metadata;
  require(kvc_metadata_resolve(&again) == KVC_OK, "resolve of what is resolved");
  require(std::memcmp(&metadata, &again, sizeof metadata) == 0, "resolved to something else");
  return 0;
}
