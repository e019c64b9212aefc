"""socketpair: one message is one frame; flow control both ways; the end of the other end, in every state."""

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet import HostError, Net, OptionError, VirtualClock
from qnet._loop import Loop
from qnet.backends import socketpair
from qnet.backends._dgram import DgramClient
from qnet.backends.socketpair import SocketPair
from qnet.testing import Port

MAX_FRAME = 69632
TYPES = list(socketpair.TYPES)


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5").ljust(size, b"\xa5")[:size]


class World:
    """nic -- n0 == socket."""

    def __init__(self, socket_type: str = "seqpacket", **port: Any) -> None:
        self.loop = Loop(clock=VirtualClock())
        self.nic = Port(self.loop, "nic0", **port)
        self.n0 = SocketPair(self.loop, "n0", socket_type)
        self.n0.pair(self.nic)
        self.socket = self.n0.socket
        self.socket.setblocking(False)

    def pump(self) -> None:
        for _ in range(10_000):
            if not self.loop.pump():
                return
        raise AssertionError("the loop never comes to rest")

    def messages(self) -> list[bytes]:
        """All that waits at the other end, and what follows once there is room."""
        got = []
        while True:
            try:
                message = self.socket.recv(1 << 17)
            except BlockingIOError:
                if not self.loop.pump():
                    return got
                continue
            if not message:
                return got
            got.append(message)

    def close(self) -> None:
        self.n0.close()
        self.nic.close()
        self.loop.close()
        vars(self).clear()


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    w = World(getattr(request, "param", "seqpacket"))
    yield w
    w.close()


both_types = pytest.mark.parametrize("world", TYPES, indirect=True)


# -------------------------------------------------------------------------------------------------------------- traffic


@both_types
def test_a_message_is_a_frame(world: World) -> None:
    for size in (1, 13, 60, 1514, 9000, MAX_FRAME):
        world.socket.send(frame(size, size))
        world.pump()
        assert world.nic.recv() == [frame(size, size)]
        world.nic.send([[frame(size, size)[:1], frame(size, size)[1:]]])
        assert world.messages() == [frame(size, size)]
    assert world.n0.stats()["drops"] == {}
    assert world.n0.connected


@both_types
def test_bursts_are_few_system_calls(world: World) -> None:
    world.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    frames = [frame(i) for i in range(8)]
    for f in frames:
        world.socket.send(f)
    world.pump()
    assert world.nic.recv() == frames
    assert world.nic.bursts == 1
    stats = world.n0.stats()
    assert (stats["syscalls"], stats["wakeups"]) == (1, 1)
    world.nic.send(frames)
    assert world.n0.stats()["syscalls"] == 2
    assert world.messages() == frames


