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
/// Tiles have one of three widths, by how many columns their list has: more than 16 are cut into wide tiles, more than 8 into medium
/// ones, where kernels serve those, and what is left into narrow ones. Widths and parts depend on the list alone, so the bits of a
/// sequence do not depend on what else is in the batch.
///
/// What lists share at their start is the exception. Where that saves enough, tiles of the rows of all of them see the prefix, and
/// the tiles of each list see the rest; those merge what both have found. Tiles of prefixes are the widest that the call has.
namespace kvc::cuda {

inline constexpr int32_t tile_columns = 8;  // of narrow tiles
inline constexpr int32_t medium_columns = 16;
inline constexpr int32_t wide_columns = 64;
inline constexpr int32_t wide_columns_max = 128;  // of any kernel
/// A launch serves tiles of one width. In the order of launches: tiles of long prompts take longest.
enum class Width : uint8_t { wide, medium, narrow };
inline constexpr std::array widths = {Width::wide, Width::medium, Width::narrow};
/// No prefix saves so much.
inline constexpr int64_t shares_nothing = INT64_MAX;
/// Shared memory that a block takes for what it is to do, at its start: for narrow tiles, and for those of so many columns.
inline constexpr int32_t item_bytes = 512;
constexpr int32_t item_bytes_of(int32_t columns) {
  return item_bytes + (columns - tile_columns) * 32;
}

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
  int32_t first_slot;  // of its partial results, for each KV head and turn; without meaning where it is whole
  int32_t is_prefix;  // of lists that share one: its results are left to the tiles of the lists
  // Of a tile of a list that shares a prefix: the first tile of that, and which of its rows is the first of these.
  int32_t prefix_columns;  // of such a tile; 0: the list shares none
  int32_t prefix_tile, prefix_row;

  /// Whether one part is all that its rows see.
  KVC_BOTH bool is_whole() const { return n_parts == 1 && is_prefix == 0 && prefix_columns == 0; }
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

/// What call and device decide about the cut of a plan.
struct Cut {
  TileShape narrow;  // of narrow tiles
  bool has_medium = false;
  int32_t wide = 0;  // columns of wide ones; 0: there are none
  /// Tokens, times KV heads, that blocks must not have to read twice for a prefix to be shared.
  int64_t least_saved = shares_nothing;

  TileShape shape_of(Width width) const {
    const int32_t columns = width == Width::wide     ? wide
                            : width == Width::medium ? medium_columns
                                                     : tile_columns;
    return {narrow.n_kv_heads, narrow.group, columns};
  }
  /// Of the tiles of a list with so many rows.
  Width width_of(int32_t n_rows) const {
    const int64_t columns = int64_t{n_rows} * narrow.group;
    if (wide > 0 && columns > medium_columns) return Width::wide;
    return has_medium && columns > tile_columns ? Width::medium : Width::narrow;
  }
  /// Of the tiles of padding tokens, which no wide kernel serves: one that decoding lists have, too.
  Width width_of_padding() const {
    return has_medium && narrow.group > tile_columns ? Width::medium : Width::narrow;
  }
  Width widest() const {
    return wide > 0 ? Width::wide : has_medium ? Width::medium : Width::narrow;
  }
  /// Whether lists and padding tokens that have so many rows together may have tiles of this width.
  bool may_have(Width width, int32_t n_rows) const {
    if (width == Width::narrow) return width_of_padding() == Width::narrow;
    const int64_t columns = int64_t{n_rows} * narrow.group;
    return width == Width::wide ? wide > 0 && columns > medium_columns
                                : has_medium && columns > tile_columns;
  }

  bool operator==(const Cut&) const = default;
};

/// Tokens of a part. One long sequence is cut into some 256 parts over all its heads, which keep a GPU busy; a part is long enough to
/// pay for its start and for its result being written.
int32_t stretch_of(int64_t n_seen, int32_t n_kv_heads);

/// The same of a wide tile, one of `n_tiles` of its list or prefix, which keep a GPU busy beside each other. Sums over very many tokens would
/// be off by more than is promised, so long ones are cut even so.
int32_t wide_stretch_of(int64_t n_seen, int32_t n_kv_heads, int32_t n_tiles);

/// Tiles of one width whose partial results have room at the same time: a launch.
struct Wave {
  int32_t first_part = 0;
  int32_t n_parts = 0;
  Width width = Width::narrow;
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

  /// Launches of one width that a plan of so many tokens needs at most.
  static int32_t most_waves(const AttentionBounds& bounds, const Cut& cut, Width width,
                            int32_t n_tokens);
  /// The same, however it is cut.
  static int32_t most_waves(const AttentionBounds& bounds);

  void forget() { is_cut_ = false; }
  bool is_cut_for(const Cut& cut) const { return is_cut_ && cut == cut_; }
  void cut(const AttentionPlan& plan, const Cut& cut);
  TileShape shape_of(const Wave& wave) const { return cut_.shape_of(wave.width); }

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
  /// What lists [list_begin, list_end), whose rows are [first_row, end_row) of the plan, share and their rows see.
  struct Prefix {
    int32_t list_begin = 0, list_end = 0;
    int32_t first_row = 0, end_row = 0;
    int32_t length = 0;
    int32_t n_seen = 0;  // by any row
    int32_t stretch = 0;
    int32_t first_tile = 0;
  };
  /// Indexes [begin, end) of a list.
  struct Stretch {
    int32_t begin = 0;
    int32_t end = INT32_MAX;
  };

  static int64_t n_own_slots(const AttentionBounds& bounds);
  static int64_t n_prefix_slots(const AttentionBounds& bounds);

  // Of prefixes (prefixes.cpp).
  void find_prefixes(const AttentionPlan& plan);
  bool pays(const AttentionPlan& plan, Prefix& prefix) const;
  int64_t slots_of(const Prefix& prefix) const;
  void add_prefixes(const AttentionPlan& plan);

  /// `share`: those that share prefixes, or those that do not.
  void add_lists(const AttentionPlan& plan, Width width, bool share);
  void add_list(const AttentionPlan& plan, int32_t list, int32_t first_row, int32_t end_row,
                const Prefix* prefix);
  static AttentionRow within(AttentionRow row, const Stretch& stretch);
  void add_ref(const AttentionPlan& plan, int32_t index, ListRef& made, int32_t first_row,
               int32_t end_row, const Stretch& stretch);
  Tile& add_tile(const AttentionPlan& plan, int32_t first_row, int32_t n_rows, const Stretch& stretch);
  void add_padding(const AttentionPlan& plan);
  void add_parts(Tile& tile, Width width, int32_t stretch);
  void add_segments(const AttentionPlan& plan, const ListRef& list, int32_t begin, int32_t end);

  const int64_t n_own_slots_, n_prefix_slots_;
  const size_t rows_at_, lists_at_, segments_at_;
  std::byte* block_;
  Wave* waves_;
  Prefix* prefixes_;  // ascending
  Tile* tiles_;
  TileRow* rows_;
  ListRef* lists_;  // of the plan, then of prefixes
  Segment* segments_;
  Cut cut_;
  bool is_cut_ = false;
  bool ends_wave_ = false;  // what comes next needs the results of what came
  int32_t n_tiles_ = 0, n_rows_ = 0, n_segments_ = 0, n_waves_ = 0;
  int32_t n_parts_ = 0;
  int32_t n_lists_ = 0;
  int32_t n_prefixes_ = 0;
  int64_t slots_taken_ = 0;         // of the last wave
  int64_t prefix_slots_taken_ = 0;  // by what tiles of prefixes leave until the last wave
};

}  // namespace kvc::cuda
