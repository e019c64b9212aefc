# distutils: language = c
"""Gate, a net filter driven from Python, and probes that use the loop, guest memory and interrupt lines as a leaf does."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport read as posix_read, write as posix_write

from qnet._context cimport context_enter, context_leave
from qnet._client cimport Context, Filter, NetClient
from qnet._fastpath cimport (DROP_REASONS, FILTER_RX, FILTER_TX, NetClientState, NetFilter, NetFilterOps, Packet, net_filter_remove,
                             net_pass_to_next)
from qnet._host cimport GuestMemory, IrqLine, guest_map, guest_read, guest_write, irq_set
from qnet._loop cimport (Loop, Poller, Watch, poller_add, poller_remove, poller_touch, watch_add, watch_events, watch_init,
                         watch_remove)
from qnet.testing._frames cimport Fifo, Frame, fifo_pop, fifo_put, frame_copy

from qnet._client import DROP_NAMES
from qnet.errors import check

# ------------------------------------------------------------------------------------------------------------------- Gate

cdef enum Mode:
    PASS
    DROP
    HOLD
    LEAVE
    MODES

MODE_NAMES = ("pass", "drop", "hold", "leave")
assert len(MODE_NAMES) == MODES

cdef struct GateState:
    int mode
    Fifo held[4]                        # by direction
    uint64_t seen[4]
    uint64_t held_now
    uint64_t swallowed
    uint64_t dropped[DROP_REASONS]


cdef uint32_t gate_receive(NetFilter *f, NetClientState *sender, Packet *pkts, uint32_t n, bint tx) noexcept nogil:
    cdef GateState *s = <GateState *>f.opaque
    cdef int side = FILTER_TX if tx else FILTER_RX
    cdef uint32_t i
    cdef Frame *copy
    s.seen[side] += n
    if s.mode == DROP:
        s.swallowed += n
        return 0
    if s.mode == HOLD:
        for i in range(n):
            copy = frame_copy(&pkts[i])
            if copy != NULL:
                fifo_put(&s.held[side], copy)
        s.held_now += n
        return 0
    if s.mode == LEAVE:
        net_filter_remove(f)
    return n


cdef void gate_dropped(NetFilter *f, const Packet *pkts, uint32_t n, bint tx, int reason) noexcept nogil:
    (<GateState *>f.opaque).dropped[reason] += n


cdef void gate_status_changed(NetFilter *f) noexcept nogil:
    if not f.on:
        gate_release(f, FILTER_TX)
        gate_release(f, FILTER_RX)


cdef uint32_t gate_release(NetFilter *f, int side) noexcept nogil:
    """Let go of what is held, in order. Without a link it is lost."""
    cdef GateState *s = <GateState *>f.opaque
    cdef Fifo held = s.held[side]
    cdef Frame *it = held.head
    cdef NetClientState *sender = NULL
    cdef uint32_t n = 0
    memset(&s.held[side], 0, sizeof(Fifo))
    if f.client != NULL:
        sender = f.client if side == FILTER_TX else f.client.peer
    while it != NULL:
        s.held_now -= 1
        if sender != NULL:
            n += net_pass_to_next(f, sender, &it.pkt, 1)
        else:
            s.swallowed += 1
        it = it.next
    fifo_pop(&held, 0xffffffff)
    return n


cdef NetFilterOps gate_ops = NetFilterOps(
    receive=gate_receive,
    dropped=gate_dropped,
    status_changed=gate_status_changed,
)


@cython.no_gc_clear
cdef class Gate(Filter):
    """A filter that passes what it sees, drops it, holds it until release(), or leaves: removes itself from within its receive, and
    passes. Switched off, it lets go of what it holds."""
    cdef GateState s

    def __init__(self, NetClient client not None, str mode="pass"):
        memset(&self.s, 0, sizeof(self.s))
        self.filter.ops = &gate_ops
        self.filter.opaque = &self.s
        self.filter.on = True
        self.mode = mode

    def __dealloc__(self):
        self._fini()
        fifo_pop(&self.s.held[FILTER_TX], 0xffffffff)
        fifo_pop(&self.s.held[FILTER_RX], 0xffffffff)

    @property
    def mode(self) -> str:
        return MODE_NAMES[self.s.mode]

    @mode.setter
    def mode(self, str value):
        self.s.mode = MODE_NAMES.index(value)

    def release(self) -> int:
        """Pass on what is held, first what the client sent, then what is sent to it. Number of packets."""
        cdef uint32_t n
        with nogil:
            context_enter(&self.client.context.ctx)
            n = gate_release(&self.filter, FILTER_TX)
            n += gate_release(&self.filter, FILTER_RX)
            context_leave(&self.client.context.ctx)
        self.client.context.run_deferred()
        return n

    @property
    def seen(self) -> tuple:
        """Packets seen, (tx, rx) from the client's view."""
        return self.s.seen[FILTER_TX], self.s.seen[FILTER_RX]

    @property
    def held(self) -> int:
        """Packets that wait for release()."""
        return self.s.held_now

    @property
    def swallowed(self) -> int:
        """Packets that went no further: dropped by this filter, or released when there was no link."""
        return self.s.swallowed

    @property
    def dropped(self) -> dict:
        """Packets of this link that the filter was told were dropped, by reason."""
        return {name: self.s.dropped[i] for i, name in enumerate(DROP_NAMES) if self.s.dropped[i]}

    @property
    def inserted(self) -> bool:
        return self.filter.client != NULL


