"""Clients over a tap or macvtap: one read or write is one frame, with a virtio_net_hdr in front if the tap was opened with one.

That header is the Offload record of the packet contract, in the same order and byte order: it is checked here in both directions.
"""
cimport cython
from libc.errno cimport EAGAIN, EBADFD, EINTR, EINVAL, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close, read

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_BAD_OFFLOAD, DROP_DISABLED, DROP_IO, DROP_MALFORMED, DROP_PURGED, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6,
                             GSO_UDP, GSO_UDP_L4, NET_MAX_IOV, OFF_DATA_VALID, OFF_NEEDS_CSUM, TAKE_CSUM, TAKE_ECN, TAKE_PLAIN, TAKE_TSO4,
                             TAKE_TSO6, TAKE_USO, NetClientOps, NetClientState, Offload, Packet, net_drop, net_flush, net_send)
from qnet._iov cimport iovec
from qnet._loop cimport LOOP_IN, LOOP_OUT, Loop, watch_add, watch_events, watch_init, watch_remove

import fcntl
import os

from qnet.errors import check

cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int, const iovec *, int)

assert sizeof(Offload) == HEADER
cdef uint8_t[HEADER_MAX] NO_OFFLOAD
memset(NO_OFFLOAD, 0, sizeof(NO_OFFLOAD))


cdef void tap_end(TapState *s, int error) noexcept nogil:
    """Nothing comes and nothing goes any more. What was read is still sent on."""
    watch_remove(&s.watch)
    if s.fd >= 0:
        close(s.fd)
    s.fd = -1
    s.error = error


cdef void tap_poll(TapState *s) noexcept nogil:
    """Wait for what there is a use for. For nothing: not even for an error, of which epoll would tell without end."""
    cdef uint32_t events = 0
    cdef int rc = 0
    if s.in_ready or s.sending or s.fd < 0:
        return
    if not s.off and s.done == s.have:
        events |= LOOP_IN
    if s.want_out:
        events |= LOOP_OUT
    if events == 0:
        watch_remove(&s.watch)
    elif s.watch.fd < 0:
        rc = watch_add(&s.watch, s.fd, events)
    else:
        rc = watch_events(&s.watch, events)
    if rc < 0:
        tap_end(s, -rc)


# ---------------------------------------------------------------------------------------------------------------- reading

cdef inline bint offload_fits(const Offload *o, uint32_t size) noexcept nogil:
    """Whether the record makes sense for a frame of `size` bytes (virtio 1.3, 5.1.6.4.1). Who segments looks at more."""
    cdef uint32_t kind = o.gso_type & ~<uint32_t>GSO_ECN
    if o.flags & OFF_NEEDS_CSUM and <uint32_t>o.csum_start + o.csum_offset + 2 > size:
        return False
    if kind == GSO_NONE:
        return o.gso_type == GSO_NONE
    return (o.gso_size > 0 and o.flags & OFF_NEEDS_CSUM and
            (kind == GSO_TCPV4 or kind == GSO_TCPV6 or kind == GSO_UDP_L4 or kind == GSO_UDP))


cdef void tap_push(TapState *s) noexcept nogil:
    """Send on what was read while the core takes it. Entered again by resume, only the outer call goes on. A queue without a peer
    hands it to queue 0, as for a NIC with one queue."""
    cdef NetClientState *nc = s.nc if s.nc.peer != NULL or s.lead == NULL else s.lead.nc
    if s.sending:
        s.again = True
        return
    s.sending = True
    while s.done < s.have:
        s.again = False
        s.done += net_send(nc, &s.pkts[s.done], s.have - s.done)
        if s.done < s.have and not s.again:
            break
    s.sending = False


