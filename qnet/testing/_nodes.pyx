# distutils: language = c
"""Source, Sink and LoopBack: packets made, eaten and sent back without the GIL, for tests and benches."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from qnet._context cimport context_enter, context_leave
from qnet._client cimport Context, NetClient
from qnet._fastpath cimport NET_BURST, NET_MAX_PACKET, NetClientOps, NetClientState, Offload, Packet, net_send
from qnet._iov cimport iov_gather, iovec
from qnet.testing._frames cimport fill_offload

from qnet.testing._frames import takes_mask

cdef enum:
    SEQ_AT = 14                         # a Source's frame: Ethernet header, then its number, 8 bytes in the host's byte order
    MIN_SIZE = 22
    PIECES = 4


# ----------------------------------------------------------------------------------------------------------------- Source

cdef struct SourceState:
    NetClientState *nc
    uint8_t *memory                     # NET_BURST frames
    Packet pkts[NET_BURST]
    iovec iov[NET_BURST][PIECES]
    uint32_t burst
    bint numbered
    uint64_t wanted                     # packets still to send
    uint64_t sent
    bint pushing
    bint again


cdef bint source_push(SourceState *s) noexcept nogil:
    """Send one burst. False: nothing left, or no room now. May be entered again by resume: then the outer call goes on."""
    cdef uint32_t m
    cdef uint32_t k
    cdef uint32_t i
    cdef uint64_t number
    if s.pushing:
        s.again = True
        return False
    m = s.burst if s.wanted > s.burst else <uint32_t>s.wanted
    if m == 0:
        return False
    s.pushing = True
    s.again = False
    if s.numbered:
        for i in range(m):
            number = s.sent + i
            memcpy(<uint8_t *>s.iov[i][0].iov_base + SEQ_AT, &number, 8)
    k = net_send(s.nc, s.pkts, m)
    s.sent += k
    s.wanted -= k
    s.pushing = False
    return k == m or s.again


cdef void source_resume(NetClientState *nc) noexcept nogil:
    while source_push(<SourceState *>nc.opaque):
        pass


cdef uint32_t swallow(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    return n


cdef NetClientOps source_ops = NetClientOps(
    receive=swallow,
    can_receive=NULL,
    resume=source_resume,
    link_status_changed=NULL,
    cleanup=NULL,
)


@cython.no_gc_clear
cdef class Source(NetClient):
    """Sends numbered frames of one size from memory laid out once; drops what it is sent.

    `size`: bytes of a frame, 22 at least. `pieces`: elements of each frame's iovec array, 1 to 4. `frame`: the bytes after which
    each frame is made (bytes 14 to 22 become its number unless `numbered` is off), else a broadcast of ethertype 0x88B5 (IEEE 802
    local experimental).
    `offload`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset. With flow control it stops while the peer has no room.
    Driven by one thread at a time.
    """
    cdef SourceState s
    cdef readonly uint32_t size

    def __init__(self, Context context not None, str name="", str model="source", *, uint32_t size=60, uint32_t pieces=1, frame=None,
                 bint numbered=True, bint flow_control=False, dict offload=None):
        cdef Offload off
        cdef uint32_t i
        cdef uint32_t j
        cdef uint32_t cut
        cdef uint8_t *data
        super().__init__(context, name, model)
        if frame is None:
            frame = b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01\x88\xb5" + bytes(range(256)) * (size // 256 + 1)
            frame = frame[:size]
        cdef bytes template = frame
        self.size = <uint32_t>len(template)
        if not MIN_SIZE <= self.size <= NET_MAX_PACKET:
            raise ValueError(f"a frame has {MIN_SIZE} to {NET_MAX_PACKET} bytes, not {self.size}")
        if not 1 <= pieces <= PIECES:
            raise ValueError(f"a frame has 1 to {PIECES} pieces, not {pieces}")
        fill_offload(&off, offload)
        self.s.nc = &self.nc
        self.s.numbered = numbered
        self.s.memory = <uint8_t *>calloc(NET_BURST, self.size)
        if self.s.memory == NULL:
            raise MemoryError
        for i in range(<uint32_t>NET_BURST):
            data = self.s.memory + <size_t>i * self.size
            memcpy(data, <char *>template, self.size)
            cut = MIN_SIZE if pieces > 1 else self.size
            for j in range(pieces):
                self.s.iov[i][j].iov_base = data
                self.s.iov[i][j].iov_len = cut
                data += cut
                cut = (self.size - MIN_SIZE) // (pieces - 1) if j + 2 < pieces else self.size - <uint32_t>(
                    data - self.s.memory - <size_t>i * self.size)
            self.s.pkts[i].iov = self.s.iov[i]
            self.s.pkts[i].iovcnt = pieces
            self.s.pkts[i].size = self.size
            self.s.pkts[i].off = off
        self._setup(&source_ops, &self.s)
        self.nc.flow_control = flow_control

    def __dealloc__(self):
        self._fini()
        free(self.s.memory)

    def drive(self, uint64_t n, uint32_t burst=NET_BURST) -> int:
        """Send n more frames, `burst` (1 to 64) at a time, taking the network's lock for each burst. Returns how many went during the
        call; those that found no room (flow control) are `pending` and follow when the peer has room."""
        cdef uint64_t before = self.s.sent
        cdef bint more = True
        if not 1 <= burst <= NET_BURST:
            raise ValueError(f"a burst has 1 to {NET_BURST} packets, not {burst}")
        with nogil:
            context_enter(self.nc.ctx)
            self.s.burst = burst
            self.s.wanted += n
            context_leave(self.nc.ctx)
            while more:
                context_enter(self.nc.ctx)
                more = source_push(&self.s)
                context_leave(self.nc.ctx)
        self.context.run_deferred()
        return self.s.sent - before

    @property
    def pending(self) -> int:
        """Frames that wait for the peer to have room."""
        return self.s.wanted

    @property
    def sent(self) -> int:
        """Frames taken by the core so far; also the next frame's number."""
        return self.s.sent


