#pragma once
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace support {

/// A file of conformance/vectors.
inline nlohmann::json vectors(const char* name) {
  const auto tests = std::filesystem::path(__FILE__).parent_path().parent_path();
  std::ifstream stream(tests / "conformance" / "vectors" / name);
  return nlohmann::json::parse(stream);
}

}  // namespace support
