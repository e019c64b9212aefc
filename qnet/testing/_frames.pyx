# distutils: language = c
"""Copies of packets in C, and packets made of Python's bytes: ground of the test clients."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from qnet._fastpath cimport TAKE_ALL, TAKE_CSUM, TAKE_ECN, TAKE_PLAIN, TAKE_TSO4, TAKE_TSO6, TAKE_UFO, TAKE_USO, Offload, Packet
from qnet._iov cimport iov_gather, iovec

TAKES = {"plain": TAKE_PLAIN, "csum": TAKE_CSUM, "tso4": TAKE_TSO4, "tso6": TAKE_TSO6, "uso": TAKE_USO, "ufo": TAKE_UFO,
         "ecn": TAKE_ECN, "all": TAKE_ALL}


def takes_mask(str takes) -> int:
    """ "csum tso4" -> the TAKE_* bits; plain frames are always taken. KeyError for an unknown name."""
    cdef uint32_t mask = TAKE_PLAIN
    for word in takes.split():
        mask |= <uint32_t>TAKES[word]
    return mask


cdef int fill_offload(Offload *off, object fields) except -1:
    memset(off, 0, sizeof(Offload))
    if not fields:
        return 0
    for key, value in fields.items():
        if key == "flags":
            off.flags = value
        elif key == "gso_type":
            off.gso_type = value
        elif key == "hdr_len":
            off.hdr_len = value
        elif key == "gso_size":
            off.gso_size = value
        elif key == "csum_start":
            off.csum_start = value
        elif key == "csum_offset":
            off.csum_offset = value
        else:
            raise KeyError(key)
    return 0


cdef Frame *frame_copy(const Packet *p) noexcept nogil:
    cdef Frame *f = <Frame *>malloc(sizeof(Frame) + p.size)
    if f == NULL:
        return NULL
    f.next = NULL
    f.iov.iov_base = <void *>(f + 1)
    f.iov.iov_len = iov_gather(p.iov, p.iovcnt, 0, f + 1, p.size)
    f.pkt = p[0]
    f.pkt.iov = &f.iov
    f.pkt.iovcnt = 1
    f.pkt.size = <uint32_t>f.iov.iov_len
    return f


cdef void fifo_put(Fifo *q, Frame *f) noexcept nogil:
    if q.tail == NULL:
        q.head = f
    else:
        q.tail.next = f
    q.tail = f


cdef void fifo_pop(Fifo *q, uint32_t n) noexcept nogil:
    cdef Frame *f
    while n and q.head != NULL:
        f = q.head
        q.head = f.next
        if f.next == NULL:
            q.tail = NULL
        free(f)
        n -= 1


cdef list frames_to_python(Frame *f, list offloads):
    """Frees the frames; their bytes, and their Offload records as dicts in `offloads`."""
    cdef Frame *next
    cdef list out = []
    while f != NULL:
        next = f.next
        out.append((<char *>f.iov.iov_base)[:f.iov.iov_len])
        offloads.append(dict(f.pkt.off))
        free(f)
        f = next
    return out


cdef class Burst:
    """Packets made of Python bytes, for the time of one call."""

    def __cinit__(self, frames, offload):
        cdef list pieces
        cdef bytes piece
        cdef uint32_t total = 0
        cdef uint32_t i = 0
        cdef uint32_t k = 0
        self.keep = [[frame] if isinstance(frame, bytes) else list(frame) for frame in frames]
        for pieces in self.keep:
            total += <uint32_t>len(pieces)
        self.n = <uint32_t>len(self.keep)
        self.pkts = <Packet *>calloc(self.n + 1, sizeof(Packet))
        self.iov = <iovec *>calloc(total + 1, sizeof(iovec))
        if self.pkts == NULL or self.iov == NULL:
            raise MemoryError
        offloads = offload if isinstance(offload, (list, tuple)) else [offload] * self.n
        if len(offloads) != self.n:
            raise ValueError(f"{len(offloads)} offload records for {self.n} frames")
        for i in range(self.n):
            pieces = self.keep[i]
            self.pkts[i].iov = &self.iov[k]
            self.pkts[i].iovcnt = <uint32_t>len(pieces)
            for piece in pieces:
                self.iov[k].iov_base = <char *>piece
                self.iov[k].iov_len = len(piece)
                self.pkts[i].size += <uint32_t>len(piece)
                k += 1
            fill_offload(&self.pkts[i].off, offloads[i])

    def __dealloc__(self):
        free(self.pkts)
        free(self.iov)
