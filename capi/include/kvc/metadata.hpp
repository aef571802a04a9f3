// kvc/metadata.hpp: sizes of transformer and lightning caches as models describe them, and padding. Part of <kvc/kvc.hpp>;
// metadata.h is the manual.
//
//   kvc::Metadata metadata = kvc::metadata_from_json(text);
//   kvc::CacheDesc desc;
//   kvc::TransformerDesc kind;
//   kvc::metadata_descriptors(metadata, desc, kind);
//   desc.max_batch = metadata.batch_size * 512;
//   kvc::Cache cache(device, desc, kind);
#ifndef KVC_METADATA_HPP
#define KVC_METADATA_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base.hpp"
#include "kinds.hpp"
#include "metadata.h"

namespace kvc {
inline namespace api_0_2 {

struct Metadata : kvc_metadata {
  explicit Metadata(Kind of = Kind::transformer) noexcept : kvc_metadata(KVC_METADATA_INIT) {
    kind = static_cast<std::uint32_t>(of);
  }
};

// Checked, with the fields that follow from others filled in.
inline Metadata metadata_resolve(Metadata metadata) {
  check(kvc_metadata_resolve(&metadata));
  return metadata;
}

// Fills in the sizes; what metadata does not say stays as it is. Of a transformer cache:
inline void metadata_descriptors(const Metadata &metadata, CacheDesc &desc, TransformerDesc &kind) {
  check(kvc_metadata_descriptors(&metadata, &desc, &kind));
}
// Of a lightning cache:
inline void metadata_descriptors(const Metadata &metadata, CacheDesc &desc) {
  check(kvc_metadata_descriptors(&metadata, &desc, nullptr));
}

// One JSON object on one line, with EasyDeL's names.
inline std::string metadata_to_json(const Metadata &metadata) {
  std::size_t length = 0;
  check(kvc_metadata_to_json(&metadata, nullptr, 0, &length));
  std::string text(length + 1, '\0');  // C terminates it
  check(kvc_metadata_to_json(&metadata, text.data(), text.size(), nullptr));
  text.pop_back();
  return text;
}

// Reads what metadata_to_json() writes. A text that is no such object throws Corrupt.
inline Metadata metadata_from_json(std::string_view text, Kind kind = Kind::transformer) {
  Metadata metadata(kind);
  check(kvc_metadata_from_json(text.data(), text.size(), &metadata));
  return metadata;
}

// Where rows of tokens begin and end, without the padding at both ends: for rows_set() and Rows::valid.
struct Padding {
  std::vector<std::int32_t> starts, ends;
};

// token_ids: [n_rows, q_len]
inline Padding find_padding(std::int32_t n_rows, std::int32_t q_len, const std::vector<std::int32_t> &token_ids,
                            std::int32_t pad_token_id) {
  if (n_rows > 0 && q_len > 0 && token_ids.size() != static_cast<std::size_t>(n_rows) * static_cast<std::size_t>(q_len))
    raise(KVC_E_INVALID_ARGUMENT, "token_ids has " + std::to_string(token_ids.size()) + " elements, not " +
                                      std::to_string(n_rows) + " * " + std::to_string(q_len));
  Padding found;
  found.starts.resize(n_rows > 0 ? static_cast<std::size_t>(n_rows) : 0);
  found.ends.resize(found.starts.size());
  check(kvc_padding(n_rows, q_len, detail::elements(token_ids), pad_token_id, found.starts.data(), found.ends.data()));
  return found;
}

}  // namespace api_0_2
}  // namespace kvc

#endif
