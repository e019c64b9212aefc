# distutils: language = c
"""Port: a client driven from Python, for tests. It checks that the core keeps the packet contract."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from qnet._context cimport context_enter, context_leave
from qnet._eth cimport ETH_ZLEN
from qnet._client cimport Context, NetClient
from qnet._fastpath cimport (GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, NET_BURST, NET_MAX_IOV, NET_MAX_PACKET,
                             OFF_NEEDS_CSUM, TAKE_CSUM, TAKE_ECN, TAKE_PLAIN, TAKE_TSO4, TAKE_TSO6, TAKE_UFO, TAKE_USO, NetClientOps,
                             NetClientState, Packet, net_flush, net_loopback, net_send)
from qnet._iov cimport iov_size, iovec
from qnet.testing._frames cimport Burst, Fifo, Frame, fifo_pop, fifo_put, frame_copy, frames_to_python

from qnet.testing._frames import takes_mask

cdef enum Reaction:                     # what a Port does from within its receive, after it took the frames
    KEEP
    ECHO                                # sends them back
    SEND                                # sends its backlog
    FLUSH                               # when full: makes room for another `capacity` frames and flushes
    REACTIONS

REACTION_NAMES = ("keep", "echo", "send", "flush")
assert len(REACTION_NAMES) == REACTIONS

cdef enum:                              # breaches of the contract that a Port saw as a receiver
    BREACH_RECURSED = 1
    BREACH_CALLED_WHEN_FULL = 2
    BREACH_IOV = 4
    BREACH_SIZE = 8
    BREACH_OFFLOAD = 16

BREACH_NAMES = {BREACH_RECURSED: "recursed", BREACH_CALLED_WHEN_FULL: "called-when-full", BREACH_IOV: "iov", BREACH_SIZE: "size",
                BREACH_OFFLOAD: "offload"}

cdef struct PortState:
    NetClientState *nc
    Fifo got
    Fifo backlog
    int64_t room                        # frames until "no room"; -1: no limit
    int64_t capacity
    int reaction
    bint owes_flush
    bint receiving
    bint pushing
    bint again
    uint32_t breaches
    uint64_t bursts
    uint64_t resumed
    uint64_t link_changes


cdef uint32_t breaches_of(const NetClientState *nc, const Packet *p) noexcept nogil:
    """What is wrong with a packet that was offered to `nc`."""
    cdef uint32_t r = 0
    cdef uint32_t needs = TAKE_PLAIN
    cdef uint32_t kind = p.off.gso_type & ~<uint32_t>GSO_ECN
    if p.iovcnt == 0 or p.iovcnt > NET_MAX_IOV:
        return BREACH_IOV
    if p.size == 0 or p.size > NET_MAX_PACKET or p.size < nc.min_frame or iov_size(p.iov, p.iovcnt) != p.size or \
            (p.size > nc.max_frame and p.off.gso_type == GSO_NONE):
        r |= BREACH_SIZE
    if p.off.flags & OFF_NEEDS_CSUM:
        needs |= TAKE_CSUM
    if p.off.gso_type & GSO_ECN:
        needs |= TAKE_ECN
    if kind == GSO_TCPV4:
        needs |= TAKE_TSO4
    elif kind == GSO_TCPV6:
        needs |= TAKE_TSO6
    elif kind == GSO_UDP_L4:
        needs |= TAKE_USO
    elif kind == GSO_UDP:
        needs |= TAKE_UFO
    elif kind != GSO_NONE:
        r |= BREACH_OFFLOAD
    if needs & ~nc.takes:
        r |= BREACH_OFFLOAD
    return r


cdef void port_push(PortState *s) noexcept nogil:
    """Send the backlog while the core takes it. May be entered again by resume: then only the outer call goes on."""
    cdef Packet pkts[NET_BURST]
    cdef Frame *f
    cdef uint32_t n
    cdef uint32_t k
    if s.pushing:
        s.again = True
        return
    s.pushing = True
    while s.backlog.head != NULL:
        n = 0
        f = s.backlog.head
        while n < NET_BURST and f != NULL:
            pkts[n] = f.pkt
            n += 1
            f = f.next
        s.again = False
        k = net_send(s.nc, pkts, n)
        fifo_pop(&s.backlog, k)
        if k < n and not s.again:
            break
    s.pushing = False


cdef uint32_t port_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef PortState *s = <PortState *>nc.opaque
    cdef uint32_t k = n
    cdef uint32_t i
    cdef Frame *f
    s.bursts += 1
    if s.receiving:
        s.breaches |= BREACH_RECURSED
    if s.owes_flush:
        s.breaches |= BREACH_CALLED_WHEN_FULL
    s.receiving = True
    if s.room >= 0 and s.room < k:
        k = <uint32_t>s.room
    for i in range(k):
        s.breaches |= breaches_of(nc, &pkts[i])
        f = frame_copy(&pkts[i])
        if f != NULL:
            fifo_put(&s.got, f)
    if s.room >= 0:
        s.room -= k
    if k and s.reaction == ECHO:
        net_send(nc, pkts, k)
    elif k and s.reaction == SEND:
        port_push(s)
    if s.reaction == FLUSH and s.room == 0:
        s.room = s.capacity
        net_flush(nc)
    elif k < n:
        s.owes_flush = True
    s.receiving = False
    return k


cdef bint port_can_receive(NetClientState *nc) noexcept nogil:
    return (<PortState *>nc.opaque).room != 0


cdef void port_resume(NetClientState *nc) noexcept nogil:
    cdef PortState *s = <PortState *>nc.opaque
    s.resumed += 1
    port_push(s)


cdef void port_link_status_changed(NetClientState *nc) noexcept nogil:
    (<PortState *>nc.opaque).link_changes += 1


cdef void port_cleanup(NetClientState *nc) noexcept nogil:
    fifo_pop(&(<PortState *>nc.opaque).backlog, 0xffffffff)


cdef NetClientOps port_ops = NetClientOps(
    receive=port_receive,
    can_receive=port_can_receive,
    resume=port_resume,
    link_status_changed=port_link_status_changed,
    cleanup=port_cleanup,
)

cdef NetClientOps port_ops_blunt = NetClientOps(
    receive=port_receive,
    can_receive=NULL,
    resume=port_resume,
    link_status_changed=port_link_status_changed,
    cleanup=port_cleanup,
)


@cython.no_gc_clear
cdef class Port(NetClient):
    """A client driven from Python.

    `capacity`: frames it takes until it has no room (None: no limit); room() gives it more. `asks`: it has a can_receive, else it
    finds out that it is full when a burst arrives. `takes`: words of TAKES. `reaction`: what it does from within its receive:
    "keep", "echo" (sends the frames back), "send" (sends its backlog), "flush" (when full, makes room for `capacity` frames and
    flushes at once). It checks that the core keeps the contract: see `breaches`.
    """
    cdef PortState s
    cdef list last_offloads

    def __init__(self, Context context not None, str name="", str model="port", *, capacity=None, bint asks=True,
                 bint flow_control=False, str takes="plain", uint32_t min_frame=0, uint32_t max_frame=NET_MAX_PACKET,
                 str reaction="keep", bint is_nic=False):
        super().__init__(context, name, model)
        self.s.nc = &self.nc
        self.s.room = self.s.capacity = -1 if capacity is None else capacity
        self.s.reaction = REACTION_NAMES.index(reaction)
        self._setup(&port_ops if asks else &port_ops_blunt, &self.s)
        self.nc.flow_control = flow_control
        self.nc.is_nic = is_nic
        self.nc.takes = takes_mask(takes)
        self.nc.max_frame = max_frame
        self.min_frame = min_frame
        self.last_offloads = []

    def __dealloc__(self):
        self._fini()
        fifo_pop(&self.s.got, 0xffffffff)

    def send(self, frames, offload=None) -> int:
        """Send frames in bursts; a frame is bytes, or a list of bytes: its pieces. `offload`: a dict of the Offload record's fields
        for all, or a list of them. Returns how many the core took; fewer than given only with flow control."""
        cdef Burst b = Burst(frames, offload)
        cdef uint32_t done = 0
        cdef uint32_t m
        cdef uint32_t k = 1
        with nogil:
            context_enter(self.nc.ctx)
            while done < b.n:
                m = b.n - done if b.n - done < NET_BURST else NET_BURST
                k = net_send(&self.nc, b.pkts + done, m)
                done += k
                if k < m:
                    break
            context_leave(self.nc.ctx)
        self.context.run_deferred()
        return done

    def send_claim(self, uint32_t size, uint32_t iovcnt=1) -> int:
        """Send one packet that claims `size` bytes in `iovcnt` pieces. Only 64 bytes in one piece are there: for sizes and counts
        that the core must refuse unread."""
        cdef uint8_t[64] data
        cdef iovec iov
        cdef Packet p
        cdef uint32_t k
        memset(data, 0, 64)
        memset(&p, 0, sizeof(p))
        iov.iov_base = data
        iov.iov_len = size
        p.iov = &iov
        p.iovcnt = iovcnt
        p.size = size
        with nogil:
            context_enter(self.nc.ctx)
            k = net_send(&self.nc, &p, 1)
            context_leave(self.nc.ctx)
        self.context.run_deferred()
        return k

    def loopback(self, frames, offload=None) -> int:
        """Receive own frames (S36)."""
        cdef Burst b = Burst(frames, offload)
        cdef uint32_t k
        if b.n > NET_BURST:
            raise ValueError(f"at most {NET_BURST} frames")
        with nogil:
            context_enter(self.nc.ctx)
            k = net_loopback(&self.nc, b.pkts, b.n)
            context_leave(self.nc.ctx)
        self.context.run_deferred()
        return k

    def post(self, frames, offload=None):
        """Put frames behind the backlog and send what the core takes; the rest follows by itself when it resumes this client."""
        cdef Burst b = Burst(frames, offload)
        cdef Frame *f
        cdef uint32_t i
        with nogil:
            context_enter(self.nc.ctx)
            for i in range(b.n):
                f = frame_copy(&b.pkts[i])
                if f != NULL:
                    fifo_put(&self.s.backlog, f)
            if not self.nc.blocked and self.s.reaction != SEND:
                port_push(&self.s)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def recv(self) -> list:
        """Frames received since the last call, as bytes; `offloads` then tells their Offload records."""
        cdef Frame *f
        with nogil:
            context_enter(self.nc.ctx)
            f = self.s.got.head
            self.s.got.head = NULL
            self.s.got.tail = NULL
            context_leave(self.nc.ctx)
        self.last_offloads = []
        return frames_to_python(f, self.last_offloads)

    def room(self, n):
        """Make room for n more frames and flush. None: without a limit. A port without limit has one from then on, n."""
        cdef int64_t more = -1 if n is None else n
        with nogil:
            context_enter(self.nc.ctx)
            self.s.room = more if more < 0 or self.s.room < 0 else self.s.room + more
            self.s.owes_flush = False
            net_flush(&self.nc)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def flush(self):
        """Say that there is room, true or not."""
        with nogil:
            context_enter(self.nc.ctx)
            self.s.owes_flush = False
            net_flush(&self.nc)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    @property
    def offloads(self) -> list:
        """The Offload records of the frames that the last recv() returned."""
        return self.last_offloads

    @property
    def capacity_left(self):
        """Frames it takes until it has no room; None: no limit."""
        return None if self.s.room < 0 else self.s.room

    @property
    def backlog(self) -> int:
        """Frames of post() that the core has not taken yet."""
        cdef int n = 0
        cdef Frame *f
        with nogil:
            context_enter(self.nc.ctx)
            f = self.s.backlog.head
            while f != NULL:
                n += 1
                f = f.next
            context_leave(self.nc.ctx)
        return n

    @property
    def breaches(self) -> list:
        """Breaches of the packet contract seen by this receiver, by name; empty unless the core is wrong."""
        return [name for bit, name in BREACH_NAMES.items() if self.s.breaches & bit]

    @property
    def bursts(self) -> int:
        """How often the core called receive."""
        return self.s.bursts

    @property
    def resumed(self) -> int:
        """How often the core said that there is room again."""
        return self.s.resumed

    @property
    def link_changes(self) -> int:
        return self.s.link_changes

    @property
    def blocked(self) -> bool:
        """Whether the core told this sender that there is no room, and has not resumed it since."""
        return bool(self.nc.blocked)

    @property
    def flow_control(self) -> bool:
        return bool(self.nc.flow_control)

    @flow_control.setter
    def flow_control(self, bint value):
        self.nc.flow_control = value

    @property
    def takes(self) -> int:
        """TAKE_* bits; set it with words of TAKES."""
        return self.nc.takes

    @takes.setter
    def takes(self, str value):
        self.nc.takes = takes_mask(value)

    @property
    def min_frame(self) -> int:
        return self.nc.min_frame

    @min_frame.setter
    def min_frame(self, uint32_t value):
        if value > ETH_ZLEN:
            raise ValueError(f"min_frame is at most {ETH_ZLEN}")
        self.nc.min_frame = value

    @property
    def max_frame(self) -> int:
        return self.nc.max_frame

    @max_frame.setter
    def max_frame(self, uint32_t value):
        self.nc.max_frame = value

    @property
    def reaction(self) -> str:
        return REACTION_NAMES[self.s.reaction]

    @reaction.setter
    def reaction(self, str value):
        self.s.reaction = REACTION_NAMES.index(value)
