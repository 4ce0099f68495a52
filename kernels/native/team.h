/* Spreads units of work over threads.
 *
 * torch's own operators run on an OpenMP team whose threads spin for a while after each operator. A second pool beside
 * it would have to fight those spinning threads for the cores, exactly where attention sits between two matrix
 * products. So the caller hands over the GOMP_parallel of the libgomp that torch has already loaded, and the work runs
 * on torch's team; this file needs no OpenMP of its own, and links none. Where there is no such library (another
 * OpenMP, macOS) or where it must not be used (a forked child inherits libgomp's pool without its threads and would
 * wait for them for ever), plain threads are started for the call and joined before it returns.
 *
 * Units are taken from a counter, so any number of threads, one included, finishes all of them. What a unit computes
 * does not depend on the thread that takes it.
 */
#ifndef MEZZOTINT_TEAM_H
#define MEZZOTINT_TEAM_H

#include <pthread.h>
#include <stdlib.h>

#include <stdint.h>

#define MOST_THREADS 1024

typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);
typedef void (*unit_function)(const void *call, int64_t unit, void *scratch);

struct job {
    const void *call;
    unit_function run;
    int64_t units, threads;
    void *team;            /* GOMP_parallel, or NULL: threads are then started for this call */
    size_t scratch_bytes;  /* of each thread */
    int64_t next;          /* the two below start at 0 */
    int out_of_memory;
};

static void take_units(void *argument) {
    struct job *job = argument;
    void *scratch = NULL;
    for (;;) {
        int64_t unit = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (unit >= job->units) break;
        if (!scratch && posix_memalign(&scratch, 64, job->scratch_bytes)) {
            __atomic_store_n(&job->out_of_memory, 1, __ATOMIC_RELAXED);
            scratch = NULL;
            break;
        }
        job->run(job->call, unit, scratch);
    }
    free(scratch);
}

static void *take_units_in_thread(void *argument) {
    take_units(argument);
    return NULL;
}

/* Fewer threads than asked for, where the system refuses more, still do all of the work. */
static void run_in_own_threads(struct job *job, int64_t threads) {
    pthread_t started[MOST_THREADS];
    int64_t count = 0;
    while (count + 1 < threads && !pthread_create(&started[count], NULL, take_units_in_thread, job)) count++;
    take_units(job);
    while (count > 0) pthread_join(started[--count], NULL);
}

/* 0, or -1 where memory ran out. */
static int run_job(struct job *job) {
    int64_t threads = job->threads < job->units ? job->threads : job->units;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads <= 1) take_units(job);
    else if (job->team) ((parallel_function)job->team)(take_units, job, (unsigned)threads, 0);
    else run_in_own_threads(job, threads);
    return job->out_of_memory ? -1 : 0;
}

#endif
