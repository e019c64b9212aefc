"""netdev socket (2.5): listen, connect and fd with a QEMU in each role; mcast and udp; QEMU's error texts."""

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from qnet import Net
from qnet.errors import Error
from qnet.testing import Port

from .stream_world import MAX_FRAME, Repeater, World, client_of, frame, framed, resolvers_end, until

SIZES = [1, 60, 1514, 9000, MAX_FRAME]
SERVER = "socket,id=n0,listen=127.0.0.1:0"


@pytest.fixture
def worlds() -> Iterator[Any]:
    made: list[World] = []

    def make(*args: Any, **kwargs: Any) -> World:
        made.append(World(*args, **kwargs))
        return made[-1]

    yield make
    while made:
        made.pop().close()
    resolvers_end()


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def exchange(w: World, qemu: Repeater, sizes: list[int] = SIZES) -> None:
    for i, size in enumerate(sizes):
        w.nic.send([frame(i, size)])
        assert qemu.wire.recv(1 << 17) == frame(i, size)
        qemu.wire.send(frame(i, size))
        assert w.received(1) == [frame(i, size)]
    assert w.n0.stats()["drops"] == {}


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["socket", "stream"])
def test_a_qemu_connects_to_us(worlds, kind):
    """Killed twice; we listen again each time."""
    w = worlds(SERVER)
    for _ in range(2):
        assert w.n0.info_str == ""
        assert w.n0.link_down
        port = w.n0.bound["port"]
        options = f"connect=127.0.0.1:{port}" if kind == "socket" else f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"
        qemu = Repeater(f"{kind},{options}")
        w.connected()
        exchange(w, qemu)
        assert w.n0.info_str.startswith("socket: connection from 127.0.0.1:")
        qemu.kill()
        w.lost()
    assert w.events == []


@pytest.mark.qemu
def test_we_connect_to_a_qemu_once(worlds):
    port = free_port()
    qemu = Repeater(f"socket,listen=127.0.0.1:{port}")
    w = worlds(f"socket,id=n0,connect=127.0.0.1:{port}")
    w.connected()
    exchange(w, qemu)
    assert w.n0.info_str == f"socket: connect to 127.0.0.1:{port}"
    qemu.kill()
    w.lost()
    assert w.n0.info_str == ""
    w.nic.send([frame(1)])
    assert w.n0.stats()["drops"]["link-down"] == 1
    assert w.net.pump() == 0


@pytest.mark.qemu
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_over_a_descriptor(worlds, kind):
    ours, theirs = socket.socketpair(type=kind)
    qemu = Repeater(f"socket,fd={theirs.fileno()}", (theirs.fileno(),))
    theirs.close()
    w = worlds(f"socket,id=n0,fd={ours.fileno()}")
    assert w.n0.info_str == f"socket: fd={ours.fileno()}" + ("" if kind == socket.SOCK_STREAM else " unix")
    ours.close()
    exchange(w, qemu)
    qemu.kill()


@pytest.mark.qemu
def test_udp_with_a_qemu(worlds):
    ours, theirs = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_DGRAM)
    qemu = Repeater(f"socket,udp=127.0.0.1:{ours},localaddr=127.0.0.1:{theirs}")
    w = worlds(f"socket,id=n0,udp=127.0.0.1:{theirs},localaddr=127.0.0.1:{ours}")
    assert w.n0.info_str == f"socket: udp=127.0.0.1:{theirs}"
    assert qemu.info() == f"socket: udp=127.0.0.1:{ours}"
    exchange(w, qemu, [60, 1514, 9000])
    qemu.kill()


def test_a_multicast_group_of_three(worlds):
    """On the loopback interface; whoever sends hears itself too."""
    port = free_port(socket.SOCK_DGRAM)
    members = [worlds(f"socket,id=n0,mcast=239.1.1.1:{port},localaddr=127.0.0.1") for _ in range(3)]
    assert members[0].n0.info_str == f"socket: mcast=239.1.1.1:{port}"
    members[0].nic.send([frame(7)])
    got: list[list[bytes]] = [[], [], []]

    def all_have() -> bool:
        for i, w in enumerate(members):
            got[i] += w.nic.recv()
        return all(got)

    until(all_have, *(w.net for w in members))
    assert got == [[frame(7)]] * 3


def test_an_empty_datagram_does_not_end_it(worlds):
    """B21: QEMU never reads again."""
    ours = free_port(socket.SOCK_DGRAM)
    w = worlds(f"socket,id=n0,udp=127.0.0.1:9,localaddr=127.0.0.1:{ours}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", ours))
        s.send(b"")
        s.send(frame(1))
        assert w.received(1) == [frame(1)]


def test_b22_a_new_peer_gets_whole_frames(worlds):
    w = worlds(SERVER)
    old = client_of(w.n0)
    w.connected()
    while w.n0.queued < 10:
        w.nic.send([frame(1, 1514)] * 64)
    old.close()
    w.lost()
    assert w.n0.queued == 0
    with client_of(w.n0) as new:
        w.connected()
        w.nic.send([frame(2)])
        assert w.read(new, 64) == framed([frame(2)])
        new.sendall(struct.pack("!I", 69633))
        w.lost()


