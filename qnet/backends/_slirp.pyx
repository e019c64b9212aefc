# distutils: language = c
"""The user netdev's packet path: libslirp's C interface (libslirp.h, SlirpConfig version 4) on the context's loop.

user.py opens the library and builds the configuration; here its functions (_slirplib.pxd) are called by address and its callbacks
answered, all with the context's lock held. What libslirp sends is collected while it runs (_slirpout.pxd) and goes to the peer in
bursts when it has returned, so it is never entered again from within itself. Its sockets wait in an epoll (_slirpfds.pxd).
"""
cimport cython
from libc.errno cimport EBADF, EEXIST, EIO, ENOENT, errno
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen

from qnet._client cimport NetClient
from qnet._context cimport Deferred, context_cancel, context_defer, context_enter, context_leave
from qnet._eth cimport ETH_HLEN, ETH_P_IP, be16
from qnet._fastpath cimport (DROP_MALFORMED, DROP_NO_BUFFER, DROP_QUEUE_FULL, NetClientOps, NetClientState, Packet, net_drop, net_flush,
                             net_send)
from qnet._iov cimport iovec
from qnet._loop cimport (LOOP_IN, Loop, LoopState, Poller, Timer, Watch, loop_now, poller_add, poller_remove, poller_touch,
                         timer_cancel, timer_init, timer_set, watch_add, watch_init, watch_remove)
from qnet.backends._slirpfds cimport (SlirpFds, fds_add, fds_begin, fds_close, fds_collect, fds_end, fds_forget, fds_open,
                                      fds_revents)
from qnet.backends._slirpguard cimport GUARD_DROP, GUARD_PASS, MTU, Guard, Verdict, guard_take, qn_reass_free
from qnet.backends._slirplib cimport (Api, SlirpCb, SlirpLib, SlirpTime, lib_enter, lib_leave, lib_next_ms, lib_tell_time,
                                      pthread_rwlock_init, pthread_rwlock_unlock, pthread_rwlock_wrlock)
from qnet.backends._slirpout cimport OUT_KEEP, SlirpOut, out_add, out_burst, out_clear

import logging

from qnet.errors import Error, check

log = logging.getLogger("qnet.user")

cdef enum:
    ROUNDS = 8                      # of calls with ready sockets a wake-up
    PAUSE_QUEUE = 128               # packets waiting in the peer's queue at which sockets are left unread
    TICK_MS = 100                   # a timeout of libslirp's from here on is its half-second tick: something may expire
    NOTHING_MS = 1000               # ... and from here on says that nothing does

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

cdef struct SlirpState:
    SlirpLib lib
    SlirpFds fds
    SlirpOut out                    # frames collected while libslirp runs
    NetClientState *nc
    LoopState *loop
    Poller poller
    Watch watch                     # on fds.epfd
    Timer timer                     # libslirp's timeout
    SlirpTimer *timers
    bint sending
    int64_t active_ms               # when a frame or a socket kept libslirp busy last
    uint64_t guest_errors
    char last_error[160]
    Deferred node
    Guard guard

cdef SlirpTime time                 # the process's
time.of = NULL
pthread_rwlock_init(&time.lock, NULL)


# ------------------------------------------------------------------------------------------------------- libslirp's callbacks

cdef ssize_t cb_send_packet(const void *buf, size_t len, void *opaque) noexcept nogil:
    """Collect a frame. Its length is returned in any case: libslirp does not keep what was refused, TCP sends it again."""
    cdef SlirpState *s = <SlirpState *>opaque
    cdef iovec iov
    cdef Packet p
    if not out_add(&s.out, buf, len):
        iov.iov_base = <void *>buf
        iov.iov_len = len
        memset(&p, 0, sizeof(p))
        p.iov = &iov
        p.iovcnt = 1
        p.size = <uint32_t>len
        net_drop(s.nc, &p, 1, True, DROP_QUEUE_FULL)
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


cdef void cb_poll_fd_changes(int fd, void *opaque) noexcept nogil:
    fds_forget(&(<SlirpState *>opaque).fds, fd)


cdef void cb_notify(void *opaque) noexcept nogil:
    poller_touch(&(<SlirpState *>opaque).poller)


cdef void cb_init_completed(void *slirp, void *opaque) noexcept nogil:
    (<SlirpState *>opaque).lib.slirp = slirp


