"""A guest made of scapy frames behind a user netdev: it answers ARP and neighbour solicitations, and speaks UDP, TCP and ICMP."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.config import conf
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from qnet._client import NetClient
from qnet._loop import VirtualClock
from qnet.net import Net
from qnet.testing import Port

conf.verb = 0

MAC = "52:54:00:12:34:56"
BROADCAST = "ff:ff:ff:ff:ff:ff"
TIMEOUT = 20.0                      # seconds after which something that was expected did not happen


class Guest:
    """One Ethernet host on a Port. `net` is moved by step(): pumped, run (virtual clock), or watched (started)."""

    ip = "10.0.2.15"
    ip6 = "fec0::15"
    gateway = "10.0.2.2"
    gateway6 = "fec0::2"

    def __init__(self, net: Net, client: NetClient, mode: str = "pump") -> None:
        self.net, self.client, self.mode = net, client, mode
        self.port = Port(net.loop, "guest", min_frame=60)
        self.port.pair(client)
        self.inbox: list[Packet] = []
        self.mac_of: dict[str, str] = {}
        self.listening: dict[int, Tcp] = {}
        self.answers = True         # whether it answers ARP and neighbour solicitations

    # ------------------------------------------------------------------------------------------------------------ frames

    def send(self, *packets: Packet) -> None:
        self.port.send([bytes(packet) for packet in packets])

    def step(self, seconds: float = 0.02) -> None:
        """Let the network run for a moment, then take what arrived."""
        if self.mode == "pump":
            import select

            select.select([self.net.fileno()], [], [], seconds)
            self.net.pump()
        elif self.mode == "manual":
            self.net.run_until(self.net.now() + 10_000_000)
            time.sleep(0.001)
        else:
            time.sleep(0.002)
        self.take()

    def take(self) -> None:
        for frame in self.port.recv():
            packet = Ether(frame)
            if self.answers and ARP in packet and packet[ARP].op == 1 and packet[ARP].pdst == self.ip:
                self.send(Ether(src=MAC, dst=packet.src) / ARP(op=2, hwsrc=MAC, psrc=self.ip, hwdst=packet.src, pdst=packet[ARP].psrc))
            elif self.answers and ICMPv6ND_NS in packet and packet[ICMPv6ND_NS].tgt == self.ip6:
                self.send(
                    Ether(src=MAC, dst=packet.src) / IPv6(src=self.ip6, dst=packet[IPv6].src, hlim=255)
                    / ICMPv6ND_NA(tgt=self.ip6, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
                )
            else:
                self.inbox.append(packet)

    def wait(self, match: Callable[[Packet], Any], timeout: float = TIMEOUT) -> Packet:
        """The next packet that matches; what does not match stays in the inbox."""
        end = time.monotonic() + timeout
        seen = 0
        self.take()
        while True:
            for i, packet in enumerate(self.inbox[seen:], seen):
                if match(packet):
                    return self.inbox.pop(i)
            seen = len(self.inbox)
            assert time.monotonic() < end, f"did not come; instead: {[packet.summary() for packet in self.inbox]}"
            self.step()

    def until(self, condition: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
        end = time.monotonic() + timeout
        while not (result := condition()):
            assert time.monotonic() < end, "did not happen"
            self.step()
        return result

    def nothing(self, match: Callable[[Packet], Any], seconds: float = 0.3) -> None:
        """Nothing that matches arrives for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()
            assert not [packet.summary() for packet in self.inbox if match(packet)]

    # ---------------------------------------------------------------------------------------------------------- addresses

    def dhcp(self, message: str = "discover", **fields: Any) -> dict[str, Any]:
        """Ask for a lease; the answer's options, yiaddr, siaddr and file by name."""
        options = [("message-type", message), *fields.items(), "end"]
        self.send(
            Ether(src=MAC, dst=BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
            / BOOTP(chaddr=bytes.fromhex(MAC.replace(":", "")), xid=7) / DHCP(options=options)
        )
        reply = self.wait(lambda p: BOOTP in p and p[BOOTP].op == 2)
        answer = {option[0]: option[1] if len(option) == 2 else option[1:] for option in reply[DHCP].options if isinstance(option, tuple)}
        return answer | {"yiaddr": reply[BOOTP].yiaddr, "siaddr": reply[BOOTP].siaddr, "file": reply[BOOTP].file}

    def arp(self, address: str) -> str:
        if address not in self.mac_of:
            self.send(Ether(src=MAC, dst=BROADCAST) / ARP(hwsrc=MAC, psrc=self.ip, pdst=address))
            self.mac_of[address] = self.wait(lambda p: ARP in p and p[ARP].op == 2 and p[ARP].psrc == address)[ARP].hwsrc
        return self.mac_of[address]

    def to(self, address: str) -> Packet:
        """Ethernet and IP header of a packet to this address."""
        if ":" in address:
            return Ether(src=MAC, dst="52:56:00:00:00:02") / IPv6(src=self.ip6, dst=address)
        on_link = address.rpartition(".")[0] == self.ip.rpartition(".")[0]
        return Ether(src=MAC, dst=self.arp(address if on_link else self.gateway)) / IP(src=self.ip, dst=address)

    # ----------------------------------------------------------------------------------------------------------- protocols

    def ping(self, address: str, payload: bytes = b"0123456789") -> Packet:
        self.send(self.to(address) / ICMP(id=5, seq=1) / Raw(payload))
        return self.wait(lambda p: ICMP in p and p[ICMP].type == 0 and p[IP].src == address)

    def udp(self, address: str, port: int, payload: bytes, sport: int = 4000) -> None:
        self.send(self.to(address) / UDP(sport=sport, dport=port) / Raw(payload))

    def udp_reply(self, sport: int, port: int = 4000) -> bytes:
        p = self.wait(lambda p: UDP in p and p[UDP].sport == sport and p[UDP].dport == port)
        return payload_of(p[UDP], p)

    def tftp(self, name: str, mode: str = "octet", sport: int = 4001) -> bytes:
        """Read a file (RFC 1350)."""
        self.udp(self.gateway, 69, b"\0\1" + name.encode() + b"\0" + mode.encode() + b"\0", sport)
        data, block = b"", 1
        while True:
            p = self.wait(lambda p: UDP in p and p[UDP].dport == sport)
            reply = payload_of(p[UDP], p)
            if reply[:2] == b"\0\5":
                raise FileNotFoundError(reply[4:-1].decode())
            assert reply[:2] == b"\0\3"
            assert int.from_bytes(reply[2:4], "big") == block & 0xFFFF
            data += reply[4:]
            self.udp(self.gateway, p[UDP].sport, b"\0\4" + reply[2:4], sport)
            block += 1
            if len(reply) < 4 + 512:
                return data

    def connect(self, address: str, port: int, sport: int = 0) -> "Tcp":
        tcp = Tcp(self, address, port, sport or 20000 + len(self.mac_of) + int(time.monotonic_ns() % 30000))
        tcp.open()
        return tcp

    def accept(self, port: int, timeout: float = TIMEOUT) -> "Tcp":
        """A connection that somebody opens to us."""
        syn = self.wait(lambda p: TCP in p and p[TCP].dport == port and p[TCP].flags == "S", timeout)
        over = IPv6 if IPv6 in syn else IP
        tcp = Tcp(self, syn[over].src, syn[TCP].sport, port)
        tcp.answer(syn)
        return tcp



def payload_of(layer: Packet, packet: Packet) -> bytes:
    """The bytes behind a UDP or TCP header, without Ethernet padding."""
    if UDP in packet and layer is packet[UDP]:
        return bytes(layer.payload)[: layer.len - 8]
    size = packet[IPv6].plen if IPv6 in packet else packet[IP].len - packet[IP].ihl * 4
    return bytes(layer)[layer.dataofs * 4 : size]


class Tcp:
    """The guest's end of a connection: in order, window of 64 KiB, no retransmission (nothing is lost here)."""

    def __init__(self, guest: Guest, address: str, port: int, sport: int) -> None:
        self.guest, self.address, self.port, self.sport = guest, address, port, sport
        self.snd, self.rcv = 1000, 0
        self.acked = self.snd
        self.window = 0
        self.data = b""
        self.eof = self.reset = False
        self.head = guest.to(address)

    def segment(self, flags: str, payload: bytes = b"", **fields: Any) -> Packet:
        return self.head / TCP(sport=self.sport, dport=self.port, flags=flags, seq=self.snd, ack=self.rcv, window=65535, **fields) / payload

    def mine(self, p: Packet) -> bool:
        return TCP in p and p[TCP].dport == self.sport and p[TCP].sport == self.port

    def open(self) -> None:
        self.guest.send(self.segment("S", options=[("MSS", 1460)]))
        self.snd += 1
        reply = self.guest.wait(self.mine)[TCP]
        if "R" in reply.flags:
            raise ConnectionRefusedError
        assert reply.flags == "SA"
        assert reply.ack == self.snd
        self.rcv, self.window, self.acked = reply.seq + 1, reply.window, reply.ack
        self.guest.send(self.segment("A"))

    def answer(self, syn: Packet) -> None:
        self.rcv = syn[TCP].seq + 1
        self.guest.send(self.segment("SA", options=[("MSS", 1460)]))
        self.snd += 1
        self.acked = self.snd
        self.window = syn[TCP].window

    def take(self) -> None:
        """Handle what arrived for this connection."""
        self.guest.take()
        if not any(self.mine(p) for p in self.guest.inbox):
            self.guest.step()
        mine = [p for p in self.guest.inbox if self.mine(p)]
        self.guest.inbox = [p for p in self.guest.inbox if not self.mine(p)]
        owe = False
        for p in mine:
            t = p[TCP]
            if "R" in t.flags:
                self.reset = True
                continue
            self.acked, self.window = max(self.acked, t.ack), t.window
            payload = payload_of(t, p)
            if t.seq == self.rcv:
                self.data += payload
                self.rcv += len(payload)
                if "F" in t.flags:
                    self.eof = True
                    self.rcv += 1
            owe |= bool(payload) or "F" in t.flags
        if owe and not self.reset:
            self.guest.send(self.segment("A"))

    def send(self, data: bytes) -> None:
        """Send it all, within the peer's window."""
        end = time.monotonic() + TIMEOUT
        while data:
            room = min(self.window - (self.snd - self.acked), 1440)
            if room > 0:
                self.guest.send(self.segment("PA", data[:room]))
                self.snd += len(data[:room])
                data = data[room:]
            else:
                assert time.monotonic() < end, "the peer's window stays closed"
                assert not self.reset, "reset"
                self.take()

    def recv(self, n: int) -> bytes:
        """Exactly n bytes."""
        end = time.monotonic() + TIMEOUT
        while len(self.data) < n:
            assert time.monotonic() < end, f"{len(self.data)} of {n} bytes came"
            assert not self.reset, "reset"
            assert not self.eof, f"closed after {len(self.data)} of {n} bytes"
            self.take()
        data, self.data = self.data[:n], self.data[n:]
        return data

    def recv_all(self) -> bytes:
        """Until the peer closes."""
        end = time.monotonic() + TIMEOUT
        while not self.eof:
            assert time.monotonic() < end, "the peer does not close"
            assert not self.reset, "reset"
            self.take()
        return self.data

    def shutdown(self) -> None:
        self.guest.send(self.segment("FA"))
        self.snd += 1

    def close(self) -> None:
        """FIN both ways."""
        self.shutdown()
        self.recv_all()


class EchoServer:
    """Echoes TCP streams or UDP datagrams on a loopback address, in a thread."""

    def __init__(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> None:
        self.socket = socket.socket(family, kind)
        self.socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.stopping = False
        self.connections: list[socket.socket] = []
        if kind == socket.SOCK_STREAM:
            self.socket.listen(8)
        self.socket.settimeout(0.05)
        self.kind = kind
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            try:
                if self.kind == socket.SOCK_DGRAM:
                    data, address = self.socket.recvfrom(65536)
                    self.socket.sendto(data, address)
                    continue
                connection, _ = self.socket.accept()
            except OSError:
                continue
            self.connections.append(connection)
            connection.settimeout(TIMEOUT)
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                continue
            finally:
                connection.close()

    def close(self) -> None:
        self.stopping = True
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:                 # closed already
                continue
        self.thread.join()
        self.socket.close()


@pytest.fixture
def servers() -> Iterator[Callable[..., EchoServer]]:
    """servers(family, kind) -> EchoServer"""
    made: list[EchoServer] = []

    def make(*args: Any) -> EchoServer:
        made.append(EchoServer(*args))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def guest() -> Iterator[Callable[..., Guest]]:
    """guest(mode="pump"|"manual"|"thread", on=None, **options) -> Guest on a network of its own, or on this one."""
    guests: list[Guest] = []
    nets: list[Net] = []

    def make(mode: str = "pump", on: Net | None = None, **options: Any) -> Guest:
        net = on or Net(clock=VirtualClock() if mode == "manual" else None)
        if on is None:
            nets.append(net)
        client = net.netdev_add("user", id=f"n{len(guests)}", **options)
        guests.append(Guest(net, client, mode))
        if mode == "thread" and on is None:
            net.start()
        return guests[-1]

    yield make
    for net in nets:
        net.close()
    for g in guests:
        g.port.close()
    breaches = [g.port.breaches for g in guests if g.port.breaches]
    guests.clear()
    assert not breaches
