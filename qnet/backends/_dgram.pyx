"""Clients over message sockets: one message is one frame. UDP, AF_UNIX datagrams and SOCK_SEQPACKET; with a header, l2tpv3."""
cimport cython
from libc.errno cimport (EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOMEM, ENOTCONN, ENOTSOCK,
                         EOPNOTSUPP, EPIPE, ESHUTDOWN, errno)
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_IO, DROP_OVERSIZE, NET_BURST, NET_MAX_PACKET, NetClientOps, NetClientState,
                             Packet, net_drop, net_flush, net_send)
from qnet._iov cimport iovec
from qnet._loop cimport LOOP_ERR, LOOP_IN, LOOP_OUT, Loop, watch_add, watch_events, watch_init, watch_remove
from qnet._sock cimport (AF_UNIX, CMSG_DATA, CMSG_FIRSTHDR, IPPROTO_UDP, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_TRUNC, POLLHUP,
                         POLLOUT, POLLRDHUP, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, UDP_GRO, UDP_SEGMENT, cmsghdr, connect, mmsghdr,
                         poll, pollfd, recvmmsg, sendmmsg, sockaddr, socket)
from qnet.backends._dgram_pack cimport CONTROL, SEGMENTED_BYTES, TOO_LONG, Outgoing, next_burst, pack

import contextlib
import fcntl
import os
import socket as sockets

from qnet.errors import check

cdef enum:
    READS = 4                       # bursts of one wake-up: others want their turn


# ---------------------------------------------------------------------------------------------------------------- waiting

cdef void dgram_close(DgramState *s) noexcept nogil:
    watch_remove(&s.watch)
    watch_remove(&s.room_watch)
    if s.fd >= 0:
        close(s.fd)
    if s.room_fd >= 0:
        close(s.room_fd)
    s.fd = s.room_fd = -1
    free(s.buf)
    s.buf = NULL
    s.done = s.have = 0
    s.msg = s.msgs = 0


cdef inline bint unsent(const DgramState *s) noexcept nogil:
    """Whether the peer has not yet taken all that was read."""
    return s.done < s.have or s.msg < s.msgs


cdef void dgram_poll(DgramState *s) noexcept nogil:
    """Wait for what there is a use for. For nothing: not even for a hang-up, of which epoll would tell without end."""
    cdef uint32_t events = 0
    cdef int rc = 0
    if s.in_ready or s.sending or s.fd < 0:
        return
    if not s.eof and not unsent(s):
        events |= LOOP_IN
    if s.want_out and s.room_watch.fd < 0 and not s.shut:
        events |= LOOP_OUT
    if s.eof and s.shut and not unsent(s):
        dgram_close(s)
    elif events == 0:
        watch_remove(&s.watch)
    elif s.watch.fd < 0:
        rc = watch_add(&s.watch, s.fd, events)
    else:
        watch_events(&s.watch, events)
    if rc < 0:
        s.error = -rc
        s.eof = s.shut = True


cdef int status(DgramState *s, int events) noexcept nogil:
    """poll(2) of the socket, without waiting."""
    cdef pollfd p
    p.fd = s.fd
    p.events = <short>events
    p.revents = 0
    s.nc.stats.syscalls += 1
    return p.revents if poll(&p, 1, 0) > 0 else 0


cdef bint wait_for_room(DgramState *s) noexcept nogil:
    """No room: see to it that room_ready or dgram_ready is called when there is some. False: that cannot be known.

    A socket that is connected to nobody is writable while the receiver's queue is full, and waiting for it would be a busy loop. The
    kernel tells the state of that queue to a socket that is connected to the receiver; ours must not be, as nobody else could send to
    it then. So another one asks. It is connected anew each time: the receiver may have been bound anew.
    """
    s.want_out = True
    if s.by_path and status(s, POLLOUT) & POLLOUT:
        if s.room_fd < 0:
            s.nc.stats.syscalls += 1
            s.room_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
        s.nc.stats.syscalls += 1
        if (s.room_fd < 0 or connect(s.room_fd, <sockaddr *>s.remote, s.remote_len) < 0 or
                watch_add(&s.room_watch, s.room_fd, LOOP_OUT) < 0):
            s.want_out = False
            return False
    dgram_poll(s)
    return True


cdef void room_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef DgramState *s = <DgramState *>opaque
    s.nc.stats.wakeups += 1
    watch_remove(&s.room_watch)
    s.want_out = False
    net_flush(s.nc)


cdef void dgram_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef DgramState *s = <DgramState *>opaque
    cdef bint more
    cdef int i
    s.nc.stats.wakeups += 1
    s.in_ready = True
    if ready & LOOP_ERR:
        forget_errors(s)
    if s.want_out and s.room_watch.fd < 0 and ready & ~<uint32_t>LOOP_IN:
        s.want_out = False
        net_flush(s.nc)
    if ready & ~<uint32_t>LOOP_OUT:
        for i in range(READS):
            if s.eof or unsent(s):
                break
            more = dgram_read(s, i == 0)
            dgram_push(s)
            if not more:
                break
    s.in_ready = False
    dgram_poll(s)


