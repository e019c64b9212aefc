"""Clients that are Python: frames arrive in batches after the lock is dropped, and leave as bursts of whatever has bytes.

Python gets a memoryview of each frame of a batch. They share the memory it was copied to (_pyring.pyx), which lives as long as any.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from qnet._context cimport context_defer, context_enter, context_enter_gil, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport NET_BURST, NET_MAX_PACKET, TAKE_ALL, Offload, Packet, net_can_send, net_send
from qnet._iov cimport iovec
from qnet._loop cimport Loop, loop_now, timer_init, timer_set
from qnet.backends._pyring cimport (CHUNK_BYTES, QN_BPF_MAX, Chunk, Ring, chunk_data, chunks_free, py_ops, qn_bpf_check, ring_flush,
                                    ring_take, ring_timer, sock_filter)

import _thread
import collections
import logging

cdef extern from "Python.h":
    Py_buffer *PyMemoryView_GET_BUFFER(object)

log = logging.getLogger("qnet.py")

OffloadRecord = collections.namedtuple("OffloadRecord", "flags gso_type hdr_len gso_size csum_start csum_offset", defaults=(0,) * 6)

cdef enum:
    STRETCH = 65536                 # frames that one thread hands over before it leaves the rest to the loop


cdef void py_run(void *owner) noexcept:
    (<PyClient>owner)._deliver()


@cython.no_gc_clear
@cython.freelist(8)
cdef class FrameMemory:
    """The memory of one batch: each frame's memoryview holds on to it, and the last one to go gives it back."""
    cdef Chunk *chunk
    cdef PyClient client

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, chunk_data(self.chunk), CHUNK_BYTES, 1, flags)

    def __dealloc__(self):
        # Wherever that is: so without the lock. The GIL guards `returned`.
        if self.chunk == NULL:
            return
        if self.client.s.closed:
            free(self.chunk)
        else:
            self.chunk.next = self.client.returned
            self.client.returned = self.chunk


