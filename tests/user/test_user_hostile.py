"""A guest that lies (facts 6.5): frames cut at every byte, lengths that do not fit, overlapping fragments, urgent data, floods."""

import itertools
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
    ICMPv6ND_RA,
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


VALUES = st.sampled_from([0, 1, 2, 4, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
CHANGES = st.lists(st.tuples(st.integers(12, 100), VALUES), max_size=6)
FRAGMENT = st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 200), st.sampled_from([1, 6, 17]))


def fragment_of(ident: int, offset: int, more: bool, payload: bytes, proto: int = 17) -> bytes:
    return bytes(ETHER / IP(src=SRC, dst=DST, id=ident, flags="MF" if more else 0, frag=offset, proto=proto) / Raw(payload))


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


@given(st.lists(FRAGMENT, min_size=1, max_size=12), st.randoms())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fragments_in_any_order_and_overlap(target: Any, fragments: list[tuple[int, bool, int, int]], random: Any) -> None:
    net, port = target
    for offset, more, size, proto in fragments:
        port.send([fragment_of(random.randrange(3), offset, more, bytes(size), proto)])
    port.recv()
    port.send([BYTES["icmp"]])
    net.pump()
    assert any(ICMP in Ether(frame) for frame in port.recv())


@given(st.binary(max_size=3000), st.lists(st.integers(1, 180), max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_datagram_cut_anywhere_and_shuffled_is_put_together(target: Any, data: bytes, cuts: list[int], random: Any) -> None:
    """The echo server here is libslirp itself: an ICMP echo request answered whole."""
    _, port = target
    message = bytes(ICMP(id=1, seq=random.randrange(65536)) / Raw(data))
    edges = sorted({0, *(8 * cut for cut in cuts if 8 * cut < len(message)), len(message)})
    edges = sorted({*edges, *range(0, len(message), 1480)})
    ident = random.randrange(65536)
    parts = [fragment_of(ident, a // 8, b < len(message), message[a:b], 1) for a, b in itertools.pairwise(edges)]
    random.shuffle(parts)
    port.recv()
    port.send(parts)
    pieces = {p[IP].frag: bytes(p[IP].payload)[: p[IP].len - 20] for p in map(Ether, port.recv())}
    assert b"".join(pieces[at] for at in sorted(pieces))[8:] == data


def test_fragments_that_nobody_honest_sends_are_refused(guest: Callable[..., Any]) -> None:
    g = guest()
    for ident, bad in enumerate((
        [(0, True, 16), (1, True, 16)],                         # overlap
        [(0, True, 16), (0, True, 16)],
        [(0, True, 12)],                                        # not a multiple of 8
        [(0, True, 0)],
        [(8189, False, 100)],                                   # past 65535
        [(4, False, 8), (9, True, 8)],                          # past the end
        [(9, True, 8), (4, False, 8)],
        [(4, False, 8), (9, False, 8)],                         # two ends
    )):  # fmt: skip
        before = g.client.stats()["drops"].get("malformed", 0)
        g.port.send([fragment_of(ident, offset, more, bytes(size)) for offset, more, size in bad])
        assert g.client.stats()["drops"]["malformed"] == before + 1, bad
    assert g.client.stats()["drops"]["no-buffer"] == 5          # the fragments before the bad one
    g.port.send([fragment_of(100, 25, False, bytes(117))])      # ended a process with libslirp 4.7.0
    alive(g)


def test_fragments_are_bounded_and_expire(guest: Callable[..., Any]) -> None:
    g = guest("manual")
    g.arp("10.0.2.2")
    echo = bytes(ICMP(id=1) / Raw(bytes(64)))
    g.port.send([fragment_of(ident, 0, True, echo[:32], 1) for ident in range(20)])
    assert g.client.stats()["drops"] == {"no-buffer": 4}        # the oldest of more than 16
    g.port.send([fragment_of(ident, 4, False, echo[32:], 1) for ident in (0, 19)])
    assert [p[IP].len for p in map(Ether, g.port.recv()) if ICMP in p] == [92]
    g.net.run_until(g.net.now() + 31_000_000_000)
    g.port.send([fragment_of(18, 4, False, echo[32:], 1)])
    assert not [p for p in map(Ether, g.port.recv()) if ICMP in p]
    assert g.client.stats()["drops"]["no-buffer"] == 4 + 1 + 15


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
                connection.setblocking(False)
                with pytest.raises(BlockingIOError):
                    connection.recv(1)


def test_urgent_data_in_fragments_is_plain_too(guest: Callable[..., Any]) -> None:
    """The flags are looked at when the segment is whole (RFC 3128 is about those who look at the first fragment)."""
    g = guest()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp = g.connect("10.0.2.2", listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            segment = bytes(tcp.segment("APU", b"x" * 40, urgptr=0xFFFF)[IP])
            g.port.send([fragment_of(7, 0, True, segment[20:28], 6), fragment_of(7, 1, False, segment[28:], 6)])
            g.step()
            connection.settimeout(20)
            assert connection.recv(100) == b"x" * 40


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


def test_guest_errors_are_counted_and_logged(guest: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """libslirp complains of a router advertisement from a guest."""
    g = guest()
    for _ in range(3):
        g.send(ETHER / IPv6(src="fe80::15", dst="ff02::1", hlim=255) / ICMPv6ND_RA())
    assert g.client.guest_errors == 3
    assert "n0: guest error: Warning: guest sent NDP RA, but shouldn't" in caplog.text