# ---------------------------------------------------------------------------------------------------------------- reading

cdef void forget_errors(DgramState *s) noexcept nogil:
    """Reports of the network, if whoever opened the socket asked for them: unread, they would wake us without end."""
    cdef mmsghdr[READ_BURST] msgs
    memset(msgs, 0, sizeof(msgs))
    s.nc.stats.syscalls += 1
    recvmmsg(s.fd, msgs, READ_BURST, MSG_ERRQUEUE | MSG_DONTWAIT, NULL)


cdef bint ended(DgramState *s) noexcept nogil:
    """An empty message reads like the end. Only the socket's state tells: whether nothing more will come."""
    cdef int state = status(s, POLLRDHUP)
    if not state & (POLLRDHUP | POLLHUP):
        return False
    s.eof = True
    s.shut |= state & POLLHUP != 0
    return True


cdef bint dgram_read(DgramState *s, bint first) noexcept nogil:
    """Read one burst of messages; whether there may be more. first: there should be one."""
    cdef mmsghdr[READ_BURST] msgs
    cdef iovec[READ_BURST] iov
    cdef uint64_t[READ_BURST][CONTROL] control
    cdef cmsghdr *c
    cdef int n
    cdef int i
    s.msg = s.msgs = s.at = 0
    if s.buf == NULL:
        s.buf = <uint8_t *>malloc(READ_BURST * NET_MAX_PACKET)
        if s.buf == NULL:
            s.error = ENOMEM
            s.eof = True
            return False
    memset(msgs, 0, sizeof(msgs))
    for i in range(READ_BURST):
        iov[i].iov_base = s.buf + <size_t>i * NET_MAX_PACKET
        iov[i].iov_len = NET_MAX_PACKET
        msgs[i].msg_hdr.msg_iov = &iov[i]
        msgs[i].msg_hdr.msg_iovlen = 1
        if s.coalesced:
            msgs[i].msg_hdr.msg_control = control[i]
            msgs[i].msg_hdr.msg_controllen = sizeof(control[i])
    s.nc.stats.syscalls += 1
    n = recvmmsg(s.fd, msgs, READ_BURST, MSG_DONTWAIT, NULL)
    if n < 0:
        if errno == EAGAIN:
            if first:
                ended(s)                # a UDP socket that was shut down is readable, and has nothing
        elif errno in (EINTR, ENOBUFS, ENOMEM):
            pass
        elif s.ends or errno in (EBADF, EINVAL, ENOTCONN, ENOTSOCK, EOPNOTSUPP):
            s.error = errno
            s.eof = True
        else:
            s.nc.stats.drops[<int>DROP_IO] += 1         # a frame that was counted as received did not arrive
        return False
    if n and msgs[n - 1].msg_len == 0 and ended(s):
        while n and msgs[n - 1].msg_len == 0:
            n -= 1
    for i in range(n):
        s.size[i] = TOO_LONG if msgs[i].msg_hdr.msg_flags & MSG_TRUNC else msgs[i].msg_len
        s.segment[i] = 0
        if s.coalesced and s.size[i] != TOO_LONG:
            c = CMSG_FIRSTHDR(&msgs[i].msg_hdr)
            if c != NULL and c.cmsg_level == IPPROTO_UDP and c.cmsg_type == UDP_GRO:
                s.segment[i] = (<uint32_t *>CMSG_DATA(c))[0]
    s.msgs = <uint32_t>n
    return n == READ_BURST


cdef void dgram_push(DgramState *s) noexcept nogil:
    """Send what was read while the core takes it. Entered again by resume, only the outer call goes on."""
    if s.sending:
        s.again = True
        return
    s.sending = True
    while unsent(s):
        if s.done == s.have:
            next_burst(s)
            continue
        s.again = False
        s.done += net_send(s.nc, &s.pkts[s.done], s.have - s.done)
        if s.done < s.have and not s.again:
            break
    s.sending = False


# ---------------------------------------------------------------------------------------------------------------- sending

