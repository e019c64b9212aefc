"""Hub ports (H1 to H7): what enters one port leaves by all others. A hub is a list of ports; nothing is learnt."""
cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc

from qnet._context cimport context_enter, context_leave
from qnet._client cimport Context, NetClient
from qnet._fastpath cimport NetClientOps, NetClientState, Packet, TAKE_ALL, net_can_send, net_flush, net_send

import weakref

cdef struct HubState:
    NetClientState **ports
    uint32_t count
    bint flushing
    bint asking


cdef uint32_t hub_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef HubState *hub = <HubState *>nc.opaque
    cdef uint32_t i
    for i in range(hub.count):
        if hub.ports[i] != nc:
            net_send(hub.ports[i], pkts, n)
    return n


cdef bint hub_can_receive(NetClientState *nc) noexcept nogil:
    """True if any other port could send on; a port without a peer, or with a way back into this hub, counts as able (H3)."""
    cdef HubState *hub = <HubState *>nc.opaque
    cdef bint able = False
    cdef uint32_t i
    if hub.asking:
        return True
    hub.asking = True
    for i in range(hub.count):
        if hub.ports[i] != nc and net_can_send(hub.ports[i]):
            able = True
            break
    hub.asking = False
    return able


cdef void hub_resume(NetClientState *nc) noexcept nogil:
    """The member behind this port has room: what waits in the other ports can go on (H4)."""
    cdef HubState *hub = <HubState *>nc.opaque
    cdef uint32_t i
    if hub.flushing:
        return
    hub.flushing = True
    for i in range(hub.count):
        if hub.ports[i] != nc:
            net_flush(hub.ports[i])
    hub.flushing = False


cdef void hub_cleanup(NetClientState *nc) noexcept nogil:
    """Take the port out of the hub; the order of the others stays."""
    cdef HubState *hub = <HubState *>nc.opaque
    cdef uint32_t i
    cdef uint32_t k = 0
    for i in range(hub.count):
        if hub.ports[i] != nc:
            hub.ports[k] = hub.ports[i]
            k += 1
    hub.count = k


cdef NetClientOps hub_ops = NetClientOps(
    receive=hub_receive,
    can_receive=hub_can_receive,
    resume=hub_resume,
    link_status_changed=NULL,           # link state does not pass a hub (H7)
    cleanup=hub_cleanup,
)


cdef class Hub:
    """One hub of one network; ports join it as HubPort(context, hub, name)."""
    cdef HubState state
    cdef readonly Context context
    cdef readonly int hub_id
    cdef list _ports

    def __cinit__(self):
        self.state.ports = NULL
        self.state.count = 0
        self.state.flushing = False
        self.state.asking = False

    def __init__(self, Context context not None, int hub_id):
        self.context = context
        self.hub_id = hub_id
        self._ports = []

    @property
    def ports(self) -> list:
        """Open ports, the newest first (H1)."""
        ports = [ref() for ref in self._ports]
        self._ports = [ref for ref, port in zip(self._ports, ports) if port is not None and not port.closed]
        return [port for port in reversed(ports) if port is not None and not port.closed]

    def __dealloc__(self):
        free(self.state.ports)


@cython.no_gc_clear
cdef class HubPort(NetClient):
    """A port of a hub. Takes every offload: the members behind the other ports decide what they need."""
    cdef readonly Hub hub

    def __init__(self, Context context not None, Hub hub not None, str name=""):
        cdef NetClientState **grown
        super().__init__(context, name, "hubport")
        self.hub = hub
        if hub.context is not context:
            raise ValueError("a hub belongs to one network")
        self._setup(&hub_ops, &hub.state)
        self.nc.takes = TAKE_ALL
        with nogil:
            context_enter(self.nc.ctx)
            grown = <NetClientState **>realloc(hub.state.ports, (hub.state.count + 1) * sizeof(NetClientState *))
            if grown != NULL:
                hub.state.ports = grown
                grown[hub.state.count] = &self.nc
                hub.state.count += 1
            context_leave(self.nc.ctx)
        if grown == NULL:
            raise MemoryError
        hub._ports.append(weakref.ref(self))

    def __dealloc__(self):
        self._fini()
