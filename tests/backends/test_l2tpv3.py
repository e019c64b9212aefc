"""l2tpv3: the header as RFC 3931 has it, over UDP and raw IP; a QEMU as the other end; what strangers send (2.8, B1 to B4)."""

import itertools
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet import Net, VirtualClock
from qnet.errors import Error

from .dgram_peers import Lan, Qemu, frame, free_ports, messages, namespace, stop, unix

L2TP = 115
A, B = 0x11223344, 0x55667788
COOKIES = (0x0102030405060708, 0x1112131415161718)


class Header(NamedTuple):
    """What RFC 3931 (4.1 and figure 4.1.2.1) says is in a data message, read by hand."""

    session: int
    cookie: bytes
    counter: int | None
    payload: bytes

    @classmethod
    def read(cls, message: bytes, *, udp: bool, cookie: int = 0, counter: bool = False, offset: int = 0) -> "Header":
        if udp:
            flags, version, reserved = struct.unpack_from("!BBH", message)
            assert (flags, version, reserved) == (0, 3, 0)      # T=0: data; reserved bits 0
            message = message[4:]
        session, message = struct.unpack_from("!I", message)[0], message[4:]
        value, message = message[:cookie], message[cookie:]
        number = None
        if counter:
            number, message = struct.unpack_from("!I", message)[0], message[4:]
        assert message[:offset] == bytes(offset)                # QEMU sends what its memory holds
        return cls(session, value, number, message[offset:])


def both(ports: tuple[int, int] | None, host: str, more: str = "", swapped: str = "") -> tuple[str, str]:
    """The two ends of a tunnel, without an id. more: what they share; `swapped` has {a} and {b} for values that differ."""
    specs = []
    for mine, theirs, (a, b) in ((0, 1, (A, B)), (1, 0, (B, A))):
        spec = f"l2tpv3,id={{}},src={host},dst={host},txsession={a},rxsession={b}"
        if ports is not None:
            spec += f",udp=on,srcport={ports[mine]},dstport={ports[theirs]}"
        cookies = COOKIES if mine == 0 else COOKIES[::-1]
        specs.append(spec + more + swapped.format(a=cookies[0], b=cookies[1]))
    return specs[0], specs[1]


HEADERS = [
    ("", "", {}),
    (",counter=on", "", {"counter": True}),
    (",counter=on,pincounter=on", "", {"counter": True}),
    (",pincounter=on", "", {}),                                                     # B2: no counter, so none to pin
    ("", ",txcookie={a},rxcookie={b}", {"cookie": 4}),
    (",cookie64=on", ",txcookie={a},rxcookie={b}", {"cookie": 8}),
    (",cookie64=off,counter=on", ",txcookie={a},rxcookie={b}", {"cookie": 4, "counter": True}),     # B1
    (",cookie64=on", "", {}),
    (",offset=255,counter=on", "", {"offset": 255, "counter": True}),
    (",offset=7,cookie64=on", ",txcookie={a},rxcookie={b}", {"offset": 7, "cookie": 8}),
]


class Wire:
    """The netdev, and a socket where its other end would be."""

    def __init__(self, more: str = "", **port: Any) -> None:
        self.ports = free_ports(2)
        self.lan = Lan(f"l2tpv3,id=n0,src=127.0.0.1,dst=127.0.0.1,udp=on,srcport={self.ports[0]},dstport={self.ports[1]},"
                       f"txsession={A},rxsession={B}{more}", **port)  # fmt: skip
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", self.ports[1]))

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.socket.sendto(message, ("127.0.0.1", self.ports[0]))

    def close(self) -> None:
        stop(self.socket, self.lan)


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    w = Wire(getattr(request, "param", ""))
    yield w
    w.close()


# ---------------------------------------------------------------------------------------------------------------- the header


@pytest.mark.parametrize(("more", "swapped", "has"), HEADERS)
def test_what_is_sent(more: str, swapped: str, has: dict[str, Any]) -> None:
    w = Wire(more + swapped.format(a=COOKIES[0], b=COOKIES[1]))
    frames = [frame(i, 100 + i % 3) for i in range(20)]
    w.lan.port.send(frames)
    w.lan.port.send(frames[:2])
    got = [Header.read(message, udp=True, **has) for message in messages(w.socket)]
    assert [h.payload for h in got] == frames + frames[:2]
    assert {h.session for h in got} == {A}
    assert {h.cookie for h in got} == {COOKIES[0].to_bytes(8, "big")[8 - has.get("cookie", 0) :]}
    if has.get("counter"):
        assert [h.counter for h in got] == ([0] * 22 if "pincounter" in more else list(range(1, 23)))
    w.close()


