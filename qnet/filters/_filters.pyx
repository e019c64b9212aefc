"""Packet code of the net filters (F1 to F6). Here: filter-dump, which writes what passes to a capture file."""
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset, strncpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from qnet._context cimport Deferred, context_cancel, context_defer, context_enter_gil, context_leave
from qnet._client cimport Filter, NetClient
from qnet._fastpath cimport (DROP_REASONS, FILTER_RX, FILTER_TX, NET_BURST, NetClientState, NetFilter, NetFilterOps, Packet,
                             net_filter_remove)
from qnet._iov cimport iovec
from qnet._loop cimport Loop, LoopState, loop_now

import logging
import os

from qnet._client import DROP_NAMES as _DROP_NAMES
from qnet.errors import check

cdef extern from "pcap.h" nogil:
    enum:
        QN_PCAP_COMMENT
    struct qn_pcap_record:
        const iovec *iov
        unsigned iovcnt
        unsigned slot
        size_t size
        unsigned direction
        const char *comment
    struct qn_pcap:
        int fd
        int error
        int ng
        uint64_t size
        uint64_t frames
        uint64_t missed
        uint64_t files
        uint64_t writes
    int qn_pcap_open(qn_pcap *p, const char *path, int ng, uint32_t snaplen, uint64_t rotate_size, unsigned rotate_count)
    int qn_pcap_name(qn_pcap *p, unsigned slot, const char *name)
    int qn_pcap_write(qn_pcap *p, int64_t ns, const qn_pcap_record *recs, unsigned n)
    void qn_pcap_close(qn_pcap *p)

log = logging.getLogger("qnet.dump")

# In pcapng a frame is on the interface of the client that sent it; its direction is the watched client's view (F2).
cdef enum:
    SLOT_CLIENT = 0
    SLOT_PEER = 1
    INBOUND = 1
    OUTBOUND = 2

cdef char[DROP_REASONS][QN_PCAP_COMMENT] comments
memset(comments, 0, sizeof(comments))
cdef int reason
for reason in range(<int>DROP_REASONS):
    strncpy(comments[reason], f"dropped: {_DROP_NAMES[reason]}".encode(), QN_PCAP_COMMENT - 1)

cdef struct DumpState:
    qn_pcap pcap
    LoopState *loop
    int64_t epoch                   # what to add to the network's clock for nanoseconds since 1970
    bint drops
    Deferred report


cdef inline int name_slot(qn_pcap *p, unsigned slot, const NetClientState *nc) noexcept nogil:
    """The peer can change while the filter stays, so this is asked for every burst."""
    return qn_pcap_name(p, slot, nc.name if nc != NULL and nc.name != NULL and nc.name[0] else <const char *>b"unnamed")


cdef void dump_packets(DumpState *s, NetFilter *f, const Packet *pkts, uint32_t n, bint tx, const char *comment) noexcept nogil:
    cdef qn_pcap_record[NET_BURST] recs
    cdef int64_t now = s.epoch + loop_now(s.loop)
    cdef unsigned slot = SLOT_CLIENT if tx else SLOT_PEER
    cdef NetClientState *sender = f.client if tx else f.client.peer
    cdef uint32_t done = 0
    cdef uint32_t m
    cdef uint32_t i
    cdef int rc = name_slot(&s.pcap, slot, sender)
    while done < n:
        m = n - done if n - done < NET_BURST else NET_BURST
        for i in range(m):
            recs[i].iov = pkts[done + i].iov
            recs[i].iovcnt = pkts[done + i].iovcnt
            recs[i].size = pkts[done + i].size
            recs[i].slot = slot
            recs[i].direction = OUTBOUND if tx else INBOUND
            recs[i].comment = comment
        rc |= qn_pcap_write(&s.pcap, now, recs, m)
        done += m
    if rc < 0 and s.pcap.error:
        context_defer(s.loop.ctx, &s.report)


cdef uint32_t dump_receive(NetFilter *f, NetClientState *sender, Packet *pkts, uint32_t n, bint tx) noexcept nogil:
    dump_packets(<DumpState *>f.opaque, f, pkts, n, tx, NULL)
    return n


cdef void dump_dropped(NetFilter *f, const Packet *pkts, uint32_t n, bint tx, int reason) noexcept nogil:
    cdef DumpState *s = <DumpState *>f.opaque
    if s.drops and f.direction & (FILTER_TX if tx else FILTER_RX):
        dump_packets(s, f, pkts, n, tx, comments[reason])


