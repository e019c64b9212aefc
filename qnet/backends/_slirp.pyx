# distutils: language = c
"""The user netdev's packet path: libslirp's C interface (libslirp.h, SlirpConfig version 4) on the context's loop.

user.py opens the library and builds the configuration; here its functions are called by address and its callbacks answered, all
with the context's lock held. What libslirp sends is collected while it runs and goes to the peer in bursts when it has returned,
so it is never entered again from within itself.
"""
cimport cython
from libc.errno cimport EBADF, EEXIST, EIO, ENOENT, errno
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport atoi, calloc, free, realloc
from libc.string cimport memcpy, memset, strchr, strlen, strncmp
from posix.unistd cimport close

from qnet._context cimport Deferred, context_cancel, context_defer, context_enter, context_leave
from qnet._eth cimport ETH_HLEN, ETH_P_IP, be16
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_MALFORMED, DROP_NO_BUFFER, DROP_QUEUE_FULL, NET_BURST, NET_QUEUE_BYTES, NetClientOps, NetClientState,
                             Packet, net_drop, net_flush, net_send)
from qnet._iov cimport iovec
from qnet._loop cimport (LOOP_IN, Loop, LoopState, Poller, Timer, Watch, loop_now, poller_add, poller_remove, poller_touch,
                         timer_cancel, timer_init, timer_set, watch_add, watch_init, watch_remove)
from qnet.backends._slirpguard cimport GUARD_DROP, GUARD_PASS, MTU, Guard, Verdict, guard_take, qn_reass_free

import logging

from qnet.errors import Error, check

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

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_rwlock_init(pthread_rwlock_t *, const void *)
    int pthread_rwlock_rdlock(pthread_rwlock_t *)
    int pthread_rwlock_wrlock(pthread_rwlock_t *)
    int pthread_rwlock_unlock(pthread_rwlock_t *)

log = logging.getLogger("qnet.user")

cdef enum:
    EVENTS = 64
    ROUNDS = 8                      # of calls with ready sockets a wake-up
    OUT_KEEP = 262144               # bytes of outgoing frames that stay allocated
    PAUSE_QUEUE = 128               # packets waiting in the peer's queue at which sockets are left unread
    TICK_MS = 100                   # a timeout of libslirp's from here on is its half-second tick: something may expire
    NOTHING_MS = 1000               # ... and from here on says that nothing does

cdef enum:                          # libslirp.h: SLIRP_POLL_*
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

cdef struct Api:                    # addresses of the library's functions, in the order of FUNCTIONS
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

cdef enum Control:                  # what Python asks of libslirp
    ADD_HOSTFWD
    REMOVE_HOSTFWD
    ADD_EXEC
    ADD_UNIX
    CONNECTION_INFO

FUNCTIONS = ("slirp_new", "slirp_cleanup", "slirp_pollfds_fill", "slirp_pollfds_poll", "slirp_input", "slirp_handle_timer",
             "slirp_add_hostxfwd", "slirp_remove_hostxfwd", "slirp_add_exec", "slirp_add_unix", "slirp_connection_info", "g_free")
assert len(FUNCTIONS) * sizeof(void *) == sizeof(Api)

cdef struct SlirpTimer:             # one that libslirp made
    SlirpTimer *next
    SlirpState *slirp
    Timer timer
    int timer_id
    void *cb_opaque

cdef struct Polled:                 # one fd of the last fill; its index there is libslirp's handle
    int fd
    int revents

cdef struct FdEntry:                # what the inner epoll knows of an fd number
    uint32_t events                 # EPOLL*, 0: not there
    uint32_t round                  # of the fill that asked for it last
    int idx

cdef struct Outgoing:               # a frame from libslirp; its bytes follow, the next one starts at a multiple of 8
    uint32_t size
    uint32_t pad

