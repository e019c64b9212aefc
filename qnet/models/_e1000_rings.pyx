"""Interrupts, transmit and receive of the e1000: what runs per burst of packets. Registers and the object are in _e1000.pyx.

Written from the Intel 8254x software developer's manual (sections in brackets) and from what QEMU's model answers (facts I, T, RX
of the project's notes). The chip calls no VMM: it sets causes, computes one level, and irq_set moves the line.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from qnet._eth cimport ETH_ALEN, ETH_FCS_LEN, be16, eth_is_broadcast
from qnet._fastpath cimport (DROP_ADDRESS, DROP_DISABLED, DROP_DMA, DROP_EMPTY, DROP_MALFORMED, DROP_NO_BUFFER, DROP_OVERSIZE, GSO_ECN,
                             GSO_TCPV4, GSO_TCPV6, NET_BURST, NET_MAX_HDR, NET_MAX_IOV, OFF_NEEDS_CSUM, NetClientState, Packet, net_drop,
                             net_loopback, net_send)
from qnet._host cimport GuestMem, MemRegion, guest_peek, guest_poke, guest_read, guest_write, irq_set
from qnet._iov cimport iov_gather, iovec
from qnet._loop cimport loop_now, timer_set
from qnet.models._e1000_regs cimport *

cdef extern from "barrier.h" nogil:
    void qn_store_release8(uint8_t *p, uint8_t v)
    uint64_t qn_load_le64(const void *p)
    void qn_store_le64(void *p, uint64_t v)
    void qn_prefetch(const void *p)
    void qn_prefetchw(const void *p)

cdef extern from "csum.h" nogil:
    uint64_t qn_csum(const void *p, size_t len, uint64_t sum)
    uint64_t qn_csum_iov(const iovec *iov, unsigned iovcnt, size_t off, size_t len, uint64_t sum)
    uint16_t qn_csum_fold(uint64_t sum)
    int qn_rx_csum_check(const iovec *iov, unsigned iovcnt, size_t size)

cdef extern from "gso.h" nogil:
    struct qn_gso_plan:
        uint16_t hdr_len, mss, ip_off
        uint8_t ip_version, l4_proto
        uint16_t l4_off
        uint8_t ip_sum, l4_sum
        uint16_t ip_sum_from, ip_sum_at, ip_sum_end, l4_sum_from, l4_sum_at, l4_sum_end
        uint32_t pseudo_len
    struct qn_gso:
        pass
    int qn_gso_start(qn_gso *g, const qn_gso_plan *plan, const iovec *iov, unsigned iovcnt, size_t size)
    int qn_gso_next(qn_gso *g, uint8_t *hdr, iovec *out, unsigned max, size_t *size_out)

cdef enum:
    RX_MAX = 1518                   # bytes without FCS: 1514 and a VLAN tag (RX5)
    RX_MAX_LPE = 16380
    MIT_UNIT_NS = 256
    MIT_MIN = 500                   # at most 7813 interrupts a second (I4)


# ------------------------------------------------------------------------------------------------------------- interrupts

cdef void set_icr(E1000State *s, uint32_t value) noexcept nogil:
    s.mac[ICR >> 2] = value
    update_irq(s)


cdef void set_cause(E1000State *s, uint32_t causes) noexcept nogil:
    set_icr(s, s.mac[ICR >> 2] | causes)


cdef void update_irq(E1000State *s) noexcept nogil:
    """The level is (ICR & IMS) != 0 (I2); a rise within a mitigation window waits for its end (I3)."""
    cdef uint32_t pending = s.mac[ICR >> 2] & s.mac[IMS >> 2]
    if not pending:
        s.line = 0
    elif not s.line:
        if s.has & HAS_MIT:
            if s.window:
                return
            open_window(s, pending)
        s.line = 1
    sync_irq(s)


cdef void sync_irq(E1000State *s) noexcept nogil:
    """The one place that moves the line: COMMAND's interrupt-disable bit keeps it down."""
    irq_set(s.irq, s.line if not s.intx_off else 0)


cdef inline uint32_t shorter(uint32_t a, uint32_t b) noexcept nogil:
    return b if b and (not a or b < a) else a


cdef void open_window(E1000State *s, uint32_t pending) noexcept nogil:
    """For how long no further interrupt may rise (I4): the shortest of the delays that apply (13.4.18, 13.4.30, 13.4.45)."""
    cdef uint32_t units = 0
    if s.ide and pending & (ICR_TXQE | ICR_TXDW):
        units = shorter(units, s.mac[TADV >> 2] * 4)
        s.ide = False
    if s.mac[RDTR >> 2] and pending & ICR_RXT0:
        units = shorter(units, s.mac[RADV >> 2] * 4)
    units = shorter(units, s.mac[ITR >> 2])
    if units < MIT_MIN:
        units = MIT_MIN
    s.window = timer_set(&s.mit_timer, loop_now(s.loop) + <int64_t>units * MIT_UNIT_NS) == 0


cdef void mit_expired(void *opaque) noexcept nogil:
    cdef E1000State *s = <E1000State *>opaque
    s.window = False
    update_irq(s)


# --------------------------------------------------------------------------------------------------------------- counters

cdef inline void count32(E1000State *s, uint32_t reg, uint64_t n) noexcept nogil:
    """Counters stick at the top (R3)."""
    cdef uint64_t v = s.mac[reg >> 2] + n
    s.mac[reg >> 2] = <uint32_t>v if v >> 32 == 0 else ~<uint32_t>0


cdef inline void count64(E1000State *s, uint32_t low, uint64_t n) noexcept nogil:
    cdef uint64_t v = s.mac[low >> 2] | <uint64_t>s.mac[(low >> 2) + 1] << 32
    v = ~<uint64_t>0 if v + n < v else v + n
    s.mac[low >> 2] = <uint32_t>v
    s.mac[(low >> 2) + 1] = <uint32_t>(v >> 32)


cdef inline uint32_t size_class(uint32_t n) noexcept nogil:
    """0..5 for frames of 64, 65-127, 128-255, 256-511, 512-1023, 1024 and more bytes, FCS included (13.7.25); 6 for runts, which no
    register counts."""
    if n >= 1024:
        return 5
    return 6 if n < 64 else 0 if n == 64 else 1 if n <= 127 else 2 if n <= 255 else 3 if n <= 511 else 4


