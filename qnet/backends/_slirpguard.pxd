# What a guest may send that some libslirp does not stand: looked at before it gets there. Inline, nogil, no .pyx.
#
# Lengths that do not fit each other are dropped; libslirp has had an overflow in each of its header parsers once. TCP urgent data
# becomes plain data (RFC 6093 says how little it means anyway): libslirp before 4.9.2 computes a length from the urgent pointer
# that reads far beyond its buffer (CVE-2026-9539).
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from qnet._eth cimport ETH_HLEN, ETH_P_IP, ETH_P_IPV6, be16

cdef enum Verdict:
    GUARD_PASS
    GUARD_DROP
    GUARD_URGENT                    # pass it without its urgent flag: guard_strip_urgent

cdef enum:
    IPPROTO_TCP = 6
    IPV4_HLEN = 20
    IPV6_HLEN = 40
    TCP_HLEN = 20
    TCP_URG = 0x20

cdef inline uint32_t guard_tcp_at(const uint8_t *frame) noexcept nogil:
    """Where the TCP header of a frame of guard_look's is."""
    if be16(frame + 12) == ETH_P_IP:
        return ETH_HLEN + 4 * (frame[ETH_HLEN] & 0xf)
    return ETH_HLEN + IPV6_HLEN

cdef inline Verdict guard_look(const uint8_t *frame, uint32_t size) noexcept nogil:
    """A frame of at least ETH_HLEN bytes."""
    cdef const uint8_t *ip = frame + ETH_HLEN
    cdef uint32_t left = size - ETH_HLEN
    cdef uint32_t hlen
    cdef uint32_t length
    cdef uint16_t offset
    if be16(frame + 12) == ETH_P_IP:
        if left < IPV4_HLEN or ip[0] >> 4 != 4:
            return GUARD_DROP
        hlen = 4 * (ip[0] & 0xf)
        length = be16(ip + 2)
        if hlen < IPV4_HLEN or length < hlen or left < length:                  # RFC 791 3.1
            return GUARD_DROP
        if ip[9] != IPPROTO_TCP:
            return GUARD_PASS
        offset = be16(ip + 6)
        if offset & 0x1fff:
            # A second fragment that begins within the TCP header would change the flags seen in the first (RFC 3128).
            return GUARD_DROP if offset & 0x1fff == 1 else GUARD_PASS
    elif be16(frame + 12) == ETH_P_IPV6:
        if left < IPV6_HLEN or ip[0] >> 4 != 6:
            return GUARD_DROP
        hlen = IPV6_HLEN
        length = hlen + be16(ip + 4)
        if left < length:
            return GUARD_DROP
        if ip[6] != IPPROTO_TCP:
            return GUARD_PASS
    else:
        return GUARD_PASS
    if length < hlen + TCP_HLEN:
        return GUARD_DROP
    return GUARD_URGENT if ip[hlen + 13] & TCP_URG else GUARD_PASS

cdef inline void guard_strip_urgent(uint8_t *frame) noexcept nogil:
    """Clear the urgent flag and pointer and keep the checksum as right as it was (RFC 1624)."""
    cdef uint8_t *tcp = frame + guard_tcp_at(frame)
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
