"""dgram between two Nets and with raw sockets: frames and bursts, a peer without room, a full socket, peers that go and come back,
datagrams that mean harm (2.7, B21)."""

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qnet import HostError, Net, OptionError, VirtualClock
from qnet.testing import Port

from .dgram_peers import Lan, frame, free_ports, messages, namespace, stop, udp, unix

SIZES = (1, 13, 60, 1514, 9000, 65000)
KINDS = ["unix", "abstract", "udp", "udp6"]


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        try:
            s.bind(("::1", 0))
        except OSError:
            return False
        return True


class Raw:
    """A socket as the other end of a netdev, whose network is `lan`."""

    def __init__(self, kind: str, tmp_path: Path, **port: object) -> None:
        if kind in ("unix", "abstract"):
            abstract = kind == "abstract"
            names = [f"qnet-{os.getpid()}-{end}" if abstract else str(tmp_path / end) for end in ("a", "b")]
            options = ",local.abstract=on,remote.abstract=on" if abstract else ""
            self.there: object = ("\0" if abstract else "") + names[0]
            self.here: object = ("\0" if abstract else "") + names[1]
            self.family, spec = socket.AF_UNIX, unix("n0", *names) + options
        else:
            self.family, host = (socket.AF_INET, "127.0.0.1") if kind == "udp" else (socket.AF_INET6, "::1")
            ports = free_ports(2)
            self.there, self.here = ((host, port) for port in ports)
            spec = udp("n0", *ports, host=host)
        self.lan = Lan(spec, **port)
        self.bind()

    def bind(self) -> None:
        self.socket = socket.socket(self.family, socket.SOCK_DGRAM)
        if isinstance(self.here, str) and not self.here.startswith("\0"):
            Path(self.here).unlink(missing_ok=True)
        self.socket.bind(self.here)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def send(self, *frames: bytes) -> None:
        for f in frames:
            self.socket.sendto(f, socket.MSG_DONTWAIT, self.there)

    def fill(self) -> int:
        """Send until there is no room; how many frames went."""
        n = 0
        try:
            while True:
                self.send(frame(n))
                n += 1
        except BlockingIOError:
            return n

    def close(self) -> None:
        stop(self.socket, self.lan)


@pytest.fixture
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    kind = getattr(request, "param", "unix")
    if kind == "udp6" and not has_ipv6():
        pytest.skip("this host has no IPv6")
    r = Raw(kind, tmp_path)
    yield r
    r.close()


every_kind = pytest.mark.parametrize("raw", KINDS, indirect=True)
both_kinds = pytest.mark.parametrize("raw", ["unix", "udp"], indirect=True)


# -------------------------------------------------------------------------------------------------------------- traffic


@every_kind
def test_a_datagram_is_a_frame(raw: Raw) -> None:
    for size in SIZES:
        raw.send(frame(size, size))
        assert raw.lan.recv(1) == [frame(size, size)]
        raw.lan.port.send([[frame(size, size)[:1], frame(size, size)[1:]]])
        assert raw.socket.recv(1 << 17) == frame(size, size)
    assert raw.lan.drops() == {}


@every_kind
def test_two_nets(raw: Raw, tmp_path: Path) -> None:
    raw.socket.close()
    if raw.family == socket.AF_UNIX:
        names = [str(name).lstrip("\0") for name in (raw.here, raw.there)]
        spec = unix("n1", *names) + (",local.abstract=on,remote.abstract=on" if "\0" in str(raw.here) else "")
    else:
        spec = udp("n1", raw.here[1], raw.there[1], raw.here[0])  # type: ignore[index]
    other = Lan(spec)
    frames = [frame(i, 1514) for i in range(300)]
    got: list[bytes] = []
    for at in range(0, 300, 50):
        raw.lan.port.send(frames[at : at + 50])
        while len(got) < at + 50:
            got += other.recv(1)
            raw.lan.pump()
    assert got == frames
    other.port.send(frames[:40])
    got = []
    while len(got) < 40:
        got += raw.lan.recv(1)
        other.pump()
    assert got == frames[:40]
    assert raw.lan.drops() == other.drops() == {}
    other.close()