# --------------------------------------------------------------------------------------------------------------- transmit
# Descriptors are gathered into a burst of packets that refer to guest memory, sent at once, and only then written back: a
# driver that sees DD may reuse its buffer. What is left of an incomplete packet is copied to tx_buf first.

cdef inline bint loops_back(E1000State *s) noexcept nogil:
    return (s.phy[PHY_CTRL] & PHY_CTRL_LOOPBACK) != 0 or \
        (s.ways & WAY_MAC_LOOPBACK != 0 and s.mac[RCTL >> 2] & RCTL_LBM_MAC != 0)


cdef inline iovec *frags(E1000State *s) noexcept nogil:
    return &s.burst.iov[s.burst.k + 1]


cdef void tx_copy_frags(E1000State *s) noexcept nogil:
    """Make the packet being gathered one element in tx_buf, which no complete packet uses."""
    cdef iovec *f = frags(s)
    cdef uint32_t i
    cdef uint32_t at = 0
    for i in range(s.pkt.nfrag):
        if i or not s.pkt.in_buf:
            memcpy(s.tx_buf + at, f[i].iov_base, f[i].iov_len)
        at += <uint32_t>f[i].iov_len
    f[0].iov_base = s.tx_buf
    f[0].iov_len = at
    s.pkt.nfrag = 1
    s.pkt.in_buf = True


cdef uint64_t desc_at(E1000State *s, uint32_t base, uint32_t head) noexcept nogil:
    return (s.mac[base >> 2] & ~<uint32_t>15) + (<uint64_t>s.mac[(base >> 2) + 1] << 32) + 16 * <uint64_t>head


cdef inline bint desc_read(GuestMem *mem, uint64_t ring, uint32_t head, void *to, uint32_t n) noexcept nogil:
    """The first n bytes of a descriptor; a ring at the top of the address space does not go on at its bottom."""
    cdef uint64_t at = ring + 16 * <uint64_t>head
    return at >= ring and guest_read(mem, at, to, n)


cdef inline bint desc_write(GuestMem *mem, uint64_t ring, uint32_t head, uint32_t off, const void *data, uint32_t n) noexcept nogil:
    cdef uint64_t at = ring + 16 * <uint64_t>head
    return at >= ring and guest_write(mem, at + off, data, n)


cdef void tx_flush(E1000State *s) noexcept nogil:
    """Send the burst, then write back the descriptors that were used up (T12)."""
    cdef TxBurst *b = s.burst
    cdef uint32_t i
    cdef uint32_t ring
    cdef uint32_t head
    cdef uint64_t at
    cdef uint8_t status
    cdef uint8_t *base
    if b.n:
        if loops_back(s):
            net_loopback(s.nc, b.pkts, b.n)
        else:
            net_send(s.nc, b.pkts, b.n)
        b.buf_used = False
    if s.pkt.nfrag:
        tx_copy_frags(s)
        b.iov[1] = frags(s)[0]
    b.n = 0
    b.k = 0
    count_flush(s)
    ring = s.mac[TDLEN >> 2] >> 4
    head = b.first
    at = desc_at(s, TDBAL, 0)
    base = <uint8_t *>guest_poke(s.mem, at, <uint64_t>ring * 16) if ring else NULL
    for i in range(b.ndesc):
        if b.back[i]:
            if base != NULL and head < ring:
                qn_store_release8(base + 16 * head + 12, <uint8_t>b.back[i])
            else:
                status = <uint8_t>b.back[i]
                desc_write(s.mem, at, head, 12, &status, 1)
        head += 1
        if head >= ring:
            head = 0
    b.first = head
    b.ndesc = 0


cdef void tx_add(E1000State *s, uint64_t addr, uint32_t n) noexcept nogil:
    """Append guest memory to the packet: referred to where it is mapped in one piece, else copied."""
    cdef uint32_t room = (NET_MAX_TSO if s.pkt.tse else TX_BUF_SIZE)
    cdef iovec *f
    cdef void *p
    room = room - s.pkt.size if room > s.pkt.size else 0
    if n > room:
        s.pkt.over = s.pkt.tse
        n = room
    if n == 0:
        return
    p = guest_peek(s.mem, addr, n)
    if p == NULL or s.pkt.nfrag == NET_MAX_IOV - 2:
        if s.burst.buf_used:
            tx_flush(s)
        tx_copy_frags(s)
        f = frags(s)
        if p != NULL:
            memcpy(s.tx_buf + s.pkt.size, p, n)
        elif not guest_read(s.mem, addr, s.tx_buf + s.pkt.size, n):
            memset(s.tx_buf + s.pkt.size, 0, n)
            s.pkt.lost = True
        f[0].iov_len += n
    else:
        f = frags(s) + s.pkt.nfrag
        f.iov_base = p
        f.iov_len = n
        s.pkt.nfrag += 1
        if s.pkt.popts & POPTS_TXSM and not s.pkt.tse:
            room = 64                           # the sum comes later in the burst: its bytes can be under way
            while room < n:
                qn_prefetch(<uint8_t *>p + room)
                room += 64
    s.pkt.size += n


cdef inline void count_tx(TxCounts *c, uint32_t size, uint32_t frames, const uint8_t *dst) noexcept nogil:
    """T13: sizes count the FCS. The registers are brought up to date when the burst is flushed."""
    c.frames += frames
    c.nbytes += <uint64_t>(size + ETH_FCS_LEN) * frames
    c.sizes[size_class(size + ETH_FCS_LEN)] += frames
    if dst[0] & 1:
        if eth_is_broadcast(dst):
            c.broadcast += frames
        else:
            c.multicast += frames


cdef inline void add_counts(TxCounts *to, const TxCounts *c) noexcept nogil:
    cdef uint32_t i
    to.frames += c.frames
    to.nbytes += c.nbytes
    to.multicast += c.multicast
    to.broadcast += c.broadcast
    for i in range(7):
        to.sizes[i] += c.sizes[i]


