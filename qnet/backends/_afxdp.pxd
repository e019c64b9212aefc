# The kernel's public interface to AF_XDP sockets (linux/if_xdp.h, Documentation/networking/af_xdp.rst) and bpf(2): own declarations,
# since the headers of old build systems lack them.
from libc.errno cimport EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from qnet._fastpath cimport NET_BURST, NetClientState, Packet
from qnet._iov cimport iovec
from qnet._loop cimport Watch

cdef extern from "barrier.h" nogil:
    uint32_t qn_load_acquire32(const uint32_t *p)
    void qn_store_release32(uint32_t *p, uint32_t v)

cdef extern from "<sys/socket.h>" nogil:
    int setsockopt(int, int, int, const void *, unsigned)
    int getsockopt(int, int, int, void *, unsigned *)

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #ifndef SYS_bpf
    #if defined(__x86_64__)
    #define SYS_bpf 321
    #else
    #define SYS_bpf 280
    #endif
    #endif
    """
    long SYS_bpf

cdef enum:
    AF_XDP = 44
    SOL_XDP = 283
    XDP_MMAP_OFFSETS = 1            # socket options
    XDP_RX_RING = 2
    XDP_TX_RING = 3
    XDP_UMEM_REG = 4
    XDP_UMEM_FILL_RING = 5
    XDP_UMEM_COMPLETION_RING = 6
    XDP_RING_NEED_WAKEUP = 1        # in a ring's flags

cdef enum:                          # where to map the rings
    XDP_PGOFF_RX_RING = 0
    XDP_PGOFF_TX_RING = 0x80000000
    XDP_UMEM_PGOFF_FILL_RING = 0x100000000
    XDP_UMEM_PGOFF_COMPLETION_RING = 0x180000000

cdef struct xdp_ring_offset:
    uint64_t producer
    uint64_t consumer
    uint64_t desc
    uint64_t flags

cdef struct xdp_mmap_offsets:
    xdp_ring_offset rx
    xdp_ring_offset tx
    xdp_ring_offset fr              # fill
    xdp_ring_offset cr              # completion

cdef struct xdp_umem_reg:
    uint64_t addr
    uint64_t len
    uint32_t chunk_size
    uint32_t headroom
    uint32_t flags
    uint32_t pad

cdef struct xdp_desc:
    uint64_t addr
    uint32_t len
    uint32_t options

cdef struct sockaddr_xdp:
    uint16_t family
    uint16_t flags
    uint32_t ifindex
    uint32_t queue_id
    uint32_t shared_umem_fd

cdef enum:                          # rtnetlink(7)
    AF_NETLINK = 16
    RTMGRP_LINK = 1

cdef struct sockaddr_nl:
    uint16_t family
    uint16_t pad
    uint32_t pid
    uint32_t groups

cdef enum:
    FRAME_SIZE = 4096
    RING = 2048                     # entries of each ring, and frames for each direction
    RX_SIZE = RING * FRAME_SIZE
    UMEM_SIZE = 2 * RX_SIZE

cdef struct Ring:
    uint32_t *producer
    uint32_t *consumer
    uint32_t *flags
    uint8_t *entries
    uint32_t next                   # the entry we write or read next
    void *map
    size_t map_len

cdef struct XskState:
    NetClientState *nc
    int fd                          # -1: closed
    int outfd                       # the same socket again, to be told of room edge-triggered
    int eventfd                     # rtnetlink: something happened to an interface
    Watch in_watch
    Watch out_watch
    Watch event_watch
    bint gone                       # the interface is
    bint down                       # it was down or gone when we sent last: frames wait for nothing
    bint want_out                   # a frame found no room
    bint in_ready
    bint sending
    bint again
    uint8_t *umem                   # frames for receiving, then frames for sending
    Ring fill
    Ring comp
    Ring rx
    Ring tx
    uint32_t nfree
    uint64_t[RING] free             # offsets of frames for sending
    iovec[NET_BURST] iov
    Packet[NET_BURST] pkts          # what was received: the peer has not yet taken [done, have)
    uint32_t done
    uint32_t have

cdef inline int ring_map(Ring *r, int fd, const xdp_ring_offset *at, uint64_t pgoff, size_t entry) noexcept nogil:
    """Map a ring that exists. 0 or -errno."""
    cdef uint8_t *map
    r.map_len = at.desc + RING * entry
    map = <uint8_t *>mmap(NULL, r.map_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, <long>pgoff)
    if map == <uint8_t *>MAP_FAILED:
        return -errno
    r.map = map
    r.producer = <uint32_t *>(map + at.producer)
    r.consumer = <uint32_t *>(map + at.consumer)
    r.flags = <uint32_t *>(map + at.flags)
    r.entries = map + at.desc
    r.next = 0
    return 0

cdef inline void ring_unmap(Ring *r) noexcept nogil:
    if r.map != NULL:
        munmap(r.map, r.map_len)
    r.map = NULL

cdef inline void fill_put(XskState *s, uint64_t addr) noexcept nogil:
    """A frame is the kernel's again, once the ring is published. There is room: the ring has an entry for each."""
    (<uint64_t *>s.fill.entries)[s.fill.next & (RING - 1)] = addr & ~<uint64_t>(FRAME_SIZE - 1)
    s.fill.next += 1

