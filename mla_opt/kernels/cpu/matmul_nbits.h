/* Rows times a matrix whose numbers are stored in 4 or 8 bits, on the CPU: C ABI. Every field means what
 * mla_opt/operator/matmul_nbits.py says.
 */
#ifndef MLA_OPT_MATMUL_NBITS_H
#define MLA_OPT_MATMUL_NBITS_H

#include "latent_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_opt_matmul_nbits {
  size_t struct_size;
  int64_t rows;        /* M */
  int64_t inner;       /* K */
  int64_t columns;     /* N */
  int64_t block_size;  /* numbers of a row of b that share a scale: 32, 64, 128 or 256 */
  int32_t bits;        /* of b: 4 or 8 */
  int32_t scales_type; /* float32 or float16 */

  const float* a;             /* [M, K] */
  const uint8_t* b;           /* [N, blocks, block_size * bits / 8]: blocks is K / block_size, rounded up */
  const void* scales;         /* [N, blocks] */
  const uint8_t* zero_points; /* [N, blocks * bits / 8, rounded up]; null: 2^(bits - 1) */
  const float* bias;          /* [N] or null */
  float* y;                   /* [M, N] */
};

/* Whether the tier in use has this product: for others it is that of the runtime. */
MLA_OPT_PUBLIC int mla_opt_matmul_nbits_runs_here(void);

/* As mla_opt_latent_attention_run. */
MLA_OPT_PUBLIC int mla_opt_matmul_nbits_run(const struct mla_opt_matmul_nbits* problem,
                                            mla_opt_parallel_for parallel_for, void* host,
                                            struct mla_opt_failure* failure);

#ifdef __cplusplus
}
#endif

#endif