cdef void count_flush(E1000State *s) noexcept nogil:
    cdef TxCounts *c = &s.burst.counts
    cdef uint32_t i
    if not c.frames:
        return
    count32(s, TPT, c.frames)
    count32(s, GPTC, c.frames)
    count64(s, TOTL, c.nbytes)
    count64(s, GOTCL, c.nbytes)
    for i in range(6):
        count32(s, PTC64 + 4 * i, c.sizes[i])
    count32(s, MPTC, c.multicast)
    count32(s, BPTC, c.broadcast)
    memset(c, 0, sizeof(c[0]))


cdef inline void tx_push(E1000State *s, iovec *iov, uint32_t cnt, uint32_t size) noexcept nogil:
    """A plain packet of the elements iov[0..cnt) is complete; they lie in burst.iov from k on."""
    cdef TxBurst *b = s.burst
    cdef Packet *p = &b.pkts[b.n]
    p.iov = iov
    p.iovcnt = cnt
    p.size = size
    memset(&p.off, 0, sizeof(p.off))
    b.n += 1
    b.k = <uint32_t>(iov - b.iov) + cnt
    if s.pkt.in_buf:
        b.buf_used = True


cdef iovec *tx_header(E1000State *s, uint32_t n) noexcept nogil:
    """Copy the first n bytes of the packet to a header of its own; returns the element that holds it, followed by the rest."""
    cdef uint8_t *hdr = s.burst.hdr[s.burst.n]
    cdef iovec *f = frags(s)
    cdef uint32_t skip = n
    iov_gather(f, s.pkt.nfrag, 0, hdr, n)
    while s.pkt.nfrag and skip >= f.iov_len:
        skip -= <uint32_t>f.iov_len
        f += 1
        s.pkt.nfrag -= 1
    if s.pkt.nfrag:
        f.iov_base = <uint8_t *>f.iov_base + skip
        f.iov_len -= skip
    f -= 1                          # there is an element in front of every packet's fragments
    f.iov_base = hdr
    f.iov_len = n
    return f


cdef uint32_t insert_tag(E1000State *s, uint8_t *hdr, uint32_t n) noexcept nogil:
    """Put VET and the tag behind the addresses (T10); length of the header."""
    if not s.pkt.vlan:
        return n
    memmove(hdr + 16, hdr + 12, n - 12)
    hdr[12] = <uint8_t>(s.mac[VET >> 2] >> 8)
    hdr[13] = <uint8_t>s.mac[VET >> 2]
    hdr[14] = <uint8_t>(s.pkt.vlan_tci >> 8)
    hdr[15] = <uint8_t>s.pkt.vlan_tci
    return n + 4


cdef void store_sum(uint8_t *hdr, uint32_t at, const iovec *iov, uint32_t cnt, uint32_t begin, uint32_t end) noexcept nogil:
    """Checksum of [begin, end) of the packet, with what stands at `at` included, into the header; 0 is stored as 0xFFFF (T9)."""
    cdef uint16_t v = <uint16_t>~qn_csum_fold(qn_csum_iov(iov, cnt, begin, end - begin, 0)) if end > begin else <uint16_t>0xffff
    if v == 0:
        v = 0xffff
    memcpy(hdr + at, &v, 2)


cdef void tx_complete(E1000State *s) noexcept nogil:
    """EOP: the packet is whole. Apply what its descriptors ask for and put it into the burst (3.3, 3.4)."""
    cdef TxPacket *k = &s.pkt
    cdef uint8_t first[ETH_ALEN]
    cdef iovec *f = frags(s)
    if k.lost or k.over or k.size == 0:
        s.nc.stats.drops[<int>DROP_DMA if k.lost else <int>DROP_OVERSIZE if k.over else <int>DROP_EMPTY] += 1
    elif k.tse:
        tx_tso(s)
    elif k.vlan or k.popts or k.legacy_csum:
        tx_edit(s)
    else:
        if k.size >= ETH_ALEN and f.iov_len >= ETH_ALEN:
            count_tx(&s.burst.counts, k.size, 1, <uint8_t *>f.iov_base)
        else:
            memset(first, 0, sizeof(first))
            iov_gather(f, k.nfrag, 0, first, sizeof(first))
            count_tx(&s.burst.counts, k.size, 1, first)
        tx_push(s, f, k.nfrag, k.size)
    memset(k, 0, sizeof(k[0]))


cdef void tx_edit(E1000State *s) noexcept nogil:
    """A packet with checksums or a tag to insert. The IP checksum is computed here; the other one is left to the receiver
    where an Offload record can say it (it sums to the end of the packet)."""
    cdef TxPacket *k = &s.pkt
    cdef TxContext *c = &s.sum_ctx
    cdef TxBurst *b = s.burst
    cdef uint32_t size = k.size
    cdef uint32_t hlen = 16 if size >= 16 else size
    cdef bint ip = (k.popts & POPTS_IXSM) != 0
    cdef bint l4 = k.legacy_csum or (k.popts & POPTS_TXSM) != 0
    cdef uint32_t css = k.css if k.legacy_csum else c.tucss
    cdef uint32_t cso = k.cso if k.legacy_csum else c.tucso
    cdef uint32_t cse = 0 if k.legacy_csum else c.tucse
    cdef uint32_t end = cse + 1 if cse and cse + 1 < size else size
    cdef uint32_t ip_end = <uint32_t>c.ipcse + 1 if c.ipcse and <uint32_t>c.ipcse + 1 < size else size
    cdef bint defer
    cdef uint8_t *hdr
    cdef iovec *f
    cdef iovec *whole = frags(s)
    cdef iovec copy[NET_MAX_IOV]
    cdef uint32_t cnt = k.nfrag
    if size < 2 * ETH_ALEN:
        k.vlan = False
    # what lies outside its range is not inserted (3.3.3, T9)
    l4 = l4 and cso + 1 < end and not (k.legacy_csum and css >= size)
    ip = ip and <uint32_t>c.ipcso + 1 < ip_end
    # the other sum is left to the receiver only where neither covers the other's field, nor the tag
    defer = l4 and end == size and css <= cso and cso + 6 <= NET_MAX_HDR and not (k.vlan and css < 2 * ETH_ALEN) and \
        not (ip and (<uint32_t>c.ipcso + 1 >= css or (cso < ip_end and cso + 1 >= c.ipcss)))
    if ip and <uint32_t>c.ipcso + 2 > hlen:
        hlen = c.ipcso + 2
    if l4 and not defer and cso + 2 > hlen:
        hlen = cso + 2
    memcpy(copy, whole, cnt * sizeof(iovec))            # tx_header cuts the fragments; the sums need them whole
    hdr = b.hdr[b.n]
    f = tx_header(s, hlen)
    if l4 and not defer:
        store_sum(hdr, cso, copy, cnt, css, end)
    if ip:
        if l4 and not defer:                            # sum what was stored
            copy[0].iov_base = hdr
            copy[0].iov_len = hlen
            memcpy(&copy[1], f + 1, k.nfrag * sizeof(iovec))
            cnt = k.nfrag + 1
        store_sum(hdr, c.ipcso, copy, cnt, c.ipcss, ip_end)
    f.iov_len = insert_tag(s, hdr, hlen)
    if k.vlan:
        size += 4
        css += 4
        cso += 4
    if size >= ETH_ALEN:
        count_tx(&s.burst.counts, size, 1, hdr)
    tx_push(s, f, k.nfrag + 1, size)
    if defer:
        b.pkts[b.n - 1].off.flags = OFF_NEEDS_CSUM
        b.pkts[b.n - 1].off.csum_start = <uint16_t>css
        b.pkts[b.n - 1].off.csum_offset = <uint16_t>(cso - css)


