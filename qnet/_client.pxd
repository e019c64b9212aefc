# The classes that own the contract's structs: a leaf subclasses NetClient or Filter.
from libc.stdint cimport uint64_t

from qnet._context cimport NetContext
from qnet._fastpath cimport NetClientOps, NetClientState, NetFilter

cdef class Context:
    cdef NetContext ctx
    cdef uint64_t holder                # thread that runs no callables now; 0: none
    cdef object __weakref__
    cdef void run_deferred(self) noexcept

cdef class NetClient:
    cdef NetClientState nc
    cdef readonly Context context
    cdef readonly str name
    cdef readonly str model
    cdef public str info_str
    cdef NetClient _peer
    cdef readonly bint closed
    cdef object __weakref__
    cdef int _setup(self, const NetClientOps *ops, void *opaque) except -1
    # Every leaf calls it in its own __dealloc__, while the state behind `opaque` still exists. Idempotent.
    cdef void _fini(self) noexcept

cdef class Filter:
    cdef NetFilter filter
    cdef readonly NetClient client
    cdef object __weakref__
    cdef void _fini(self) noexcept      # as NetClient's: every leaf calls it in its own __dealloc__