def test_a_name(worlds):
    w = worlds("socket,id=n0,listen=localhost:0")
    w.until(lambda: w.n0.bound)
    assert w.n0.bound["host"] == "127.0.0.1"


def test_the_legacy_form_puts_it_on_hub_0(worlds):
    """-net socket,listen=..."""
    w = worlds()
    w.net.net_add("socket,listen=127.0.0.1:0")
    [client] = [client for client in w.net.clients if client.model == "socket"]
    other = Port(w.net.loop, "other")
    other.pair(w.net.netdev_add("hubport,id=h,hubid=0"))
    with client_of(client) as peer:
        w.until(lambda: client.attached)
        other.send([frame(1)])
        assert w.read(peer, 64) == framed([frame(1)])
    other.close()


ERRORS = [
    ("", "exactly one of listen=, connect=, mcast= or udp= is required"),
    ("localaddr=x", "exactly one of listen=, connect=, mcast= or udp= is required"),
    ("fd=0,listen=:1", "exactly one of listen=, connect=, mcast= or udp= is required"),
    ("listen=:0,connect=1:1", "exactly one of listen=, connect=, mcast= or udp= is required"),
    ("listen=:0,localaddr=1", "localaddr= is only valid with mcast= or udp="),
    ("fd=0,localaddr=1:1", "localaddr= is only valid with mcast= or udp="),
    ("udp=127.0.0.1:1", "localaddr= is mandatory with udp="),
    ("udp=127.0.0.1:7802,localaddr=127.0.0.1", "host address '127.0.0.1' doesn't contain ':' separating host from port"),
    ("udp=127.0.0.1:1,localaddr=203.0.113.1:7", "can't bind ip=203.0.113.1 to socket: Cannot assign requested address"),
    ("listen=7795", "host address '7795' doesn't contain ':' separating host from port"),
    ("listen=", "host address '' doesn't contain ':' separating host from port"),
    ("listen=127.0.0.1:", "port number '' is invalid"),
    ("listen=127.0.0.1:abc", "port number 'abc' is invalid"),
    ("listen=::1:7795", "port number ':1:7795' is invalid"),
    ("listen=1.2.3.4.5:1", "host address '1.2.3.4.5' is not a valid IPv4 address"),
    ("connect=1.2.3.4.5:1", "host address '1.2.3.4.5' is not a valid IPv4 address"),
    ("connect=x", "host address 'x' doesn't contain ':' separating host from port"),
    ("listen=203.0.113.1:77", "can't bind ip=203.0.113.1 to socket: Cannot assign requested address"),
    ("mcast=1.2.3.4:5", "specified mcastaddr 1.2.3.4 (0x01020304) does not contain a multicast address"),
    ("mcast=239.1.1.1", "host address '239.1.1.1' doesn't contain ':' separating host from port"),
    ("mcast=239.1.1.1:7801,localaddr=x", "localaddr 'x' is not a valid IPv4 address"),
    ("fd=foo", "File descriptor named 'foo' has not been found"),
    ("fd=9999", "{id}: Can't use file descriptor 9999: Bad file descriptor"),
    ("listen=:1,bogus=1", "Invalid parameter 'bogus'"),
]


@pytest.mark.parametrize(("options", "text"), ERRORS)
def test_errors(options, text):
    with Net() as net:
        with pytest.raises(Error) as e:
            net.netdev_add("socket,id=n0," + options)
        assert e.value.text == text.format(id="n0")
        assert net.clients == ()


@pytest.mark.qemu
def test_a_qemu_says_the_same():
    qemu = Repeater("socket,listen=127.0.0.1:0")
    try:
        for options, text in ERRORS:
            said = qemu.qmp("human-monitor-command", **{"command-line": f"netdev_add type=socket,id=n0,{options}"})
            assert said.strip() == f"Error: {text.format(id='n0')}", options
    finally:
        qemu.close()


def test_descriptors_that_will_not_do(worlds):
    a, b = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with a, b, open("/dev/null") as f, socket.create_server(("127.0.0.1", 0)) as listening:
        for fd, text in [
            (a.fileno(), f"socket type=5 for fd={a.fileno()} must be either SOCK_DGRAM or SOCK_STREAM"),
            (f.fileno(), "can't get socket option SO_TYPE"),
            (listening.fileno(), f"File descriptor '{listening.fileno()}' is listening"),
        ]:
            with pytest.raises(Error) as e:
                worlds(f"socket,id=n0,fd={fd}")
            assert e.value.text == text


def test_a_port_that_is_taken(worlds):
    with socket.create_server(("127.0.0.1", 0)) as s, pytest.raises(Error) as e:
        worlds(f"socket,id=n0,listen=127.0.0.1:{s.getsockname()[1]}")
    assert e.value.text == "can't bind ip=127.0.0.1 to socket: Address already in use"


def test_nobody_there(worlds):
    w = worlds(f"socket,id=n0,connect=localhost:{free_port()}")
    w.until(lambda: w.n0.info_str)
    assert w.n0.info_str == "error: can't connect socket: Connection refused"