cdef SlirpCb CALLBACKS = SlirpCb(
    send_packet=cb_send_packet,
    guest_error=cb_guest_error,
    clock_get_ns=cb_clock_get_ns,
    timer_new=NULL,                     # not asked for when there is timer_new_opaque
    timer_free=cb_timer_free,
    timer_mod=cb_timer_mod,
    register_poll_fd=cb_poll_fd_changes,
    unregister_poll_fd=cb_poll_fd_changes,
    notify=cb_notify,
    init_completed=cb_init_completed,
    timer_new_opaque=cb_timer_new_opaque,
)


# ------------------------------------------------------------------------------------------------------------ to the guest

cdef void send_out(SlirpState *s) noexcept nogil:
    """Send what libslirp wanted to send, in bursts. It is not entered meanwhile: what the peer sends back waits in our queue."""
    cdef size_t at = 0
    cdef uint32_t n
    if s.out.len == 0:
        return
    s.sending = True
    n = out_burst(&s.out, &at)
    while n:
        net_send(s.nc, s.out.pkts, n)
        n = out_burst(&s.out, &at)
    out_clear(&s.out, OUT_KEEP)
    s.sending = False
    if s.nc.receive_disabled or s.nc.queue.head != NULL or (s.nc.peer != NULL and s.nc.peer.blocked):
        net_flush(s.nc)


# ----------------------------------------------------------------------------------------------------------------- sockets

cdef uint32_t ask(SlirpState *s) noexcept nogil:
    """Ask libslirp what it waits for now, and have the inner epoll wait for just that. Returns its timeout, ms."""
    cdef NetClientState *peer = s.nc.peer
    cdef uint32_t timeout = UINT32_MAX
    # Leave sockets unread while the guest does not keep up, so that the host's senders slow down. resume() ends it.
    fds_begin(&s.fds, peer != NULL and peer.queue.count >= PAUSE_QUEUE)
    if s.fds.paused:
        s.nc.blocked = True
    lib_enter(&s.lib, False)
    s.lib.api.pollfds_fill(s.lib.slirp, &timeout, fds_add, &s.fds)
    lib_leave(&s.lib)
    fds_end(&s.fds)
    return timeout


cdef void slirp_prepare(void *opaque) noexcept nogil:
    """Something happened, and the loop may sleep now."""
    cdef SlirpState *s = <SlirpState *>opaque
    cdef int64_t ms = ask(s)
    cdef int64_t deadline
    if s.out.len:
        deadline = loop_now(s.loop)         # this is no place to send from
    else:
        if ms >= NOTHING_MS:
            ms = INT64_MAX
        elif ms >= TICK_MS:
            if loop_now(s.loop) // 1000000 - s.active_ms >= ms:
                ms = lib_next_ms(&s.lib, ms)
        if ms == INT64_MAX:
            timer_cancel(&s.timer)
            return
        deadline = loop_now(s.loop) + ms * 1000000
    if s.timer.slot < 0 or deadline < s.timer.deadline:
        timer_set(&s.timer, deadline)


cdef void slirp_service(SlirpState *s) noexcept nogil:
    """Let libslirp handle its ready sockets and its timeouts. It takes one datagram of a socket at a time, so a few times over."""
    cdef int rounds
    cdef int n
    s.nc.stats.wakeups += 1
    for rounds in range(ROUNDS):
        if s.poller.touched or rounds:      # what it wanted before a call is not what it wants after, and not what to tell it
            s.poller.touched = False
            ask(s)
        n = fds_collect(&s.fds)
        if n <= 0 and rounds:
            break
        lib_enter(&s.lib, False)
        s.lib.ms = loop_now(s.loop) // 1000000
        if n > 0:
            s.active_ms = s.lib.ms
        s.lib.api.pollfds_poll(s.lib.slirp, 0, fds_revents, &s.fds)
        lib_leave(&s.lib)
        if n <= 0 or s.out.len >= OUT_KEEP // 4:
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
    lib_enter(&s.lib, True)
    s.lib.api.handle_timer(s.lib.slirp, t.timer_id, t.cb_opaque)
    lib_leave(&s.lib)
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
    lib_enter(&s.lib, True)
    for i in range(n):
        verdict = guard_take(g, &pkts[i], s.lib.ms)
        nc.stats.drops[<int>DROP_NO_BUFFER] += g.lost
        if verdict == GUARD_PASS:
            other |= be16(g.data + 12) != ETH_P_IP
            s.lib.api.input(s.lib.slirp, g.data, <int>g.size)
        elif verdict == GUARD_DROP:
            net_drop(nc, &pkts[i], 1, False, DROP_MALFORMED)
    if other:
        lib_tell_time(&s.lib)       # an ARP or neighbour answer frees packets that wait for it, when libslirp looks after them
    lib_leave(&s.lib)
    s.active_ms = s.lib.ms
    send_out(s)
    poller_touch(&s.poller)
    return n


