/// The codecs of every instruction set of this machine: the vectors, and an independent reference, byte for byte.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/base/storage.hpp"
#include "kernels/cpu/kernel_table.hpp"

namespace {

using namespace kvc;
using nlohmann::json;

const json& vectors() {
  static const json all = [] {
    const auto tests = std::filesystem::path(__FILE__).parent_path().parent_path();
    std::ifstream stream(tests / "conformance" / "vectors" / "storage.json");
    return json::parse(stream);
  }();
  return all;
}

std::vector<const cpu::KernelTable*> tables() {
  std::vector<const cpu::KernelTable*> found;
  for (int32_t i = 0; const cpu::KernelTable* table = cpu::runnable_kernels(i); ++i)
    found.push_back(table);
  return found;
}

StorageType type_of(const std::string& name) {
  for (int32_t i = 0; i < n_storage_types; ++i) {
    if (name == format_of(static_cast<StorageType>(i)).name) return static_cast<StorageType>(i);
  }
  throw std::runtime_error("no storage type " + name);
}

float float_of(const std::string& hex) {
  const auto bits = static_cast<uint32_t>(std::stoul(hex, nullptr, 16));
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

std::string hex_of(const std::vector<std::byte>& bytes) {
  std::string hex;
  for (const std::byte b : bytes) {
    constexpr char digits[] = "0123456789abcdef";
    hex += digits[static_cast<int>(b) >> 4];
    hex += digits[static_cast<int>(b) & 15];
  }
  return hex;
}

std::vector<std::string> words(const std::string& list) {
  std::vector<std::string> found;
  std::istringstream stream(list);
  for (std::string word; std::getline(stream, word, ',');) found.push_back(word);
  return found;
}

/// One case of the vectors.
struct Vector {
  explicit Vector(const json& c) : expected_codes(c["codes"]), rotated(c.contains("rotate")) {
    EXPECT_EQ(resolve_row_format({.type = type_of(c["type"]),
                                  .head_dim = c["dim"],
                                  .block = c.value("block", 0),
                                  .rotate = rotated},
                                 &format),
              Status::ok);
    const std::string in = c["in"];
    for (size_t i = 0; i < in.size(); i += 8) values.push_back(float_of(in.substr(i, 8)));
    if (c.contains("scales")) expected_scales = c["scales"];
    if (c.contains("scale")) scale = float_of(c["scale"]);
    if (c.contains("out")) out = words(c["out"]);
  }

  RowFormat format;
  std::vector<float> values;
  std::string expected_codes;
  std::string expected_scales;
  bool rotated;
  float scale = 1;
  std::vector<std::string> out;
};

/// H (s ∘ x) / √b in double.
std::vector<double> rotate(std::vector<double> x, int32_t block) {
  const auto b = static_cast<size_t>(block);
  for (size_t first = 0; first < x.size(); first += b) {
    std::vector<double> y(b);
    for (size_t row = 0; row < b; ++row) {
      for (size_t i = 0; i < b; ++i) {
        const bool flips = (__builtin_popcountll(row & i) + __builtin_popcountll(i & i >> 1)) % 2 != 0;
        y[row] += flips ? -x[first + i] : x[first + i];
      }
    }
    for (size_t i = 0; i < b; ++i) x[first + i] = y[i] / std::sqrt(static_cast<double>(block));
  }
  return x;
}

TEST(Codecs, StoreTheBytesOfTheVectorsAndReadThemBack) {
  int n_cases = 0;
  for (const json& entry : vectors()["codecs"]) {
    const Vector c(entry);
    ++n_cases;
    for (const cpu::KernelTable* table : tables()) {
      SCOPED_TRACE(std::string(table->name) + " " + entry.dump());
      std::vector<std::byte> codes(c.format.code_bytes(), std::byte{0xa5});
      std::vector<std::byte> scales(c.format.scale_bytes(), std::byte{0xa5});
      const StoredRow row = {codes.data(), scales.empty() ? nullptr : scales.data(), c.scale};
      std::vector<float> values = c.values;
      if (c.rotated) table->rotate(values.data(), c.format.head_dim, c.format.rotation);
      table->encode(c.format, row, values.data());
      ASSERT_EQ(hex_of(codes), c.expected_codes);
      ASSERT_EQ(hex_of(scales), c.expected_scales);
      if (c.rotated) continue;

      table->decode(c.format, values.data(), row);
      ASSERT_EQ(c.out.size(), values.size());
      for (size_t i = 0; i < values.size(); ++i) {
        if (c.out[i] == "n") {
          ASSERT_TRUE(std::isnan(values[i])) << i;
        } else {
          ASSERT_EQ(values[i], float_of(c.out[i])) << i;
        }
      }
    }
  }
  EXPECT_EQ(n_cases, 343);
}

TEST(Codecs, RotateByTheHadamardMatrixAndBack) {
  for (const json& entry : vectors()["rotation"]) {
    const int32_t dim = entry["dim"], block = entry["block"];
    const uint32_t salt = entry["salt"];
    std::vector<float> x;
    for (uint32_t i = 0; i < static_cast<uint32_t>(dim); ++i) {
      const uint32_t word = (i + 1) * 2654435761u + salt * 2246822519u;
      x.push_back(static_cast<float>(word >> 16) / 32768 - 1);
    }
    const std::vector<double> exact = rotate({x.begin(), x.end()}, block);
    for (const cpu::KernelTable* table : tables()) {
      SCOPED_TRACE(std::string(table->name) + " " + std::to_string(dim));
      std::vector<float> y = x;
      table->rotate(y.data(), dim, block);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_NEAR(exact[i], entry["out"][i].get<double>(), 1e-6);
        ASSERT_NEAR(y[i], exact[i], 1e-6);
      }
      table->rotate_back(y.data(), dim, block);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(y[i], x[i], 1e-6);
    }
  }
}

}  // namespace
