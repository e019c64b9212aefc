"""tap against the kernel: frames, checksums and segments both ways, flow control, and the interface going down and away (2.1, 2.3)."""

import errno
import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from qnet import Net
from qnet.backends.tap import Tap
from qnet.testing import Port

pytestmark = pytest.mark.root

ETHERTYPE = 0x88B5                          # IEEE 802 local experimental
SOL_PACKET, PACKET_VNET_HDR = 263, 15
UDP_SEGMENT = 103
NEEDS_CSUM, TCPV4, TCPV6, UDP_L4, ECN = 1, 1, 4, 5, 0x80
GUEST = "02:00:00:00:00:02"


def frame(n: int, size: int = 60, to: bytes = b"\xff" * 6) -> bytes:
    return (to + b"\x02\0\0\0\0\1" + struct.pack("!HI", ETHERTYPE, n) + bytes(range(256)) * 257)[:size]


class Wire:
    """port == tap | kernel: a socket that sees the interface's frames."""

    def __init__(self, net: Net, ns: Any, options: str = "", mtu: int = 1500, **port: Any) -> None:
        self.net, self.ns = net, ns
        with ns:
            client = net.netdev_add(f"tap,id=t,script=no,downscript=no{options}")
            assert isinstance(client, Tap)
            self.tap = client
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self.port = Port(net.loop, "port", **port)
        self.port.pair(self.tap)
        self.name = self.tap.ifname
        ns.run(f"ip link set {self.name} up mtu {mtu} txqueuelen 1000")
        self.socket.bind((self.name, ETHERTYPE))
        self.socket.settimeout(30)

    def close(self) -> None:
        self.socket.close()
        self.tap.close()
        self.port.close()

    def drops(self) -> dict[str, int]:
        drops = self.tap.stats()["drops"]
        assert isinstance(drops, dict)
        return drops


@pytest.fixture
def wire(net: Net, ns: Any) -> Iterator[Callable[..., Wire]]:
    made: list[Wire] = []

    def make(*args: Any, **options: Any) -> Wire:
        made.append(Wire(net, ns, *args, **options))
        return made[-1]

    yield make
    for one in made:
        assert not one.port.breaches
        one.close()
        del one
    made.clear()


# ------------------------------------------------------------------------------------------------------------------ frames

SIZES = [14, 15, 59, 60, 61, 1513, 1514, 9014, 65535]


@pytest.mark.parametrize("options", ["", ",vnet_hdr=off"])
def test_frames_of_every_size_pass_both_ways(wire: Any, pump_until: Any, options: str) -> None:
    w = wire(options, mtu=65521)
    assert w.tap.vnet_hdr_len == (0 if options else 10)
    sent = [frame(n, size) for n, size in enumerate(SIZES)]
    for data in sent:
        w.socket.send(data)
    got: list[bytes] = []
    pump_until(w.net, lambda: got.extend(w.port.recv()) or len(got) == len(sent))
    assert got == sent
    assert w.port.send(sent) == len(sent)
    assert [w.socket.recv(1 << 17) for _ in sent] == sent
    assert w.drops() == {}


def test_a_frame_in_many_pieces_is_one_write(wire: Any) -> None:
    w = wire()
    data = frame(1, 640)
    before = w.tap.stats()["syscalls"]
    w.port.send([[data[i : i + 10] for i in range(0, 640, 10)]])
    assert w.socket.recv(2000) == data
    assert w.tap.stats()["syscalls"] == before + 1


def test_the_other_lengths_of_the_header(wire: Any, pump_until: Any) -> None:
    w = wire()
    for length in (12, 20, 10):
        w.tap.vnet_hdr_len = length
        assert w.tap.vnet_hdr_len == length
        w.socket.send(frame(length))
        pump_until(w.net, lambda: w.port.stats()["rx_packets"])
        w.port.send([frame(length)])
        assert w.socket.recv(2000) == frame(length)
    assert w.drops() == {}
    for length in (0, 8, 11, 24, -1):
        with pytest.raises(ValueError, match="10, 12 or 20"):
            w.tap.vnet_hdr_len = length
    assert w.tap.vnet_hdr_len == 10


def test_short_frames_are_padded_for_who_wants_it(wire: Any, pump_until: Any) -> None:
    """S28"""
    w = wire(min_frame=60)
    w.socket.send(frame(1, 20))
    pump_until(w.net, lambda: w.port.stats()["rx_packets"])
    assert w.port.recv() == [frame(1, 20).ljust(60, b"\0")]


# ------------------------------------------------------------------------------------------------- checksums and segments


def addressed(w: Wire) -> None:
    w.ns.run(f"ip addr add 10.9.0.1/24 dev {w.name}")
    w.ns.run(f"ip neigh add 10.9.0.2 lladdr {GUEST} dev {w.name} nud permanent")


