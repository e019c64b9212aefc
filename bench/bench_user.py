"""The user netdev: frames through libslirp, whose own work and system calls are most of it."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from qnet._client import NetClient, NullClient
from qnet.net import Net
from qnet.testing import Port

BURST = 64
FRAMES = 640
GUEST, GATEWAY = "10.0.2.15", "10.0.2.2"


def rx_packets(client: NetClient) -> int:
    count: Any = client.stats()["rx_packets"]
    return int(count)


class Guest:
    """A port behind a user netdev, and one before a sink for what the same bursts cost without libslirp."""

    def __init__(self) -> None:
        self.net = Net()
        self.client: NetClient = self.net.netdev_add("user,id=n0")
        self.port, self.idle_port, self.null = (Port(self.net.loop, "guest", min_frame=60), Port(self.net.loop), NullClient(self.net.loop))
        self.port.pair(self.client)
        self.idle_port.pair(self.null)
        self.ether = Ether(src="52:54:00:12:34:56", dst="52:55:0a:00:02:02")
        self.port.send([bytes(Ether(src="52:54:00:12:34:56", dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=GUEST, pdst=GATEWAY))])
        self.port.recv()

    def send(self, frame: bytes) -> None:
        for _ in range(FRAMES // BURST):
            self.port.send([frame] * BURST)

    def idle(self, frame: bytes) -> None:
        for _ in range(FRAMES // BURST):
            self.idle_port.send([frame] * BURST)

    def received(self) -> int:
        return rx_packets(self.port)

    def close(self) -> None:
        self.net.close()
        for client in (self.port, self.idle_port, self.null):
            client.close()
        self.__dict__.clear()               # pytest holds on to the fixture


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@pytest.mark.parametrize("size", [64, 1400])
def bench_answered_by_libslirp(cost: Any, guest: Guest, size: int) -> None:
    """ICMP echo to the gateway: in and out again, no system call."""
    frame = bytes(guest.ether / IP(src=GUEST, dst=GATEWAY) / ICMP(id=1) / Raw(bytes(size - 28)))
    before = guest.received()
    ports = {"prepare": guest.port.recv, "idle": lambda: guest.idle(frame)}
    done = cost(f"user.icmp.{size}", lambda: guest.send(frame), FRAMES, still=guest.net.loop, **ports)
    assert guest.received() - before == done * FRAMES


@pytest.mark.parametrize("size", [64, 1400])
def bench_udp_to_a_host_socket(cost: Any, guest: Guest, size: int) -> None:
    """One sendto a frame; what finds no room in the receiver's socket is the kernel's loss."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        head = guest.ether / IP(src=GUEST, dst=GATEWAY)
        frame = bytes(head / UDP(sport=4000, dport=server.getsockname()[1]) / Raw(bytes(size - 28)))
        before = rx_packets(guest.client)
        done = cost(f"user.udp_out.{size}", lambda: guest.send(frame), FRAMES, still=guest.net.loop, idle=lambda: guest.idle(frame))
        assert rx_packets(guest.client) - before == done * FRAMES
        assert guest.client.stats()["drops"] == {}
        assert len(server.recv(2000)) == size - 28


@pytest.mark.parametrize("size", [64, 1400])
def bench_udp_from_a_host_socket(cost: Any, guest: Guest, size: int) -> None:
    """libslirp reads one datagram of a socket each time it is called: two epoll_waits and one recvfrom a frame."""
    items = 50
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        guest.port.send([bytes(guest.ether / IP(src=GUEST, dst=GATEWAY) / UDP(sport=4000, dport=port) / Raw(b"x"))])
        _, address = server.recvfrom(10)

        def prepare() -> None:
            guest.port.recv()
            for _ in range(items):
                server.sendto(bytes(size - 28), address)

        def pump() -> None:
            while guest.net.pump():
                pass

        before = guest.received()
        done = cost(f"user.udp_in.{size}", pump, items, still=guest.net.loop, prepare=prepare, idle=guest.net.pump)
        assert guest.received() - before == done * items
