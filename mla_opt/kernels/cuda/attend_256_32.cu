#define MLA_OPT_RANK 256
#define MLA_OPT_ROPE 32
#include "attend_kernel.inl"
