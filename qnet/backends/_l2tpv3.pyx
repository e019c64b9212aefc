"""Frames in an L2TPv3 pseudowire (RFC 3931): a message socket as any other, with a header in front of each frame."""
cimport cython
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy

from qnet._context cimport Deferred, context_cancel, context_defer, context_enter_gil, context_leave
from qnet._fastpath cimport NET_BURST
from qnet._loop cimport Loop
from qnet.backends._dgram cimport DgramClient, DgramState

import logging

log = logging.getLogger("qnet.l2tpv3")

cdef enum:
    IP_HEADER = 20                  # the least of it, RFC 791
    FLAGS = 4                       # over UDP: flags, version and a reserved word in front, RFC 3931 4.1.2.1
    CONTROL_MESSAGE = 0x80          # of the first byte: T
    VERSION = 0x0f                  # of the second
    SESSION = 4
    COOKIE = 8                      # at most
    COUNTER = 4
    OFFSET = 255                    # at most

cdef struct L2tpState:
    bint ip_header                  # messages are read with their IPv4 header
    bint udp
    uint8_t[SESSION + COOKIE] key   # session and cookie that are expected
    uint32_t key_len
    uint32_t rest                   # bytes between them and the frame
    const char *complaint           # the first thing that was wrong
    Deferred report


cdef int32_t malformed(DgramState *s, L2tpState *t, const char *complaint) noexcept nogil:
    if t.complaint == NULL:
        t.complaint = complaint
        context_defer(s.nc.ctx, &t.report)
    return -1


cdef int32_t l2tp_header(DgramState *s, const uint8_t *p, uint32_t size) noexcept nogil:
    """How many bytes are in front of the frame. Whatever a stranger sends, no byte behind `size` is looked at."""
    cdef L2tpState *t = <L2tpState *>s.tunnel
    cdef uint32_t at = 0
    if t.ip_header:
        if size < IP_HEADER or (p[0] & 0x0f) * 4 < IP_HEADER:
            return malformed(s, t, b"a datagram is too short")
        at = (p[0] & 0x0f) * 4
    if size < at + (FLAGS if t.udp else 0) + t.key_len + t.rest:
        return malformed(s, t, b"a datagram is too short")
    if t.udp:
        if p[at] & CONTROL_MESSAGE or p[at + 1] & VERSION != 3:
            return malformed(s, t, b"a datagram is no data message of version 3")
        at += FLAGS
    if memcmp(p + at, t.key, SESSION) != 0:
        return malformed(s, t, b"session mismatch")
    if memcmp(p + at + SESSION, t.key + SESSION, t.key_len - SESSION) != 0:
        return malformed(s, t, b"unknown cookie id")
    return <int32_t>(at + t.key_len + t.rest)


cdef void l2tp_report(void *owner) noexcept:
    cdef L2tpClient self = <L2tpClient>owner
    log.warning("l2tpv3 %s: %s; such datagrams are dropped and counted as malformed", self.name, self.t.complaint.decode())


@cython.no_gc_clear
cdef class L2tpClient(DgramClient):
    """Frames over the datagram or raw socket `fd`, of which the client keeps a duplicate, to `remote`, a struct sockaddr.

    ip_header: the socket is a raw IPv4 one. tx, rx: session, and a cookie of 0, 4 or 8 bytes, as they are on the wire; of equal
    length. counter: a sequence number follows; pinned: it stays 0. offset: bytes between header and frame, 255 at most. What does not
    have the header that is expected is dropped ("malformed"), and the first such thing is logged.
    """
    cdef L2tpState t

    def __init__(self, Loop loop not None, str name, int fd, bytes remote not None, *, bytes tx not None, bytes rx not None, bint udp,
                 bint ip_header=False, bint counter=False, bint pinned=False, uint32_t offset=0):
        cdef uint32_t i
        cdef uint32_t at = FLAGS if udp else 0
        cdef uint8_t *header
        if not SESSION <= len(tx) <= SESSION + COOKIE or len(tx) != len(rx) or offset > OFFSET or self.s.headers != NULL:
            raise ValueError("no such header")
        self.t.udp = udp
        self.t.ip_header = ip_header
        self.t.key_len = <uint32_t>len(rx)
        self.t.rest = (COUNTER if counter else 0) + offset
        memcpy(self.t.key, <const uint8_t *>rx, len(rx))
        self.t.report.owner = <void *>self
        self.t.report.run = l2tp_report
        self.s.header = at + <uint32_t>len(tx) + self.t.rest
        self.s.headers = <uint8_t *>calloc(NET_BURST, self.s.header)
        if self.s.headers == NULL:
            raise MemoryError
        for i in range(<uint32_t>NET_BURST):
            header = self.s.headers + i * self.s.header
            if udp:
                header[1] = 3
            memcpy(header + at, <const uint8_t *>tx, len(tx))
        if counter and not pinned:
            self.s.counter_at = <int32_t>at + <int32_t>len(tx)
            self.s.counter = 1
        self.s.tunnel = &self.t
        self.s.check_header = l2tp_header
        super().__init__(loop, name, "l2tpv3", fd, remote=remote, coalesce=udp)

    def __dealloc__(self):
        self._fini()
        if self.context is not None:
            context_enter_gil(&self.context.ctx)
            context_cancel(&self.context.ctx, &self.t.report)
            context_leave(&self.context.ctx)
