"""Net: one network. Its clients, hubs, NICs and filters, how they come and go, and the three ways to run it."""

import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from qnet import info
from qnet._announce import announce
from qnet._client import NetClient, NullClient
from qnet._host import GuestMemory, IrqLine
from qnet._loop import Loop, VirtualClock
from qnet.announce import Announcer, Parameters
from qnet.backends._hub import Hub, HubPort
from qnet.errors import DeviceNotFound, DuplicateId, Error, OptionError
from qnet.events import EventCallback, Events
from qnet.kinds import NET_CLIENT_INIT, Backend, backend, filter_room, nic_model, nic_room
from qnet.mac import MacPool, parse_mac
from qnet.options import (
    FilterOptions,
    Form,
    Pairs,
    check_id,
    format_pairs,
    is_id,
    parse_keyval,
    parse_pairs,
    properties,
    read_options,
)
from qnet.rooms import NetFilter, Nic
from qnet.spec import Spec, Values, has_dotted_keys, ipv6_net, last, split, take

if TYPE_CHECKING:
    from qnet.backends.py import PyPort

__all__ = ["MAX_NICS", "Net", "NicSlot"]

log = logging.getLogger("qnet.net")

MAX_NICS = 8                                # slots for -nic and -net nic (S7, M5)

Memory = Any                                # GuestMemory, or what its constructor takes
Irq = IrqLine | Callable[[int], object] | None


@dataclasses.dataclass(eq=False)
class _Netdev:
    """What one -netdev, -nic or -net made."""

    name: str
    clients: list[NetClient]
    legacy: bool                            # made by -net: only close() deletes it (S56)


@dataclasses.dataclass(eq=False)
class _Filter:
    name: str
    kind: str
    options: FilterOptions
    filter: NetFilter
    client: NetClient

    def line(self) -> str:
        """filter-dump's line of `info network`."""
        shown = dict(properties(self.options)) | {"status": "on" if self.filter.on else "off"}
        return ",".join([f"{self.name}: type={self.kind}", *(f"{key}={value}" for key, value in shown.items())])


@dataclasses.dataclass(eq=False)
class NicSlot:
    """A NIC asked for with -nic or -net nic (M5): the VMM makes it with Net.nic_init(). model None: the VMM's default."""

    name: str | None
    model: str | None
    mac: bytes
    netdev: str | None
    addr: str | None = None
    vectors: int | None = None
    nic: Nic | None = None


@dataclasses.dataclass(eq=False)
class _Device:
    name: str
    nic: Nic
    clients: list[NetClient]
    mac: bytes
    owned: list[GuestMemory]                # made here from a buffer
    ghosts: list[NetClient] = dataclasses.field(default_factory=list)       # stand in for deleted backends (S51)


class _Control:
    """The control plane's lock. The user's callables wait until it is free again, so they may take locks of the user's own."""

    def __init__(self, loop: Loop, events: Events) -> None:
        self._loop = loop
        self._events = events
        self._lock = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._loop.hold(True)

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        last = self._depth == 0
        if last:
            self._loop.hold(False)
        self._lock.release()
        if last:
            self._loop.run_callables()
            self._events.deliver()


