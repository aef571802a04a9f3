#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"

// Of functions that kernels call too.
#if defined(__CUDACC__)
#define KVC_BOTH __host__ __device__
#else
#define KVC_BOTH
#endif

/// Cuts the plan of a pass into the pieces that blocks of threads work on. There is no CUDA in here.
///
/// A *tile* is a few rows of one list: its rows times the query heads that share a KV head are its *columns*, at most as many
/// as tiles are wide. Where a KV head has more query heads than that, a tile is one row, and blocks take `head_blocks` turns. What a
/// tile sees is cut into *parts*; a block serves one part for one KV head.
///
/// Tiles have one of two widths: lists of many columns are cut into wide tiles, where a kernel serves those, and all others into
/// narrow ones. Widths and parts depend on the list alone, so the bits of a sequence do not depend on what else is in the batch.
namespace kvc::cuda {

inline constexpr int32_t tile_columns = 8;
inline constexpr int32_t wide_columns = 64;
/// Lists of more columns are cut into wide tiles: narrow ones would read K and V a third time.
inline constexpr int32_t narrow_columns_max = 2 * tile_columns;
/// Shared memory that a block takes for what it is to do, at its start.
inline constexpr int32_t item_bytes = 512;

/// The tokens of a sequence in the device's token arrays, as a TokenList names them.
struct ListRef {
  int64_t start[3];
  int32_t count[3];
  int32_t first_cell;
  int32_t first_position;
  int32_t first_segment;
  int32_t n_segments;  // at least 1
};

/// From this index of its list on, up to the next segment, keys owe a rotation by `offset` positions.
struct Segment {
  int32_t begin;
  int32_t offset;
};

/// A row of the batch. What it sees is in *seen coordinates* of its tile, [0, first_end) and [begin, end): they count
/// what any row of the tile sees.
struct TileRow {
  int32_t token;
  int32_t position;
  int32_t first_end;
  int32_t begin;
  int32_t end;
};

struct Tile {
  int32_t list;  // without meaning where n_seen is 0
  int32_t first_row;
  int32_t n_rows;
  int32_t first_end, begin,
      end;  // what any row sees, in indexes of the list: [0, first_end) and [begin, end)
  int32_t all_first_end, all_begin, all_end;  // what every row sees, in seen coordinates
  int32_t n_seen;                             // by any row
  int32_t stretch;                            // tokens of a part
  int32_t n_parts;
  int32_t first_part;  // counted over all tiles
  int32_t first_slot;  // of its partial results, for each KV head and turn; without meaning where there is one part
};

/// What the shapes of layer and call decide about tiles of one width.
struct TileShape {
  int32_t n_kv_heads = 0;
  int32_t group = 0;  // query heads of a KV head
  int32_t columns = tile_columns;

  KVC_BOTH int32_t heads() const { return group < columns ? group : columns; }
  KVC_BOTH int32_t rows() const { return columns / heads(); }
  KVC_BOTH int32_t head_blocks() const { return (group + columns - 1) / columns; }
  /// Blocks that serve a part.
  KVC_BOTH int32_t turns() const { return n_kv_heads * head_blocks(); }
  /// Slots of partial results that a block leaves behind for a tile of so many rows.
  KVC_BOTH int32_t slots(int32_t n_rows) const {
    return (n_rows * heads() + tile_columns - 1) / tile_columns;
  }

