"""py: batches of views that stay valid, bounded and counted; bursts out of anything with bytes; callables on any thread, one at a time."""

import array
import gc
import logging
import mmap
import re
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet import DeviceNotFound, DuplicateId, Net, OptionError, VirtualClock
from qnet._loop import Loop
from qnet.backends import _libpcap
from qnet.backends._pyclient import OffloadRecord, PyClient
from qnet.backends.py import Options, PyPort
from qnet.errors import Unavailable
from qnet.options import fields_of
from qnet.testing import Port, Source

MAX_FRAME = 69632


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5").ljust(size, b"\xa5")[:size]


class World:
    """nic -- p0."""

    def __init__(self, *, max_packets: int = 4096, max_bytes: int = 8 << 20, offloads: bool = False, capacity: int | None = None) -> None:
        self.loop = Loop(clock=VirtualClock())
        self.nic = Port(self.loop, "nic0", capacity=capacity, takes="all" if offloads else "plain")
        self.p0 = PyPort(self.loop, "p0", max_packets=max_packets, max_bytes=max_bytes, offloads=offloads)
        self.p0.pair(self.nic)
        self.batches: list[list[bytes]] = []

    def listen(self) -> None:
        self.p0.on_frames = lambda frames: self.batches.append([bytes(f) for f in frames])

    def received(self) -> list[bytes]:
        got = [f for batch in self.batches for f in batch]
        self.batches.clear()
        return got

    def close(self) -> None:
        self.p0.close()
        self.nic.close()
        self.loop.close()
        vars(self).clear()


Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    worlds: list[World] = []

    def make(**options: int) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    yield make
    for w in worlds:
        if vars(w):
            w.close()


# ----------------------------------------------------------------------------------------------------------- frames to Python


@pytest.mark.parametrize("size", [1, 13, 60, 1514, 9000, MAX_FRAME])
def test_frames_of_every_size_go_both_ways(make: Make, size: int) -> None:
    w = make()
    w.listen()
    w.nic.send([frame(1, size), [frame(2, size)[:1], frame(2, size)[1:]]])
    assert w.received() == [frame(1, size), frame(2, size)]
    assert w.p0.send_many([frame(3, size), frame(4, size)]) == 2
    assert w.nic.recv() == [frame(3, size), frame(4, size)]
    assert w.p0.stats()["drops"] == {}


def test_a_burst_is_a_batch(make: Make) -> None:
    w = make()
    w.listen()
    w.nic.send([frame(i) for i in range(130)])
    assert [len(batch) for batch in w.batches] == [64, 64, 2]
    assert w.p0.stats()["wakeups"] == 3
    assert w.received() == [frame(i) for i in range(130)]


def test_views_are_read_only_and_stay_what_they_were(make: Make) -> None:
    """A view that is kept is a frame that is kept: no later frame is written over it, with the client closed and gone too."""
    w = make()
    kept: list[memoryview] = []
    w.p0.on_frames = lambda frames: kept.extend(f[4:] if i % 2 else f for i, f in enumerate(frames))
    for i in range(40):
        w.nic.send([frame(64 * i + k) for k in range(64)])
    w.p0.close()
    w.close()
    gc.collect()
    assert [bytes(view) for view in kept] == [frame(i)[4 * (i % 2) :] for i in range(40 * 64)]
    for what in (lambda v: v.__setitem__(0, 1), lambda v: v.cast("B").__setitem__(0, 1)):
        with pytest.raises(TypeError, match="read-only"):
            what(kept[0])
    view = kept[0]
    assert (view.format, view.itemsize, view.ndim, view.contiguous, len(view), view.nbytes) == ("B", 1, 1, True, 60, 60)
    assert (view[-1], bytes(view[:4]), view.tobytes(), struct.unpack_from("!I", view)) == (0xA5, bytes(4), frame(0), (0,))
    assert hash(view) == hash(frame(0))


