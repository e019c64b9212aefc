"""netdev stream: connections that are cut and come again (B22), and how often it tries; a QEMU killed and restarted under load."""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qnet import HostError, VirtualClock
from qnet.testing import Port

from .stream_world import MAX_FRAME, Repeater, World, client_of, frame, framed, unframed

MS = 1_000_000


@pytest.fixture
def worlds() -> Iterator[Any]:
    made: list[World] = []

    def make(*args: Any, **kwargs: Any) -> World:
        made.append(World(*args, **kwargs))
        return made[-1]

    yield make
    while made:
        made.pop().close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """On a port of its own; accept() waits."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        s.settimeout(60)
        yield s


def to(listener: socket.socket, *options: str) -> str:
    return ",".join([f"stream,id=n0,addr.type=inet,addr.host=127.0.0.1,addr.port={listener.getsockname()[1]}", *options])


def accept(w: World, listener: socket.socket) -> socket.socket:
    """The netdev's next connection."""
    w.until(lambda: select.select([listener], [], [], 0)[0])
    s = listener.accept()[0]
    w.connected()
    return s


SERVER = "stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0"


# ------------------------------------------------------------------------------------------------------------ how often


@pytest.mark.parametrize("option", ["reconnect-ms=2000", "reconnect=2"])
def test_attempts_on_the_networks_clock(worlds, tmp_path, option):
    """One at each interval, and only one: on a path, where connecting takes no time."""
    path = f"{tmp_path}/s"
    w = worlds(f"stream,id=n0,addr.type=unix,addr.path={path},{option}", clock=VirtualClock())
    assert w.n0.info_str == f"error: Failed to connect to '{path}': No such file or directory"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()
        s.setblocking(False)
        w.net.run_until(2000 * MS - 1)
        with pytest.raises(BlockingIOError):
            s.accept()
        w.net.run_until(2000 * MS)
        assert w.n0.attached
        peer, _ = s.accept()
        peer.close()
        w.net.run_until(2000 * MS)                          # notices; the next attempt is 2 s after that
        assert not w.n0.attached
        w.net.run_until(4000 * MS - 1)
        with pytest.raises(BlockingIOError):
            s.accept()
        w.net.run_until(4000 * MS)
        assert w.n0.attached
        s.accept()[0].close()
        with pytest.raises(BlockingIOError):
            s.accept()
    assert w.names() == ["CONNECTED", "DISCONNECTED", "CONNECTED"]


def test_for_ever_and_one_at_a_time(worlds, tmp_path, caplog):
    """A thousand failures: one timer, one line in the log."""
    path = f"{tmp_path}/s"
    w = worlds(f"stream,id=n0,addr.type=unix,addr.path={path},reconnect-ms=1", clock=VirtualClock())
    handled = 0
    for t in range(1, 1001):
        w.net.run_until(t * MS)
        handled += w.net.pump()
    assert handled == 0
    assert len(caplog.records) == 1
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()
        w.net.run_until(1001 * MS)
        assert w.n0.attached
        w.net.run_until(9999 * MS)
        s.setblocking(False)
        s.accept()[0].close()
        with pytest.raises(BlockingIOError):
            s.accept()


def test_without_reconnect_it_is_over(worlds, listener):
    w = worlds(to(listener))
    accept(w, listener).close()
    w.until(lambda: w.names() == ["CONNECTED", "DISCONNECTED"])
    assert w.n0.info_str == ""
    assert w.n0.link_down
    assert w.net.pump() == 0


@pytest.mark.parametrize("option", ["reconnect-ms=0", "reconnect=0"])
def test_nought_is_no_reconnect(worlds, tmp_path, option):
    with pytest.raises(HostError, match="reconnect-ms= tries again"):
        worlds(f"stream,id=n0,addr.type=unix,addr.path={tmp_path}/s,{option}")


def test_a_full_backlog_is_waited_for(worlds, tmp_path):
    """AF_UNIX says EAGAIN at once, and never tells when there is room."""
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen(0)
        other = socket.socket(socket.AF_UNIX)
        other.connect(path)
        w = worlds(f"stream,id=n0,addr.type=unix,addr.path={path}", clock=VirtualClock())
        assert w.n0.info_str == "connecting"
        s.accept()[0].close()
        other.close()
        w.net.run_until(200 * MS)
        assert w.n0.attached


# ------------------------------------------------------------------------------------------------------------- clean framing


def fill(w: World) -> int:
    """Send until frames wait; how many were sent. The last one under way is cut in the middle, most likely."""
    sent = 0
    while w.n0.queued < 10:
        w.nic.send([frame(sent, 1514)])
        sent += 1
        assert sent < 200_000
    return sent


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("flow_control", [False, True])
@pytest.mark.parametrize("read", [0, 3, 4, 700, 100_000])
def test_b22_nothing_of_the_old_connection_comes_over_the_new_one(worlds, listener, role, flow_control, read):
    w = worlds(SERVER if role == "server" else to(listener, "reconnect-ms=1"), port={"flow_control": flow_control})

    def peer() -> socket.socket:
        if role == "client":
            return accept(w, listener)
        s = client_of(w.n0)
        w.connected()
        return s

    old = peer()
    if flow_control:
        w.nic.post([frame(i, 1514) for i in range(20_000)])
        assert w.nic.backlog
        assert w.nic.blocked
    else:
        fill(w)
    assert not w.n0.can_receive
    got = b""
    while len(got) < read:
        got += old.recv(read - len(got))
    resumed = w.nic.resumed
    old.close()
    w.lost()
    assert w.n0.queued == 0
    if flow_control:
        assert w.nic.resumed > resumed
        w.until(lambda: w.nic.backlog == 0)                 # who waited goes on: without a peer the rest is dropped
        assert not w.nic.blocked
    new = peer()
    frames = [frame(1_000_000 + i, size) for i, size in enumerate([60, 1514, MAX_FRAME])]
    w.nic.send(frames)
    assert unframed(w.read(new, len(framed(frames)))) == frames
    new.sendall(framed(frames))
    assert w.received(3) == frames
    new.close()
    stats = w.n0.stats()
    assert set(stats["drops"]) <= {"link-down", "io"}
    assert not w.nic.breaches