def mac_of(w: Wire) -> bytes:
    [link] = json.loads(w.ns.run(f"ip -j link show {w.name}"))
    return bytes.fromhex(link["address"].replace(":", ""))


def udp(w: Wire) -> socket.socket:
    with w.ns:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def checksums_right(data: bytes) -> bool:
    packet = Ether(data)
    again = packet.copy()
    for layer in (IP, UDP, TCP):
        if layer in again:
            del again[layer].chksum
    return bytes(again) == data


@pytest.mark.parametrize("takes", ["all", "plain"])
def test_a_checksum_is_left_to_who_takes_it(wire: Any, pump_until: Any, takes: str) -> None:
    w = wire(takes=takes)
    addressed(w)
    with udp(w) as s:
        s.sendto(b"a" * 100, ("10.9.0.2", 9))
    pump_until(w.net, lambda: w.port.stats()["rx_packets"])
    [data] = w.port.recv()
    [off] = w.port.offloads
    assert Ether(data)[UDP].load == b"a" * 100
    assert checksums_right(data) == (takes == "plain")
    if takes == "all":
        assert (off["flags"] & NEEDS_CSUM, off["csum_start"], off["csum_offset"]) == (NEEDS_CSUM, 34, 6)


@pytest.mark.parametrize("takes", ["all", "plain"])
def test_segments_from_the_kernel_come_whole_to_who_takes_them(wire: Any, pump_until: Any, takes: str) -> None:
    w = wire(takes=takes)
    assert set(w.tap.offloads) >= {"csum", "tso4", "tso6", "ecn"}
    if "uso" not in w.tap.offloads:
        pytest.fail("this kernel has no USO (Linux 6.2)")
    addressed(w)
    payload = bytes(i % 251 for i in range(10_000))
    with udp(w) as s:
        s.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        s.sendto(payload, ("10.9.0.2", 9))
    pump_until(w.net, lambda: w.port.stats()["rx_packets"] == (1 if takes == "all" else 10))
    got = w.port.recv()
    assert b"".join(Ether(data)[UDP].load for data in got) == payload
    if takes == "all":
        [off] = w.port.offloads
        assert (off["gso_type"], off["gso_size"], off["csum_start"]) == (UDP_L4, 1000, 34)
    else:
        assert all(checksums_right(data) for data in got)


def segment(payload: bytes, kind: int = TCPV4, mss: int = 1460) -> tuple[bytes, dict[str, int]]:
    """A frame that is still to be segmented, and its record: the seed at the checksum's place is the pseudo-header's sum."""
    l3 = IPv6(src="fd00::2", dst="fd00::1") if kind & 0x7F == TCPV6 else IP(src="10.9.0.2", dst="10.9.0.1")
    l4 = UDP(sport=7, dport=9) if kind == UDP_L4 else TCP(flags="A")
    data = bytearray(bytes(Ether(src=GUEST, dst="ff:ff:ff:ff:ff:ff") / l3 / l4 / payload))
    start = 54 if kind & 0x7F == TCPV6 else 34
    offset, header = (6, 8) if kind == UDP_L4 else (16, 20)
    addresses = data[start - 32 : start] if start == 54 else data[26:34]
    seed = sum(struct.unpack(f"!{len(addresses) // 2}H", addresses)) + (17 if kind == UDP_L4 else 6) + len(data) - start
    while seed >> 16:
        seed = (seed & 0xFFFF) + (seed >> 16)
    data[start + offset : start + offset + 2] = struct.pack("!H", seed)
    off = {"flags": NEEDS_CSUM, "gso_type": kind, "gso_size": mss, "hdr_len": start + header, "csum_start": start, "csum_offset": offset}
    return bytes(data), off


@pytest.mark.parametrize("kind", [TCPV4, TCPV4 | ECN, TCPV6, UDP_L4], ids=["TCP", "TCP with ECN", "TCP over IPv6", "UDP"])
def test_a_segment_goes_to_the_kernel_in_one_write(wire: Any, kind: int) -> None:
    w = wire()
    ethertype = 0x86DD if kind == TCPV6 else 0x0800
    with w.ns:
        watcher = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
    with watcher:
        watcher.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        watcher.bind((w.name, ethertype))
        watcher.settimeout(30)
        data, off = segment(bytes(60_000), kind)
        before = w.tap.stats()["syscalls"]
        w.port.send([data], off)
        assert w.tap.stats()["syscalls"] == before + 1
        got = watcher.recv(1 << 17)
    flags, gso_type, _, gso_size, start, offset = struct.unpack("=BBHHHH", got[:10])
    assert {"flags": flags, "gso_type": gso_type, "gso_size": gso_size, "csum_start": start, "csum_offset": offset}.items() <= off.items()
    assert got[10:] == data