cdef inline bint tx_pending(XskState *s) noexcept nogil:
    return qn_load_acquire32(s.tx.consumer) != s.tx.next

cdef inline void reap(XskState *s) noexcept nogil:
    """Frames that the kernel has sent are free again."""
    cdef uint32_t n = qn_load_acquire32(s.comp.producer) - s.comp.next
    cdef uint64_t addr
    if n > RING:
        n = RING
    for _i in range(n):
        addr = (<uint64_t *>s.comp.entries)[s.comp.next & (RING - 1)] & ~<uint64_t>(FRAME_SIZE - 1)
        s.comp.next += 1
        if s.nfree < RING and RX_SIZE <= addr < UMEM_SIZE:
            s.free[s.nfree] = addr
            s.nfree += 1
    if n:
        qn_store_release32(s.comp.consumer, s.comp.next)

cdef inline int xsk_rings(XskState *s) noexcept nogil:
    """Make and map the four rings; all frames for receiving go into the fill ring. 0 or -errno."""
    cdef xdp_mmap_offsets at
    cdef unsigned len = sizeof(at)
    cdef uint32_t size = RING
    cdef int rc = setsockopt(s.fd, SOL_XDP, XDP_UMEM_FILL_RING, &size, sizeof(size))
    if rc == 0:
        rc = setsockopt(s.fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &size, sizeof(size))
    if rc == 0:
        rc = setsockopt(s.fd, SOL_XDP, XDP_RX_RING, &size, sizeof(size))
    if rc == 0:
        rc = setsockopt(s.fd, SOL_XDP, XDP_TX_RING, &size, sizeof(size))
    if rc == 0:
        rc = getsockopt(s.fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &len)
    if rc < 0:
        return -errno
    if len != sizeof(at):
        return -EOPNOTSUPP              # before Linux 5.4: no need-wakeup flag
    rc = ring_map(&s.fill, s.fd, &at.fr, XDP_UMEM_PGOFF_FILL_RING, sizeof(uint64_t))
    if rc == 0:
        rc = ring_map(&s.comp, s.fd, &at.cr, XDP_UMEM_PGOFF_COMPLETION_RING, sizeof(uint64_t))
    if rc == 0:
        rc = ring_map(&s.rx, s.fd, &at.rx, XDP_PGOFF_RX_RING, sizeof(xdp_desc))
    if rc == 0:
        rc = ring_map(&s.tx, s.fd, &at.tx, XDP_PGOFF_TX_RING, sizeof(xdp_desc))
    if rc == 0:
        for i in range(RING):
            s.free[i] = RX_SIZE + <uint64_t>i * FRAME_SIZE
            fill_put(s, <uint64_t>i * FRAME_SIZE)
        s.nfree = RING
        qn_store_release32(s.fill.producer, s.fill.next)
    return rc
