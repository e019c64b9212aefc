"""netdev stream and peers that misbehave, a host without descriptors, and closing in every state."""

import contextlib
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qnet import Net
from qnet.testing import Port

from .stream_world import World, client_of, exists, frame, framed, unframed, until

SERVER = "stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0"


@pytest.fixture
def worlds() -> Iterator[Any]:
    made: list[World] = []

    def make(*args: Any, **kwargs: Any) -> World:
        made.append(World(*args, **kwargs))
        return made[-1]

    yield make
    while made:
        made.pop().close()


# ------------------------------------------------------------------------------------------------------------ hostile bytes


@pytest.mark.parametrize("length", [69633, 1 << 31, (1 << 32) - 1])
def test_a_length_that_cannot_be_ends_the_connection_and_nothing_else(worlds, length):
    """After what came before it; the next peer is served (6.3, CVE-2007-5730)."""
    w = worlds(SERVER)
    for life in range(3):
        peer = client_of(w.n0)
        w.connected()
        peer.sendall(framed([frame(1), frame(2)]) + struct.pack("!I", length) + framed([frame(3)]))
        assert w.received(2) == [frame(1), frame(2)]
        w.lost()
        assert w.n0.stats()["drops"] == {"malformed": life + 1}
        peer.close()
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(framed([frame(4)]))
        assert w.received(1) == [frame(4)]


def test_empty_frames_without_end(worlds):
    w = worlds(SERVER)
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(bytes(4 * 10_000) + framed([frame(1)]))
        assert w.received(1) == [frame(1)]
        assert w.n0.stats()["drops"] == {"empty": 10_000}


def test_what_comes_before_a_bad_length_waits_for_room_before_the_end(worlds):
    w = worlds(SERVER, port={"capacity": 1})
    with client_of(w.n0) as peer:
        w.connected()
        peer.sendall(framed([frame(i) for i in range(10)]) + b"\xff" * 4)
        w.until(lambda: w.nic.capacity_left == 0)
    got = []
    while len(got) < 10:
        got += w.nic.recv()
        w.nic.room(1)
    assert got == [frame(i) for i in range(10)]
    w.lost()
    assert w.n0.stats()["drops"] == {"malformed": 1}


# ------------------------------------------------------------------------------------------------------ peers that do not read


@pytest.mark.parametrize("start", [False, True])
def test_b27_a_peer_that_never_reads_holds_up_its_own_frames_only(worlds, start):
    """QEMU 7.2 blocks in the write for ever. The other port of the hub gets all, and the network goes on."""
    w = worlds()
    n0 = w.net.netdev_add(SERVER)
    for name in "n0", None:
        w.net.netdev_add(f"hubport,id=h{name},hubid=0" + (f",netdev={name}" if name else ""))
    w.nic.pair(w.net.client("hNone"))
    other = Port(w.net.loop, "other")
    other.pair(w.net.netdev_add("hubport,id=h2,hubid=0"))
    with client_of(n0):
        w.until(lambda: n0.attached)
        if start:
            w.net.start()
        n = 30_000
        got = 0
        for i in range(0, n, 50):
            w.nic.send([frame(i + k, 1514) for k in range(50)])
            got += len(other.recv())
            if not start:
                w.net.pump()
        w.net.stop()
        assert got == n
        stats = n0.stats()
        assert stats["queued"] == 10_000
        assert stats["rx_packets"] + stats["queued"] + stats["drops"]["queue-full"] == n
    w.until(lambda: not n0.attached)
    assert n0.queued == 0
    w.nic.send([frame(1)])
    assert other.recv() == [frame(1)]
    other.close()


def test_a_peer_that_reads_late_gets_whole_frames(worlds):
    w = worlds(SERVER)
    with client_of(w.n0) as peer:
        w.connected()
        sent = 0
        while not w.n0.queued:
            w.nic.send([frame(sent + i, 1 + (sent + i) * 7919 % 9000) for i in range(10)])
            sent += 10
        got = w.read(peer, sum(4 + 1 + i * 7919 % 9000 for i in range(sent)))
        assert unframed(got) == [frame(i, 1 + i * 7919 % 9000) for i in range(sent)]
        assert w.n0.stats()["drops"] == {}


# ------------------------------------------------------------------------------------------------------------ a flood, no fds


