"""pipe: frames over byte streams (X1). Any chunking gives the same frames, and a frame once begun is always finished."""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qnet import HostError, Net, OptionError, VirtualClock
from qnet._loop import Loop
from qnet.backends._stream import StreamClient
from qnet.testing import Port

MAX_FRAME = 69632
F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", 1031)


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5").ljust(size, b"\xa5")[:size]


def framed(frames: list[bytes]) -> bytes:
    return b"".join(struct.pack("!I", len(f)) + f for f in frames)


def unframed(stream: bytes) -> list[bytes]:
    """The frames of a whole stream; fails if it ends in the middle of one."""
    frames = []
    while stream:
        (size,) = struct.unpack_from("!I", stream)
        assert 0 < size <= MAX_FRAME
        assert len(stream) >= 4 + size
        frames.append(stream[4 : 4 + size])
        stream = stream[4 + size :]
    return frames


class World:
    """nic -- n0 == two pipes, or one stream socket: into() writes to it, out() reads from it."""

    def __init__(self, kind: str = "pipes", pipe_size: int = 0, **port: Any) -> None:
        self.loop = Loop(clock=VirtualClock())
        self.nic = Port(self.loop, "nic0", **port)
        if kind == "pipes":
            rfd, self.w = os.pipe()
            self.r, wfd = os.pipe()
            if pipe_size:
                for fd in rfd, wfd:
                    fcntl.fcntl(fd, F_SETPIPE_SZ, pipe_size)
            self.n0 = StreamClient(self.loop, "n0", "pipe", rfd=rfd, wfd=wfd)
            os.close(rfd)
            os.close(wfd)
        else:
            ours, theirs = socket.socketpair()
            self.n0 = StreamClient(self.loop, "n0", "pipe", rfd=ours.fileno(), wfd=ours.fileno())
            ours.close()
            self.r = theirs.detach()
            self.w = os.dup(self.r)
        for fd in self.r, self.w:
            os.set_blocking(fd, False)
        self.n0.pair(self.nic)

    def pump(self) -> None:
        for _ in range(100_000):
            if not self.loop.pump():
                return
        raise AssertionError("the loop never comes to rest")

    def into(self, data: bytes) -> None:
        """Write all of it, pumping when there is no room."""
        while data:
            try:
                data = data[os.write(self.w, data) :]
            except BlockingIOError:
                assert self.loop.pump()
        self.pump()

    def out(self, most: int = 1 << 30) -> bytes:
        """All that comes, pumping when there is nothing; at most so many bytes."""
        got = b""
        while len(got) < most:
            try:
                data = os.read(self.r, min(most - len(got), 1 << 20))
            except BlockingIOError:
                if not self.loop.pump():
                    break
                continue
            if not data:
                break
            got += data
        return got

    def close_r(self) -> None:
        os.close(self.r)
        self.r = -1

    def close_w(self) -> None:
        os.close(self.w)
        self.w = -1

    def close(self) -> None:
        self.n0.close()
        self.nic.close()
        self.loop.close()
        for fd in self.r, self.w:
            if fd >= 0:
                os.close(fd)
        vars(self).clear()


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    w = World(getattr(request, "param", "pipes"))
    yield w
    w.close()


both_kinds = pytest.mark.parametrize("world", ["pipes", "socket"], indirect=True)


# -------------------------------------------------------------------------------------------------------------- reading


@both_kinds
def test_frames_of_every_size(world: World) -> None:
    frames = [frame(i, size) for i, size in enumerate((1, 2, 13, 60, 1514, 65536, MAX_FRAME, 60))]
    world.into(framed(frames))
    assert world.nic.recv() == frames
    assert world.n0.stats()["drops"] == {}


@given(
    sizes=st.lists(st.one_of(st.integers(0, 80), st.sampled_from([1514, 4096, 65535, MAX_FRAME - 1, MAX_FRAME])), max_size=8),
    cuts=st.lists(st.one_of(st.integers(1, 6), st.integers(1, 100_000)), min_size=1, max_size=30),
)
@settings(deadline=None, max_examples=150)
def test_any_chunking_gives_the_same_frames(sizes: list[int], cuts: list[int]) -> None:
    frames = [frame(i, size) for i, size in enumerate(sizes)]
    stream = framed(frames)
    w = World()
    try:
        at = 0
        for cut in cuts:
            w.into(stream[at : at + cut])
            at += cut
        w.into(stream[at:])
        assert w.nic.recv() == [f for f in frames if f]
        empty = sizes.count(0)
        assert w.n0.stats()["drops"] == ({"empty": empty} if empty else {})
        assert w.n0.reading
    finally:
        w.close()


