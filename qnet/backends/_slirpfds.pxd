# libslirp's sockets in an epoll of their own, which the loop watches as one fd. libslirp names the sockets it waits for anew each
# time it is asked (a round); only what changed since the last round becomes a system call. Inline, nogil, no .pyx.
from libc.errno cimport EEXIST, ENOENT, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.unistd cimport close

from qnet.backends._slirplib cimport POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, POLL_PRI

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    int EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLERR, EPOLLHUP

cdef enum:
    EVENTS = 64

cdef struct Polled:                 # one fd of this round; its index here is libslirp's handle
    int fd
    int revents

cdef struct FdEntry:                # what the epoll knows of an fd number
    uint32_t events                 # EPOLL*, 0: not there
    uint32_t round                  # that asked for it last
    int idx

cdef struct SlirpFds:
    int epfd                        # -1: not open
    bint paused                     # sockets are left unread in this round
    uint32_t round
    Polled *polled
    uint32_t polled_len
    uint32_t polled_cap
    int *known                      # fds that the epoll holds
    uint32_t known_len
    uint32_t known_cap
    FdEntry *by_fd
    int by_fd_len
    uint64_t *syscalls              # the client's counter

cdef inline int fds_open(SlirpFds *f) noexcept nogil:
    """0 or -errno."""
    f.epfd = epoll_create1(EPOLL_CLOEXEC)
    return -errno if f.epfd < 0 else 0

cdef inline void fds_close(SlirpFds *f) noexcept nogil:
    if f.epfd >= 0:
        close(f.epfd)
        f.epfd = -1
    free(f.polled)
    free(f.known)
    free(f.by_fd)
    f.polled = NULL
    f.known = NULL
    f.by_fd = NULL
    f.polled_len = f.polled_cap = f.known_len = f.known_cap = 0
    f.by_fd_len = 0

cdef inline void fds_forget(SlirpFds *f, int fd) noexcept nogil:
    """The number gets another meaning now, whatever the epoll thought of it."""
    cdef epoll_event ev
    if fd < 0 or fd >= f.by_fd_len or not f.by_fd[fd].events:
        return
    memset(&ev, 0, sizeof(ev))
    epoll_ctl(f.epfd, EPOLL_CTL_DEL, fd, &ev)
    f.by_fd[fd].events = 0

cdef inline void fds_begin(SlirpFds *f, bint paused) noexcept nogil:
    """A new round: libslirp is asked next, with fds_add."""
    f.paused = paused
    f.round += 1
    f.polled_len = 0

cdef inline int fds_add(int fd, int events, void *opaque) noexcept nogil:
    """libslirp wants to know about fd. Returns its handle, -1 when there is no memory: then it hears nothing of it this time."""
    cdef SlirpFds *f = <SlirpFds *>opaque
    cdef epoll_event ev
    cdef void *grown
    cdef uint32_t cap
    cdef uint32_t want = 0
    cdef int len
    cdef FdEntry *e
    cdef Polled *p
    if f.paused:
        events &= ~(POLL_IN | POLL_PRI)
    if events & POLL_IN:
        want |= EPOLLIN
    if events & POLL_OUT:
        want |= EPOLLOUT
    if events & POLL_PRI:
        want |= EPOLLPRI
    if fd < 0 or want == 0:
        return -1
    if fd >= f.by_fd_len:
        len = (fd + 64) & ~63
        grown = realloc(f.by_fd, len * sizeof(FdEntry))
        if grown == NULL:
            return -1
        f.by_fd = <FdEntry *>grown
        memset(&f.by_fd[f.by_fd_len], 0, (len - f.by_fd_len) * sizeof(FdEntry))
        f.by_fd_len = len
    if f.polled_len == f.polled_cap:
        cap = 2 * f.polled_cap if f.polled_cap else 16
        grown = realloc(f.polled, cap * sizeof(Polled))
        if grown == NULL:
            return -1
        f.polled = <Polled *>grown
        f.polled_cap = cap
    e = &f.by_fd[fd]
    if e.events != want:
        memset(&ev, 0, sizeof(ev))
        ev.events = want
        ev.data.u64 = <uint64_t>fd
        f.syscalls[0] += 1
        # A socket that libslirp closed without a word left the epoll by itself, and its number may be another one's.
        if epoll_ctl(f.epfd, EPOLL_CTL_MOD if e.events else EPOLL_CTL_ADD, fd, &ev) < 0:
            if errno != ENOENT and errno != EEXIST:
                return -1
            if epoll_ctl(f.epfd, EPOLL_CTL_ADD if errno == ENOENT else EPOLL_CTL_MOD, fd, &ev) < 0:
                return -1
        e.events = want
    e.round = f.round
    e.idx = <int>f.polled_len
    p = &f.polled[f.polled_len]
    p.fd = fd
    p.revents = 0
    f.polled_len += 1
    return e.idx

cdef inline void fds_end(SlirpFds *f) noexcept nogil:
    """Take out of the epoll what libslirp did not ask for in this round; else its errors would wake us for nothing."""
    cdef uint32_t i
    cdef int fd
    cdef int *grown
    for i in range(f.known_len):
        fd = f.known[i]
        if f.by_fd[fd].events and f.by_fd[fd].round != f.round:
            f.syscalls[0] += 1
            fds_forget(f, fd)
    if f.known_cap < f.polled_len:
        grown = <int *>realloc(f.known, f.polled_cap * sizeof(int))
        if grown == NULL:                   # what is in the epoll now could be forgotten there: better not wait for it at all
            for i in range(f.polled_len):
                fds_forget(f, f.polled[i].fd)
            f.known_len = 0
            return
        f.known = grown
        f.known_cap = f.polled_cap
    for i in range(f.polled_len):
        f.known[i] = f.polled[i].fd
    f.known_len = f.polled_len

cdef inline int fds_collect(SlirpFds *f) noexcept nogil:
    """Note which sockets are ready, for fds_revents. Returns how many."""
    cdef epoll_event evs[EVENTS]
    cdef FdEntry *e
    cdef uint32_t r
    cdef int revents
    cdef int i
    cdef int n = epoll_wait(f.epfd, evs, EVENTS, 0)
    f.syscalls[0] += 1
    for i in range(n):
        e = &f.by_fd[evs[i].data.u64]
        if e.round != f.round:
            continue
        r = evs[i].events
        revents = 0
        if r & EPOLLIN:
            revents |= POLL_IN
        if r & EPOLLOUT:
            revents |= POLL_OUT
        if r & EPOLLPRI:
            revents |= POLL_PRI
        if r & EPOLLERR:
            revents |= POLL_ERR
        if r & EPOLLHUP:
            revents |= POLL_HUP
        f.polled[e.idx].revents = revents
    return n

cdef inline int fds_revents(int idx, void *opaque) noexcept nogil:
    """SLIRP_POLL_* of a handle."""
    cdef SlirpFds *f = <SlirpFds *>opaque
    return f.polled[idx].revents if 0 <= idx < <int>f.polled_len else 0
