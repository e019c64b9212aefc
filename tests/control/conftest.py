"""A network to add things to, and three kinds made for tests: a backend and a NIC of Ports, and a filter."""

import dataclasses
import sys
import types

import pytest

from qnet import kinds
from qnet.errors import Error
from qnet.net import Net
from qnet.options import BOOL, STR, UINT32, FilterOptions, NicOptions, opt
from qnet.testing._port import Port
from qnet.testing._probes import Gate

MEMORY = bytearray(4096)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendOptions:
    queues: int = opt(UINT32, default=1, help="number of clients")
    fail: bool = opt(BOOL, default=False, help="refuse to open")
    ipv6_prefix: str | None = opt(STR)
    ipv6_prefixlen: int | None = opt(UINT32)


def open_backend(net, name, options):
    if options.fail:
        raise Error("the probe refuses")
    clients = [Port(net.loop, name, "probe") for _ in range(options.queues)]
    for i, client in enumerate(clients):
        client.info_str = f"queue={i}"
    return clients


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardOptions(NicOptions):
    queues: int = opt(UINT32, default=1, help="number of clients")
    fail: bool = opt(BOOL, default=False, help="refuse to open")


class Card:
    def __init__(self, net, name, options, memory, irq, model, mac):
        self.name, self.model, self.mac, self.memory, self.irq = name, model, mac, memory, irq
        self.clients = [Port(net.loop, name, model, is_nic=True) for _ in range(options.queues)]
        for client in self.clients:
            client.info_str = f"model={model},macaddr={mac.hex(':')}"
        self.filter = {"promiscuous": False}
        self.announced = 0
        self.closed = False

    def reset(self):
        pass

    def rx_filter(self):
        return self.filter

    def announce(self):
        self.announced += 1

    def close(self):
        self.closed = True
        for client in reversed(self.clients):
            client.close()


def realize(net, name, options, memory, irq, *, model, mac):
    if options.fail:
        raise Error("the card refuses")
    return Card(net, name, options, memory, irq, model, mac)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateOptions(FilterOptions):
    label: str = opt(STR, required=True, help="anything")
    note: str | None = opt(STR, extra=True)
    fail: bool = opt(BOOL, default=False, extra=True)


class ClosingGate(Gate):
    closed = False

    def close(self):
        ClosingGate.closed = True


def open_filter(net, name, options, client):
    if options.fail:
        raise Error("the gate refuses")
    return ClosingGate(client)


@pytest.fixture
def probes(monkeypatch):
    rooms = {
        "probe_backend": {"Options": BackendOptions, "open": open_backend},
        "probe_card": {"Options": CardOptions, "realize": realize},
        "probe_filter": {"Options": GateOptions, "open": open_filter},
    }
    for name, content in rooms.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(kinds.NET_CLIENT_INIT, "probe", kinds.Backend("probe_backend", "Ports", host=True))
    monkeypatch.setitem(kinds.NET_CLIENT_INIT, "dotted", kinds.Backend("probe_backend", "Ports", legacy=False, keyval=True))
    monkeypatch.setitem(kinds.NIC_MODELS, "card", kinds.Entry("probe_card", "Ports"))
    monkeypatch.setitem(kinds.FILTERS, "filter-gate", kinds.Entry("probe_filter", "a Gate"))


@pytest.fixture
def net(probes):
    with Net(memory=MEMORY) as net:
        yield net


@pytest.fixture
def refused(net):
    """Call a method that must raise; the text of its error, once it is seen that nothing changed."""

    def look():
        return net.info_network(), net.stats(), net.nic_table, {k: [p.name for p in v] for k, v in net.hubs.items()}

    def call(method, *args, **kwargs):
        before = look()
        with pytest.raises(Error) as caught:
            method(*args, **kwargs)
        assert look() == before
        return caught.value.text

    return call
