"""Frames through libvdeplug: its vde_recv and vde_send, called by address with the context's lock held."""
cimport cython
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_EMPTY, DROP_IO, DROP_LINK_DOWN, DROP_MALFORMED, DROP_OVERSIZE, NET_MAX_PACKET, NetClientOps,
                             NetClientState, Packet, net_drop, net_flush, net_send, net_set_link)
from qnet._iov cimport iov_gather, iovec
from qnet._loop cimport LOOP_ERR, LOOP_HUP, LOOP_IN, LOOP_OUT, Loop, Watch, watch_add, watch_events, watch_init, watch_remove

import fcntl
import os

from qnet.errors import check

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void *, size_t, int)
    int getsockopt(int, int, int, void *, unsigned *)
    int SOL_SOCKET, SO_TYPE, SOCK_DGRAM, MSG_DONTWAIT

cdef enum:
    READ_BURST = 32                 # frames of one wake-up; each needs room for the longest one
    BUF_SIZE = NET_MAX_PACKET + 8   # more than a frame can have: what fills it was too long
    BAD_READS = 16                  # errors in a row after which a connection without a control socket counts as gone

ctypedef ssize_t (*vde_recv_fn)(void *conn, void *buf, size_t len, int flags) noexcept nogil
ctypedef ssize_t (*vde_send_fn)(void *conn, const void *buf, size_t len, int flags) noexcept nogil
ctypedef int (*vde_close_fn)(void *conn) noexcept nogil

FUNCTIONS = ("vde_recv", "vde_send", "vde_close")

cdef struct VdeState:
    NetClientState *nc
    void *conn                      # NULL: closed
    vde_recv_fn recv
    vde_send_fn send
    vde_close_fn close
    int datafd
    bint dgram                      # the data fd keeps message boundaries: an empty message is no end
    Watch data
    Watch ctl
    bint gone                       # the other end is
    int error                       # errno it was found out by, 0: an orderly end
    bint want_out                   # a frame found no room: wait until there is some
    bint in_ready                   # the watch is brought up to date at the end of the handler
    bint sending
    bint again
    uint32_t bad_reads
    uint8_t *out                    # a frame of several pieces, in one; from the first such frame on
    uint8_t *buf                    # READ_BURST * BUF_SIZE, from the first read on; pages that are never touched cost nothing
    iovec[READ_BURST] iov
    Packet[READ_BURST] pkts         # what was read: the peer has not yet taken [done, have)
    uint32_t done
    uint32_t have


cdef void vde_poll(VdeState *s) noexcept nogil:
    """Wait for what there is a use for. For nothing: not even for a hang-up, of which epoll would tell without end."""
    cdef uint32_t events = 0
    cdef int rc = 0
    if s.in_ready or s.sending or s.gone:
        return
    if s.done == s.have:
        events |= LOOP_IN
    if s.want_out:
        events |= LOOP_OUT
    if events == 0:
        watch_remove(&s.data)
    elif s.data.fd < 0:
        rc = watch_add(&s.data, s.datafd, events)
    else:
        rc = watch_events(&s.data, events)
    if rc < 0:
        vde_gone(s, -rc)


cdef void vde_push(VdeState *s) noexcept nogil:
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


cdef void vde_gone(VdeState *s, int error) noexcept nogil:
    """The other end is gone: the link goes down, and nobody waits for anything."""
    if s.gone:
        return
    s.gone = True
    s.error = error
    watch_remove(&s.data)
    watch_remove(&s.ctl)
    s.want_out = False
    if not s.sending and s.done < s.have:
        net_drop(s.nc, &s.pkts[s.done], s.have - s.done, True, DROP_LINK_DOWN)
        s.done = s.have = 0
    net_set_link(s.nc, False)


cdef int vde_read(VdeState *s) noexcept nogil:
    """Read one burst, into pkts. 0, the errno of a failed read, or -1: an orderly end."""
    cdef Packet *p = &s.pkts[0]
    cdef ssize_t n
    cdef uint32_t reads = 0
    s.done = s.have = 0
    if s.buf == NULL:
        s.buf = <uint8_t *>malloc(READ_BURST * BUF_SIZE)
        if s.buf == NULL:
            return ENOMEM
    while reads < READ_BURST:
        reads += 1
        s.iov[s.have].iov_base = s.buf + <size_t>s.have * BUF_SIZE
        s.nc.stats.syscalls += 1
        n = s.recv(s.conn, s.iov[s.have].iov_base, BUF_SIZE, MSG_DONTWAIT)
        if n < 0:
            if errno == EINTR:
                continue
            return 0 if errno in (EAGAIN, ENOBUFS, ENOMEM) else errno
        s.bad_reads = 0
        memset(p, 0, sizeof(Packet))
        s.iov[s.have].iov_len = n
        p.iov = &s.iov[s.have]
        p.iovcnt = 1
        p.size = <uint32_t>n
        if n == 0:
            if not s.dgram:
                return -1
            net_drop(s.nc, p, 1, True, DROP_EMPTY)
        elif n == 1:                    # the library's way to say: came, but is not for you
            net_drop(s.nc, p, 1, True, DROP_MALFORMED)
        elif n > NET_MAX_PACKET:
            net_drop(s.nc, p, 1, True, DROP_OVERSIZE)
        else:
            s.have += 1
            p += 1
    return 0