def test_the_counter_counts_what_was_sent(wire: Wire) -> None:
    w = Wire(",counter=on")
    w.lan.port.send([frame(1), frame(2, 65508), frame(3)])
    got = [Header.read(message, udp=True, counter=True) for message in messages(w.socket)]
    assert [(h.counter, h.payload) for h in got] == [(1, frame(1)), (2, frame(3))]
    assert w.lan.drops() == {"oversize": 1}
    w.close()


def test_bursts_are_few_system_calls(wire: Wire) -> None:
    frames = [frame(i, 800) for i in range(64)]
    wire.lan.port.send(frames)
    assert wire.lan.client.stats()["syscalls"] == 1
    assert [message[8:] for message in messages(wire.socket)] == frames


# ------------------------------------------------------------------------------------------------------------------ two Nets


def meet(one: Lan, two: Lan, sizes: tuple[int, ...] = (1, 60, 1514, 9000, 65000)) -> None:
    for a, b in ((one, two), (two, one)):
        for size in sizes:
            a.port.send([[frame(size, size)[:1], frame(size, size)[1:]]])
            assert b.recv(1) == [frame(size, size)]
        frames = [frame(i, 1400) for i in range(40)] + [frame(40, 100)]
        a.port.send(frames)
        got: list[bytes] = []
        while len(got) < len(frames):
            got += b.recv(1)
        assert got == frames
        assert a.drops() == b.drops() == {}


@pytest.mark.parametrize(("more", "swapped", "has"), HEADERS)
def test_two_nets_over_udp(more: str, swapped: str, has: dict[str, Any]) -> None:
    ports = free_ports(2)
    ends = [Lan(spec.format("n0")) for spec in both((ports[0], ports[1]), "127.0.0.1", more, swapped)]
    assert ends[0].client.info_str == "l2tpv3: connected"
    meet(*ends)
    stop(*ends)


@pytest.mark.root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("ports", [(1701, 1702), None])
def test_two_nets_over_each_transport(host: str, ports: tuple[int, int] | None) -> None:
    """Raw IP: both ends hear what both send, and go by the session."""
    with namespace():
        more = ",counter=on,cookie64=on" + (",ipv6=on" if ":" in host else "")
        one, two = both(ports, host, more, ",txcookie={a},rxcookie={b}")
        if ports is None and ":" not in host:
            one, two = one.replace(f"src={host}", "src=127.0.0.2"), two.replace(f"dst={host}", "dst=127.0.0.2")
        if ports is None and ":" in host:
            pair = [Lan(one.format("n0")), Lan(two.format("n0"))]
            pair[0].port.send([frame(1)])
            assert pair[1].recv(1) == [frame(1)]
            pair[0].pump()
            assert pair[0].drops() == {"malformed": 1}          # its own
        else:
            pair = [Lan(one.format("n0")), Lan(two.format("n0"))]
            meet(*pair)
        stop(*pair)


@pytest.mark.root
def test_what_is_sent_over_raw_ip() -> None:
    with namespace(), socket.socket(socket.AF_INET, socket.SOCK_RAW, L2TP) as s:
        s.bind(("127.0.0.2", 0))
        lan = Lan(f"l2tpv3,id=n0,src=127.0.0.1,dst=127.0.0.2,txsession={A},rxsession={B},counter=on")
        lan.port.send([frame(1), frame(2)])
        for i in (1, 2):
            packet = s.recv(1000)
            assert packet[9] == L2TP
            assert Header.read(packet[(packet[0] & 15) * 4 :], udp=False, counter=True) == (A, b"", i, frame(i))
        # IP options make the header longer than the 20 bytes that QEMU takes for granted
        s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1" * 8)
        s.sendto(struct.pack("!II", B, 7) + frame(3), ("127.0.0.1", 0))
        assert lan.recv(1) == [frame(3)]
        lan.close()


# --------------------------------------------------------------------------------------------------------------- a real QEMU