cdef struct SlirpState:
    Api api
    void *slirp
    NetClientState *nc
    LoopState *loop
    int64_t ms                      # time libslirp was told last, -1: never
    Poller poller
    Watch watch
    Timer timer                     # libslirp's timeout
    SlirpTimer *timers
    int epfd                        # holds libslirp's sockets; one watch of the loop is on it
    Polled *polled
    uint32_t polled_len
    uint32_t polled_cap
    int *known                      # fds that the inner epoll holds
    uint32_t known_len
    uint32_t known_cap
    FdEntry *by_fd
    int by_fd_len
    uint32_t round
    bint paused
    bint sending
    uint8_t *out                    # frames collected while libslirp runs
    size_t out_len
    size_t out_cap
    int64_t active_ms               # when a frame or a socket kept libslirp busy last
    uint64_t guest_errors
    char last_error[160]
    Deferred node
    Guard guard

# libslirp keeps the time in one variable of the process. Networks on the host's clock agree about it and share the lock; one with a
# virtual clock takes it alone. Whoever finds another's time there tells libslirp its own first. The lock is the last one taken:
# nothing is called with it but libslirp, whose callbacks below do not block.
cdef pthread_rwlock_t time_lock
cdef LoopState *time_of = NULL      # the loop whose virtual time libslirp was told last, NULL: the host's
pthread_rwlock_init(&time_lock, NULL)


cdef int no_revents(int idx, void *opaque) noexcept nogil:
    return 0


cdef void tell_time(SlirpState *s) noexcept nogil:
    """libslirp reads the clock in pollfds_poll only; with select_error it does nothing else but run timers and send what waits."""
    s.ms = loop_now(s.loop) // 1000000
    s.api.pollfds_poll(s.slirp, 1, no_revents, NULL)