# -------------------------------------------------------------------------------------------------------------- FdProbe

cdef struct FdState:
    Watch watch
    Watch *victim
    bint reads
    uint64_t calls
    uint64_t bytes
    uint32_t last


cdef void fd_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef FdState *s = <FdState *>opaque
    cdef uint8_t[4096] buf
    cdef ssize_t n
    s.calls += 1
    s.last = ready
    if s.victim != NULL:
        watch_remove(s.victim)
        s.victim = NULL
    if s.reads:
        n = posix_read(s.watch.fd, buf, sizeof(buf))
        if n > 0:
            s.bytes += n


@cython.no_gc_clear
cdef class FdProbe:
    """Watches a file descriptor as a backend does. `reads`: it reads 4096 bytes at each call, else it only counts. OSError when
    it cannot be watched."""
    cdef FdState s
    cdef Loop loop
    cdef FdProbe _victim

    def __init__(self, Loop loop not None, int fd, uint32_t events=1, bint reads=True):
        cdef int rc
        memset(&self.s, 0, sizeof(self.s))
        self.loop = loop
        self.s.reads = reads
        watch_init(&self.s.watch, &loop.loop, fd_ready, &self.s)
        with nogil:
            context_enter(&loop.ctx)
            rc = watch_add(&self.s.watch, fd, events)
            context_leave(&loop.ctx)
        check(rc, "cannot watch")

    def events(self, uint32_t events):
        """Wait for other events. OSError when the fd is not watched any more."""
        cdef int rc
        with nogil:
            context_enter(&self.loop.ctx)
            rc = watch_events(&self.s.watch, events)
            context_leave(&self.loop.ctx)
        check(rc, "cannot watch")

    def kill(self, FdProbe victim not None):
        """At the next event, stop watching `victim`'s fd from within the callback."""
        self._victim = victim
        self.s.victim = &victim.s.watch

    def close(self):
        with nogil:
            context_enter(&self.loop.ctx)
            watch_remove(&self.s.watch)
            context_leave(&self.loop.ctx)

    def __dealloc__(self):
        if self.loop is not None and self.s.watch.fd >= 0:
            self.close()

    @property
    def calls(self) -> int:
        return self.s.calls

    @property
    def bytes(self) -> int:
        return self.s.bytes

    @property
    def last(self) -> int:
        """The events of the last call."""
        return self.s.last

    @property
    def watched(self) -> bool:
        return self.s.watch.fd >= 0