cdef bint tso_is_plain(E1000State *s, const uint8_t *h) noexcept nogil:
    """Does the context describe this header as ordinary TCP over IPv4 or IPv6? Then the packet can go on whole, as GSO."""
    cdef TxContext *c = &s.tso_ctx
    cdef uint32_t l3 = c.ipcss
    cdef uint32_t l4 = c.tucss
    if not c.tcp or not s.pkt.popts & POPTS_TXSM or c.tucse or c.tucso != l4 + 16 or l3 < 14 or c.hdr_len < l4 + 20 or l4 < l3 + 20:
        return False
    if c.hdr_len != l4 + (h[l4 + 12] >> 4) * 4 or c.mss == 0:
        return False
    if c.ip:
        return (s.pkt.popts & POPTS_IXSM) != 0 and be16(h + l3 - 2) == 0x0800 and h[l3] >> 4 == 4 and \
            <uint32_t>(h[l3] & 15) * 4 == l4 - l3 and h[l3 + 9] == 6 and c.ipcso == l3 + 10 and c.ipcse == l4 - 1
    return be16(h + l3 - 2) == 0x86DD and h[l3] >> 4 == 6 and h[l3 + 6] == 6 and l4 == l3 + 40


cdef void tx_tso(E1000State *s) noexcept nogil:
    """TCP segmentation (3.5). An ordinary packet goes on whole with its offload record; the peer, or the core, segments it.
    Anything else is cut here by the letter of the context descriptor (T8)."""
    cdef TxPacket *k = &s.pkt
    cdef TxContext *c = &s.tso_ctx
    cdef TxBurst *b = s.burst
    cdef uint32_t l3 = c.ipcss
    cdef uint32_t l4 = c.tucss
    cdef uint32_t hlen = c.hdr_len
    cdef uint32_t size = k.size
    cdef uint32_t payload
    cdef uint32_t nseg
    cdef uint32_t sum
    cdef uint16_t v
    cdef uint8_t gso
    cdef uint8_t *hdr = b.hdr[b.n]
    cdef iovec *f
    cdef Packet *p
    if hlen == 0 or c.mss == 0 or size <= hlen:
        s.nc.stats.drops[<int>DROP_MALFORMED] += 1
        return
    f = tx_header(s, hlen)
    if not tso_is_plain(s, hdr):
        tx_cut(s, f)
        return
    payload = size - hlen
    nseg = (payload + c.mss - 1) // c.mss
    # Into the form of an Offload record: lengths of the whole packet, and its L4 length in the pseudo-header sum.
    if c.ip:
        hdr[l3 + 2] = <uint8_t>((size - l3) >> 8)
        hdr[l3 + 3] = <uint8_t>(size - l3)
        hdr[l3 + 10] = 0
        hdr[l3 + 11] = 0
        v = <uint16_t>~qn_csum_fold(qn_csum(hdr + l3, l4 - l3, 0))
        memcpy(hdr + l3 + 10, &v, 2)
        gso = GSO_TCPV4
    else:
        hdr[l3 + 4] = <uint8_t>((size - l4) >> 8)
        hdr[l3 + 5] = <uint8_t>(size - l4)
        gso = GSO_TCPV6
    sum = <uint32_t>be16(hdr + l4 + 16) + (size - l4)
    sum = (sum & 0xffff) + (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16)
    hdr[l4 + 16] = <uint8_t>(sum >> 8)
    hdr[l4 + 17] = <uint8_t>sum
    if hdr[l4 + 13] & 0x80:
        gso |= GSO_ECN
    f.iov_len = insert_tag(s, hdr, hlen)
    if k.vlan:
        size += 4
        hlen += 4
        l4 += 4
    if nseg > 1:
        count_tx(&s.burst.counts, hlen + c.mss, nseg - 1, hdr)
        count32(s, TSCTC, 1)
    count_tx(&s.burst.counts, hlen + payload - (nseg - 1) * c.mss, 1, hdr)
    tx_push(s, f, k.nfrag + 1, size)
    p = &b.pkts[b.n - 1]
    p.off.flags = OFF_NEEDS_CSUM
    p.off.csum_start = <uint16_t>l4
    p.off.csum_offset = 16
    if nseg > 1:
        p.off.gso_type = gso
        p.off.gso_size = c.mss
        p.off.hdr_len = <uint16_t>hlen