cdef uint32_t dgram_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef DgramState *s = <DgramState *>nc.opaque
    cdef Outgoing o
    cdef uint32_t done = 0
    cdef uint32_t lost
    cdef int k
    cdef int i
    while done < n:
        if s.shut:
            net_drop(nc, pkts + done, n - done, False, DROP_IO)
            return n
        k = <int>pack(s, pkts + done, n - done if n - done < NET_BURST else NET_BURST, &o)
        nc.stats.syscalls += 1
        k = sendmmsg(s.fd, o.msgs, <unsigned>k, MSG_DONTWAIT | MSG_NOSIGNAL)
        if k > 0:                           # fewer than all: the next call tells why
            s.starved = False
            for i in range(k):
                done += o.frames[i]
                s.counter += o.frames[i]
            continue
        lost = 1
        if errno == EINTR:
            continue
        elif errno == EAGAIN or (errno == ENOBUFS and not s.starved):
            s.starved = errno == ENOBUFS
            if wait_for_room(s):
                return done
        elif o.frames[0] > 1 and errno in (EINVAL, EIO, EMSGSIZE, EOPNOTSUPP):
            # too long for the path if it must not be cut by IP, or a device that cannot sum
            s.segment_max = s.header + pkts[done].size - 1 if errno in (EINVAL, EMSGSIZE) else 0
            continue
        elif errno == EMSGSIZE:
            net_drop(nc, pkts + done, 1, False, DROP_OVERSIZE)
            done += 1
            continue
        elif s.ends and errno in (EPIPE, ECONNRESET, ECONNREFUSED, ENOTCONN, ESHUTDOWN):
            s.error = errno
            s.shut = True
            dgram_poll(s)
            continue
        elif s.by_path and errno != ENOMEM:
            lost = n - done                 # nobody has bound that path: one call finds out for all
        net_drop(nc, pkts + done, lost, False, DROP_IO)
        done += lost
    return done


cdef void dgram_resume(NetClientState *nc) noexcept nogil:
    cdef DgramState *s = <DgramState *>nc.opaque
    dgram_push(s)
    dgram_poll(s)


cdef void dgram_cleanup(NetClientState *nc) noexcept nogil:
    cdef DgramState *s = <DgramState *>nc.opaque
    s.eof = s.shut = True
    dgram_close(s)


cdef NetClientOps dgram_ops = NetClientOps(
    receive=dgram_receive,
    can_receive=NULL,
    resume=dgram_resume,
    link_status_changed=NULL,
    cleanup=dgram_cleanup,
)


@cython.no_gc_clear
cdef class DgramClient(NetClient):
    """Frames are the messages of socket `fd`, of which the client keeps a duplicate: the caller closes its own.

    remote: struct sockaddr that every frame is sent to; without it the socket is connected. It never waits for the socket. A frame
    that finds no room waits in the queue; while its peer has no room it reads no more. Empty messages are dropped ("empty"), those of
    more than 69632 bytes ("oversize") and frames too long for the socket ("oversize").

    ends: the other end is one and can close, which SOCK_SEQPACKET always can: what the socket still holds is read then, and frames sent
    to it are dropped ("io"). Otherwise nothing that the network says is the end: a frame that is refused is dropped ("io").

    coalesce: let the kernel hand out several UDP messages as one. It is the socket's property, so nobody else may read from it.
    OSError: `fd` is not an open socket.
    """

    def __cinit__(self, *args, **kwargs):
        self.s.fd = self.s.room_fd = -1
        self.s.watch.fd = self.s.room_watch.fd = -1
        self.s.counter_at = -1

    def __init__(self, Loop loop not None, str name, str model, int fd, *, bytes remote=b"", bint ends=False, bint coalesce=False):
        cdef int rc
        super().__init__(loop, name, model)
        if len(remote) > <Py_ssize_t>sizeof(self.s.remote):
            raise ValueError("remote is longer than a struct sockaddr")
        self.loop = loop
        self.s.nc = &self.nc
        self._setup(&dgram_ops, &self.s)
        self.nc.flow_control = True
        self.s.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        memcpy(self.s.remote, <const uint8_t *>remote, len(remote))
        self.s.remote_len = len(remote)
        self._look(coalesce)
        self.s.ends |= ends
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.watch, &self.loop.loop, dgram_ready, &self.s)
            watch_init(&self.s.room_watch, &self.loop.loop, room_ready, &self.s)
            rc = watch_add(&self.s.watch, self.s.fd, LOOP_IN)
            context_leave(self.nc.ctx)
        check(rc)

    def _look(self, bint coalesce):
        """What kind of socket it is, and what its kernel can do."""
        s = sockets.socket(fileno=self.s.fd)
        try:
            self.s.ends = s.type == sockets.SOCK_SEQPACKET
            self.s.by_path = s.family == sockets.AF_UNIX and self.s.remote_len > 0
            if s.type == sockets.SOCK_DGRAM and s.family in (sockets.AF_INET, sockets.AF_INET6):
                with contextlib.suppress(OSError):              # Linux 4.18
                    s.getsockopt(sockets.IPPROTO_UDP, UDP_SEGMENT)
                    self.s.segment_max = SEGMENTED_BYTES
                with contextlib.suppress(OSError):              # Linux 5.0
                    s.setsockopt(sockets.IPPROTO_UDP, UDP_GRO, coalesce)
                    self.s.coalesced = coalesce
        finally:
            s.detach()

    def __dealloc__(self):
        self._fini()
        free(self.s.headers)

    @property
    def connected(self) -> bool:
        """Whether frames can go both ways."""
        return not (self.s.eof or self.s.shut)

    @property
    def error(self) -> str | None:
        """What ended the connection; None while it stands, and after an orderly end."""
        return os.strerror(self.s.error) if self.s.error else None