def test_memory_that_nobody_kept_is_used_again(make: Make) -> None:
    w = make()
    w.p0.on_frames = lambda frames: None
    w.nic.send([frame(i, 1514) for i in range(256)])
    before = w.loop.allocations
    for _ in range(50):
        w.nic.send([frame(i, 1514) for i in range(64)])
    assert w.loop.allocations == before


def test_released_views_and_lists_taken_apart_do_no_harm(make: Make) -> None:
    w = make()

    def on_frames(frames: list[memoryview]) -> None:
        frames[0].release()
        frames.pop()
        frames.append(frames[1])
        frames.reverse()

    w.p0.on_frames = on_frames
    for _ in range(20):
        w.nic.send([frame(i) for i in range(64)])
    w.listen()
    w.nic.send([frame(7)])
    assert w.received() == [frame(7)]


def test_without_a_callable_frames_wait_and_are_taken(make: Make) -> None:
    w = make()
    said = []
    w.p0.on_readable = lambda: said.append(w.p0.waiting)
    w.nic.send([frame(i) for i in range(70)])
    assert said[0] == (70, 70 * 60)
    assert [bytes(f) for f in w.p0.recv()] == [frame(i) for i in range(64)]
    assert [bytes(f) for f in w.p0.recv()] == [frame(i) for i in range(64, 70)]
    assert w.p0.recv() == []
    assert w.p0.waiting == (0, 0)
    w.nic.send([frame(1)])
    w.listen()                                      # what waited comes at once
    assert w.received() == [frame(1)]
    w.p0.on_frames = None
    w.nic.send([frame(2)])
    assert [bytes(f) for f in w.p0.recv()] == [frame(2)]


def test_it_holds_so_much_and_no_more(make: Make) -> None:
    """A sender that cannot wait loses the rest as "queue-full"; one that can is told."""
    w = make(max_packets=100)
    w.nic.send([frame(i) for i in range(300)])
    held = w.p0.waiting[0] + w.p0.queued
    assert w.p0.waiting[0] == 100
    assert w.p0.queued <= 64
    assert w.p0.stats()["drops"] == {"queue-full": 300 - held}
    w.listen()
    assert w.received() == [frame(i) for i in range(held)]
    w.nic.flow_control = True
    w.p0.on_frames = None
    w.nic.post([frame(i) for i in range(300)])
    assert w.nic.backlog == 200
    w.listen()
    assert w.received() == [frame(i) for i in range(300)]
    assert w.p0.stats()["drops"] == {"queue-full": 300 - held}


def test_it_holds_so_many_bytes_and_no_more(make: Make) -> None:
    w = make(max_bytes=100_000)
    w.nic.flow_control = True
    w.nic.post([frame(i, 9000) for i in range(30)])
    assert w.p0.waiting == (11, 99_000)
    w.listen()
    assert len(w.received()) == 30
    small = make(max_bytes=2000)
    small.listen()
    small.nic.send([frame(1, 3000), frame(2)])       # the first can never be held
    assert small.received() == [frame(2)]
    assert small.p0.stats()["drops"] == {"no-buffer": 1}


def test_a_pause_holds_the_sender(make: Make) -> None:
    w = make()
    w.listen()
    w.nic.flow_control = True
    w.p0.paused = True
    w.nic.post([frame(i) for i in range(10)])
    assert w.batches == []
    assert w.nic.blocked
    assert not w.p0.can_receive
    w.p0.paused = False
    assert w.received() == [frame(i) for i in range(10)]
    assert w.nic.backlog == 0


def test_pausing_in_the_callable_ends_after_its_batch(make: Make) -> None:
    w = make()

    def on_frames(frames: list[memoryview]) -> None:
        w.batches.append([bytes(f) for f in frames])
        w.p0.paused = True

    w.p0.on_frames = on_frames
    w.nic.send([frame(i) for i in range(128)])
    assert len(w.received()) == 64
    w.p0.paused = False
    assert len(w.received()) == 64


