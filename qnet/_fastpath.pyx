# distutils: language = c
"""The packet core: what every packet crosses and no packet is special to.

Clients, peers, bursts, queues, flush and purge, link state, filters, and the software repair of what a receiver does not take.
The contract is in _fastpath.pxd. The context's lock is held in every function here that takes a NetClientState.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from qnet._context cimport NetContext
from qnet._eth cimport ETH_ZLEN
from qnet._iov cimport iov_gather, iov_slice, iovec

cdef extern from "csum.h" nogil:
    int qn_csum_partial_value(const iovec *iov, unsigned cnt, size_t size, unsigned start, unsigned offset, uint16_t *out)

cdef extern from "gso.h" nogil:
    struct qn_gso_plan:
        uint16_t hdr_len
        uint16_t mss
    struct qn_gso:
        size_t left
    int qn_gso_plan_vnet(qn_gso_plan *plan, const iovec *iov, unsigned iovcnt, size_t size, unsigned gso_type,
                         unsigned gso_size, unsigned csum_start, unsigned csum_offset)
    int qn_gso_start(qn_gso *g, const qn_gso_plan *plan, const iovec *iov, unsigned iovcnt, size_t size)
    int qn_gso_next(qn_gso *g, uint8_t *hdr, iovec *out, unsigned max, size_t *size_out)


cdef uint8_t[ETH_ZLEN] ZEROS
memset(ZEROS, 0, sizeof(ZEROS))


# ---------------------------------------------------------------------------------------------------------------- clients

cdef void net_client_init(NetClientState *nc, NetContext *ctx, const NetClientOps *ops, void *opaque) noexcept nogil:
    memset(nc, 0, sizeof(NetClientState))
    nc.ops = ops
    nc.ctx = ctx
    nc.opaque = opaque
    nc.takes = TAKE_PLAIN
    nc.max_frame = NET_MAX_PACKET
    nc.queue.max_packets = NET_QUEUE_PACKETS
    nc.queue.max_bytes = NET_QUEUE_BYTES


cdef void net_client_fini(NetClientState *nc) noexcept nogil:
    """Unlink everywhere and free the queue (S35: without callbacks)."""
    cdef QueuedPacket *q
    nc.ops = &null_ops              # nobody resumes it
    net_unpair(nc)
    while nc.filters != NULL:
        net_filter_remove(nc.filters)
    while nc.queue.head != NULL:
        q = queue_pop(nc)
        free(q)


cdef void net_pair(NetClientState *a, NetClientState *b) noexcept nogil:
    a.peer = b
    b.peer = a


cdef void net_unpair(NetClientState *nc) noexcept nogil:
    cdef NetClientState *peer = nc.peer
    if peer == NULL:
        return
    net_purge(peer, nc)
    net_purge(nc, peer)
    nc.peer = NULL
    peer.peer = NULL
    peer.blocked = False
    nc.blocked = False
    # receive_disabled stays: a receiver that owes a flush is not called before it, not for another peer either (S22).
    # A sender waiting for room would wait for ever: without a peer its packets are dropped and counted, so let it go on.
    resume(peer)
    resume(nc)


# ------------------------------------------------------------------------------------------------------------------ queue

cdef QueuedPacket *queue_copy(NetClientState *to, NetClientState *sender, const Packet *p) noexcept nogil:
    cdef QueuedPacket *q = <QueuedPacket *>malloc(sizeof(QueuedPacket) + p.size)
    if q == NULL:
        return NULL
    to.ctx.allocations += 1
    q.next = NULL
    q.sender = sender
    q.iov.iov_base = <void *>(q + 1)
    q.iov.iov_len = p.size
    q.pkt = p[0]
    q.pkt.iov = &q.iov
    q.pkt.iovcnt = 1
    q.pkt.size = <uint32_t>iov_gather(p.iov, p.iovcnt, 0, q + 1, p.size)
    q.iov.iov_len = q.pkt.size
    return q


cdef void queue_append(NetClientState *to, QueuedPacket *q) noexcept nogil:
    q.next = NULL
    if to.queue.tail == NULL:
        to.queue.head = q
    else:
        to.queue.tail.next = q
    to.queue.tail = q
    to.queue.count += 1
    to.queue.bytes += q.pkt.size
    to.ctx.queued += 1


cdef void queue_push_front(NetClientState *to, QueuedPacket *q) noexcept nogil:
    q.next = to.queue.head
    to.queue.head = q
    if to.queue.tail == NULL:
        to.queue.tail = q
    to.queue.count += 1
    to.queue.bytes += q.pkt.size
    to.ctx.queued += 1


cdef QueuedPacket *queue_pop(NetClientState *to) noexcept nogil:
    cdef QueuedPacket *q = to.queue.head
    to.queue.head = q.next
    if q.next == NULL:
        to.queue.tail = NULL
    to.queue.count -= 1
    to.queue.bytes -= q.pkt.size
    to.ctx.queued -= 1
    return q


cdef void spill_back(NetClientState *to, QueuedPacket *spill) noexcept nogil:
    """Put the segments of one packet, first one first, in front of the queue, as many bytes as fit."""
    cdef QueuedPacket *rev = NULL
    cdef QueuedPacket *next
    cdef uint64_t nbytes = 0
    while spill != NULL:
        next = spill.next
        if to.queue.bytes + nbytes + spill.pkt.size <= to.queue.max_bytes:
            nbytes += spill.pkt.size
            spill.next = rev
            rev = spill
        else:
            net_drop(to, &spill.pkt, 1, False, DROP_QUEUE_FULL)
            free(spill)
        spill = next
    while rev != NULL:
        next = rev.next
        queue_push_front(to, rev)
        rev = next


cdef uint32_t hold(NetClientState *nc, NetClientState *to, const Packet *pkts, uint32_t n, bint queue) noexcept nogil:
    """`to` has no room for these: the sender keeps them (0), or copies are queued within the bounds (n)."""
    cdef uint32_t i
    cdef QueuedPacket *q
    if nc.flow_control and not queue:
        if n:
            nc.blocked = True
        return 0
    for i in range(n):
        if pkts[i].size == 0:
            net_drop(to, &pkts[i], 1, False, DROP_EMPTY)
            continue
        if pkts[i].size > NET_MAX_PACKET or pkts[i].iovcnt > NET_MAX_IOV:
            net_drop(to, &pkts[i], 1, False, DROP_OVERSIZE)
            continue
        q = NULL
        if to.queue.count < to.queue.max_packets and to.queue.bytes + pkts[i].size <= to.queue.max_bytes:
            q = queue_copy(to, nc, &pkts[i])
        if q == NULL:
            net_drop(to, &pkts[i], 1, False, DROP_QUEUE_FULL)
        else:
            queue_append(to, q)
    return n


# --------------------------------------------------------------------------------------------------------------- delivery

cdef inline uint32_t needs_of(const Packet *p) noexcept nogil:
    """TAKE_* bits that a receiver must have to get this packet as it is."""
    # Unknown types land on bits that nobody takes: 1 to 16 for the low four bits, 20 to 22 for the others; ECN on its own, 17.
    return ((p.off.flags & OFF_NEEDS_CSUM) | (<uint32_t>2 << (p.off.gso_type & 0xf)) | (<uint32_t>(p.off.gso_type & 0x70) << 16) |
            (<uint32_t>(p.off.gso_type & GSO_ECN) << 10))


cdef inline bint net_room(NetClientState *to) noexcept nogil:
    return to.ctx.running and not to.receive_disabled and (to.ops.can_receive == NULL or to.ops.can_receive(to))


cdef inline uint64_t bytes_of(const Packet *pkts, uint32_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(n):
        total += pkts[i].size
    return total


cdef inline uint32_t receive_burst(NetClientState *to, const Packet *pkts, uint32_t n, uint64_t nbytes) noexcept nogil:
    """Call the receiver once, guarded against recursion (S24), and count what it took. nbytes: of the whole burst."""
    cdef uint32_t k
    to.delivering = 1
    k = to.ops.receive(to, pkts, n)
    if k >= n:
        k = n
        to.stats.rx_bytes += nbytes
    else:
        to.stats.rx_bytes += bytes_of(pkts, k)
        # 2: it flushed from within its own receive, so it has room already and owes no other flush. Not believed if it took nothing.
        if to.delivering == 1 or k == 0:
            to.receive_disabled = True
    to.stats.rx_packets += k
    to.delivering = 0
    return k


cdef struct Scratch:
    Packet out[NET_BURST]
    uint32_t src[NET_BURST]         # which packet of the burst it is, or is a segment of
    iovec iov[5 * NET_MAX_IOV]
    uint8_t hdr[NET_BURST][NET_MAX_HDR]
    uint32_t n                      # packets in `out`
    uint32_t k                      # elements used in `iov`
    uint32_t i                      # packet of the burst at hand
    uint32_t done                   # packets of the burst that are consumed, as far as it is known
    uint32_t begun                  # as many had a segment delivered
    NetClientState *sender
    QueuedPacket *spill             # segments without room of the last packet that is consumed: copies, in order
    QueuedPacket *spill_tail
    uint64_t spilled                # their bytes
    bint full                       # room ran out in the middle of a packet
    QueuedPacket *copies            # packets of too many pieces, in one piece


cdef inline bint stopped(const Scratch *s, uint32_t n) noexcept nogil:
    """There was no room: nothing of the other packets is delivered any more."""
    return s.done < n or s.full


cdef void scratch_flush(NetClientState *to, Scratch *s) noexcept nogil:
    """Deliver what was repaired. When room runs out in the middle of a packet, the rest of its segments is kept in `spill`; packets
    of which nothing was delivered are not consumed."""
    cdef uint32_t i
    cdef uint32_t k = 0
    cdef QueuedPacket *q
    if s.n and not s.full and net_room(to):
        k = receive_burst(to, s.out, s.n, bytes_of(s.out, s.n))
    if k:
        s.begun = s.src[k - 1] + 1
    if k < s.n:
        s.done = s.src[k] if s.src[k] >= s.begun else s.begun
    for i in range(k, s.n):
        if s.src[i] >= s.begun:
            break
        s.full = True
        q = NULL
        if to.queue.bytes + s.spilled + s.out[i].size <= to.queue.max_bytes:
            q = queue_copy(to, s.sender, &s.out[i])
        if q == NULL:
            net_drop(to, &s.out[i], 1, False, DROP_QUEUE_FULL)
            continue
        s.spilled += q.pkt.size
        if s.spill == NULL:
            s.spill = q
        else:
            s.spill_tail.next = q
        s.spill_tail = q
    while s.copies != NULL:
        q = s.copies
        s.copies = q.next
        free(q)
    s.n = 0
    s.k = 0


cdef inline void scratch_room(NetClientState *to, Scratch *s) noexcept nogil:
    """Leave space for one more packet of NET_MAX_IOV elements and one more."""
    if s.n == NET_BURST or s.k + NET_MAX_IOV + 1 > 5 * NET_MAX_IOV:
        scratch_flush(to, s)


cdef void refuse(NetClientState *to, const Packet *p, Scratch *s, int reason) noexcept nogil:
    """Drop the packet at hand, if those before it are consumed: else it comes again and would be counted twice."""
    scratch_flush(to, s)
    if s.done > s.i:
        net_drop(to, p, 1, False, reason)


cdef inline void repaired(NetClientState *to, Scratch *s, uint32_t cnt, uint32_t size) noexcept nogil:
    """The packet whose elements were just written at s.iov[s.k] is complete: pad it if need be, add it to the burst."""
    cdef Packet *o = &s.out[s.n]
    if size < to.min_frame:
        s.iov[s.k + cnt].iov_base = ZEROS
        s.iov[s.k + cnt].iov_len = to.min_frame - size
        cnt += 1
        size = to.min_frame
    o.iov = &s.iov[s.k]
    o.iovcnt = cnt
    o.size = size
    memset(&o.off, 0, sizeof(o.off))
    o.off.flags = OFF_DATA_VALID
    s.src[s.n] = s.i
    s.n += 1
    s.k += cnt


cdef void repair_gso(NetClientState *to, const Packet *p, Scratch *s) noexcept nogil:
    """Segment in software; each segment's checksums are right, so it is marked as verified."""
    cdef qn_gso_plan plan
    cdef qn_gso g
    cdef QueuedPacket *copy = NULL
    cdef size_t size
    cdef int used
    if p.iovcnt >= NET_MAX_IOV:             # a segment's own header in front would make too many pieces
        copy = queue_copy(to, s.sender, p)
        if copy == NULL:
            refuse(to, p, s, DROP_QUEUE_FULL)
            return
        p = &copy.pkt
    if (not p.off.flags & OFF_NEEDS_CSUM or
            qn_gso_plan_vnet(&plan, p.iov, p.iovcnt, p.size, p.off.gso_type & ~<unsigned>GSO_ECN, p.off.gso_size,
                             p.off.csum_start, p.off.csum_offset) < 0 or
            qn_gso_start(&g, &plan, p.iov, p.iovcnt, p.size) < 0):
        refuse(to, p, s, DROP_BAD_OFFLOAD)
    elif <size_t>plan.hdr_len + (plan.mss if plan.mss < g.left else g.left) > to.max_frame:
        refuse(to, p, s, DROP_OVERSIZE)
    else:
        while s.done > s.i:
            used = qn_gso_next(&g, s.hdr[s.n], &s.iov[s.k], NET_MAX_IOV, &size)
            if used <= 0:
                break
            repaired(to, s, <uint32_t>used, <uint32_t>size)
            scratch_room(to, s)
    if copy != NULL:
        scratch_flush(to, s)
        free(copy)


