"""netdev stream: options and errors (2.6), listening and connecting, what users see; frames both ways with a QEMU in each role."""

import errno
import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qnet import HostError, Net, OptionError
from qnet.errors import Error

from .stream_world import MAX_FRAME, Repeater, World, client_of, exists, frame, framed, joined, resolvers_end, until


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


@pytest.fixture
def qemus() -> Iterator[Any]:
    made: list[Repeater] = []

    def make(*args: Any) -> Repeater:
        made.append(Repeater(*args))
        return made[-1]

    yield make
    while made:
        made.pop().close()


# --------------------------------------------------------------------------------------------------------------- QEMU as peer

SIZES = [1, 14, 59, 60, 61, 1514, 4096, 9000, 65549, MAX_FRAME]


def exchange(w: World, qemu: Repeater, sizes: list[int]) -> None:
    """Frames of each size in both directions come out as they went in."""
    frames = [frame(i, size) for i, size in enumerate(sizes)]
    for f in frames:
        w.nic.send([f])
        assert qemu.wire.recv(1 << 17) == f
    for f in frames:
        qemu.wire.send(f)
        assert w.received(1) == [f]
    assert w.n0.stats()["drops"] == {}


@pytest.mark.qemu
@pytest.mark.parametrize("address", ["unix", "abstract", "inet", "inet6"])
def test_a_qemu_connects_to_us(worlds, qemus, tmp_path, address):
    addr = {
        "unix": f"addr.type=unix,addr.path={tmp_path}/s",
        "abstract": f"addr.type=unix,addr.abstract=on,addr.path=qnet-{os.getpid()}",
        "inet": "addr.type=inet,addr.host=127.0.0.1,addr.port=0",
        "inet6": "addr.type=inet,addr.host=::1,addr.port=0",
    }[address]
    w = worlds(f"stream,id=n0,server=on,{addr}")
    assert w.n0.info_str == "listening"
    assert w.n0.link_down
    qemu = qemus(f"stream,{addr.replace('port=0', 'port=' + w.n0.bound.get('port', ''))}")
    w.connected()
    assert not w.n0.link_down
    exchange(w, qemu, SIZES)
    if "inet" in address:                               # to each the other end
        assert w.n0.info_str == f"tcp:{w.n0.remote['host']}:{w.n0.remote['port']}"
        assert qemu.info() == f"tcp:{w.n0.bound['host']}:{w.n0.bound['port']}"
    else:                                               # to both its path
        assert w.n0.info_str == qemu.info() == f"unix:{w.n0.bound['path']}"
        assert w.events == [("NETDEV_STREAM_CONNECTED", {"netdev-id": "n0", "addr": w.n0.bound})]
    qemu.kill()
    w.lost()
    assert w.n0.link_down
    assert w.n0.info_str == "listening"
    assert w.names() == ["CONNECTED", "DISCONNECTED"]
    assert w.events[1] == ("NETDEV_STREAM_DISCONNECTED", {"netdev-id": "n0"})


@pytest.mark.qemu
@pytest.mark.parametrize("address", ["unix", "abstract", "inet"])
def test_we_connect_to_a_qemu(worlds, qemus, tmp_path, address):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    addr = {
        "unix": f"addr.type=unix,addr.path={tmp_path}/s",
        "abstract": f"addr.type=unix,addr.abstract=on,addr.tight=off,addr.path=qnet-{os.getpid()}",
        "inet": f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
    }[address]
    qemu = qemus(f"stream,server=on,{addr}")
    w = worlds(f"stream,id=n0,reconnect-ms=10,{addr}")
    w.connected()
    exchange(w, qemu, SIZES)
    if address == "inet":
        assert w.events == [("NETDEV_STREAM_CONNECTED", {"netdev-id": "n0", "addr": {
            "type": "inet", "host": "127.0.0.1", "port": str(port), "ipv4": True}})]  # fmt: skip
        assert w.n0.info_str == f"tcp:127.0.0.1:{port}"
    else:
        assert w.n0.info_str == qemu.info()
        assert w.events[0][1]["addr"] == qemu.events[0][1]["addr"]


