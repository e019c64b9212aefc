# The packet contract.
#
# A Packet is an iovec array with its byte count and an Offload record beside it. A NetClientState is one end of a link; two of
# them are peers. All of it is touched only with the context's lock held (_context.pxd); nothing here takes it.
#
# receive(nc, pkts, n) -> consumed. The client takes packets from the front of the burst and returns how many it is done with.
#   * consumed == n: all gone. A bad packet is consumed and counted (net_drop); there is no error return.
#   * consumed < n: no room NOW. Nothing was lost; the client promises to call net_flush when it has room, and is not called
#     again before that, whoever its peer is then. It never means anything else.
#   * It may send from within receive; packets that come back to it meanwhile are queued, never delivered recursively.
#   * Bytes and iovecs belong to the sender and are valid until receive returns. They are never written.
# net_send(nc, pkts, n) -> consumed. What was not consumed is still the sender's:
#   * a sender with flow_control gets `resume` when there is room again, and sends it then;
#   * for one without, the core keeps copies in the receiver's queue (bounded in packets and bytes; the rest is dropped and
#     counted) and always returns n.
#   * FIFO: a fresh packet never overtakes a queued one.
# A burst is one wake-up: a receiver evaluates interrupts once a call, a backend makes one system call where the kernel lets it.
# What the receiver does not take (`takes`, `max_frame`, `min_frame`) is repaired in software before it sees it: checksums filled
# in, GSO frames segmented, short frames padded with zeros. Every drop has a reason and a counter.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from qnet._context cimport NetContext
from qnet._iov cimport iovec

cdef enum:
    NET_MAX_PACKET = 69632       # bytes of the largest packet: 64 KiB and headers (S7)
    NET_MAX_IOV = 64             # elements of the longest iovec array of a packet
    NET_BURST = 64               # the core and its leaves send at most this many packets at once
    NET_MAX_HDR = 256            # headers must lie within this many bytes for checksum and segmentation in software
    NET_QUEUE_PACKETS = 10000    # default queue bounds (S7)
    NET_QUEUE_BYTES = 16777216
    # Packets that may come back into queues during one hold of the lock; then queues are dropped. One full queue may be answered
    # packet by packet; some 10 ms, when hubs make a ring. The most that tests and benches have without one is 474.
    NET_STORM = 10000

# Offload has the meaning of virtio_net_hdr (virtio 1.3, 5.1.6), in host byte order.
cdef enum:
    OFF_NEEDS_CSUM = 1           # flags: the checksum at csum_start + csum_offset holds the pseudo-header sum only
    OFF_DATA_VALID = 2           # flags: checksums were verified
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_UDP = 3
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80

cdef struct Offload:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len             # a hint; who segments parses the headers
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

cdef struct Packet:
    const iovec *iov
    uint32_t iovcnt              # 1..NET_MAX_IOV
    uint32_t size                # sum of the elements' lengths; no FCS
    Offload off

# What a client takes as it is, beyond plain frames: one bit for OFF_NEEDS_CSUM and one for each GSO type.
cdef enum:
    TAKE_PLAIN = 2
    TAKE_CSUM = 1
    TAKE_TSO4 = 4
    TAKE_UFO = 16
    TAKE_TSO6 = 32
    TAKE_USO = 64
    TAKE_ECN = 0x20000
    TAKE_ALL = 0x20077

cdef enum DropReason:
    DROP_NO_PEER
    DROP_LINK_DOWN
    DROP_EMPTY
    DROP_OVERSIZE
    DROP_BAD_OFFLOAD
    DROP_QUEUE_FULL
    DROP_PURGED
    DROP_DISABLED                # the receiver is switched off
    DROP_ADDRESS                 # not for this receiver: address or VLAN filter
    DROP_NO_BUFFER               # the receiver can never hold it
    DROP_DMA                     # a descriptor points outside guest memory
    DROP_MALFORMED
    DROP_IO                      # the host refused it
    DROP_REASONS

