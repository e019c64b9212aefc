# The frames that wait for a Python client, and its packet code. Shared by _pyring.pyx and _pyclient.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from qnet._context cimport Deferred
from qnet._fastpath cimport NET_BURST, NetClientOps, NetClientState, Offload
from qnet._iov cimport iovec
from qnet._loop cimport Timer

cdef extern from "bpf.h" nogil:
    struct sock_filter:
        pass
    int QN_BPF_MAX
    int qn_bpf_check(const sock_filter *prog, unsigned n)
    uint32_t qn_bpf_run(const sock_filter *prog, const iovec *iov, unsigned iovcnt, uint32_t size)

cdef enum:
    CHUNK_BYTES = 131072            # of frames; holds the largest one, and 64 of 1514 bytes

cdef struct Record:
    uint32_t off
    uint32_t size
    Offload offload

cdef struct Chunk:                  # one batch
    Chunk *next
    uint32_t used                   # bytes
    uint32_t count                  # frames
    uint64_t bytes                  # of these frames
    Record rec[NET_BURST]
    # CHUNK_BYTES of frames follow

cdef struct Ring:
    NetClientState *nc
    Chunk *head                     # frames for Python, the oldest first
    Chunk *tail
    Chunk *spare                    # empty
    uint32_t nspare
    uint32_t count
    uint64_t bytes
    uint32_t max_packets
    uint64_t max_bytes
    sock_filter *prog               # NULL: every frame
    Deferred node
    Timer timer
    bint paused
    bint starved                    # somebody was told that there is no room
    bint arrived                    # since Python last looked
    bint resumed                    # so was this: the peer has room
    bint closed

cdef inline uint8_t *chunk_data(Chunk *c) noexcept nogil:
    return <uint8_t *>(c + 1)

cdef Chunk *ring_take(Ring *s, Chunk **back) noexcept nogil
cdef void ring_flush(Ring *s) noexcept nogil
cdef void ring_timer(void *opaque) noexcept nogil
cdef void chunks_free(Chunk *c) noexcept nogil

cdef NetClientOps py_ops