def test_offloads_come_with_their_records(make: Make) -> None:
    w = make(offloads=True)
    seen: list[tuple[int, OffloadRecord | None]] = []
    w.p0.on_frames = lambda frames: seen.extend((len(f), r) for f, r in zip(frames, w.p0.records, strict=True))
    gso = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    w.nic.send([frame(1, 9000), frame(2)], offload=[gso, None])
    assert seen == [(9000, OffloadRecord(**gso)), (60, None)]
    assert w.p0.send_many([frame(3, 9000), frame(4)], [OffloadRecord(**gso), None]) == 2
    assert [len(f) for f in w.nic.recv()] == [9000, 60]
    assert [r["gso_size"] for r in w.nic.offloads] == [1460, 0]
    with pytest.raises(ValueError, match="1 offload records for 2 frames"):
        w.p0.send_many([frame(1), frame(2)], [None])
    with pytest.raises(TypeError):
        w.p0.send_many([frame(1)], [OffloadRecord(flags="x")])
    assert w.nic.recv() == []


def test_without_offloads_packets_come_as_they_go_on_the_wire(make: Make) -> None:
    w = make()
    w.listen()
    ip = bytes.fromhex("4500000000010000400600000a0000010a000002")
    tcp = bytes.fromhex("0001000200000001000000005010ffff00000000")
    gso = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    w.nic.send([bytes(12) + b"\x08\x00" + ip + tcp + bytes(4000)], offload=gso)
    assert [len(f) for f in w.received()] == [1514, 1514, 1134]
    assert w.p0.records == []


def test_a_callable_that_raises_is_logged_and_the_network_goes_on(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    w = make()
    calls = 0

    def on_frames(frames: list[memoryview]) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("never mind")

    w.p0.on_frames = on_frames
    with caplog.at_level(logging.ERROR, "qnet.py"):
        w.nic.send([frame(i) for i in range(128)])
    assert calls == 2
    assert [r.message for r in caplog.records] == ["a callable of p0 failed"] * 2
    assert "never mind" in caplog.text
    caplog.clear()                                  # it knows the frames of the stack
    w.listen()
    w.nic.send([frame(1)])
    assert w.received() == [frame(1)]


@pytest.mark.parametrize("name", ["on_frames", "on_readable", "on_writable"])
def test_a_callable_is_one_or_none(make: Make, name: str) -> None:
    p0 = make().p0
    with pytest.raises(TypeError, match="a callable is wanted, or None, not int"):
        setattr(p0, name, 1)
    assert getattr(p0, name) is None


# -------------------------------------------------------------------------------------------------------- frames from Python


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview, lambda b: array.array("B", b), lambda b: memoryview(b"ab" + b)[2:]])
def test_anything_with_bytes_is_a_frame(make: Make, convert: Callable[[bytes], object]) -> None:
    w = make()
    assert w.p0.send_many(convert(frame(i)) for i in range(130)) == 130
    assert w.nic.recv() == [frame(i) for i in range(130)]
    assert w.nic.bursts == 3


def test_memory_that_is_mapped_is_a_frame(make: Make) -> None:
    w = make()
    with mmap.mmap(-1, 4096) as m:
        m[:60] = frame(1)
        with memoryview(m) as view:
            assert w.p0.send(view[:60])
        assert w.nic.recv() == [frame(1)]


def test_what_came_in_can_be_sent_on_as_it_is(make: Make) -> None:
    """No copy is needed, and none is made: a view lives as long as the call."""
    a, b = make(), make()
    a.p0.on_frames = b.p0.send_many
    a.nic.send([frame(i) for i in range(200)])
    assert b.nic.recv() == [frame(i) for i in range(200)]