class Net:
    """One network; two of them in a process share nothing.

    clock: VirtualClock() makes time stand still but in run_until(). memory: guest memory for every NIC that is not given its own.

    Everything may be called from any thread. A text is what stands behind QEMU's -netdev, -device, -object, -nic or -net; in its
    place a mapping (the JSON form) or keyword arguments will do. Errors are qnet.errors.Error with QEMU's text and a hint; a call
    that raises has changed nothing. close(), or the end of a with block, releases everything.
    """

    def __init__(self, *, clock: VirtualClock | None = None, memory: Memory = None) -> None:
        self.loop = Loop(clock)
        self._events = Events()
        self._lock = _Control(self.loop, self._events)      # the packet path's is the loop's
        self._closed = False
        self._owned: list[GuestMemory] = []
        self._memory = self._own_memory(memory, self._owned)
        self._clients: list[NetClient] = []                 # in order of creation (S1)
        self._netdevs: dict[str, _Netdev] = {}
        self._devices: dict[str, _Device] = {}
        self._filters: list[_Filter] = []                   # of each client, in the order of its chain
        self._hubs: list[Hub] = []                          # the newest first
        self._hub_ports: dict[int, int] = {}                # ports ever made
        self._macs = MacPool()
        self._slots: list[NicSlot] = []
        self._unnamed = 0
        self._announcer = Announcer(self.loop, self._lock, self._announce_round)

    # ------------------------------------------------------------------------------------------------------------ netdevs

    def netdev_add(self, spec: Spec = None, /, **options: Any) -> NetClient:
        """-netdev: make a backend and return its (first) client.

        netdev_add("user,id=u0,restrict=on"), netdev_add('{"type": "user", "id": "u0"}'), netdev_add("user", id="u0", restrict=True)
        """
        with self._adding():
            keyval = [kind for kind, row in NET_CLIENT_INIT.items() if row.keyval]
            form, values = split(spec, options, "type", dotted=has_dotted_keys(spec, keyval))
            name = take(values, "id")
            if name is None:
                raise OptionError("Parameter 'id' is missing", "id= names the netdev, for netdev= of a NIC")
            kind = take(values, "type")
            if form is Form.OPTS:
                check_id(name)
                self._check_free(name, f"Duplicate ID '{name}' for netdev")
            if kind is None:
                raise OptionError("Parameter 'type' is missing", f"one of {', '.join(k for k, r in NET_CLIENT_INIT.items() if r.netdev)}")
            row = backend(kind, netdev=True)
            opts = _read(row, form, values)
            check_id(name)
            self._check_free(name, f"Duplicate ID '{name}'")
            return self._open(row, kind, name, opts).clients[0]

    def netdev_del(self, name: str) -> None:
        """Delete a netdev. A NIC it is plugged into keeps a dead peer and a link that is down until the NIC goes (S50 to S53)."""
        with self._lock:
            entry = self._netdevs.get(name)
            if entry is not None and not entry.legacy:
                self._delete_netdev(entry)
                return
            found = [client for client in self._clients if client.name == name]
            if any(not client.is_nic for client in found):
                raise OptionError(f"Device '{name}' is not a netdev", "-net made it: it goes with the network")
            raise DeviceNotFound(name, "a NIC is deleted with device_del()" if found else "")

    def _open(self, row: Backend, kind: str, name: str, options: Any, legacy: bool = False) -> _Netdev:
        hubs, ports = list(self._hubs), dict(self._hub_ports)
        try:
            clients = list(row.room.open(self, name, options))
        except BaseException:
            self._hubs, self._hub_ports = hubs, ports
            raise
        if not clients and kind != "nic":
            raise Error(f"Device '{kind}' could not be initialized")
        entry = _Netdev(name, clients, legacy)
        self._netdevs[name] = entry
        self._clients.extend(clients)
        return entry

    def _delete_netdev(self, entry: _Netdev) -> None:
        del self._netdevs[entry.name]
        for client in entry.clients:
            self._delete_client(client)

    def _delete_client(self, client: NetClient) -> None:
        """A backend's client goes (S50 to S53). Under a NIC a ghost takes its place, with the link down."""
        for entry in [f for f in self._filters if f.client is client]:
            self._delete_filter(entry)
        if client in self._clients:
            self._clients.remove(client)
        nic = client.peer if client.peer is not None and client.peer.is_nic else None
        if nic is None:
            client.close()
            return
        client.set_link(False)
        ghost = NullClient(self.loop, client.name, client.model)
        ghost.info_str = client.info_str
        ghost.set_link(False)
        client.close()
        ghost.pair(nic)
        for device in self._devices.values():
            if nic in device.clients:
                device.ghosts.append(ghost)

    # --------------------------------------------------------------------------------------------------------------- NICs

    def device_add(self, spec: Spec = None, /, *, memory: Memory = None, irq: Irq = None, **options: Any) -> Nic:
        """-device: make a NIC and return it.

        memory: GuestMemory or what its constructor takes; the network's when None. irq: IrqLine or callable(level).
        """
        with self._adding():
            _, values = split(spec, options, "driver")
            driver, name = take(values, "driver"), take(values, "id")
            if name is not None:
                check_id(name)
            if driver is None:
                raise OptionError("Parameter 'driver' is missing", "the NIC's model, such as e1000")
            model = nic_model(driver)
            if name is not None and name in self._devices:
                raise DuplicateId(f"Duplicate device ID '{name}'", f"it is the id of a {self._devices[name].nic.model}")
            opts: Any = read_options(nic_room(model).Options, Form.DEVICE, values, owner=driver)
            return self._realize(model, name, opts, driver, memory, irq)

    def device_del(self, name: str) -> None:
        """Delete a NIC, by its id or automatic name (S54)."""
        with self._lock:
            device = self._devices.get(name)
            if device is None:
                raise DeviceNotFound(name, "a netdev is deleted with netdev_del()" if name in self._netdevs else "")
            self._delete_device(device)

    def _realize(self, model: str, name: str | None, opts: Any, owner: str, memory: Memory, irq: Irq) -> Nic:
        peers: list[NetClient] = []
        if opts.netdev is not None:
            peers = [client for client in self._clients if client.name == opts.netdev and not client.is_nic]
            if not peers:
                raise OptionError(
                    f"Property '{owner}.netdev' can't find value '{opts.netdev}'", f"netdev_add() it first; {self._free_names()}"
                )
            if any(client.peer is not None for client in peers):
                raise OptionError(f"Property '{owner}.netdev' can't take value '{opts.netdev}', it's in use", self._free_names())
        if irq is not None and not isinstance(irq, IrqLine):
            irq = IrqLine(irq)
        owned: list[GuestMemory] = []
        mac = self._macs.take(opts.mac)
        try:
            guest = self._own_memory(memory, owned) or self._memory
            if guest is None:
                raise ValueError("a NIC needs guest memory: device_add(..., memory=) or Net(memory=)")
            name = name or self._auto_name(model)
            nic = nic_room(model).realize(self, name, opts, guest, irq or IrqLine(), model=model, mac=mac)
        except BaseException:
            self._macs.release(mac)
            for region in owned:
                region.close()
            raise
        device = _Device(name, nic, list(nic.clients), mac, owned)
        for client, peer in zip(device.clients, peers, strict=False):
            client.pair(peer)
        self._devices[name] = device
        self._clients.extend(device.clients)
        return nic

    def _delete_device(self, device: _Device) -> None:
        del self._devices[device.name]
        for client in device.clients:
            self._clients.remove(client)
        for slot in [slot for slot in self._slots if slot.nic is device.nic]:
            self._free_slot(slot)
        self._macs.release(device.mac)
        device.nic.close()
        for ghost in device.ghosts:
            ghost.close()
        for memory in device.owned:
            memory.close()

    @staticmethod
    def _own_memory(memory: Memory, owned: list[GuestMemory]) -> GuestMemory | None:
        if memory is None or isinstance(memory, GuestMemory):
            return memory
        owned.append(GuestMemory(memory))
        return owned[-1]

    # ------------------------------------------------------------------------------------------------------ -nic and -net

    def nic_add(self, spec: str = "", /) -> NicSlot | None:
        """-nic: a backend and a slot of the NIC table plugged into it (M8); "none": nothing. nic_init() makes the NIC."""
        with self._adding():
            pairs = parse_pairs(spec, "type")
            name = self._pairs_id(pairs, "nic")
            kind = last(pairs, "type") or "user"
            if kind == "none":
                return None
            row = backend(kind, netdev=True)
            mac_text, model = last(pairs, "mac"), last(pairs, "model")
            if len(self._slots) >= MAX_NICS:
                raise OptionError("no more on-board/default NIC slots available", f"there are {MAX_NICS}; more NICs come with device_add()")
            mac = parse_mac(mac_text) if mac_text is not None else None
            if mac is not None and mac[0] & 1:
                raise OptionError("NIC cannot have multicast MAC address", "the second hex digit must be even")
            if model is not None:
                model = nic_model(model, "Unsupported NIC model: {}")
            given = name
            name = name or self._unnamed_id()
            rest = [(key, value) for key, value in pairs if key not in ("type", "mac", "model")]
            self._open(row, kind, name, _read(row, Form.OPTS, rest))
            return self._take_slot(given, model, mac, name)

    def net_add(self, spec: str, /) -> NicSlot | None:
        """-net: a backend on a port of hub 0, or "nic": a slot of the NIC table (M6); "none": nothing."""
        with self._adding():
            pairs = parse_pairs(spec, "type")
            name = self._pairs_id(pairs, "net")
            kind = last(pairs, "type")
            if kind is None:
                raise OptionError("Parameter 'type' is missing", f"one of {', '.join(k for k, r in NET_CLIENT_INIT.items() if r.legacy)}")
            rest = [(key, value) for key, value in pairs if key != "type"]
            if kind == "none":
                if rest:
                    raise OptionError(f"Invalid parameter '{rest[0][0]}'", "none takes no options")
                return None
            row = backend(kind, netdev=False)
            slots = len(self._slots)
            entry = self._open(row, kind, name or self._unnamed_id(), _read(row, Form.OPTS, rest), legacy=True)
            if kind == "nic":
                del self._netdevs[entry.name]
                return self._slots[slots]
            if len(entry.clients) > 1:
                self._delete_netdev(entry)
                raise OptionError(f"Multiqueue {kind} cannot be used with hubs", "use netdev_add()")
            self._legacy_port().pair(entry.clients[0])
            return None

    def nic_init(self, slot: NicSlot, *, model: str = "e1000", memory: Memory = None, irq: Irq = None) -> Nic:
        """Make the NIC that -nic or -net nic asked for; `model` is the VMM's default. Other arguments as in device_add()."""
        with self._adding():
            if slot.nic is not None:
                raise ValueError("this slot's NIC was made already")
            if slot not in self._slots:
                raise ValueError("this slot was given back when its NIC was deleted")
            name = nic_model(slot.model or model, "Unsupported NIC model: {}")
            opts = nic_room(name).Options(mac=slot.mac, netdev=slot.netdev)
            slot.nic = self._realize(name, None, opts, name, memory, irq)
            return slot.nic

    @property
    def nic_table(self) -> tuple[NicSlot, ...]:
        """The NICs that -nic and -net nic asked for (M5)."""
        return tuple(self._slots)

    def reserve_nic(
        self,
        name: str,
        model: str | None,
        mac: bytes | None,
        netdev: str | None,
        *,
        addr: str | None = None,
        vectors: int | None = None,
    ) -> NicSlot:
        """For -net nic. OptionError when the table is full, or the model is unknown."""
        if len(self._slots) >= MAX_NICS:
            raise OptionError("too many NICs", f"there are {MAX_NICS} slots; more NICs come with device_add()")
        if model is not None:
            model = nic_model(model, "Unsupported NIC model: {}")
        slot = self._take_slot(name if is_id(name) else None, model, mac, netdev or self._legacy_port().name)
        slot.addr, slot.vectors = addr, vectors
        return slot

    def _take_slot(self, name: str | None, model: str | None, mac: bytes | None, netdev: str) -> NicSlot:
        slot = NicSlot(name, model, self._macs.take(mac), netdev)
        self._slots.append(slot)
        return slot

    def _free_slot(self, slot: NicSlot) -> None:
        self._slots.remove(slot)
        self._macs.release(slot.mac)

    # --------------------------------------------------------------------------------------------------------------- hubs

    def hub_port(self, hub_id: int, name: str) -> HubPort:
        """A new port (H1); for backends/hubport.py, users add it with netdev_add("hubport,...")."""
        hub = next((hub for hub in self._hubs if hub.hub_id == hub_id), None)
        if hub is None:
            hub = Hub(self.loop, hub_id)
            self._hubs.insert(0, hub)
        port = HubPort(self.loop, hub, name)
        self._hub_ports[hub_id] = self._hub_ports.get(hub_id, 0) + 1
        return port

    def _legacy_port(self) -> HubPort:
        n = self._hub_ports.get(0, 0)
        while self._named(f"hub0port{n}"):
            n += 1
        port = self.hub_port(0, f"hub0port{n}")
        self._clients.append(port)
        return port

    @property
    def hubs(self) -> dict[int, list[HubPort]]:
        """The ports of each hub, the newest hub and the newest port first."""
        with self._lock:
            return {hub.hub_id: hub.ports for hub in self._hubs}

    def free_netdev(self, name: str) -> NetClient:
        """The client of a netdev that nothing is plugged into; for backends/hubport.py."""
        found = [client for client in self._clients if client.name == name and not client.is_nic]
        if not found:
            raise OptionError(f"netdev '{name}' not found", f"netdev_add() it first; {self._free_names()}")
        if found[0].peer is not None:
            raise OptionError(f"netdev '{name}' is in use", self._free_names())
        return found[0]

    # ------------------------------------------------------------------------------------------------------------ filters

    def object_add(self, spec: Spec = None, /, **options: Any) -> NetFilter:
        """-object: put a filter into a netdev's chain (F1 to F3) and return it; its `on` is the property status."""
        with self._adding():
            form, values = split(spec, options, "qom-type")
            kind, name = take(values, "qom-type", latest=True), take(values, "id")
            if form is Form.OPTS and name is not None:
                check_id(name)
                self._check_filter_free(name, f"Duplicate ID '{name}' for object")
            if kind is None:
                raise OptionError("Parameter 'qom-type' is missing", "the kind of filter, such as filter-dump")
            room = filter_room(kind)
            if name is None:
                raise OptionError("Parameter 'id' is missing", "id= names the filter")
            opts: FilterOptions = read_options(room.Options, form, values)
            check_id(name)
            self._check_filter_free(name, f"attempt to add duplicate property '{name}' to object (type 'container')")
            clients = [client for client in self._clients if client.name == opts.netdev and not client.is_nic]
            if not clients:
                raise OptionError("Parameter 'netdev' expects a network backend id", f"there is no netdev '{opts.netdev}'")
            if len(clients) > 1:
                raise OptionError("multiqueue is not supported", f"netdev '{opts.netdev}' has {len(clients)} queues")
            client = clients[0]
            before = self._place(client, opts)
            f = room.open(self, name, opts, client)
            f.insert(opts.queue, before.filter if before is not None else None)
            if opts.status == "off":
                f.on = False
            entry = _Filter(name, kind, opts, f, client)
            self._filters.insert(self._filters.index(before) if before is not None else len(self._filters), entry)
            return entry.filter

    def _check_filter_free(self, name: str, text: str) -> None:
        if any(entry.name == name for entry in self._filters):
            raise DuplicateId(text, "the id is taken")

    def _place(self, client: NetClient, opts: FilterOptions) -> _Filter | None:
        """The filter in whose front a new one goes; None: it goes to the tail."""
        chain = [entry for entry in self._filters if entry.client is client]
        if opts.position == "tail":
            return None
        if opts.position == "head":
            return chain[0] if chain else None
        name = opts.position.removeprefix("id=")
        other = next((entry for entry in self._filters if entry.name == name), None)
        if other is None:
            raise OptionError(f"filter '{name}' not found")
        if other.client is not client:
            raise OptionError(f"filter '{name}' belongs to a different netdev")
        at = chain.index(other) + (opts.insert == "behind")
        return chain[at] if at < len(chain) else None

    def object_del(self, name: str) -> None:
        """Take a filter out."""
        with self._lock:
            for entry in self._filters:
                if entry.name == name:
                    self._delete_filter(entry)
                    return
            raise OptionError(f"object '{name}' not found")

    def _delete_filter(self, entry: _Filter) -> None:
        self._filters.remove(entry)
        entry.filter.remove()
        entry.filter.close()

    # ------------------------------------------------------------------------------------------------------- what there is

    @property
    def clients(self) -> tuple[NetClient, ...]:
        """All clients, in order of creation."""
        with self._lock:
            return tuple(self._clients)

    @overload
    def client(self, name: str, /) -> NetClient: ...
    @overload
    def client(self, name: Literal["py"], /, **options: Any) -> "PyPort": ...

    def client(self, name: str, /, **options: Any) -> NetClient:
        """The first client of this name, in order of creation (S1).

        client("py", on_frames=callable): with options, netdev_add() of that kind, called kind.0, kind.1 ... unless id= says otherwise.
        """
        if options:
            with self._lock:
                if "id" not in options:
                    n = next(n for n in itertools.count() if not self._named(f"{name}.{n}"))
                    options = {"id": f"{name}.{n}", **options}
                return self.netdev_add(name, **options)
        with self._lock:
            found = self._named(name)
            if not found:
                raise DeviceNotFound(name, self._names_hint())
            return found[0]

    def set_link(self, name: str, up: bool) -> None:
        """Set the link of every client of this name; a NIC behind a netdev loses or gets its link too (S55)."""
        with self._lock:
            found = self._named(name)
            if not found:
                raise DeviceNotFound(name, self._names_hint())
            for client in found:
                client.set_link(up)

    def stats(self) -> list[dict[str, Any]]:
        """For each client, and what stands in for a deleted one: name, type, index (its queue), peer (a name or None), and
        NetClient.stats()."""
        with self._lock:
            index = self._index()
            return [
                {
                    "name": client.name,
                    "type": info.client_type(client),
                    "index": index[client],
                    "peer": client.peer.name if client.peer is not None else None,
                    **client.stats(),
                }
                for client in index
            ]

    def info_network(self) -> str:
        """QEMU's `info network` (M12)."""
        with self._lock:
            return info.network_text(
                self._hubs, self._clients, self._index(), lambda client: [f.line() for f in self._filters if f.client is client]
            )

    def check_clients(self) -> list[str]:
        """What is not connected, in QEMU's words (M11). Each is logged as a warning too."""
        with self._lock:
            unmade = [(slot.name, slot.model) for slot in self._slots if slot.nic is None]
            hosts = [kind for kind, row in NET_CLIENT_INIT.items() if row.host]
            found = info.warnings(self._hubs, self._clients, hosts, unmade)
        for line in found:
            log.warning("%s", line)
        return found

    def query_rx_filter(self, name: str | None = None) -> list[dict[str, Any]]:
        """QMP's query-rx-filter (M13): one entry for each NIC, or for the NIC `name`."""
        with self._lock:
            out = []
            for device in self._devices.values():
                if name is None or device.name == name:
                    found = device.nic.rx_filter()
                    if found is not None:
                        out.append({"name": device.name} | found)
                    elif name is not None:
                        raise OptionError(f"net client({name}) doesn't support rx-filter querying")
            if name is not None and not out:
                if self._named(name):
                    raise OptionError(f"net client({name}) isn't a NIC")
                raise OptionError(f"invalid net client name: {name}", self._names_hint())
            return out

    def announce_self(
        self,
        *,
        initial: int = 50,
        max: int = 550,
        rounds: int = 5,
        step: int = 100,
        interfaces: Sequence[str] | None = None,
        id: str = "",
    ) -> None:
        """Tell the switches where the NICs are (A1 to A4): `rounds` times, the first now, the second after `initial` ms, then each
        `step` ms later than the one before, at most `max`. interfaces: names of NICs, None: all. id: names the timer; a call with
        the same id replaces it, and rounds=0 ends it."""
        with self._adding():
            names = tuple(interfaces) if interfaces is not None else None
            self._announcer.start(id, Parameters(initial, max, rounds, step, names))

    def _announce_round(self, parameters: Parameters) -> None:
        for device in self._devices.values():
            if parameters.interfaces is None or device.name in parameters.interfaces:
                announce(device.clients[0], device.nic.mac)
                device.nic.announce()

    # -------------------------------------------------------------------------------------------------------------- events

    def on_event(self, callback: EventCallback) -> None:
        """Call callback(name, data) at each event, with QMP's names and data: docs/stream.md has those there are. It is called
        without locks, on the thread on which the event happened, one event at a time and in order."""
        with self._lock:
            self._events.add(callback)

    def off_event(self, callback: EventCallback) -> None:
        """Do not call it any more. Idempotent."""
        with self._lock:
            self._events.remove(callback)

    @property
    def lock(self) -> AbstractContextManager[None]:
        """The control plane's lock, for callables of backends; users need it to see several things at one moment."""
        return self._lock

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """An event of a backend. With the lock held; listeners are called once it is free."""
        self._events.put(name, data)

    # ------------------------------------------------------------------------------------------------------------- running

    @property
    def clock(self) -> VirtualClock | None:
        """The virtual clock, or None: the host's monotonic one."""
        return self.loop.clock

    def now(self) -> int:
        """Nanoseconds of the network's clock."""
        return self.loop.now()

    def start(self) -> None:
        """Run in an own thread until stop()."""
        self.loop.start()

    def stop(self) -> None:
        """End the thread of start(); what is queued stays."""
        self.loop.stop()

    def fileno(self) -> int:
        """Readable when pump() has something to do: for select, asyncio and other loops."""
        return self.loop.fileno()

    def pump(self) -> int:
        """Handle what is ready, without waiting; how much that was."""
        return self.loop.pump()

    def run_until(self, t: int) -> None:
        """With a virtual clock: let time go on to `t` ns, each timer at its own time."""
        self.loop.run_until(t)

    @property
    def running(self) -> bool:
        """False between pause() and resume()."""
        return self.loop.running

    def pause(self) -> None:
        """The VM stops: what can be delivered is, the rest of the queues is dropped, and no client receives (S17, S37)."""
        with self._lock:
            for client in self._clients:
                client.flush()
            self.loop.running = False
            for client in self._clients:
                client.purge()

    def resume(self) -> None:
        """The VM runs again: clients receive, and what was sent meanwhile moves (S37)."""
        with self._lock:
            self.loop.running = True
            for client in self._clients:
                client.flush()

    def close(self) -> None:
        """Delete everything (S58), stop, and release the file descriptors. Idempotent."""
        self.loop.stop()                    # without the lock: the thread may wait for it in a callable of ours
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._announcer.close()
            while self._clients:
                self._delete_head(self._clients[0])
            self._hubs.clear()
            self._slots.clear()
            self.loop.close()
            for memory in self._owned:
                memory.close()

    def _delete_head(self, client: NetClient) -> None:
        for device in self._devices.values():
            if client in device.clients:
                return self._delete_device(device)
        for entry in self._netdevs.values():
            if client in entry.clients:
                return self._delete_netdev(entry)
        return self._delete_client(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Net {len(self._clients)} clients{', closed' if self._closed else ''}>"

    # --------------------------------------------------------------------------------------------------------------- names

    @contextmanager
    def _adding(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ValueError("the network is closed")
            yield

    def _named(self, name: str) -> list[NetClient]:
        return [client for client in self._clients if client.name == name]

    def _check_free(self, name: str, text: str) -> None:
        if name in self._netdevs or any(client.name == name and not client.is_nic for client in self._clients):
            raise DuplicateId(text, "netdev_del() it first, or use another id")

    def _pairs_id(self, pairs: Pairs, group: str) -> str | None:
        name = take(pairs, "id")
        if name is not None:
            check_id(name)
            self._check_free(name, f"Duplicate ID '{name}' for {group}")
        return name

    def _unnamed_id(self) -> str:
        name = f"#net{self._unnamed:03}"    # '#' cannot begin an id, so nobody can have taken it (M8)
        self._unnamed += 1
        return name

    def _auto_name(self, model: str) -> str:
        """model.n, n the number of clients of the model (S2), or the next that is free."""
        n = sum(client.model == model for client in self._clients)
        while f"{model}.{n}" in self._devices:
            n += 1
        return f"{model}.{n}"

    def _index(self) -> dict[NetClient, int]:
        """Each client's place among its owner's; those that stand in for deleted ones come last."""
        groups: list[list[NetClient]] = [entry.clients for entry in self._netdevs.values()]
        groups += [device.clients for device in self._devices.values()]
        groups += [device.ghosts for device in self._devices.values()]
        out = dict.fromkeys(self._clients, 0)
        for group in groups:
            out.update((client, i) for i, client in enumerate(group))
        return out

    def _free_names(self) -> str:
        free = [name for name, entry in self._netdevs.items() if entry.clients and entry.clients[0].peer is None]
        return f"free netdevs: {', '.join(free)}" if free else "no netdev is free"

    def _names_hint(self) -> str:
        return f"there are: {', '.join(dict.fromkeys(client.name for client in self._clients))}" if self._clients else ""


def _read(row: Backend, form: Form, values: Values) -> Any:
    """The options of a backend. Pairs that -nic cut out of a text may be dotted keys."""
    if isinstance(values, list):
        if row.keyval:
            form, values = Form.KEYVAL, parse_keyval(format_pairs(values))
        else:
            values = ipv6_net(values)
    return read_options(row.room.Options, form, values)
