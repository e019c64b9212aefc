# The ground that every part of one network stands on: its lock, its run state, and what Python is owed once the lock is free.
# Plain structs and inline functions; no .pyx.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

# Work for Python, queued under the lock and run after it was dropped, with the GIL. Lives inside its owner, a Python object;
# the owner cancels it (context_cancel) before it goes.
cdef struct Deferred:
    Deferred *next
    bint queued
    void *owner                             # PyObject *, borrowed; kept alive while `run` is called
    void (*run)(void *owner) noexcept       # with the GIL

cdef struct NetContext:
    pthread_mutex_t lock
    bint running                            # the VM runs; receivers take nothing while it does not (S17)
    bint dirty                              # before the lock is dropped, call `leaving`
    void (*leaving)(NetContext *) noexcept nogil
    void *owner                             # the LoopState
    Deferred *first
    Deferred *last
    uint64_t allocations                    # queue nodes ever allocated: must stand still while nothing queues
    uint64_t queued                         # packets in queues now
    uint32_t storm                          # packets that came back into queues while they were drained, since the lock was taken

cdef inline void context_enter(NetContext *ctx) noexcept nogil:
    pthread_mutex_lock(&ctx.lock)
    ctx.storm = 0

cdef inline void context_leave(NetContext *ctx) noexcept nogil:
    if ctx.dirty:
        ctx.leaving(ctx)
    pthread_mutex_unlock(&ctx.lock)

cdef inline void context_enter_gil(NetContext *ctx) noexcept:
    # A holder of the lock may wait for the GIL (guest memory given as callables), so never wait for the lock with the GIL.
    if pthread_mutex_trylock(&ctx.lock) != 0:
        with nogil:
            pthread_mutex_lock(&ctx.lock)
    ctx.storm = 0

cdef inline void context_defer(NetContext *ctx, Deferred *node) noexcept nogil:
    if node.queued:
        return
    node.queued = True
    node.next = NULL
    if ctx.last == NULL:
        ctx.first = node
    else:
        ctx.last.next = node
    ctx.last = node

cdef inline void context_cancel(NetContext *ctx, Deferred *node) noexcept nogil:
    cdef Deferred *prev = NULL
    cdef Deferred *it = ctx.first
    if not node.queued:
        return
    while it != NULL and it != node:
        prev = it
        it = it.next
    if it == NULL:
        return
    if prev == NULL:
        ctx.first = node.next
    else:
        prev.next = node.next
    if ctx.last == node:
        ctx.last = prev
    node.queued = False