cdef void tap_took(TapState *s, uint8_t *frame, uint32_t size) noexcept nogil:
    """A frame was read: put it into the burst. The core drops what is empty or too long."""
    cdef Packet *p = &s.pkts[s.have]
    memset(p, 0, sizeof(Packet))
    s.iov[s.have].iov_base = frame
    s.iov[s.have].iov_len = size
    p.iov = &s.iov[s.have]
    p.iovcnt = 1
    p.size = size
    s.have += 1
    if s.header:
        memcpy(&p.off, frame - s.header, HEADER)
        p.off.flags &= OFF_NEEDS_CSUM | OFF_DATA_VALID
        if not offload_fits(&p.off, size):
            memset(&p.off, 0, sizeof(Offload))
            net_drop(s.nc, p, 1, True, DROP_BAD_OFFLOAD)
            s.have -= 1


cdef void tap_read(TapState *s) noexcept nogil:
    """Read one burst, into pkts: frames lie close together, so that those of a burst stay in the cache."""
    cdef uint32_t at = 0
    cdef ssize_t n
    s.done = s.have = 0
    if s.buf == NULL:
        s.buf = <uint8_t *>malloc(AREA)
        if s.buf == NULL:
            tap_end(s, ENOMEM)
            return
    for _ in range(<uint32_t>BURST):
        at = (at + s.header + SLOT - 1) & ~<uint32_t>(SLOT - 1)
        if at + FRAME > AREA:
            return
        s.nc.stats.syscalls += 1
        n = read(s.fd, s.buf + at - s.header, s.header + FRAME)
        if n >= <ssize_t>s.header:
            tap_took(s, s.buf + at, <uint32_t>n - s.header)
            at += <uint32_t>n - s.header
        elif n >= 0:
            s.nc.stats.drops[<int>DROP_MALFORMED] += 1
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            tap_end(s, errno)               # EBADFD: the interface was deleted
            return


cdef void tap_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef TapState *s = <TapState *>opaque
    s.nc.stats.wakeups += 1
    s.in_ready = True
    if s.want_out and ready & ~<uint32_t>LOOP_IN:
        s.want_out = False
        net_flush(s.nc)
    if ready & ~<uint32_t>LOOP_OUT and s.fd >= 0 and not s.off and s.done == s.have:
        tap_read(s)
        tap_push(s)
    s.in_ready = False
    tap_poll(s)


cdef void tap_resume(NetClientState *nc) noexcept nogil:
    cdef TapState *s = <TapState *>nc.opaque
    while s != NULL:                        # the other queues may have waited for the same peer
        tap_push(s)
        tap_poll(s)
        s = s.next


# ---------------------------------------------------------------------------------------------------------------- writing

cdef uint32_t tap_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef TapState *s = <TapState *>nc.opaque
    cdef iovec[NET_MAX_IOV + 1] iov
    cdef uint8_t[HEADER_MAX] header
    cdef const Packet *p
    cdef Offload *o = <Offload *>header
    cdef uint32_t first = 1 if s.header else 0
    cdef uint32_t i
    if s.off:
        net_drop(nc, pkts, n, False, DROP_DISABLED)
        return n
    memset(header, 0, sizeof(header))
    iov[0].iov_len = s.header
    for i in range(n):
        p = &pkts[i]
        if s.fd < 0:
            net_drop(nc, p, n - i, False, DROP_IO)
            return n
        iov[0].iov_base = NO_OFFLOAD
        if p.off.flags & OFF_NEEDS_CSUM or p.off.gso_type:
            if not offload_fits(&p.off, p.size):
                net_drop(nc, p, 1, False, DROP_BAD_OFFLOAD)
                continue
            o[0] = p.off
            o.flags &= OFF_NEEDS_CSUM
            if o.hdr_len > p.size:
                o.hdr_len = 0
            iov[0].iov_base = header
        if p.iovcnt == 1:
            iov[first] = p.iov[0]
        else:
            memcpy(&iov[first], p.iov, p.iovcnt * sizeof(iovec))
        nc.stats.syscalls += 1
        while writev(s.fd, iov, <int>(first + p.iovcnt)) < 0:
            if errno == EAGAIN:
                s.want_out = True
                tap_poll(s)
                if s.fd >= 0:
                    return i
            elif errno == EINTR:
                continue
            elif errno == EBADFD:           # the interface was deleted
                tap_end(s, EBADFD)
            net_drop(nc, p, 1, False, DROP_IO)
            break
    return n


