"""scapy's own functions on QnetSocket: sniff, sr, AnsweringMachine, sendp; only what matches reaches it."""

import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.ansmachine import AnsweringMachine
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.sendrecv import AsyncSniffer, bridge_and_sniff, sendp, sniff

from qnet import HostError, Net, OptionError
from qnet.scapy import QnetSocket
from qnet.testing import Port

conf.verb = 0
PATIENCE = 30
MAC = "52:54:00:00:00:01"


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        yield net


@pytest.fixture(params=["moved by scapy", "started"])
def running(request: pytest.FixtureRequest, net: Net) -> Net:
    if request.param == "started":
        net.start()
    return net


class Pong(AnsweringMachine[Packet]):
    """Answers ICMP echo requests."""

    function_name = "pong"
    filter = "icmp"
    send_function = staticmethod(sendp)

    def is_request(self, req: Packet) -> bool:
        return ICMP in req and req[ICMP].type == 8

    def make_reply(self, req: Packet) -> Packet:
        return (Ether(dst=req.src, src=req.dst) / IP(src=req[IP].dst, dst=req[IP].src)
                / ICMP(type=0, id=req[ICMP].id, seq=req[ICMP].seq) / req[ICMP].payload)  # fmt: skip


def ping(seq: int) -> Packet:
    return Ether(src=MAC, dst="52:54:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(id=7, seq=seq) / b"payload"


def test_asking_the_user_network(running: Net) -> None:
    """ARP and ping answered by libslirp, over a hub."""
    running.netdev_add("user,id=u0")
    running.netdev_add("hubport,id=u0.port,hubid=0,netdev=u0")
    with QnetSocket(running, hubid=0) as s:
        answer = s.sr1(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc="10.0.2.15", pdst="10.0.2.2"), timeout=PATIENCE)
        assert answer is not None
        gateway = answer[ARP].hwsrc
        requests = [Ether(src=MAC, dst=gateway) / IP(src="10.0.2.15", dst="10.0.2.2") / ICMP(id=9, seq=i) / b"x" for i in range(5)]
        answered, unanswered = s.sr(requests, timeout=PATIENCE)
        assert [a[ICMP].seq for _, a in answered] == [0, 1, 2, 3, 4]
        assert len(unanswered) == 0


def test_sniff_sees_only_what_matches(running: Net) -> None:
    source = running.client("py", id="source")
    running.netdev_add("hubport,id=source.port,hubid=0,netdev=source")
    with QnetSocket(running, hubid=0, filter="udp port 53") as s:
        frames = [Ether(src=MAC, dst=MAC) / IP(dst="10.0.0.9") / (UDP(dport=53) if i % 10 == 0 else TCP(dport=80)) / Raw(bytes([i]))
                  for i in range(100)]  # fmt: skip
        source.send_many(map(bytes, frames))
        seen = s.sniff(count=10, timeout=PATIENCE)
        assert [bytes(p) for p in seen] == [bytes(f) for f in frames[::10]]
        assert all(UDP in p for p in seen)
        stats = s.port.stats()
        assert stats["drops"] == {"address": 90}
        assert len(s.sniff(timeout=0)) == 0


def test_an_answering_machine(running: Net) -> None:
    with QnetSocket(running, hubid=0, filter="icmp") as there, QnetSocket(running, hubid=0) as here:
        machine = there.am(Pong, verbose=0)
        sniffer = machine.bg()
        answered, unanswered = here.sr([ping(i) for i in range(3)], timeout=PATIENCE)
        sniffer.stop()
        assert [bytes(a[ICMP].payload) for _, a in answered] == [b"payload"] * 3
        assert len(unanswered) == 0


def test_sniffing_in_the_background(net: Net) -> None:
    net.start()
    source = net.client("py", id="source")
    net.netdev_add("hubport,id=source.port,hubid=0,netdev=source")
    with QnetSocket(net, hubid=0) as s:
        got: list[int] = []
        there = threading.Event()

        def prn(p: Packet) -> None:
            got.append(p[ICMP].seq)
            if len(got) == 100:
                there.set()

        sniffer = AsyncSniffer(opened_socket=s, prn=prn, store=False)
        sniffer.start()
        for i in range(100):
            source.send(bytes(ping(i)))
        assert there.wait(PATIENCE)
        sniffer.stop()
        assert got == list(range(100))


def test_several_sockets_in_one_sniff(net: Net) -> None:
    """One select over two networks and a plain socket of scapy's."""
    with Net() as other, QnetSocket(net, hubid=0) as a, QnetSocket(other, hubid=0) as b:
        for n, network in enumerate((net, other)):
            pair: Any = network.netdev_add("socketpair,id=s")
            network.netdev_add("hubport,id=s.port,hubid=0,netdev=s")
            pair.socket.send(bytes(ping(n)))
        seen = sniff(opened_socket={a: "a", b: "b"}, count=2, timeout=PATIENCE)
        assert sorted((p.sniffed_on, p[ICMP].seq) for p in seen) == [("a", 0), ("b", 1)]


