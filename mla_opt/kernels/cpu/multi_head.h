/* Multi-head latent attention on the CPU: latent attention between the two products of each head, the
 * weights in the bits that a model stores them in. C ABI; every field means what
 * mla_opt/operator/multi_head.py and mla_opt/operator/kv_b.py say. N: dims of a head's key without
 * rotary embedding, V: of its value.
 */
#ifndef MLA_OPT_MULTI_HEAD_H
#define MLA_OPT_MULTI_HEAD_H

#include "latent_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Types of weights beyond those of enum mla_opt_type; ONNX's numbers as well. */
enum mla_opt_weight_type {
  MLA_OPT_UINT8 = 2,
  MLA_OPT_FLOAT8E5M2 = 19
};

enum mla_opt_form { MLA_OPT_AUTO = 0, MLA_OPT_ABSORBED = 1, MLA_OPT_EXPANDED = 2 };

/* W_UK and W_UV^T of all heads, row by row. */
struct mla_opt_kv_b {
  int32_t type;             /* of the codes; MLA_OPT_UINT8 when packed */
  int32_t bits;             /* 2, 4 or 8: packed; 0: each code is an element */
  int32_t scales_type;      /* float32, float16 or bfloat16; ignored without scales */
  int32_t zero_points_type; /* packed codes: MLA_OPT_UINT8 for packed zero points, else scales_type;
                               other codes: type. Ignored without zero_points */
  int64_t block_size;       /* columns that share a scale; 0 without scales */
  int64_t block_rows;       /* rows that share a scale */
  const void* codes;        /* [H (N+V), C], or [H (N+V), C / block_size, block_size * bits / 8] */
  const void* scales;       /* null, or [H (N+V) / block_rows, C / block_size] */
  const void* zero_points;  /* null, or as scales, or [H (N+V), C / block_size * bits / 8] */
  const float* factors;     /* null, or [2, C]: of the columns of W_UK, and of those of W_UV^T */
};

struct mla_opt_multi_head_latent_attention {
  size_t struct_size;
  struct mla_opt_latent_attention attention; /* query is [B, H, S, N+R], output [B, H, S, V] */
  struct mla_opt_kv_b kv_b;
  int64_t nope_dim; /* N */
  int64_t v_dim;    /* V */
  int32_t form;     /* enum mla_opt_form; auto: what takes less time here; expanded: where S > 1 */
};

/* As mla_opt_latent_attention_run. */
MLA_OPT_PUBLIC int mla_opt_multi_head_latent_attention_run(
    const struct mla_opt_multi_head_latent_attention* problem, mla_opt_parallel_for parallel_for,
    void* host, struct mla_opt_failure* failure);

/* The form that auto takes for this problem; reads past_len and nothing else that a pointer leads to. */
MLA_OPT_PUBLIC int32_t mla_opt_multi_head_latent_attention_form(
    const struct mla_opt_multi_head_latent_attention* problem);

#ifdef __cplusplus
}
#endif

#endif
