# distutils: language = c
"""The frames that wait for a Python client: each is copied once, into a chunk that holds a batch. Chunks that Python gave back are
filled again, so nothing is allocated while it keeps up."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from qnet._context cimport context_cancel, context_defer
from qnet._fastpath cimport (DROP_ADDRESS, DROP_NO_BUFFER, DROP_PURGED, DROP_QUEUE_FULL, NetClientOps, NetClientState, Packet, net_drop,
                             net_flush)
from qnet._iov cimport iov_gather, iovec
from qnet._loop cimport timer_cancel

cdef enum:
    ALIGN = 16                      # bytes at whose multiples frames begin
    SPARE = 4                       # empty chunks that are kept


cdef void chunks_free(Chunk *c) noexcept nogil:
    cdef Chunk *next
    while c != NULL:
        next = c.next
        free(c)
        c = next


cdef Chunk *ring_more(Ring *s) noexcept nogil:
    """An empty chunk at the end of the line, or NULL."""
    cdef Chunk *c = s.spare
    if c != NULL:
        s.spare = c.next
        s.nspare -= 1
    else:
        c = <Chunk *>malloc(sizeof(Chunk) + CHUNK_BYTES)
        if c == NULL:
            return NULL
        s.nc.ctx.allocations += 1
    c.next = NULL
    c.used = c.count = 0
    c.bytes = 0
    if s.tail == NULL:
        s.head = c
    else:
        s.tail.next = c
    s.tail = c
    return c


cdef inline bint ring_room(const Ring *s) noexcept nogil:
    return not s.paused and s.count < s.max_packets and s.bytes < s.max_bytes


cdef Chunk *ring_take(Ring *s, Chunk **back) noexcept nogil:
    """The oldest batch, or NULL. Chunks that are empty again come back with `back`."""
    cdef Chunk *c
    while back[0] != NULL:
        c = back[0]
        back[0] = c.next
        if s.nspare < SPARE and not s.closed:
            c.next = s.spare
            s.spare = c
            s.nspare += 1
        else:
            free(c)
    c = s.head
    if c != NULL:
        s.head = c.next
        if c.next == NULL:
            s.tail = NULL
        s.count -= c.count
        s.bytes -= c.bytes
        s.nc.stats.wakeups += 1
    return c


cdef void ring_flush(Ring *s) noexcept nogil:
    """There is room again for who was told that there is none."""
    if s.starved and ring_room(s):
        s.starved = False
        net_flush(s.nc)


cdef bint py_can_receive(NetClientState *nc) noexcept nogil:
    cdef Ring *s = <Ring *>nc.opaque
    if ring_room(s):
        return True
    s.starved = True
    return False


cdef uint32_t py_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef Ring *s = <Ring *>nc.opaque
    cdef Chunk *c = s.tail
    cdef const Packet *p
    cdef Record *r
    cdef uint32_t i
    cdef uint32_t got = s.count
    for i in range(n):
        p = &pkts[i]
        if s.prog != NULL and qn_bpf_run(s.prog, p.iov, p.iovcnt, p.size) == 0:
            net_drop(nc, p, 1, False, DROP_ADDRESS)
            continue
        if s.count >= s.max_packets or s.bytes + p.size > s.max_bytes:
            if s.count:
                s.starved = True
                n = i
                break
            net_drop(nc, p, 1, False, DROP_NO_BUFFER)       # larger than all room there is
            continue
        if c == NULL or c.count == NET_BURST or c.used + p.size > CHUNK_BYTES:
            c = ring_more(s)
            if c == NULL:
                net_drop(nc, p, 1, False, DROP_QUEUE_FULL)
                c = s.tail
                continue
        r = &c.rec[c.count]
        r.off = c.used
        r.size = p.size
        r.offload = p.off
        if p.iovcnt == 1:
            memcpy(chunk_data(c) + c.used, p.iov.iov_base, p.size)
        else:
            iov_gather(p.iov, p.iovcnt, 0, chunk_data(c) + c.used, p.size)
        c.used += (p.size + ALIGN - 1) & ~<uint32_t>(ALIGN - 1)
        c.count += 1
        c.bytes += p.size
        s.count += 1
        s.bytes += p.size
    if s.count != got:
        s.arrived = True
        context_defer(nc.ctx, &s.node)
    return n


cdef void py_resume(NetClientState *nc) noexcept nogil:
    cdef Ring *s = <Ring *>nc.opaque
    s.resumed = True
    context_defer(nc.ctx, &s.node)


cdef void ring_timer(void *opaque) noexcept nogil:
    cdef Ring *s = <Ring *>opaque
    s.arrived = True
    context_defer(s.nc.ctx, &s.node)


cdef void py_cleanup(NetClientState *nc) noexcept nogil:
    cdef Ring *s = <Ring *>nc.opaque
    cdef Chunk *c
    cdef Packet p
    cdef iovec iov
    cdef uint32_t i
    s.closed = True
    context_cancel(nc.ctx, &s.node)
    timer_cancel(&s.timer)
    memset(&p, 0, sizeof(p))
    p.iov = &iov
    p.iovcnt = 1
    while s.head != NULL:
        c = s.head
        s.head = c.next
        for i in range(c.count):
            iov.iov_base = chunk_data(c) + c.rec[i].off
            iov.iov_len = p.size = c.rec[i].size
            p.off = c.rec[i].offload
            net_drop(nc, &p, 1, False, DROP_PURGED)
        free(c)
    s.tail = NULL
    s.count = 0
    s.bytes = 0
    chunks_free(s.spare)
    s.spare = NULL
    free(s.prog)
    s.prog = NULL


cdef NetClientOps py_ops = NetClientOps(
    receive=py_receive,
    can_receive=py_can_receive,
    resume=py_resume,
    link_status_changed=NULL,
    cleanup=py_cleanup,
)