  bool operator==(const TileShape&) const = default;
};

/// Tokens of a part. One long sequence is cut into some 256 parts over all its heads, which keep a GPU busy; a part is long enough to
/// pay for its start and for its result being written.
int32_t stretch_of(int64_t n_seen, int32_t n_kv_heads);

/// The same of a wide tile, one of `n_tiles` of its list, which keep a GPU busy beside each other. Sums over very many tokens would
/// be off by more than is promised, so long ones are cut even so.
int32_t wide_stretch_of(int64_t n_seen, int32_t n_kv_heads, int32_t n_tiles);

/// Tiles of one width whose partial results have room at the same time: a launch.
struct Wave {
  int32_t first_part = 0;
  int32_t n_parts = 0;
  bool is_wide = false;
};

/// What a launch is to do, where that is told in device memory: a graph launches alike for every pass.
struct LaunchedParts {
  int32_t first_part = 0;
  int32_t n_parts = 0;
  int32_t n_tiles = 0;  // of the pass
};

/// The tiles of one pass, in memory that it is given.
class Schedule {
 public:
  /// `memory`, host_bytes() aligned to 64, outlives it.
  Schedule(const AttentionBounds& bounds, std::byte* memory);

  static size_t host_bytes(const AttentionBounds& bounds);
  /// Bytes of device memory that block() takes at most.
  static size_t block_bytes(const AttentionBounds& bounds);
  /// Slots of partial results that a launch may leave behind: each is tile_columns columns of a part, for a KV head and a turn.
  static int64_t n_slots(const AttentionBounds& bounds);

  /// Launches that a plan of so many tokens needs at most.
  static int32_t most_waves(const AttentionBounds& bounds, int32_t n_tokens);

  void forget() { is_cut_ = false; }
  /// `narrow` is the shape of narrow tiles, `has_wide` whether there may be wide ones.
  bool is_cut_for(const TileShape& narrow, bool has_wide) const {
    return is_cut_ && narrow == narrow_ && has_wide == has_wide_;
  }
  void cut(const AttentionPlan& plan, const TileShape& narrow, bool has_wide);
  TileShape shape_of(const Wave& wave) const { return wave.is_wide ? wide_shape() : narrow_; }

  /// What the kernels read, to be copied to the device as it is.
  const std::byte* block() const { return block_; }
  /// What is used of each of its arrays, in bytes.
  struct Array {
    size_t at = 0;
    size_t bytes = 0;
  };
  std::array<Array, 4> arrays() const;
  size_t tiles_at() const { return 0; }
  size_t rows_at() const { return rows_at_; }
  size_t lists_at() const { return lists_at_; }
  size_t segments_at() const { return segments_at_; }

  int32_t n_tiles() const { return n_tiles_; }
  const Tile* tiles() const { return tiles_; }
  const TileRow* rows() const { return rows_; }
  const ListRef* lists() const { return lists_; }
  const Segment* segments() const { return segments_; }
  int32_t n_waves() const { return n_waves_; }
  const Wave& wave(int32_t index) const { return waves_[index]; }

 private:
  TileShape wide_shape() const { return {narrow_.n_kv_heads, narrow_.group, wide_columns}; }
  void add_lists(const AttentionPlan& plan, bool are_wide);
  void add_tile(const AttentionPlan& plan, int32_t first_row, int32_t n_rows);
  void add_padding(const AttentionPlan& plan, int32_t first, int32_t n);
  /// `n_wide`: wide tiles of the list, of which this is one; 0: it is a narrow one.
  void add_parts(Tile& tile, int32_t n_wide);
  void add_list(const AttentionPlan& plan, int32_t index, int32_t first_row, int32_t end_row);
  void add_segments(const AttentionPlan& plan, const TokenList& list, int32_t begin, int32_t end);

  const int64_t n_slots_;
  const size_t rows_at_, lists_at_, segments_at_;
  std::byte* block_;
  Wave* waves_;
  Tile* tiles_;
  TileRow* rows_;
  ListRef* lists_;
  Segment* segments_;
  TileShape narrow_;
  bool has_wide_ = false;
  bool is_cut_ = false;
  int32_t n_tiles_ = 0, n_rows_ = 0, n_segments_ = 0, n_waves_ = 0;
  int32_t n_parts_ = 0;
  int32_t n_lists_ = 0;
  int64_t slots_taken_ = 0;  // of the last wave
};

}  // namespace kvc::cuda
