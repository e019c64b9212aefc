"""Clients over a byte stream: each frame with its length in 4 bytes, most significant first, in front (X1)."""
cimport cython
from libc.errno cimport EAGAIN, EISCONN, EMSGSIZE, ENOMEM, ENOTCONN
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport close

from qnet._context cimport Deferred, context_cancel, context_defer, context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_EMPTY, DROP_IO, DROP_MALFORMED, DROP_PURGED, NET_BURST, NET_MAX_PACKET, NetClientOps, NetClientState,
                             Packet, net_drop, net_flush, net_send, net_set_link)
from qnet._iov cimport iov_gather, iovec
from qnet._loop cimport LOOP_IN, LOOP_ONESHOT, LOOP_OUT, Loop, Watch, watch_add, watch_events, watch_init, watch_remove

import fcntl
import logging
import os

from qnet.errors import check

cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int, int)
    int SHUT_RDWR

cdef extern from "fdio.h" nogil:
    int QN_FD_SOCKET
    int qn_fd_kind(int fd)
    ssize_t qn_read(int fd, int kind, void *buf, size_t len)
    ssize_t qn_writev(int fd, int kind, const iovec *iov, unsigned iovcnt)

log = logging.getLogger("qnet.stream")

cdef enum:
    HEADER = 4
    READ_SIZE = 256 << 10           # at least two of the longest frames: room for a whole one behind any part of one
    IOVS = 1024                                     # of one writev

cdef struct StreamState:
    NetClientState *nc
    # reading
    Watch in_watch
    int rfd                         # -1: none, or ended
    int rkind
    uint8_t *buf                    # READ_SIZE bytes, from the first read on
    uint32_t begin                  # buf[begin:end] is read and not yet sent on
    uint32_t end
    iovec[NET_BURST] iov
    Packet[NET_BURST] pkts          # frames in buf: the peer has not yet taken [done, have)
    uint32_t done
    uint32_t have
    bint sending
    bint again
    # writing
    Watch out_watch
    int wfd                         # -1: none, or ended
    int wkind
    uint8_t *rest                   # end of a frame of which the beginning is written
    uint32_t rest_at
    uint32_t rest_len
    int error                       # errno that ended a direction, 0: none, or an orderly end
    # a connection that comes and goes
    bint comes                      # attach() and detach(): without a connection the link is down
    bint up
    bint unwanted                   # set_link() wants the link down whatever the connection is
    Deferred lost


# ---------------------------------------------------------------------------------------------------------------- reading

cdef void end_reading(StreamState *s, int error) noexcept nogil:
    """What was read before is still sent on."""
    watch_remove(&s.in_watch)
    if s.rfd >= 0:
        close(s.rfd)
    s.rfd = -1
    if error:
        s.error = error


cdef void end_writing(StreamState *s, int error) noexcept nogil:
    watch_remove(&s.out_watch)
    if s.wfd >= 0:
        close(s.wfd)
    s.wfd = -1
    free(s.rest)
    s.rest = NULL
    s.rest_len = 0
    if error:
        s.error = error


cdef void write_failed(StreamState *s, int error) noexcept nogil:
    """A connection is read to its end, which comes now: what the peer sent before it went is not lost."""
    end_writing(s, error)
    if s.comes and s.rfd >= 0:
        shutdown(s.rfd, SHUT_RDWR)


cdef void connection_ended(StreamState *s) noexcept nogil:
    """Nothing of it is left behind (B22): frames that waited for it are dropped, the frame it was cut in is forgotten, and whoever
    waited for room goes on."""
    if not s.up:
        return
    if s.done < s.have:
        net_drop(s.nc, &s.pkts[s.done], s.have - s.done, True, DROP_PURGED)
    s.done = s.have = 0
    s.begin = s.end = 0
    free(s.buf)
    s.buf = NULL
    end_reading(s, 0)
    end_writing(s, 0)
    s.up = False
    s.nc.link_down = True
    net_flush(s.nc)


