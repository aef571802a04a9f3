#pragma once
#include <cstdint>

#include "core/base/status.hpp"

/// Arguments that name sequences and positions: the same for every kind of cache (semantics §1b).
namespace kvc {

Status check_sequence(int32_t sequence, int32_t max_sequences, const char* name = "sequence");

/// Element `at` of an array of sequences.
Status check_sequence_at(const char* array, int32_t at, int32_t sequence, int32_t max_sequences);

/// Of can_resume and resume.
Status check_resume(int32_t sequence, int32_t want, int32_t max_sequences);

/// Of copy_prefix.
Status check_copy(int32_t source, int32_t destination, int32_t length, int32_t max_sequences);

/// The positions of a removal.
Status check_range(int32_t sequence, int32_t begin, int32_t end, int32_t max_sequences);

/// How many tokens commit_prefix keeps of a sequence.
Status check_keep(int32_t sequence, int32_t keep);
Status check_kept_of(int32_t sequence, int32_t keep, int32_t n_added);

/// Refusals of lists in which no sequence may be named twice.
Status too_many_named(int32_t n, int32_t max_sequences);
Status named_twice(int32_t sequence);
Status destination_named_twice(int32_t at, int32_t sequence);

}  // namespace kvc