@both_kinds
def test_a_burst_is_one_system_call_and_one_delivery(raw: Raw) -> None:
    raw.send(*(frame(i) for i in range(8)))
    raw.lan.pump()
    assert raw.lan.port.recv() == [frame(i) for i in range(8)]
    assert raw.lan.port.bursts == 1
    stats = raw.lan.client.stats()
    assert (stats["syscalls"], stats["wakeups"]) == (1, 1)
    raw.lan.port.send([frame(i) for i in range(8)])
    assert raw.lan.client.stats()["syscalls"] == 2
    assert messages(raw.socket) == [frame(i) for i in range(8)]


@pytest.mark.parametrize("raw", ["udp"], indirect=True)
def test_frames_of_every_size_in_one_burst_keep_order_and_bounds(raw: Raw) -> None:
    """Frames of one size go to the kernel as one message (udp(7), UDP_SEGMENT); the other end sees none of that."""
    sizes = [100] * 20 + [60, 100, 100, 60, 60, 100, 99, 99, 98, 1514, 1514, 1, 1, 1, 2] + [1514] * 50
    sizes += [65000, 65000, 30, 65507] + [9000] * 8
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for at in range(0, len(sizes), 10):
        frames = [frame(at + i, size) for i, size in enumerate(sizes[at : at + 10])]
        raw.lan.port.send([[f[: len(f) // 3], f[len(f) // 3 :]] if len(f) > 5 else f for f in frames])
        assert messages(raw.socket) == frames
    assert raw.lan.drops() == {}


@pytest.mark.parametrize("raw", ["udp"], indirect=True)
def test_two_nets_exchange_bursts_in_few_datagrams(raw: Raw) -> None:
    """The kernel hands over what was sent as one message in one piece (UDP_GRO), and it is frames again."""
    raw.socket.close()
    other = Lan(udp("n1", raw.here[1], raw.there[1]))  # type: ignore[index]
    frames = [frame(i, 1000) for i in range(60)] + [frame(60, 500)]
    raw.lan.port.send(frames)
    assert other.recv(61) == frames
    assert other.client.stats()["syscalls"] == 1
    assert other.port.bursts == 1
    assert raw.lan.client.stats()["syscalls"] == 1
    other.close()


@pytest.mark.root
def test_a_path_that_cannot_segment() -> None:
    """The message would have to be cut by IP, which the kernel refuses to do to segments: frames go one by one."""
    import subprocess

    with namespace():
        subprocess.run(["ip", "link", "set", "lo", "mtu", "1400"], check=True)
        a, b = Lan(udp("n0", 5001, 5002)), Lan(udp("n1", 5002, 5001))
        frames = [frame(i, 1514) for i in range(10)] + [frame(i, 600) for i in range(10)]
        a.port.send(frames)
        assert b.recv(20) == frames
        a.port.send(frames)
        assert b.recv(20) == frames
        assert a.drops() == b.drops() == {}
        assert a.client.stats()["syscalls"] == 3            # one try, two bursts
        stop(a, b)


# --------------------------------------------------------------------------------------------------------- flow control


def test_a_full_socket_makes_its_own_frames_wait_and_no_wakeups(raw: Raw) -> None:
    """The receiver's queue is full (net.unix.max_dgram_qlen): our own socket is writable all the while."""
    frames = [frame(i, 1514) for i in range(500)]
    raw.lan.port.send(frames)
    waiting = raw.lan.client.queued
    assert 0 < waiting < 500
    wakeups = raw.lan.client.stats()["wakeups"]
    for _ in range(5):
        assert raw.lan.net.pump() == 0
    assert raw.lan.client.stats()["wakeups"] == wakeups
    got = []
    while len(got) < 500:
        more = messages(raw.socket)
        assert more
        got += more
        raw.lan.pump()
    assert got == frames
    assert raw.lan.drops() == {}


def test_a_receiver_with_a_long_queue_fills_our_own_buffer(raw: Raw, tmp_path: Path) -> None:
    """A receiver that is connected to us has no bound but our own send buffer."""
    raw.socket.connect(raw.there)
    frames = [frame(i, 1514) for i in range(1000)]
    raw.lan.port.send(frames)
    assert 0 < raw.lan.client.queued < 1000
    assert raw.lan.net.pump() == 0
    got = []
    while len(got) < 1000:
        got += messages(raw.socket)
        raw.lan.pump()
    assert got == frames


def test_the_other_ports_of_a_hub_go_on(tmp_path: Path) -> None:
    net = Net(clock=VirtualClock())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fine:
        nic = Port(net.loop, "nic")
        nic.pair(net.netdev_add("hubport,id=p,hubid=0"))
        for name, s in (("stuck", stuck), ("fine", fine)):
            s.bind(str(tmp_path / name))
            net.netdev_add(unix(name, tmp_path / f"our-{name}", tmp_path / name))
            net.netdev_add(f"hubport,id=port-{name},hubid=0,netdev={name}")
        got = []
        for i in range(0, 400, 4):
            nic.send([frame(i + k) for k in range(4)])
            got += messages(fine)
            net.pump()
        assert got == [frame(i) for i in range(400)]
        held = messages(stuck)
        assert held == [frame(i) for i in range(len(held))]
        assert net.client("stuck").queued == 400 - len(held)
    nic.close()
    net.close()


@both_kinds
def test_while_the_peer_has_no_room_nothing_is_read(raw: Raw, tmp_path: Path) -> None:
    raw.lan.port.close()
    slow = raw.lan.ports[0] = Port(raw.lan.net.loop, "slow", capacity=3)
    slow.pair(raw.lan.client)
    raw.send(*(frame(i) for i in range(8)))
    raw.lan.pump()
    raw.send(frame(8), frame(9))
    assert raw.lan.net.pump() == 0
    assert slow.recv() == [frame(i) for i in range(3)]
    assert raw.lan.client.stats()["syscalls"] == 1
    got = []
    while len(got) < 7:
        slow.room(2)
        raw.lan.pump()
        got += slow.recv()
    assert got == [frame(i) for i in range(3, 10)]
    assert slow.breaches == []


def test_no_room_in_the_middle_of_a_coalesced_datagram() -> None:
    ports = free_ports(2)
    a, b = Lan(udp("n0", *ports)), Lan(udp("n1", *reversed(ports)), capacity=7, asks=False)
    frames = [frame(i, 800) for i in range(64)] + [frame(64, 30)]
    a.port.send(frames)
    got = b.recv(7)
    while len(got) < 65:
        b.port.room(7)
        b.pump()
        got += b.port.recv()
    assert got == frames
    assert b.port.breaches == []
    stop(a, b)


# ---------------------------------------------------------------------------------------------------- peers that go and come


@pytest.mark.parametrize("raw", ["unix", "abstract"], indirect=True)
def test_a_unix_peer_that_is_gone_and_back(raw: Raw) -> None:
    raw.socket.close()
    raw.lan.port.send([frame(i) for i in range(100)])
    assert raw.lan.drops() == {"io": 100}
    assert raw.lan.client.stats()["syscalls"] <= 2          # one call finds out for a whole burst
    assert raw.lan.client.connected
    raw.bind()
    raw.lan.port.send([frame(1)])
    assert messages(raw.socket) == [frame(1)]
    raw.send(frame(2))
    assert raw.lan.recv(1) == [frame(2)]


@pytest.mark.parametrize("raw", ["udp"], indirect=True)
@pytest.mark.parametrize("connected", [False, True])
def test_a_udp_peer_that_is_gone_and_back(raw: Raw, connected: bool) -> None:
    """ECONNREFUSED is no end (2.7), of a connected socket that was handed in neither."""
    lan, port = raw.lan, raw.lan.port
    if connected:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("127.0.0.1", 0))
            s.connect(raw.here)
            raw.there = s.getsockname()
            lan = Lan(f"dgram,id=n1,local.type=fd,local.str={s.fileno()}")
            port = lan.port
    raw.socket.close()
    for i in range(20):
        port.send([frame(i)])
        lan.pump()
    assert lan.client.connected
    assert (lan.drops().get("io", 0) > 0) == connected      # who is not connected is not told
    raw.bind()
    port.send([frame(98)])                                  # this one may be told of the last one's fate
    port.send([frame(99)])
    assert messages(raw.socket)[-1] == frame(99)
    raw.send(frame(2))
    assert lan.recv(1) == [frame(2)]
    if connected:
        lan.close()


def test_frames_that_waited_for_a_peer_that_died_are_dropped(raw: Raw) -> None:
    raw.lan.port.send([frame(i, 1514) for i in range(500)])
    waiting = raw.lan.client.queued
    raw.socket.close()
    raw.lan.pump()
    assert raw.lan.drops() == {"io": waiting}
    assert raw.lan.client.queued == 0
    raw.bind()
    raw.lan.port.send([frame(1)])
    assert messages(raw.socket) == [frame(1)]


def test_frames_that_waited_go_to_who_binds_the_path_next(raw: Raw) -> None:
    """The receiver is bound anew while its old socket, full, is still open somewhere."""
    raw.lan.port.send([frame(i, 1514) for i in range(300)])
    old = raw.socket
    held = 300 - raw.lan.client.queued
    raw.bind()
    assert len(messages(old)) == held
    old.close()
    got = []
    while len(got) < 300 - held:
        raw.lan.pump()
        got += messages(raw.socket)
    assert got == [frame(i, 1514) for i in range(held, 300)]


def test_a_peer_connected_to_somebody_else_refuses(raw: Raw, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as third:
        third.bind(str(tmp_path / "third"))
        raw.socket.connect(str(tmp_path / "third"))
        raw.lan.port.send([frame(i) for i in range(30)])
        assert raw.lan.drops() == {"io": 30}


# ------------------------------------------------------------------------------------------------------------- bad input


@every_kind
def test_an_empty_datagram_is_dropped_and_no_end(raw: Raw) -> None:
    """B21: one packet from anybody muted QEMU's for good."""
    raw.send(b"", frame(1), b"", b"", frame(2), b"")
    assert raw.lan.recv(2) == [frame(1), frame(2)]
    raw.lan.pump()
    assert raw.lan.drops() == {"empty": 4}
    raw.send(b"")
    raw.lan.pump()
    raw.send(frame(3))
    assert raw.lan.recv(1) == [frame(3)]
    raw.lan.port.send([frame(4)])
    assert messages(raw.socket) == [frame(4)]


def test_a_datagram_too_long_for_a_frame(raw: Raw) -> None:
    raw.send(bytes(69633), frame(1))
    assert raw.lan.recv(1) == [frame(1)]
    assert raw.lan.drops() == {"oversize": 1}


@pytest.mark.parametrize("raw", ["udp"], indirect=True)
def test_a_frame_too_long_for_udp_is_dropped_the_others_go(raw: Raw) -> None:
    frames = [frame(1), frame(2, 65508), frame(3, 65508), frame(4)]
    raw.lan.port.send(frames)
    assert messages(raw.socket) == [frames[0], frames[3]]
    assert raw.lan.drops() == {"oversize": 2}


def test_a_flood_stays_bounded(raw: Raw) -> None:
    """Nobody reads: what does not fit into the queue is dropped and counted."""
    raw.lan.client.queue_limits = (100, 1 << 20)
    for i in range(50):
        raw.lan.port.send([frame(64 * i + k) for k in range(64)])
    held = len(messages(raw.socket))
    assert raw.lan.client.queued == 100
    assert raw.lan.drops() == {"queue-full": 3200 - held - 100}


@pytest.mark.parametrize("raw", ["udp"], indirect=True)
def test_errors_somebody_asked_for_do_not_keep_us_awake(raw: Raw) -> None:
    """IP_RECVERR on a socket that was handed in: epoll tells of unread reports without end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IP, 11, 1)
        s.bind(("127.0.0.1", 0))
        s.connect(raw.here)
        lan = Lan(f"dgram,id=n1,local.type=fd,local.str={s.fileno()}")
        raw.socket.close()
        lan.port.send([frame(1)])
        lan.pump()
        assert lan.client.connected
        lan.close()
    raw.bind()


def test_a_socket_that_was_shut_down_costs_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        s.connect(s.getsockname())
        lan = Lan(f"dgram,id=n0,local.type=fd,local.str={s.fileno()}")
        s.shutdown(socket.SHUT_RDWR)
        lan.pump()
        assert not lan.client.connected
        lan.port.send([frame(1)])
        assert lan.drops() == {"io": 1}
        lan.close()


# --------------------------------------------------------------------------------------------------------------- sockets


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_that_is_open_already(kind: int) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    with a, b:
        lan = Lan(f"dgram,id=n0,local.type=fd,local.str={a.fileno()}")
        assert lan.client.info_str == f"fd={a.fileno()} unix"
        b.send(frame(1))
        assert lan.recv(1) == [frame(1)]
        lan.port.send([frame(2)])
        assert b.recv(100) == frame(2)
        b.close()
        lan.port.send([frame(3)])
        lan.pump()
        assert lan.drops() == {"io": 1}
        assert lan.client.connected == (kind == socket.SOCK_DGRAM)
        lan.close()
        assert a.fileno() >= 0


def test_the_path_is_ours_until_we_close(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    stale.bind(str(ours))                               # as a killed run leaves it
    stale.close()
    lan = Lan(unix("n0", ours, tmp_path / "theirs"))
    assert lan.client.info_str == f"udp={ours}:{tmp_path / 'theirs'}"
    assert ours.is_socket()
    lan.close()
    assert not ours.exists()
    lan = Lan(unix("n0", ours, tmp_path / "theirs"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        ours.unlink()
        other.bind(str(ours))
        lan.close()
        assert ours.is_socket(), "somebody else's by now"


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with Net(clock=VirtualClock()) as net:
        with pytest.raises(HostError, match=r"can't bind unix=.*: Address already in use") as e:
            net.netdev_add(unix("n0", tmp_path / "file", tmp_path / "b"))
        assert "left alone" in e.value.hint
        assert (tmp_path / "file").read_text() == "precious"


def test_closed_in_every_state(tmp_path: Path) -> None:
    """nothing_left sees to it that the descriptors go with it."""
    for state in ("idle", "unread", "peer full", "socket full", "peer gone", "collected"):
        raw = Raw("unix", tmp_path, capacity=2)
        if state in ("unread", "peer full"):
            raw.send(*(frame(i) for i in range(8)))
        if state == "peer full":
            raw.lan.pump()
        if state in ("socket full", "peer gone"):
            raw.lan.port.send([frame(i) for i in range(300)])
        if state == "peer gone":
            raw.socket.close()
        if state == "collected":
            raw.socket.close()
            raw.lan.ports.pop().close()
            raw.lan.clients.clear()
            del raw.lan.net
            continue
        raw.lan.client.close()
        raw.lan.client.close()
        raw.lan.port.send([frame(1)])
        assert raw.lan.net.pump() == 0
        raw.close()


def test_no_descriptors_left_when_it_fails(tmp_path: Path) -> None:
    with Net(clock=VirtualClock()) as net:
        for spec in (
            unix("n0", tmp_path / "none" / "a", tmp_path / "b"),
            "dgram,id=n0,local.type=fd,local.str=999",
            udp("n0", 5, 6, "192.0.2.77"),
        ):
            with pytest.raises((HostError, OptionError)):
                net.netdev_add(spec)
        net.netdev_add(unix("n0", tmp_path / "a", tmp_path / "b"))
        with pytest.raises(OptionError, match="Duplicate ID"):
            net.netdev_add(unix("n0", tmp_path / "a", tmp_path / "b"))
        assert (tmp_path / "a").is_socket()


# ------------------------------------------------------------------------------------------------------------- multicast


@pytest.mark.root
def test_a_multicast_group() -> None:
    """Everybody hears everybody, and oneself too, as in QEMU (2.5)."""
    with namespace():
        spec = "dgram,id=n0,remote.type=inet,remote.host=230.0.0.1,remote.port=5007"
        lans = [Lan(spec), Lan(spec + ",local.type=inet,local.host=127.0.0.1,local.port=0"), Lan(spec)]
        assert [lan.client.info_str for lan in lans] == ["mcast=230.0.0.1:5007"] * 3
        frames = [frame(i, 1400) for i in range(20)] + [frame(20, 9000), frame(21, 1)]
        for sender in lans:
            sender.port.send(frames)
            for lan in lans:
                assert lan.recv(len(frames)) == frames
                assert lan.drops() == {}
        stop(*lans)


@pytest.mark.root
def test_a_multicast_socket_that_is_open_already() -> None:
    with namespace():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("230.0.0.2", 5008))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("230.0.0.2") + socket.inet_aton("127.0.0.1"))
            a = Lan(f"dgram,id=n0,local.type=fd,local.str={s.fileno()},remote.type=inet,remote.host=230.0.0.2,remote.port=5008")
        b = Lan("dgram,id=n1,remote.type=inet,remote.host=230.0.0.2,remote.port=5008")
        a.port.send([frame(1)])
        assert b.recv(1) == [frame(1)]
        b.port.send([frame(2)])
        assert a.recv(2) == [frame(1), frame(2)]
        stop(a, b)


def test_idle_costs_nothing(raw: Raw) -> None:
    """Nothing is due and nothing ready: the loop's descriptor is quiet."""
    raw.send(frame(1))
    assert raw.lan.recv(1) == [frame(1)]
    raw.lan.pump()
    assert select.select([raw.lan.net.fileno()], [], [], 0) == ([], [], [])
