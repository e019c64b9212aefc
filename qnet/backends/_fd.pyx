"""Clients over a connected socket that keeps message boundaries: one message is one frame (SOCK_SEQPACKET, SOCK_DGRAM)."""
cimport cython
from libc.errno cimport EAGAIN, ECONNREFUSED, ECONNRESET, EINTR, ENOBUFS, ENOMEM, ENOTCONN, EPIPE, ESHUTDOWN, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.unistd cimport close

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_EMPTY, DROP_IO, DROP_OVERSIZE, NET_BURST, NET_MAX_PACKET, NetClientOps, NetClientState, Packet, net_drop,
                             net_flush, net_send)
from qnet._iov cimport iovec
from qnet._loop cimport LOOP_IN, LOOP_OUT, Loop, Watch, watch_add, watch_events, watch_init, watch_remove

import fcntl
import os

from qnet.errors import check

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned msg_len
    int recvmmsg(int, mmsghdr *, unsigned, int, void *)
    int sendmmsg(int, mmsghdr *, unsigned, int)
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, unsigned long, int)
    int POLLHUP, POLLRDHUP

cdef enum:
    READ_BURST = 32                 # messages of one read; each needs room for the longest frame

cdef struct FdState:
    NetClientState *nc
    Watch watch
    int fd                          # -1: gone
    int error                       # errno that ended a direction, 0: none, or an orderly end
    bint eof                        # nothing more will come
    bint shut                       # nothing more can be sent
    bint want_out                   # a frame found no room: wait until there is some
    bint in_ready                   # the watch is brought up to date at the end of the handler
    bint sending
    bint again
    uint8_t *buf                    # READ_BURST * NET_MAX_PACKET, from the first read on; pages that are never touched cost nothing
    iovec[READ_BURST] iov
    Packet[READ_BURST] pkts         # what was read: the peer has not yet taken [done, have)
    uint32_t done
    uint32_t have


cdef void fd_close(FdState *s) noexcept nogil:
    watch_remove(&s.watch)
    if s.fd >= 0:
        close(s.fd)
    s.fd = -1
    free(s.buf)
    s.buf = NULL
    s.done = s.have = 0


cdef void fd_poll(FdState *s) noexcept nogil:
    """Wait for what there is a use for. For nothing: not even for a hang-up, of which epoll would tell without end."""
    cdef uint32_t events = 0
    cdef int rc = 0
    if s.in_ready or s.sending or s.fd < 0:
        return
    if not s.eof and s.done == s.have:
        events |= LOOP_IN
    if s.want_out and not s.shut:
        events |= LOOP_OUT
    if s.eof and s.shut and s.done == s.have:
        fd_close(s)
    elif events == 0:
        watch_remove(&s.watch)
    elif s.watch.fd < 0:
        rc = watch_add(&s.watch, s.fd, events)
    else:
        watch_events(&s.watch, events)
    if rc < 0:
        s.error = -rc
        s.eof = s.shut = True


cdef void fd_push(FdState *s) noexcept nogil:
    """Send what was read while the core takes it. Entered again by resume, only the outer call goes on."""
    if s.sending:
        s.again = True
        return
    s.sending = True
    while s.done < s.have:
        s.again = False
        s.done += net_send(s.nc, &s.pkts[s.done], s.have - s.done)
        if s.done < s.have and not s.again:
            break
    s.sending = False


cdef bint fd_ended(FdState *s) noexcept nogil:
    """An empty message reads like the end. Only the socket's state tells: whether nothing more will come."""
    cdef pollfd p
    p.fd = s.fd
    p.events = POLLRDHUP
    p.revents = 0
    s.nc.stats.syscalls += 1
    if poll(&p, 1, 0) <= 0 or not p.revents & (POLLRDHUP | POLLHUP):
        return False
    s.eof = True
    s.shut |= p.revents & POLLHUP != 0
    return True