LENGTHS = [0, 1, MAX_FRAME, MAX_FRAME + 1, 1 << 31, (1 << 32) - 1]


@given(
    length=st.sampled_from(LENGTHS),
    cuts=st.lists(st.one_of(st.integers(1, 8), st.integers(1, 70_000)), max_size=20),
)
@example(length=0, cuts=[1] * 20)
@example(length=1, cuts=[1] * 20)
@example(length=MAX_FRAME, cuts=[1] * 20)
@example(length=MAX_FRAME + 1, cuts=[1] * 20)
@example(length=1 << 31, cuts=[1] * 20)
@example(length=(1 << 32) - 1, cuts=[1] * 20)
@settings(deadline=None, max_examples=150)
def test_cve_2007_5730_lengths_in_all_chunkings(length: int, cuts: list[int]) -> None:
    """6.3: what is too long ends the connection, both ways, after what came before it; nothing behind it is believed."""
    good = [frame(1), frame(2)]
    stream = framed(good) + struct.pack("!I", length) + (frame(3, length) if length <= MAX_FRAME else b"\xff" * 100) + framed([frame(4)])
    w = World()
    try:
        at = 0
        for cut in [*cuts, len(stream)]:
            piece = stream[at : at + cut]
            at += cut
            try:
                w.into(piece)
            except BrokenPipeError:
                assert length > MAX_FRAME
        if length > MAX_FRAME:
            assert w.nic.recv() == good
            assert not w.n0.reading
            assert not w.n0.writing
            assert w.n0.error == "Message too long"
            w.nic.send([frame(5)])
            assert w.n0.stats()["drops"] == {"malformed": 1, "io": 1}
            assert w.out() == b""
        else:
            assert w.nic.recv() == [*good, *([frame(3, length)] if length else []), frame(4)]
            assert w.n0.stats()["drops"] == ({} if length else {"empty": 1})
            assert w.n0.reading
    finally:
        w.close()


def test_many_frames_are_one_read_and_one_burst(world: World) -> None:
    frames = [frame(i) for i in range(64)]
    world.into(framed(frames))
    assert world.nic.recv() == frames
    assert world.nic.bursts == 1
    stats = world.n0.stats()
    assert (stats["syscalls"], stats["wakeups"]) == (1, 1)


@both_kinds
def test_while_the_peer_has_no_room_nothing_is_read(world: World) -> None:
    """No wake-ups meanwhile, not even for a hang-up; nothing is lost, and the end comes after the last frame."""
    world.nic.close()
    slow = Port(world.loop, "slow", capacity=3)
    world.n0.pair(slow)
    frames = [frame(i, 100) for i in range(200)]
    world.into(framed(frames))
    assert slow.recv() == frames[:3]
    world.close_w()
    world.close_r()
    wakeups = world.n0.stats()["wakeups"]
    assert world.loop.pump() == 0
    assert world.n0.stats()["wakeups"] == wakeups
    got = frames[:3]
    while len(got) < 200:
        slow.room(7)
        got += slow.recv()
    world.pump()
    assert got == frames
    assert slow.queued == 0
    assert slow.breaches == []
    assert not world.n0.reading
    assert world.n0.error is None
    slow.close()


def test_a_peer_that_flushes_in_its_receive_does_not_recurse() -> None:
    w = World(capacity=1, asks=False, reaction="flush")
    frames = [frame(i) for i in range(200)]
    w.into(framed(frames))
    assert w.nic.recv() == frames
    assert w.nic.breaches == []
    w.close()


@pytest.mark.parametrize("rest", [1, 3, 4, 5, 63])
def test_the_end_in_the_middle_of_a_frame(world: World, rest: int) -> None:
    world.into(framed([frame(1)]) + framed([frame(2)])[:rest])
    world.close_w()
    world.pump()
    assert world.nic.recv() == [frame(1)]
    assert world.n0.stats()["drops"] == {"malformed": 1}
    assert not world.n0.reading
    assert world.n0.writing
    world.nic.send([frame(3)])
    assert world.out() == framed([frame(3)])


