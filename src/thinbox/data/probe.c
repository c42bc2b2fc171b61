/* Measures the host for `thinbox cost --calibrate`: prints "name ticks" lines, ticks of the time-stamp counter.
 * Medians of several rounds; pinned to the CPU it starts on. Built with: cc -O2 -pthread probe.c */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define ROUNDS 15
static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *v) {
    qsort(v, ROUNDS, sizeof *v, by_size);
    return v[ROUNDS / 2];
}
static uint64_t now(void) {
    _mm_lfence();
    return __rdtsc();
}

static double ticks_per_ns(void) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    uint64_t t = now();
    do clock_gettime(CLOCK_MONOTONIC, &b);
    while ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec < 5e7);
    return (now() - t) / ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec);
}

static double system_call(void) {
    enum { N = 20000 };
    uint64_t t = now();
    for (int i = 0; i < N; i++) syscall(SYS_getppid);
    return (double)(now() - t) / N;
}

/* Reads of untouched pages: each maps the shared zero page, so no page is cleared. */
static double page_fault(void) {
    enum { N = 2000 };
    volatile char *p = mmap(0, N * 4096L, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) exit(1);
    madvise((void *)p, N * 4096L, MADV_NOHUGEPAGE);
    uint64_t t = now();
    for (long i = 0; i < N; i++) (void)p[i * 4096];
    double r = (double)(now() - t) / N;
    munmap((void *)p, N * 4096L);
    return r;
}

static int there[2], back[2];
enum { SWITCHES = 2000 };
static void *answer(void *unused) {
    char c;
    for (int i = 0; i < SWITCHES; i++)
        if (read(there[0], &c, 1) != 1 || write(back[1], &c, 1) != 1) exit(1);
    return unused;
}
/* One way of a ping-pong over pipes, between threads (same table) or processes (another table). */
static double context_switch(int processes) {
    if (pipe(there) || pipe(back)) exit(1);
    pthread_t thread;
    pid_t child = 0;
    if (processes) {
        if ((child = fork()) == 0) {
            answer(0);
            _exit(0);
        }
    } else if (pthread_create(&thread, 0, answer, 0))
        exit(1);
    char c = 0;
    uint64_t t = now();
    for (int i = 0; i < SWITCHES; i++)
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1) exit(1);
    double r = (double)(now() - t) / (2 * SWITCHES);
    if (processes) waitpid(child, 0, 0);
    else pthread_join(thread, 0);
    for (int i = 0; i < 2; i++) {
        close(there[i]);
        close(back[i]);
    }
    return r;
}

/* A chase through `pages` pages, one cache line each, in random order: what one dependent load costs. */
static double chase(long pages) {
    long bytes = pages * 4096;
    char *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long *order = malloc(pages * sizeof *order);
    if (p == MAP_FAILED || !order) exit(1);
    madvise(p, bytes, MADV_NOHUGEPAGE);
    for (long i = 0; i < pages; i++) order[i] = i;
    uint64_t seed = 88172645463325252ull;
    for (long i = pages - 1; i > 0; i--) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        long j = seed % (i + 1), k = order[i];
        order[i] = order[j], order[j] = k;
    }
    for (long i = 0; i < pages; i++) {
        long to = order[(i + 1) % pages];
        *(void **)(p + order[i] * 4096 + order[i] % 64 * 64) = p + to * 4096 + to % 64 * 64;
    }
    void **at = (void **)(p + order[0] * 4096 + order[0] % 64 * 64);
    for (long i = 0; i < pages; i++) at = *at;
    long loads = pages < 100000 ? 200000 : 2 * pages;
    uint64_t t = now();
    for (long i = 0; i < loads; i++) at = *at;
    double r = (double)(now() - t) / loads;
    __asm__ volatile("" ::"r"(at));
    munmap(p, bytes);
    free(order);
    return r;
}

int main(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    double v[ROUNDS];
#define REPORT(name, what)                          \
    do {                                            \
        for (int i = 0; i < ROUNDS; i++) v[i] = what; \
        printf("%s %.3f\n", name, median(v));       \
    } while (0)
    REPORT("ticks_per_ns", ticks_per_ns());
    REPORT("system_call", system_call());
    REPORT("page_fault", page_fault());
    REPORT("switch_thread", context_switch(0));
    REPORT("switch_process", context_switch(1));
    REPORT("load_first_level", chase(32));
    REPORT("load_second_level", chase(400));
    REPORT("load_walk", chase(16384));
    return 0;
}