cdef void repair_one(NetClientState *to, const Packet *p, Scratch *s) noexcept nogil:
    """Fill in the checksum and pad: the header is copied, the rest is referred to."""
    cdef uint16_t value
    cdef uint32_t end = 0
    cdef QueuedPacket *q
    if p.off.flags & OFF_NEEDS_CSUM and not to.takes & TAKE_CSUM:
        end = <uint32_t>p.off.csum_start + p.off.csum_offset + 2
        if end > NET_MAX_HDR or qn_csum_partial_value(p.iov, p.iovcnt, p.size, p.off.csum_start, p.off.csum_offset, &value) < 0:
            refuse(to, p, s, DROP_BAD_OFFLOAD)
            return
    if p.iovcnt > NET_MAX_IOV - 2:          # a header piece in front and padding behind would make too many
        q = queue_copy(to, s.sender, p)
        if q == NULL:
            refuse(to, p, s, DROP_QUEUE_FULL)
            return
        q.next = s.copies
        s.copies = q
        p = &q.pkt
    if end:
        iov_gather(p.iov, p.iovcnt, 0, s.hdr[s.n], end)
        memcpy(&s.hdr[s.n][end - 2], &value, 2)
        s.iov[s.k].iov_base = s.hdr[s.n]
        s.iov[s.k].iov_len = end
        repaired(to, s, 1 + iov_slice(p.iov, p.iovcnt, end, p.size - end, &s.iov[s.k + 1], NET_MAX_IOV), p.size)
    else:
        repaired(to, s, iov_slice(p.iov, p.iovcnt, 0, p.size, &s.iov[s.k], NET_MAX_IOV), p.size)
        s.out[s.n - 1].off = p.off


