#include "kvc/metadata.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "capi/src/words.hpp"

/// Metadata, its JSON, and padding.
namespace kvc::capi {
namespace {

constexpr size_t most_text = size_t{64} << 20;

/// A field of a whole number and its name in JSON, in the order of EasyDeL's constructors.
struct Number {
  const char* name;
  int32_t kvc_metadata::*field;
  bool of_lightning;
};

constexpr std::array<Number, 10> numbers = {
    {{"batch_size", &kvc_metadata::batch_size, true},
     {"sequence_length", &kvc_metadata::sequence_length, false},
     {"num_hidden_layers", &kvc_metadata::num_hidden_layers, true},
     {"pad_token_id", &kvc_metadata::pad_token_id, false},
     {"num_heads", &kvc_metadata::num_heads, true},
     {"head_dim", &kvc_metadata::head_dim, true},
     {"key_heads", &kvc_metadata::key_heads, true},
     {"value_heads", &kvc_metadata::value_heads, true},
     {"key_dim", &kvc_metadata::key_dim, true},
     {"value_dim", &kvc_metadata::value_dim, true}}};

/// Likewise a field that is true unless its flag is set.
struct Switch {
  const char* name;
  uint32_t off;
};

constexpr std::array<Switch, 2> switches = {
    {{"update_causal_mask", KVC_METADATA_NO_CAUSAL_MASK},
     {"create_attention_bias", KVC_METADATA_NO_ATTENTION_BIAS}}};

bool has(uint32_t kind, const Number& number) {
  return number.of_lightning || kind == KVC_TRANSFORMER;
}

Status check_kind(uint32_t kind) {
  if (kind == KVC_TRANSFORMER || kind == KVC_LIGHTNING) return Status::ok;
  return fail(Status::invalid_argument,
              "kvc_metadata.kind is %s (%u); it must be KVC_TRANSFORMER (%d) or KVC_LIGHTNING (%d)",
              kind_name(kind), kind, KVC_TRANSFORMER, KVC_LIGHTNING);
}

Status read_metadata(const kvc_metadata* from, kvc_metadata* m) {
  if (Status s = read_descriptor("kvc_metadata", from, m); s != Status::ok) return s;
  if (Status s = check_kind(m->kind); s != Status::ok) return s;
  constexpr uint32_t known = KVC_METADATA_NO_CAUSAL_MASK | KVC_METADATA_NO_ATTENTION_BIAS;
  if ((m->flags & ~known) != 0) {
    return unknown_bits("kvc_metadata.flags", m->flags & ~known,
                        "KVC_METADATA_NO_CAUSAL_MASK and KVC_METADATA_NO_ATTENTION_BIAS");
  }
  if (m->kind == KVC_LIGHTNING && m->flags != 0)
    return unknown_bits("kvc_metadata.flags of a lightning cache", m->flags, nullptr);
  for (const Number& number : numbers) {
    if (has(m->kind, number) || m->*number.field == 0) continue;
    return fail(Status::invalid_argument,
                "%s is %d; it must be 0: the metadata of a lightning cache has no such field",
                number.name, m->*number.field);
  }
  return Status::ok;
}

// ---- Checking ----------------------------------------------------------------------------------------------------------------

Status need_positive(const char* name, int32_t value) {
  return value > 0 ? Status::ok : fail(Status::invalid_argument, "%s must be positive", name);
}

/// The messages are EasyDeL's, word for word.
Status resolve(kvc_metadata* m) {
  if (Status s = need_positive("batch_size", m->batch_size); s != Status::ok) return s;
  if (m->kind == KVC_TRANSFORMER) {
    if (Status s = need_positive("sequence_length", m->sequence_length); s != Status::ok) return s;
  }
  if (m->head_dim == 0 && (m->key_dim == 0 || m->value_dim == 0)) {
    return fail(Status::invalid_argument,
                "Either head_dim or both key_dim and value_dim must be specified");
  }
  if (m->num_heads == 0 && (m->key_heads == 0 || m->value_heads == 0)) {
    return fail(Status::invalid_argument,
                "Either num_heads or both key_heads and value_heads must be specified");
  }
  if (m->key_heads == 0) m->key_heads = m->num_heads;
  if (m->value_heads == 0) m->value_heads = m->num_heads;
  if (m->key_dim == 0) m->key_dim = m->head_dim;
  if (m->value_dim == 0) m->value_dim = m->head_dim;
  const std::pair<const char*, int32_t> sizes[] = {{"num_hidden_layers", m->num_hidden_layers},
                                                   {"key_heads", m->key_heads},
                                                   {"value_heads", m->value_heads},
                                                   {"key_dim", m->key_dim},
                                                   {"value_dim", m->value_dim}};
  for (const auto& [name, value] : sizes) {
    if (Status s = need_positive(name, value); s != Status::ok) return s;
  }
  return Status::ok;
}

Status resolve_in_place(kvc_metadata* metadata) {
  kvc_metadata m;
  if (Status s = read_metadata(metadata, &m); s != Status::ok) return s;
  if (Status s = resolve(&m); s != Status::ok) return s;
  write_output(m, metadata);
  return Status::ok;
}

// ---- Descriptors -------------------------------------------------------------------------------------------------------------

void describe(const kvc_metadata& m, kvc_cache_desc* desc) {
  desc->kind = m.kind;
  desc->n_layers = m.num_hidden_layers;
  desc->n_kv_heads = m.key_heads;
  desc->head_dim_k = m.key_dim;
  desc->head_dim_v = m.value_dim;
  desc->max_sequences = m.batch_size;
  desc->capacity = m.sequence_length;
  desc->cells = 0;
}

void describe(const kvc_metadata& m, kvc_transformer_desc* desc) {
  constexpr uint32_t not_causal = KVC_TRANSFORMER_NOT_CAUSAL;
  const bool causal = (m.flags & KVC_METADATA_NO_CAUSAL_MASK) == 0;
  desc->flags = causal ? desc->flags & ~not_causal : desc->flags | not_causal;
  desc->value_heads = m.value_heads;
  desc->mask_dtype = (m.flags & KVC_METADATA_NO_ATTENTION_BIAS) != 0 ? KVC_BOOL : KVC_F32;
}

Status descriptors(const kvc_metadata* metadata, kvc_cache_desc* desc,
                   kvc_transformer_desc* kind_desc) {
  kvc_metadata m;
  if (Status s = read_metadata(metadata, &m); s != Status::ok) return s;
  if (Status s = resolve(&m); s != Status::ok) return s;
  kvc_cache_desc cache;
  if (Status s = read_descriptor("kvc_cache_desc", desc, &cache); s != Status::ok) return s;
  describe(m, &cache);
  if (m.kind == KVC_LIGHTNING) {
    if (kind_desc != nullptr) {
      return fail(
          Status::invalid_argument,
          "kind_desc must be null: a lightning cache takes nothing of a kvc_transformer_desc");
    }
    if (m.key_heads != m.value_heads) {
      return fail(Status::not_supported,
                  "key_heads is %d and value_heads %d; this version holds lightning states of one "
                  "number of heads alone",
                  m.key_heads, m.value_heads);
    }
    write_output(cache, desc);
    return Status::ok;
  }
  kvc_transformer_desc transformer;
  if (Status s = read_descriptor("kvc_transformer_desc", kind_desc, &transformer); s != Status::ok)
    return s;
  describe(m, &transformer);
  write_output(cache, desc);
  write_output(transformer, kind_desc);
  return Status::ok;
}

// ---- JSON --------------------------------------------------------------------------------------------------------------------

/// One object of fields whose names and values need no escapes.
class Object {
 public:
  void add(const char* name, const char* value) {
    const char* const before = length_ == 0 ? "{" : ", ";
    length_ += static_cast<size_t>(std::snprintf(text_ + length_, sizeof text_ - length_,
                                                 "%s\"%s\": %s", before, name, value));
  }
  void add(const char* name, int32_t value) {
    char digits[12];
    std::snprintf(digits, sizeof digits, "%d", value);
    add(name, digits);
  }
  /// Copies it, cut to the room there is.
  size_t finish(char* buffer, size_t capacity) {
    text_[length_++] = '}';
    if (capacity > 0) {
      const size_t n = std::min(length_, capacity - 1);
      std::memcpy(buffer, text_, n);
      buffer[n] = '\0';
    }
    return length_;
  }