@pytest.mark.qemu
def test_over_descriptors(worlds, qemus):
    """Of a connection on both sides."""
    ours, theirs = socket.socketpair()
    qemu = qemus(f"stream,addr.type=fd,addr.str={theirs.fileno()}", (theirs.fileno(),))
    theirs.close()
    w = worlds(f"stream,id=n0,addr.type=fd,addr.str={ours.fileno()}")
    ours.close()
    assert w.n0.attached
    assert w.names() == ["CONNECTED"]
    exchange(w, qemu, SIZES)
    assert w.n0.info_str == qemu.info() == "unix:"
    assert w.events == [("NETDEV_STREAM_CONNECTED", {"netdev-id": "n0", "addr": {"type": "unix", "path": ""}})]


@pytest.mark.qemu
def test_bursts_both_ways_at_once(worlds, qemus, tmp_path):
    """Each frame is echoed at QEMU's far end; all come back, in order. No more are under way than QEMU keeps in order (B24)."""
    w = worlds(f"stream,id=n0,server=on,addr.type=unix,addr.path={tmp_path}/s")
    qemu = qemus(f"stream,addr.type=unix,addr.path={tmp_path}/s")
    w.connected()
    n, most = 5000, 40
    frames = [frame(i, 60 + i % 1454) for i in range(n)]

    def echo() -> None:
        for _ in range(n):
            qemu.wire.send(qemu.wire.recv(1 << 17))

    thread = threading.Thread(target=echo)
    thread.start()
    got = []
    for i in range(0, n, most):
        w.nic.send(frames[i : i + most])
        got += w.received(most)
    thread.join()
    assert got == frames
    assert w.n0.stats()["drops"] == {}


# ---------------------------------------------------------------------------------------------------------- a plain socket as peer


def test_one_peer_at_a_time_the_others_wait(worlds):
    """B19: as in QEMU; when the first goes the next one is served."""
    w = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0")
    first = client_of(w.n0)
    w.connected()
    second = client_of(w.n0)
    second.sendall(framed([frame(2)]))
    first.sendall(framed([frame(1)]))
    assert w.received(1) == [frame(1)]
    first.close()
    assert w.received(1) == [frame(2)]
    second.close()
    w.until(lambda: w.names() == ["CONNECTED", "DISCONNECTED"] * 2)


def test_until_somebody_is_connected_frames_are_dropped(worlds):
    w = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0")
    w.nic.send([frame(1), frame(2)])
    assert w.n0.stats()["drops"] == {"link-down": 2}
    with client_of(w.n0) as peer:
        w.connected()
        w.nic.send([frame(3)])
        assert w.read(peer, 64) == framed([frame(3)])
    w.lost()
    w.nic.send([frame(4)])
    assert w.n0.stats()["drops"] == {"link-down": 3}
    assert w.n0.queued == 0
    assert not w.nic.breaches


def test_a_link_that_the_user_took_down_stays_down(worlds):
    """QEMU forgets that when a peer comes."""
    w = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0")
    w.net.set_link("n0", False)
    peer = client_of(w.n0)
    w.connected()
    w.nic.send([frame(1)])
    assert w.n0.stats()["drops"] == {"link-down": 1}
    w.net.set_link("n0", True)
    w.nic.send([frame(2)])
    assert w.read(peer, 64) == framed([frame(2)])
    peer.close()
    w.lost()
    w.net.set_link("n0", False)
    w.net.set_link("n0", True)
    assert w.n0.link_down
    w.nic.send([frame(3)])
    assert w.n0.stats()["drops"] == {"link-down": 2}


def test_what_a_peer_sent_before_it_went_is_received(worlds):
    """Even if its end was noticed by writing first, and the guest takes it slowly."""
    w = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0", port={"capacity": 1})
    peer = client_of(w.n0)
    w.connected()
    frames = [frame(i) for i in range(100)]
    peer.sendall(framed(frames))
    peer.close()
    for _ in range(3):
        w.nic.send([frame(999, 1514)] * 64)
    got = []
    while len(got) < 100:
        w.until(lambda: w.nic.capacity_left == 0 or not w.n0.attached)
        got += w.nic.recv()
        w.nic.room(1)
    assert got == frames[: len(got)] == frames
    w.lost()


def test_half_closed_is_closed(worlds):
    w = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0")
    with client_of(w.n0) as peer:
        w.connected()
        peer.shutdown(socket.SHUT_WR)
        w.lost()
        peer.setblocking(True)
        assert peer.recv(1) == b""


