/* SPDX-License-Identifier: MIT
 * Ordering for rings shared with a guest that runs on another CPU or with the kernel, and prefetch hints. */
#ifndef QN_BARRIER_H
#define QN_BARRIER_H
#include <stdint.h>

/* The byte becomes visible after everything written before it. */
static inline void qn_store_release8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* The indices of rings shared with the kernel: what the other side wrote before it moved one is seen after the load, what was
 * written before the store is seen by who sees the store. */
static inline uint32_t qn_load_acquire32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void qn_store_release32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* Descriptor words: little-endian in memory, read once. */
static inline uint64_t qn_load_le64(const void *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, 8);
    __asm__ volatile("" : "+r"(v)); /* the guest may change it meanwhile: the compiler must not fetch it again */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline void qn_store_le64(void *p, uint64_t v)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    __builtin_memcpy(p, &v, 8);
}

static inline void qn_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
static inline void qn_prefetchw(const void *p) { __builtin_prefetch(p, 1, 3); }
#endif
