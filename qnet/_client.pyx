# distutils: language = c
"""What Python sees of the packet core: the network's ground, and the classes that own clients and filters.

A leaf subclasses NetClient or Filter and fills in the ops; Python names, pairs, watches and closes it.
"""
cimport cython
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.unicode cimport PyUnicode_AsUTF8
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from qnet._context cimport (Deferred, NetContext, context_enter, context_enter_gil, context_leave, pthread_mutex_destroy,
                            pthread_mutex_init, pthread_mutex_unlock)
from qnet._fastpath cimport (DROP_REASONS, FILTER_ALL, FILTER_RX, FILTER_TX, TAKE_ALL, TAKE_PLAIN, NetClientOps, NetFilter, NetStats,
                             net_can_receive, net_client_fini, net_client_init, net_filter_insert, net_filter_remove, net_flush,
                             net_pair, net_purge, net_set_link, net_unpair, null_ops)

DROP_NAMES = ("no-peer", "link-down", "empty", "oversize", "bad-offload", "queue-full", "purged", "disabled", "address",
              "no-buffer", "dma", "malformed", "io")
assert len(DROP_NAMES) == DROP_REASONS

cdef int live_clients = 0


def live() -> int:
    """Clients that exist in this process, closed or not: a leak check for tests."""
    return live_clients


cdef void nothing_leaving(NetContext *ctx) noexcept nogil:
    ctx.dirty = False


cdef class Context:
    """The ground of one network: lock, run state, deferred work. `qnet._loop.Loop` adds fds, timers and a clock."""

    def __cinit__(self, *args, **kwargs):
        memset(&self.ctx, 0, sizeof(self.ctx))
        pthread_mutex_init(&self.ctx.lock, NULL)
        self.ctx.running = True
        self.ctx.leaving = nothing_leaving

    def __dealloc__(self):
        pthread_mutex_destroy(&self.ctx.lock)

    cdef void run_deferred(self) noexcept:
        """Run what the packet path left for Python. With the GIL, without the lock; the owner stays alive meanwhile."""
        cdef Deferred *node
        cdef object owner
        if self.holder and self.holder == <uint64_t>PyThread_get_thread_ident():
            return
        while self.ctx.first != NULL:
            context_enter_gil(&self.ctx)
            node = self.ctx.first
            if node != NULL:
                self.ctx.first = node.next
                if node.next == NULL:
                    self.ctx.last = NULL
                node.queued = False
                owner = None
                if (<PyObject *>node.owner).ob_refcnt > 0:              # 0: it waits for the lock to cancel this
                    owner = <object>node.owner      # taken before the lock is dropped: cancel needs the lock
            pthread_mutex_unlock(&self.ctx.lock)
            if node == NULL:
                return
            if owner is not None:
                node.run(<void *>owner)

    def hold(self, bint on):
        """While held, the calling thread runs no callables: it has a lock of its own. One thread at a time. Then run_callables()."""
        self.holder = <uint64_t>PyThread_get_thread_ident() if on else 0

    def run_callables(self):
        """Call what the packet path left for Python: interrupt lines, timers, frames for Python."""
        self.run_deferred()

    @property
    def running(self) -> bool:
        """Whether receivers take packets: False while the VM is stopped (S17)."""
        return self.ctx.running

    @running.setter
    def running(self, bint value):
        with nogil:
            context_enter(&self.ctx)
            self.ctx.running = value
            context_leave(&self.ctx)
        self.run_deferred()

    @property
    def allocations(self) -> int:
        """Queue nodes ever allocated: stands still while nothing queues."""
        return self.ctx.allocations

    @property
    def queued(self) -> int:
        """Packets in queues now."""
        return self.ctx.queued