def test_tcp_does_not_wait_for_more(worlds):
    """TCP_NODELAY, on both sides."""
    a, b = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0,addr.keep-alive=on"), worlds()
    b.open({"type": "stream", "id": "n0", "addr": {**{k: v for k, v in a.n0.bound.items() if k != "ipv4"}, "keep-alive": True}})
    until(lambda: a.n0.attached and b.n0.attached, a.net, b.net)
    found = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
        except OSError:
            continue
        s = socket.socket(fileno=os.dup(fd))
        if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM and not s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found += 1
            assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        s.close()
    assert found == 4                                   # two descriptors each


def test_a_network_with_its_own_thread(tmp_path):
    a = joined(f"stream,id=n0,server=on,addr.type=unix,addr.path={tmp_path}/s")
    b = joined(f"stream,id=n0,addr.type=unix,addr.path={tmp_path}/s")
    a.start()
    b.start()
    left, right = a.client("s"), b.client("s")
    for end in left, right:
        end.socket.settimeout(60)
    for i in range(100):
        right.socket.send(frame(i))
        assert left.socket.recv(100) == frame(i)
        left.socket.send(frame(i, 1514))
        assert right.socket.recv(2000) == frame(i, 1514)
    a.close()
    b.close()
    assert not exists(f"{tmp_path}/s")


# -------------------------------------------------------------------------------------------------------------- addresses


def test_a_unix_socket_comes_and_goes_with_the_netdev(worlds, tmp_path):
    path = f"{tmp_path}/s"
    w = worlds(f"stream,id=n0,server=on,addr.type=unix,addr.path={path}")
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    w.net.netdev_del("n0")
    assert not exists(path)


def test_one_that_somebody_else_has_taken_meanwhile_stays(worlds, tmp_path):
    path = f"{tmp_path}/s"
    w = worlds(f"stream,id=n0,server=on,addr.type=unix,addr.path={path}")
    os.unlink(path)
    Path(path).write_text("mine")
    w.net.netdev_del("n0")
    assert Path(path).read_text() == "mine"


def test_what_a_killed_process_left_is_replaced_and_nothing_else(worlds, tmp_path):
    """QEMU removes whatever has the name."""
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
        left.listen()
    spec = f"stream,id=n0,server=on,addr.type=unix,addr.path={path}"
    w = worlds(spec)
    assert w.n0.info_str == "listening"
    other = worlds()
    with pytest.raises(HostError, match="somebody listens there"):
        other.open(spec)
    w.close()
    Path(path).write_text("mine")
    with pytest.raises(HostError, match=f"Failed to bind socket to {path}: Address already in use"):
        other.open(spec)
    assert Path(path).read_text() == "mine"
    assert other.net.clients == ()


def test_a_port_from_a_range(worlds):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        spec = f"stream,id=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port={port}"
        with pytest.raises(HostError) as e:
            worlds(spec)
        assert (e.value.text, e.value.errno) == ("Failed to find an available port: Address already in use", errno.EADDRINUSE)
        w = worlds(f"{spec},addr.to={min(port + 20, 65535)}")
        assert port < int(w.n0.bound["port"]) <= port + 20


@pytest.mark.parametrize(
    ("options", "families"),
    [
        ("addr.host=", {"ipv4"}),
        ("addr.host=,addr.ipv4=on", {"ipv4"}),
        ("addr.host=,addr.ipv6=off", {"ipv4"}),
        ("addr.host=,addr.ipv6=on", {"ipv6"}),
        ("addr.host=::", {"ipv4", "ipv6"}),
        ("addr.host=::,addr.ipv4=on,addr.ipv6=on", {"ipv4", "ipv6"}),
        ("addr.host=::,addr.ipv4=off", {"ipv6"}),
        ("addr.host=0.0.0.0", {"ipv4"}),
        ("addr.host=127.0.0.1,addr.numeric=on", {"ipv4"}),
    ],
)
def test_families(worlds, options, families):
    w = worlds(f"stream,id=n0,server=on,addr.type=inet,addr.port=0,{options}")
    reached = set()
    for family, host in ("ipv4", "127.0.0.1"), ("ipv6", "::1"):
        try:
            with socket.create_connection((host, int(w.n0.bound["port"]))):
                w.until(lambda: w.n0.attached)
                reached.add(family)
            w.lost()
        except ConnectionRefusedError:
            pass
    assert reached == families


def test_a_name_is_looked_up_while_the_network_goes_on(worlds):
    a = worlds("stream,id=n0,server=on,addr.type=inet,addr.host=localhost,addr.port=0,addr.ipv4=on")
    assert a.n0.info_str == "initializing"
    a.until(lambda: a.n0.bound)
    b = worlds(f"stream,id=n0,addr.type=inet,addr.host=localhost,addr.ipv4=on,addr.port={a.n0.bound['port']}")
    assert b.n0.info_str == "connecting"
    until(lambda: a.n0.attached and b.n0.attached, a.net, b.net)