def test_back_pressure(make: Make) -> None:
    w = make(capacity=100)
    said = []
    w.p0.on_writable = lambda: said.append(w.p0.writable)
    assert w.p0.send_many([frame(i) for i in range(150)]) == 100
    assert not w.p0.writable
    assert w.p0.send_many([frame(i) for i in range(100, 150)]) == 0
    assert not w.p0.send(frame(100))
    assert said == []
    w.nic.room(20)
    assert said == [True]
    assert w.p0.send_many([frame(i) for i in range(100, 150)]) == 20
    w.nic.room(None)
    assert said == [True, True]
    assert w.p0.send_many([frame(i) for i in range(120, 150)]) == 30
    assert w.nic.recv() == [frame(i) for i in range(150)]
    assert w.p0.stats()["drops"] == {}
    assert w.nic.stats()["queued"] == 0


def test_asking_whether_there_is_room_is_enough_to_be_told(make: Make) -> None:
    w = make(capacity=0)
    said = []
    w.p0.on_writable = lambda: said.append(1)
    assert not w.p0.writable
    w.nic.room(None)
    assert said == [1]


def test_what_is_no_frame_sends_nothing(make: Make) -> None:
    w = make()
    with pytest.raises(TypeError, match="a frame is a bytes-like object, not str"):
        w.p0.send_many([frame(1), "frame"])
    with pytest.raises(TypeError):
        w.p0.send_many(7)
    with pytest.raises(BufferError):
        w.p0.send_many([frame(1), memoryview(frame(2))[::2]])
    assert w.nic.recv() == []
    assert w.p0.send_many([]) == 0
    b = bytearray(frame(1))
    with pytest.raises(BufferError):
        w.p0.send_many([b, memoryview(b)[::2]])
    del b[:]                                        # nobody holds it any more


def test_empty_and_oversize_frames_are_dropped_and_counted(make: Make) -> None:
    w = make()
    assert w.p0.send_many([b"", frame(1), bytes(MAX_FRAME + 1), bytes(1 << 20), frame(2)]) == 5
    assert w.nic.recv() == [frame(1), frame(2)]
    assert w.nic.stats()["drops"] == {"empty": 1, "oversize": 2}


def test_a_buffer_may_change_size_again_after_the_call(make: Make) -> None:
    w = make()
    b = bytearray(frame(1))
    w.p0.send(b)
    b.extend(b"more")
    assert w.nic.recv() == [frame(1)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["in", "out"]), st.integers(1, 150)),
        st.tuples(st.just("room"), st.integers(1, 80)),
        st.tuples(st.sampled_from(["pause", "go on", "listen", "deaf", "take", "filter"]), st.just(0)),
    ),
    max_size=40,
)


@given(max_packets=st.integers(1, 100), steps=STEPS)
@settings(max_examples=100)
def test_no_frame_is_lost_doubled_or_overtaken(max_packets: int, steps: list[tuple[str, int]]) -> None:
    """Whatever is slow, and when: two senders that can wait, and every frame arrives once and in order."""
    w = World(max_packets=max_packets, capacity=0)
    w.nic.flow_control = True
    entered = left = 0
    arrived: list[bytes] = []
    backlog: list[bytes] = []

    def push() -> None:
        del backlog[: w.p0.send_many(backlog)]

    def take(frames: list[memoryview]) -> None:
        arrived.extend(map(bytes, frames))

    w.p0.on_writable = push
    try:
        for what, n in steps:
            if what == "in":
                w.nic.post([frame(entered + i) for i in range(n)])
                entered += n
            elif what == "out":
                backlog += [frame(left + i) for i in range(n)]
                left += n
                if w.p0.writable:
                    push()
            elif what == "room":
                w.nic.room(n)
            elif what in ("pause", "go on"):
                w.p0.paused = what == "pause"
            elif what == "listen":
                w.p0.on_frames = take
            elif what == "deaf":
                w.p0.on_frames = None
            elif what == "take":
                take(w.p0.recv())
            else:
                w.p0.filter = None if w.p0.filter else [(0x6, 0, 0, 1)]
        w.p0.paused = False
        w.p0.on_frames = take
        w.nic.room(None)
        assert arrived == [frame(i) for i in range(entered)]
        assert w.nic.recv() == [frame(i) for i in range(left)]
        assert backlog == []
        assert w.nic.breaches == []
        assert w.p0.stats()["drops"] == w.nic.stats()["drops"] == {}
    finally:
        w.close()