def test_the_kernel_cuts_what_it_is_given_whole(wire: Any) -> None:
    w = wire()
    addressed(w)
    payload = bytes(i % 251 for i in range(9_500))
    with udp(w) as s:
        s.bind(("10.9.0.1", 9))
        s.settimeout(30)
        data, off = segment(payload, UDP_L4, 1000)
        w.port.send([mac_of(w) + data[6:]], off)
        assert b"".join(s.recv(2000) for _ in range(10)) == payload


def test_without_a_header_the_core_segments(wire: Any) -> None:
    w = wire(",vnet_hdr=off")
    assert w.tap.offloads == ()
    data, off = segment(bytes(10_000))
    with w.ns:
        watcher = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with watcher:
        watcher.bind((w.name, 0x0800))
        watcher.settimeout(30)
        w.port.send([data], off)
        got = [watcher.recv(1 << 17) for _ in range(7)]
    assert [len(part) for part in got] == [1514] * 6 + [10_000 - 6 * 1460 + 54]
    assert all(checksums_right(part) for part in got)


@pytest.mark.parametrize(
    ("off", "reason"),
    [
        ({"flags": NEEDS_CSUM, "csum_start": 59, "csum_offset": 0}, "bad-offload"),
        ({"flags": NEEDS_CSUM, "csum_start": 65535, "csum_offset": 65535}, "bad-offload"),
        ({"flags": NEEDS_CSUM, "gso_type": TCPV4, "gso_size": 0, "csum_start": 34, "csum_offset": 16}, "bad-offload"),
        ({"flags": NEEDS_CSUM, "gso_type": 77, "gso_size": 99, "csum_start": 34, "csum_offset": 16}, "bad-offload"),
        ({"flags": 0, "gso_type": TCPV4, "gso_size": 99}, "bad-offload"),
    ],
)
def test_a_record_that_makes_no_sense_goes_nowhere(wire: Any, off: dict[str, int], reason: str) -> None:
    """The sender may be a guest."""
    w = wire()
    w.port.send([frame(1), frame(2), frame(3)], [None, off, None])
    assert [w.socket.recv(2000) for _ in range(2)] == [frame(1), frame(3)]
    assert w.drops() == {reason: 1}


# ------------------------------------------------------------------------------------------------------------ flow control


def test_reading_stops_while_the_peer_has_no_room(wire: Any, pump_until: Any, rests: Any) -> None:
    w = wire(capacity=3)
    sent = [frame(n) for n in range(200)]
    for data in sent:
        w.socket.send(data)
    pump_until(w.net, lambda: w.port.stats()["rx_packets"] == 3)
    rests(w.net)
    assert w.tap.stats()["syscalls"] <= 50
    assert w.net.loop.allocations == 0, "frames were copied into a queue"
    for taken in [*range(10, 200, 7), 200]:
        w.port.room(7)
        pump_until(w.net, lambda: w.port.stats()["rx_packets"] == taken)  # noqa: B023
    assert w.port.recv() == sent


def test_one_descriptor_does_not_keep_the_others_waiting(wire: Any, net: Net, ns: Any) -> None:
    w = wire()
    for n in range(200):
        w.socket.send(frame(n))
    counts = []
    while net.pump():
        counts.append(len(w.port.recv()))
    assert max(counts) == 50
    assert sum(counts) == 200


def test_what_the_kernel_cannot_keep_is_lost_there_and_the_rest_goes_on(wire: Any, net: Net, ns: Any, pump_until: Any) -> None:
    w = wire()
    ns.run(f"ip link set {w.name} txqueuelen 10")
    for n in range(100):
        w.socket.send(frame(n))
    while net.pump():
        pass
    first = w.port.recv()
    assert first == [frame(n) for n in range(len(first))]
    assert 10 <= len(first) < 100
    w.socket.send(frame(100))
    pump_until(net, lambda: w.port.recv() == [frame(100)])


def slow_host(w: Wire) -> socket.socket:
    """A bridge and a slow interface behind the tap, and a socket at its end. Frames on their way fill sndbuf."""
    for command in (
        "ip link add br7 type bridge mcast_snooping 0",          # which would send reports of its own
        "ip link add slow type veth peer name far",
        f"ip link set {w.name} master br7",
        "ip link set slow master br7",
        "tc qdisc add dev slow root tbf rate 4mbit burst 3000 limit 10000000",
        "ip link set br7 up",
        "ip link set slow up",
        "ip link set far up",
    ):
        w.ns.run(command)
    with w.ns:
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    far.bind(("far", ETHERTYPE))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    far.settimeout(30)
    return far


