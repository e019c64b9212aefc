"""The legacy `dump` netdev: a client that writes every frame it receives to a capture file. It is put on a hub and sends nothing."""
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from qnet._context cimport Deferred, context_cancel, context_defer
from qnet._client cimport NetClient
from qnet._fastpath cimport NET_BURST, TAKE_ALL, NetClientOps, NetClientState, Packet
from qnet._iov cimport iovec
from qnet._loop cimport Loop, LoopState, loop_now

import logging
import os

from qnet.errors import check

cdef extern from "pcap.h" nogil:
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
        uint64_t frames
        uint64_t missed
        uint64_t writes
    int qn_pcap_open(qn_pcap *p, const char *path, int ng, uint32_t snaplen, uint64_t rotate_size, unsigned rotate_count)
    int qn_pcap_name(qn_pcap *p, unsigned slot, const char *name)
    int qn_pcap_write(qn_pcap *p, int64_t ns, const qn_pcap_record *recs, unsigned n)
    void qn_pcap_close(qn_pcap *p)

log = logging.getLogger("qnet.dump")

cdef struct DumpState:
    qn_pcap pcap
    LoopState *loop
    int64_t epoch                   # what to add to the network's clock for nanoseconds since 1970
    Deferred report


cdef uint32_t dump_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef DumpState *s = <DumpState *>nc.opaque
    cdef qn_pcap_record[NET_BURST] recs
    cdef int64_t now = s.epoch + loop_now(s.loop)
    cdef uint32_t done = 0
    cdef uint32_t m
    cdef uint32_t i
    cdef int rc = 0
    while done < n:
        m = n - done if n - done < NET_BURST else NET_BURST
        for i in range(m):
            recs[i].iov = pkts[done + i].iov
            recs[i].iovcnt = pkts[done + i].iovcnt
            recs[i].size = pkts[done + i].size
            recs[i].slot = 0
            recs[i].direction = 0
            recs[i].comment = NULL
        rc |= qn_pcap_write(&s.pcap, now, recs, m)
        done += m
    if rc < 0:
        context_defer(nc.ctx, &s.report)
    return n


cdef void dump_cleanup(NetClientState *nc) noexcept nogil:
    cdef DumpState *s = <DumpState *>nc.opaque
    context_cancel(nc.ctx, &s.report)
    qn_pcap_close(&s.pcap)


cdef void dump_report(void *owner) noexcept:
    cdef DumpClient self = <DumpClient>owner
    log.error("network dump write error - stopping dump: %s: %s", self.path, os.strerror(self.s.pcap.error))


cdef NetClientOps dump_ops = NetClientOps(
    receive=dump_receive,
    can_receive=NULL,
    resume=NULL,
    link_status_changed=NULL,
    cleanup=dump_cleanup,
)


@cython.no_gc_clear
cdef class DumpClient(NetClient):
    """Writes what it receives to `path`: pcap, or pcapng when the path ends in .pcapng. maxlen: bytes kept of a frame.

    Stamps, write errors and offload records as with filter-dump. HostError: the file cannot be opened or written.
    """
    cdef DumpState s
    cdef Loop loop
    cdef readonly str path
    cdef readonly uint32_t maxlen

    def __cinit__(self, *args, **kwargs):
        self.s.pcap.fd = -1

    def __init__(self, Loop loop not None, str name, path, *, uint32_t maxlen=65536):
        cdef timespec wall
        cdef int rc
        super().__init__(loop, name, "dump")
        self.loop = loop
        self.path = os.path.abspath(os.fspath(path))
        self.maxlen = maxlen
        if maxlen == 0:
            raise ValueError("maxlen must not be 0")
        rc = qn_pcap_open(&self.s.pcap, os.fsencode(self.path), self.path.endswith(".pcapng"), maxlen, 0, 0)
        if rc == 0:
            rc = qn_pcap_name(&self.s.pcap, 0, os.fsencode(name or "dump"))
        if rc < 0:
            qn_pcap_close(&self.s.pcap)
        check(rc, self.path)
        self.s.loop = &loop.loop
        if not loop.loop.virtual_clock:
            clock_gettime(CLOCK_REALTIME, &wall)
            self.s.epoch = <int64_t>wall.tv_sec * 1000000000 + wall.tv_nsec - loop_now(&loop.loop)
        self.s.report.owner = <void *>self
        self.s.report.run = dump_report
        self._setup(&dump_ops, &self.s)
        self.nc.takes = TAKE_ALL                # a capture shows frames as they were sent
        self.info_str = f"dump to {self.path} (len={maxlen})"

    def __dealloc__(self):
        self._fini()

    @property
    def error(self) -> str | None:
        """What ended the capture, or None."""
        return os.strerror(self.s.pcap.error) if self.s.pcap.error else None

    @property
    def frames(self) -> int:
        """Records written."""
        return self.s.pcap.frames

    @property
    def missed(self) -> int:
        """Records not written: after a write error, or because a FIFO's reader was slow."""
        return self.s.pcap.missed

    @property
    def writes(self) -> int:
        """System calls that wrote."""
        return self.s.pcap.writes
