# The e1000 as an object; its state and rings are in _e1000_rings.pxd.
from qnet._client cimport NetClient
from qnet._host cimport GuestMemory, IrqLine
from qnet.models._e1000_rings cimport E1000State

cdef class E1000Chip(NetClient):
    cdef E1000State s
    cdef readonly GuestMemory memory
    cdef readonly IrqLine irq
    cdef void _stop_timers(self) noexcept