ctypedef uint32_t (*receive_fn)(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil
ctypedef bint (*can_receive_fn)(NetClientState *nc) noexcept nogil
ctypedef void (*notify_fn)(NetClientState *nc) noexcept nogil

cdef struct NetClientOps:
    receive_fn receive
    can_receive_fn can_receive          # NULL: always room
    notify_fn resume                    # the peer has room again, or became ready; NULL: does not care
    notify_fn link_status_changed       # own link_down, or the peer's, changed; NULL: does not care
    notify_fn cleanup                   # the client goes; NULL: nothing to do

cdef struct QueuedPacket:
    QueuedPacket *next
    NetClientState *sender              # NULL once the sender is gone
    iovec iov
    Packet pkt                          # bytes follow the struct

cdef struct NetQueue:
    QueuedPacket *head
    QueuedPacket *tail
    uint32_t count
    uint32_t max_packets
    uint64_t bytes
    uint64_t max_bytes

cdef struct NetStats:
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t syscalls
    uint64_t wakeups
    uint64_t drops[DROP_REASONS]

cdef struct NetClientState:
    const NetClientOps *ops
    NetClientState *peer
    NetContext *ctx
    void *opaque                        # the leaf's state
    const char *name                    # NetClient.name in UTF-8; NULL before its constructor ran
    NetFilter *filters                  # front of the chain
    uint32_t takes                      # TAKE_*
    uint32_t max_frame                  # bytes; larger plain packets are dropped as oversize
    uint32_t min_frame                  # bytes, ETH_ZLEN at most; shorter ones are padded with zeros (S28)
    uint8_t link_down
    uint8_t flow_control                # as a sender: keeps what was not consumed
    uint8_t blocked                     # as a sender: was told "no room", waits for resume
    uint8_t resuming                    # as a sender: its resume is running
    uint8_t delivering                  # as a receiver: its receive is running
    uint8_t receive_disabled            # as a receiver: consumed less than offered, has not flushed since (S22)
    uint8_t is_nic
    NetQueue queue                      # packets for this client
    NetStats stats

# A filter sees packets between net_send and the peer (section 3 of the facts: F2, F4, F5). Its array is a copy it may reorder and
# shorten in place; it returns how many packets go on. Directions are the watched client's: TX = it sends, RX = it receives.
cdef enum:
    FILTER_RX = 1
    FILTER_TX = 2
    FILTER_ALL = 3

cdef struct NetFilterOps:
    uint32_t (*receive)(NetFilter *f, NetClientState *sender, Packet *pkts, uint32_t n, bint tx) noexcept nogil
    void (*dropped)(NetFilter *f, const Packet *pkts, uint32_t n, bint tx, int reason) noexcept nogil   # or NULL
    void (*status_changed)(NetFilter *f) noexcept nogil                                                 # or NULL

cdef struct NetFilter:
    const NetFilterOps *ops
    NetFilter *next
    NetFilter *prev
    NetClientState *client
    void *opaque
    uint8_t direction
    uint8_t on

cdef void net_client_init(NetClientState *nc, NetContext *ctx, const NetClientOps *ops, void *opaque) noexcept nogil
cdef void net_client_fini(NetClientState *nc) noexcept nogil
cdef void net_pair(NetClientState *a, NetClientState *b) noexcept nogil
cdef void net_unpair(NetClientState *nc) noexcept nogil
cdef uint32_t net_send(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil
cdef uint32_t net_loopback(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil
cdef uint32_t net_pass_to_next(NetFilter *f, NetClientState *sender, const Packet *pkts, uint32_t n) noexcept nogil
cdef bint net_can_send(NetClientState *nc) noexcept nogil
cdef bint net_can_receive(NetClientState *nc) noexcept nogil
cdef void net_flush(NetClientState *nc) noexcept nogil
cdef uint32_t net_purge(NetClientState *queue_of, NetClientState *sender) noexcept nogil
cdef void net_drop(NetClientState *nc, const Packet *pkts, uint32_t n, bint tx, int reason) noexcept nogil
cdef void net_set_link(NetClientState *nc, bint up) noexcept nogil
cdef void net_filter_insert(NetFilter *f, NetClientState *nc, NetFilter *before) noexcept nogil
cdef void net_filter_remove(NetFilter *f) noexcept nogil

cdef NetClientOps null_ops             # takes and forgets; what a client has before its leaf says more, and after it closed