cdef uint32_t deliver_repaired(NetClientState *to, NetClientState *sender, const Packet *pkts, uint32_t n,
                               QueuedPacket **spill) noexcept nogil:
    """Deliver a burst of which at least one packet is not for `to` as it is. Returns packets consumed; segments of the last of them
    that found no room are copied to `spill`, as many bytes as its queue has space for."""
    cdef Scratch s
    cdef uint32_t i
    cdef uint32_t needs
    cdef const Packet *p
    s.n = 0
    s.k = 0
    s.done = n
    s.begun = 0
    s.sender = sender
    s.spill = NULL
    s.spilled = 0
    s.full = False
    s.copies = NULL
    for i in range(n):
        p = &pkts[i]
        s.i = i
        scratch_room(to, &s)
        if stopped(&s, n):
            break
        needs = needs_of(p) & ~to.takes
        if p.size == 0:
            refuse(to, p, &s, DROP_EMPTY)
        elif p.size > NET_MAX_PACKET or p.iovcnt > NET_MAX_IOV or (p.size > to.max_frame and p.off.gso_type == GSO_NONE):
            refuse(to, p, &s, DROP_OVERSIZE)
        elif needs & ~<uint32_t>(TAKE_CSUM | TAKE_PLAIN) or (needs and p.off.gso_type):
            repair_gso(to, p, &s)
        elif needs or p.size < to.min_frame:
            repair_one(to, p, &s)
        else:
            s.out[s.n] = p[0]
            s.src[s.n] = s.i
            s.n += 1
    scratch_flush(to, &s)
    spill[0] = s.spill
    return s.done