cdef void tap_cleanup(NetClientState *nc) noexcept nogil:
    cdef TapState *s = <TapState *>nc.opaque
    cdef TapState *q = s.lead
    watch_remove(&s.watch)
    s.corpse = s.fd
    s.fd = -1
    s.done = s.have = 0
    free(s.buf)
    s.buf = NULL
    while q != NULL and q.next != s:
        q = q.next
    if q != NULL:
        q.next = s.next
    while s.lead == NULL and s.next != NULL:
        q = s.next
        s.next = q.next
        q.lead = NULL
        q.next = NULL


cdef NetClientOps tap_ops = NetClientOps(
    receive=tap_receive,
    can_receive=NULL,
    resume=tap_resume,
    link_status_changed=NULL,
    cleanup=tap_cleanup,
)


# ----------------------------------------------------------------------------------------------------------------- Python

WORDS = ((QN_TAP_CSUM, "csum", TAKE_CSUM), (QN_TAP_TSO4, "tso4", TAKE_TSO4), (QN_TAP_TSO6, "tso6", TAKE_TSO6),
         (QN_TAP_ECN, "ecn", TAKE_ECN), (QN_TAP_USO, "uso", TAKE_USO))


def features(int fd) -> tuple[bool, bool]:
    """Whether the driver behind `fd` has virtio_net_hdrs, and several queues. OSError: no tap driver."""
    cdef int flags = check(qn_tap_features(fd), "TUNGETFEATURES")
    return flags & QN_TAP_VNET_HDR != 0, flags & QN_TAP_QUEUES != 0


def attach(int fd, bytes name, bint vnet_hdr, bint queues) -> tuple[int, str]:
    """Make `fd` a tap called `name` (at most 15 bytes; a %d becomes a free number). (0, its name) or (-errno, "")."""
    cdef char[QN_TAP_NAME] text
    cdef int rc
    memset(text, 0, sizeof(text))
    name = name[:QN_TAP_NAME - 1]
    memcpy(text, <char *>name, len(name))
    with nogil:
        rc = qn_tap_attach(fd, text, (QN_TAP_VNET_HDR if vnet_hdr else 0) | (QN_TAP_QUEUES if queues else 0))
    return (rc, "") if rc < 0 else (0, os.fsdecode(<bytes>text))


