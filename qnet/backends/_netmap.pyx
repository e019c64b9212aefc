"""Frames through netmap rings: slots in memory shared with the kernel, and with other processes where ports share an allocator.

So no word in it is believed: buffers and rings must lie in the mapping, and lengths in their buffer. netmap(4) is the reference.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EBUSY, EINTR, EIO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport (DROP_EMPTY, DROP_IO, DROP_LINK_DOWN, DROP_MALFORMED, DROP_OVERSIZE, NET_BURST, NET_MAX_IOV, NET_MAX_PACKET,
                             TAKE_ALL, NetClientOps, NetClientState, Offload, Packet, net_drop, net_flush, net_send, net_set_link)
from qnet._iov cimport iov_gather, iovec
from qnet._loop cimport LOOP_ERR, LOOP_HUP, LOOP_IN, LOOP_OUT, Loop, watch_add, watch_init, watch_remove

import fcntl
import os

from qnet.errors import check

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int, unsigned long, void *)

cdef enum:
    BATCHES = 8                     # of one wake-up
    EDGE = 0x80000000               # EPOLLET
    HEADER = 10                     # bytes of an Offload record, which is what a virtio_net_hdr begins with

assert sizeof(Offload) == HEADER and sizeof(netmap_ring) == 256 and sizeof(netmap_if) == 56 and sizeof(netmap_slot) == 16


cdef int ioctl_sync(int fd, unsigned long what) noexcept nogil:
    return -errno if ioctl(fd, what, NULL) < 0 else 0


cdef void sync(NetmapState *s, unsigned long what) noexcept nogil:
    """Give the kernel what we are done with, and see what it has done."""
    cdef int rc
    s.nc.stats.syscalls += 1
    rc = s.sync(s.fd, what)
    if rc < 0 and rc not in (-EINTR, -EAGAIN, -EBUSY):
        s.error = -rc


cdef void netmap_gone(NetmapState *s, int error) noexcept nogil:
    """The port is gone, or its ring can't be trusted: the link goes down, and nobody waits for anything."""
    if s.gone:
        return
    s.gone = True
    s.error = error
    watch_remove(&s.in_watch)
    watch_remove(&s.out_watch)
    s.want_out = False
    if not s.sending and s.done < s.have:
        net_drop(s.nc, &s.pkts[s.done], s.have - s.done, True, DROP_LINK_DOWN)
        s.done = s.have = 0
    net_set_link(s.nc, False)


cdef void netmap_poll(NetmapState *s) noexcept nogil:
    """Wait for what there is a use for. The port counts as writable while a single slot is free: wait for the edge."""
    cdef int rc = 0
    if s.in_ready or s.sending or s.gone:
        return
    if s.done < s.have:
        watch_remove(&s.in_watch)
    elif s.in_watch.fd < 0:
        rc = watch_add(&s.in_watch, s.fd, LOOP_IN)
    if not s.want_out:
        watch_remove(&s.out_watch)
    elif s.out_watch.fd < 0 and rc >= 0:
        rc = watch_add(&s.out_watch, s.outfd, LOOP_OUT | <uint32_t>EDGE)
    if rc < 0:
        netmap_gone(s, -rc)


# ------------------------------------------------------------------------------------------------------------------ receiving

cdef int take_frame(NetmapState *s, Ring *r, uint32_t *at, uint32_t left, Packet *p, iovec *iov) noexcept nogil:
    """The frame whose first slot is at[0], of `left` slots that are ours; at[0] moves behind it. 1: it is in p; 0: its end has not come;
    -1: it was dropped."""
    cdef uint8_t *buf
    cdef uint16_t len
    cdef uint16_t flags = NS_MOREFRAG
    cdef uint32_t i = at[0]
    cdef uint32_t n = 0
    cdef bint bad = False
    memset(p, 0, sizeof(Packet))
    p.iov = iov
    while flags & NS_MOREFRAG:
        if n == left:
            if left < r.nslots - 1:
                return 0
            bad = True                  # a whole ring, and no end
            break
        buf = slot_read(r, i, &len, &flags)
        i = after(r, i)
        n += 1
        p.size += len
        if buf == NULL or len > r.buf_size or (len == 0 and n > 1):
            bad = True
        elif p.iovcnt < NET_MAX_IOV and not bad:
            iov[p.iovcnt].iov_base = buf
            iov[p.iovcnt].iov_len = len
            p.iovcnt += 1
    at[0] = i
    if bad or (s.header and (p.iovcnt == 0 or iov[0].iov_len < s.header)):
        p.size = 0
        net_drop(s.nc, p, 1, True, DROP_MALFORMED)
        return -1
    if n > p.iovcnt or p.size > NET_MAX_PACKET:
        net_drop(s.nc, p, 1, True, DROP_OVERSIZE)
        return -1
    if s.header:
        memcpy(&p.off, iov[0].iov_base, HEADER)
        p.size -= s.header
        iov[0].iov_base = <uint8_t *>iov[0].iov_base + s.header
        iov[0].iov_len -= s.header
        if iov[0].iov_len == 0 and p.iovcnt > 1:
            p.iov = iov + 1
            p.iovcnt -= 1
    if p.size == 0:
        net_drop(s.nc, p, 1, True, DROP_EMPTY)
        return -1
    return 1


