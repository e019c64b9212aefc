"""Self-announcement (A1 to A4), on a virtual clock, and its frame."""

import pytest
from scapy.layers.l2 import ARP, Ether

from qnet._loop import VirtualClock
from qnet.announce import Parameters
from qnet.net import Net

from .conftest import MEMORY

MS = 1_000_000


@pytest.fixture
def net(probes):
    with Net(clock=VirtualClock(), memory=MEMORY) as net:
        yield net


def pair(net, name, **options):
    backend = net.netdev_add("probe", id=name)
    return backend, net.device_add("card", id=f"nic-{name}", netdev=name, **options)


def times(net, backend, until):
    """Milliseconds at which an announcement arrived."""
    out = []
    for ms in range(net.now() // MS, until + 1):
        net.run_until(max(net.now(), ms * MS))
        out += [ms] * len(backend.recv())
    return out


def test_a3_the_frame(net):
    backend, nic = pair(net, "u", mac="52:54:00:aa:bb:cc")
    net.announce_self(rounds=1)
    (frame,) = backend.recv()
    packet = Ether(frame)
    assert (len(frame), packet.dst, packet.src, packet.type) == (60, "ff:ff:ff:ff:ff:ff", "52:54:00:aa:bb:cc", 0x8035)
    rarp = ARP(bytes(packet.payload))
    assert (rarp.hwtype, rarp.ptype, rarp.hwlen, rarp.plen, rarp.op) == (1, 0x0800, 6, 4, 3)
    assert rarp.hwsrc == rarp.hwdst == "52:54:00:aa:bb:cc"
    assert (rarp.psrc, rarp.pdst) == ("0.0.0.0", "0.0.0.0")
    assert frame[42:] == bytes(18)
    assert nic.announced == 1


def test_a2_a4_defaults_are_those_of_a_migration(net):
    backend, _ = pair(net, "u")
    net.announce_self()
    assert times(net, backend, 2000) == [0, 50, 200, 450, 800]


@pytest.mark.parametrize(
    ("parameters", "delays"),
    [
        (Parameters(50, 550, 5, 100), [50, 150, 250, 350]),
        (Parameters(50, 200, 5, 100), [50, 150, 200, 200]),
        (Parameters(50, 550, 4, -40), [50, 10, 550]),
        (Parameters(900, 550, 3, 0), [550, 550]),
        (Parameters(0, 550, 3, 0), [0, 0]),
    ],
)
def test_a2_delays(parameters, delays):
    assert [parameters.delay(left) for left in range(parameters.rounds - 1, 0, -1)] == delays


def test_a1_interfaces(net):
    a, _ = pair(net, "a")
    b, _ = pair(net, "b")
    net.announce_self(rounds=1, interfaces=["nic-b", "unknown"])
    assert (len(a.recv()), len(b.recv())) == (0, 1)
    net.announce_self(rounds=1, interfaces=[])
    assert (len(a.recv()), len(b.recv())) == (0, 0)


def test_a3_only_queue_0(net):
    net.netdev_add("probe", id="u", queues=2)
    nic = net.device_add("card", netdev="u", queues=2)
    net.announce_self(rounds=1)
    assert [len(client.peer.recv()) for client in nic.clients] == [1, 0]


def test_a4_named_timers(net):
    backend, _ = pair(net, "u")
    net.announce_self(id="a", initial=10, rounds=3, step=0)
    net.announce_self(id="b", initial=25, rounds=2, step=0)
    assert times(net, backend, 15) == [0, 0, 10]
    net.announce_self(id="a", initial=100, rounds=2)
    assert times(net, backend, 300) == [15, 25, 115]


def test_a4_no_rounds_ends_it(net):
    backend, _ = pair(net, "u")
    net.announce_self(id="a")
    net.announce_self(id="b", rounds=2)
    backend.recv()
    net.announce_self(id="a", rounds=0)
    assert times(net, backend, 1000) == [50]
    net.announce_self(rounds=0)
    assert times(net, backend, 2000) == []


def test_nics_may_come_and_go_between_rounds(net):
    pair(net, "u")
    net.announce_self()
    net.device_del("nic-u")
    other, _ = pair(net, "v")
    assert times(net, other, 2000) == [50, 200, 450, 800]


def test_close_ends_the_timers(net):
    pair(net, "u")
    net.announce_self(rounds=1000)
    net.close()
