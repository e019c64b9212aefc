# What libslirp sends while it runs: frames in one growing buffer, that go to the peer in bursts when it has returned. Inline, nogil,
# no .pyx.
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from qnet._fastpath cimport NET_BURST, NET_QUEUE_BYTES, Packet
from qnet._iov cimport iovec

cdef enum:
    OUT_KEEP = 262144               # bytes that stay allocated

cdef struct Outgoing:               # a frame; its bytes follow, the next one starts at a multiple of 8
    uint32_t size
    uint32_t pad

cdef struct SlirpOut:
    uint8_t *bytes
    size_t len
    size_t cap
    Packet pkts[NET_BURST]          # the burst that out_burst made
    iovec iov[NET_BURST]

cdef inline bint out_add(SlirpOut *o, const void *buf, size_t len) noexcept nogil:
    """Collect a frame. False: there is no room for it."""
    cdef size_t need = (sizeof(Outgoing) + len + 7) & ~<size_t>7
    cdef size_t cap = o.cap
    cdef uint8_t *grown
    if o.len + need > o.cap:
        cap = 2 * cap if cap else 16384
        while cap < o.len + need:
            cap *= 2
        grown = <uint8_t *>realloc(o.bytes, cap) if o.len + need <= NET_QUEUE_BYTES else NULL
        if grown == NULL:
            return False
        o.bytes = grown
        o.cap = cap
    (<Outgoing *>(o.bytes + o.len)).size = <uint32_t>len
    memcpy(o.bytes + o.len + sizeof(Outgoing), buf, len)
    o.len += need
    return True

cdef inline uint32_t out_burst(SlirpOut *o, size_t *at) noexcept nogil:
    """The next frames from `at` on, in o.pkts; how many, 0: that was all."""
    cdef uint32_t n = 0
    cdef uint32_t size
    while n < NET_BURST and at[0] < o.len:
        size = (<Outgoing *>(o.bytes + at[0])).size
        o.iov[n].iov_base = o.bytes + at[0] + sizeof(Outgoing)
        o.iov[n].iov_len = size
        memset(&o.pkts[n], 0, sizeof(Packet))
        o.pkts[n].iov = &o.iov[n]
        o.pkts[n].iovcnt = 1
        o.pkts[n].size = size
        at[0] += (sizeof(Outgoing) + size + 7) & ~<size_t>7
        n += 1
    return n

cdef inline void out_clear(SlirpOut *o, size_t keep) noexcept nogil:
    """Forget the frames; a buffer of more than `keep` bytes is given back."""
    o.len = 0
    if o.cap > keep:
        free(o.bytes)
        o.bytes = NULL
        o.cap = 0
