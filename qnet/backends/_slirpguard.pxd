# What a guest may send that some libslirp does not stand: looked at, and mended, before it gets there. Inline, nogil, no .pyx.
#
# - Lengths that do not fit each other are dropped: each of libslirp's header parsers has had an overflow once.
# - IPv4 fragments are put together here and overlaps refused: the last fragment of a datagram alone ends a process that has
#   libslirp 4.7.0 in it, and its reassembly has had a use after free and an overflow (CVE-2019-14378, 2019-15890, 2020-1983).
# - TCP urgent data becomes plain data (RFC 6093 says how little it means anyway): before 4.9.2 libslirp computes a length from the
#   urgent pointer that reads far beyond its buffer (CVE-2026-9539).
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from qnet._eth cimport ETH_HLEN, ETH_P_IP, ETH_P_IPV6, be16
from qnet._fastpath cimport Packet
from qnet._iov cimport iov_gather

cdef extern from "ipreass.h" nogil:
    struct qn_reass:
        pass
    qn_reass *qn_reass_new()
    void qn_reass_free(qn_reass *)
    int qn_reass_add(qn_reass *r, const uint8_t *frame, int64_t now_ms, uint8_t **out, uint32_t *out_size, uint32_t *lost)

cdef enum:
    MTU = 1500                      # libslirp's default, both ways
    IPPROTO_TCP = 6
    IPV4_HLEN = 20
    IPV6_HLEN = 40
    TCP_HLEN = 20
    TCP_URG = 0x20

cdef enum Verdict:
    GUARD_PASS
    GUARD_DROP
    GUARD_KEEP                      # a fragment: more will follow
    GUARD_URGENT

cdef struct Guard:
    qn_reass *reass                 # made when the first fragment comes
    const uint8_t *data             # what is let through
    uint32_t size
    uint32_t lost                   # fragments that were kept and have been given up
    uint8_t scratch[MTU + ETH_HLEN]

cdef inline Verdict guard_headers(const uint8_t *frame, uint32_t size) noexcept nogil:
    """Do the lengths fit each other? Ethernet, IP and, unless it is a fragment, TCP."""
    cdef const uint8_t *ip = frame + ETH_HLEN
    cdef uint32_t left = size - ETH_HLEN
    cdef uint32_t hlen
    cdef uint32_t length
    if size < ETH_HLEN:
        return GUARD_DROP
    if be16(frame + 12) == ETH_P_IP:
        if left < IPV4_HLEN or ip[0] >> 4 != 4:
            return GUARD_DROP
        hlen = 4 * (ip[0] & 0xf)
        length = be16(ip + 2)
        if hlen < IPV4_HLEN or length < hlen or left < length:                  # RFC 791 3.1
            return GUARD_DROP
        if be16(ip + 6) & 0x3fff:
            return GUARD_KEEP
        if ip[9] != IPPROTO_TCP:
            return GUARD_PASS
    elif be16(frame + 12) == ETH_P_IPV6:
        hlen = IPV6_HLEN
        if left < hlen or ip[0] >> 4 != 6 or left - hlen < be16(ip + 4):        # RFC 8200 3
            return GUARD_DROP
        length = hlen + be16(ip + 4)
        if ip[6] != IPPROTO_TCP:
            return GUARD_PASS
    else:
        return GUARD_PASS
    if length < hlen + TCP_HLEN:
        return GUARD_DROP
    return GUARD_URGENT if ip[hlen + 13] & TCP_URG else GUARD_PASS

cdef inline void guard_strip_urgent(uint8_t *frame) noexcept nogil:
    """Clear the urgent flag and pointer and keep the checksum as right as it was (RFC 1624)."""
    cdef bint v4 = be16(frame + 12) == ETH_P_IP
    cdef uint8_t *tcp = frame + ETH_HLEN + (4 * (frame[ETH_HLEN] & 0xf) if v4 else IPV6_HLEN)
    cdef uint32_t sum = 0xffff & ~<uint32_t>be16(tcp + 16)
    sum += 0xffff & ~<uint32_t>be16(tcp + 12)
    sum += 0xffff & ~<uint32_t>be16(tcp + 18)
    tcp[13] &= 0xff & ~TCP_URG
    tcp[18] = 0
    tcp[19] = 0
    sum += be16(tcp + 12)
    sum = (sum & 0xffff) + (sum >> 16)
    sum = 0xffff & ~((sum & 0xffff) + (sum >> 16))
    tcp[16] = <uint8_t>(sum >> 8)
    tcp[17] = <uint8_t>sum

cdef inline Verdict guard_take(Guard *g, const Packet *p, int64_t now_ms) noexcept nogil:
    """GUARD_PASS: g.data and g.size are a frame for libslirp, until the next call. GUARD_DROP: the packet is ill-formed."""
    cdef Verdict verdict
    cdef uint8_t *own = NULL
    cdef int rc
    g.lost = 0
    g.size = p.size
    g.data = <const uint8_t *>p.iov[0].iov_base
    if p.iovcnt > 1:
        iov_gather(p.iov, p.iovcnt, 0, g.scratch, p.size)
        g.data = own = g.scratch
    verdict = guard_headers(g.data, g.size)
    if verdict == GUARD_KEEP:
        if g.reass == NULL:
            g.reass = qn_reass_new()
        if g.reass == NULL:
            return GUARD_DROP
        rc = qn_reass_add(g.reass, g.data, now_ms, &own, &g.size, &g.lost)
        if rc <= 0:
            return GUARD_KEEP if rc == 0 else GUARD_DROP
        g.data = own
        verdict = guard_headers(g.data, g.size)
    if verdict == GUARD_URGENT:
        if own == NULL:
            own = g.scratch
            memcpy(own, g.data, g.size)
            g.data = own
        guard_strip_urgent(own)
        verdict = GUARD_PASS
    return verdict
