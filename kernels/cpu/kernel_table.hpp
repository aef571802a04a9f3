#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/lightning_block.hpp"
#include "kernels/cpu/tile.hpp"

/// The kernels of one instruction set. isa_*.cpp compile the same headers with different flags:
///
///   decode.hpp   process_narrow_tile(tile)        few rows; needs narrow_tile_scratch_bytes
///   codes.hpp    process_codes_tile(tile)         few rows over integer codes, with AMX; codes_vnni.hpp: with VNNI
///   medium.hpp   process_medium_tile(tile)        some rows, AVX-512; needs medium_tile_scratch_bytes
///   prefill.hpp  process_wide_tile(tile)          many rows; needs wide_tile_scratch_bytes
///   matrix.hpp   process_matrix_tile(tile)        many rows, with AMX
///   vectors.hpp  convert, blend, scale            contiguous floats
///   codecs.hpp   encode, decode, rotate           rows as storage types keep them
///   turn.hpp     turn_row, …                      rotations by RoPE
///   linear.hpp   lightning_step, …                linear attention with decay
namespace kvc::cpu {

/// A tile never has more rows than this: 96 tokens of a group of four.
inline constexpr int32_t tile_rows_max = 384;

/// The medium kernel takes no more than this.
inline constexpr int32_t medium_tile_rows_max = 64;

/// Cells of a tile at most; a longer stretch becomes several tiles over the same state.
inline constexpr int32_t tile_cells_max = 1536;

/// A rotation by RoPE as the product of two: arrays of `count` cosines and, behind them, `count` sines, a multiple of 16 of each. One
/// of each pair, or, where pairs are neighbours, two: the same cosine twice, and the sine negative and as it is.
struct KeyTurn {
  const Rope* rope = nullptr;
  const float* high = nullptr;
  const float* low = nullptr;
  int64_t count = 0;
  float sign = 1;  // multiplies the sines of the product: −1 turns the other way
};

/// Rows of f32, f16 or bf16 that become f32 and are turned, all by one rotation: row i from that of cell[i] to row i, which may be the
/// same row of f32.
struct TurnedRows {
  float* to = nullptr;
  int64_t to_stride = 0;
  const std::byte* from = nullptr;
  size_t from_stride = 0;  // bytes
  const int32_t* cell = nullptr;
  int32_t n = 0;
  DType type = DType::f32;
  int32_t head_dim = 0;
};

struct KernelTable {
  const char* name;  // "portable", "avx2", "avx512", "vnni", "amx", "neon"

  /// A tile of up to tile_rows_max rows, any head dimension, every option.
  void (*process_narrow_tile)(const Tile& tile);
  size_t (*narrow_tile_scratch_bytes)(int32_t head_dim_k, int32_t head_dim_v);

  /// The same contract and the same results to rounding, for up to medium_tile_rows_max rows;
  /// faster from medium_tile_rows_min(types of K and V) rows on. Null where the instruction set has too few registers
  /// for it.
  void (*process_medium_tile)(const Tile& tile);
  size_t (*medium_tile_scratch_bytes)(int32_t head_dim_k, int32_t head_dim_v);
  int32_t (*medium_tile_rows_min)(StorageType k, StorageType v);  // that of the wide kernel when null

  /// The same for any number of rows, faster from wide_tile_rows_min(types of K and V) rows on.
  void (*process_wide_tile)(const Tile& tile);
  size_t (*wide_tile_scratch_bytes)(int32_t head_dim_k, int32_t head_dim_v);
  bool wide_tile_scales;  // whether it multiplies scores with Tile::scale; the others take it as 1
  int32_t (*wide_tile_rows_min)(StorageType k, StorageType v);
  int32_t wide_tile_rows;  // its best number of rows, if that leaves tiles enough for all threads

