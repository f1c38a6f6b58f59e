// FlashInfer's attention behind the C ABI of latent_attention_cuda.h, where it was chosen at build
// time: which problems it takes, and how their work is cut up for it.
//
// It reads a paged cache. Here a page is a whole sequence of a contiguous one, so page b is sequence
// b and nothing is moved. What FlashInfer plans on the host, from lengths, a kernel of ours plans on
// the device (work.cuh): the host never reads a length, and a captured graph follows them.
//
// It keeps the parts of a query row in 16 bits, where ours are float32.
#pragma once

#include "../cuda/arguments.h"

namespace mla_opt::cuda {

// Query rows of one item of work, and what splits of keys are multiples of.
constexpr int kWorkRows = 64;
constexpr int kWorkKeys = 64;

// Items are all tiles of query rows of all sequences, each with every split of its keys.
struct Work {
  int tiles;   // of query rows, of one sequence
  int splits;
  int items;
  int blocks;  // all of them run at once: they wait for each other
};

// What a kernel of ours writes and FlashInfer's reads: named as there.
struct WorkArrays {
  int32_t* q_indptr;  // these for each item
  int32_t* kv_indptr;
  int32_t* partial_indptr;
  int32_t* q_len;
  int32_t* kv_len;
  int32_t* q_start;
  int32_t* kv_start;
  int32_t* kv_end;
  int32_t* work_indptr;  // items of each block
  int32_t* merge_packed_offset_start;  // these for each block
  int32_t* merge_packed_offset_end;
  int32_t* merge_partial_packed_offset_start;
  int32_t* merge_partial_packed_offset_end;
  int32_t* merge_partial_stride;
  int32_t* kv_indices;  // for each sequence
  float* partial_lse;   // for each query row of each item, where there are splits
  void* partial_o;
};

// Whether FlashInfer computes a checked problem: 512 + 64, without bias, sink, and mask among the
// new rows. Everything else is for our own kernels.
bool flashinfer_takes(const Problem& problem);

// `blocks`: how many can run at once.
Work make_work(const Problem& problem, int blocks);

// Puts the arrays into a workspace that is aligned to 16 bytes; returns the bytes that they take.
size_t place_arrays(const Problem& problem, const Work& work, void* workspace, WorkArrays& arrays);

// Enough for this problem and smaller ones on a device with this number of multiprocessors or fewer,
// 0: with any number.
size_t flashinfer_workspace_bound(const Problem& problem, int multiprocessors);

// Starts the attention; the rows must be in the new cache when the stream comes to it, but for those
// of a buffer that is written in place, which it writes. False with a filled failure when it cannot.
bool launch_flashinfer(const Problem& problem, const Arguments& arguments, int multiprocessors,
                       void* workspace, size_t workspace_size, void* stream,
                       mla_opt_failure& failure);

// ---- the machine: a GPU (attend.cu), or an emulation of one in the tests --------------------------

// How many blocks can run at once on the current device.
int blocks_at_once();

// Starts the kernel of work.cuh.
bool start_work(const Problem& problem, const Arguments& arguments, const Work& work,
                const WorkArrays& arrays, void* stream, mla_opt_failure& failure);

// Starts FlashInfer's kernel.
bool start_flashinfer(const Problem& problem, const Work& work, const WorkArrays& arrays,
                      void* stream, mla_opt_failure& failure);

}  // namespace mla_opt::cuda