cdef bint slirp_can_receive(NetClientState *nc) noexcept nogil:
    return not (<SlirpState *>nc.opaque).sending


cdef void slirp_resume(NetClientState *nc) noexcept nogil:
    cdef SlirpState *s = <SlirpState *>nc.opaque
    if s.fds.paused:
        poller_touch(&s.poller)


cdef void slirp_client_cleanup(NetClientState *nc) noexcept nogil:
    """Close libslirp's sockets and timers. What it would still send is dropped."""
    cdef SlirpState *s = <SlirpState *>nc.opaque
    cdef SlirpTimer *t
    poller_remove(&s.poller)
    timer_cancel(&s.timer)
    if s.lib.slirp != NULL:
        pthread_rwlock_wrlock(&time.lock)
        s.lib.api.cleanup(s.lib.slirp)
        pthread_rwlock_unlock(&time.lock)
        s.lib.slirp = NULL
    while s.timers != NULL:
        t = s.timers
        s.timers = t.next
        timer_cancel(&t.timer)
        free(t)
    watch_remove(&s.watch)
    fds_close(&s.fds)
    context_cancel(nc.ctx, &s.node)
    qn_reass_free(s.guard.reass)
    s.guard.reass = NULL
    out_clear(&s.out, 0)


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
        self.s.fds.epfd = -1
        self.s.lib.ms = -1
        self.s.nc = &self.nc
        self.s.loop = self.s.lib.loop = &loop.loop
        self.s.lib.time = &time
        self.s.fds.syscalls = &self.nc.stats.syscalls
        self.s.node.owner = <void *>self
        self.s.node.run = run_guest_error
        watch_init(&self.s.watch, &loop.loop, slirp_ready, &self.s)
        timer_init(&self.s.timer, &loop.loop, slirp_expire, &self.s)

    def __init__(self, Loop loop not None, str name, object library, dict addresses, size_t config):
        cdef size_t *api = <size_t *>&self.s.lib.api
        cdef size_t i
        cdef int rc
        super().__init__(loop, name, "user")
        if self.s.fds.epfd >= 0 or self.closed:
            raise RuntimeError("a client is opened once")
        self.library = library
        for i, function in enumerate(FUNCTIONS):
            api[i] = addresses[function]
        self._setup(&slirp_ops, &self.s)
        self.nc.max_frame = MTU + ETH_HLEN
        check(fds_open(&self.s.fds), "cannot create libslirp's epoll")
        with nogil:
            context_enter(self.nc.ctx)
            rc = watch_add(&self.s.watch, self.s.fds.epfd, LOOP_IN)
            if rc == 0:
                pthread_rwlock_wrlock(&time.lock)
                self.s.lib.slirp = self.s.lib.api.create(<const void *>config, &CALLBACKS, &self.s)
                pthread_rwlock_unlock(&time.lock)
                if self.s.lib.slirp == NULL:
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
        self.s.lib.api.glib_free(text)
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
            if s.lib.slirp != NULL:
                lib_enter(&s.lib, True)
                if what == ADD_HOSTFWD:
                    rc = s.lib.api.add_hostxfwd(s.lib.slirp, a, alen, b, blen, number)
                    rc = 0 if rc == 0 else -errno if errno > 0 else -EIO
                elif what == REMOVE_HOSTFWD:
                    rc = 0 if s.lib.api.remove_hostxfwd(s.lib.slirp, a, alen, number) == 0 else -ENOENT
                elif what == ADD_EXEC:
                    rc = 0 if s.lib.api.add_exec(s.lib.slirp, a, &addr, number) == 0 else -EEXIST
                elif what == ADD_UNIX:
                    rc = 0 if s.lib.api.add_unix(s.lib.slirp, a, &addr, number) == 0 else -EEXIST
                else:
                    text[0] = s.lib.api.connection_info(s.lib.slirp)
                    rc = 0
                lib_leave(&s.lib)
                s.active_ms = s.lib.ms
                poller_touch(&s.poller)
            context_leave(self.nc.ctx)
        self.context.run_deferred()
        return rc