@cython.no_gc_clear
cdef class PyClient(NetClient):
    """A client whose packets Python receives and sends.

    on_frames(frames): called with up to 64 frames, read-only memoryviews, after the network's lock was dropped, on the thread that
    caused it; never by two threads at once, nor from within itself. A view stays valid for as long as it is kept, and keeps up to
    128 KiB alive: keep bytes(frame) of what is needed for long. Without on_frames, frames wait for recv(), and on_readable() says so.
    on_writable(): after send_many() took less than it was given, or `writable` was False: there is room again.

    What a callable raises is logged. `max_packets` and `max_bytes` bound what waits for Python; a sender that cannot wait loses what is
    over, as "queue-full". `offloads`: takes checksums to be filled in and packets to be segmented as they are; see `records`.
    """
    cdef Ring s
    cdef Loop loop
    cdef Chunk *returned            # guarded by the GIL
    cdef bint busy                  # a thread is at it
    cdef readonly bint offloads
    cdef object _on_frames
    cdef object _on_readable
    cdef object _on_writable
    cdef list _records

    def __init__(self, Loop loop not None, str name="", str model="py", *, uint32_t max_packets=4096, uint64_t max_bytes=8388608,
                 bint offloads=False):
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self.s.max_packets = max_packets
        self.s.max_bytes = max_bytes
        self.s.node.owner = <void *>self
        self.s.node.run = py_run
        timer_init(&self.s.timer, &loop.loop, ring_timer, &self.s)
        self._setup(&py_ops, &self.s)
        self.nc.flow_control = True
        self.nc.queue.max_packets = NET_BURST               # what a filter let through when there is no room
        self.nc.queue.max_bytes = NET_BURST * <uint64_t>NET_MAX_PACKET
        self.offloads = offloads
        if offloads:
            self.nc.takes = TAKE_ALL

    def __dealloc__(self):
        self._fini()
        chunks_free(self.returned)

    def close(self):
        """As any client's; frames that Python has not had are dropped as "purged". No callable is called any more, but one that runs."""
        super().close()
        self._on_frames = self._on_readable = self._on_writable = None
        chunks_free(self.returned)
        self.returned = NULL

    # ---------------------------------------------------------------------------------------------------------- receiving

    cdef void _room(self) noexcept:
        if self.s.starved:
            with nogil:
                context_enter(self.nc.ctx)
                ring_flush(&self.s)
                context_leave(self.nc.ctx)

    cdef list _frames(self, Chunk *c):
        """A view of each frame. They are copies of one view, pointed at their frame before anybody else sees them."""
        cdef FrameMemory memory = FrameMemory.__new__(FrameMemory)
        cdef uint32_t i
        cdef object whole
        cdef object view
        cdef Py_buffer *b
        cdef list frames
        memory.client = self
        memory.chunk = c
        whole = PyMemoryView_FromObject(memory)
        frames = PyList_New(c.count)
        for i in range(c.count):
            view = PyMemoryView_FromObject(whole)
            b = PyMemoryView_GET_BUFFER(view)
            b.buf = chunk_data(c) + c.rec[i].off
            b.len = c.rec[i].size
            b.shape[0] = c.rec[i].size
            Py_INCREF(view)
            PyList_SET_ITEM(frames, i, view)
        if self.offloads:
            self._records = [OffloadRecord(**r.offload) if r.offload.flags or r.offload.gso_type else None for r in c.rec[:c.count]]
        return frames

    cdef void _deliver(self) noexcept:
        """Call what is to be called. Who finds another thread at it leaves it to that one, which looks again before it stops."""
        cdef uint64_t handed = 0
        if self.busy:
            return
        self.busy = True
        while handed < STRETCH and self._step(&handed):
            pass
        if handed >= STRETCH:           # the thread may have other work, such as a guest's
            context_enter_gil(self.nc.ctx)
            if not self.s.closed:
                timer_set(&self.s.timer, loop_now(&self.loop.loop))
            context_leave(self.nc.ctx)
        self.busy = False

    cdef bint _step(self, uint64_t *handed) noexcept:
        """Call one of them. False: there was nothing, and the GIL was not dropped since that was looked up."""
        cdef Chunk *c = NULL
        cdef bint arrived = False
        cdef bint resumed
        context_enter_gil(self.nc.ctx)
        resumed = self.s.resumed
        self.s.resumed = False
        if not resumed:
            arrived = self.s.arrived
            self.s.arrived = False
            if self._on_frames is not None and not self.s.paused:
                c = ring_take(&self.s, &self.returned)
        context_leave(self.nc.ctx)
        if c != NULL:
            callable = self._on_frames
            handed[0] += c.count
            frames = self._frames(c)
            self._room()
            self._call(callable, frames)
            return True
        if resumed:
            self._call(self._on_writable, None)
        elif arrived and self._on_frames is None:
            self._call(self._on_readable, None)
        return resumed or arrived

    cdef void _call(self, callable, frames) noexcept:
        try:
            if callable is not None and frames is not None:
                callable(frames)
            elif callable is not None:
                callable()
        except KeyboardInterrupt:
            _thread.interrupt_main()
        except BaseException:
            log.exception("a callable of %s failed", self.name)

    def recv(self) -> list:
        """The oldest batch of frames that wait, up to 64 memoryviews; an empty list when none do. Does not wait."""
        cdef Chunk *c
        context_enter_gil(self.nc.ctx)
        c = ring_take(&self.s, &self.returned)
        context_leave(self.nc.ctx)
        if c == NULL:
            return []
        frames = self._frames(c)
        self._room()
        self.context.run_deferred()
        return frames

    @property
    def records(self) -> list:
        """With offloads=on: for each frame of the batch last handed over its OffloadRecord, or None for a plain frame."""
        return self._records if self._records is not None else []

    @property
    def waiting(self) -> tuple:
        """(packets, bytes) that wait for Python."""
        return self.s.count, self.s.bytes

    @property
    def paused(self) -> bool:
        """While True, nothing is handed over and the client takes nothing: senders wait, or lose what their queue does not hold."""
        return bool(self.s.paused)

    @paused.setter
    def paused(self, bint value):
        with nogil:
            context_enter(self.nc.ctx)
            self.s.paused = value
            context_leave(self.nc.ctx)
        if not value:
            self._room()
            self._look()

    cdef void _look(self) noexcept:
        """What waits was not for the callables there were."""
        with nogil:
            context_enter(self.nc.ctx)
            if self.s.count and not self.s.closed:
                self.s.arrived = True
                context_defer(self.nc.ctx, &self.s.node)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    @property
    def on_frames(self):
        return self._on_frames

    @on_frames.setter
    def on_frames(self, value):
        self._on_frames = callable_or_none(value)
        self._look()

    @property
    def on_readable(self):
        return self._on_readable

    @on_readable.setter
    def on_readable(self, value):
        self._on_readable = callable_or_none(value)
        self._look()

    @property
    def on_writable(self):
        return self._on_writable

    @on_writable.setter
    def on_writable(self, value):
        self._on_writable = callable_or_none(value)

    def set_program(self, program):
        """Take only frames that a classic BPF program matches: struct sock_filter after struct sock_filter, as bytes; None: all.

        The others are counted as "address". ValueError names the instruction that is wrong.
        """
        cdef sock_filter *prog = NULL
        cdef sock_filter *old
        cdef bytes data = b"" if program is None else bytes(program)
        cdef Py_ssize_t n = len(data) // <Py_ssize_t>sizeof(sock_filter)
        cdef int wrong
        if program is not None:
            if len(data) % sizeof(sock_filter) or not 0 < n <= QN_BPF_MAX:
                raise ValueError(f"a BPF program has 1 to {QN_BPF_MAX} instructions of {sizeof(sock_filter)} bytes, not {len(data)} bytes")
            wrong = qn_bpf_check(<sock_filter *>PyBytes_AS_STRING(data), <unsigned>n)
            if wrong >= 0:
                raise ValueError("the BPF program does not end with a return" if wrong == n else f"BPF instruction {wrong} is not valid")
            prog = <sock_filter *>malloc(len(data))
            if prog == NULL:
                raise MemoryError
            memcpy(prog, PyBytes_AS_STRING(data), len(data))
        with nogil:
            context_enter(self.nc.ctx)
            old = self.s.prog
            if not self.s.closed:
                self.s.prog = prog
                prog = NULL
                free(old)
            context_leave(self.nc.ctx)
            free(prog)

    # ------------------------------------------------------------------------------------------------------------ sending

    @property
    def writable(self) -> bool:
        """Whether a frame sent now would be taken. If not, on_writable() is called when it would."""
        cdef bint r
        with nogil:
            context_enter(self.nc.ctx)
            r = net_can_send(&self.nc)
            context_leave(self.nc.ctx)
        return r

    def send_many(self, frames, records=None) -> int:
        """Send frames, anything with contiguous bytes, in bursts of 64. Returns how many the network took: fewer than given when there
        is no room now; on_writable() is called when there is. What has no peer, or is empty or too long, is taken and dropped.

        `records`: an OffloadRecord or None for each. TypeError, before anything is sent, when one is not a frame.
        """
        cdef tuple seq = tuple(frames)
        cdef tuple recs = None if records is None else tuple(records)
        cdef Packet[NET_BURST] pkts
        cdef iovec[NET_BURST] iov
        cdef Py_buffer[NET_BURST] bufs
        cdef uint64_t held
        cdef Py_ssize_t n = len(seq)
        cdef Py_ssize_t done = 0
        cdef uint32_t i
        cdef uint32_t m
        cdef uint32_t k
        for item in seq:
            if not PyObject_CheckBuffer(item):
                raise TypeError(f"a frame is a bytes-like object, not {type(item).__name__}")
        if recs is not None:
            if len(recs) != n:
                raise ValueError(f"{len(recs)} offload records for {n} frames")
            recs = tuple([None if r is None else r if isinstance(r, OffloadRecord) else OffloadRecord(*r) for r in recs])
        while done < n:
            m = NET_BURST if n - done > NET_BURST else <uint32_t>(n - done)
            memset(pkts, 0, m * sizeof(Packet))
            held = 0
            try:
                for i in range(m):
                    item = <object>PyTuple_GET_ITEM(seq, done + i)
                    if PyBytes_CheckExact(item):
                        iov[i].iov_base = PyBytes_AS_STRING(item)
                        iov[i].iov_len = PyBytes_GET_SIZE(item)
                    else:
                        PyObject_GetBuffer(item, &bufs[i], PyBUF_SIMPLE)
                        held |= <uint64_t>1 << i
                        iov[i].iov_base = bufs[i].buf
                        iov[i].iov_len = bufs[i].len
                    if iov[i].iov_len > NET_MAX_PACKET + 1:         # refused by its size, and never read
                        iov[i].iov_len = NET_MAX_PACKET + 1
                    pkts[i].iov = &iov[i]
                    pkts[i].iovcnt = 1
                    pkts[i].size = <uint32_t>iov[i].iov_len
                    if recs is not None:
                        offload_fill(&pkts[i].off, recs[done + i])
                with nogil:
                    context_enter(self.nc.ctx)
                    k = net_send(&self.nc, pkts, m)
                    context_leave(self.nc.ctx)
            finally:
                for i in range(m):
                    if held >> i & 1:
                        PyBuffer_Release(&bufs[i])
            self.context.run_deferred()
            done += k
            if k < m:
                break
        return done

    def send(self, frame) -> bool:
        """Send one frame. False: there is no room now."""
        return self.send_many((frame,)) == 1


cdef int offload_fill(Offload *off, object record) except -1:
    if record is not None:
        off.flags = record[0]
        off.gso_type = record[1]
        off.hdr_len = record[2]
        off.gso_size = record[3]
        off.csum_start = record[4]
        off.csum_offset = record[5]
    return 0


def callable_or_none(value):
    if value is not None and not callable(value):
        raise TypeError(f"a callable is wanted, or None, not {type(value).__name__}")
    return value