QEMU_HEADERS = [
    ("", ""),
    (",counter=on", ""),
    (",counter=on,pincounter=on", ""),
    (",cookie64=on,counter=on", ",txcookie={a},rxcookie={b}"),
    (",offset=9", ""),
    (",cookie64=on,counter=on,offset=200", ",txcookie={a},rxcookie={b}"),
]


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.parametrize(("more", "swapped"), QEMU_HEADERS)
@pytest.mark.parametrize(("host", "ports"), [("127.0.0.1", (1701, 1702)), ("::1", (1701, 1702)), ("127.0.0.1", None)])
def test_a_qemu(more: str, swapped: str, host: str, ports: tuple[int, int] | None, tmp_path: Any) -> None:
    with namespace():
        one, two = both(ports, host, more + (",ipv6=on" if ":" in host else ""), swapped)
        if ports is None:
            one, two = one.replace(f"src={host}", "src=127.0.0.2"), two.replace(f"dst={host}", "dst=127.0.0.2")
        paths = tmp_path / "a", tmp_path / "b"
        qemu = Qemu(two.format("t"), unix("u", *reversed(paths)))
        lan = Lan(one.format("t"), unix("u", *paths))
        assert lan.clients[0].info_str in qemu.info()
        for a, b in ((0, 1), (1, 0)):
            for size in (60, 1000, 1514):                       # B3: QEMU cuts at 2048
                lan.ports[a].send([frame(size, size)])
                assert lan.recv(1, b) == [frame(size, size)]
            for n in range(0, 80, 8):                           # QEMU forgets what its unix socket has no room for, above 10
                frames = [frame(n + i, 1400) for i in range(8)]
                lan.ports[a].send(frames)
                got: list[bytes] = []
                while len(got) < len(frames):
                    got += lan.recv(1, b)
                assert got == frames
        assert lan.drops(0) == lan.drops(1) == {}
        stop(lan, qemu)


@pytest.mark.qemu
def test_a_qemu_with_cookies_of_32_bits(tmp_path: Any) -> None:
    """QEMU reads cookie64=off as on (B1), but sends and takes 32 bits when it is not given."""
    ports = free_ports(2)
    cookies = [c & 0xFFFFFFFF for c in COOKIES]
    specs = [spec + f",txcookie={cookies[i]},rxcookie={cookies[1 - i]}" for i, spec in enumerate(both((ports[0], ports[1]), "127.0.0.1"))]
    paths = tmp_path / "a", tmp_path / "b"
    qemu = Qemu(specs[1].format("t"), unix("u", *reversed(paths)))
    lan = Lan(specs[0].format("t"), unix("u", *paths))
    for a, b in ((0, 1), (1, 0)):
        lan.ports[a].send([frame(1)])
        assert lan.recv(1, b) == [frame(1)]
    stop(lan, qemu)


REFUSED: list[dict[str, Any]] = [
    {"src": None}, {"dst": None}, {"txsession": None},
    {"offset": 300, "txcookie": 1, "udp": True, "src": "not a name"},
    {"offset": 257},
    {"txcookie": 1, "udp": True, "src": "not a name"},
    {"rxcookie": 1},
    {"udp": True, "src": "not a name"},
    {"udp": True, "srcport": "5"},
    {"udp": True, "dstport": "5"},
    {"src": "not a name"}, {"src": ""}, {"dst": ""}, {"dst": "not a name"},
    {"src": "::1"}, {"src": "127.0.0.1", "ipv6": True},
    {"udp": True, "srcport": "x", "dstport": "5"},
    {"udp": True, "srcport": "5", "dstport": "x"},
    {"udp": True, "srcport": "5", "dstport": "x", "src": "192.0.2.7"},
    {"src": "192.0.2.7", "dst": "not a name"},
    {"txsession": 1 << 32}, {"offset": -1}, {"bogus": 1}, {"udp": "x"},
]  # fmt: skip


@pytest.mark.qemu
@pytest.mark.root
def test_what_is_refused() -> None:
    differ = []
    with namespace(), Net(clock=VirtualClock()) as net:
        theirs = Qemu()
        for i, change in enumerate(REFUSED):
            values = {"type": "l2tpv3", "id": f"d{i}", "src": "127.0.0.1", "dst": "127.0.0.2", "txsession": 1, **change}
            arguments = {key: value for key, value in values.items() if value is not None}
            said, answer = "", theirs.error(arguments)
            assert answer, arguments
            try:
                net.netdev_add(arguments)
            except Error as e:
                said = e.text
            if said != answer:
                differ.append((arguments, said, answer))
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with taken:
            taken.bind(("127.0.0.1", 1701))
            with pytest.raises(Error, match="could not bind socket err=98"):
                net.netdev_add("l2tpv3,id=x,src=127.0.0.1,dst=127.0.0.1,udp=on,srcport=1701,dstport=1702,txsession=1")
        assert net.stats() == []
        theirs.close()
    assert not differ, "\n".join(map(repr, differ))


def test_an_offset_of_256_is_refused() -> None:
    """B4: the text says "less than 256", and QEMU takes it."""
    with Net(clock=VirtualClock()) as net, pytest.raises(Error) as e:
        net.netdev_add("l2tpv3,id=x,src=127.0.0.1,dst=127.0.0.1,udp=on,srcport=5,dstport=6,txsession=1,offset=256")
    assert e.value.text == "offset must be less than 256 bytes"


# ------------------------------------------------------------------------------------------------------------------ strangers