cdef void stream_parse(StreamState *s) noexcept nogil:
    """Find the next burst of whole frames in buf."""
    cdef const uint8_t *p
    cdef Packet *pkt = &s.pkts[0]
    cdef uint32_t size
    s.done = s.have = 0
    while s.have < NET_BURST and s.end - s.begin >= HEADER:
        p = s.buf + s.begin
        size = (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]
        if size > NET_MAX_PACKET:
            # nobody knows where the next frame begins: nothing more is read, and nothing more written
            s.nc.stats.drops[<int>DROP_MALFORMED] += 1
            s.begin = s.end = 0
            end_reading(s, EMSGSIZE)
            end_writing(s, EMSGSIZE)
            return
        if s.end - s.begin - HEADER < size:
            return
        memset(pkt, 0, sizeof(Packet))
        s.iov[s.have].iov_base = s.buf + s.begin + HEADER
        s.iov[s.have].iov_len = size
        pkt.iov = &s.iov[s.have]
        pkt.iovcnt = 1
        pkt.size = size
        s.begin += HEADER + size
        if size == 0:
            net_drop(s.nc, pkt, 1, True, DROP_EMPTY)
            continue
        s.have += 1
        pkt += 1


cdef void stream_push(StreamState *s) noexcept nogil:
    """Send on all whole frames that were read while the core takes them. Entered again by resume, only the outer call goes on."""
    if s.sending:
        s.again = True
        return
    s.sending = True
    while True:
        while s.done < s.have:
            s.again = False
            s.done += net_send(s.nc, &s.pkts[s.done], s.have - s.done)
            if s.done < s.have and not s.again:
                s.sending = False
                return
        stream_parse(s)
        if s.have == 0:
            break
    s.sending = False


cdef void stream_poll(StreamState *s) noexcept nogil:
    """Wait for bytes unless the peer has no room. Then for nothing: not even for a hang-up, of which epoll would tell without end."""
    cdef int rc
    if s.sending:
        return                          # the outer stream_push will do it
    if s.rfd >= 0 and s.done == s.have and s.in_watch.fd < 0:
        rc = watch_add(&s.in_watch, s.rfd, LOOP_IN)
        if rc < 0:
            end_reading(s, -rc)
    if s.rfd < 0 or s.done < s.have:
        watch_remove(&s.in_watch)
    if s.rfd < 0 and s.done == s.have and s.up:
        connection_ended(s)
        context_defer(s.nc.ctx, &s.lost)


cdef void stream_readable(void *opaque, uint32_t ready) noexcept nogil:
    cdef StreamState *s = <StreamState *>opaque
    cdef ssize_t n
    s.nc.stats.wakeups += 1
    if s.buf == NULL:
        s.buf = <uint8_t *>malloc(READ_SIZE)
        if s.buf == NULL:
            end_reading(s, ENOMEM)
            stream_poll(s)
            return
    if s.begin:
        memmove(s.buf, s.buf + s.begin, s.end - s.begin)
        s.end -= s.begin
        s.begin = 0
    s.nc.stats.syscalls += 1
    n = qn_read(s.rfd, s.rkind, s.buf + s.end, READ_SIZE - s.end)
    if n == -EAGAIN:
        return
    if n <= 0:
        if s.end:                       # the end came in the middle of a frame
            s.nc.stats.drops[<int>DROP_MALFORMED] += 1
            s.end = 0
        end_reading(s, <int>-n)
        stream_poll(s)
        return
    s.end += <uint32_t>n
    stream_push(s)
    stream_poll(s)


cdef void stream_resume(NetClientState *nc) noexcept nogil:
    cdef StreamState *s = <StreamState *>nc.opaque
    stream_push(s)
    stream_poll(s)


# ---------------------------------------------------------------------------------------------------------------- writing

cdef bint write_rest(StreamState *s) noexcept nogil:
    """Finish the frame that was begun. False: no room, or the stream has ended."""
    cdef iovec iov
    cdef ssize_t n
    while s.rest_len:
        iov.iov_base = s.rest + s.rest_at
        iov.iov_len = s.rest_len
        s.nc.stats.syscalls += 1
        n = qn_writev(s.wfd, s.wkind, &iov, 1)
        if n == -EAGAIN:
            return False
        if n < 0:
            s.nc.stats.drops[<int>DROP_IO] += 1      # the frame was counted as received when its beginning was written
            write_failed(s, <int>-n)
            return False
        s.rest_at += <uint32_t>n
        s.rest_len -= <uint32_t>n
    free(s.rest)
    s.rest = NULL
    return True


cdef int wait_writable(StreamState *s) noexcept nogil:
    """Once; then, as the watch stays where it is, even a hang-up is not told again."""
    if s.out_watch.fd >= 0:
        return watch_events(&s.out_watch, LOOP_OUT | LOOP_ONESHOT)
    return watch_add(&s.out_watch, s.wfd, LOOP_OUT | LOOP_ONESHOT)


