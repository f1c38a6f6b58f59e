/* Latent attention on the CPU: one C ABI for every host (ONNX Runtime, PyTorch, tests).
 *
 * The meaning of every field is that of mla_opt/operator/contract.py; symbols as there:
 * B sequences, H query heads, S query rows, L new rows, M cache rows, C latent width, R rotary dims.
 * Tensors are dense and row-major. A pointer that the problem does not use is null.
 */
#ifndef MLA_OPT_LATENT_ATTENTION_H
#define MLA_OPT_LATENT_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MLA_OPT_PUBLIC __attribute__((visibility("default")))
#else
#define MLA_OPT_PUBLIC
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers are ONNX's TensorProto.DataType, which ONNX Runtime's C ABI shares. */
enum mla_opt_type {
  MLA_OPT_FLOAT32 = 1,
  MLA_OPT_INT8 = 3,
  MLA_OPT_BOOL = 9,
  MLA_OPT_FLOAT16 = 10,
  MLA_OPT_FLOAT64 = 11,
  MLA_OPT_BFLOAT16 = 16,
  MLA_OPT_FLOAT8E4M3FN = 17
};

struct mla_opt_latent_attention {
  size_t struct_size; /* sizeof(struct mla_opt_latent_attention), for hosts built apart */
  int32_t type;       /* of query, latent, sink and output: float32, float16, bfloat16, float64 */
  int32_t cache_type; /* of cache and rope_cache, old and new; equal to type when there is none;
                         int8, float8e4m3fn: of cache alone, rope_cache is bfloat16 */
  int32_t bias_type;  /* MLA_OPT_BOOL or type; ignored without bias */
  int32_t causal;

  int64_t batch;        /* B */
  int64_t heads;        /* H */
  int64_t query_len;    /* S */
  int64_t new_len;      /* L; 0 without latent */
  int64_t cache_len;    /* M; 0 without cache */
  int64_t kv_lora_rank; /* C */
  int64_t rope_dim;     /* R */
  double scale;

  const void* query;       /* [B, H, S, C+R] */
  const void* latent;      /* [B, 1, L, C+R] or null */
  const void* cache;       /* [B, 1, M, C+R], or [B, 1, M, C] with rope_cache, or null; see even_cache */
  const int32_t* past_len; /* [B] or null; given: cache is a buffer, written in place */
  const void* bias;        /* null, or with the strides below */
  int64_t bias_strides[4]; /* elements between neighbours along B, H, S, T; 0 where broadcast */
  const void* sink;        /* [H] or null */
  const void* rope_cache;  /* [B, 1, M, R] or null; with scales behind the R: [B, 1, M, W] */

  void* output;         /* [B, H, S, C] */
  void* new_cache;      /* as cache, or of M+L rows without past_len; null without latent or cache;
                           may be cache itself when past_len is given */
  void* new_rope_cache; /* likewise, of rope_cache */

  int32_t even_cache; /* 1: cache and rope_cache hold the first and the second half of a row, (C+R)/2
                         numbers each; 0: as said above */
};

/* Runs body(state, i) for every i in [0, count), in any order, on any threads; returns when all
 * have run. Returns null, or an error of the host's own, which is handed back as it is. */
typedef void* (*mla_opt_parallel_for)(void* host, void (*body)(void* state, size_t i), size_t count,
                                      void* state);

/* What went wrong: the input that is to blame, and both numbers. */
struct mla_opt_failure {
  char message[256]; /* empty: the problem was legal */
  void* host_error;  /* what parallel_for returned */
};

/* Computes the attention and the new caches. Everything is checked before anything is written.
 * Scratch memory is kept by each thread and reused: no allocation once warm.
 * Returns 0 when done, 1 with a filled failure otherwise. */
MLA_OPT_PUBLIC int mla_opt_latent_attention_run(const struct mla_opt_latent_attention* problem,
                                                mla_opt_parallel_for parallel_for, void* host,
                                                struct mla_opt_failure* failure);

/* Names of the instruction-set tiers that this library holds and this machine can run, best first,
 * separated by blanks: "avx512bf16 avx512 avx2 portable". */
MLA_OPT_PUBLIC const char* mla_opt_cpu_tiers(void);

/* The tier in use: the best one, or the one that the environment variable MLA_OPT_CPU_TIER or
 * mla_opt_use_cpu_tier names. */
MLA_OPT_PUBLIC const char* mla_opt_cpu_tier(void);

/* Uses this tier from the next call on, in all threads; null: the best. Returns 1 for one that this
 * machine cannot run, 0 otherwise. For tests and measurements. */
MLA_OPT_PUBLIC int mla_opt_use_cpu_tier(const char* name);

/* Version of this ABI: hosts refuse another. */
MLA_OPT_PUBLIC int mla_opt_kernel_abi_version(void);

#ifdef __cplusplus
}
#endif

#endif