 private:
  char text_[512];  // the names have 146 characters, the numbers 11 each
  size_t length_ = 0;
};

Status to_json(const kvc_metadata* metadata, char* buffer, size_t capacity, size_t* length) {
  kvc_metadata m;
  if (Status s = read_metadata(metadata, &m); s != Status::ok) return s;
  if (buffer == nullptr && capacity > 0) return is_null("buffer");
  Object object;
  if (m.kind == KVC_LIGHTNING) object.add("partition_axis", "null");
  for (const Number& number : numbers) {
    if (!has(m.kind, number)) continue;
    const int32_t value = m.*number.field;
    if (value == 0 && number.field != &kvc_metadata::pad_token_id)
      object.add(number.name, "null");
    else
      object.add(number.name, value);
  }
  for (const Switch& each : switches) {
    if (m.kind == KVC_TRANSFORMER)
      object.add(each.name, (m.flags & each.off) != 0 ? "false" : "true");
  }
  const size_t n = object.finish(buffer, capacity);
  if (length != nullptr) *length = n;
  return Status::ok;
}

Status no_json(size_t position, size_t length) {
  return fail(Status::corrupt, "text is no JSON: it cannot be read beyond byte %zu of %zu",
              position, length);
}

/// What the parser tells of a text, one value after another. Only what stands in the outermost object is looked at. A method that
/// returns false ends the parsing.
class Reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Reader(uint32_t kind, size_t length) : length_(length) { read_.kind = kind; }

