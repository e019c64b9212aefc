# A client over a tap: its state, and the ioctls behind it.
from libc.stdint cimport uint8_t, uint32_t

from qnet._client cimport NetClient
from qnet._fastpath cimport NET_MAX_PACKET, NetClientState, Packet
from qnet._iov cimport iovec
from qnet._loop cimport Loop, Watch

cdef extern from "tap.h" nogil:
    int QN_TAP_ETHERNET, QN_TAP_VNET_HDR, QN_TAP_QUEUES, QN_TAP_CSUM, QN_TAP_TSO4, QN_TAP_TSO6, QN_TAP_ECN, QN_TAP_USO
    enum:
        QN_TAP_NAME
    int qn_tap_features(int fd)
    int qn_tap_attach(int fd, char *name, int flags)
    int qn_tap_query(int fd, char *name)
    int qn_tap_set_header(int fd, int len)
    int qn_tap_offload(int fd)
    int qn_tap_set_sndbuf(int fd, int bytes)
    int qn_tap_set_queue(int fd, int on)

cdef enum:
    BURST = 50                      # frames of one wake-up, so that other descriptors get their turn
    HEADER = 10                     # bytes of an Offload record, which is what a virtio_net_hdr begins with
    HEADER_MAX = 20
    FRAME = NET_MAX_PACKET + 1      # one byte more than is allowed: the kernel cuts what does not fit without a word
    SLOT = 64                       # frames begin at multiples of this: a cache line
    AREA = 4 * (SLOT + HEADER_MAX + FRAME)

cdef struct TapState:
    NetClientState *nc
    TapState *lead                  # queue 0 of the same netdev; NULL: this is it, or it is gone
    TapState *next                  # from queue 0: the next queue
    Watch watch
    int fd                          # -1: gone
    int corpse                      # the descriptor of a client that was closed, until it is closed too
    int error                       # errno that ended it
    uint32_t header                 # bytes before each frame: 0, 10, 12 or 20
    bint off                        # a queue that takes no part in the traffic
    bint want_out                   # a frame found no room: wait until there is some
    bint in_ready                   # the watch is brought up to date at the end of the handler
    bint sending
    bint again
    uint8_t *buf                    # AREA bytes, from the first read on
    iovec[BURST] iov
    Packet[BURST] pkts              # what was read: the peer has not yet taken [done, have)
    uint32_t done
    uint32_t have


cdef class TapClient(NetClient):
    cdef TapState s
    cdef Loop loop
    cdef readonly str ifname
    cdef readonly tuple offloads
    cdef void _bury(self) noexcept
    cdef void _switch(self, bint on) noexcept