cdef inline bint plain_for(NetClientState *to, const Packet *pkts, uint32_t n, uint64_t *nbytes) noexcept nogil:
    """Can the whole burst go to `to` as it is? The one pass over a burst: it adds up the sizes too."""
    cdef uint32_t i
    cdef uint32_t needs = 0
    cdef uint32_t size
    cdef uint32_t offloads = 0
    cdef int64_t least = to.min_frame if to.min_frame else 1
    cdef int64_t most = to.max_frame
    cdef int64_t odd = 0            # negative: some packet is out of bounds
    cdef uint64_t total = 0
    for i in range(n):
        size = pkts[i].size
        total += size
        offloads |= pkts[i].off.flags | (<uint32_t>pkts[i].off.gso_type << 8)
        odd |= (<int64_t>size - least) | (most - <int64_t>size) | (NET_MAX_IOV - <int64_t>pkts[i].iovcnt)
    nbytes[0] = total
    if offloads & (0xff00 | OFF_NEEDS_CSUM):
        for i in range(n):
            needs |= needs_of(&pkts[i])
    return odd >= 0 and not needs & ~to.takes


cdef void drain(NetClientState *to) noexcept nogil:
    """Deliver the queue while there is room; asks before each burst (B25). Packets that come back without end, as between two hubs
    joined twice, are dropped in the end: the lock must be free again some day."""
    cdef QueuedPacket *batch[NET_BURST]
    cdef Packet pkts[NET_BURST]
    cdef QueuedPacket *spill
    cdef uint32_t n
    cdef uint32_t k
    cdef uint32_t i
    cdef uint64_t nbytes
    cdef uint32_t waiting = to.queue.count
    while to.queue.head != NULL and not to.delivering:
        if to.link_down:
            queue_drop_all(to, DROP_LINK_DOWN)
            break
        if not net_room(to):
            break
        if to.ctx.storm > NET_STORM:
            queue_drop_all(to, DROP_QUEUE_FULL)
            break
        n = 0
        while n < NET_BURST and to.queue.head != NULL:
            batch[n] = queue_pop(to)
            pkts[n] = batch[n].pkt
            n += 1
        spill = NULL
        if plain_for(to, pkts, n, &nbytes):
            k = receive_burst(to, pkts, n, nbytes)
        else:
            k = deliver_repaired(to, batch[0].sender, pkts, n, &spill)
        for i in range(n, k, -1):
            queue_push_front(to, batch[i - 1])
        for i in range(k):
            free(batch[i])
        if spill != NULL:
            spill_back(to, spill)
        if waiting > k:
            waiting -= k
        else:                       # these came during the loop
            to.ctx.storm += k - waiting
            waiting = 0