cdef void tx_cut(E1000State *s, iovec *f) noexcept nogil:
    """Segment by the context's own fields, whatever they say, and send at once. f: the header's element."""
    cdef TxContext *c = &s.tso_ctx
    cdef TxBurst *b = s.burst
    cdef qn_gso_plan plan
    cdef qn_gso g
    cdef iovec whole[NET_MAX_IOV]
    cdef uint32_t cnt = s.pkt.nfrag + 1
    cdef uint8_t hdr0[NET_MAX_HDR]
    cdef uint32_t frames = 0
    cdef size_t size
    cdef int used
    # The elements and the header may lie where the segments are built: keep them aside, and let what is complete go first.
    memcpy(whole, f, cnt * sizeof(iovec))
    memcpy(hdr0, f.iov_base, f.iov_len)
    whole[0].iov_base = hdr0
    s.pkt.nfrag = 0
    if b.buf_used:
        b.buf_used = False
    if b.n:
        if loops_back(s):
            net_loopback(s.nc, b.pkts, b.n)
        else:
            net_send(s.nc, b.pkts, b.n)
    b.n = 0
    b.k = 0
    memset(&plan, 0, sizeof(plan))
    plan.hdr_len = c.hdr_len
    plan.mss = c.mss
    plan.ip_off = c.ipcss
    plan.ip_version = 4 if c.ip else 6
    plan.l4_proto = 6 if c.tcp else 17
    plan.l4_off = c.tucss
    plan.ip_sum = (s.pkt.popts & POPTS_IXSM) != 0 and (c.ipcse == 0 or c.ipcso < c.ipcse)      # T9
    plan.ip_sum_from = c.ipcss
    plan.ip_sum_at = c.ipcso
    plan.ip_sum_end = <uint16_t>(c.ipcse + 1) if c.ipcse and c.ipcse < 0xffff else 0
    plan.l4_sum = (s.pkt.popts & POPTS_TXSM) != 0 and (c.tucse == 0 or c.tucso < c.tucse)
    plan.l4_sum_from = c.tucss
    plan.l4_sum_at = c.tucso
    plan.l4_sum_end = <uint16_t>(c.tucse + 1) if c.tucse and c.tucse < 0xffff else 0
    if qn_gso_start(&g, &plan, whole, cnt, s.pkt.size) < 0:
        s.nc.stats.drops[<int>DROP_MALFORMED] += 1
        return
    while True:
        used = 0
        if b.n < NET_BURST and b.k + NET_MAX_IOV < TX_IOV:
            used = qn_gso_next(&g, b.hdr[b.n], &b.iov[b.k], NET_MAX_IOV - 1, &size)
        if used > 0:
            b.iov[b.k].iov_len = insert_tag(s, b.hdr[b.n], <uint32_t>b.iov[b.k].iov_len)
            if s.pkt.vlan:
                size += 4
            count_tx(&s.burst.counts, <uint32_t>size, 1, b.hdr[b.n])
            tx_push(s, &b.iov[b.k], <uint32_t>used, <uint32_t>size)
            frames += 1
            continue
        if b.n == 0:
            break
        if loops_back(s):
            net_loopback(s.nc, b.pkts, b.n)
        else:
            net_send(s.nc, b.pkts, b.n)
        b.n = 0
        b.k = 0
        b.buf_used = False
    if frames > 1:
        count32(s, TSCTC, 1)


cdef void tx_context(E1000State *s, uint64_t d0, uint64_t d1) noexcept nogil:
    """A context descriptor (3.3.6): TSE chooses which of the two sets it loads (T4)."""
    cdef TxContext *c = &s.tso_ctx if d1 & TXD_TSE else &s.sum_ctx
    c.ipcss = <uint8_t>d0
    c.ipcso = <uint8_t>(d0 >> 8)
    c.ipcse = <uint16_t>(d0 >> 16)
    c.tucss = <uint8_t>(d0 >> 32)
    c.tucso = <uint8_t>(d0 >> 40)
    c.tucse = <uint16_t>(d0 >> 48)
    c.paylen = <uint32_t>(d1 & 0xfffff)
    c.hdr_len = <uint8_t>(d1 >> 40)
    c.mss = <uint16_t>(d1 >> 48)
    c.tcp = (d1 & TXD_CTX_TCP) != 0
    c.ip = (d1 & TXD_CTX_IP) != 0


cdef inline void tx_descriptor(E1000State *s, uint64_t d0, uint64_t d1) noexcept nogil:
    cdef TxPacket *k = &s.pkt
    cdef uint32_t lower = <uint32_t>d1
    cdef uint32_t upper = <uint32_t>(d1 >> 32)
    if lower & TXD_IDE:
        s.ide = True
    if lower & TXD_DEXT:
        if not lower & TXD_DTYP_D:
            tx_context(s, d0, d1)
            return
        if not k.descs:
            k.popts = <uint8_t>(upper >> 8) & (POPTS_IXSM | POPTS_TXSM)        # of the first descriptor only (T5)
        k.tse = (lower & TXD_TSE) != 0
        lower &= ~<uint32_t>TXD_IC
    else:
        if not k.descs:
            k.css = <uint8_t>(upper >> 8)               # of the first descriptor; CSO of the last (3.3.3)
        k.tse = False
    k.descs += 1
    if lower & TXD_VLE and s.mac[CTRL >> 2] & CTRL_VME and (k.tse or lower & TXD_EOP):
        k.vlan = True
        k.vlan_tci = <uint16_t>(upper >> 16)
    tx_add(s, d0, lower & (0xfffff if lower & TXD_DEXT else 0xffff))
    if not lower & TXD_EOP:
        return
    if lower & TXD_IC and s.ways & WAY_LEGACY_CSUM:
        k.legacy_csum = True
        k.cso = <uint8_t>(lower >> 16)
    tx_complete(s)


cdef struct TxRing:
    uint64_t at                     # guest address
    uint8_t *base                   # NULL: not mapped in one piece
    uint32_t len
    uint32_t start
    uint32_t head
    uint32_t tail
    bint ended                      # the head came back to where it began, or began outside (T2)


cdef inline void tx_advance(TxRing *r) noexcept nogil:
    r.head += 1
    if r.head >= r.len:
        r.head = 0
    r.ended = r.head == r.start or r.start >= r.len


