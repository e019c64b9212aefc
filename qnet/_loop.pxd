# The context's event loop: file descriptors, timers, pollers and the clock. Everything with the lock held.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from qnet._context cimport NetContext
from qnet._client cimport Context

cdef enum:
    LOOP_IN = 1                     # EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    LOOP_OUT = 4
    LOOP_ERR = 8
    LOOP_HUP = 16
    LOOP_ONESHOT = 1 << 30          # EPOLLONESHOT: nothing more, until watch_events sets it again

ctypedef void (*ready_fn)(void *opaque, uint32_t ready) noexcept nogil
ctypedef void (*expire_fn)(void *opaque) noexcept nogil

cdef struct Watch:                  # one fd; the struct stays in place while it is watched
    LoopState *loop
    int fd                          # -1: not watched
    uint32_t events
    uint32_t generation
    ready_fn ready
    void *opaque

cdef struct Timer:                  # one-shot; zero it before timer_init
    LoopState *loop
    int64_t deadline                # ns of the loop's clock
    uint64_t order                  # equal deadlines expire in the order they were set
    int32_t slot                    # place in the heap, -1: not set
    expire_fn expire
    void *opaque

# A poller learns before the loop may sleep that something touched it (poller_touch), and can then bring its watches up to date.
cdef struct Poller:
    Poller *next
    LoopState *loop
    bint touched
    expire_fn prepare
    void *opaque

cdef struct LoopState:
    NetContext *ctx
    int epfd
    int timerfd
    int wakefd
    bint virtual_clock
    int64_t now                     # virtual time; unused with the monotonic clock
    int64_t armed                   # deadline the timerfd is set to, -1: none
    Timer **heap
    int32_t heap_len
    int32_t heap_cap
    uint64_t order
    Watch **by_fd
    int by_fd_len
    uint32_t generation
    Poller *pollers
    uint64_t wakeups

cdef int64_t loop_now(LoopState *loop) noexcept nogil

cdef void timer_init(Timer *t, LoopState *loop, expire_fn expire, void *opaque) noexcept nogil
cdef int timer_set(Timer *t, int64_t deadline) noexcept nogil           # 0 or -ENOMEM; replaces an earlier deadline
cdef void timer_cancel(Timer *t) noexcept nogil

cdef void watch_init(Watch *w, LoopState *loop, ready_fn ready, void *opaque) noexcept nogil
cdef int watch_add(Watch *w, int fd, uint32_t events) noexcept nogil    # 0 or -errno; level-triggered
cdef int watch_events(Watch *w, uint32_t events) noexcept nogil         # 0: keep the fd but wait for nothing but errors
cdef void watch_remove(Watch *w) noexcept nogil

cdef void poller_add(Poller *p, LoopState *loop, expire_fn prepare, void *opaque) noexcept nogil
cdef void poller_touch(Poller *p) noexcept nogil
cdef void poller_remove(Poller *p) noexcept nogil

cdef class VirtualClock:
    cdef public int64_t start

cdef class Loop(Context):
    cdef LoopState loop
    cdef readonly object clock
    cdef object thread
    cdef uint32_t run               # changes when a thread shall end
    cdef set handles                # TimerHandles and WatchHandles that are set, kept alive meanwhile
    cdef readonly list at_close     # called by close(), while the descriptors are still open
    cdef bint closed
    cdef int _fd(self) except -1
    cdef void _release(self) noexcept
