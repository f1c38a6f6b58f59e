// The kernels and the machine that runs them, as the launch sees them: a GPU (machine.cu), or an
// emulation of one in the tests.
#pragma once

#include "arguments.h"
#include "tensor_maps.h"

namespace mla_opt::cuda {

// How much of a launch runs at once, and how.
struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

// The current device, by the code that runs on it; false with a filled failure when there is no
// device or no code for it.
bool find_device(const Problem& problem, Device& device, mla_opt_failure& failure);

// Of the current device; 0 when no device can be used.
int multiprocessors_of_device();

// Describes rows to TMA, of which [box_rows, kBoxColumns] are copied at once. False where it does not
// take them, or is not there.
bool encode_tensor_map(const Rows& rows, int box_rows, TensorMap& map);

// Each starts one kernel. False with a filled failure when it could not be started.
bool start_attend(const Problem& problem, Width width, const Arguments& arguments, const Grid& grid,
                  void* stream, mla_opt_failure& failure);
bool start_combine(const Problem& problem, int rows, const Arguments& arguments, const Grid& grid,
                   void* stream, mla_opt_failure& failure);
bool start_write_cache(const Arguments& arguments, const Grid& grid, void* stream,
                       mla_opt_failure& failure);

}  // namespace mla_opt::cuda