cdef bint tx_simple_run(E1000State *s, TxRing *r) noexcept nogil:
    """Most packets are one legacy descriptor that asks for nothing but a write-back. Gather a run of them with everything in
    registers; True if any wants a write-back."""
    cdef TxBurst *b = s.burst
    cdef TxCounts c
    cdef MemRegion *m
    cdef uint8_t *base = r.base
    cdef uint8_t *host
    cdef uint8_t *frame
    cdef uint64_t d0
    cdef uint64_t d1
    cdef uint64_t ahead
    cdef uint64_t gpa
    cdef uint64_t span
    cdef uint32_t head = r.head
    cdef uint32_t size
    cdef uint32_t n = b.n
    cdef uint32_t k = b.k
    cdef uint32_t nd = b.ndesc
    cdef bint reports = False
    cdef Packet *p
    if s.mem.last >= s.mem.count:
        return False
    m = &s.mem.regions[s.mem.last]
    host = m.host
    gpa = m.gpa
    span = m.size
    if host == NULL:
        return False
    memset(&c, 0, sizeof(c))
    while head < r.len and n < NET_BURST and nd < TX_DESCS and k + NET_MAX_IOV + 2 <= TX_IOV:
        d1 = qn_load_le64(base + 16 * head + 8)
        size = <uint32_t>d1 & 0xffff
        if d1 & (<uint64_t>TXD_DEXT | TXD_EOP | TXD_IC | TXD_VLE | TXD_IDE) != TXD_EOP or size < ETH_ALEN:
            break
        d0 = qn_load_le64(base + 16 * head) - gpa
        if d0 >= span or size > span - d0:
            break
        frame = host + d0
        if head + 16 < r.len:
            ahead = qn_load_le64(base + 16 * (head + 16)) - gpa
            if ahead < span:
                qn_prefetch(host + ahead)
        b.back[nd] = 0
        if d1 & (<uint64_t>TXD_RS | TXD_RPS):
            b.back[nd] = write_back(d1)
            reports = True
        nd += 1
        b.iov[k].iov_base = frame
        b.iov[k].iov_len = size
        p = &b.pkts[n]
        p.iov = &b.iov[k]
        p.iovcnt = 1
        p.size = size
        memset(&p.off, 0, sizeof(p.off))
        k += 1
        n += 1
        count_tx(&c, size, 1, frame)
        head += 1
        if head >= r.len:
            head = 0
        if head == r.start:
            r.ended = True
            break
        if head == r.tail:
            break
    add_counts(&b.counts, &c)
    b.n = n
    b.k = k
    b.ndesc = nd
    r.head = head
    return reports


cdef inline uint16_t write_back(uint64_t d1) noexcept nogil:
    """The status byte of a descriptor that is done, marked as wanted (T12)."""
    return <uint16_t>(0x100 | ((d1 >> 32) & 0xff & ~<uint64_t>(TXD_STAT_EC | TXD_STAT_LC | TXD_STAT_TU)) | TXD_STAT_DD)


cdef void transmit(E1000State *s) noexcept nogil:
    """Send from TDH to TDT (3.4, T1): the whole ring at most, so that a head or tail outside it ends (T2)."""
    cdef TxBurst *b = s.burst
    cdef TxRing r
    cdef uint32_t causes = ICR_TXQE
    cdef uint64_t desc[2]
    cdef void *ahead
    if not s.mac[TCTL >> 2] & TCTL_EN or s.tx_busy or not s.bus_master:
        return
    s.tx_busy = True
    r.at = desc_at(s, TDBAL, 0)
    r.len = s.mac[TDLEN >> 2] >> 4
    r.start = r.head = s.mac[TDH >> 2]
    r.tail = s.mac[TDT >> 2]
    r.ended = False
    r.base = <uint8_t *>guest_peek(s.mem, r.at, <uint64_t>r.len * 16) if r.len else NULL
    b.n = b.k = b.ndesc = 0
    b.first = r.head
    b.buf_used = False
    if s.pkt.nfrag:                                     # what an earlier doorbell left
        b.iov[1].iov_base = s.tx_buf
        b.iov[1].iov_len = s.pkt.size
    while r.head != r.tail and not r.ended:
        if (not s.pkt.nfrag and (b.n == NET_BURST or b.k + NET_MAX_IOV + 2 > TX_IOV)) or b.ndesc == TX_DESCS:
            tx_flush(s)
        if r.base != NULL and r.head < r.len:
            if not s.pkt.descs:
                if tx_simple_run(s, &r):
                    causes |= ICR_TXDW
                if r.head == r.tail or r.ended or b.n == NET_BURST or b.ndesc == TX_DESCS or b.k + NET_MAX_IOV + 2 > TX_IOV:
                    continue
            desc[0] = qn_load_le64(r.base + 16 * r.head)
            desc[1] = qn_load_le64(r.base + 16 * r.head + 8)
            if r.head + 8 < r.len:
                ahead = guest_peek(s.mem, qn_load_le64(r.base + 16 * (r.head + 8)), 64)
                if ahead != NULL:
                    qn_prefetch(ahead)
        elif desc_read(s.mem, r.at, r.head, desc, 16):
            desc[0] = qn_load_le64(desc)
            desc[1] = qn_load_le64(&desc[1])
        else:
            desc[0] = desc[1] = 0                       # no memory there: nothing to send, nothing to write back
        tx_descriptor(s, desc[0], desc[1])              # may flush the descriptors before this one
        b.back[b.ndesc] = 0
        if desc[1] & (<uint64_t>TXD_RS | TXD_RPS):
            b.back[b.ndesc] = write_back(desc[1])
            causes |= ICR_TXDW
        b.ndesc += 1
        tx_advance(&r)
    tx_flush(s)
    s.mac[TDH >> 2] = r.head
    s.tx_busy = False
    set_cause(s, causes)


# ---------------------------------------------------------------------------------------------------------------- receive

cdef bint chip_can_receive(NetClientState *nc) noexcept nogil:
    """RX1. A receiver that is switched off has room: it drops (13.4.22, RCTL.EN), unless told QEMU's way."""
    cdef E1000State *s = <E1000State *>nc.opaque
    if not s.mac[RCTL >> 2] & RCTL_EN and s.ways & WAY_RX_DISABLED:
        return True
    return s.mac[STATUS >> 2] & STATUS_LU and s.mac[RCTL >> 2] & RCTL_EN and s.bus_master and \
        s.mac[RDH >> 2] != s.mac[RDT >> 2] and s.rx_timer.slot < 0


