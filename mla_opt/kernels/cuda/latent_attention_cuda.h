/* Latent attention on an NVIDIA GPU: one C ABI for every host (TensorRT, ONNX Runtime, PyTorch).
 *
 * The problem is that of cpu/latent_attention.h, with addresses on the device, past_len's too: the
 * host never reads a length. Needs no CUDA header.
 *
 * Has kernels for float16 and bfloat16 (caches of the same type) and C+R of 512+64, 256+32, 512+0;
 * addresses of rows must be multiples of 16. Sums are kept in float32, probabilities are rounded to
 * the type. What past_len says is clamped to 0 .. M-L, so that no value of it leads out of a buffer.
 */
#ifndef MLA_OPT_LATENT_ATTENTION_CUDA_H
#define MLA_OPT_LATENT_ATTENTION_CUDA_H

#include "../cpu/latent_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of device memory that a launch of this problem needs, on any device with this number of
 * multiprocessors or fewer; where it is 0, not known yet, on any with up to 192. 0 for a problem
 * without a kernel. Reads only types and sizes: no address, no device. Enough for every problem
 * whose batch, heads, query_len, new_len and cache_len are no larger. */
MLA_OPT_PUBLIC size_t mla_opt_cuda_latent_attention_workspace(
    const struct mla_opt_latent_attention* problem, int multiprocessors);

/* Starts the attention, and the writing of the new caches, on the current device; waits for nothing.
 * workspace is aligned to 16 bytes and in nobody else's use until the stream is past this call.
 * stream is a cudaStream_t, null for the default one. May be captured into a CUDA graph after one
 * call outside (which loads the kernels); a replay reads past_len anew.
 * Returns 0 when started, 1 with a filled failure otherwise, nothing started then: host_error is
 * null. */
MLA_OPT_PUBLIC int mla_opt_cuda_latent_attention_launch(
    const struct mla_opt_latent_attention* problem, int multiprocessors, void* workspace,
    size_t workspace_size, void* stream, struct mla_opt_failure* failure);

/* Whether a launch of this problem on the current device loads keys by its tensor memory accelerator:
 * 1 or 0. For who measures; it changes no result. Starts nothing. */
MLA_OPT_PUBLIC int mla_opt_cuda_latent_attention_loads_in_bulk(
    const struct mla_opt_latent_attention* problem);

/* Multiprocessors of the current device; 0 when no device can be used. */
MLA_OPT_PUBLIC int mla_opt_cuda_multiprocessors(void);

/* The architectures whose code this library holds, as nvcc names them: "80 86 89 90 100 120". */
MLA_OPT_PUBLIC const char* mla_opt_cuda_architectures(void);

/* Version of this ABI: hosts refuse another. */
MLA_OPT_PUBLIC int mla_opt_cuda_abi_version(void);

#ifdef __cplusplus
}
#endif

#endif