def test_sixty_four_frames_are_one_system_call(world: World) -> None:
    """UDP on the loopback interface, whose sockets hold more messages than AF_UNIX ones."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        for s in a, b:
            s.bind(("127.0.0.1", 0))
            s.setblocking(False)
        a.connect(b.getsockname())
        b.connect(a.getsockname())
        client = DgramClient(world.loop, "n1", "socketpair", a.fileno())
        peer = Port(world.loop, "nic1")
        peer.pair(client)
        peer.send([frame(i) for i in range(64)])
        assert client.stats()["syscalls"] == 1
        frames = [b.recv(100) for _ in range(64)]
        assert frames == [frame(i) for i in range(64)]
        for f in frames:
            b.send(f)
        world.pump()
        assert peer.recv() == frames
        assert peer.bursts == 2
        assert client.stats()["syscalls"] == 4                  # two reads, and one that finds nothing more
        client.close()
        peer.close()


@both_types
def test_what_finds_no_room_waits_and_follows_in_order(world: World) -> None:
    frames = [frame(i, 1514) for i in range(1000)]
    world.nic.send(frames)
    assert 0 < world.n0.queued < 1000
    assert world.messages() == frames
    assert world.n0.queued == 0
    assert world.n0.stats()["drops"] == {}


@both_types
def test_while_the_peer_has_no_room_nothing_is_read(world: World) -> None:
    """Flow control: what was not taken is kept, the rest stays in the socket; no wake-ups meanwhile, even when the socket is closed."""
    world.nic.close()
    slow = Port(world.loop, "slow", capacity=3)
    world.n0.pair(slow)
    sent = 0
    try:
        while True:
            world.socket.send(frame(sent))
            sent += 1
    except BlockingIOError:
        pass
    world.pump()
    assert slow.recv() == [frame(i) for i in range(3)]
    assert slow.queued == 0
    more = 0
    try:
        while True:
            world.socket.send(frame(sent))
            sent += 1
            more += 1
    except BlockingIOError:
        assert more > 0
    world.socket.close()
    wakeups = world.loop.wakeups
    assert world.loop.pump() == 0
    assert world.n0.stats()["wakeups"] == 1
    assert world.loop.wakeups == wakeups + 1
    got = []
    while len(got) < sent - 3:
        slow.room(5)
        world.pump()
        got += slow.recv()
    assert got == [frame(i) for i in range(3, sent)]
    assert slow.breaches == []
    slow.close()


def test_a_peer_that_flushes_in_its_receive_does_not_recurse() -> None:
    w = World(capacity=1, asks=False, reaction="flush")
    for i in range(10):
        w.socket.send(frame(i))
    w.pump()
    assert w.nic.recv() == [frame(i) for i in range(10)]
    assert w.nic.breaches == []
    w.close()


def test_super_frames_leave_as_segments(world: World) -> None:
    """The socket takes plain frames only; the core segments for it."""
    ip = bytes.fromhex("4500000000010000400600000a0000010a000002")
    tcp = bytes.fromhex("0001000200000001000000005010ffff00000000")
    payload = bytes(i & 0xFF for i in range(4000))
    offload = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    world.nic.send([bytes(12) + b"\x08\x00" + ip + tcp + payload], offload=offload)
    segments = world.messages()
    assert [len(s) - 54 for s in segments] == [1460, 1460, 1080]
    assert b"".join(s[54:] for s in segments) == payload


def test_in_the_networks_own_thread() -> None:
    loop = Loop()
    nic = Port(loop, "nic", reaction="echo")
    n0 = SocketPair(loop, "n0")
    n0.pair(nic)
    n0.socket.settimeout(30)
    loop.start()
    for i in range(200):
        n0.socket.send(frame(i))
        assert n0.socket.recv(100) == frame(i)
    loop.stop()
    n0.close()
    nic.close()
    loop.close()


@given(
    socket_type=st.sampled_from(TYPES),
    asks=st.booleans(),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("in"), st.integers(1, 40)),
            st.tuples(st.just("out"), st.integers(1, 90)),
            st.tuples(st.just("room"), st.integers(1, 30)),
            st.tuples(st.just("take"), st.integers(1, 30)),
            st.tuples(st.just("pump"), st.just(0)),
            st.tuples(st.just("repair"), st.just(0)),
        ),
        max_size=40,
    ),
)
@settings(deadline=None, max_examples=60)
def test_no_frame_is_lost_doubled_or_overtaken(socket_type: str, asks: bool, steps: list[tuple[str, int]]) -> None:
    """Whatever is slow, and when: both directions keep every frame in order."""
    w = World(socket_type, capacity=0, asks=asks)
    entered = left = 0
    arrived: list[bytes] = []
    taken: list[bytes] = []
    try:
        for what, n in steps:
            if what == "in":
                for _ in range(n):
                    try:
                        w.socket.send(frame(entered))
                    except BlockingIOError:
                        break
                    entered += 1
            elif what == "out":
                w.nic.send([frame(left + i) for i in range(n)])
                left += n
            elif what == "room":
                w.nic.room(n)
            elif what == "take":
                for _ in range(n):
                    try:
                        taken.append(w.socket.recv(100))
                    except BlockingIOError:
                        break
            elif what == "repair" and w.n0.queued == 0:
                w.n0.unpair()                   # frames in flight would be dropped as "purged"
                w.n0.pair(w.nic)
            else:
                w.loop.pump()
            arrived += w.nic.recv()
        w.nic.room(None)
        taken += w.messages()
        w.pump()
        arrived += w.nic.recv()
        drops = w.n0.stats()["drops"], w.nic.stats()["drops"]
        assert arrived == [frame(i) for i in range(entered)] or ("repair", 0) in steps
        assert taken == [frame(i) for i in range(left)]
        assert w.nic.breaches == [] or ("repair", 0) in steps       # a new peer tries its luck with a receiver that is full
        assert drops == ({}, {}) or ("repair", 0) in steps
    finally:
        w.close()


def test_a_new_peer_gets_what_follows(world: World) -> None:
    """A sender that was told "no room" goes on when its peer is gone: what it kept is dropped and counted, as it has no peer."""
    world.nic.close()
    full = Port(world.loop, "full", capacity=0)
    world.n0.pair(full)
    world.socket.send(frame(1))
    world.pump()
    world.n0.unpair()
    assert world.n0.stats()["drops"] == {"no-peer": 1}
    fresh = Port(world.loop, "fresh")
    world.n0.pair(fresh)
    world.socket.send(frame(2))
    world.pump()
    assert fresh.recv() == [frame(2)]
    full.close()
    fresh.close()


# ------------------------------------------------------------------------------------------------------------- bad input


@both_types
def test_an_empty_message_is_dropped_and_no_end(world: World) -> None:
    """B21: an empty datagram must not mute the netdev."""
    for message in (b"", frame(1), b"", b"", frame(2), b""):
        world.socket.send(message)
    world.pump()
    assert world.nic.recv() == [frame(1), frame(2)]
    assert world.n0.stats()["drops"] == {"empty": 4}
    world.socket.send(b"")
    world.pump()
    world.socket.send(frame(3))
    world.pump()
    assert world.nic.recv() == [frame(3)]
    assert world.n0.connected


@both_types
def test_a_message_too_long_is_dropped(world: World) -> None:
    world.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    world.socket.send(bytes(MAX_FRAME + 1))
    world.socket.send(frame(1))
    world.pump()
    assert world.nic.recv() == [frame(1)]
    assert world.n0.stats()["drops"] == {"oversize": 1}


def test_a_frame_too_long_for_the_socket_is_dropped_the_others_go(world: World) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        client = DgramClient(world.loop, "n1", "socketpair", a.fileno())
        sender = Port(world.loop, "n2")
        sender.pair(client)
        sender.send([frame(1), frame(2, 60_000), frame(3)])
        assert [b.recv(100), b.recv(100)] == [frame(1), frame(3)]
        assert client.stats()["drops"] == {"oversize": 1}
        assert client.connected
        client.close()
        sender.close()


# --------------------------------------------------------------------------------------------------- the other end's end


def test_what_was_sent_before_the_end_is_read(world: World) -> None:
    for i in range(5):
        world.socket.send(frame(i))
    world.socket.close()
    world.pump()
    assert world.nic.recv() == [frame(i) for i in range(5)]
    assert not world.n0.connected
    assert world.n0.error is None
    assert world.n0.stats()["drops"] == {}
    world.nic.send([frame(9), frame(10)])
    assert world.n0.stats()["drops"] == {"io": 2}


@both_types
def test_sending_finds_out_that_the_other_end_is_gone(world: World) -> None:
    world.socket.close()
    world.nic.send([frame(i) for i in range(100)])
    assert world.n0.stats()["drops"] == {"io": 100}
    assert world.n0.error is not None
    assert world.n0.queued == 0
    world.pump()
    assert not world.n0.connected


@both_types
def test_frames_that_waited_for_room_are_dropped_with_the_other_end(world: World) -> None:
    world.nic.send([frame(i) for i in range(1000)])
    waiting = world.n0.queued
    assert waiting > 0
    world.socket.close()
    world.pump()
    assert world.n0.queued == 0
    assert world.n0.stats()["drops"] == {"io": waiting}


def test_half_closed_the_other_half_lives(world: World) -> None:
    world.socket.send(frame(1))
    world.socket.shutdown(socket.SHUT_WR)
    world.pump()
    assert world.nic.recv() == [frame(1)]
    assert not world.n0.connected
    world.nic.send([frame(2)])
    assert world.messages() == [frame(2)]
    assert world.n0.stats()["drops"] == {}
    wakeups = world.n0.stats()["wakeups"]
    world.socket.close()
    world.pump()
    assert world.n0.stats()["wakeups"] == wakeups           # nobody waits for it any more
    world.nic.send([frame(3)])
    assert world.n0.stats()["drops"] == {"io": 1}


def test_closed_for_reading_only(world: World) -> None:
    world.socket.shutdown(socket.SHUT_RD)
    world.nic.send([frame(1)])
    assert world.n0.stats()["drops"] == {"io": 1}
    world.socket.send(frame(2))
    world.pump()
    assert world.nic.recv() == [frame(2)]


def test_a_dead_socket_costs_nothing(world: World) -> None:
    world.socket.close()
    world.pump()
    wakeups = world.n0.stats()["wakeups"]
    for _ in range(5):
        assert world.loop.pump() == 0
    assert world.n0.stats()["wakeups"] == wakeups


# ----------------------------------------------------------------------------------------------------- the client's own end


@pytest.mark.parametrize("state", ["idle", "unread", "peer full", "socket full", "ended", "half", "unpaired"])
@pytest.mark.parametrize("collected", [False, True])
def test_it_can_be_closed_in_every_state(state: str, collected: bool) -> None:
    """nothing_left sees to it that the descriptors go with it, closed or collected."""
    w = World(capacity=2)
    if state in ("unread", "peer full"):
        for i in range(8):
            w.socket.send(frame(i))
    if state == "peer full":
        w.pump()
    if state == "socket full":
        w.nic.send([frame(i) for i in range(1000)])
    if state == "ended":
        w.socket.close()
        w.pump()
    if state == "half":
        w.socket.shutdown(socket.SHUT_WR)
        w.pump()
    if state == "unpaired":
        w.n0.unpair()
    if collected:
        w.socket.close()
        w.nic.close()
        loop = w.loop
        vars(w).clear()
        loop.close()
    else:
        w.n0.close()
        w.n0.close()
        assert not w.n0.connected
        w.nic.send([frame(1)])
        assert w.loop.pump() == 0
        w.close()


def test_the_other_end_sees_it_close(world: World) -> None:
    mine = world.socket.dup()
    with mine:
        world.nic.send([frame(1)])
        world.n0.close()
        assert mine.recv(100) == frame(1)
        assert mine.recv(100) == b""
        with pytest.raises(BrokenPipeError):
            mine.send(frame(2))


def test_options() -> None:
    with Net(clock=VirtualClock()) as net:
        seqpacket, dgram = net.netdev_add("socketpair,id=n0"), net.netdev_add("socketpair,id=n1,socket-type=dgram")
        assert isinstance(seqpacket, SocketPair)
        assert isinstance(dgram, SocketPair)
        assert seqpacket.socket.type == socket.SOCK_SEQPACKET
        assert dgram.socket.type == socket.SOCK_DGRAM
        assert (dgram.name, dgram.model, dgram.info_str) == ("n1", "socketpair", "type=dgram")
        with pytest.raises(OptionError, match="does not accept value 'stream'"):
            net.netdev_add("socketpair,id=n2,socket-type=stream")
        net.netdev_del("n0")
        assert seqpacket.socket.fileno() == -1
    assert dgram.socket.fileno() == -1


def test_no_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(24, "Too many open files")

    with Net(clock=VirtualClock()) as net:
        monkeypatch.setattr(socket, "socketpair", refuse)
        with pytest.raises(HostError) as e:
            net.netdev_add("socketpair,id=n0")
        assert e.value.text == "can't create a socket pair: Too many open files"


def test_a_descriptor_that_is_not_open() -> None:
    loop = Loop(clock=VirtualClock())
    with pytest.raises(OSError, match="Bad file descriptor"):
        DgramClient(loop, "n0", "socketpair", 999)
    loop.close()