cdef void stream_writable(void *opaque, uint32_t ready) noexcept nogil:
    cdef StreamState *s = <StreamState *>opaque
    cdef int rc
    s.nc.stats.wakeups += 1
    if not write_rest(s) and s.wfd >= 0:
        rc = wait_writable(s)
        if rc == 0:
            return
        write_failed(s, -rc)
    net_flush(s.nc)


cdef uint32_t written(StreamState *s, const Packet *pkts, uint32_t n, size_t done, iovec *iov, uint32_t iovcnt) noexcept nogil:
    """The stream took `done` bytes of the frames: how many are ours no more. The end of one that is torn there is kept: whoever sent
    it may drop it before there is room, and the stream would never find its frames again."""
    cdef uint32_t k = 0
    cdef size_t begin = 0
    while k < n and begin + HEADER + pkts[k].size <= done:
        begin += HEADER + pkts[k].size
        k += 1
    if k == n or begin == done:
        return k
    s.rest_at = 0
    s.rest_len = <uint32_t>(begin + HEADER + pkts[k].size - done)
    s.rest = <uint8_t *>malloc(s.rest_len)
    if s.rest == NULL:
        s.rest_len = 0
        write_failed(s, ENOMEM)
        return k
    iov_gather(iov, iovcnt, done, s.rest, s.rest_len)
    return k + 1


cdef bint stream_can_receive(NetClientState *nc) noexcept nogil:
    return (<StreamState *>nc.opaque).rest_len == 0


cdef uint32_t stream_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef StreamState *s = <StreamState *>nc.opaque
    cdef iovec[IOVS] iov
    cdef uint8_t[NET_BURST][HEADER] headers
    cdef uint32_t done = 0
    cdef uint32_t m
    cdef uint32_t cnt
    cdef uint32_t size
    cdef size_t bytes
    cdef ssize_t rc
    while done < n and s.wfd >= 0:
        m = 0
        cnt = 0
        bytes = 0
        while m < NET_BURST and done + m < n and cnt + 1 + pkts[done + m].iovcnt <= IOVS:
            size = pkts[done + m].size
            headers[m][0] = <uint8_t>(size >> 24)
            headers[m][1] = <uint8_t>(size >> 16)
            headers[m][2] = <uint8_t>(size >> 8)
            headers[m][3] = <uint8_t>size
            iov[cnt].iov_base = headers[m]
            iov[cnt].iov_len = HEADER
            memcpy(&iov[cnt + 1], pkts[done + m].iov, pkts[done + m].iovcnt * sizeof(iovec))
            cnt += 1 + pkts[done + m].iovcnt
            bytes += HEADER + size
            m += 1
        nc.stats.syscalls += 1
        rc = qn_writev(s.wfd, s.wkind, iov, cnt)
        if rc < 0 and rc != -EAGAIN:
            write_failed(s, <int>-rc)
            break
        if rc > 0:
            done += written(s, pkts + done, m, <size_t>rc, iov, cnt)
        if rc < <ssize_t>bytes and s.wfd >= 0:
            rc = wait_writable(s)
            if rc == 0:
                return done
            write_failed(s, <int>-rc)
    if done < n:
        net_drop(nc, pkts + done, n - done, False, DROP_IO)
    return n


cdef void stream_link_status_changed(NetClientState *nc) noexcept nogil:
    cdef StreamState *s = <StreamState *>nc.opaque
    if s.comes and not s.up:
        nc.link_down = True


cdef void stream_cleanup(NetClientState *nc) noexcept nogil:
    cdef StreamState *s = <StreamState *>nc.opaque
    context_cancel(nc.ctx, &s.lost)
    s.up = False
    end_reading(s, 0)
    end_writing(s, 0)
    free(s.buf)
    s.buf = NULL
    s.begin = s.end = 0
    s.done = s.have = 0


cdef NetClientOps stream_ops = NetClientOps(
    receive=stream_receive,
    can_receive=stream_can_receive,
    resume=stream_resume,
    link_status_changed=stream_link_status_changed,
    cleanup=stream_cleanup,
)