# -------------------------------------------------------------------------------------------------------------------- filters


def test_only_frames_that_match_come(make: Make) -> None:
    w = make()
    w.listen()
    w.p0.filter = "ether proto 0x88b5 and greater 100"
    w.nic.send([frame(1), frame(2, 100), [frame(3, 200)[:13], frame(3, 200)[13:]], bytes(300)])
    assert w.received() == [frame(2, 100), frame(3, 200)]
    assert w.p0.stats()["drops"] == {"address": 2}
    assert (w.p0.filter, w.p0.info_str) == ("ether proto 0x88b5 and greater 100", "filter=ether proto 0x88b5 and greater 100")
    w.p0.filter = [(0x30, 0, 0, 3), (0x16, 0, 0, 0)]                         # the fourth byte: 0 is no match
    w.nic.send([frame(256), frame(257)])
    assert w.received() == [frame(257)]
    w.p0.filter = None
    w.nic.send([frame(1)])
    assert w.received() == [frame(1)]


def test_filters_that_are_none(make: Make) -> None:
    w = make()
    w.listen()
    w.p0.filter = "ip"
    with pytest.raises(OptionError, match="expects a filter expression: can't parse filter expression: syntax error"):
        w.p0.filter = "tcp prt 80"
    with pytest.raises(ValueError, match="BPF instruction 0 is not valid"):
        w.p0.filter = [(0x15, 9, 9, 0), (6, 0, 0, 1)]
    with pytest.raises(ValueError, match="does not end with a return"):
        w.p0.filter = [(0, 0, 0, 0)]
    for size in (0, 1, 8 * 4097):
        with pytest.raises(ValueError, match="a BPF program has 1 to 4096 instructions"):
            w.p0.set_program(bytes(size))
    assert w.p0.filter == "ip"
    w.nic.send([frame(1)])
    assert w.received() == []                       # the old one stands


def test_without_libpcap_words_are_refused_with_the_packages_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libpcap, "SONAME", "libpcap.so.nowhere")
    _libpcap.library.cache_clear()
    try:
        with pytest.raises(Unavailable, match=r"needs libpcap; apt install libpcap0\.8"):
            make().p0.filter = "ip"
    finally:
        _libpcap.library.cache_clear()


# -------------------------------------------------------------------------------------------------------------------- threads


def test_a_callable_may_send_and_what_comes_back_comes_later(make: Make) -> None:
    """No recursion: on_frames runs once at a time, also for what it caused itself."""
    w = make()
    w.nic.reaction = "echo"
    depth = deepest = rounds = 0

    def on_frames(frames: list[memoryview]) -> None:
        nonlocal depth, deepest, rounds
        depth += 1
        deepest = max(deepest, depth)
        rounds += 1
        if rounds < 500:
            w.p0.send_many(frames)
        depth -= 1

    w.p0.on_frames = on_frames
    w.p0.send(frame(1))
    assert (deepest, rounds) == (1, 500)


def test_a_thread_is_not_held_for_ever() -> None:
    """Frames that never end, as in an echo: the caller gets away, the loop goes on with it."""
    with Net() as net:
        nic = Port(net.loop, "nic0", reaction="echo")
        p0 = PyClient(net.loop, "p0")
        p0.pair(nic)
        n = 0

        def on_frames(frames: list[memoryview]) -> None:
            nonlocal n
            n += len(frames)
            p0.send_many(frames)

        p0.on_frames = on_frames
        p0.send_many([frame(i) for i in range(64)])
        first = n
        assert first > 0
        while net.pump() == 0 or n == first:         # the timer is due at once
            pass
        p0.close()
        nic.close()


