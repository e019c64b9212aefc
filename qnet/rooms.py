"""What the rooms of floor 4 are given by the network and give to it: one module a kind, each with `Options` and one function.

backends/KIND.py    open(net, name, options) -> list of clients, one for each queue
filters/KIND.py     open(net, name, options, client) -> the filter, ready to be inserted
models/FAMILY.py    realize(net, name, options, memory, irq, *, model, mac) -> the NIC; MODELS names its models

When one of them raises, it has undone what it did.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from qnet._client import NetClient
from qnet._host import GuestMemory, IrqLine
from qnet._loop import Loop

__all__ = ["BackendRoom", "FilterRoom", "ModelRoom", "NetFilter", "Network", "Nic"]


class Network(Protocol):
    """The network as its rooms see it. Called with the control plane's lock held."""

    @property
    def loop(self) -> Loop:
        """fds, timers and clock; the context of every client."""

    @property
    def lock(self) -> AbstractContextManager[None]:
        """The control plane's lock. Timers and watches run without it: a callable of theirs takes it first."""

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Tell the network's users, as QMP tells its clients. With the lock held; they hear of it once it is free."""

    def hub_port(self, hub_id: int, name: str) -> NetClient:
        """A new port of the hub, which is made on first use (H1)."""

    def free_netdev(self, name: str) -> NetClient:
        """The netdev of this id, if nothing is plugged into it; else OptionError (H5)."""

    def reserve_nic(
        self, name: str, model: str | None, mac: bytes | None, netdev: str | None, *, addr: str | None, vectors: int | None
    ) -> object:
        """Take a slot of the NIC table (M5); without a netdev the NIC will be on hub 0 (M6)."""


class Nic(Protocol):
    """A network card: N clients (S6), a name, and what a VMM does with it."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def mac(self) -> bytes:
        """The configured address."""

    @property
    def clients(self) -> Sequence[NetClient]: ...
    def reset(self) -> None: ...
    def rx_filter(self) -> dict[str, Any] | None:
        """The fields of QMP's query-rx-filter but the name (M13); None: the model cannot tell."""

    def announce(self) -> None:
        """What the device itself does at each round of a self-announcement, such as asking its driver (A3)."""

    def close(self) -> None:
        """Close the clients, from the highest queue to the lowest, and let go of memory and interrupt line."""


class NetFilter(Protocol):
    """A filter (F1 to F6), as made by qnet._client.Filter and its leaves."""

    on: bool

    def remove(self) -> None: ...
    def close(self) -> None: ...


class BackendRoom(Protocol):
    Options: type

    def open(self, net: Network, name: str, options: Any) -> Sequence[NetClient]: ...


class FilterRoom(Protocol):
    Options: type

    def open(self, net: Network, name: str, options: Any, client: NetClient) -> Any: ...


class ModelRoom(Protocol):
    Options: type

    def realize(
        self, net: Network, name: str, options: Any, memory: GuestMemory, irq: IrqLine, *, model: str, mac: bytes
    ) -> Nic: ...
