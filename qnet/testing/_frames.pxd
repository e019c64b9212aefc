# Packets that outlive a call (copies, in C) and packets made of Python's bytes.
from libc.stdint cimport uint32_t

from qnet._fastpath cimport Offload, Packet
from qnet._iov cimport iovec

cdef struct Frame:                      # a copy of a packet; its bytes follow the struct
    Frame *next
    iovec iov
    Packet pkt

cdef struct Fifo:
    Frame *head
    Frame *tail

cdef Frame *frame_copy(const Packet *p) noexcept nogil
cdef void fifo_put(Fifo *q, Frame *f) noexcept nogil
cdef void fifo_pop(Fifo *q, uint32_t n) noexcept nogil
cdef int fill_offload(Offload *off, object fields) except -1
cdef list frames_to_python(Frame *f, list offloads)

cdef class Burst:
    cdef Packet *pkts
    cdef iovec *iov
    cdef uint32_t n
    cdef list keep
