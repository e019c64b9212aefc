# What a device gets from the VMM: guest memory and interrupt lines. Knows nothing of packets.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from qnet._context cimport Deferred, NetContext

cdef struct MemRegion:
    uint64_t gpa                    # guest physical address of the first byte
    uint64_t size                   # bytes
    uint8_t *host                   # NULL: reached through the callables
    uint8_t *dirty                  # a bit per page written by devices, or NULL
    bint readonly

cdef struct GuestMem:
    MemRegion *regions              # ascending, disjoint
    uint32_t count
    uint32_t last                   # index of the region that served the last access
    void *owner                     # the GuestMemory, for its callables
    bint callables

cdef enum:
    GUEST_PAGE_SHIFT = 12

# The one way from an address to bytes, with the network's lock held; what is mapped is done with when the lock is dropped, and a
# device says once which network is its (GuestMemory.attach). NULL unless all of [gpa, gpa + n) lies in one mapped (and, to write,
# writable) region.
cdef void *guest_map(GuestMem *m, uint64_t gpa, uint64_t n, bint write) noexcept nogil
# guest_map for a device's inner loop: to read, and most likely in the region of the last access.
cdef inline void *guest_peek(GuestMem *m, uint64_t gpa, uint64_t n) noexcept nogil:
    cdef MemRegion *r
    cdef uint64_t off
    if m.last < m.count:
        r = &m.regions[m.last]
        off = gpa - r.gpa
        if gpa >= r.gpa and off < r.size and n <= r.size - off and r.host != NULL:
            return r.host + off
    return guest_map(m, gpa, n, False)

# The same to write.
cdef inline void *guest_poke(GuestMem *m, uint64_t gpa, uint64_t n) noexcept nogil:
    cdef MemRegion *r
    cdef uint64_t off
    if m.last < m.count:
        r = &m.regions[m.last]
        off = gpa - r.gpa
        if gpa >= r.gpa and off < r.size and n <= r.size - off and r.host != NULL and not r.readonly and r.dirty == NULL:
            return r.host + off
    return guest_map(m, gpa, n, True)

# The same for accesses that cross regions or go through callables. False: nothing, or only a part, was transferred.
cdef bint guest_read(GuestMem *m, uint64_t gpa, void *buf, size_t n) noexcept nogil
cdef bint guest_write(GuestMem *m, uint64_t gpa, const void *buf, size_t n) noexcept nogil

cdef struct IrqState:
    NetContext *ctx
    int level                       # what the device wants
    int delivered                   # what the VMM knows
    int fd                          # eventfd written on each rise, or -1
    bint callable
    bint busy                       # a thread is telling the VMM
    uint64_t rises
    Deferred node

# The one function that moves a line. The VMM's callable runs after the lock is dropped.
cdef void irq_set(IrqState *irq, int level) noexcept nogil

cdef class GuestMemory:
    cdef GuestMem mem
    cdef list views
    cdef object read_fn
    cdef object write_fn
    cdef object error
    cdef object users               # contexts of the devices that use it, weakly -> address of their NetContext
    cdef void attach(self, NetContext *ctx, object context) except *
    cdef void _pass_locks(self) except *
    cdef void _add(self, uint64_t gpa, uint64_t size, uint8_t *host, bint readonly) except *
    cdef bint _call_out(self, uint64_t gpa, uint8_t *buf, size_t n, bint write) noexcept

cdef class IrqLine:
    cdef IrqState irq
    cdef object callback
    cdef object context
    cdef void attach(self, NetContext *ctx, object context) noexcept
    cdef void _deliver(self) noexcept