MANY = [frame(n, 1514, b"\x02\0\0\0\0\7") for n in range(200)]


def test_no_room_in_the_host_is_waited_for(wire: Any, net: Net, pump_until: Any, rests: Any) -> None:
    """Writes are refused (EAGAIN), and go on by themselves."""
    w = wire(",sndbuf=20000")
    with slow_host(w) as far:
        w.port.flow_control = True
        w.port.post(MANY)
        assert w.port.backlog > 100
        assert not w.tap.can_receive
        waited = w.tap.stats()["syscalls"]
        pump_until(net, lambda: w.port.backlog == 0)
        assert w.tap.stats()["wakeups"] > 2
        assert w.tap.stats()["syscalls"] > waited
        pump_until(net, lambda: w.tap.queued == 0)
        assert [far.recv(2000) for _ in MANY] == MANY
    assert w.drops() == {}
    rests(net)


def test_who_has_no_flow_control_is_queued_for(wire: Any, net: Net, pump_until: Any, rests: Any) -> None:
    w = wire(",sndbuf=20000")
    with slow_host(w) as far:
        assert w.port.send(MANY) == len(MANY)
        assert w.tap.queued > 100
        pump_until(net, lambda: w.tap.queued == 0)
        assert [far.recv(2000) for _ in MANY] == MANY
    assert w.drops() == {}


@pytest.mark.parametrize("command", ["ip link del {}", "ip link set {} down"])
def test_no_room_and_no_interface(wire: Any, net: Net, ns: Any, rests: Any, pump_until: Any, command: str) -> None:
    """What waits for room is lost with the interface."""
    w = wire(",sndbuf=20000")
    with slow_host(w):
        w.port.send(MANY)
        waiting = w.tap.queued
        assert waiting > 100
        ns.run(command.format(w.name))
        ns.run("ip link set slow down")             # frees what was under way
        if "down" in command:
            assert w.tap.queued <= waiting
            ns.run(f"ip link set {w.name} up")
        pump_until(net, lambda: w.tap.queued == 0)
        rests(net)
        assert (w.tap.error is None) == ("down" in command)
        if "del" in command:
            assert w.drops() == {"io": waiting}


# ------------------------------------------------------------------------------------------------------- link and interface


def test_link_down_drops_both_ways(wire: Any, net: Net, pump_until: Any) -> None:
    """S10, S19"""
    w = wire()
    net.set_link("t", False)
    w.socket.send(frame(1))
    pump_until(net, lambda: w.drops() == {"link-down": 1})
    w.port.send([frame(2)])
    assert w.drops() == {"link-down": 2}
    net.set_link("t", True)
    w.socket.send(frame(3))
    pump_until(net, lambda: w.port.recv() == [frame(3)])
    w.port.send([frame(4)])
    assert w.socket.recv(2000) == frame(4)


def test_an_interface_that_is_down_takes_nothing(wire: Any, net: Net, ns: Any, rests: Any) -> None:
    w = wire()
    ns.run(f"ip link set {w.name} down")
    w.port.send([frame(n) for n in range(3)])
    assert w.drops() == {"io": 3}
    rests(net)
    assert w.tap.error is None
    ns.run(f"ip link set {w.name} up")
    assert w.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN
    w.port.send([frame(9)])
    assert w.socket.recv(2000) == frame(9)


@pytest.mark.parametrize("state", ["idle", "unread frames", "peer without room", "sending", "link down"])
def test_an_interface_that_is_deleted(wire: Any, net: Net, ns: Any, pump_until: Any, rests: Any, state: str) -> None:
    w = wire(capacity=1 if state == "peer without room" else None)
    if state in ("unread frames", "peer without room"):
        for n in range(5):
            w.socket.send(frame(n))
    if state == "peer without room":
        pump_until(net, lambda: w.port.stats()["rx_packets"] == 1)
    if state == "link down":
        net.set_link("t", False)
    ns.run(f"ip link del {w.name}")
    if state == "sending":
        w.port.send([frame(1)])
        assert w.tap.error
    rests(net)
    if state == "peer without room":
        assert len(w.port.recv()) == 1
        w.port.room(None)
        assert w.port.recv() == [frame(n) for n in range(1, 5)], "what was read before is still sent on"
        rests(net)
    else:
        assert w.tap.error == "File descriptor in bad state"
    net.set_link("t", True)
    before = w.drops().get("io", 0)
    w.port.send([frame(7), frame(8)])
    assert w.drops()["io"] == before + 2
    assert w.tap.error == "File descriptor in bad state"
    rests(net)


def test_it_sleeps_while_nothing_happens(wire: Any, net: Net, rests: Any) -> None:
    w = wire()
    rests(net)
    before = w.tap.stats()
    rests(net)
    assert w.tap.stats() == before
