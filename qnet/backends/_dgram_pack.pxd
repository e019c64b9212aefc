# Frames to messages, which one sendmmsg is given, and back. Inline, no .pyx.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from qnet._fastpath cimport DROP_EMPTY, DROP_MALFORMED, DROP_OVERSIZE, NET_BURST, NET_MAX_PACKET, Packet, net_drop
from qnet._iov cimport iovec
from qnet._sock cimport CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_SPACE, IPPROTO_UDP, UDP_SEGMENT, cmsghdr, mmsghdr
from qnet.backends._dgram cimport DgramState

cdef enum:
    IOVS = 1024                     # of one sendmmsg
    TOO_LONG = NET_MAX_PACKET + 1   # size of a message that was cut
    CONTROL = 4                     # words of 8 bytes that hold one control message with a number
    SEGMENTED_BYTES = 65507         # of a message that the kernel shall cut: as much as IPv4 carries

cdef inline void put_be32(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value


cdef struct Outgoing:               # messages of one sendmmsg
    mmsghdr[NET_BURST] msgs
    uint8_t[NET_BURST] frames       # that each is made of
    uint64_t[NET_BURST][CONTROL] control
    iovec[IOVS] iov


cdef inline unsigned pack(DgramState *s, const Packet *pkts, uint32_t n, Outgoing *o) noexcept nogil:
    """Make messages of the first of n frames, NET_BURST at most; how many messages. Frames of one size that follow each other are one
    message, which the kernel cuts again (the last may be shorter)."""
    cdef uint32_t m = 0             # messages
    cdef uint32_t cnt = 0           # elements used in iov
    cdef uint32_t i = 0             # frames
    cdef uint32_t first
    cdef uint32_t start
    cdef uint32_t size
    cdef uint32_t each
    cdef uint32_t total
    cdef uint8_t *header
    cdef cmsghdr *c
    while i < n and cnt + pkts[i].iovcnt < IOVS:
        first = i
        start = cnt
        each = size = s.header + pkts[i].size
        total = 0
        while True:
            if s.header:
                header = s.headers + i * s.header
                if s.counter_at >= 0:
                    put_be32(header + s.counter_at, s.counter + i)
                o.iov[cnt].iov_base = header
                o.iov[cnt].iov_len = s.header
                cnt += 1
            memcpy(&o.iov[cnt], pkts[i].iov, pkts[i].iovcnt * sizeof(iovec))
            cnt += pkts[i].iovcnt
            total += size
            i += 1
            if i == n or size < each or each > s.segment_max:
                break
            size = s.header + pkts[i].size
            if size > each or total + size > SEGMENTED_BYTES or cnt + pkts[i].iovcnt >= IOVS:
                break
        memset(&o.msgs[m], 0, sizeof(mmsghdr))
        o.msgs[m].msg_hdr.msg_iov = &o.iov[start]
        o.msgs[m].msg_hdr.msg_iovlen = cnt - start
        if s.remote_len:
            o.msgs[m].msg_hdr.msg_name = s.remote
            o.msgs[m].msg_hdr.msg_namelen = s.remote_len
        if i - first > 1:
            o.msgs[m].msg_hdr.msg_control = o.control[m]
            o.msgs[m].msg_hdr.msg_controllen = CMSG_SPACE(sizeof(uint16_t))
            c = CMSG_FIRSTHDR(&o.msgs[m].msg_hdr)
            c.cmsg_level = IPPROTO_UDP
            c.cmsg_type = UDP_SEGMENT
            c.cmsg_len = CMSG_LEN(sizeof(uint16_t))
            (<uint16_t *>CMSG_DATA(c))[0] = <uint16_t>each
        o.frames[m] = <uint8_t>(i - first)
        m += 1
    return m


cdef inline void next_burst(DgramState *s) noexcept nogil:
    """Make packets of what was read."""
    cdef Packet *p
    cdef uint8_t *message
    cdef uint32_t size
    cdef int32_t header
    s.done = s.have = 0
    while s.msg < s.msgs and s.have < NET_BURST:
        message = s.buf + <size_t>s.msg * NET_MAX_PACKET + s.at
        size = s.size[s.msg] - s.at
        if 0 < s.segment[s.msg] < size:
            size = s.segment[s.msg]
        s.at += size
        if s.at >= s.size[s.msg]:
            s.at = 0
            s.msg += 1
        header = 0
        if s.check_header != NULL and 0 < size < TOO_LONG:
            header = s.check_header(s, message, size)
        p = &s.pkts[s.have]
        memset(p, 0, sizeof(Packet))
        s.iov[s.have].iov_base = message + (header if header > 0 else 0)
        p.size = size - (header if header > 0 else 0)
        s.iov[s.have].iov_len = p.size if p.size < TOO_LONG else NET_MAX_PACKET
        p.iov = &s.iov[s.have]
        p.iovcnt = 1
        if header < 0:
            net_drop(s.nc, p, 1, True, DROP_MALFORMED)
        elif p.size == 0:
            net_drop(s.nc, p, 1, True, DROP_EMPTY)
        elif p.size == TOO_LONG:
            p.size = NET_MAX_PACKET
            net_drop(s.nc, p, 1, True, DROP_OVERSIZE)
        else:
            s.have += 1
