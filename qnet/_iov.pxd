# iovec arrays: gather, scatter, skip. Inline, nogil, no .pyx.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef inline size_t iov_size(const iovec *iov, uint32_t cnt) noexcept nogil:
    cdef size_t total = 0
    cdef uint32_t i
    for i in range(cnt):
        total += iov[i].iov_len
    return total

cdef inline size_t iov_gather(const iovec *iov, uint32_t cnt, size_t off, void *to, size_t n) noexcept nogil:
    """Copy bytes [off, off + n) out of the array; returns how many there were."""
    cdef size_t done = 0
    cdef size_t k
    cdef uint32_t i
    for i in range(cnt):
        if off >= iov[i].iov_len:
            off -= iov[i].iov_len
            continue
        k = iov[i].iov_len - off
        if k > n - done:
            k = n - done
        memcpy(<uint8_t *>to + done, <const uint8_t *>iov[i].iov_base + off, k)
        done += k
        off = 0
        if done == n:
            break
    return done

cdef inline uint32_t iov_slice(const iovec *iov, uint32_t cnt, size_t off, size_t n, iovec *out, uint32_t max) noexcept nogil:
    """Elements of [off, off + n) without copying; returns their number, at most max."""
    cdef uint32_t i
    cdef uint32_t k = 0
    cdef size_t len
    for i in range(cnt):
        if off >= iov[i].iov_len:
            off -= iov[i].iov_len
            continue
        if n == 0 or k == max:
            break
        len = iov[i].iov_len - off
        if len > n:
            len = n
        out[k].iov_base = <uint8_t *>iov[i].iov_base + off
        out[k].iov_len = len
        k += 1
        n -= len
        off = 0
    return k
