# A client over a message socket. _l2tpv3.pyx puts a header in front of each frame and takes it off again; nothing else is special there.
from libc.stdint cimport int32_t, uint8_t, uint32_t

from qnet._client cimport NetClient
from qnet._fastpath cimport NET_BURST, NetClientState, Packet
from qnet._iov cimport iovec
from qnet._loop cimport Loop, Watch

cdef enum:
    READ_BURST = 32                 # messages of one read; each has room for the longest frame

# Bytes in front of the frame in a message of `size` bytes, size at most; or negative: the message is malformed.
ctypedef int32_t (*header_fn)(DgramState *s, const uint8_t *message, uint32_t size) noexcept nogil

cdef struct DgramState:
    NetClientState *nc
    Watch watch
    int fd                          # -1: gone
    int error                       # errno that ended a direction, 0: none, or an orderly end
    bint ends                       # the other end can close: its errors are the end
    bint eof                        # nothing more will come
    bint shut                       # nothing more can be sent
    bint want_out                   # a frame found no room: wait until there is some
    bint starved                    # the kernel had no memory the last time
    bint in_ready                   # the watch is brought up to date at the end of the handler
    bint sending
    bint again
    # where to
    uint8_t[128] remote             # struct sockaddr of every message
    uint32_t remote_len             # 0: the socket is connected
    bint by_path                    # it is an AF_UNIX address
    int room_fd                     # tells when the socket of that address has room; -1: was not needed yet
    Watch room_watch
    # the header of each frame
    uint32_t header                 # its bytes
    uint8_t *headers                # NET_BURST of them, filled in but for the counter
    int32_t counter_at              # where a counter of 4 bytes is, most significant first; -1: there is none
    uint32_t counter                # of the next frame
    header_fn check_header          # NULL: messages have no header
    void *tunnel                    # for check_header
    # segmentation by the kernel, udp(7)
    uint32_t segment_max            # messages of more bytes are sent one by one; 0: all
    bint coalesced                  # a message may be several
    # what was read: messages [msg, msgs), the first of them from `at` on, are not yet packets
    uint8_t *buf                    # READ_BURST * NET_MAX_PACKET, from the first read on; pages that are never touched cost nothing
    uint32_t[READ_BURST] size
    uint32_t[READ_BURST] segment    # bytes of the messages that this one is made of; 0: it is one
    uint32_t msg
    uint32_t msgs
    uint32_t at
    iovec[NET_BURST] iov
    Packet[NET_BURST] pkts          # the peer has not yet taken [done, have)
    uint32_t done
    uint32_t have

cdef class DgramClient(NetClient):
    cdef DgramState s
    cdef Loop loop