cdef struct PollState:
    Poller poller
    uint64_t prepared


cdef void poll_prepare(void *opaque) noexcept nogil:
    (<PollState *>opaque).prepared += 1


@cython.no_gc_clear
cdef class PollProbe:
    """A poller that counts how often it was asked to bring its watches up to date."""
    cdef PollState s
    cdef Loop loop

    def __init__(self, Loop loop not None):
        memset(&self.s, 0, sizeof(self.s))
        self.loop = loop
        with nogil:
            context_enter(&loop.ctx)
            poller_add(&self.s.poller, &loop.loop, poll_prepare, &self.s)
            context_leave(&loop.ctx)

    def touch(self, uint32_t times=1):
        """Touch it `times` times under one hold of the lock."""
        cdef uint32_t _i
        with nogil:
            context_enter(&self.loop.ctx)
            for _i in range(times):
                poller_touch(&self.s.poller)
            context_leave(&self.loop.ctx)

    def close(self):
        with nogil:
            context_enter(&self.loop.ctx)
            poller_remove(&self.s.poller)
            context_leave(&self.loop.ctx)

    def __dealloc__(self):
        if self.loop is not None:
            self.close()

    @property
    def prepared(self) -> int:
        return self.s.prepared


# ------------------------------------------------------------------------------------------------------------ DeviceProbe

@cython.no_gc_clear
cdef class DeviceProbe:
    """Uses an interrupt line and guest memory as a device model does: under the network's lock, without the GIL."""
    cdef Context context
    cdef GuestMemory memory
    cdef IrqLine irq

    def __init__(self, Context context not None, GuestMemory memory=None, IrqLine irq=None):
        self.context = context
        self.memory = memory
        self.irq = irq
        if irq is not None:
            irq.attach(&context.ctx, context)
        if memory is not None:
            memory.attach(&context.ctx, context)

    def set_irq(self, int level):
        """Move the line; the VMM is told before this returns, unless another thread is telling it already."""
        with nogil:
            context_enter(&self.context.ctx)
            irq_set(&self.irq.irq, level)
            context_leave(&self.context.ctx)
        self.context.run_deferred()

    def dma_read(self, uint64_t gpa, size_t n):
        """Bytes, or None when they are not all guest memory."""
        cdef bytearray out = bytearray(n)
        cdef void *to = <void *><char *>out
        cdef bint ok
        with nogil:
            context_enter(&self.context.ctx)
            ok = guest_read(&self.memory.mem, gpa, to, n)
            context_leave(&self.context.ctx)
        self.context.run_deferred()
        return bytes(out) if ok else None

    def dma_write(self, uint64_t gpa, bytes data not None) -> bool:
        cdef const void *src = <const void *><char *>data
        cdef size_t n = len(data)
        cdef bint ok
        with nogil:
            context_enter(&self.context.ctx)
            ok = guest_write(&self.memory.mem, gpa, src, n)
            context_leave(&self.context.ctx)
        self.context.run_deferred()
        return ok

    def dma_write_slowly(self, uint64_t gpa, bytes data not None, int begun, int go):
        """Write in place; before the first byte, when all is mapped: write a byte to fd `begun`, wait for one from fd `go`."""
        cdef const char *src = data
        cdef size_t n = len(data)
        cdef char token = 0
        cdef void *p
        with nogil:
            context_enter(&self.context.ctx)
            p = guest_map(&self.memory.mem, gpa, n, True)
            if posix_write(begun, &token, 1) == 1:
                posix_read(go, &token, 1)
            if p != NULL:
                memcpy(p, src, n)
            context_leave(&self.context.ctx)

    def can_map(self, uint64_t gpa, uint64_t n, bint write=False) -> bool:
        """Whether the range can be used in place."""
        cdef void *p
        with nogil:
            context_enter(&self.context.ctx)
            p = guest_map(&self.memory.mem, gpa, n, write)
            context_leave(&self.context.ctx)
        return p != NULL
