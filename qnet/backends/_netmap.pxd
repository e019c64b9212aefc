# netmap's public interface (netmap(4), net/netmap.h, NETMAP_API 11 to 14): own declarations, since hardly any host has the header.
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from qnet._fastpath cimport NET_BURST, NET_MAX_IOV, NetClientState, Packet
from qnet._iov cimport iovec
from qnet._loop cimport Watch

cdef extern from "barrier.h" nogil:
    uint32_t qn_load_acquire32(const uint32_t *p)
    void qn_store_release32(uint32_t *p, uint32_t v)
    uint64_t qn_load_le64(const void *p)

cdef enum:
    NS_MOREFRAG = 0x20              # the frame goes on in the next slot
    NIOCTXSYNC = 0x6994             # _IO('i', 148), 149
    NIOCRXSYNC = 0x6995

cdef struct netmap_slot:
    uint32_t buf_idx
    uint16_t len
    uint16_t flags
    uint64_t ptr

cdef struct netmap_ring:
    int64_t buf_ofs                 # from here to buffer 0
    uint32_t num_slots
    uint32_t nr_buf_size
    uint16_t ringid
    uint16_t dir
    uint32_t head                   # slots from here to tail are ours
    uint32_t cur                    # wake us when there is something from here on
    uint32_t tail
    uint32_t flags
    int64_t[2] ts
    uint8_t[72] pad
    uint8_t[128] sem
    # netmap_slot slot[num_slots]

cdef struct netmap_if:
    char[16] ni_name
    uint32_t ni_version
    uint32_t ni_flags
    uint32_t ni_tx_rings
    uint32_t ni_rx_rings
    uint32_t ni_bufs_head
    uint32_t ni_host_tx_rings       # 0 in old versions, which have one
    uint32_t ni_host_rx_rings
    uint32_t[3] spare
    # int64_t ring_ofs[]: tx rings, host tx rings, rx rings, host rx rings; 0: not bound to this descriptor

cdef enum:
    MAX_RINGS = 64                  # for receiving
    IOVS = 4 * NET_MAX_IOV          # slots of one burst

# One ring. What never changes was copied when it was opened; nothing in the shared memory but slots and `tail` is read again.
cdef struct Ring:
    netmap_ring *shared             # NULL: there is none
    netmap_slot *slots
    uint8_t *buffers                # buffer 0, from where on `nbuffers` lie in the mapped memory
    uint32_t nbuffers
    uint32_t nslots
    uint32_t buf_size
    uint32_t head                   # ours

ctypedef int (*sync_fn)(int fd, unsigned long what) noexcept nogil

cdef struct NetmapState:
    NetClientState *nc
    sync_fn sync                    # ioctl(2), or in tests a kernel of theirs
    int fd                          # -1: closed
    int outfd                       # the same again, to be told of room edge-triggered
    Watch in_watch
    Watch out_watch
    bint gone
    int error
    bint want_out                   # a frame found no room
    bint in_ready
    bint sending
    bint again
    uint32_t header                 # bytes in front of each frame: 0, 10 or 12
    Ring tx
    Ring[MAX_RINGS] rx
    uint32_t nrx
    uint32_t turn                   # the ring to read next
    Ring *reading                   # the ring pkts are from
    iovec[IOVS] iov
    Packet[NET_BURST] pkts          # what was received: the peer has not yet taken [done, have)
    uint32_t[NET_BURST] ends        # the slot behind each
    uint32_t done
    uint32_t have
    uint32_t end                    # the slot behind what was looked at

cdef inline uint32_t ours(Ring *r) noexcept nogil:
    """Slots from head to tail; more than there can be when tail makes no sense."""
    cdef uint32_t tail = qn_load_acquire32(&r.shared.tail)
    if tail >= r.nslots:
        return UINT32_MAX
    return tail - r.head if tail >= r.head else tail + r.nslots - r.head

cdef inline uint32_t after(const Ring *r, uint32_t i) noexcept nogil:
    return 0 if i + 1 >= r.nslots else i + 1

cdef inline void publish(Ring *r) noexcept nogil:
    r.shared.cur = r.head
    qn_store_release32(&r.shared.head, r.head)

cdef inline uint8_t *slot_read(const Ring *r, uint32_t i, uint16_t *len, uint16_t *flags) noexcept nogil:
    """The slot's buffer, or NULL when it lies elsewhere. Each word is read once: others may write there."""
    cdef uint64_t word = qn_load_le64(&r.slots[i])
    cdef uint32_t index = <uint32_t>word
    len[0] = <uint16_t>(word >> 32)
    flags[0] = <uint16_t>(word >> 48)
    return r.buffers + <size_t>index * r.buf_size if index < r.nbuffers else NULL

cdef inline bint open_ring(Ring *r, uint8_t *base, uint64_t size, uint64_t at) noexcept nogil:
    """Copy what is said of the ring at offset `at`, if it and its buffers lie in the mapping."""
    cdef netmap_ring *shared = <netmap_ring *>(base + at)
    cdef uint64_t first
    if at % 8 or at > size or size - at < sizeof(netmap_ring):
        return False
    r.nslots = shared.num_slots
    r.buf_size = shared.nr_buf_size
    first = at + <uint64_t>shared.buf_ofs
    if (r.nslots < 2 or r.nslots > (size - at - sizeof(netmap_ring)) // sizeof(netmap_slot) or
            r.buf_size < 64 or r.buf_size > 65535 or first > size or size - first < r.buf_size):
        return False
    r.buffers = base + first
    first = (size - first) // r.buf_size
    r.nbuffers = <uint32_t>(first if first < UINT32_MAX else UINT32_MAX)
    r.slots = <netmap_slot *>(shared + 1)
    r.head = shared.head
    r.shared = shared
    return r.head < r.nslots

cdef inline bint open_rings(NetmapState *s, uint8_t *base, uint64_t size, uint64_t offset) noexcept nogil:
    """Find the rings that are bound to the descriptor: the first for sending, all for receiving."""
    cdef netmap_if *nifp = <netmap_if *>(base + offset)
    cdef const int64_t *at
    cdef uint64_t tx
    cdef uint64_t rx
    if offset % 8 or offset > size or size - offset < sizeof(netmap_if):
        return False
    tx = <uint64_t>nifp.ni_tx_rings + (nifp.ni_host_tx_rings if nifp.ni_host_tx_rings else 1)
    rx = <uint64_t>nifp.ni_rx_rings + (nifp.ni_host_rx_rings if nifp.ni_host_rx_rings else 1)
    if (size - offset - sizeof(netmap_if)) // 8 < tx + rx:
        return False
    at = <const int64_t *>(nifp + 1)
    for i in range(tx):
        if at[i] and s.tx.shared == NULL and not open_ring(&s.tx, base, size, offset + <uint64_t>at[i]):
            return False
    for i in range(tx, tx + rx):
        if at[i] and s.nrx < MAX_RINGS:
            if not open_ring(&s.rx[s.nrx], base, size, offset + <uint64_t>at[i]):
                return False
            s.nrx += 1
    return s.tx.shared != NULL and s.nrx > 0