cdef bint netmap_read(NetmapState *s, Ring *r) noexcept nogil:
    """Look at a burst of a ring's slots. What is in them stays where it is. False: there is nothing."""
    cdef uint32_t left = ours(r)
    cdef uint32_t at = r.head
    cdef uint32_t before
    cdef uint32_t used = 0
    cdef uint32_t k = 0
    cdef int got
    s.done = s.have = 0
    s.reading = r
    if left >= r.nslots:
        netmap_gone(s, EIO)
        return False
    while left and s.have < NET_BURST and used + NET_MAX_IOV <= IOVS:
        before = at
        got = take_frame(s, r, &at, left, &s.pkts[s.have], &s.iov[used])
        if got == 0:                    # wake us when there is more than this
            r.shared.cur = at + left if at + left < r.nslots else at + left - r.nslots
            break
        k = at - before if at > before else at + r.nslots - before
        left -= k
        if got > 0:
            used += k if k < NET_MAX_IOV else NET_MAX_IOV
            s.ends[s.have] = at
            s.have += 1
    s.end = at
    if s.have == 0 and at != r.head:
        r.head = at
        publish(r)
        return True
    return s.have != 0


cdef void netmap_push(NetmapState *s) noexcept nogil:
    """Send what was received while the core takes it. Entered again by resume, only the outer call goes on."""
    cdef uint32_t first = s.done
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
    if s.fd < 0 or s.done == first:
        return
    s.reading.head = s.ends[s.done - 1] if s.done < s.have else s.end
    publish(s.reading)


cdef void netmap_in_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef NetmapState *s = <NetmapState *>opaque
    cdef uint32_t idle = 0
    cdef uint32_t left = BATCHES * s.nrx
    s.nc.stats.wakeups += 1
    s.in_ready = True
    if s.done == s.have:
        while left and not s.gone and s.done == s.have and idle < s.nrx:
            left -= 1
            if netmap_read(s, &s.rx[s.turn]):
                idle = 0
                netmap_push(s)
            else:
                idle += 1
            s.turn = s.turn + 1 if s.turn + 1 < s.nrx else 0
        if not s.gone:
            sync(s, NIOCRXSYNC)
    s.in_ready = False
    if ready & (LOOP_ERR | LOOP_HUP) or s.error:
        netmap_gone(s, s.error)
    netmap_poll(s)


cdef void netmap_resume(NetClientState *nc) noexcept nogil:
    cdef NetmapState *s = <NetmapState *>nc.opaque
    netmap_push(s)
    if not s.in_ready and not s.gone and s.fd >= 0 and s.done == s.have:
        sync(s, NIOCRXSYNC)
    netmap_poll(s)


# -------------------------------------------------------------------------------------------------------------------- sending

cdef bint put_frame(NetmapState *s, const Packet *p, uint32_t need) noexcept nogil:
    """Copy a frame into `need` slots. False: a slot leads nowhere."""
    cdef Ring *r = &s.tx
    cdef uint8_t[12] header
    cdef uint16_t len
    cdef uint16_t flags
    cdef uint32_t i = r.head
    cdef uint32_t off = 0
    cdef uint32_t k
    cdef uint32_t n
    cdef uint32_t used
    cdef uint8_t *buf
    memset(header, 0, sizeof(header))
    memcpy(header, &p.off, HEADER)
    for n in range(need):
        buf = slot_read(r, i, &len, &flags)
        if buf == NULL:
            return False
        used = 0
        if n == 0:
            memcpy(buf, header, s.header)
            used = s.header
        k = r.buf_size - used
        if k > p.size - off:
            k = p.size - off
        off += <uint32_t>iov_gather(p.iov, p.iovcnt, off, buf + used, k)
        r.slots[i].len = <uint16_t>(used + k)
        r.slots[i].flags = NS_MOREFRAG if n + 1 < need else 0
        i = after(r, i)
    r.head = i
    return True