  Status status() const { return status_; }
  const kvc_metadata& read() const { return read_; }

  bool null() override {
    const Number* const number = find_number();
    if (number != nullptr) read_.*number->field = 0;
    const Switch* const each = find_switch();
    if (each != nullptr) read_.flags &= ~each->off;
    return value("null", number != nullptr || each != nullptr);
  }
  bool boolean(bool is_true) override {
    const Switch* const each = find_switch();
    if (each != nullptr) read_.flags = is_true ? read_.flags & ~each->off : read_.flags | each->off;
    return value(is_true ? "true" : "false", each != nullptr);
  }
  bool number_integer(number_integer_t number) override { return integer(number, number); }
  bool number_unsigned(number_unsigned_t number) override {
    return integer(static_cast<int64_t>(std::min<uint64_t>(number, INT64_MAX)), number);
  }
  bool number_float(number_float_t, const string_t&) override {
    return value("a number with a fraction or an exponent", false);
  }
  bool string(string_t&) override { return value("a string", false); }
  bool binary(binary_t&) override { return value("binary", false); }  // JSON has none
  bool start_object(size_t) override {
    return (depth_ == 0 || value("an object", false)) && enter();
  }
  bool start_array(size_t) override { return value("an array", false) && enter(); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (depth_ == 1) name_ = name;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    status_ = no_json(std::min(position, length_), length_);
    return false;
  }

 private:
  const Number* find_number() const {
    if (depth_ != 1) return nullptr;
    const auto* const found = std::find_if(numbers.begin(), numbers.end(), [&](const Number& each) {
      return has(read_.kind, each) && name_ == each.name;
    });
    return found == numbers.end() ? nullptr : found;
  }
  const Switch* find_switch() const {
    if (depth_ != 1 || read_.kind != KVC_TRANSFORMER) return nullptr;
    const auto* const found = std::find_if(switches.begin(), switches.end(),
                                           [&](const Switch& each) { return name_ == each.name; });
    return found == switches.end() ? nullptr : found;
  }