cdef void queue_drop_all(NetClientState *to, int reason) noexcept nogil:
    cdef QueuedPacket *q
    while to.queue.head != NULL:
        q = queue_pop(to)
        net_drop(to, &q.pkt, 1, False, reason)
        free(q)


cdef void settle(NetClientState *to) noexcept nogil:
    """After a delivery or a flush: deliver what queued meanwhile, and wake the sender if all of it is gone."""
    cdef NetClientState *peer
    if to.queue.head != NULL:
        drain(to)
    peer = to.peer
    # A sender that is blocked again while it resumes is resumed by the loop, not deeper: no recursion per packet.
    while peer != NULL and peer.blocked and not peer.resuming and net_can_receive(to):
        resume(peer)
        peer = to.peer


cdef inline void resume(NetClientState *nc) noexcept nogil:
    nc.blocked = False
    if nc.ops.resume != NULL and not nc.resuming:
        nc.resuming = True
        nc.ops.resume(nc)
        nc.resuming = False


# ------------------------------------------------------------------------------------------------------------------- send

cdef uint32_t keep_rest(NetClientState *nc, NetClientState *to, const Packet *pkts, uint32_t n, bint queue,
                        QueuedPacket *spill) noexcept nogil:
    """The rest of a burst, segments first, found no room: in front of what was sent from within that delivery."""
    cdef QueuedPacket *head = to.queue.head
    cdef QueuedPacket *tail = to.queue.tail
    cdef QueuedPacket *next
    cdef uint32_t k
    to.queue.head = NULL
    to.queue.tail = NULL
    while spill != NULL:
        next = spill.next
        queue_append(to, spill)
        spill = next
    k = hold(nc, to, pkts, n, queue)
    if head != NULL:
        if to.queue.tail == NULL:
            to.queue.head = head
        else:
            to.queue.tail.next = head
        to.queue.tail = tail
    return k