@cython.no_gc_clear
cdef class TapClient(NetClient):
    """Frames of the tap that `fd` is attached to. The client keeps a duplicate, the caller closes its own; whoever else has one must
    know that it becomes non-blocking, and its header 10 bytes long if it has one.

    With a header (IFF_VNET_HDR) frames without checksum and GSO frames pass both ways as they are; without, the core and the kernel
    see to them. It never waits for the kernel: a frame that finds no room (sndbuf) waits in the queue; while its peer has no room
    nothing is read. What the kernel refuses is dropped ("io"): frames while the interface is down, all frames once it was deleted.
    `lead`: queue 0 of the same netdev, which sends what this one reads as long as this one has no peer.
    OSError: `fd` is no tap.
    """
    def __cinit__(self, *args, **kwargs):
        self.s.fd = self.s.corpse = -1
        self.s.watch.fd = -1

    def __init__(self, Loop loop not None, str name, str model, int fd, TapClient lead=None):
        cdef char[QN_TAP_NAME] text
        cdef int flags
        cdef int granted = 0
        cdef int rc = 0
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self._setup(&tap_ops, &self.s)
        self.nc.flow_control = True
        with nogil:                                         # each of these waits for the kernel's lock of all interfaces
            flags = qn_tap_query(fd, text)
        check(flags, f"Unable to query TUNGETIFF on FD {fd}", "it is no tap")
        if not flags & QN_TAP_ETHERNET:
            check(-EINVAL, f"Can't use file descriptor {fd}", "it carries IP packets, not frames: IFF_TAP")
        self.ifname = os.fsdecode(<bytes>text)
        self.s.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        if flags & QN_TAP_VNET_HDR:
            with nogil:
                rc = qn_tap_set_header(fd, HEADER)
                granted = max(0, qn_tap_offload(fd))        # without: plain frames behind empty headers
            check(rc, "TUNSETVNETHDRSZ ioctl() failed")
            self.s.header = HEADER
        self.offloads = tuple([word for bit, word, _ in WORDS if granted & bit])
        self.nc.takes = TAKE_PLAIN | sum([take for bit, _, take in WORDS if granted & bit])
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.watch, &self.loop.loop, tap_ready, &self.s)
            rc = watch_add(&self.s.watch, self.s.fd, LOOP_IN)
            if lead is not None and lead.s.fd >= 0:
                self.s.lead = &lead.s
                self.s.next = lead.s.next
                lead.s.next = &self.s
            context_leave(self.nc.ctx)
        check(rc)

    def __dealloc__(self):
        self._fini()
        self._bury()

    def close(self):
        """As any client's. The interface goes with the last descriptor of it, unless it is persistent."""
        NetClient.close(self)
        self._bury()

    cdef void _bury(self) noexcept:
        """The end of an interface takes the kernel milliseconds: not with the network's lock."""
        cdef int fd = self.s.corpse
        self.s.corpse = -1
        if fd >= 0:
            with nogil:
                close(fd)

    @property
    def vnet_hdr_len(self) -> int:
        """Bytes of the header before each frame, between this client and the kernel: 10, 12 or 20; 0 without IFF_VNET_HDR. A tap that
        has one can be told another length; ValueError for what is no length of it."""
        return self.s.header

    @vnet_hdr_len.setter
    def vnet_hdr_len(self, int length):
        cdef int rc = 0
        if length not in (10, 12, 20) if self.s.header else length != 0:
            raise ValueError(f"the header of {self.ifname} has {'10, 12 or 20' if self.s.header else 'no'} bytes, not {length}")
        with nogil:
            context_enter(self.nc.ctx)
            if self.s.header and self.s.fd >= 0:
                rc = qn_tap_set_header(self.s.fd, length)
                if rc == 0:
                    self.s.header = length
            context_leave(self.nc.ctx)
        check(rc, "TUNSETVNETHDRSZ ioctl() failed")

    def set_sndbuf(self, int size):
        """Bytes that may be under way into the host before frames wait here. OSError: the kernel refused."""
        cdef int rc
        with nogil:
            rc = qn_tap_set_sndbuf(self.s.fd, size)
        check(rc, "TUNSETSNDBUF ioctl failed")

    @property
    def enabled(self) -> bool:
        """Whether this queue takes part in the traffic. Switched off (only one of several can be), the kernel gives its flows to the
        others, what it had read is dropped ("purged"), and what it is sent too ("disabled")."""
        return not self.s.off

    @enabled.setter
    def enabled(self, bint on):
        cdef int rc
        if on != self.s.off:
            return
        if not on:
            self._switch(False)                 # first: the kernel tells of errors without end on a queue that is off
        with nogil:
            rc = qn_tap_set_queue(self.s.fd, on)
        if on == (rc == 0):
            self._switch(True)
        check(rc, f"could not {'enable' if on else 'disable'} queue of {self.ifname}")

    cdef void _switch(self, bint on) noexcept:
        with nogil:
            context_enter(self.nc.ctx)
            self.s.off = not on
            if not on:
                net_drop(&self.nc, &self.s.pkts[self.s.done], self.s.have - self.s.done, True, DROP_PURGED)
                self.s.done = self.s.have = 0
                self.s.want_out = False
                net_flush(&self.nc)             # what waits for it is dropped
            tap_poll(&self.s)
            context_leave(self.nc.ctx)

    @property
    def error(self) -> str | None:
        """What ended it, such as the end of its interface; None while it works."""
        return os.strerror(self.s.error) if self.s.error else None