cdef inline bint exact_match(E1000State *s, const uint8_t *dst) noexcept nogil:
    """One of the 16 receive addresses (13.5.2, 13.5.3)."""
    cdef uint32_t low = dst[0] | dst[1] << 8 | dst[2] << 16 | <uint32_t>dst[3] << 24
    cdef uint32_t high = dst[4] | dst[5] << 8
    cdef uint32_t *ra = &s.mac[RA >> 2]
    cdef uint32_t i
    for i in range(0, 32, 2):
        if ra[i + 1] & RAH_AV and ra[i] == low and (ra[i + 1] & 0xffff) == high:
            return True
    return False


cdef inline bint hash_match(E1000State *s, const uint8_t *dst) noexcept nogil:
    """The multicast table: 12 bits of the address that RCTL.MO chooses (13.5.1)."""
    cdef uint32_t mo = (s.mac[RCTL >> 2] >> 12) & 3
    cdef uint32_t hash = ((<uint32_t>dst[5] << 8 | dst[4]) >> (0 if mo == 3 else 4 - mo)) & 0xfff
    return (s.mac[(MTA >> 2) + (hash >> 5)] >> (hash & 31)) & 1


cdef inline bint address_passes(E1000State *s, const uint8_t *h) noexcept nogil:
    """RX6: VLAN filter, then promiscuous modes, broadcast, exact addresses, multicast hash."""
    cdef uint32_t rctl = s.mac[RCTL >> 2]
    cdef uint32_t vid
    if rctl & RCTL_VFE and be16(h + 12) == s.mac[VET >> 2]:
        vid = be16(h + 14) & 0xfff
        if not (s.mac[(VFTA >> 2) + (vid >> 5)] >> (vid & 31)) & 1:
            return False
    if not h[0] & 1:
        return rctl & RCTL_UPE or exact_match(s, h)
    if eth_is_broadcast(h):
        if rctl & RCTL_BAM:
            return True
    elif rctl & RCTL_MPE:
        return True
    return exact_match(s, h) or hash_match(s, h)


cdef struct RxFrame:
    const iovec *iov
    uint32_t cnt
    iovec own[NET_MAX_IOV + 2]      # elements of a frame that lost its tag
    uint32_t size                   # bytes to store
    uint32_t total                  # bytes to report: with FCS unless SECRC
    uint16_t special
    uint8_t status
    uint8_t errors


cdef inline void strip_tag(RxFrame *f, const Packet *p, const uint8_t *h) noexcept nogil:
    """The frame without its tag, by reference: the sender's bytes stay as they are (RX7, B16)."""
    cdef uint32_t i
    cdef size_t skip = 16
    f.special = be16(h + 14)
    f.status |= RXD_VP
    f.iov = f.own
    f.own[0].iov_base = <void *>h                   # the addresses
    f.own[0].iov_len = 12
    f.cnt = 1
    for i in range(p.iovcnt):
        if skip >= p.iov[i].iov_len:
            skip -= p.iov[i].iov_len
            continue
        f.own[f.cnt].iov_base = <uint8_t *>p.iov[i].iov_base + skip
        f.own[f.cnt].iov_len = p.iov[i].iov_len - skip
        f.cnt += 1
        skip = 0
    f.size -= 4


cdef inline void check_sums(E1000State *s, RxFrame *f, const Packet *p) noexcept nogil:
    """Receive checksum offload (3.2.9): what the sender vouches for is not summed again."""
    cdef uint32_t on = s.mac[RXCSUM >> 2]
    cdef int r
    if not on & (RXCSUM_IPOFL | RXCSUM_TUOFL) or not s.ways & WAY_RX_CSUM:
        f.status |= RXD_IXSM
        return
    r = qn_rx_csum_check(p.iov, p.iovcnt, p.size)
    if on & RXCSUM_IPOFL and r & 1:
        f.status |= RXD_IPCS
        if not r & 2:
            f.errors |= RXD_ERR_IPE
    if on & RXCSUM_TUOFL and r & 4:
        f.status |= RXD_TCPCS
        if not r & 8:
            f.errors |= RXD_ERR_TCPE
    if not f.status & (RXD_IPCS | RXD_TCPCS):
        f.status |= RXD_IXSM


cdef struct RxRing:
    uint8_t *base                   # NULL: not mapped in one piece
    uint64_t at
    uint32_t len
    uint32_t head
    uint32_t tail


cdef inline bint store(E1000State *s, uint64_t addr, const RxFrame *f, uint32_t off, uint32_t n) noexcept nogil:
    """Bytes [off, off + n) of the frame into guest memory, which the frame may lie in itself (loopback, two cards on one wire)."""
    cdef uint8_t *to = <uint8_t *>guest_poke(s.mem, addr, n)
    cdef uint32_t i
    cdef size_t skip = off
    cdef size_t k
    cdef uint32_t done = 0
    if to != NULL and f.cnt == 1:
        memmove(to, <uint8_t *>f.iov[0].iov_base + off, n)
        return True
    if addr + (n - 1) < addr:
        return False
    for i in range(f.cnt):
        if skip >= f.iov[i].iov_len:
            skip -= f.iov[i].iov_len
            continue
        if done == n:
            break
        k = f.iov[i].iov_len - skip
        if k > n - done:
            k = n - done
        if to != NULL:
            memmove(to + done, <uint8_t *>f.iov[i].iov_base + skip, k)
        elif not guest_write(s.mem, addr + done, <uint8_t *>f.iov[i].iov_base + skip, k):
            return False
        done += <uint32_t>k
        skip = 0
    return True


cdef inline void desc_store(E1000State *s, RxRing *r, uint32_t length, uint32_t special, uint32_t status, uint32_t errors) noexcept nogil:
    """Write a descriptor back: everything else first, then the status byte with DD (RX10)."""
    cdef uint64_t word = length | <uint64_t>errors << 40 | <uint64_t>special << 48
    cdef uint8_t done = <uint8_t>(status | RXD_DD)
    cdef uint8_t *p
    if r.base != NULL and r.head < r.len:
        p = r.base + 16 * r.head
        qn_store_le64(p + 8, word)
        qn_store_release8(p + 12, done)
    else:
        qn_store_le64(&word, word)
        if desc_write(s.mem, r.at, r.head, 8, &word, 8):
            desc_write(s.mem, r.at, r.head, 12, &done, 1)