def test_a_name_nobody_knows(worlds, caplog):
    w = worlds("stream,id=n0,addr.type=inet,addr.host=no-such-host.invalid,addr.port=1")
    w.until(lambda: w.n0.info_str != "connecting")
    assert w.n0.info_str.startswith("error: address resolution failed for no-such-host.invalid:1: ")
    assert "n0: address resolution failed" in caplog.text
    assert w.n0.link_down


def test_a_network_closed_while_a_name_is_looked_up():
    net = Net()
    net.netdev_add("stream,id=n0,addr.type=inet,addr.host=localhost,addr.port=1")
    net.close()
    resolvers_end()


def test_a_connection_refused_later_stands_in_info_network(worlds, caplog):
    """TCP tells at once or later, so this is a name."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    w = worlds(f"stream,id=n0,addr.type=inet,addr.host=localhost,addr.port={port}")
    w.until(lambda: w.n0.info_str != "connecting")
    assert w.n0.info_str == f"error: Failed to connect to 'localhost:{port}': Connection refused"
    assert "nobody listens there; reconnect-ms= tries again" in caplog.text


# ---------------------------------------------------------------------------------------------------------------- errors

ERRORS = [
    ("", "Parameter 'addr' is missing"),
    (",server=on", "Parameter 'addr' is missing"),
    (",addr=foo", "Invalid parameter type for 'addr', expected: object"),
    (",addr.type=foo", "Parameter 'type' does not accept value 'foo'"),
    (",addr.type=vsock", "Parameter 'addr.cid' is missing"),
    (",addr.type=inet", "Parameter 'addr.host' is missing"),
    (",addr.type=inet,addr.host=127.0.0.1", "Parameter 'addr.port' is missing"),
    (",addr.type=unix", "Parameter 'addr.path' is missing"),
    (",addr.type=fd", "Parameter 'addr.str' is missing"),
    (",addr.type=unix,addr.path=/x,bogus=1", "Parameter 'bogus' is unexpected"),
    (",addr.type=unix,addr.path=/x,addr.bogus=1", "Parameter 'addr.bogus' is unexpected"),
    (",addr.type=unix,addr.path=/x,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
    (",addr.type=inet,addr.host=x,addr.port=1,addr.to=70000", "Parameter 'to' expects uint16_t"),
    (",addr.type=inet,addr.host=x,addr.port=1,addr.to=x", "Parameter 'addr.to' expects integer"),
    (",addr.type=inet,addr.host=x,addr.port=1,addr.ipv4=1", "Parameter 'addr.ipv4' expects 'on' or 'off'"),
]


@pytest.mark.parametrize(("options", "text"), ERRORS)
def test_errors(worlds, options, text):
    with pytest.raises(OptionError) as e:
        worlds("stream,id=n0" + options)
    assert e.value.text == text


@pytest.mark.qemu
@pytest.mark.parametrize(("options", "text"), ERRORS)
def test_a_qemu_says_the_same(options, text):
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-M", "none", "-netdev", "stream,id=n0" + options]
    run = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert run.stderr.strip().endswith(f": {text}")


LONG = "x" * 108
ADDRESS_ERRORS = [
    (",reconnect=1,reconnect-ms=1,addr.type=unix,addr.path=/x", "'reconnect' and 'reconnect-ms' are mutually exclusive"),
    (",server=on,reconnect=1,addr.type=unix,addr.path=/x",
     "'reconnect' and 'reconnect-ms' options are incompatible with socket in server mode"),
    (",server=on,reconnect-ms=0,addr.type=unix,addr.path=/x",
     "'reconnect' and 'reconnect-ms' options are incompatible with socket in server mode"),
    (",addr.type=vsock,addr.cid=3,addr.port=4", "only support inet, unix or fd type"),
    (",addr.type=unix,addr.path=/nonexistent/x", "Failed to connect to '/nonexistent/x': No such file or directory"),
    (",server=on,addr.type=unix,addr.path=/nonexistent/x", "Failed to bind socket to /nonexistent/x: No such file or directory"),
    (f",addr.type=unix,addr.path={LONG}", f"UNIX socket path '{LONG}' is too long"),
    (f",addr.type=unix,addr.abstract=on,addr.path={LONG}", f"UNIX socket path '{LONG}' is too long"),
    (",addr.type=unix,addr.path=", "UNIX socket path '' is not valid"),
    (",addr.type=inet,addr.host=127.0.0.1,addr.port=abc",
     "address resolution failed for 127.0.0.1:abc: Servname not supported for ai_socktype"),
    (",addr.type=inet,addr.host=127.0.0.1,addr.port=65536",
     "address resolution failed for 127.0.0.1:65536: Servname not supported for ai_socktype"),
    (",addr.type=inet,addr.host=127.0.0.1,addr.port=1,addr.ipv4=off,addr.ipv6=off", "Cannot disable IPv4 and IPv6 at same time"),
    (",addr.type=inet,addr.host=,addr.port=1", "address resolution failed for :1: Name or service not known"),
    (",addr.type=inet,addr.host=localhost,addr.port=1,addr.numeric=on",
     "address resolution failed for localhost:1: Name or service not known"),
    (",server=on,addr.type=inet,addr.host=203.0.113.1,addr.port=7", "Failed to bind socket: Cannot assign requested address"),
    (",addr.type=fd,addr.str=foo", "File descriptor named 'foo' has not been found"),
    (",addr.type=fd,addr.str=9999", "File descriptor '9999' is not a socket"),
    (",server=on,addr.type=fd,addr.str=9999", "File descriptor '9999' is not a socket"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), ADDRESS_ERRORS)
def test_what_fails_at_once_raises(worlds, options, text):
    """QEMU opens the netdev all the same, and says "connection error" when asked."""
    w = worlds()
    with pytest.raises(Error) as e:
        w.open("stream,id=n0" + options)
    assert e.value.text == text
    assert w.net.clients == ()


@pytest.mark.parametrize(
    ("make", "server", "text"),
    [
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), False, "File descriptor '{fd}' is not a stream socket"),
        (lambda: socket.create_server(("127.0.0.1", 0)), False, "File descriptor '{fd}' is listening"),
        (lambda: socket.socket(), False, "File descriptor '{fd}': Transport endpoint is not connected"),
        (lambda: socket.socket(), True, "File descriptor '{fd}' is not listening"),
    ],
)
def test_descriptors_that_will_not_do(worlds, make, server, text):
    """With some of these a QEMU ends by an assertion."""
    with make() as s, pytest.raises(Error) as e:
        worlds({"type": "stream", "id": "n0", "addr": {"type": "fd", "str": str(s.fileno())}, "server": server})
    assert e.value.text == text.format(fd=e.value.text.split("'")[1])


def test_a_listening_descriptor(worlds):
    with socket.create_server(("127.0.0.1", 0)) as s:
        w = worlds(f"stream,id=n0,server=on,addr.type=fd,addr.str={s.fileno()}")
    for i in range(2):
        with client_of(w.n0) as peer:
            w.connected()
            peer.sendall(framed([frame(i)]))
            assert w.received(1) == [frame(i)]
        w.lost()


def test_it_is_no_legacy_kind(worlds):
    w = worlds()
    with pytest.raises(OptionError, match="network backend 'stream' is only supported with -netdev/-nic"):
        w.net.net_add("stream,addr.type=unix,addr.path=/x")


def test_the_json_form_and_keywords(worlds, tmp_path):
    w = worlds('{"type": "stream", "id": "n0", "server": true, "addr": {"type": "unix", "path": "DIR/s"}}'.replace("DIR", str(tmp_path)))
    assert w.n0.bound == {"type": "unix", "path": f"{tmp_path}/s"}
    other = w.net.netdev_add("stream", id="n1", reconnect_ms=1, addr={"type": "unix", "path": f"{tmp_path}/s"})
    w.until(lambda: other.attached and w.n0.attached)


def test_a_forgotten_network_leaves_nothing(tmp_path):
    script = f"""
        import gc
        from qnet import Net
        from qnet.testing import live
        net = Net()
        net.netdev_add("stream,id=a,server=on,addr.type=unix,addr.path={tmp_path}/s")
        net.netdev_add("stream,id=b,addr.type=unix,addr.path={tmp_path}/s,reconnect-ms=1")
        net.netdev_add("stream,id=c,addr.type=unix,addr.path={tmp_path}/none,reconnect-ms=1")
        net.pump()
        net.close()
        del net
        gc.collect()
        print(live())
        """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert run.stdout == "0\n", run.stderr