def test_half_a_frame_from_the_old_peer_is_no_part_of_the_new_ones(worlds):
    w = worlds(SERVER)
    for rest in [b"\0", b"\0\0\0", struct.pack("!I", 100), struct.pack("!I", 100) + b"x" * 99]:
        with client_of(w.n0) as peer:
            w.connected()
            peer.sendall(framed([frame(1)]) + rest)
            assert w.received(1) == [frame(1)]
        w.lost()
    assert w.n0.stats()["drops"] == {"malformed": 4}
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(framed([frame(2)]))
        assert w.received(1) == [frame(2)]


def test_a_peer_that_goes_while_the_guest_has_no_room(worlds):
    """Its last frames come when there is room, then its end is seen, then the next peer is served."""
    w = worlds(SERVER, port={"capacity": 2})
    frames = [frame(i) for i in range(50)]
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(framed(frames))
        w.until(lambda: w.nic.capacity_left == 0)
    got = []
    while len(got) < 50:
        got += w.nic.recv()
        w.nic.room(5)
        w.net.pump()
    assert got == frames
    w.lost()
    w.nic.room(None)
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(framed([frame(99)]))
        assert w.received(1) == [frame(99)]


def test_deleted_while_the_guest_has_no_room(worlds):
    """What was read and not received is counted."""
    w = worlds(SERVER, port={"capacity": 2})
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(framed([frame(i) for i in range(50)]))
        w.until(lambda: w.nic.capacity_left == 0)
        w.n0.detach()
        assert w.n0.stats()["drops"] == {"purged": 48}
        w.nic.room(None)
        w.nic.send([frame(1)])
        assert not w.nic.breaches


# -------------------------------------------------------------------------------------------------------- QEMU, under load


class Load:
    """Frames from nic without end, as far as there is room, while the network runs in its own thread."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.halt = threading.Event()
        self.sent = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.halt.is_set():
            self.w.nic.send([frame(self.sent + i, 1514) for i in range(32)])
            self.sent += 32

    def stop(self) -> None:
        self.halt.set()
        self.thread.join()


@pytest.mark.qemu
@pytest.mark.parametrize("role", ["server", "client"])
def test_a_qemu_killed_and_restarted_under_load(worlds, tmp_path, role):
    """Each QEMU gets whole frames in order, and its own come back."""
    addr = f"addr.type=unix,addr.path={tmp_path}/s"
    ours, theirs = ("server=on", "server=off") if role == "server" else ("reconnect-ms=5", "server=on")
    w = worlds(f"stream,id=n0,{ours},{addr}")
    w.net.start()
    load = Load(w)
    try:
        for life in range(4):
            qemu = Repeater(f"stream,{theirs},{addr}")
            last = -1
            for _ in range(300):
                f = qemu.wire.recv(1 << 17)
                (n,) = struct.unpack_from("!I", f)
                assert f == frame(n, 1514)
                last = n
            assert last >= 0
            mark = frame(0xFFFF0000 + life, 99)
            qemu.wire.send(mark)
            seen: list[bytes] = []
            while mark not in seen:
                seen += w.nic.recv()
            qemu.kill()                                     # in the middle of whatever it reads
    finally:
        load.stop()
        w.net.stop()
    w.lost()
    lives = len(w.events) // 2                              # a dying QEMU may take one more connection
    assert w.names() == ["CONNECTED", "DISCONNECTED"] * lives
    assert lives >= 4
    assert not w.nic.breaches
    assert set(w.n0.stats()["drops"]) <= {"link-down", "io", "queue-full", "malformed"}


def test_a_port_of_a_hub_without_a_peer_holds_nobody_up(worlds):
    """Its frames are dropped, the other ports go on; then it takes part."""
    w = worlds()
    n0 = w.net.netdev_add(SERVER)
    other = w.net.netdev_add("socketpair,id=s")
    for name in "n0", "s", None:
        w.net.netdev_add(f"hubport,id=h{name},hubid=0" + (f",netdev={name}" if name else ""))
    w.nic.pair(w.net.client("hNone"))
    w.nic.send([frame(1)])
    assert other.socket.recv(100) == frame(1)
    with client_of(n0) as peer:
        w.until(lambda: n0.attached)
        w.nic.send([frame(2)])
        assert w.read(peer, 64) == framed([frame(2)])
        assert other.socket.recv(100) == frame(2)


def test_a_nic_is_not_told(worlds):
    """As in QEMU: its link stays up."""
    w = worlds(SERVER)
    nic = Port(w.net.loop, "card", is_nic=True)
    w.n0.unpair()
    nic.pair(w.n0)
    with client_of(w.n0):
        w.connected()
        assert not nic.link_down
    w.lost()
    assert not nic.link_down
    assert nic.link_changes == 0
    nic.close()