def test_sendp_and_bytes(net: Net) -> None:
    with QnetSocket(net) as s:
        nic = Port(net.loop, "nic0")
        nic.pair(s.port)
        sendp([ping(i) for i in range(3)], socket=s, verbose=0)
        assert nic.recv() == [bytes(ping(i)) for i in range(3)]
        assert s.send(b"\x01" * 60) == 60
        assert nic.recv() == [b"\x01" * 60]
        nic.close()


@pytest.mark.parametrize("started", [False, True])
def test_sending_waits_for_room(net: Net, monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
    if started:
        net.start()
    with QnetSocket(net) as s:
        nic = Port(net.loop, "nic0", capacity=1)
        nic.pair(s.port)
        s.send(ping(0))
        net.loop.call_later(50_000_000, lambda: nic.room(None))
        s.send(ping(1))
        assert len(nic.recv()) == 2
        nic.room(0)
        monkeypatch.setattr("qnet.scapy.SEND_PATIENCE", 0.2)
        with pytest.raises(HostError, match=r"cannot send to py\.0: No buffer space available"):
            while True:
                s.send(ping(2))
        nic.close()


def test_its_descriptor_says_whether_there_is_something(net: Net) -> None:
    with QnetSocket(net) as s:
        nic = Port(net.loop, "nic0")
        nic.pair(s.port)

        def readable() -> bool:
            return select.select([s], [], [], 0)[0] == [s]

        assert not readable()
        nic.send([bytes(ping(i)) for i in range(70)])
        for i in range(70):
            assert readable()
            assert s.recv()[ICMP].seq == i
        assert not readable()
        nic.close()


def test_frames_that_scapy_cannot_read_are_frames(net: Net) -> None:
    with QnetSocket(net) as s:
        nic = Port(net.loop, "nic0")
        nic.pair(s.port)
        odd = [b"\x00", b"\xff" * 13, bytes(14), MAC.encode() * 100, bytes(ping(0))[:30]]
        nic.send(odd)
        assert [bytes(p) for p in s.sniff(count=len(odd), timeout=PATIENCE)] == odd
        nic.close()


def test_bridging_two_networks(net: Net) -> None:
    """scapy's bridge_and_sniff between two sockets."""
    with Net() as other, QnetSocket(net) as a, QnetSocket(other) as b:
        left, right = Port(net.loop, "left"), Port(other.loop, "right")
        left.pair(a.port)
        right.pair(b.port)
        left.send([bytes(ping(1))])
        right.send([bytes(ping(2))])
        bridge_and_sniff(a, b, count=2, timeout=PATIENCE, store=False)
        assert (left.recv(), right.recv()) == ([bytes(ping(2))], [bytes(ping(1))])
        left.close()
        right.close()


# ----------------------------------------------------------------------------------------------------------------------- life


def test_a_socket_takes_its_netdevs_with_it(net: Net) -> None:
    s = QnetSocket(net, hubid=3, id="sniffer", filter="arp")
    assert [client.name for client in net.clients] == ["sniffer", "sniffer.port"]
    s.close()
    s.close()
    assert net.clients == ()
    assert s.fileno() == -1


def test_a_client_that_exists_stays(net: Net) -> None:
    port = net.client("py", id="p0")
    with QnetSocket(port, filter="arp") as s:
        assert (s.port, port.filter) == (port, "arp")
    assert net.client("p0") is port
    assert port.on_readable is port.on_writable is None


def test_a_network_that_closes_ends_a_sniff(net: Net) -> None:
    s = QnetSocket(net, hubid=0)
    net.start()
    closer = threading.Timer(0.05, net.close)
    closer.start()
    assert len(s.sniff()) == 0
    assert s.port.closed
    assert s.closed                         # scapy closes a socket at its end
    closer.join()


def test_what_is_wrong_leaves_nothing(net: Net) -> None:
    net.netdev_add("null,id=py.0.port")
    with pytest.raises(OptionError, match="Duplicate ID"):
        QnetSocket(net, hubid=0)
    with pytest.raises(OptionError, match="expects a filter expression"):
        QnetSocket(net, filter="no such thing")
    with pytest.raises(TypeError, match="a Net or a client"):
        QnetSocket("n0")  # type: ignore[arg-type]
    port = net.client("py", id="p0")
    with pytest.raises(TypeError, match="no other options"):
        QnetSocket(port, hubid=0)
    assert [client.name for client in net.clients] == ["py.0.port", "p0"]


def test_the_package_does_not_import_scapy() -> None:
    code = """
import sys, qnet
with qnet.Net() as net:
    net.client("py", on_frames=print, filter="ip")
assert not [m for m in sys.modules if m.split(".")[0] == "scapy"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
