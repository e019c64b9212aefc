"""tap between whole network stacks: the kernel's at both ends, and the kernel's with a guest's behind an e1000."""

import hashlib
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from qnet import Net
from qnet.testing.guest_e1000 import E1000Guest

pytestmark = pytest.mark.root

TRANSFER = 100_000_000
CHUNK = 1 << 20


def host(net: Net, namespace: Callable[[], Any], name: str, address: str, options: str = "") -> Any:
    """A namespace with one tap of the network, up."""
    ns = namespace()
    with ns:
        net.netdev_add(f"tap,id={name},ifname=eth0,script=no,downscript=no{options}")
    ns.run(f"ip addr add {address} dev eth0")
    ns.run("ip link set eth0 up")
    return ns


def send_all(peer: socket.socket, data: bytes, total: int) -> None:
    for at in range(0, total, CHUNK):
        peer.sendall(memoryview(data)[: min(CHUNK, total - at)])
    peer.shutdown(socket.SHUT_WR)


def hash_all(peer: socket.socket) -> tuple[int, str]:
    total, digest, buffer = 0, hashlib.sha256(), bytearray(CHUNK)
    while n := peer.recv_into(buffer):
        digest.update(memoryview(buffer)[:n])
        total += n
    return total, digest.hexdigest()


def transfer(server_ns: Any, client_ns: Any, address: str, total: int) -> None:
    """`total` bytes each way at once, over one connection; what arrives is what was sent."""
    data = random.Random(total).randbytes(CHUNK)
    whole = hashlib.sha256()
    for at in range(0, total, CHUNK):
        whole.update(memoryview(data)[: min(CHUNK, total - at)])
    with server_ns:
        listener = socket.create_server((address, 0))
    with client_ns:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, client:
        listener.settimeout(60)
        client.settimeout(60)
        client.connect(listener.getsockname())
        server = listener.accept()[0]
        server.settimeout(60)
        results: list[tuple[int, str]] = []
        with server:
            threads = [threading.Thread(target=send_all, args=(end, data, total)) for end in (server, client)]
            threads += [threading.Thread(target=lambda end=end: results.append(hash_all(end))) for end in (server, client)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert results == [(total, whole.hexdigest())] * 2


def checksum_errors(ns: Any) -> int:
    names, values = (line.split() for line in ns.run("cat /proc/thread-self/net/snmp").splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("InCsumErrors")])


def bytes_a_frame(net: Net, name: str) -> float:
    stats = net.client(name).stats()
    sent, packets = stats["tx_bytes"], stats["tx_packets"]
    assert isinstance(sent, int)
    assert isinstance(packets, int)
    return sent / packets


@pytest.mark.parametrize("kind", ["whole segments", "plain frames at one end", "plain frames"])
def test_tcp_between_two_kernels(net: Net, namespace: Any, kind: str) -> None:
    """Two taps on one hub. Segments pass whole both ways; where an end does not take them, they are cut on the way."""
    plain = {"whole segments": ("", ""), "plain frames at one end": ("", ",vnet_hdr=off"), "plain frames": (",vnet_hdr=off",) * 2}[kind]
    a, b = host(net, namespace, "a", "10.1.0.1/24", plain[0]), host(net, namespace, "b", "10.1.0.2/24", plain[1])
    net.netdev_add("hubport,id=pa,hubid=0,netdev=a")
    net.netdev_add("hubport,id=pb,hubid=0,netdev=b")
    net.start()
    transfer(a, b, "10.1.0.1", TRANSFER if kind == "whole segments" else TRANSFER // 10)
    net.stop()
    assert checksum_errors(a) == checksum_errors(b) == 0
    for name, options in (("a", plain[0]), ("b", plain[1])):
        assert (bytes_a_frame(net, name) > 1514) == (options == ""), "the kernel's own segmentation is off, or on"
        drops = net.client(name).stats()["drops"]
        assert isinstance(drops, dict)
        assert set(drops) <= {"no-peer"}        # what an interface says when it comes up, before it is plugged in


class Host:
    """A guest behind an e1000 that answers ARP and echo requests, and sends one."""

    mac, address = "52:54:00:12:34:56", "10.2.0.2"

    def __init__(self, net: Net, memory: bytearray) -> None:
        self.net = net
        self.nic = net.device_add(f"e1000,netdev=t,mac={self.mac}", memory=memory)
        self.guest = E1000Guest(self.nic, memory)
        self.guest.init()
        self.replies: list[Packet] = []

    def send(self, packet: Packet) -> None:
        self.guest.send([bytes(packet)])

    def turn(self) -> None:
        for data in self.guest.receive():
            packet = Ether(data)
            back = Ether(src=self.mac, dst=packet.src)
            if ARP in packet and packet[ARP].op == 1 and packet[ARP].pdst == self.address:
                self.send(back / ARP(op=2, hwsrc=self.mac, psrc=self.address, hwdst=packet.src, pdst=packet[ARP].psrc))
            elif ICMP in packet and packet[ICMP].type == 8:
                ip, icmp = packet[IP], packet[ICMP]
                load = data[14 + 20 + 8 : 14 + ip.len]          # without the padding of a short frame
                self.send(back / IP(src=ip.dst, dst=ip.src) / ICMP(type=0, id=icmp.id, seq=icmp.seq) / Raw(load))
            else:
                self.replies.append(packet)


def test_ping_both_ways_through_an_e1000(net: Net, namespace: Any, pump_until: Any) -> None:
    ns = host(net, namespace, "t", "10.2.0.1/24")
    memory = bytearray(4 << 20)
    guest = Host(net, memory)

    def turn(condition: Callable[[], object]) -> None:
        pump_until(net, lambda: guest.turn() or condition())

    with ns:
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with ping:
        ping.setblocking(False)
        for size in (0, 18, 56, 1472):
            echo = bytes(ICMP(type=8, id=7, seq=size) / Raw(bytes(size)))
            ping.sendto(echo, ("10.2.0.2", 0))
            got: list[bytes] = []

            def arrived(got: list[bytes] = got) -> bool:
                try:
                    got.append(ping.recv(4096))
                except BlockingIOError:
                    return False
                return True

            turn(arrived)
            answer = IP(got[0])
            assert (answer.src, answer[ICMP].type, answer[ICMP].seq) == ("10.2.0.2", 0, size)
            assert bytes(answer[ICMP].payload) == bytes(size)
    guest.send(Ether(src=guest.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=guest.mac, psrc=guest.address, pdst="10.2.0.1"))
    turn(lambda: any(ARP in packet for packet in guest.replies))
    [answer] = [packet for packet in guest.replies if ARP in packet]
    guest.send(Ether(src=guest.mac, dst=answer.src) / IP(src=guest.address, dst="10.2.0.1") / ICMP(id=9, seq=3) / Raw(b"from the guest"))
    turn(lambda: any(ICMP in packet for packet in guest.replies))
    [echo_reply] = [packet for packet in guest.replies if ICMP in packet]
    assert (echo_reply[ICMP].type, echo_reply[ICMP].seq, echo_reply[Raw].load[:14]) == (0, 3, b"from the guest")
    guest.guest.close()
