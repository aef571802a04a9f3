#pragma once
#include <sys/mman.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

#include "core/base/half.hpp"
#include "core/base/storage.hpp"
#include "kernels/cpu/pages.hpp"
#include "kernels/cpu/tile.hpp"

/// Memory that ends where a page begins that nobody may touch: whoever reads past the end dies.
class AtTheEdge {
 public:
  explicit AtTheEdge(size_t n_bytes) {
    const size_t page = kvc::cpu::system_page();
    const size_t whole = kvc::cpu::whole_pages(n_bytes, page);
    bytes_ = whole + page;
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::runtime_error("mmap failed");
    std::byte* edge = static_cast<std::byte*>(memory_) + whole;
    if (mprotect(edge, page, PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
    data_ = edge - n_bytes;
  }
  ~AtTheEdge() { munmap(memory_, bytes_); }
  AtTheEdge(const AtTheEdge&) = delete;
  AtTheEdge& operator=(const AtTheEdge&) = delete;
  std::byte* data() const { return data_; }
  const float* floats() const { return reinterpret_cast<const float*>(data_); }

 private:
  size_t bytes_ = 0;
  void* memory_ = nullptr;
  std::byte* data_ = nullptr;
};

/// How the rows of a test are stored; `gap` bytes lie between two rows of codes, as between
/// interleaved rows.
struct StoredAs {
  kvc::StorageType type = kvc::StorageType::f16;
  int32_t block = 0;  // of nf4: 0: the largest of 64, 32 and 16 that divides the dimension
  size_t gap = 0;
};

/// One head's rows of K or of V with random contents, and the values that docs/SEMANTICS.md, section
/// 9, gives them. Rows that were never filled are NaN. Behind the last row lies no memory.
class StoredRows {
 public:
  StoredRows(const StoredAs& as, int32_t head_dim, int32_t n_cells)
      : format_(format(as, head_dim)),
        stride_(format_.code_bytes() + as.gap),
        codes_(stride_ * static_cast<size_t>(n_cells) - as.gap),
        scales_(format_.scale_bytes() * static_cast<size_t>(n_cells)) {
    std::memset(codes_.data(), 0xff, stride_ * static_cast<size_t>(n_cells) - as.gap);
    std::memset(scales_.data(), 0xff, format_.scale_bytes() * static_cast<size_t>(n_cells));
  }

  /// As a tile reads dimensions [first, first + n) of every row.
  kvc::cpu::TileRows tile_rows(int32_t first, int32_t n) const {
    const int32_t per_byte = kvc::format_of(format_.type).codes_per_byte;
    const size_t element = kvc::size_of(kvc::format_of(format_.type).code);
    kvc::cpu::TileRows rows;
    rows.codes = codes_.data() + static_cast<size_t>(first / per_byte) * element;
    if (format_.block != 0) rows.scales = scales_.data() + scale_offset(first);
    rows.stride = stride_;
    rows.bytes = static_cast<size_t>(n / per_byte) * element;
    rows.scale_stride = format_.scale_bytes();
    rows.type = format_.type;
    rows.head_dim = n;
    rows.block = format_.block;
    return rows;
  }

  /// Values of about this size.
  void fill(int32_t cell, float size, std::mt19937& random) {
    std::normal_distribution<float> normal;
    if (kvc::is_plain(format_.type)) {
      for (int32_t d = 0; d < format_.head_dim; ++d) set(cell, d, normal(random) * size);
      return;
    }
    for (size_t i = 0; i < format_.code_bytes(); ++i) {
      auto code = static_cast<uint32_t>(random() & 0xff);
      if (kvc::is_f8(format_.type)) code = (code & 0x80) | (code & 0x7f) % largest_code();
      row(cell)[i] = static_cast<std::byte>(code);
    }
    for (int32_t d = 0; format_.block != 0 && d < format_.head_dim; d += format_.block)
      set_scale(cell, d, (0.25f + std::fabs(normal(random))) * size / step());
  }

  /// Stores what is not finite, in a type with stored scales by way of the block's scale; any number
  /// in f32, f16 and bf16.
  void set(int32_t cell, int32_t d, float x) {
    using kvc::StorageType;
    if (format_.block != 0) return set_scale(cell, d, x);
    if (kvc::is_plain(format_.type))
      return kvc::store_element(row(cell), kvc::format_of(format_.type).code, d, x);
    const bool has_infinity = format_.type == StorageType::f8_e5m2;
    const uint32_t infinity = std::signbit(x) ? 0xfc : 0x7c;
    row(cell)[d] = static_cast<std::byte>(has_infinity && std::isinf(x) ? infinity : 0x7f);
  }

  float value(int32_t cell, int32_t d) const {
    using kvc::StorageType;
    const std::byte* codes = row(cell);
    switch (format_.type) {
      case StorageType::f32:
      case StorageType::f16:
      case StorageType::bf16: return kvc::load_element(codes, kvc::format_of(format_.type).code, d);
      case StorageType::f8_e4m3: return e4m3(static_cast<uint8_t>(codes[d]));
      case StorageType::f8_e5m2: return e5m2(static_cast<uint8_t>(codes[d]));
      case StorageType::q8_0:
      case StorageType::int8:
        return static_cast<float>(static_cast<int8_t>(codes[d])) * scale(cell, d);
      case StorageType::q4_0: {
        const auto both = static_cast<int32_t>(codes[d / 32 * 16 + d % 16]);
        return static_cast<float>((d % 32 < 16 ? both & 15 : both >> 4) - 8) * scale(cell, d);
      }
      case StorageType::nf4: {
        const auto both = static_cast<int32_t>(codes[d / 2]);
        return nf4(d % 2 == 0 ? both >> 4 : both & 15) * scale(cell, d);
      }
    }
    return 0;
  }

 private:
  static kvc::RowFormat format(const StoredAs& as, int32_t head_dim) {
    kvc::RowFormat format;
    const kvc::RowRequest request = {.type = as.type, .head_dim = head_dim, .block = as.block};
    if (kvc::resolve_row_format(request, &format) != kvc::Status::ok)
      throw std::runtime_error("a test stores what cannot be stored");
    return format;
  }

  static float e4m3(uint8_t code) {
    const int32_t exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
    const float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    return (code & 0x80) != 0 ? -x : x;
  }
  static float e5m2(uint8_t code) {
    const int32_t exponent = code >> 2 & 31, mantissa = code & 3;
    float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -16)
                            : std::ldexp(static_cast<float>(4 + mantissa), exponent - 17);
    if (exponent == 31) x = mantissa == 0 ? HUGE_VALF : std::numeric_limits<float>::quiet_NaN();
    return (code & 0x80) != 0 ? -x : x;
  }
  static float nf4(int32_t code) {
    constexpr uint32_t table[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0,
                                    0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
                                    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                    0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
    float x;
    std::memcpy(&x, &table[code], sizeof x);
    return x;
  }

  /// Codes of f8 below this one are at most 4, subnormal numbers among them.
  uint32_t largest_code() const { return format_.type == kvc::StorageType::f8_e4m3 ? 0x49 : 0x45; }
  /// Codes of a type with stored scales reach about this far.
  float step() const {
    if (format_.type == kvc::StorageType::nf4) return 0.5f;
    return format_.type == kvc::StorageType::q4_0 ? 4.0f : 64.0f;
  }

  std::byte* row(int32_t cell) const { return codes_.data() + stride_ * static_cast<size_t>(cell); }
  size_t scale_offset(int32_t d) const {
    return static_cast<size_t>(d / format_.block) * kvc::size_of(kvc::format_of(format_.type).scale);
  }
  std::byte* scale_at(int32_t cell, int32_t d) const {
    return scales_.data() + format_.scale_bytes() * static_cast<size_t>(cell) + scale_offset(d);
  }
  void set_scale(int32_t cell, int32_t d, float x) {
    kvc::store_element(scale_at(cell, d), kvc::format_of(format_.type).scale, 0, x);
  }
  float scale(int32_t cell, int32_t d) const {
    return kvc::load_element(scale_at(cell, d), kvc::format_of(format_.type).scale, 0);
  }

  kvc::RowFormat format_;
  size_t stride_;
  AtTheEdge codes_, scales_;
};