def test_one_call_at_a_time_whatever_thread_sends() -> None:
    with Net() as net:
        nics = [net.client("py", id=f"n{i}") for i in range(4)]
        for i, nic in enumerate(nics):
            net.netdev_add("hubport", id=f"h{i}", hubid=0, netdev=nic.name)
            nic.on_frames = lambda frames: None
        got: list[int] = []
        inside = 0

        def on_frames(frames: list[memoryview]) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            got.extend(struct.unpack_from("!I", f)[0] for f in frames)
            inside -= 1

        p0 = net.client("py", id="p0", on_frames=on_frames, max_packets=1 << 20, max_bytes=1 << 30)
        net.netdev_add("hubport,id=h9,hubid=0,netdev=p0")
        net.start()
        each = 3000

        def work(k: int) -> None:
            for i in range(0, each, 10):
                nics[k].send_many([frame(k << 16 | i + j) for j in range(10)])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        net.stop()
        for k in range(4):
            assert [n for n in got if n >> 16 == k] == [k << 16 | i for i in range(each)]
        assert inside == 0
        assert p0.stats()["drops"] == {}


def test_the_networks_own_thread_calls() -> None:
    with Net() as net:
        where: list[str] = []
        there = threading.Event()

        def on_frames(frames: list[memoryview]) -> None:
            where.append(threading.current_thread().name)
            there.set()

        net.netdev_add("py", id="p0", on_frames=on_frames)
        pair = net.netdev_add("socketpair,id=s0")
        net.netdev_add("hubport,id=h0,hubid=0,netdev=p0")
        net.netdev_add("hubport,id=h1,hubid=0,netdev=s0")
        net.start()
        pair.socket.send(frame(1))
        assert there.wait(30)
        net.stop()
        assert where == ["qnet"]


# ------------------------------------------------------------------------------------------------------------------------ life


@pytest.mark.parametrize("state", ["idle", "waiting", "paused", "full", "blocked", "unpaired", "kept"])
@pytest.mark.parametrize("collected", [False, True])
def test_it_can_be_closed_in_every_state(state: str, collected: bool) -> None:
    w = World(max_packets=10, capacity=2)
    kept: list[memoryview] = []
    if state == "paused":
        w.p0.paused = True
    if state in ("waiting", "paused"):
        w.nic.send([frame(i) for i in range(5)])
    if state == "full":
        w.nic.send([frame(i) for i in range(100)])
    if state == "blocked":
        w.p0.send_many([frame(i) for i in range(5)])
    if state == "unpaired":
        w.p0.unpair()
    if state == "kept":
        w.nic.send([frame(i) for i in range(5)])
        kept = w.p0.recv()
    if collected:
        w.nic.close()
        loop = w.loop
        gone = weakref.ref(w.p0)
        vars(w).clear()
        gc.collect()
        assert (gone() is None) == (state != "kept")
        kept.clear()
        assert gone() is None
        loop.close()
        return
    waiting = w.p0.waiting[0] + w.p0.queued
    w.p0.close()
    w.p0.close()
    assert w.p0.stats()["drops"].get("purged", 0) == waiting
    assert w.p0.waiting == (0, 0)
    assert w.p0.recv() == []
    assert w.p0.send(frame(1))
    assert w.p0.stats()["drops"]["no-peer"] == 1
    w.p0.paused = False
    w.p0.filter = "ip"
    w.listen()
    w.p0.on_frames = None
    assert [bytes(f) for f in kept] == [frame(i) for i in range(len(kept))]
    w.close()


def test_closing_in_its_own_callable(make: Make) -> None:
    w = make()
    batches = []

    def on_frames(frames: list[memoryview]) -> None:
        batches.append(len(frames))
        w.p0.close()
        assert bytes(frames[0]) == frame(0)

    w.p0.on_frames = on_frames
    w.nic.send([frame(i) for i in range(200)])
    assert batches == [64]
    assert w.p0.stats()["drops"]["purged"] >= 64


