// The C ABI: checks, plans, and starts up to three kernels.
#include <algorithm>

#include "check.h"
#include "combine_shape.h"
#include "machine.h"
#if defined(MLA_OPT_WITH_FLASHINFER)
#include "../flashinfer/work.h"
#endif

namespace mla_opt::cuda {
namespace {

constexpr int kWriteThreads = 256;
// Of one block for each multiprocessor: enough loads in flight for the whole memory.
constexpr int kWriteBlocks = 8;

bool check_workspace(const Plan& plan, const void* workspace, size_t size,
                     mla_opt_failure& failure) {
  if (plan.workspace == 0) return true;
  if (!workspace || size < plan.workspace)
    return refuse(failure, "the workspace has %zu bytes, %zu are needed", workspace ? size : 0,
                  plan.workspace);
  if (reinterpret_cast<uintptr_t>(workspace) % 16)
    return refuse(failure, "the workspace is at address %p, which is no multiple of 16 bytes",
                  workspace);
  return true;
}

bool start_attention(const Problem& p, const Plan& plan, const Arguments& arguments, void* stream,
                     mla_opt_failure& failure) {
  const Grid grid{plan.blocks, plan.tile.threads(), plan.shared_bytes};
  if (!start_attend(p, plan.width, arguments, grid, stream, failure)) return false;
  if (plan.splits == 1) return true;
  const int rank = static_cast<int>(p.kv_lora_rank), groups = combine_groups(plan.splits);
  const Grid rows{p.batch * p.heads * p.query_len, groups * rank / 4,
                  combine_shared_bytes(groups, rank)};
  return start_combine(p, plan.tile.rows, arguments, rows, stream, failure);
}

// Whether a kernel of its own writes the new caches.
bool writes_apart(const Problem& p) {
  if (!p.new_cache || p.batch == 0) return false;
  if (!is_aliased(p)) return in_place(p) ? p.cache_len > 0 : true;
  return !has_queries(p) && p.new_len > 0;
}

bool start_writing(const Arguments& arguments, int multiprocessors, void* stream,
                   mla_opt_failure& failure) {
  const Grid grid{int64_t{kWriteBlocks} * std::max(multiprocessors, 1), kWriteThreads, 0};
  return start_write_cache(arguments, grid, stream, failure);
}

#if defined(MLA_OPT_WITH_FLASHINFER)

size_t backend_workspace(const Problem& p, int multiprocessors) {
  return flashinfer_workspace_bound(p, multiprocessors);
}

// The rows come first, as FlashInfer reads them from the caches alone.
bool launch_by_backend(const Problem& p, int multiprocessors, void* workspace,
                       size_t workspace_size, void* stream, mla_opt_failure& failure) {
  const Arguments arguments = make_arguments(p, Plan{}, workspace);
  if (writes_apart(p) && !start_writing(arguments, multiprocessors, stream, failure)) return false;
  return launch_flashinfer(p, arguments, multiprocessors, workspace, workspace_size, stream,
                           failure);
}

bool backend_takes(const Problem& p) { return flashinfer_takes(p); }

#else

size_t backend_workspace(const Problem&, int) { return 0; }
bool launch_by_backend(const Problem&, int, void*, size_t, void*, mla_opt_failure&) {
  return false;
}
bool backend_takes(const Problem&) { return false; }

#endif

bool launch(const Problem& p, int multiprocessors, void* workspace, size_t workspace_size,
            void* stream, mla_opt_failure& failure) {
  if (!check(p, failure)) return false;
  if (!has_queries(p) && !writes_apart(p)) return true;
  Device device{};
  if (!find_device(p, device, failure)) return false;
  if (backend_takes(p))
    return launch_by_backend(p, multiprocessors, workspace, workspace_size, stream, failure);
  Plan plan{};
  if (has_queries(p)) plan = make_plan(p, multiprocessors, device);
  if (!check_workspace(plan, workspace, workspace_size, failure)) return false;
  const Arguments arguments = make_arguments(p, plan, workspace);
  if (has_queries(p) && !start_attention(p, plan, arguments, stream, failure)) return false;
  return !writes_apart(p) || start_writing(arguments, multiprocessors, stream, failure);
}

bool loads_in_bulk(const Problem& p) {
  mla_opt_failure failure;
  Device device{};
  if (!check(p, failure) || !has_queries(p) || !find_device(p, device, failure)) return false;
  if (backend_takes(p) || make_plan(p, 0, device).width != Width::kWarpgroups) return false;
  const TensorMaps maps = make_tensor_maps(p);
  return maps.has_cache || maps.has_latent;
}

}  // namespace
}  // namespace mla_opt::cuda

extern "C" {

size_t mla_opt_cuda_latent_attention_workspace(const mla_opt_latent_attention* problem,
                                               int multiprocessors) {
  mla_opt_failure failure;
  if (!mla_opt::cuda::check_shapes(*problem, failure)) return 0;
  return std::max(mla_opt::cuda::workspace_bound(*problem, multiprocessors),
                  mla_opt::cuda::backend_workspace(*problem, multiprocessors));
}

int mla_opt_cuda_latent_attention_launch(const mla_opt_latent_attention* problem,
                                         int multiprocessors, void* workspace, size_t workspace_size,
                                         void* stream, mla_opt_failure* failure) {
  return mla_opt::cuda::launch(*problem, multiprocessors, workspace, workspace_size, stream,
                               *failure)
             ? 0
             : 1;
}

int mla_opt_cuda_latent_attention_loads_in_bulk(const mla_opt_latent_attention* problem) {
  return mla_opt::cuda::loads_in_bulk(*problem) ? 1 : 0;
}

int mla_opt_cuda_multiprocessors(void) { return mla_opt::cuda::multiprocessors_of_device(); }

const char* mla_opt_cuda_architectures(void) { return MLA_OPT_CUDA_ARCHITECTURES; }

int mla_opt_cuda_abi_version(void) { return 2; }

}
