#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"

/// How one attention call is cut into work.
///
///   tile     some tokens of one list (or of lists that share a prefix) against a range of logical indexes
///   stretch  one of the equal parts of a tile's history
///   unit     a tile, or one of its stretches; an item of work is a unit and a head
///   slot     where the partial result of one token and one unit waits for the others
///   wave     rows that share the slots; a batch with a shared prefix has as many waves as its rows need
///
/// Tiles and stretches depend on the list's own rows and history alone, and partial results are folded in the order of stretches
/// whoever makes them. So a token has the same bits for any number of threads and beside any other lists. Which stretches
/// become units of their own depends on the whole batch.
namespace kvc::cpu {

/// Partial results that one call can hold at most, in tokens × units; fewer when they would take more than the bytes.
inline constexpr int32_t slots_max = 512;
inline constexpr size_t slot_bytes_max = size_t{32} << 20;

/// Stretches are not cut shorter than this: starting one, before its streams run, costs about as much as 40 cells.
inline constexpr int32_t stretch_cells_min = 1024;

/// Rows [row, row + n_tokens) of the plan against what they see of the logical indexes [low, high) of a list.
/// "Seen" is the union over the rows, counted without the gap: [0, first_end) and then [begin, end).
struct WorkTile {
  int32_t row = 0;
  int32_t n_tokens = 0;
  int32_t list = 0;
  int32_t low = 0;
  int32_t high = 0;
  int32_t first_end = 0;
  int32_t begin = 0;
  int32_t end = 0;
  int32_t n_seen = 0;
  int32_t n_stretches = 1;
  int32_t stretch_cells = 0;
  bool is_split = false;  // each stretch is a unit
  bool shared = false;    // its rows have a second tile, for the rest of their histories

  int32_t n_units() const { return is_split ? n_stretches : 1; }
};

struct WorkUnit {
  int64_t cost = 0;
  int32_t tile = 0;
  int32_t index = 0;  // of the stretch, if the tile is split
};

/// Where the partial results of one row lie. A row with one partial needs no slot.
struct WorkRow {
  int32_t slot = 0;
  int32_t n_partials = 0;
  int32_t n_shared_partials = 0;  // the first ones, made by the tile over the shared prefix
  int32_t counter = 0;            // index among the rows that have slots
};

/// Some neighbouring rows and their tiles, which are done before the next ones begin and leave them all slots.
struct WorkWave {
  int32_t row = 0;  // the first; the next wave has the first that is not in it
  int32_t tile = 0;
  int32_t unit = 0;
  int32_t n_counters = 0;
  int64_t cost = 0;  // of all units, all heads
};

struct WorkPlan {
  WorkTile* tiles = nullptr;  // [2 · n_rows]
  WorkUnit* units = nullptr;  // [6 · n_rows + slots_max] wave by wave, longest first
  WorkRow* rows = nullptr;    // [n_rows]
  WorkWave* waves = nullptr;  // [n_rows + 1], the last one empty
  int32_t n_tiles = 0;
  int32_t n_units = 0;
  int32_t n_waves = 0;
  int32_t n_pieces = 1;     // a group too large for a tile is cut into pieces
  int32_t piece_heads = 0;  // query heads per piece, the last one may have fewer
  int32_t n_slots_max = 0;

  void place(Carver& carver, int32_t n_rows);
};

/// Slots that fit in the bytes, given what one takes.
int32_t slots_for(size_t slot_bytes);

void make_work_plan(const AttentionParams& params, WorkPlan& work);

}  // namespace kvc::cpu