  /// Convert `count` contiguous elements, the scaled ones multiplied with the factor.
  void (*to_f32)(float* to, const void* from, DType from_type, int64_t count);
  void (*from_f32)(void* to, DType to_type, const float* from, int64_t count);
  void (*to_f32_scaled)(float* to, const void* from, DType from_type, float factor, int64_t count);
  void (*from_f32_scaled)(void* to, DType to_type, const float* from, float factor, int64_t count);
  /// Codecs of one row: format.head_dim floats, and what is stored of them. Whether they are rotated is
  /// the caller's affair. Contiguous; the stored bytes need no alignment beyond that of their element.
  void (*encode)(const RowFormat& format, const StoredRow& to, const float* values);
  void (*decode)(const RowFormat& format, float* values, const StoredRow& from);
  /// y = H (s ∘ x) / √block in place, and its inverse, for each `block` of `count` floats
  /// (docs/SEMANTICS.md, section 9). `block` is a power of two that divides `count`.
  void (*rotate)(float* values, int64_t count, int32_t block);
  void (*rotate_back)(float* values, int64_t count, int32_t block);
  /// Rotations by RoPE (offset_rotations.hpp): the product of two, and rows that are turned.
  void (*multiply_turns)(double* to, const double* a, const double* b, int64_t count);
  void (*turn_rows)(const TurnedRows& rows, const KeyTurn& turn);
  /// to = to · keep + from · add: floats, 64-byte aligned, padded to 16.
  void (*blend)(float* to, float keep, const float* from, float add, int64_t count);
  /// Linear attention (lightning_block.hpp): a token; rows of tokens as floats and back; of a block what its query heads
  /// and its state share, then one query head, then the state.
  void (*lightning_step)(const LightningStep& step);
  void (*lightning_load)(const LightningRows& rows);
  void (*lightning_store)(const LightningOutputs& rows);
  void (*lightning_pack)(const LightningBlock& block, bool attends, bool advances);
  void (*lightning_attend)(const LightningBlock& block);
  void (*lightning_advance)(const LightningBlock& block);
  int32_t lightning_panel_dims;
  /// How many of n cell numbers, 1 at least, are neighbours in order: cell[i] = cell[0] + i.
  int32_t (*run_length)(const int32_t* cell, int32_t n);
  /// 2^x and tanh of each element, as the kernels compute them, for tests. `count` is a multiple of
  /// 16.
  void (*exp2)(float* to, const float* from, int64_t count);
  void (*tanh)(float* to, const float* from, int64_t count);
};

extern const KernelTable portable_kernels;
#if defined(__x86_64__)
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;
extern const KernelTable vnni_kernels;
extern const KernelTable amx_kernels;

/// The kernels that isa_vnni.cpp compiles; the others of its table are those for AVX-512.
namespace vnni {
void process_codes_tile(const Tile& tile);
void process_medium_codes_tile(const Tile& tile);
size_t codes_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v);
}  // namespace vnni

/// The kernels that isa_amx.cpp compiles; the others of its table are those for AVX-512.
namespace amx {
void process_codes_tile(const Tile& tile);
void process_medium_codes_tile(const Tile& tile);
size_t codes_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v);
void process_matrix_tile(const Tile& tile);
size_t matrix_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v);
int32_t matrix_tile_rows_min(StorageType k, StorageType v);
}  // namespace amx
#elif defined(__aarch64__)
extern const KernelTable neon_kernels;
#endif

/// The best table this machine can run, or the one that the environment's KVC_CPU_ISA names
/// (portable, avx2, avx512, vnni, amx, neon) when the machine can run it. The first call chooses it for the
/// life of the process.
const KernelTable& kernels() noexcept;

/// Table `index` of those this machine can run, best first; null past the last. For tests and
/// benchmarks.
const KernelTable* runnable_kernels(int32_t index) noexcept;

/// Why Linux has refused AMX to this process, for people; null if it has not: AMX is permitted, the
/// processor lacks it, or KVC_CPU_ISA names another set.
const char* amx_refusal() noexcept;

/// Overrides kernels() for calls that start later; null restores the default. For tests and
/// benchmarks.
void use_kernels(const KernelTable* table) noexcept;

}  // namespace kvc::cpu