cdef void dump_report(void *owner) noexcept:
    cdef DumpFilter self = <DumpFilter>owner
    log.error("network dump write error - stopping dump: %s: %s", self.path, os.strerror(self.s.pcap.error))


cdef NetFilterOps dump_ops = NetFilterOps(
    receive=dump_receive,
    dropped=dump_dropped,
    status_changed=NULL,
)


@cython.no_gc_clear
cdef class DumpFilter(Filter):
    """filter-dump: every frame that passes `client`'s link, in its direction(s), goes to a capture file; nothing is changed or held.

    path: created with mode 0644 or truncated. format: "pcap" (2.4, microseconds, as QEMU writes it) or "pcapng" (nanoseconds, an
    interface for each client, directions, dropped frames with their reason as comment); default: by the path's ending. maxlen:
    bytes kept of a frame. rotate_size, rotate_count: begin a new file before one grows beyond so many bytes, and keep so many
    finished ones: path.1, the newest, to path.N. drops: pcapng only.

    Stamps are the network's clock counted from the wall-clock time when the file was opened; with a VirtualClock they are that
    clock's own nanoseconds. All frames of one burst have one stamp, and are written by one system call.
    A write error is logged once and ends the capture, never the traffic. HostError: the file cannot be opened or written.
    """
    cdef DumpState s
    cdef Loop loop
    cdef readonly str path
    cdef readonly uint32_t maxlen

    def __cinit__(self, *args, **kwargs):
        self.s.pcap.fd = -1

    def __init__(self, NetClient client not None, path, *, str format="", uint32_t maxlen=65536, uint64_t rotate_size=0,
                 uint32_t rotate_count=8, bint drops=True):
        cdef timespec wall
        cdef int rc
        self.path = os.path.abspath(os.fspath(path))
        self.maxlen = maxlen
        self.loop = <Loop?>client.context
        if maxlen == 0:
            raise ValueError("maxlen must not be 0")
        if rotate_size and not 0 < rotate_count <= 1000:
            raise ValueError("rotate_count must be 1 to 1000")
        if not format:
            format = "pcapng" if self.path.endswith(".pcapng") else "pcap"
        if format not in ("pcap", "pcapng"):
            raise ValueError(f"format must be pcap or pcapng, not {format!r}")
        rc = qn_pcap_open(&self.s.pcap, os.fsencode(self.path), format == "pcapng", maxlen, rotate_size, rotate_count)
        if rc == 0:
            rc = name_slot(&self.s.pcap, SLOT_CLIENT, &client.nc)
        if rc < 0:
            qn_pcap_close(&self.s.pcap)
        check(rc, self.path)
        self.s.loop = &self.loop.loop
        self.s.drops = drops and format == "pcapng"
        if not self.s.loop.virtual_clock:
            clock_gettime(CLOCK_REALTIME, &wall)
            self.s.epoch = <int64_t>wall.tv_sec * 1000000000 + wall.tv_nsec - loop_now(self.s.loop)
        self.s.report.owner = <void *>self
        self.s.report.run = dump_report
        self.filter.ops = &dump_ops
        self.filter.opaque = &self.s
        self.filter.on = True

    def __dealloc__(self):
        self._close()

    def close(self):
        """Stop watching and close the file. Idempotent."""
        self._close()

    cdef void _close(self) noexcept:
        if self.s.loop == NULL:
            return
        context_enter_gil(self.s.loop.ctx)
        net_filter_remove(&self.filter)
        context_cancel(self.s.loop.ctx, &self.s.report)
        qn_pcap_close(&self.s.pcap)
        context_leave(self.s.loop.ctx)

    @property
    def format(self) -> str:
        return "pcapng" if self.s.pcap.ng else "pcap"

    @property
    def error(self) -> str | None:
        """What ended the capture, or None."""
        return os.strerror(self.s.pcap.error) if self.s.pcap.error else None

    @property
    def frames(self) -> int:
        """Records written, in all files; dropped frames have one more, with a comment."""
        return self.s.pcap.frames

    @property
    def missed(self) -> int:
        """Records not written: after a write error, or because a FIFO's reader was slow."""
        return self.s.pcap.missed

    @property
    def size(self) -> int:
        """Bytes in the current file."""
        return self.s.pcap.size

    @property
    def files(self) -> int:
        """Files begun: 1, and one more for each rotation."""
        return self.s.pcap.files

    @property
    def writes(self) -> int:
        """System calls that wrote."""
        return self.s.pcap.writes
