// Past rows and new rows on their way into the new cache.
#pragma once

#include <cstdint>

#include "problem.h"

namespace mla_opt {

// Copies past rows first .. first + count of a sequence to the new cache of a growing problem.
void copy_past_rows(const Problem& problem, int64_t sequence, int64_t first, int64_t count);

// Writes the new rows of a sequence behind its past ones, as the cache's type.
void write_new_rows(const Problem& problem, int64_t sequence);

// Whether the caches are buffers that have to be copied whole before they are written to.
bool copies_buffer(const Problem& problem);

// Parts of the buffers that are copied by tasks of their own.
int64_t buffer_parts(const Problem& problem);
void copy_buffer_part(const Problem& problem, int64_t part);

}  // namespace mla_opt