cdef uint32_t netmap_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef NetmapState *s = <NetmapState *>nc.opaque
    cdef uint32_t i = 0
    cdef uint32_t need
    cdef uint32_t room = 0
    cdef bint synced = False
    while i < n and not s.gone:
        need = (pkts[i].size + s.header + s.tx.buf_size - 1) // s.tx.buf_size
        if need >= s.tx.nslots:             # it never fits
            net_drop(nc, pkts + i, 1, False, DROP_OVERSIZE)
            i += 1
            continue
        room = ours(&s.tx)
        if room < need:
            if synced:
                break
            publish(&s.tx)
            sync(s, NIOCTXSYNC)
            synced = True
            continue
        if room >= s.tx.nslots or not put_frame(s, &pkts[i], need):
            netmap_gone(s, EIO)
            break
        synced = False
        i += 1
    if not s.gone and not synced:
        publish(&s.tx)
        sync(s, NIOCTXSYNC)
    if s.gone:
        net_drop(nc, pkts + i, n - i, False, DROP_IO)
        return n
    s.want_out = i < n
    netmap_poll(s)
    return i


cdef void netmap_out_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef NetmapState *s = <NetmapState *>opaque
    s.nc.stats.wakeups += 1
    s.in_ready = True
    if s.want_out:
        s.want_out = False
        net_flush(s.nc)
    s.in_ready = False
    if ready & (LOOP_ERR | LOOP_HUP) or s.error:
        netmap_gone(s, s.error)
    netmap_poll(s)


cdef void netmap_cleanup(NetClientState *nc) noexcept nogil:
    cdef NetmapState *s = <NetmapState *>nc.opaque
    s.gone = True
    watch_remove(&s.in_watch)
    watch_remove(&s.out_watch)
    if s.outfd >= 0:
        close(s.outfd)
    if s.fd >= 0:
        close(s.fd)
    s.fd = s.outfd = -1
    s.done = s.have = 0


cdef NetClientOps netmap_ops = NetClientOps(
    receive=netmap_receive,
    can_receive=NULL,
    resume=netmap_resume,
    link_status_changed=NULL,
    cleanup=netmap_cleanup,
)


@cython.no_gc_clear
cdef class NetmapPort(NetClient):
    """A netmap port: `fd` is registered with its rings mapped at `memory`, a writable buffer, whose netmap_if is at `offset`. The client
    keeps a duplicate of `fd`. header: length of the virtio-net header of each frame. sync: address of a function in place of ioctl(2).

    It never waits. A frame that finds no slots waits in the queue; while its peer has no room nothing is taken from the rings. Frames
    with a slot that leads out of its buffer are dropped ("malformed"); when the port goes away, or a ring makes no sense, the link goes
    down.
    ValueError: a netmap_if or rings that do not lie in `memory`. OSError: `fd` cannot be waited for.
    """
    cdef NetmapState s
    cdef Loop loop
    cdef Py_buffer memory
    cdef bint mapped

    def __cinit__(self, *args, **kwargs):
        self.s.fd = self.s.outfd = -1
        self.s.in_watch.fd = self.s.out_watch.fd = -1

    def __init__(self, Loop loop not None, str name, str model, int fd, memory, uint64_t offset, uint32_t header=0, uintptr_t sync=0):
        cdef int rc
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self._setup(&netmap_ops, &self.s)
        self.nc.flow_control = True
        if header:
            self.nc.takes = TAKE_ALL
        self.s.header = header
        self.s.sync = <sync_fn>sync if sync else ioctl_sync
        PyObject_GetBuffer(memory, &self.memory, PyBUF_WRITABLE)
        self.mapped = True
        if header not in (0, 10, 12) or not open_rings(&self.s, <uint8_t *>self.memory.buf, self.memory.len, offset):
            raise ValueError("these are no netmap rings")
        self.s.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self.s.outfd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.in_watch, &self.loop.loop, netmap_in_ready, &self.s)
            watch_init(&self.s.out_watch, &self.loop.loop, netmap_out_ready, &self.s)
            rc = watch_add(&self.s.in_watch, self.s.fd, LOOP_IN)
            context_leave(self.nc.ctx)
        check(rc)

    def __dealloc__(self):
        self._fini()
        if self.mapped:
            PyBuffer_Release(&self.memory)

    def close(self):
        """As any client's, and lets go of the memory."""
        super().close()
        if self.mapped:
            self.mapped = False
            PyBuffer_Release(&self.memory)

    @property
    def connected(self) -> bool:
        """Whether the port is there."""
        return not self.s.gone

    @property
    def error(self) -> str | None:
        """What ended it; None while it stands."""
        return os.strerror(self.s.error) if self.s.error else None