cdef inline bint rx_single(E1000State *s, RxRing *r, const RxFrame *f) noexcept nogil:
    """A frame that fits one buffer of a ring that is mapped in one piece. False: the buffer is not memory."""
    cdef uint8_t *p = r.base + 16 * r.head
    cdef uint64_t addr = qn_load_le64(p)
    cdef bint ok
    if not addr:
        return rx_frame(s, r, f)
    ok = store(s, addr, f, 0, f.size)
    desc_store(s, r, f.total, f.special, f.status | RXD_EOP, f.errors)
    r.head += 1
    if r.head == r.len:
        r.head = 0
    return ok


cdef bint rx_frame(E1000State *s, RxRing *r, const RxFrame *f) noexcept nogil:
    """Spread a frame over descriptors (RX10, RX11). False: the ring ended before the frame did, or memory is missing."""
    cdef uint32_t off = 0
    cdef uint32_t n
    cdef uint32_t k
    cdef uint32_t start = r.head
    cdef uint32_t bufsize = s.rx_bufsize
    cdef uint64_t addr
    cdef bint ok = True
    while off < f.total:
        if r.base != NULL and r.head < r.len:
            addr = qn_load_le64(r.base + 16 * r.head)
        elif desc_read(s.mem, r.at, r.head, &addr, 8):
            addr = qn_load_le64(&addr)
        else:
            addr = 0
            ok = False
        if addr:
            n = f.total - off if f.total - off < bufsize else bufsize
            if off < f.size:
                k = f.size - off if f.size - off < n else n
                if not store(s, addr, f, off, k):
                    ok = False
            off += n
            desc_store(s, r, n, f.special, (f.status | RXD_EOP) if off >= f.total else f.status & RXD_VP,
                       f.errors if off >= f.total else 0)
        else:
            desc_store(s, r, 0, f.special, f.status & RXD_VP, 0)        # skipped, but done
        r.head += 1
        if r.head >= r.len:
            r.head = 0
        if off < f.total and (r.head == r.tail or r.head == start or start >= r.len):
            return False
    return ok


cdef uint32_t chip_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    """A burst from the net (3.2): filter, store, write back, count; one interrupt evaluation for all of it."""
    cdef E1000State *s = <E1000State *>nc.opaque
    cdef uint32_t rctl = s.mac[RCTL >> 2]
    cdef uint32_t fcs = 0 if rctl & RCTL_SECRC else ETH_FCS_LEN
    cdef uint32_t limit = RX_MAX_LPE if rctl & RCTL_LPE else RX_MAX
    cdef uint32_t causes = 0
    cdef uint32_t frames = 0
    cdef uint64_t nbytes = 0
    cdef uint32_t i = 0
    cdef uint32_t free_descs
    cdef uint32_t wanted
    cdef uint8_t prefix[18]
    cdef const uint8_t *h
    cdef const Packet *p
    cdef uint32_t sizes[7]
    cdef bint ok
    cdef RxRing r
    cdef RxFrame f
    memset(sizes, 0, sizeof(sizes))
    if not rctl & RCTL_EN or not s.mac[STATUS >> 2] & STATUS_LU:
        net_drop(nc, pkts, n, False, DROP_DISABLED)
        return n
    r.len = s.mac[RDLEN >> 2] >> 4
    r.head = s.mac[RDH >> 2]
    r.tail = s.mac[RDT >> 2]
    r.at = desc_at(s, RDBAL, 0)
    r.base = <uint8_t *>guest_poke(s.mem, r.at, <uint64_t>r.len * 16) if r.len else NULL
    while i < n:
        p = &pkts[i]
        h = <const uint8_t *>p.iov[0].iov_base
        if i + 1 < n:
            qn_prefetch(pkts[i + 1].iov[0].iov_base)
        if p.iov[0].iov_len < 18:
            iov_gather(p.iov, p.iovcnt, 0, prefix, 18)      # the core padded to 60: there are 18
            h = prefix
        if p.size > limit and not rctl & RCTL_SBP:
            count32(s, ROC, 1)
            net_drop(nc, p, 1, False, DROP_OVERSIZE)
            i += 1
            continue
        if not address_passes(s, h):
            net_drop(nc, p, 1, False, DROP_ADDRESS)
            i += 1
            continue
        f.size = p.size
        f.status = 0
        f.errors = 0
        f.special = 0
        if s.mac[CTRL >> 2] & CTRL_VME and be16(h + 12) == s.mac[VET >> 2]:
            strip_tag(&f, p, h)
        else:
            f.iov = p.iov
            f.cnt = p.iovcnt
        f.total = f.size + fcs
        if r.head == r.tail:
            break                                           # no room now: the driver's RDT write flushes (RX14)
        check_sums(s, &f, p)
        if f.total <= s.rx_bufsize and r.base != NULL and r.head < r.len:
            ok = rx_single(s, &r, &f)                       # most frames: one buffer
        else:
            wanted = (f.total + s.rx_bufsize - 1) // s.rx_bufsize
            free_descs = r.tail - r.head if r.tail >= r.head else r.tail + r.len - r.head
            if wanted > free_descs and r.head < r.len and wanted < r.len:
                break
            ok = not (wanted > free_descs and wanted >= r.len and r.len) and rx_frame(s, &r, &f)
        if not ok:
            count32(s, RNBC, 1)
            count32(s, MPC, 1)
            causes |= ICR_RXO
            net_drop(nc, p, 1, False, DROP_NO_BUFFER)
        else:
            frames += 1
            nbytes += f.size + ETH_FCS_LEN
            sizes[size_class(f.size + fcs)] += 1
            if h[0] & 1:
                count32(s, BPRC if eth_is_broadcast(h) else MPRC, 1)
        i += 1
    s.mac[RDH >> 2] = r.head
    if frames:
        causes |= ICR_RXT0
        for wanted in range(6):
            count32(s, PRC64 + 4 * wanted, sizes[wanted])
        count32(s, TPR, frames)
        count32(s, GPRC, frames)
        count64(s, TORL, nbytes)
        count64(s, GORCL, nbytes)
        free_descs = r.tail - r.head if r.tail >= r.head else r.tail + r.len - r.head
        if free_descs * 16 <= s.mac[RDLEN >> 2] >> s.rx_min_shift:
            causes |= ICR_RXDMT0
    if causes:
        set_cause(s, causes)
    return i