cdef inline uint32_t transmit(NetClientState *nc, NetClientState *to, const Packet *pkts, uint32_t n, bint queue,
                              uint64_t *nbytes) noexcept nogil:
    """To the peer or into its queue. nbytes: size of the burst where it was looked at, else left alone."""
    cdef QueuedPacket *spill = NULL
    cdef uint32_t k
    if not (to.delivering or to.queue.head != NULL) and net_room(to):
        if plain_for(to, pkts, n, nbytes):
            k = receive_burst(to, pkts, n, nbytes[0])
        else:
            k = deliver_repaired(to, nc, pkts, n, &spill)
        if k < n or spill != NULL:
            k += keep_rest(nc, to, pkts + k, n - k, queue, spill)
        if to.queue.head != NULL or nc.blocked:
            settle(to)
        return k
    return hold(nc, to, pkts, n, queue)


cdef uint32_t net_send(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    """Send a burst to the peer. Returns how many packets are no longer the sender's business: always n without flow control."""
    cdef NetClientState *to = nc.peer
    cdef uint32_t k
    cdef uint64_t nbytes = 0
    if n == 0:
        return 0
    if to == NULL or nc.link_down or to.link_down:                              # S10, S19
        net_drop(nc if to == NULL or nc.link_down else to, pkts, n, to == NULL or nc.link_down,
                 DROP_NO_PEER if to == NULL else DROP_LINK_DOWN)
        return n
    if nc.filters != NULL or to.filters != NULL:
        k = send_filtered(nc, to, pkts, n)
    else:
        k = transmit(nc, to, pkts, n, False, &nbytes)
    nc.stats.tx_packets += k
    nc.stats.tx_bytes += nbytes if nbytes and k == n else bytes_of(pkts, k)
    return k


cdef uint32_t net_loopback(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    """Receive what the client itself sent (S36): no filters, nothing queues; refused packets are dropped and counted."""
    cdef uint64_t nbytes
    cdef QueuedPacket *spill = NULL
    cdef QueuedPacket *q
    cdef uint32_t k = 0
    if not nc.delivering and nc.queue.head == NULL and net_room(nc):
        if plain_for(nc, pkts, n, &nbytes):
            k = receive_burst(nc, pkts, n, nbytes)
        else:
            k = deliver_repaired(nc, nc, pkts, n, &spill)
            while spill != NULL:
                q = spill
                spill = q.next
                net_drop(nc, &q.pkt, 1, False, DROP_NO_BUFFER)
                free(q)
        nc.receive_disabled = False
    if k < n:
        net_drop(nc, pkts + k, n - k, False, DROP_NO_BUFFER)
    settle(nc)                      # its peer may have sent meanwhile
    return n


cdef bint net_can_receive(NetClientState *nc) noexcept nogil:
    """Would a packet sent to this client be delivered now? (S17)"""
    return nc.queue.head == NULL and not nc.delivering and net_room(nc)


cdef bint net_can_send(NetClientState *nc) noexcept nogil:
    """Would a packet of this client be taken now? If not, it is resumed when it would. True without a peer or link: it is dropped,
    which needs no room."""
    if nc.peer == NULL or nc.link_down or nc.peer.link_down or net_can_receive(nc.peer):
        return True
    nc.blocked = True
    return False


cdef void net_flush(NetClientState *nc) noexcept nogil:
    """The receiver says: I have room (S31). Drains its queue, then lets its peer go on."""
    cdef NetClientState *peer
    nc.receive_disabled = False
    if nc.delivering:
        nc.delivering = 2
        return
    drain(nc)
    peer = nc.peer
    if peer == NULL or nc.queue.head != NULL or not net_room(nc):
        return
    resume(peer)
    settle(nc)


cdef uint32_t net_purge(NetClientState *queue_of, NetClientState *sender) noexcept nogil:
    """Drop what `sender` (NULL: anybody) has in the queue; number of packets (S33, S34)."""
    cdef QueuedPacket *q = queue_of.queue.head
    cdef QueuedPacket *next
    cdef uint32_t n = 0
    queue_of.ctx.queued -= queue_of.queue.count
    queue_of.queue.head = NULL
    queue_of.queue.tail = NULL
    queue_of.queue.count = 0
    queue_of.queue.bytes = 0
    while q != NULL:
        next = q.next
        if sender == NULL or q.sender == sender:
            net_drop(queue_of, &q.pkt, 1, False, DROP_PURGED)
            free(q)
            n += 1
        else:
            queue_append(queue_of, q)
        q = next
    return n


cdef void net_drop(NetClientState *nc, const Packet *pkts, uint32_t n, bint tx, int reason) noexcept nogil:
    """Count packets lost at `nc` (tx: while it sent them) and tell the filters that watch this link."""
    cdef NetFilter *f
    nc.stats.drops[reason] += n
    f = nc.filters
    while f != NULL:
        if f.on and f.ops.dropped != NULL:
            f.ops.dropped(f, pkts, n, tx, reason)
        f = f.next
    if nc.peer != NULL:
        f = nc.peer.filters
        while f != NULL:
            if f.on and f.ops.dropped != NULL:
                f.ops.dropped(f, pkts, n, not tx, reason)
            f = f.next


cdef void net_set_link(NetClientState *nc, bint up) noexcept nogil:
    """Link up or down (S55): a NIC behind this client loses or gets its link too; both sides are told, then queues move."""
    cdef NetClientState *peer = nc.peer
    nc.link_down = not up
    if nc.ops.link_status_changed != NULL:
        nc.ops.link_status_changed(nc)
    if peer != NULL:
        if peer.is_nic:
            peer.link_down = not up
        if peer.ops.link_status_changed != NULL:
            peer.ops.link_status_changed(peer)
    settle(nc)
    if peer != NULL:
        settle(peer)


# ---------------------------------------------------------------------------------------------------------------- filters

cdef uint32_t run_filters(NetClientState *nc, NetClientState *to, Packet *pkts, uint32_t n, NetFilter *after) noexcept nogil:
    """The sender's filters front to back, then the receiver's back to front (S13), from the one behind `after` on."""
    cdef NetFilter *f
    cdef NetFilter *next            # a filter may remove itself from within its receive
    if after == NULL or after.client == nc:
        f = nc.filters if after == NULL else after.next
        while f != NULL and n:
            next = f.next
            if f.on and f.direction & FILTER_TX:
                n = f.ops.receive(f, nc, pkts, n, True)
            f = next
        f = to.filters
        while f != NULL and f.next != NULL:
            f = f.next
    else:
        f = after.prev
    while f != NULL and n:
        next = f.prev
        if f.on and f.direction & FILTER_RX:
            n = f.ops.receive(f, nc, pkts, n, False)
        f = next
    return n


cdef uint32_t send_filtered(NetClientState *nc, NetClientState *to, const Packet *pkts, uint32_t n) noexcept nogil:
    """As transmit, through the filters. A filter sees a packet once, so what it let pass is never handed back: it queues."""
    cdef uint64_t nbytes = 0
    cdef Packet copy[NET_BURST]
    cdef const Packet *p
    cdef uint32_t done = 0
    cdef uint32_t left
    while done < n:
        if nc.flow_control and not net_can_receive(to):
            nc.blocked = True
            return done
        left = 0
        while done < n and left < NET_BURST:
            p = &pkts[done]
            if p.size == 0:                                                         # no filter sees these
                net_drop(to, p, 1, False, DROP_EMPTY)
            elif p.size > NET_MAX_PACKET or p.iovcnt > NET_MAX_IOV:
                net_drop(to, p, 1, False, DROP_OVERSIZE)
            else:
                copy[left] = p[0]
                left += 1
            done += 1
        if left:
            left = run_filters(nc, to, copy, left, NULL)
        if left:
            transmit(nc, to, copy, left, True, &nbytes)
    return done


cdef uint32_t net_pass_to_next(NetFilter *f, NetClientState *sender, const Packet *pkts, uint32_t n) noexcept nogil:
    """A filter lets go of packets it had consumed: on through the filters behind it, then to the peer (F5). At most NET_BURST."""
    cdef uint64_t nbytes = 0
    cdef Packet copy[NET_BURST]
    cdef NetClientState *to = sender.peer
    cdef uint32_t left
    if n > NET_BURST:
        n = NET_BURST
    if to == NULL or sender.link_down or to.link_down:
        net_drop(sender, pkts, n, True, DROP_NO_PEER if to == NULL else DROP_LINK_DOWN)
        return n
    memcpy(copy, pkts, n * sizeof(Packet))
    left = run_filters(sender, to, copy, n, f)
    if left:
        transmit(sender, to, copy, left, True, &nbytes)
    return n


cdef void net_filter_insert(NetFilter *f, NetClientState *nc, NetFilter *before) noexcept nogil:
    """Put a filter in front of `before`; NULL: at the end."""
    cdef NetFilter *last = nc.filters
    f.client = nc
    f.next = before
    if before != NULL:
        f.prev = before.prev
        before.prev = f
    else:
        while last != NULL and last.next != NULL:
            last = last.next
        f.prev = last
    if f.prev != NULL:
        f.prev.next = f
    else:
        nc.filters = f


cdef void net_filter_remove(NetFilter *f) noexcept nogil:
    if f.client == NULL:
        return
    if f.prev != NULL:
        f.prev.next = f.next
    else:
        f.client.filters = f.next
    if f.next != NULL:
        f.next.prev = f.prev
    f.prev = NULL
    f.next = NULL
    f.client = NULL


# ------------------------------------------------------------------------------------------------------------ null client

cdef uint32_t null_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    return n


cdef NetClientOps null_ops = NetClientOps(
    receive=null_receive,
    can_receive=NULL,
    resume=NULL,
    link_status_changed=NULL,
    cleanup=NULL,
)