@cython.no_gc_clear
cdef class StreamClient(NetClient):
    """Frames over byte streams: `rfd` is read, `wfd` written; -1: not at all. They may be one socket. The client keeps duplicates of
    both, the caller closes its own; what is no socket becomes non-blocking for everybody who shares it.

    A length of 0 is skipped ("empty"). One above 69632 ends both directions at once ("malformed"), after what came before it was sent
    on. It never waits: a frame that was written in part is finished first when there is room, the next ones wait in the queue; while
    the peer has no room nothing is read. What is sent after the stream has ended is dropped ("io"). OSError: a descriptor that is not
    open or cannot be waited for, as a regular file.

    With neither it is for connections that come and go: attach() and detach(), link down in between, and on_lost() is called without
    locks after one has ended by itself.
    """
    cdef StreamState s
    cdef Loop loop
    cdef public object on_lost

    def __cinit__(self, *args, **kwargs):
        self.s.rfd = self.s.wfd = -1
        self.s.in_watch.fd = self.s.out_watch.fd = -1

    def __init__(self, Loop loop not None, str name, str model, *, int rfd=-1, int wfd=-1):
        cdef int rc = 0
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self.s.lost.owner = <void *>self
        self.s.lost.run = stream_lost
        self.s.comes = rfd < 0 and wfd < 0
        self._setup(&stream_ops, &self.s)
        self.nc.flow_control = True
        self.nc.link_down = self.s.comes
        if rfd >= 0:
            self.s.rfd, self.s.rkind = duplicate(rfd)
        if wfd >= 0:
            self.s.wfd, self.s.wkind = duplicate(wfd)
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.in_watch, &self.loop.loop, stream_readable, &self.s)
            watch_init(&self.s.out_watch, &self.loop.loop, stream_writable, &self.s)
            if self.s.wfd >= 0:
                rc = watch_add(&self.s.out_watch, self.s.wfd, LOOP_OUT)     # can it be waited for?
                watch_remove(&self.s.out_watch)
            if rc == 0 and self.s.rfd >= 0:
                rc = watch_add(&self.s.in_watch, self.s.rfd, LOOP_IN)
            context_leave(self.nc.ctx)
        check(rc)

    def __dealloc__(self):
        self._fini()

    def attach(self, int fd):
        """The connection is there: a connected stream socket, of which the client keeps duplicates. The link is up, unless set_link()
        said otherwise. OSError: it is no socket, is not connected, or there is a connection already."""
        cdef int rc = 0
        cdef int rfd
        cdef int wfd
        cdef int kind
        rfd, kind = duplicate(fd)
        wfd = fcntl.fcntl(rfd, fcntl.F_DUPFD_CLOEXEC, 3)
        with nogil:
            context_enter(self.nc.ctx)
            if self.s.up or self.closed or not self.s.comes:
                rc = -EISCONN
            elif kind != QN_FD_SOCKET:
                rc = -ENOTCONN
            else:
                rc = watch_add(&self.s.in_watch, rfd, LOOP_IN)
            if rc < 0:
                close(rfd)
                close(wfd)
            else:
                context_cancel(self.nc.ctx, &self.s.lost)
                self.s.rfd = rfd
                self.s.wfd = wfd
                self.s.rkind = self.s.wkind = kind
                self.s.error = 0
                self.s.up = True
                self.nc.link_down = self.s.unwanted
                net_flush(&self.nc)
            context_leave(self.nc.ctx)
        check(rc)
        self.context.run_deferred()

    def detach(self):
        """End the connection, without on_lost(). Idempotent."""
        with nogil:
            context_enter(self.nc.ctx)
            context_cancel(self.nc.ctx, &self.s.lost)
            connection_ended(&self.s)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def set_link(self, bint up):
        """As any client's; without a connection the link stays down, and takes this state when one comes."""
        with nogil:
            context_enter(self.nc.ctx)
            self.s.unwanted = not up
            net_set_link(&self.nc, up)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    @property
    def attached(self) -> bool:
        """Whether there is a connection."""
        return self.s.up

    @property
    def reading(self) -> bool:
        """Whether frames can still come."""
        return self.s.rfd >= 0

    @property
    def writing(self) -> bool:
        """Whether frames can still be sent."""
        return self.s.wfd >= 0

    @property
    def error(self) -> str | None:
        """What ended a direction; None while both stand, and after an orderly end."""
        return os.strerror(self.s.error) if self.s.error else None


cdef void stream_lost(void *owner) noexcept:
    client = <StreamClient>owner
    try:
        if client.on_lost is not None:
            client.on_lost()
    except Exception:
        log.exception("%s: callable failed", client.name)


def duplicate(fd: int) -> tuple[int, int]:
    """A duplicate of `fd` that never waits, and what kind it is. OSError: not open."""
    cdef int copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    cdef int kind = check(qn_fd_kind(copy))
    if kind != QN_FD_SOCKET:                                # sockets are told with each call
        fcntl.fcntl(copy, fcntl.F_SETFL, fcntl.fcntl(copy, fcntl.F_GETFL) | os.O_NONBLOCK)
    return copy, kind