  /// A value has come; `is_taken`: by a field of its type.
  bool value(const char* what, bool is_taken) {
    if (depth_ == 0) {
      status_ = fail(Status::corrupt, "text holds %s, not a JSON object", what);
    } else if (const bool is_switch = find_switch() != nullptr;
               !is_taken && (is_switch || find_number() != nullptr)) {
      status_ = fail(Status::corrupt, "%s is %s, not %s or null", name_.c_str(), what,
                     is_switch ? "true, false" : "a whole number");
    }
    return status_ == Status::ok;
  }

  template <class Written>
  bool integer(int64_t number, Written written) {
    const Number* const field = find_number();
    if (field == nullptr) return value("a number", false);
    if (number < INT32_MIN || number > INT32_MAX) {
      status_ = fail(Status::corrupt, "%s is %s, not from %d to %d", field->name,
                     std::to_string(written).c_str(), INT32_MIN, INT32_MAX);
      return false;
    }
    read_.*field->field = static_cast<int32_t>(number);
    return true;
  }
  bool enter() {
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }

  kvc_metadata read_ = KVC_METADATA_INIT;
  Status status_ = Status::ok;
  std::string name_;     // of the field of the outermost object
  size_t depth_ = 0;     // objects and arrays that are open
  const size_t length_;  // of the text
};

Status from_json(const char* text, size_t length, kvc_metadata* out) {
  if (Status s = check_output("kvc_metadata", out); s != Status::ok) return s;
  if (Status s = check_kind(out->kind); s != Status::ok) return s;
  if (text == nullptr) return is_null("text");
  if (length > most_text) {
    return fail(Status::invalid_argument, "length is %zu; at most %zu bytes are read", length,
                most_text);
  }
  // A zero byte is never JSON, but the parser takes it for the end.
  if (const void* zero = length > 0 ? std::memchr(text, 0, length) : nullptr)
    return no_json(static_cast<size_t>(static_cast<const char*>(zero) - text) + 1, length);
  Reader reader(out->kind, length);
  nlohmann::json::sax_parse(text, text + length, &reader);
  if (reader.status() == Status::ok) write_output(reader.read(), out);
  return reader.status();
}

// ---- Padding -----------------------------------------------------------------------------------------------------------------

Status padding(int32_t n_rows, int32_t q_len, const int32_t* token_ids, int32_t pad_token_id,
               int32_t* starts, int32_t* ends) {
  constexpr int32_t most = std::numeric_limits<int32_t>::max();
  if (n_rows < 1) return out_of_range("n_rows", n_rows, 1, most);
  if (q_len < 1) return out_of_range("q_len", q_len, 1, most);
  if (token_ids == nullptr) return is_null("token_ids");
  for (int64_t row = 0; row < n_rows; ++row) {
    const int32_t* const ids = token_ids + row * q_len;
    int32_t start = 0, end = q_len;
    while (start < q_len && ids[start] == pad_token_id) ++start;
    while (end > start && ids[end - 1] == pad_token_id) --end;
    if (starts != nullptr) starts[row] = start;
    if (ends != nullptr) ends[row] = end;
  }
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_metadata_resolve(kvc_metadata* metadata) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::resolve_in_place(metadata); });
}

kvc_status kvc_metadata_descriptors(const kvc_metadata* metadata, kvc_cache_desc* desc,
                                    kvc_transformer_desc* kind_desc) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::descriptors(metadata, desc, kind_desc); });
}

kvc_status kvc_metadata_to_json(const kvc_metadata* metadata, char* buffer, size_t capacity,
                                size_t* length) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::to_json(metadata, buffer, capacity, length); });
}

kvc_status kvc_metadata_from_json(const char* text, size_t length, kvc_metadata* out) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::from_json(text, length, out); });
}

kvc_status kvc_padding(int32_t n_rows, int32_t q_len, const int32_t* token_ids,
                       int32_t pad_token_id, int32_t* starts, int32_t* ends) noexcept {
  return kvc::capi::guard(
      [&] { return kvc::capi::padding(n_rows, q_len, token_ids, pad_token_id, starts, ends); });
}