cdef void fd_read(FdState *s) noexcept nogil:
    """Read one burst, into pkts."""
    cdef mmsghdr[READ_BURST] msgs
    cdef Packet *p = &s.pkts[0]
    cdef int n
    cdef int i
    s.done = s.have = 0
    if s.buf == NULL:
        s.buf = <uint8_t *>malloc(READ_BURST * NET_MAX_PACKET)
        if s.buf == NULL:
            s.error = ENOMEM
            s.eof = True
            return
    memset(msgs, 0, sizeof(msgs))
    for i in range(READ_BURST):
        s.iov[i].iov_base = s.buf + <size_t>i * NET_MAX_PACKET
        s.iov[i].iov_len = NET_MAX_PACKET
        msgs[i].msg_hdr.msg_iov = &s.iov[i]
        msgs[i].msg_hdr.msg_iovlen = 1
    s.nc.stats.syscalls += 1
    n = recvmmsg(s.fd, msgs, READ_BURST, MSG_DONTWAIT, NULL)
    if n < 0:
        if errno not in (EAGAIN, EINTR, ENOBUFS, ENOMEM):
            s.error = errno
            s.eof = True
        return
    if n and msgs[n - 1].msg_len == 0 and fd_ended(s):
        while n and msgs[n - 1].msg_len == 0:
            n -= 1
    for i in range(n):
        memset(p, 0, sizeof(Packet))
        s.iov[i].iov_len = msgs[i].msg_len
        p.iov = &s.iov[i]
        p.iovcnt = 1
        p.size = msgs[i].msg_len
        if p.size == 0:
            net_drop(s.nc, p, 1, True, DROP_EMPTY)
        elif msgs[i].msg_hdr.msg_flags & MSG_TRUNC:
            net_drop(s.nc, p, 1, True, DROP_OVERSIZE)
        else:
            s.have += 1
            p += 1


cdef void fd_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef FdState *s = <FdState *>opaque
    s.nc.stats.wakeups += 1
    s.in_ready = True
    if s.want_out and ready & ~<uint32_t>LOOP_IN:
        s.want_out = False
        net_flush(s.nc)
    if ready & ~<uint32_t>LOOP_OUT and not s.eof and s.done == s.have:
        fd_read(s)
        fd_push(s)
    s.in_ready = False
    fd_poll(s)


cdef uint32_t fd_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef FdState *s = <FdState *>nc.opaque
    cdef mmsghdr[NET_BURST] msgs
    cdef uint32_t done = 0
    cdef uint32_t m
    cdef uint32_t i
    cdef int k
    while done < n:
        if s.shut:
            net_drop(nc, pkts + done, n - done, False, DROP_IO)
            return n
        m = n - done if n - done < NET_BURST else NET_BURST
        memset(msgs, 0, m * sizeof(mmsghdr))
        for i in range(m):
            msgs[i].msg_hdr.msg_iov = <iovec *>pkts[done + i].iov
            msgs[i].msg_hdr.msg_iovlen = pkts[done + i].iovcnt
        nc.stats.syscalls += 1
        k = sendmmsg(s.fd, msgs, m, MSG_DONTWAIT | MSG_NOSIGNAL)
        if k > 0:
            done += <uint32_t>k             # fewer than m: the next call tells why
        elif errno == EAGAIN:
            s.want_out = True
            fd_poll(s)
            return done
        elif errno in (EPIPE, ECONNRESET, ECONNREFUSED, ENOTCONN, ESHUTDOWN):
            s.error = errno
            s.shut = True
            fd_poll(s)
        elif errno != EINTR:                # too long for the socket, or no memory: this one, not the others
            net_drop(nc, pkts + done, 1, False, DROP_IO)
            done += 1
    return done


cdef void fd_resume(NetClientState *nc) noexcept nogil:
    cdef FdState *s = <FdState *>nc.opaque
    fd_push(s)
    fd_poll(s)


cdef void fd_cleanup(NetClientState *nc) noexcept nogil:
    cdef FdState *s = <FdState *>nc.opaque
    s.eof = s.shut = True
    fd_close(s)


cdef NetClientOps fd_ops = NetClientOps(
    receive=fd_receive,
    can_receive=NULL,
    resume=fd_resume,
    link_status_changed=NULL,
    cleanup=fd_cleanup,
)


@cython.no_gc_clear
cdef class FdClient(NetClient):
    """Frames are the messages of the connected socket `fd`, of which the client keeps a duplicate: the caller closes its own.

    It never waits for the socket. A frame that finds no room waits in the queue; while its peer has no room it reads no more.
    An empty message is dropped ("empty"), one longer than 69632 bytes too ("oversize"). When the socket is closed at the other end, what
    it still holds is read, and frames sent to it are dropped ("io"). OSError: `fd` is not open.
    """
    cdef FdState s
    cdef Loop loop

    def __cinit__(self, *args, **kwargs):
        self.s.fd = -1
        self.s.watch.fd = -1

    def __init__(self, Loop loop not None, str name, str model, int fd):
        cdef int rc
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self._setup(&fd_ops, &self.s)
        self.nc.flow_control = True
        self.s.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.watch, &self.loop.loop, fd_ready, &self.s)
            rc = watch_add(&self.s.watch, self.s.fd, LOOP_IN)
            context_leave(self.nc.ctx)
        check(rc)

    def __dealloc__(self):
        self._fini()

    @property
    def connected(self) -> bool:
        """Whether frames can go both ways."""
        return not (self.s.eof or self.s.shut)

    @property
    def error(self) -> str | None:
        """What ended the connection; None while it stands, and after an orderly end."""
        return os.strerror(self.s.error) if self.s.error else None