def test_the_longest_frames_without_end(world: World) -> None:
    """Endless frames of the greatest length, in pieces: the buffer does not grow and no byte is mixed up."""
    frames = [frame(i, MAX_FRAME) for i in range(40)]
    stream = framed(frames)
    got = []
    for at in range(0, len(stream), 9973):
        world.into(stream[at : at + 9973])
        got += world.nic.recv()
    assert got == frames


# -------------------------------------------------------------------------------------------------------------- writing


@both_kinds
def test_sixty_four_frames_are_one_system_call(world: World) -> None:
    frames = [frame(i, 1 + i) for i in range(64)]
    world.nic.send([[f[:1], f[1:]] for f in frames])
    assert world.n0.stats()["syscalls"] == 1
    assert world.out() == framed(frames)


def test_more_pieces_than_one_system_call_takes(world: World) -> None:
    frames = [frame(i, 600) for i in range(64)]
    world.nic.send([[f[k : k + 10] for k in range(0, 600, 10)] for f in frames])
    assert unframed(world.out()) == frames


@given(
    kind=st.sampled_from(["pipes", "socket"]),
    sizes=st.lists(st.one_of(st.integers(1, 3000), st.sampled_from([4091, 4092, 4093, 8192, MAX_FRAME])), min_size=1, max_size=30),
    reads=st.lists(st.integers(1, 9000), max_size=60),
)
@settings(deadline=None, max_examples=100)
def test_a_slow_reader_gets_whole_frames_in_order(kind: str, sizes: list[int], reads: list[int]) -> None:
    frames = [frame(i, size) for i, size in enumerate(sizes)]
    w = World(kind, pipe_size=4096)
    try:
        half = len(frames) // 2
        w.nic.send(frames[:half])
        got = b""
        for n in reads:
            got += w.out(n)
        w.nic.send(frames[half:])
        got += w.out()
        assert unframed(got) == frames
        assert w.n0.stats()["drops"] == {}
        assert w.n0.queued == 0
    finally:
        w.close()


@given(taken=st.integers(1, 12_000), forget=st.sampled_from(["purge", "link", "unpair"]))
@settings(deadline=None, max_examples=60)
def test_a_frame_once_begun_is_finished_whatever_becomes_of_the_rest(taken: int, forget: str) -> None:
    """B22: frames that wait may be dropped; the stream still holds whole frames only."""
    w = World(pipe_size=4096)
    try:
        first = [frame(i, 3000) for i in range(10)]
        w.nic.send(first)
        waiting = w.n0.queued
        assert 0 < waiting < 10
        assert not w.n0.can_receive
        if forget == "purge":
            assert w.nic.purge() == waiting
        elif forget == "link":
            w.n0.set_link(False)
        else:
            w.n0.unpair()
            w.n0.pair(w.nic)
        got = w.out(taken)
        w.n0.set_link(True)
        w.nic.send([frame(99)])
        frames = unframed(got + w.out())
        assert frames[0] == first[0]
        assert frames[-1] == frame(99)
        assert [f for f in frames[:-1] if f not in first] == []
        assert len(frames) < 11
    finally:
        w.close()


@both_kinds
def test_sending_finds_out_that_the_reader_is_gone(world: World) -> None:
    world.close_r()
    world.close_w()                                         # a socket has both
    world.nic.send([frame(i) for i in range(10)])
    assert world.n0.stats()["drops"] == {"io": 10}
    assert not world.n0.writing
    assert world.n0.error == "Broken pipe"
    world.pump()


@both_kinds
def test_frames_that_waited_are_dropped_with_the_reader(world: World) -> None:
    """The one that was written in part too."""
    world.nic.send([frame(i, 3000) for i in range(500)])
    waiting = world.n0.queued
    assert waiting > 0
    world.close_r()
    world.close_w()
    world.pump()
    assert world.n0.queued == 0
    drops = world.n0.stats()["drops"]
    assert drops == {"io": drops["io"]}
    assert waiting <= drops["io"] <= waiting + 1
    assert not world.n0.writing


