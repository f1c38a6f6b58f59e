/* Threads for hosts that bring none of their own, such as a Python extension.
 *
 * One pool for the process, made when it is first needed. Calls from several threads at once share
 * its workers; the calling thread always works too, so a call comes to an end even where there are
 * no workers, as in a child process after a fork.
 */
#ifndef MLA_OPT_THREADS_H
#define MLA_OPT_THREADS_H

#include "latent_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Starts body(state) on `threads` threads, the calling one among them, and returns when all are
 * done: GOMP_parallel of an OpenMP runtime. `flags` is 0. */
typedef void (*mla_opt_team)(void (*body)(void* state), void* state, unsigned threads,
                             unsigned flags);

struct mla_opt_threads {
  int32_t count;     /* how many threads may work, the calling one included; at least 1 */
  mla_opt_team team; /* threads of the host that are used instead of the pool's; or null */
};

/* A mla_opt_parallel_for whose host is a struct mla_opt_threads. Always returns null. */
MLA_OPT_PUBLIC void* mla_opt_run_on_threads(void* threads, void (*body)(void* state, size_t i),
                                            size_t count, void* state);

#ifdef __cplusplus
}
#endif

#endif