@cython.no_gc_clear
cdef class NetClient:
    """One end of a link (S1 to S8). Leaves subclass it and fill in the ops; Python names, pairs, watches and closes it.

    `name` is the id users gave or `model.n`; `model` the kind ("user", "hubport", "e1000"). Everything is safe to call from any
    thread. A closed client stays a valid object: it has no peer and drops what it is sent. Peers keep each other alive; two that
    nobody else knows go with the next garbage collection.
    """

    def __cinit__(self, Context context not None, *args, **kwargs):
        global live_clients
        live_clients += 1
        self.context = context
        net_client_init(&self.nc, &context.ctx, &null_ops, NULL)

    def __init__(self, Context context not None, str name="", str model="", **kwargs):
        self.name = name
        self.nc.name = PyUnicode_AsUTF8(name)       # lives as long as the str
        self.model = model
        self.info_str = ""

    cdef int _setup(self, const NetClientOps *ops, void *opaque) except -1:
        """A leaf's constructor says what the client is. Before it is paired, so without the lock."""
        self.nc.ops = ops
        self.nc.opaque = opaque
        return 0

    def __del__(self):
        """Peers keep each other alive. When nobody else knows of either, the garbage collector calls this while both are whole: they
        are unpaired, and each goes its own way. It may run anywhere, so it calls nothing of Python's."""
        cdef NetClient other = self._peer
        if other is None:
            return
        context_enter_gil(&self.context.ctx)
        net_unpair(&self.nc)
        context_leave(&self.context.ctx)
        other._peer = None
        self._peer = None

    def __dealloc__(self):
        global live_clients
        if self.nc.ops != NULL:         # else the constructor's arguments were refused
            live_clients -= 1
        self._fini()

    cdef void _fini(self) noexcept:
        if self.closed or self.nc.ops == NULL:
            return
        self.closed = True
        context_enter_gil(&self.context.ctx)
        if self.nc.ops.cleanup != NULL:
            self.nc.ops.cleanup(&self.nc)
        net_client_fini(&self.nc)
        self.nc.ops = &null_ops
        context_leave(&self.context.ctx)

    def __repr__(self):
        return f"<{type(self).__name__} {self.name!r} model={self.model!r}>"

    @property
    def peer(self):
        """The client at the other end of the link, or None."""
        return self._peer

    @property
    def link_down(self) -> bool:
        return bool(self.nc.link_down)

    @property
    def is_nic(self) -> bool:
        return bool(self.nc.is_nic)

    @property
    def queued(self) -> int:
        """Packets waiting for this client."""
        return self.nc.queue.count

    @property
    def can_receive(self) -> bool:
        """Whether a packet sent to this client would be delivered now."""
        cdef bint r
        with nogil:
            context_enter(self.nc.ctx)
            r = net_can_receive(&self.nc)
            context_leave(self.nc.ctx)
        return r

    @property
    def queue_limits(self):
        """(packets, bytes) that may wait for this client; more is dropped as "queue-full"."""
        return self.nc.queue.max_packets, self.nc.queue.max_bytes

    @queue_limits.setter
    def queue_limits(self, limits):
        cdef uint32_t packets = limits[0]
        cdef uint64_t nbytes = limits[1]
        with nogil:
            context_enter(self.nc.ctx)
            self.nc.queue.max_packets = packets
            self.nc.queue.max_bytes = nbytes
            context_leave(self.nc.ctx)

    def pair(self, NetClient other not None):
        """Link two free clients of one network (S3). ValueError when either has a peer or they belong to different networks."""
        cdef bint vacant
        if other is self or other.context is not self.context:
            raise ValueError("peers must be two clients of one network")
        if self.closed or other.closed:
            raise ValueError("client is closed")
        with nogil:
            context_enter(self.nc.ctx)
            vacant = self.nc.peer == NULL and other.nc.peer == NULL
            if vacant:
                net_pair(&self.nc, &other.nc)
            context_leave(self.nc.ctx)
        if not vacant:
            raise ValueError(f"{(self if self._peer is not None else other).name!r} has a peer already")
        self._peer = other
        other._peer = self

    def unpair(self):
        """Undo pair; packets under way between the two are dropped as "purged"."""
        cdef NetClient other = self._peer
        with nogil:
            context_enter(self.nc.ctx)
            net_unpair(&self.nc)
            context_leave(self.nc.ctx)
        if other is not None:
            other._peer = None
        self._peer = None
        self.context.run_deferred()

    def set_link(self, bint up):
        """Set this client's link up or down and tell both sides (S55)."""
        with nogil:
            context_enter(self.nc.ctx)
            net_set_link(&self.nc, up)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def flush(self):
        """Deliver what waits for this client, as if it had said that it has room (S31)."""
        with nogil:
            context_enter(self.nc.ctx)
            net_flush(&self.nc)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def purge(self) -> int:
        """Drop what this client sent and its peer has not received (S34); number of packets."""
        cdef uint32_t n = 0
        with nogil:
            context_enter(self.nc.ctx)
            if self.nc.peer != NULL:
                n = net_purge(self.nc.peer, &self.nc)
            context_leave(self.nc.ctx)
        self.context.run_deferred()
        return n

    def stats(self) -> dict:
        """Counters since creation: tx_packets, tx_bytes, rx_packets, rx_bytes (seen from this client), syscalls, wakeups, queued,
        and drops by reason (only those that happened)."""
        cdef NetStats s
        cdef uint32_t queued
        with nogil:
            context_enter(self.nc.ctx)
            s = self.nc.stats
            queued = self.nc.queue.count
            context_leave(self.nc.ctx)
        return {
            "tx_packets": s.tx_packets, "tx_bytes": s.tx_bytes, "rx_packets": s.rx_packets, "rx_bytes": s.rx_bytes,
            "syscalls": s.syscalls, "wakeups": s.wakeups, "queued": queued,
            "drops": {name: s.drops[i] for i, name in enumerate(DROP_NAMES) if s.drops[i]},
        }

    def close(self):
        """Unpair, drop the queue and let go of what the client holds on the host. Idempotent."""
        cdef NetClient other = self._peer
        self._fini()
        if other is not None:
            other._peer = None
        self._peer = None
        self.context.run_deferred()