def test_a_reader_that_goes_does_not_end_the_process() -> None:
    """EPIPE, not SIGPIPE, even where SIGPIPE has its default action."""
    script = """
        import os, signal
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        from qnet._loop import Loop, VirtualClock
        from qnet.backends._stream import StreamClient
        from qnet.testing import Port

        loop = Loop(clock=VirtualClock())
        r, w = os.pipe()
        nic, n0 = Port(loop, "nic"), StreamClient(loop, "n0", "pipe", wfd=w)
        nic.pair(n0)
        os.close(r)
        nic.send([bytes(60)])
        assert not signal.sigpending()
        print(n0.error, n0.stats()["drops"], signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "Broken pipe {'io': 1} set()\n")


# -------------------------------------------------------------------------------------------------- descriptors, and the end


def test_the_callers_descriptors_stay_its_own(world: World) -> None:
    r, w = os.pipe()
    client = StreamClient(world.loop, "n1", "pipe", rfd=r, wfd=w)
    peer = Port(world.loop, "nic1")
    peer.pair(client)
    peer.send([frame(1)])                                   # the pipe leads back to itself
    world.pump()
    assert peer.recv() == [frame(1)]
    client.close()
    os.write(w, b"x")
    assert os.read(r, 10) == b"x"
    os.close(r)
    os.close(w)
    peer.close()


def test_one_direction_alone(world: World) -> None:
    r, w = os.pipe()
    sink = StreamClient(world.loop, "n1", "pipe", wfd=w)
    source = StreamClient(world.loop, "n2", "pipe", rfd=r)
    os.close(r)
    os.close(w)
    a, b = Port(world.loop, "a"), Port(world.loop, "b")
    a.pair(sink)
    b.pair(source)
    a.send([frame(1)])
    b.send([frame(2)])
    world.pump()
    assert b.recv() == [frame(1)]
    assert source.stats()["drops"] == {"io": 1}
    assert (sink.reading, sink.writing, source.reading, source.writing) == (False, True, True, False)
    for client in sink, source, a, b:
        client.close()


@pytest.mark.parametrize("kind", ["pipes", "socket"])
@pytest.mark.parametrize("state", ["idle", "unread", "torn in", "torn out", "peer full", "ended", "malformed", "unpaired"])
@pytest.mark.parametrize("collected", [False, True])
def test_it_can_be_closed_in_every_state(kind: str, state: str, collected: bool) -> None:
    w = World(kind, capacity=2)
    if state == "unread":
        os.write(w.w, framed([frame(1)]))
    if state == "torn in":
        w.into(framed([frame(1)])[:30])
    if state == "torn out":
        w.nic.send([frame(i, 3000) for i in range(500)])
        assert w.n0.queued
    if state == "peer full":
        w.into(framed([frame(i) for i in range(50)]))
    if state == "ended":
        w.close_w()
        w.close_r()
        w.pump()
    if state == "malformed":
        w.into(b"\xff" * 8)
    if state == "unpaired":
        w.n0.unpair()
    if collected:
        w.nic.close()
        del w.n0
        w.n0 = w.nic
        w.close()
    else:
        w.n0.close()
        w.n0.close()
        assert not w.n0.reading
        assert not w.n0.writing
        w.nic.send([frame(1)])
        assert w.loop.pump() == 0
        w.close()


def test_options() -> None:
    r, w = os.pipe()
    with Net(clock=VirtualClock()) as net:
        opened = net.netdev_add(f"pipe,id=n1,rfd={r},wfd={w}")
        assert (opened.name, opened.model, opened.info_str) == ("n1", "pipe", f"rfd={r},wfd={w}")
        assert net.netdev_add("pipe", id="n2", rfd=r).info_str == f"rfd={r}"
    os.close(r)
    os.close(w)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ("", OptionError, "pipe requires rfd= or wfd="),
        (",rfd=-1", OptionError, "Parameter 'rfd' doesn't take value '-1'"),
        (",rfd=0,wfd=-7", OptionError, "Parameter 'wfd' doesn't take value '-7'"),
        (",rfd=9999", HostError, "pipe: can't use rfd=9999: Bad file descriptor"),
        (",rfd={ok},wfd=9999", HostError, "pipe: can't use rfd={ok},wfd=9999: Bad file descriptor"),
    ],
)
def test_bad_options(options: str, error: type[Exception], text: str) -> None:
    r, w = os.pipe()
    with Net(clock=VirtualClock()) as net, pytest.raises(error) as e:
        net.netdev_add("pipe,id=n1" + options.format(ok=r))
    assert getattr(e.value, "text", "") == text.format(ok=r)
    os.close(r)
    os.close(w)


@pytest.mark.parametrize("which", ["rfd", "wfd"])
def test_a_file_is_no_stream(which: str) -> None:
    with open(__file__) as f, Net() as net, pytest.raises(HostError, match="it takes pipes and sockets, not files"):
        net.netdev_add(f"pipe,id=n1,{which}={f.fileno()}")
