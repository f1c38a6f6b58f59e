#define MLA_OPT_RANK 512
#define MLA_OPT_ROPE 0
#include "attend_emulated.inl"
