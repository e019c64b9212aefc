"""What a device gets from the VMM: guest memory and interrupt lines."""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport write as posix_write

from qnet._context cimport NetContext, context_cancel, context_defer, context_enter_gil, pthread_mutex_unlock

import logging
import weakref

cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()

cdef extern from *:
    int __ATOMIC_ACQ_REL, __ATOMIC_RELAXED
    uint8_t __atomic_exchange_n(uint8_t *, uint8_t, int) nogil
    uint8_t __atomic_fetch_or(uint8_t *, uint8_t, int) nogil

log = logging.getLogger("qnet.host")


# ----------------------------------------------------------------------------------------------------------- guest memory

cdef inline MemRegion *find(GuestMem *m, uint64_t gpa) noexcept nogil:
    """Region that holds gpa, or NULL. Accesses cluster, so the last one is tried first."""
    cdef uint32_t lo = 0
    cdef uint32_t hi = m.count
    cdef uint32_t mid
    cdef MemRegion *r
    if m.last < m.count:
        r = &m.regions[m.last]
        if gpa >= r.gpa and gpa - r.gpa < r.size:
            return r
    while lo < hi:
        mid = (lo + hi) // 2
        r = &m.regions[mid]
        if gpa < r.gpa:
            hi = mid
        elif gpa - r.gpa >= r.size:
            lo = mid + 1
        else:
            m.last = mid
            return r
    return NULL


# A page is marked before its bytes are written. That loses nothing: a device does both in one hold of its network's lock, and
# dirty_pages() passes through that lock between taking the bits and telling of them.
cdef inline void mark_dirty(uint8_t *dirty, uint64_t off, uint64_t n) noexcept nogil:
    cdef uint64_t page = off >> GUEST_PAGE_SHIFT
    cdef uint64_t end = (off + n - 1) >> GUEST_PAGE_SHIFT
    cdef uint8_t bit
    while page <= end:
        bit = <uint8_t>(1 << (page & 7))
        if not dirty[page >> 3] & bit:
            __atomic_fetch_or(&dirty[page >> 3], bit, __ATOMIC_RELAXED)    # devices of two networks may share the byte
        page += 1


cdef void *guest_map(GuestMem *m, uint64_t gpa, uint64_t n, bint write) noexcept nogil:
    cdef MemRegion *r = find(m, gpa)
    cdef uint64_t off
    cdef uint8_t *dirty
    if r == NULL or r.host == NULL or (write and r.readonly):
        return NULL
    off = gpa - r.gpa
    if n > r.size - off:
        return NULL
    dirty = r.dirty
    if write and dirty != NULL and n:
        mark_dirty(dirty, off, n)
    return r.host + off


cdef bint guest_read(GuestMem *m, uint64_t gpa, void *buf, size_t n) noexcept nogil:
    return transfer(m, gpa, <uint8_t *>buf, n, False)


cdef bint guest_write(GuestMem *m, uint64_t gpa, const void *buf, size_t n) noexcept nogil:
    return transfer(m, gpa, <uint8_t *>buf, n, True)


cdef bint transfer(GuestMem *m, uint64_t gpa, uint8_t *buf, size_t n, bint write) noexcept nogil:
    cdef MemRegion *r
    cdef uint64_t k
    cdef void *host
    if n and gpa + (n - 1) < gpa:
        return False
    while n:
        r = find(m, gpa)
        if r == NULL:
            k = hole(m, gpa, n)
            if not m.callables or not call_out(m, gpa, buf, k, write):
                return False
        else:
            k = r.size - (gpa - r.gpa)
            if k > n:
                k = n
            host = guest_map(m, gpa, k, write)
            if host == NULL:
                return False
            # memmove: a device may be told to read the very bytes it writes
            if write:
                memmove(host, buf, k)
            else:
                memmove(buf, host, k)
        buf += k
        n -= k
        gpa += k
    return True


cdef uint64_t hole(GuestMem *m, uint64_t gpa, uint64_t n) noexcept nogil:
    """How many of the n bytes from gpa on, which is in no region, come before the next one."""
    cdef uint32_t i
    for i in range(m.count):
        if m.regions[i].gpa > gpa:
            return n if n <= m.regions[i].gpa - gpa else m.regions[i].gpa - gpa
    return n


