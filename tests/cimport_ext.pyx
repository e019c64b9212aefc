# cython: language_level=3
"""A backend written outside qnet, from the wheel's .pxd files alone: it sends every frame back with its addresses swapped.

Compiled and run by test_cimport.py; docs/cimport.md walks through it.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from qnet._eth cimport ETH_ALEN, ETH_HLEN
from qnet._client cimport Context, NetClient
from qnet._fastpath cimport NetClientOps, NetClientState, Packet, net_send
from qnet._iov cimport iov_gather, iov_slice, iovec

cdef enum:
    MAX_IOV = 64

cdef struct EchoState:
    uint64_t frames
    uint64_t octets


cdef uint32_t echo_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    """Called with the network's lock held and without the GIL. The bytes are the sender's: the header is changed in a copy."""
    cdef EchoState *s = <EchoState *>nc.opaque
    cdef uint8_t hdr[ETH_HLEN]
    cdef uint8_t swap[ETH_ALEN]
    cdef iovec iov[MAX_IOV + 1]
    cdef Packet out
    cdef uint32_t i
    for i in range(n):
        s.frames += 1
        s.octets += pkts[i].size
        if iov_gather(pkts[i].iov, pkts[i].iovcnt, 0, hdr, ETH_HLEN) < ETH_HLEN:
            continue
        memcpy(swap, hdr, ETH_ALEN)
        memcpy(hdr, hdr + ETH_ALEN, ETH_ALEN)
        memcpy(hdr + ETH_ALEN, swap, ETH_ALEN)
        memset(&out, 0, sizeof(out))
        iov[0].iov_base = hdr
        iov[0].iov_len = ETH_HLEN
        out.iov = iov
        out.iovcnt = 1 + iov_slice(pkts[i].iov, pkts[i].iovcnt, ETH_HLEN, pkts[i].size - ETH_HLEN, &iov[1], MAX_IOV)
        out.size = pkts[i].size
        net_send(nc, &out, 1)       # the peer is busy sending: this waits in its queue, as a copy, until it is done
    return n                        # all consumed


cdef NetClientOps echo_ops = NetClientOps(
    receive=echo_receive,
    can_receive=NULL,
    resume=NULL,
    link_status_changed=NULL,
    cleanup=NULL,
)


cdef class Echo(NetClient):
    cdef EchoState state

    def __init__(self, Context context not None, str name):
        super().__init__(context, name, "echo")
        self.state.frames = 0
        self.state.octets = 0
        self._setup(&echo_ops, &self.state)     # takes plain frames: checksums and segmentation are done before it sees them

    @property
    def seen(self) -> tuple:
        """(frames, bytes) received."""
        return self.state.frames, self.state.octets

    def __dealloc__(self):
        self._fini()