cdef void vde_data_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef VdeState *s = <VdeState *>opaque
    cdef int error = 0
    s.nc.stats.wakeups += 1
    s.in_ready = True
    if s.want_out and ready & ~<uint32_t>LOOP_IN:
        s.want_out = False
        net_flush(s.nc)
    if ready & ~<uint32_t>LOOP_OUT and not s.gone and s.done == s.have:
        error = vde_read(s)
        vde_push(s)
        if error > 0:
            s.bad_reads += 1
    s.in_ready = False
    if error < 0 or s.bad_reads >= BAD_READS:
        vde_gone(s, error if error > 0 else 0)
    vde_poll(s)


cdef void vde_ctl_ready(void *opaque, uint32_t ready) noexcept nogil:
    """Nothing is ever said here but that it ends. What came before the end is read."""
    cdef VdeState *s = <VdeState *>opaque
    cdef uint8_t[256] junk
    cdef int error = 0
    cdef ssize_t n
    s.nc.stats.wakeups += 1
    s.nc.stats.syscalls += 1
    n = recv(s.ctl.fd, junk, sizeof(junk), MSG_DONTWAIT)
    if n > 0 or (n < 0 and errno in (EAGAIN, EINTR) and not ready & (LOOP_ERR | LOOP_HUP)):
        return
    if n < 0:
        error = errno
    watch_remove(&s.ctl)
    s.in_ready = True
    for _ in range(READ_BURST):
        if s.gone or s.done < s.have or vde_read(s) or s.have == 0:
            break
        vde_push(s)
    s.in_ready = False
    vde_gone(s, error)


cdef uint32_t vde_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef VdeState *s = <VdeState *>nc.opaque
    cdef uint32_t i = 0
    cdef const void *bytes
    cdef ssize_t sent
    while i < n and not s.gone:
        bytes = pkts[i].iov[0].iov_base
        if pkts[i].iovcnt > 1:
            if s.out == NULL:
                s.out = <uint8_t *>malloc(NET_MAX_PACKET)
            if s.out == NULL:
                net_drop(nc, pkts + i, 1, False, DROP_IO)
                i += 1
                continue
            iov_gather(pkts[i].iov, pkts[i].iovcnt, 0, s.out, pkts[i].size)
            bytes = s.out
        nc.stats.syscalls += 1
        sent = s.send(s.conn, bytes, pkts[i].size, MSG_DONTWAIT)
        if sent >= 0:
            i += 1
        elif errno == EAGAIN:
            s.want_out = True
            vde_poll(s)
            return i
        elif errno != EINTR:            # too long for it, or it is gone, of which the control socket tells
            net_drop(nc, pkts + i, 1, False, DROP_IO)
            i += 1
    if i < n:
        net_drop(nc, pkts + i, n - i, False, DROP_IO)
    return n


cdef void vde_resume(NetClientState *nc) noexcept nogil:
    cdef VdeState *s = <VdeState *>nc.opaque
    vde_push(s)
    vde_poll(s)


cdef void vde_cleanup(NetClientState *nc) noexcept nogil:
    cdef VdeState *s = <VdeState *>nc.opaque
    s.gone = True
    watch_remove(&s.data)
    watch_remove(&s.ctl)
    if s.conn != NULL:
        s.close(s.conn)
    s.conn = NULL
    free(s.buf)
    free(s.out)
    s.buf = s.out = NULL
    s.done = s.have = 0


cdef NetClientOps vde_ops = NetClientOps(
    receive=vde_receive,
    can_receive=NULL,
    resume=vde_resume,
    link_status_changed=NULL,
    cleanup=vde_cleanup,
)


@cython.no_gc_clear
cdef class VdePort(NetClient):
    """A port of a VDE network. `conn`: the address of a VDECONN, which is the client's from the call on, also when that raises.
    functions: the addresses of FUNCTIONS, by name. datafd, ctlfd: the connection's; ctlfd may be -1.

    It never waits for the network. A frame that finds no room waits in the queue; while its peer has no room it reads no more. When the
    control socket ends, what came before is read, the link goes down, and frames are dropped. OSError: `datafd` cannot be waited for.
    """
    cdef VdeState s
    cdef Loop loop

    def __cinit__(self, *args, **kwargs):
        self.s.datafd = -1
        self.s.data.fd = self.s.ctl.fd = -1

    def __init__(self, Loop loop not None, str name, str model, dict functions not None, uintptr_t conn, int datafd, int ctlfd):
        cdef int type = 0
        cdef unsigned len = sizeof(type)
        cdef int rc
        self.s.recv = <vde_recv_fn><uintptr_t>functions["vde_recv"]
        self.s.send = <vde_send_fn><uintptr_t>functions["vde_send"]
        self.s.close = <vde_close_fn><uintptr_t>functions["vde_close"]
        self.s.conn = <void *>conn
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self._setup(&vde_ops, &self.s)
        self.nc.flow_control = True
        for fd in (datafd, ctlfd):
            if fd >= 0:
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        fcntl.fcntl(datafd, fcntl.F_SETFL, fcntl.fcntl(datafd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self.s.dgram = getsockopt(datafd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 and type == SOCK_DGRAM
        self.s.datafd = datafd
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.data, &self.loop.loop, vde_data_ready, &self.s)
            watch_init(&self.s.ctl, &self.loop.loop, vde_ctl_ready, &self.s)
            rc = watch_add(&self.s.data, datafd, LOOP_IN)
            if rc == 0 and ctlfd >= 0 and ctlfd != datafd:
                rc = watch_add(&self.s.ctl, ctlfd, LOOP_IN)
            context_leave(self.nc.ctx)
        check(rc)

    def __dealloc__(self):
        self._fini()

    @property
    def connected(self) -> bool:
        """Whether the other end is there."""
        return not self.s.gone

    @property
    def error(self) -> str | None:
        """What ended the connection; None while it stands, and after an orderly end."""
        return os.strerror(self.s.error) if self.s.error else None
