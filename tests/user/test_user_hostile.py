"""A guest that lies (facts 6.5): frames cut at every byte, lengths that do not fit, overlapping fragments, urgent data, floods."""

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from qnet.net import Net
from qnet.testing import Port

MAC, GATEWAY, ALL = "52:54:00:12:34:56", "52:55:0a:00:02:02", "ff:ff:ff:ff:ff:ff"
SRC, DST, SRC6, DST6 = "10.0.2.15", "10.0.2.2", "fec0::15", "fec0::2"
# Nobody listens on port 1 of this host's loopback, and nothing leaves it: every frame is for the gateway itself.
ETHER = Ether(src=MAC, dst=GATEWAY)
FRAMES = {
    "arp-request": Ether(src=MAC, dst=ALL) / ARP(hwsrc=MAC, psrc=SRC, pdst=DST),
    "arp-reply": ETHER / ARP(op=2, hwsrc=MAC, psrc=SRC, pdst=DST),
    "dhcp": Ether(src=MAC, dst=ALL) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    / BOOTP(chaddr=bytes(6), xid=7) / DHCP(options=[("message-type", "request"), ("requested_addr", SRC), ("hostname", b"h" * 30), "end"]),
    "icmp": ETHER / IP(src=SRC, dst=DST) / ICMP(id=1) / Raw(bytes(20)),
    "icmp-error": ETHER / IP(src=SRC, dst=DST) / ICMP(type=3, code=4) / IP(src=DST, dst=SRC) / UDP(sport=1, dport=1),
    "udp": ETHER / IP(src=SRC, dst=DST) / UDP(sport=1, dport=1) / Raw(bytes(20)),
    "udp-options": ETHER / IP(src=SRC, dst=DST, options=[IPOption_NOP()] * 40) / UDP(sport=1, dport=1) / Raw(bytes(20)),
    "tftp": ETHER / IP(src=SRC, dst=DST) / UDP(sport=1069, dport=69) / Raw(b"\0\1file\0octet\0blksize\0512\0tsize\0000\0"),
    "tftp-ack": ETHER / IP(src=SRC, dst=DST) / UDP(sport=1069, dport=69) / Raw(b"\0\4\0\0"),
    "fragment": ETHER / IP(src=SRC, dst=DST, flags="MF", frag=2, proto=17, id=9) / Raw(bytes(64)),
    "tcp-syn": ETHER / IP(src=SRC, dst=DST) / TCP(sport=1, dport=1, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
    "tcp-urgent": ETHER / IP(src=SRC, dst=DST) / TCP(sport=1, dport=1, flags="APU", urgptr=0xFFFF) / Raw(b"x"),
    "tcp-rst": ETHER / IP(src=SRC, dst=DST) / TCP(sport=1, dport=1, flags="R"),
    "vlan": Ether(src=MAC, dst=GATEWAY) / Dot1Q(vlan=1) / IP(src=SRC, dst=DST) / ICMP(),
    "ncsi": Ether(src=MAC, dst=ALL, type=0x88F8) / Raw(bytes.fromhex("0001000100000000") + bytes(40)),
    "rs": ETHER / IPv6(src="fe80::15", dst="ff02::2", hlim=255) / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
    "ns": ETHER / IPv6(src=SRC6, dst=DST6, hlim=255) / ICMPv6ND_NS(tgt=DST6) / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
    "na": ETHER / IPv6(src=SRC6, dst=DST6, hlim=255) / ICMPv6ND_NA(tgt=SRC6) / ICMPv6NDOptDstLLAddr(lladdr=MAC),
    "echo6": ETHER / IPv6(src=SRC6, dst=DST6) / ICMPv6EchoRequest(data=bytes(30)),
    "udp6": ETHER / IPv6(src=SRC6, dst=DST6) / UDP(sport=1, dport=1) / Raw(bytes(20)),
    "dhcp6": ETHER / IPv6(src="fe80::15", dst="ff02::1:2") / UDP(sport=546, dport=547) / Raw(bytes.fromhex("0b123456000600040017003b")),
    "tftp6": ETHER / IPv6(src=SRC6, dst=DST6) / UDP(sport=1069, dport=69) / Raw(b"\0\1file\0octet\0"),
    "tcp6-syn": ETHER / IPv6(src=SRC6, dst=DST6) / TCP(sport=1, dport=1, flags="S"),
    "fragment6": ETHER / IPv6(src=SRC6, dst=DST6) / IPv6ExtHdrFragment(offset=1, m=1, id=3) / UDP(sport=1, dport=1) / Raw(bytes(16)),
}
BYTES = {name: bytes(frame) for name, frame in FRAMES.items()}


def alive(g: Any) -> None:
    g.net.pump()
    g.take()
    g.inbox.clear()
    g.ping("10.0.2.2")


@pytest.mark.parametrize("name", FRAMES)
def test_cut_at_every_byte(guest: Callable[..., Any], tmp_path: Any, name: str) -> None:
    g = guest(tftp=str(tmp_path))
    frame = BYTES[name]
    for n in range(1, len(frame) + 1):
        g.port.send([frame[:n], frame[:n].ljust(60, b"\0"), [frame[: n // 2], frame[n // 2 : n]]])
    g.net.pump()
    alive(g)
    stats = g.client.stats()
    assert stats["drops"].get("malformed", 0) >= 2 * 13
    assert g.client.queued == 0


@pytest.fixture(scope="module")
def target() -> Any:
    """A guest's port on a network that lives as long as the module; restrict=on, since where mutated frames go is anybody's guess."""
    with Net() as net:
        client = net.netdev_add("user", id="n0", restrict=True)
        port = Port(net.loop, "guest")
        port.pair(client)
        yield net, port
        port.close()


CHANGES = st.lists(st.tuples(st.integers(12, 100), st.sampled_from([0, 1, 2, 4, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(sorted(BYTES)), CHANGES, st.integers(1, 600)), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_in_any_place(target: Any, frames: list[tuple[str, list[tuple[int, int]], int]]) -> None:
    net, port = target
    for name, changes, cut in frames:
        frame = bytearray(BYTES[name])
        for at, value in changes:
            frame[at % len(frame)] = value
        port.send([bytes(frame[:cut])])
    net.pump()
    port.recv()
    port.send([BYTES["arp-request"], BYTES["icmp"]])
    answers = [Ether(frame) for frame in port.recv()]
    assert any(ARP in p and p[ARP].psrc == DST for p in answers)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 200), st.sampled_from([1, 6, 17])), min_size=1, max_size=12), st.randoms())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fragments_in_any_order_and_overlap(target: Any, fragments: list[tuple[int, bool, int, int]], random: Any) -> None:
    net, port = target
    for offset, more, size, proto in fragments:
        packet = ETHER / IP(src=SRC, dst=DST, id=random.randrange(3), flags="MF" if more else 0, frag=offset, proto=proto) / Raw(bytes(size))
        port.send([bytes(packet)])
    port.recv()
    port.send([BYTES["icmp"]])
    net.pump()
    assert any(ICMP in Ether(frame) for frame in port.recv())


def test_lengths_that_do_not_fit_are_malformed(guest: Callable[..., Any]) -> None:
    g = guest()
    base, base6 = bytearray(BYTES["udp"]), bytearray(BYTES["udp6"])
    bad = []
    for at, value in ((14, 0x44), (14, 0x4F), (14, 0x55), (17, 255), (17, 10)):     # header length, version, total length
        frame = bytearray(base)
        frame[at] = value
        bad.append(bytes(frame))
    for at, value in ((14, 0x40), (18, 255), (19, 255)):                            # version, payload length
        frame = bytearray(base6)
        frame[at] = value
        bad.append(bytes(frame))
    g.port.send(bad)
    assert g.client.stats()["drops"] == {"malformed": len(bad)}


def test_urgent_data_is_plain_data(guest: Callable[..., Any]) -> None:
    """CVE-2026-9539: no urgent pointer reaches libslirp, and no byte is lost or made up."""
    g = guest()
    for address, family in (("10.0.2.2", socket.AF_INET), ("fec0::2", socket.AF_INET6)):
        with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listener:
            tcp = g.connect(address, listener.getsockname()[1])
            connection, _ = listener.accept()
            with connection:
                sent = b""
                for pointer in (0, 1, 5, 400, 0x7FFF, 0xFFFF):
                    payload = os.urandom(401)
                    g.send(tcp.segment("APU", payload, urgptr=pointer))
                    tcp.snd += len(payload)
                    sent += payload
                connection.settimeout(20)
                received = b""
                while len(received) < len(sent):
                    g.step(0)
                    received += connection.recv(65536)
                assert received == sent
                g.step()
                with pytest.raises(BlockingIOError):
                    connection.recv(1, socket.MSG_DONTWAIT)


def test_a_second_fragment_inside_the_tcp_header_is_dropped(guest: Callable[..., Any]) -> None:
    """RFC 3128: else it could set the urgent flag after the first was looked at."""
    g = guest()
    segment = bytes(TCP(sport=1, dport=1, flags="A")) + bytes(40)
    g.port.send([
        bytes(ETHER / IP(src=SRC, dst=DST, id=1, flags="MF", frag=0, proto=6) / Raw(segment[:8])),
        bytes(ETHER / IP(src=SRC, dst=DST, id=1, frag=1, proto=6) / Raw(segment[8:])),
    ])  # fmt: skip
    assert g.client.stats()["drops"] == {"malformed": 2}


def test_a_flood_of_unanswered_connections_is_bounded_work(guest: Callable[..., Any]) -> None:
    """SYNs to a closed port: each is refused and forgotten."""
    g = guest()
    head = ETHER / IP(src=SRC, dst=DST)
    before = len(os.listdir("/proc/self/fd"))
    for start in range(0, 600, 60):
        g.port.send([bytes(head / TCP(sport=2000 + start + i, dport=1, flags="S")) for i in range(60)])
        for _ in range(3):
            g.net.pump()
    g.until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)
    alive(g)


def test_guest_errors_are_counted_and_logged(guest: Callable[..., Any], tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """libslirp names one thing a guest can do wrong: more packets in the wrong state than it takes."""
    g = guest(tftp=str(tmp_path))
    assert g.client.guest_errors == 0