GOOD = b"\0\3\0\0" + struct.pack("!I", B) + COOKIES[1].to_bytes(8, "big") + struct.pack("!I", 9) + bytes(5)
FULL = f",cookie64=on,txcookie={COOKIES[0]},rxcookie={COOKIES[1]},counter=on,offset=5"


@pytest.mark.parametrize("wire", [FULL], indirect=True)
def test_what_is_not_for_us_is_dropped_and_the_first_is_logged(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    bad = {
        "session mismatch": GOOD[:4] + b"\0" * 4 + GOOD[8:] + frame(1),
        "unknown cookie id": GOOD[:8] + b"\0" * 8 + GOOD[16:] + frame(1),
        "a datagram is no data message of version 3": b"\0\2" + GOOD[2:] + frame(1),
        "a datagram is too short": GOOD[:-1],
    }
    for i, message in enumerate(itertools.chain(bad.values(), [b"\xc8" + GOOD[1:] + frame(1), b"\0"])):
        wire.send(message, GOOD + frame(i))
        assert wire.lan.recv(1) == [frame(i)]
        assert wire.lan.drops() == {"malformed": i + 1}
    assert [record.message for record in caplog.records] == [
        "l2tpv3 n0: session mismatch; such datagrams are dropped and counted as malformed"
    ]
    for said, message in bad.items():
        caplog.clear()
        other = Wire(FULL)
        other.send(message, GOOD + frame(1))
        assert other.lan.recv(1) == [frame(1)]
        assert said in caplog.text
        other.close()


@pytest.mark.parametrize("wire", [FULL], indirect=True)
def test_empty_ones(wire: Wire) -> None:
    wire.send(b"", GOOD, GOOD + frame(1))
    assert wire.lan.recv(1) == [frame(1)]
    assert wire.lan.drops() == {"empty": 2}


PARTS = st.tuples(st.binary(max_size=40), st.integers(0, len(GOOD)), st.binary(max_size=60))


@settings(max_examples=60)
@given(st.lists(PARTS, max_size=8), st.sampled_from(["", FULL]))
def test_any_bytes(parts: list[tuple[bytes, int, bytes]], more: str) -> None:
    w = Wire(more)
    good = GOOD if more else GOOD[:8]
    sent = [front + good[:cut] + rest for front, cut, rest in parts]
    expected = [m[len(good) :] for m in sent if m[:1] < b"\x80" and m[1:2] and m[1] & 15 == 3 and len(m) > len(good)
                and m[4 : min(16, len(good))] == good[4:16]]  # fmt: skip
    w.send(*sent)
    w.lan.pump()
    assert w.lan.port.recv() == expected
    assert sum(w.lan.drops().values()) == len(sent) - len(expected)
    w.close()


@pytest.mark.root
def test_short_ip_packets() -> None:
    with namespace(), socket.socket(socket.AF_INET, socket.SOCK_RAW, L2TP) as s:
        lan = Lan(f"l2tpv3,id=n0,src=127.0.0.1,dst=127.0.0.2,txsession={A},rxsession={B}")
        for message in (b"", b"\0", struct.pack("!I", B)[:3], struct.pack("!I", A) + frame(9), struct.pack("!I", B) + frame(1)):
            s.sendto(message, ("127.0.0.1", 0))
        assert lan.recv(1) == [frame(1)]
        assert lan.drops() == {"malformed": 4}
        lan.close()


# ----------------------------------------------------------------------------------------------------- flow, and its own end


def test_while_the_peer_has_no_room_nothing_is_read() -> None:
    w = Wire(capacity=3)
    good = b"\0\3\0\0" + struct.pack("!I", B)
    w.send(*(good + frame(i) for i in range(10)))
    w.lan.pump()
    assert w.lan.port.recv() == [frame(i) for i in range(3)]
    got = []
    while len(got) < 7:
        w.lan.port.room(2)
        w.lan.pump()
        got += w.lan.port.recv()
    assert got == [frame(i) for i in range(3, 10)]
    assert w.lan.port.breaches == []
    w.close()


def test_nobody_there_is_no_end() -> None:
    w = Wire()
    w.socket.close()
    for i in range(5):
        w.lan.port.send([frame(i)])
        w.lan.pump()
    assert w.lan.client.connected
    w.close()


def test_closed_with_a_complaint_on_its_way() -> None:
    w = Wire()
    w.send(b"\0\3\0\0" + bytes(70))
    w.lan.net.loop.hold(True)
    w.lan.pump()
    w.lan.port.close()
    w.lan.clients.pop().close()
    w.lan.ports.clear()
    w.lan.net.loop.hold(False)
    w.lan.net.close()
    w.socket.close()