# ------------------------------------------------------------------------------------------------------------------- Sink

cdef struct SinkState:
    bint checksum
    bint numbered
    uint64_t packets
    uint64_t bytes
    uint64_t sum
    uint64_t next
    uint64_t misordered


cdef uint64_t sum_bytes(const Packet *p) noexcept nogil:
    cdef uint64_t sum = 0
    cdef const uint8_t *data
    cdef size_t j
    cdef uint32_t i
    for i in range(p.iovcnt):
        data = <const uint8_t *>p.iov[i].iov_base
        for j in range(p.iov[i].iov_len):
            sum += data[j]
    return sum


cdef uint32_t sink_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef SinkState *s = <SinkState *>nc.opaque
    cdef uint32_t i
    cdef uint64_t number
    s.packets += n
    for i in range(n):
        s.bytes += pkts[i].size
    if s.checksum:
        for i in range(n):
            s.sum += sum_bytes(&pkts[i])
    if s.numbered:
        for i in range(n):
            if iov_gather(pkts[i].iov, pkts[i].iovcnt, SEQ_AT, &number, 8) < 8 or number < s.next:
                s.misordered += 1
            else:
                s.next = number + 1
    return n


cdef NetClientOps sink_ops = NetClientOps(
    receive=sink_receive,
    can_receive=NULL,
    resume=NULL,
    link_status_changed=NULL,
    cleanup=NULL,
)


@cython.no_gc_clear
cdef class Sink(NetClient):
    """Takes every packet and counts. `takes`: words of TAKES, what it wants without repair. `checksum`: adds up every byte, so that
    `sum` proves they were seen. `numbered`: checks that the numbers of a Source's frames ascend."""
    cdef SinkState s

    def __init__(self, Context context not None, str name="", str model="sink", *, str takes="all", bint checksum=False,
                 bint numbered=False, uint32_t max_frame=NET_MAX_PACKET):
        super().__init__(context, name, model)
        memset(&self.s, 0, sizeof(self.s))
        self.s.checksum = checksum
        self.s.numbered = numbered
        self._setup(&sink_ops, &self.s)
        self.nc.takes = takes_mask(takes)
        self.nc.max_frame = max_frame

    def __dealloc__(self):
        self._fini()

    @property
    def packets(self) -> int:
        return self.s.packets

    @property
    def bytes(self) -> int:
        return self.s.bytes

    @property
    def sum(self) -> int:
        """All bytes of all frames added up, modulo 2^64."""
        return self.s.sum

    @property
    def misordered(self) -> int:
        """Frames that came after one with their number or a greater one."""
        return self.s.misordered


# --------------------------------------------------------------------------------------------------------------- LoopBack

cdef uint32_t loopback_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    net_send(nc, pkts, n)
    return n


cdef NetClientOps loopback_ops = NetClientOps(
    receive=loopback_receive,
    can_receive=NULL,
    resume=NULL,
    link_status_changed=NULL,
    cleanup=NULL,
)


@cython.no_gc_clear
cdef class LoopBack(NetClient):
    """Sends back every packet from within its receive, as it is."""

    def __init__(self, Context context not None, str name="", str model="loopback", *, str takes="all"):
        super().__init__(context, name, model)
        self._setup(&loopback_ops, NULL)
        self.nc.takes = takes_mask(takes)

    def __dealloc__(self):
        self._fini()