cdef bint call_out(GuestMem *m, uint64_t gpa, uint8_t *buf, size_t n, bint write) noexcept nogil:
    cdef bint collects
    cdef bint ok
    with gil:
        collects = PyGC_Disable()               # a client that it frees would want the lock, which this thread holds
        ok = (<GuestMemory>m.owner)._call_out(gpa, buf, n, write)
        if collects:
            PyGC_Enable()
        return ok


@cython.no_gc_clear
cdef class GuestMemory:
    """Guest physical memory as devices see it.

    GuestMemory(buffer)                        one region at guest address 0
    GuestMemory([(gpa, buffer), ...])          several; (gpa, address, size) takes raw host memory that the caller keeps alive
    GuestMemory(read=fn, write=fn)             callables read(gpa, n) -> bytes, write(gpa, bytes): a slow path, called with the
                                               network's lock held, so they must not call back into the network

    Buffers are writable contiguous ones (mmap, bytearray, memoryview, numpy); they stay exported until close(). Devices reach
    nothing else: every access is checked against the regions when it is made. Overlapping regions raise ValueError.
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self.mem, 0, sizeof(self.mem))
        self.views = []
        self.users = weakref.WeakKeyDictionary()

    def __init__(self, regions=None, *, read=None, write=None):
        if (read is None) != (write is None):
            raise ValueError("read and write callables go together")
        self.read_fn = read
        self.write_fn = write
        self.mem.callables = read is not None
        self.mem.owner = <void *>self
        if regions is None:
            if read is None:
                raise ValueError("guest memory needs a buffer, regions, or read and write callables")
            return
        if not isinstance(regions, (list, tuple)):
            regions = [(0, regions)]
        for r in regions:
            if len(r) == 2:
                self.add(r[0], r[1])
            else:
                self.add_raw(r[0], r[1], r[2])

    cdef void _add(self, uint64_t gpa, uint64_t size, uint8_t *host, bint readonly) except *:
        cdef uint32_t i = 0
        cdef uint32_t n = self.mem.count
        cdef MemRegion *grown
        if size == 0 or gpa + (size - 1) < gpa:
            raise ValueError(f"region of {size} bytes at {gpa:#x} does not fit the 64-bit address space")
        while i < n and self.mem.regions[i].gpa < gpa:
            i += 1
        if (i > 0 and self.mem.regions[i - 1].gpa + (self.mem.regions[i - 1].size - 1) >= gpa) or \
                (i < n and gpa + (size - 1) >= self.mem.regions[i].gpa):
            raise ValueError(f"region of {size} bytes at {gpa:#x} overlaps another")
        grown = <MemRegion *>realloc(self.mem.regions, (n + 1) * sizeof(MemRegion))
        if grown == NULL:
            raise MemoryError
        memmove(&grown[i + 1], &grown[i], (n - i) * sizeof(MemRegion))
        memset(&grown[i], 0, sizeof(MemRegion))
        grown[i].gpa = gpa
        grown[i].size = size
        grown[i].host = host
        grown[i].readonly = readonly
        self.mem.regions = grown
        self.mem.count = n + 1

    def add(self, uint64_t gpa, buffer, bint readonly=False):
        """Add a buffer at guest address gpa. Not while a network that uses this memory runs."""
        cdef object view = memoryview(buffer)
        cdef Py_buffer raw
        if not view.contiguous or (view.readonly and not readonly):
            raise ValueError("guest memory must be a contiguous writable buffer")
        PyObject_GetBuffer(view, &raw, PyBUF_SIMPLE if readonly else PyBUF_WRITABLE)
        try:
            self._add(gpa, raw.len, <uint8_t *>raw.buf, readonly)
        finally:
            PyBuffer_Release(&raw)
        self.views.append(view)

    def add_raw(self, uint64_t gpa, uintptr_t address, uint64_t size, bint readonly=False):
        """Add `size` bytes of host memory at `address`, which the caller keeps mapped until close()."""
        if address == 0:
            raise ValueError("host address is NULL")
        self._add(gpa, size, <uint8_t *>address, readonly)

    @property
    def regions(self) -> list:
        """[(gpa, size), ...] in ascending order."""
        return [(self.mem.regions[i].gpa, self.mem.regions[i].size) for i in range(self.mem.count)]

    cdef void attach(self, NetContext *ctx, object context) except *:
        """A device of this context uses the memory from now on, always with the context's lock held."""
        self.users[context] = <size_t>ctx

    cdef void _pass_locks(self) except *:
        """Return when every device has finished what it was doing with the memory."""
        cdef NetContext *ctx
        for _context, at in list(self.users.items()):
            ctx = <NetContext *><size_t>at
            context_enter_gil(ctx)
            pthread_mutex_unlock(&ctx.lock)

    def track_dirty(self, bint on=True):
        """Start (from clean) or stop recording which 4 KiB pages devices write. Networks may run."""
        cdef uint32_t i
        cdef MemRegion *r
        cdef uint8_t *old
        cdef list bits = []
        for i in range(self.mem.count):
            bits.append(<size_t>calloc(1, (self.mem.regions[i].size >> GUEST_PAGE_SHIFT) // 8 + 1) if on else 0)
        short = on and 0 in bits
        for i in range(self.mem.count if not short else 0):
            r = &self.mem.regions[i]
            old = r.dirty
            r.dirty = <uint8_t *><size_t>bits[i]
            bits[i] = <size_t>old
        self._pass_locks()
        for at in bits:
            free(<void *><size_t>at)
        if short:
            raise MemoryError

    def dirty_pages(self, bint clear=True) -> list:
        """Guest addresses of the 4 KiB pages written by devices since the last call; needs track_dirty(). The writes that made them
        so are over when it returns. Not from guest memory's own callables."""
        cdef uint32_t i
        cdef uint64_t at
        cdef uint8_t bits
        cdef int bit
        cdef MemRegion *r
        out = []
        for i in range(self.mem.count):
            r = &self.mem.regions[i]
            if r.dirty == NULL:
                continue
            for at in range((r.size - 1) // (8 << GUEST_PAGE_SHIFT) + 1):
                # in one step: a device may set a bit meanwhile
                bits = __atomic_exchange_n(&r.dirty[at], 0, __ATOMIC_ACQ_REL) if clear else r.dirty[at]
                for bit in range(8):
                    if bits >> bit & 1:
                        out.append(r.gpa + ((at * 8 + bit) << GUEST_PAGE_SHIFT))
        self._pass_locks()
        return out

    def read(self, uint64_t gpa, size_t n) -> bytes:
        """n bytes as a device reads them. IndexError outside guest memory."""
        cdef bytearray out = bytearray(n)
        if n and not guest_read(&self.mem, gpa, <char *>out, n):
            raise IndexError(f"{n} bytes at {gpa:#x} are not all guest memory")
        return bytes(out)

    def write(self, uint64_t gpa, data):
        """Write as a device does. IndexError outside guest memory."""
        cdef bytes raw = bytes(data)
        if len(raw) and not guest_write(&self.mem, gpa, <const char *>raw, len(raw)):
            raise IndexError(f"{len(raw)} bytes at {gpa:#x} are not all writable guest memory")

    cdef bint _call_out(self, uint64_t gpa, uint8_t *buf, size_t n, bint write) noexcept:
        cdef bytes data
        try:
            if write:
                self.write_fn(gpa, (<char *>buf)[:n])
                return True
            data = bytes(self.read_fn(gpa, n))
            if <size_t>len(data) != n:
                raise ValueError(f"read({gpa:#x}, {n}) returned {len(data)} bytes")
            memcpy(buf, <char *>data, n)
            return True
        except Exception:
            log.exception("guest memory callable failed")
            return False

    def close(self):
        """Release the buffers; devices reach nothing any more."""
        cdef uint32_t i
        cdef uint32_t n = self.mem.count
        self.mem.count = 0
        self.mem.callables = False
        self._pass_locks()
        for i in range(n):
            free(self.mem.regions[i].dirty)
        free(self.mem.regions)
        self.mem.regions = NULL
        self.views.clear()

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.mem.count):
            free(self.mem.regions[i].dirty)
        free(self.mem.regions)


# -------------------------------------------------------------------------------------------------------- interrupt lines

cdef inline void signal_fd(int fd) noexcept nogil:
    cdef uint64_t one = 1
    cdef ssize_t done = posix_write(fd, &one, 8)
    if done < 0:
        return                                  # EAGAIN: 2^64 - 2 signals are pending already


cdef void irq_set(IrqState *irq, int level) noexcept nogil:
    if level == irq.level:
        return
    irq.level = level
    if level:
        irq.rises += 1
    if irq.fd >= 0:
        irq.delivered = level
        if level:
            signal_fd(irq.fd)
    elif irq.callable and not irq.busy and irq.ctx != NULL:
        context_defer(irq.ctx, &irq.node)


cdef void irq_deliver(void *owner) noexcept:
    (<IrqLine>owner)._deliver()


@cython.no_gc_clear
cdef class IrqLine:
    """One level-triggered interrupt line.

    IrqLine(fn)         fn(level: int) is called after the network's lock was dropped, on the thread that moved the line. Calls
                        never overlap and the last one tells the final level; levels in between may be left out.
    IrqLine(fd=n)       8 bytes are written to the eventfd on each rise; resample() writes again while the line is still up
    IrqLine()           nobody is told; poll `level`
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self.irq, 0, sizeof(self.irq))
        self.irq.fd = -1

    def __init__(self, callback=None, *, int fd=-1):
        if callback is not None and fd >= 0:
            raise ValueError("an interrupt line has a callable or an eventfd, not both")
        if callback is not None and not callable(callback):
            raise TypeError(f"irq must be callable, not {type(callback).__name__}")
        self.callback = callback
        self.irq.callable = callback is not None
        self.irq.fd = fd
        self.irq.node.owner = <void *>self
        self.irq.node.run = irq_deliver

    cdef void attach(self, NetContext *ctx, object context) noexcept:
        """The device that drives the line belongs to this context."""
        self.irq.ctx = ctx
        self.context = context

    @property
    def level(self) -> int:
        """What the device drives now."""
        return self.irq.level

    @property
    def rises(self) -> int:
        """How often the line went up."""
        return self.irq.rises

    def resample(self):
        """After the guest's end of interrupt: signal the eventfd again if the line is still up."""
        if self.irq.fd >= 0 and self.irq.level:
            signal_fd(self.irq.fd)

    cdef void _deliver(self) noexcept:
        cdef NetContext *ctx = self.irq.ctx
        cdef object _keep = self.context        # the callable may close the device
        cdef int level
        if ctx == NULL:
            return
        context_enter_gil(ctx)
        if self.irq.busy:                       # that thread looks again before it leaves
            pthread_mutex_unlock(&ctx.lock)
            return
        self.irq.busy = True
        while self.irq.level != self.irq.delivered:
            level = self.irq.level
            self.irq.delivered = level
            pthread_mutex_unlock(&ctx.lock)
            try:
                self.callback(level)
            except Exception:
                log.exception("interrupt callable failed")
            context_enter_gil(ctx)
        self.irq.busy = False
        pthread_mutex_unlock(&ctx.lock)

    def detach(self):
        """The device goes: nobody is told any more, and the line is down."""
        cdef NetContext *ctx = self.irq.ctx
        if ctx == NULL:
            return
        context_enter_gil(ctx)
        context_cancel(ctx, &self.irq.node)
        self.irq.level = 0
        self.irq.delivered = 0
        self.irq.ctx = NULL
        pthread_mutex_unlock(&ctx.lock)
        self.context = None

    def __dealloc__(self):
        cdef NetContext *ctx = self.irq.ctx
        if ctx != NULL:
            context_enter_gil(ctx)
            context_cancel(ctx, &self.irq.node)
            pthread_mutex_unlock(&ctx.lock)