@cython.no_gc_clear
cdef class Filter:
    """A net filter (F1 to F6): watches one client's link. Leaves fill in the ops; Python places it and switches it."""

    def __cinit__(self, NetClient client not None, *args, **kwargs):
        self.client = client

    def __dealloc__(self):
        self._fini()

    cdef void _fini(self) noexcept:
        if self.filter.client != NULL:
            context_enter_gil(&self.client.context.ctx)
            net_filter_remove(&self.filter)
            context_leave(&self.client.context.ctx)

    def insert(self, str queue="all", Filter before=None):
        """Start watching: `queue` is "all", "rx" or "tx" from the client's view (F2); in front of `before`, or last."""
        cdef NetFilter *b = NULL if before is None else &before.filter
        if self.filter.ops == NULL or self.filter.client != NULL:
            raise ValueError("filter is not ready, or inserted already")
        if before is not None and before.filter.client != &self.client.nc:
            raise ValueError("the two filters watch different clients")
        self.filter.direction = {"all": FILTER_ALL, "rx": FILTER_RX, "tx": FILTER_TX}[queue]
        with nogil:
            context_enter(self.client.nc.ctx)
            net_filter_insert(&self.filter, &self.client.nc, b)
            context_leave(self.client.nc.ctx)

    def remove(self):
        """Stop watching. Idempotent."""
        with nogil:
            context_enter(self.client.nc.ctx)
            net_filter_remove(&self.filter)
            context_leave(self.client.nc.ctx)
        self.client.context.run_deferred()

    @property
    def on(self) -> bool:
        """status=on|off: a filter that is off lets everything pass (F4)."""
        return bool(self.filter.on)

    @on.setter
    def on(self, bint value):
        with nogil:
            context_enter(self.client.nc.ctx)
            if self.filter.on != value:
                self.filter.on = value
                if self.filter.ops.status_changed != NULL:
                    self.filter.ops.status_changed(&self.filter)
            context_leave(self.client.nc.ctx)
        self.client.context.run_deferred()


cdef class NullClient(NetClient):
    """Takes and counts every packet, with every offload, and sends none. offloads=False: takes plain frames only."""

    def __init__(self, Context context not None, str name="", str model="null", bint offloads=True):
        super().__init__(context, name, model)
        self._setup(&null_ops, NULL)
        self.nc.takes = TAKE_ALL if offloads else TAKE_PLAIN