def test_a_callable_that_knows_its_client_does_not_keep_it(make: Make) -> None:
    w = make()
    p1 = PyPort(w.loop, "p1")
    p1.on_frames = lambda frames, port=p1: port.send_many(frames)
    gone = weakref.ref(p1)
    del p1
    gc.collect()
    assert gone() is None


def test_link_down(make: Make) -> None:
    w = make()
    w.listen()
    w.p0.set_link(False)
    w.nic.send([frame(1)])
    assert w.p0.send(frame(2))
    assert (w.received(), w.nic.recv()) == ([], [])
    assert w.p0.stats()["drops"] == {"link-down": 2}
    w.p0.set_link(True)
    w.nic.send([frame(3)])
    assert w.received() == [frame(3)]


# --------------------------------------------------------------------------------------------------------------------- options


def test_net_client_makes_one_and_still_looks_names_up() -> None:
    with Net() as net:
        got: list[bytes] = []
        port = net.client("py", on_frames=lambda frames: got.extend(map(bytes, frames)))
        assert isinstance(port, PyPort)
        assert (port.name, port.model) == ("py.0", "py")
        assert net.client("py.0") is port
        with pytest.raises(DeviceNotFound):
            net.client("py")
        other = net.client("py", on_frames=None)
        named = net.client("py", id="py", filter="ip", max_packets=7)
        assert (other.name, named.name, named.info_str) == ("py.1", "py", "filter=ip")
        assert net.client("py") is named
        with pytest.raises(DuplicateId):
            net.client("py", id="py")
        for i, name in enumerate(("py.0", "py")):
            net.netdev_add("hubport", id=f"h{i}", hubid=0, netdev=name)
        named.send(frame(1))
        assert got == [frame(1)]
        net.netdev_del("py.0")
        assert net.client("py", on_frames=print).name == "py.0"


def test_options() -> None:
    with Net() as net:
        for options, text in (
            ({"on_frames": 1}, "Invalid parameter type for 'on-frames', expected: callable"),
            ({"max_packets": 0}, "py requires max-packets= and max-bytes= above 0"),
            ({"max_bytes": 0}, "py requires max-packets= and max-bytes= above 0"),
            ({"max_packets": "x"}, "Parameter 'max-packets' expects uint64"),
            ({"filter": "nonsense here"}, "Parameter 'filter' expects a filter expression"),
            ({"on_frame": print}, "Parameter 'on_frame' is unexpected"),
        ):
            with pytest.raises(OptionError, match=text):
                net.netdev_add("py", id="p0", **options)
            assert net.clients == ()
        with pytest.raises(OptionError, match="expected: callable"):
            net.netdev_add("py,id=p0,on-frames=print")
        p0 = net.netdev_add("py,id=p0,max-packets=5,max-bytes=1M,offloads=on,filter=host 10.0.0.1 or (tcp and port 80)")
        assert isinstance(p0, PyPort)
        assert p0.offloads
        assert "p0: index=0,type=py,filter=host 10.0.0.1 or (tcp and port 80)" in net.info_network()


def test_the_page_names_every_option() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+\| *([^|]*?) *\|", page, re.M))
    specs = fields_of(Options)
    assert set(rows) == set(specs)
    for name, default in rows.items():
        assert default == (specs[name].kind.show(specs[name].default) if specs[name].default is not None else ""), name


def test_a_source_in_c_loses_nothing(make: Make) -> None:
    w = make()
    source = Source(w.loop, size=60, flow_control=True)
    w.p0.unpair()
    w.p0.pair(source)
    numbers: list[int] = []
    w.p0.on_frames = lambda frames: numbers.extend(struct.unpack_from("=Q", f, 14)[0] for f in frames)
    source.drive(20_000)
    assert numbers == list(range(20_000))
    source.close()