def test_a_flood_of_connections(worlds, tmp_path):
    """Each is accepted, one at a time; those that came and went cost two events each and leave nothing."""
    w = worlds(f"stream,id=n0,server=on,addr.type=unix,addr.path={tmp_path}/s")
    fds = len(os.listdir("/proc/self/fd"))
    halt = threading.Event()

    def flood() -> None:
        while not halt.is_set():
            with contextlib.suppress(OSError):
                client_of(w.n0).close()

    threads = [threading.Thread(target=flood) for _ in range(3)]
    for thread in threads:
        thread.start()
    w.until(lambda: len(w.events) > 400)
    halt.set()
    for thread in threads:
        while thread.is_alive():
            w.net.pump()
            thread.join(0.01)
    w.until(lambda: not w.net.pump() and not w.n0.attached)     # the last of them wait in the backlog
    with client_of(w.n0) as peer:
        peer.sendall(framed([frame(7)]))
        assert w.received(1) == [frame(7)]
    w.lost()
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert w.names() == ["CONNECTED", "DISCONNECTED"] * (len(w.events) // 2)


@contextlib.contextmanager
def no_more_fds() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    fill = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        yield
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_without_descriptors_accepts_later(worlds, caplog):
    """It neither spins nor gives up."""
    w = worlds(SERVER)
    with client_of(w.n0) as peer:
        with no_more_fds():
            w.until(lambda: "accept: Too many open files" in caplog.text)
            wakeups = w.net.loop.wakeups
            for _ in range(10):
                w.net.pump()
            assert w.net.loop.wakeups - wakeups == 10
            assert not w.n0.attached
        w.connected()
        peer.sendall(framed([frame(1)]))
        assert w.received(1) == [frame(1)]


def test_a_listening_descriptor_that_is_shut_down_elsewhere(worlds, caplog):
    """It is ready for ever and accepts nothing: asked ten times a second, not in a loop, and told once."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        w = worlds(f"stream,id=n0,server=on,addr.type=fd,addr.str={s.fileno()}")
        s.shutdown(socket.SHUT_RDWR)
    w.until(lambda: "accept: Invalid argument" in caplog.text)
    wakeups = w.net.loop.wakeups
    for _ in range(10):
        assert w.net.pump() == 0
    assert w.net.loop.wakeups - wakeups == 10
    w.until(lambda: w.net.pump())
    assert caplog.text.count("accept: ") == 1


def test_a_client_without_descriptors_tries_again(worlds, caplog):
    with socket.create_server(("127.0.0.1", 0)) as s:
        w = worlds()
        with no_more_fds():
            w.open(f"stream,id=n0,reconnect-ms=1,addr.type=inet,addr.host=127.0.0.1,addr.port={s.getsockname()[1]}")
            assert "Too many open files" in w.n0.info_str
        w.connected()


def test_without_descriptors_and_without_a_second_try_it_raises_and_leaves_nothing(worlds):
    w = worlds()
    for spec in SERVER, "stream,id=n0,addr.type=inet,addr.host=127.0.0.1,addr.port=9":
        with no_more_fds(), pytest.raises(OSError, match="Too many open files"):
            w.open(spec)
    assert w.net.clients == ()


# ----------------------------------------------------------------------------------------------------- closing in every state


def _listening(w: World, s: socket.socket, path: str) -> Any:
    w.open(SERVER)


def _connecting(w: World, s: socket.socket, path: str) -> Any:
    with contextlib.suppress(OSError):                      # an address for documentation: nobody answers
        w.open("stream,id=n0,addr.type=inet,addr.host=203.0.113.1,addr.port=9")


def _waiting_for_the_timer(w: World, s: socket.socket, path: str) -> Any:
    w.open(f"stream,id=n0,reconnect-ms=3600000,addr.type=unix,addr.path={path}")


def _waiting_for_a_backlog(w: World, s: socket.socket, path: str) -> Any:
    s.bind(path)
    s.listen(0)
    other = socket.socket(socket.AF_UNIX)
    other.connect(path)
    w.open(f"stream,id=n0,addr.type=unix,addr.path={path}")
    return other


def _connected(w: World, s: socket.socket, path: str) -> Any:
    w.open(SERVER)
    peer = client_of(w.n0)
    w.connected()
    return peer


def _torn_in(w: World, s: socket.socket, path: str) -> Any:
    peer = _connected(w, s, path)
    peer.sendall(framed([frame(1)])[:20])
    w.net.pump()
    return peer


def _torn_out(w: World, s: socket.socket, path: str) -> Any:
    peer = _connected(w, s, path)
    while not w.n0.queued:
        w.nic.send([frame(1, 1514)] * 64)
    return peer


def _lost_and_not_yet_told(w: World, s: socket.socket, path: str) -> Any:
    peer = _connected(w, s, path)
    peer.close()


STATES = [_listening, _connecting, _waiting_for_the_timer, _waiting_for_a_backlog, _connected, _torn_in, _torn_out, _lost_and_not_yet_told]


@pytest.mark.parametrize("state", STATES, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("how", ["netdev_del", "close", "client.close", "started"])
def test_closing(worlds, tmp_path, state, how):
    w = worlds()
    with socket.socket(socket.AF_UNIX) as s:
        peer = state(w, s, f"{tmp_path}/s")
        if how == "started":
            w.net.start()
        if how == "client.close" and w.net.clients:
            w.n0.close()
            w.n0.close()
            assert not w.n0.attached
            w.n0.detach()
        if how == "netdev_del" and w.net.clients:
            w.net.netdev_del("n0")
            w.net.pump()
            w.nic.send([frame(1)])
            w.net.netdev_add("null,id=n0")
        w.net.close()
        if peer is not None:
            peer.close()


def test_a_listening_file_is_gone_even_when_closed_from_an_event(tmp_path):
    """The callable of an event may delete the netdev it is about."""
    with Net() as net:
        n0 = net.netdev_add(f"stream,id=n0,server=on,addr.type=unix,addr.path={tmp_path}/s")
        gone = []
        net.on_event(lambda name, data: (net.netdev_del(data["netdev-id"]), gone.append(name)))
        with client_of(n0):
            until(lambda: gone, net)
        assert gone == ["NETDEV_STREAM_CONNECTED"]
        assert net.clients == ()
        assert not exists(f"{tmp_path}/s")
