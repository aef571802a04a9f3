#include "message_rules.hpp"

#include <cctype>
#include <initializer_list>

namespace support {
namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool has_any(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    if (has(text, part)) return true;
  return false;
}

int numbers_in(const std::string& text) {
  int n = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_digit = std::isdigit(static_cast<unsigned char>(text[i])) != 0;
    const bool continues = i > 0 && std::isalnum(static_cast<unsigned char>(text[i - 1])) != 0;
    n += is_digit && !continues;
  }
  return n;
}

/// What a message of this status must hold besides its words.
std::string missing_fact(kvc_status status, const std::string& message) {
  const int n = numbers_in(message);
  switch (status) {
    case KVC_E_INVALID_ARGUMENT:  // a value, and what is taken beside it
      return n >= 2 || has_any(message, {"is null", "must ", "not one of", "overlaps", "twice",
                                         "takes", "the cache has no"})
                 ? ""
                 : "the value and what is taken";
    case KVC_E_HANDLE: return has_any(message, {"cache ", "device "}) ? "" : "cache or device";
    case KVC_E_BAD_STATE:
      return has_any(message, {"kvc_", "call the wrapper"})
                 ? ""
                 : "the call that makes this one possible";
    case KVC_E_SHAPE:
    case KVC_E_DTYPE:
      return has_any(message, {", not ", "is not ", "it must be", "strides"}) ? "" : "both sides";
    case KVC_E_DEVICE_MISMATCH: return has(message, "the cache on") ? "" : "both devices";
    case KVC_E_NOT_SUPPORTED:
      return has_any(message, {"kvc_", "KVC_", "this version", "operator", "call it on a child",
                               "keep all or none"})
                 ? ""
                 : "what would be supported";
    case KVC_E_OVERFLOW:
    case KVC_E_VERSION:
    case KVC_E_WINDOW_LOST:
    case KVC_E_NOT_FOUND:
    case KVC_E_INVALID_RECURRENT_SHAPE:
    case KVC_E_CACHE_FULL: return n >= 2 ? "" : "the numbers of both sides";
    default: return "";
  }
}

}  // namespace

std::string fault_of(kvc_status status, const std::string& message) {
  if (message.size() < 12) return "too short to hold a fact";
  if (message.size() > 511) return "longer than a message may be";
  if (has(message, "\n")) return "more than one line";
  if (message.back() == '.' || message.back() == ' ' || message.back() == ':')
    return "it ends in nothing";
  // Types and constants are named; only bits that have no name are numbers, and they say so.
  for (size_t at = message.find("0x"); at != std::string::npos; at = message.find("0x", at + 1))
    if (at < 5 || message.compare(at - 5, 5, "bits ") != 0) return "a hexadecimal number";
  for (const char* word :
       {"invalid", "illegal", "unexpected", "bad ", "error", "wrong", "not built"})
    if (has(message, word)) return std::string("the empty word \"") + word + "\"";
  const std::string missing = missing_fact(status, message);
  return missing.empty() ? "" : "it lacks " + missing;
}

}  // namespace support
