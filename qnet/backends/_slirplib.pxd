# libslirp as C sees it: libslirp.h in SlirpConfig version 4, the time that all of a process share, and the table of connections.
# Inline, nogil, no .pyx.
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport atoi
from libc.string cimport strchr, strncmp

from qnet._loop cimport LoopState, loop_now

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_rwlock_init(pthread_rwlock_t *, const void *)
    int pthread_rwlock_rdlock(pthread_rwlock_t *)
    int pthread_rwlock_wrlock(pthread_rwlock_t *)
    int pthread_rwlock_unlock(pthread_rwlock_t *)

cdef enum:                          # SLIRP_POLL_*
    POLL_IN = 1
    POLL_OUT = 2
    POLL_PRI = 4
    POLL_ERR = 8
    POLL_HUP = 16

ctypedef int (*add_poll_fn)(int fd, int events, void *opaque) noexcept nogil
ctypedef int (*get_revents_fn)(int idx, void *opaque) noexcept nogil

cdef struct SlirpCb:                # libslirp.h, in its order
    ssize_t (*send_packet)(const void *buf, size_t len, void *opaque) noexcept nogil
    void (*guest_error)(const char *msg, void *opaque) noexcept nogil
    int64_t (*clock_get_ns)(void *opaque) noexcept nogil
    void *(*timer_new)(void *cb, void *cb_opaque, void *opaque) noexcept nogil
    void (*timer_free)(void *timer, void *opaque) noexcept nogil
    void (*timer_mod)(void *timer, int64_t expire_ms, void *opaque) noexcept nogil
    void (*register_poll_fd)(int fd, void *opaque) noexcept nogil
    void (*unregister_poll_fd)(int fd, void *opaque) noexcept nogil
    void (*notify)(void *opaque) noexcept nogil
    void (*init_completed)(void *slirp, void *opaque) noexcept nogil
    void *(*timer_new_opaque)(int timer_id, void *cb_opaque, void *opaque) noexcept nogil

cdef struct Api:                    # addresses of the library's functions, in the order of _slirp.FUNCTIONS
    void *(*create)(const void *config, const SlirpCb *callbacks, void *opaque) noexcept nogil
    void (*cleanup)(void *slirp) noexcept nogil
    void (*pollfds_fill)(void *slirp, uint32_t *timeout, add_poll_fn add_poll, void *opaque) noexcept nogil
    void (*pollfds_poll)(void *slirp, int select_error, get_revents_fn get_revents, void *opaque) noexcept nogil
    void (*input)(void *slirp, const uint8_t *pkt, int len) noexcept nogil
    void (*handle_timer)(void *slirp, int timer_id, void *cb_opaque) noexcept nogil
    int (*add_hostxfwd)(void *slirp, const void *host, uint32_t host_len, const void *guest, uint32_t guest_len,
                        int flags) noexcept nogil
    int (*remove_hostxfwd)(void *slirp, const void *host, uint32_t host_len, int flags) noexcept nogil
    int (*add_exec)(void *slirp, const char *command, void *guest_addr, int guest_port) noexcept nogil
    int (*add_unix)(void *slirp, const char *path, void *guest_addr, int guest_port) noexcept nogil
    char *(*connection_info)(void *slirp) noexcept nogil
    void (*glib_free)(void *p) noexcept nogil

# libslirp keeps the time in one variable of the process. Networks on the host's clock agree about it and share the lock; one with a
# virtual clock takes it alone. Whoever finds another's time there tells libslirp its own first. The lock is the last one taken:
# nothing is called with it but libslirp, whose callbacks do not block.
cdef struct SlirpTime:
    pthread_rwlock_t lock
    LoopState *of                   # the loop whose virtual time libslirp was told last, NULL: the host's

cdef struct SlirpLib:               # one instance
    Api api
    void *slirp                     # NULL: not there yet, or gone
    LoopState *loop
    SlirpTime *time
    int64_t ms                      # time it was told last, -1: never

cdef inline int no_revents(int idx, void *opaque) noexcept nogil:
    return 0

cdef inline void lib_tell_time(SlirpLib *l) noexcept nogil:
    """libslirp reads the clock in pollfds_poll only; with select_error it does nothing else but run timers and send what waits."""
    l.ms = loop_now(l.loop) // 1000000
    l.api.pollfds_poll(l.slirp, 1, no_revents, NULL)

cdef inline void lib_enter(SlirpLib *l, bint fresh) noexcept nogil:
    """Before libslirp is called. fresh: with the time of now, else any recent one of this network will do."""
    cdef LoopState *mine = l.loop if l.loop.virtual_clock else NULL
    if mine != NULL:
        pthread_rwlock_wrlock(&l.time.lock)
    else:
        pthread_rwlock_rdlock(&l.time.lock)
    if l.slirp != NULL and (l.time.of != mine or l.ms < 0 or (fresh and loop_now(l.loop) // 1000000 != l.ms)):
        lib_tell_time(l)
        l.time.of = mine

cdef inline void lib_leave(SlirpLib *l) noexcept nogil:
    pthread_rwlock_unlock(&l.time.lock)

cdef inline int64_t lib_next_ms(SlirpLib *l, int64_t tick) noexcept nogil:
    """When can something happen by itself, if neither guest nor sockets do anything? libslirp ticks twice a second while any socket
    exists, a listening one too. Its table tells more: forwards wait for ever, and UDP and ICMP say when they expire. INT64_MAX: never."""
    cdef int64_t first = INT64_MAX
    cdef int64_t left
    cdef char *text
    cdef char *line
    cdef char *state
    cdef char *end
    lib_enter(l, False)
    text = l.api.connection_info(l.slirp)
    lib_leave(l)
    line = text
    while line != NULL:
        line = strchr(line, b"\n")
        if line == NULL or line[1] == 0:
            break
        line += 1
        state = strchr(line, b"[")
        end = strchr(line, b"\n")
        if state == NULL or (end != NULL and state > end):
            first = tick
        elif strncmp(state, "[HOST_FORWARD]", 14) != 0:
            left = tick
            if strncmp(state - 3, "UDP", 3) == 0 or strncmp(state - 4, "ICMP", 4) == 0:
                left = 1000 * (<int64_t>atoi(state + 1) + 1)
            if left < first:
                first = left
    l.api.glib_free(text)
    return first