cdef void slirp_enter(SlirpState *s, bint fresh) noexcept nogil:
    """Before libslirp is called. fresh: with the time of now, else any recent one of this network will do."""
    global time_of
    cdef LoopState *mine = s.loop if s.loop.virtual_clock else NULL
    if mine != NULL:
        pthread_rwlock_wrlock(&time_lock)
    else:
        pthread_rwlock_rdlock(&time_lock)
    if s.slirp != NULL and (time_of != mine or s.ms < 0 or (fresh and loop_now(s.loop) // 1000000 != s.ms)):
        tell_time(s)
        time_of = mine


cdef inline void slirp_leave(SlirpState *s) noexcept nogil:
    pthread_rwlock_unlock(&time_lock)


# ------------------------------------------------------------------------------------------------------- libslirp's callbacks

cdef ssize_t cb_send_packet(const void *buf, size_t len, void *opaque) noexcept nogil:
    """Collect a frame. Its length is returned in any case: libslirp does not keep what was refused, TCP sends it again."""
    cdef SlirpState *s = <SlirpState *>opaque
    cdef size_t need = (sizeof(Outgoing) + len + 7) & ~<size_t>7
    cdef size_t cap = s.out_cap
    cdef uint8_t *grown
    cdef iovec iov
    cdef Packet p
    if s.out_len + need > s.out_cap:
        cap = 2 * cap if cap else 16384
        while cap < s.out_len + need:
            cap *= 2
        grown = <uint8_t *>realloc(s.out, cap) if s.out_len + need <= NET_QUEUE_BYTES else NULL
        if grown == NULL:
            iov.iov_base = <void *>buf
            iov.iov_len = len
            memset(&p, 0, sizeof(p))
            p.iov = &iov
            p.iovcnt = 1
            p.size = <uint32_t>len
            net_drop(s.nc, &p, 1, True, DROP_QUEUE_FULL)
            return <ssize_t>len
        s.out = grown
        s.out_cap = cap
    (<Outgoing *>(s.out + s.out_len)).size = <uint32_t>len
    memcpy(s.out + s.out_len + sizeof(Outgoing), buf, len)
    s.out_len += need
    return <ssize_t>len


cdef void cb_guest_error(const char *msg, void *opaque) noexcept nogil:
    cdef SlirpState *s = <SlirpState *>opaque
    cdef size_t n = strlen(msg)
    s.guest_errors += 1
    if n > sizeof(s.last_error) - 1:
        n = sizeof(s.last_error) - 1
    memcpy(s.last_error, msg, n)
    s.last_error[n] = 0
    context_defer(s.nc.ctx, &s.node)


cdef int64_t cb_clock_get_ns(void *opaque) noexcept nogil:
    return loop_now((<SlirpState *>opaque).loop)


cdef void *cb_timer_new_opaque(int timer_id, void *cb_opaque, void *opaque) noexcept nogil:
    cdef SlirpState *s = <SlirpState *>opaque
    cdef SlirpTimer *t = <SlirpTimer *>calloc(1, sizeof(SlirpTimer))
    if t == NULL:
        return NULL
    t.slirp = s
    t.timer_id = timer_id
    t.cb_opaque = cb_opaque
    timer_init(&t.timer, s.loop, slirp_timer_expire, t)
    t.next = s.timers
    s.timers = t
    return t


cdef void cb_timer_free(void *timer, void *opaque) noexcept nogil:
    cdef SlirpState *s = <SlirpState *>opaque
    cdef SlirpTimer **at = &s.timers
    cdef SlirpTimer *t = <SlirpTimer *>timer
    while at[0] != NULL and at[0] != t:
        at = &at[0].next
    if at[0] == NULL:
        return
    at[0] = t.next
    timer_cancel(&t.timer)
    free(t)


cdef void cb_timer_mod(void *timer, int64_t expire_ms, void *opaque) noexcept nogil:
    if timer != NULL:
        timer_set(&(<SlirpTimer *>timer).timer, expire_ms * 1000000)


cdef void forget_fd(SlirpState *s, int fd) noexcept nogil:
    """The number gets another meaning now, whatever the inner epoll thought of it."""
    cdef epoll_event ev
    if fd < 0 or fd >= s.by_fd_len or not s.by_fd[fd].events:
        return
    memset(&ev, 0, sizeof(ev))
    epoll_ctl(s.epfd, EPOLL_CTL_DEL, fd, &ev)
    s.by_fd[fd].events = 0


cdef void cb_register_poll_fd(int fd, void *opaque) noexcept nogil:
    forget_fd(<SlirpState *>opaque, fd)


cdef void cb_unregister_poll_fd(int fd, void *opaque) noexcept nogil:
    forget_fd(<SlirpState *>opaque, fd)


cdef void cb_notify(void *opaque) noexcept nogil:
    poller_touch(&(<SlirpState *>opaque).poller)


cdef void cb_init_completed(void *slirp, void *opaque) noexcept nogil:
    (<SlirpState *>opaque).slirp = slirp


cdef SlirpCb CALLBACKS = SlirpCb(
    send_packet=cb_send_packet,
    guest_error=cb_guest_error,
    clock_get_ns=cb_clock_get_ns,
    timer_new=NULL,                     # not asked for when there is timer_new_opaque
    timer_free=cb_timer_free,
    timer_mod=cb_timer_mod,
    register_poll_fd=cb_register_poll_fd,
    unregister_poll_fd=cb_unregister_poll_fd,
    notify=cb_notify,
    init_completed=cb_init_completed,
    timer_new_opaque=cb_timer_new_opaque,
)


# ------------------------------------------------------------------------------------------------------------ to the guest

cdef void send_out(SlirpState *s) noexcept nogil:
    """Send what libslirp wanted to send, in bursts. It is not entered meanwhile: what the peer sends back waits in our queue."""
    cdef Packet pkts[NET_BURST]
    cdef iovec iov[NET_BURST]
    cdef size_t at = 0
    cdef uint32_t n
    cdef uint32_t size
    if s.out_len == 0:
        return
    s.sending = True
    memset(pkts, 0, sizeof(pkts))
    while at < s.out_len:
        n = 0
        while n < NET_BURST and at < s.out_len:
            size = (<Outgoing *>(s.out + at)).size
            iov[n].iov_base = s.out + at + sizeof(Outgoing)
            iov[n].iov_len = size
            pkts[n].iov = &iov[n]
            pkts[n].iovcnt = 1
            pkts[n].size = size
            at += (sizeof(Outgoing) + size + 7) & ~<size_t>7
            n += 1
        net_send(s.nc, pkts, n)
    s.out_len = 0
    if s.out_cap > OUT_KEEP:
        free(s.out)
        s.out = NULL
        s.out_cap = 0
    s.sending = False
    if s.nc.receive_disabled or s.nc.queue.head != NULL or (s.nc.peer != NULL and s.nc.peer.blocked):
        net_flush(s.nc)


# ----------------------------------------------------------------------------------------------------------------- sockets

cdef int add_poll(int fd, int events, void *opaque) noexcept nogil:
    """libslirp wants to know about fd. Returns its handle, -1 when there is no memory: then it hears nothing of it this time."""
    cdef SlirpState *s = <SlirpState *>opaque
    cdef epoll_event ev
    cdef void *grown
    cdef uint32_t cap
    cdef uint32_t want = 0
    cdef int len
    cdef FdEntry *e
    cdef Polled *p
    if s.paused:
        events &= ~(POLL_IN | POLL_PRI)
    if events & POLL_IN:
        want |= EPOLLIN
    if events & POLL_OUT:
        want |= EPOLLOUT
    if events & POLL_PRI:
        want |= EPOLLPRI
    if fd < 0 or want == 0:
        return -1
    if fd >= s.by_fd_len:
        len = (fd + 64) & ~63
        grown = realloc(s.by_fd, len * sizeof(FdEntry))
        if grown == NULL:
            return -1
        s.by_fd = <FdEntry *>grown
        memset(&s.by_fd[s.by_fd_len], 0, (len - s.by_fd_len) * sizeof(FdEntry))
        s.by_fd_len = len
    if s.polled_len == s.polled_cap:
        cap = 2 * s.polled_cap if s.polled_cap else 16
        grown = realloc(s.polled, cap * sizeof(Polled))
        if grown == NULL:
            return -1
        s.polled = <Polled *>grown
        s.polled_cap = cap
    e = &s.by_fd[fd]
    if e.events != want:
        memset(&ev, 0, sizeof(ev))
        ev.events = want
        ev.data.u64 = <uint64_t>fd
        s.nc.stats.syscalls += 1
        # A socket that libslirp closed without a word left the epoll by itself, and its number may be another one's.
        if epoll_ctl(s.epfd, EPOLL_CTL_MOD if e.events else EPOLL_CTL_ADD, fd, &ev) < 0:
            if errno != ENOENT and errno != EEXIST:
                return -1
            if epoll_ctl(s.epfd, EPOLL_CTL_ADD if errno == ENOENT else EPOLL_CTL_MOD, fd, &ev) < 0:
                return -1
        e.events = want
    e.round = s.round
    e.idx = <int>s.polled_len
    p = &s.polled[s.polled_len]
    p.fd = fd
    p.revents = 0
    s.polled_len += 1
    return e.idx


cdef int get_revents(int idx, void *opaque) noexcept nogil:
    cdef SlirpState *s = <SlirpState *>opaque
    return s.polled[idx].revents if 0 <= idx < <int>s.polled_len else 0


cdef void drop_unpolled(SlirpState *s) noexcept nogil:
    """Take out of the inner epoll what libslirp did not ask for this time; else its errors would wake us for nothing."""
    cdef uint32_t i
    cdef int fd
    cdef int *grown
    for i in range(s.known_len):
        fd = s.known[i]
        if s.by_fd[fd].events and s.by_fd[fd].round != s.round:
            s.nc.stats.syscalls += 1
            forget_fd(s, fd)
    if s.known_cap < s.polled_len:
        grown = <int *>realloc(s.known, s.polled_cap * sizeof(int))
        if grown == NULL:                   # what is in the epoll now could be forgotten there: better not wait for it at all
            for i in range(s.polled_len):
                forget_fd(s, s.polled[i].fd)
            s.known_len = 0
            return
        s.known = grown
        s.known_cap = s.polled_cap
    for i in range(s.polled_len):
        s.known[i] = s.polled[i].fd
    s.known_len = s.polled_len


cdef int64_t next_event_ms(SlirpState *s, int64_t tick) noexcept nogil:
    """When can something happen by itself, if neither guest nor sockets do anything? libslirp ticks twice a second while any socket
    exists, a listening one too. Its table tells more: forwards wait for ever, and UDP and ICMP say when they expire."""
    cdef int64_t now = loop_now(s.loop) // 1000000
    cdef int64_t first = INT64_MAX
    cdef int64_t left
    cdef char *text
    cdef char *line
    cdef char *state
    cdef char *end
    if now - s.active_ms < tick:
        return tick
    slirp_enter(s, False)
    text = s.api.connection_info(s.slirp)
    slirp_leave(s)
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
    s.api.glib_free(text)
    return first


cdef uint32_t ask(SlirpState *s) noexcept nogil:
    """Ask libslirp what it waits for now, and have the inner epoll wait for just that. Returns its timeout, ms."""
    cdef NetClientState *peer = s.nc.peer
    cdef uint32_t timeout = UINT32_MAX
    # Leave sockets unread while the guest does not keep up, so that the host's senders slow down. resume() ends it.
    s.paused = peer != NULL and peer.queue.count >= PAUSE_QUEUE
    if s.paused:
        s.nc.blocked = True
    s.round += 1
    s.polled_len = 0
    slirp_enter(s, False)
    s.api.pollfds_fill(s.slirp, &timeout, add_poll, s)
    slirp_leave(s)
    drop_unpolled(s)
    return timeout


cdef void slirp_prepare(void *opaque) noexcept nogil:
    """Something happened, and the loop may sleep now."""
    cdef SlirpState *s = <SlirpState *>opaque
    cdef int64_t ms = ask(s)
    cdef int64_t deadline
    if s.out_len:
        deadline = loop_now(s.loop)         # this is no place to send from
    else:
        if ms >= NOTHING_MS:
            ms = INT64_MAX
        elif ms >= TICK_MS:
            ms = next_event_ms(s, ms)
        if ms == INT64_MAX:
            timer_cancel(&s.timer)
            return
        deadline = loop_now(s.loop) + ms * 1000000
    if s.timer.slot < 0 or deadline < s.timer.deadline:
        timer_set(&s.timer, deadline)


cdef int collect(SlirpState *s) noexcept nogil:
    """Note which sockets are ready, for get_revents. Returns how many."""
    cdef epoll_event evs[EVENTS]
    cdef FdEntry *e
    cdef uint32_t r
    cdef int revents
    cdef int i
    cdef int n = epoll_wait(s.epfd, evs, EVENTS, 0)
    s.nc.stats.syscalls += 1
    for i in range(n):
        e = &s.by_fd[evs[i].data.u64]
        if e.round != s.round:
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
        s.polled[e.idx].revents = revents
    return n


cdef void slirp_service(SlirpState *s) noexcept nogil:
    """Let libslirp handle its ready sockets and its timeouts. It takes one datagram of a socket at a time, so a few times over."""
    cdef int rounds
    cdef int n
    s.nc.stats.wakeups += 1
    for rounds in range(ROUNDS):
        if s.poller.touched or rounds:      # what it wanted before a call is not what it wants after, and not what to tell it
            s.poller.touched = False
            ask(s)
        n = collect(s)
        if n <= 0 and rounds:
            break
        slirp_enter(s, False)
        s.ms = loop_now(s.loop) // 1000000
        if n > 0:
            s.active_ms = s.ms
        s.api.pollfds_poll(s.slirp, 0, get_revents, s)
        slirp_leave(s)
        if n <= 0 or s.out_len >= OUT_KEEP // 4:
            break
    send_out(s)
    poller_touch(&s.poller)


cdef void slirp_ready(void *opaque, uint32_t ready) noexcept nogil:
    slirp_service(<SlirpState *>opaque)


cdef void slirp_expire(void *opaque) noexcept nogil:
    slirp_service(<SlirpState *>opaque)


cdef void slirp_timer_expire(void *opaque) noexcept nogil:
    """One of libslirp's own timers."""
    cdef SlirpTimer *t = <SlirpTimer *>opaque
    cdef SlirpState *s = t.slirp
    slirp_enter(s, True)
    s.api.handle_timer(s.slirp, t.timer_id, t.cb_opaque)
    slirp_leave(s)
    send_out(s)
    poller_touch(&s.poller)


# ------------------------------------------------------------------------------------------------------------------ client

cdef uint32_t slirp_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    """Frames from the guest; the core saw to it that they are plain and not longer than MTU and header."""
    cdef SlirpState *s = <SlirpState *>nc.opaque
    cdef Guard *g = &s.guard
    cdef Verdict verdict
    cdef bint other = False
    cdef uint32_t i
    if s.sending:
        return 0
    slirp_enter(s, True)
    for i in range(n):
        verdict = guard_take(g, &pkts[i], s.ms)
        nc.stats.drops[<int>DROP_NO_BUFFER] += g.lost
        if verdict == GUARD_PASS:
            other |= be16(g.data + 12) != ETH_P_IP
            s.api.input(s.slirp, g.data, <int>g.size)
        elif verdict == GUARD_DROP:
            net_drop(nc, &pkts[i], 1, False, DROP_MALFORMED)
    if other:
        tell_time(s)                # an ARP or neighbour answer frees packets that wait for it, when libslirp looks after them
    slirp_leave(s)
    s.active_ms = s.ms
    send_out(s)
    poller_touch(&s.poller)
    return n


cdef bint slirp_can_receive(NetClientState *nc) noexcept nogil:
    return not (<SlirpState *>nc.opaque).sending


cdef void slirp_resume(NetClientState *nc) noexcept nogil:
    cdef SlirpState *s = <SlirpState *>nc.opaque
    if s.paused:
        poller_touch(&s.poller)


cdef void slirp_client_cleanup(NetClientState *nc) noexcept nogil:
    """Close libslirp's sockets and timers. What it would still send is dropped."""
    cdef SlirpState *s = <SlirpState *>nc.opaque
    cdef SlirpTimer *t
    poller_remove(&s.poller)
    timer_cancel(&s.timer)
    if s.slirp != NULL:
        pthread_rwlock_wrlock(&time_lock)
        s.api.cleanup(s.slirp)
        pthread_rwlock_unlock(&time_lock)
        s.slirp = NULL
    while s.timers != NULL:
        t = s.timers
        s.timers = t.next
        timer_cancel(&t.timer)
        free(t)
    watch_remove(&s.watch)
    if s.epfd >= 0:
        close(s.epfd)
        s.epfd = -1
    context_cancel(nc.ctx, &s.node)
    qn_reass_free(s.guard.reass)
    s.guard.reass = NULL
    free(s.out)
    free(s.polled)
    free(s.known)
    free(s.by_fd)
    s.out = NULL
    s.polled = NULL
    s.known = NULL
    s.by_fd = NULL
    s.out_len = s.out_cap = 0
    s.polled_len = s.polled_cap = s.known_len = s.known_cap = 0
    s.by_fd_len = 0


cdef NetClientOps slirp_ops = NetClientOps(
    receive=slirp_receive,
    can_receive=slirp_can_receive,
    resume=slirp_resume,
    link_status_changed=NULL,           # libslirp has no notion of a link; the core drops for us
    cleanup=slirp_client_cleanup,
)


cdef void run_guest_error(void *owner) noexcept:
    (<SlirpClient>owner)._log_guest_error()


@cython.no_gc_clear
cdef class SlirpClient(NetClient):
    """One libslirp instance as a net client.

    addresses: the library's FUNCTIONS by name. config: address of a SlirpConfig of version 4, needed during the call only.
    """
    cdef SlirpState s
    cdef object library                 # keeps the library loaded

    def __cinit__(self, Loop loop not None, *args, **kwargs):
        memset(&self.s, 0, sizeof(self.s))
        self.s.epfd = -1
        self.s.ms = -1
        self.s.nc = &self.nc
        self.s.loop = &loop.loop
        self.s.node.owner = <void *>self
        self.s.node.run = run_guest_error
        watch_init(&self.s.watch, &loop.loop, slirp_ready, &self.s)
        timer_init(&self.s.timer, &loop.loop, slirp_expire, &self.s)

    def __init__(self, Loop loop not None, str name, object library, dict addresses, size_t config):
        cdef size_t *api = <size_t *>&self.s.api
        cdef size_t i
        cdef int rc
        super().__init__(loop, name, "user")
        if self.s.epfd >= 0 or self.closed:
            raise RuntimeError("a client is opened once")
        self.library = library
        for i, function in enumerate(FUNCTIONS):
            api[i] = addresses[function]
        self._setup(&slirp_ops, &self.s)
        self.nc.max_frame = MTU + ETH_HLEN
        self.s.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.s.epfd < 0:
            check(-errno, "cannot create libslirp's epoll")
        with nogil:
            context_enter(self.nc.ctx)
            rc = watch_add(&self.s.watch, self.s.epfd, LOOP_IN)
            if rc == 0:
                pthread_rwlock_wrlock(&time_lock)
                self.s.slirp = self.s.api.create(<const void *>config, &CALLBACKS, &self.s)
                pthread_rwlock_unlock(&time_lock)
                if self.s.slirp == NULL:
                    rc = -EIO
                else:
                    poller_add(&self.s.poller, &(<Loop>loop).loop, slirp_prepare, &self.s)
            context_leave(self.nc.ctx)
        if rc < 0:
            self.close()
            if rc == -EIO:
                raise Error(f"Device '{name}' could not be initialized", "libslirp refused the configuration")
            check(rc, "cannot watch libslirp's sockets")

    def __dealloc__(self):
        self._fini()

    def _log_guest_error(self):
        cdef bytes text
        cdef char copy[160]
        with nogil:
            context_enter(self.nc.ctx)
            memcpy(copy, self.s.last_error, sizeof(copy))
            context_leave(self.nc.ctx)
        text = copy
        log.warning("%s: guest error: %s", self.name, text.decode(errors="replace").strip())

    @property
    def guest_errors(self) -> int:
        """How often libslirp complained about what the guest sent."""
        return self.s.guest_errors

    def add_hostfwd(self, bytes host, bytes guest, int flags) -> int:
        """Forward from a host socket address to one in the guest, both as struct sockaddr; flags: SLIRP_HOSTFWD_*. 0 or -errno."""
        return self._call(ADD_HOSTFWD, host, guest, flags, 0)

    def remove_hostfwd(self, bytes host, int flags) -> int:
        """Undo add_hostfwd; connections stay. 0, or -ENOENT when there is none."""
        return self._call(REMOVE_HOSTFWD, host, b"", flags, 0)

    def add_guestfwd(self, uint32_t addr, int port, bytes target, bint command) -> int:
        """Connect what the guest opens to addr (network byte order, 0: the fourth address of the network) and port to a command's
        stdin and stdout, or to the unix socket of that path. 0, or -EEXIST: taken, or not an address for that."""
        return self._call(ADD_EXEC if command else ADD_UNIX, target, b"", port, addr)

    def connection_info(self) -> str:
        """libslirp's table of forwards and connections, as `info usernet` prints it. ValueError when the client is closed."""
        cdef char *text = NULL
        cdef bytes copy
        self._call(CONNECTION_INFO, b"", b"", 0, 0, &text)
        if text == NULL:
            raise ValueError("client is closed")
        copy = text
        self.s.api.glib_free(text)
        return copy.decode(errors="replace")

    cdef int _call(self, Control what, bytes first, bytes second, int number, uint32_t addr, char **text=NULL):
        """Call libslirp from Python's side; 0 or -errno, -EBADF when the client is closed."""
        cdef const char *a = first
        cdef const char *b = second
        cdef uint32_t alen = <uint32_t>len(first)
        cdef uint32_t blen = <uint32_t>len(second)
        cdef SlirpState *s = &self.s
        cdef int rc = -EBADF
        with nogil:
            context_enter(self.nc.ctx)
            if s.slirp != NULL:
                slirp_enter(s, True)
                if what == ADD_HOSTFWD:
                    rc = s.api.add_hostxfwd(s.slirp, a, alen, b, blen, number)
                    rc = 0 if rc == 0 else -errno if errno > 0 else -EIO
                elif what == REMOVE_HOSTFWD:
                    rc = 0 if s.api.remove_hostxfwd(s.slirp, a, alen, number) == 0 else -ENOENT
                elif what == ADD_EXEC:
                    rc = 0 if s.api.add_exec(s.slirp, a, &addr, number) == 0 else -EEXIST
                elif what == ADD_UNIX:
                    rc = 0 if s.api.add_unix(s.slirp, a, &addr, number) == 0 else -EEXIST
                else:
                    text[0] = s.api.connection_info(s.slirp)
                    rc = 0
                slirp_leave(s)
                s.active_ms = s.ms
                poller_touch(&s.poller)
            context_leave(self.nc.ctx)
        self.context.run_deferred()
        return rc
