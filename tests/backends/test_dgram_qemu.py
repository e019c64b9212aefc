"""dgram with a real QEMU: as the other end, where frames go in by one of its netdevs and come out of another; and the words of both."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qnet import Net, VirtualClock
from qnet.errors import Error

from .dgram_peers import Lan, Qemu, frame, free_ports, namespace, stop, udp, unix

pytestmark = pytest.mark.qemu

SIZES = (60, 64, 1514, 9000, 65000)             # QEMU pads what is shorter
BURST = 8                               # what a unix socket holds: when there is no room, QEMU lets frames overtake each other (B24)
GROUP = "dgram,id=m,remote.type=inet,remote.host=230.0.0.1,remote.port=5009"


def both_ways(lan: Lan) -> None:
    """What enters by the first netdev leaves by the second, through QEMU, and back."""
    for a, b in ((0, 1), (1, 0)):
        for size in SIZES:
            lan.ports[a].send([frame(size, size)])
            assert lan.recv(1, b) == [frame(size, size)]
        for n in range(0, 240, BURST):
            frames = [frame(n + i, 1514) for i in range(BURST)]
            lan.ports[a].send(frames)
            got: list[bytes] = []
            while len(got) < len(frames):
                got += lan.recv(1, b)
            assert got == frames
    assert lan.drops(0) == lan.drops(1) == {}


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "ours", tmp_path / "theirs"


def test_unix_and_inet(paths: tuple[Path, Path]) -> None:
    ports = free_ports(2)
    qemu = Qemu(unix("a", *reversed(paths)), udp("b", *reversed(ports)))
    lan = Lan(unix("a", *paths), udp("b", *ports))
    assert [client.info_str for client in lan.clients] == [
        f"udp={paths[0]}:{paths[1]}", f"udp=127.0.0.1:{ports[0]}/127.0.0.1:{ports[1]}"
    ]  # fmt: skip
    both_ways(lan)
    stop(lan, qemu)


def test_sockets_handed_to_both() -> None:
    """fd: each side has one end of two pairs."""
    ends = [end for _ in range(2) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
    ours, theirs = ends[::2], ends[1::2]
    qemu = Qemu(*(f"dgram,id=n{i},local.type=fd,local.str={end.fileno()}" for i, end in enumerate(theirs)),
                pass_fds=[end.fileno() for end in theirs])  # fmt: skip
    lan = Lan(*(f"dgram,id=n{i},local.type=fd,local.str={end.fileno()}" for i, end in enumerate(ours)))
    stop(*ends)
    both_ways(lan)
    stop(lan, qemu)


@pytest.mark.root
def test_a_multicast_group(paths: tuple[Path, Path]) -> None:
    """Two of ours and a QEMU in one group: all hear each other, and oneself."""
    with namespace():
        qemu = Qemu(unix("a", *reversed(paths)), GROUP)
        lan, other = Lan(unix("a", *paths), GROUP), Lan(GROUP)
        assert lan.clients[1].info_str == "mcast=230.0.0.1:5009"
        lan.ports[0].send([frame(1)])
        assert lan.recv(1, 1) == [frame(1)]
        assert other.recv(1) == [frame(1)]
        assert lan.recv(1, 0) == [frame(1)]             # QEMU heard itself too, and passed it on
        other.ports[0].send([frame(i, 1200) for i in range(BURST)])
        for port in (1, 0):
            got: list[bytes] = []
            while len(got) < BURST:
                got += lan.recv(1, port)
            assert got == [frame(i, 1200) for i in range(BURST)]
        stop(lan, other, qemu)


def test_qemu_killed_and_started_again(paths: tuple[Path, Path]) -> None:
    ports = free_ports(2)
    lan = Lan(unix("a", *paths), udp("b", *ports))
    for _ in range(2):
        qemu = Qemu(unix("a", *reversed(paths)), udp("b", *reversed(ports)))
        for a, b in ((0, 1), (1, 0)):
            lan.ports[a].send([frame(5)])
            assert lan.recv(1, b) == [frame(5)]
        qemu.kill()
        for port in lan.ports:
            port.send([frame(i) for i in range(70)])
            lan.pump()
        qemu.close()
    assert lan.drops(0) == {"io": 140}
    assert lan.drops(1) == {}                           # nobody says that a datagram was for nobody
    lan.close()


def test_a_qemu_that_stands_still_is_waited_for(paths: tuple[Path, Path]) -> None:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    qemu = Qemu(unix("a", *reversed(paths)), f"dgram,id=b,local.type=fd,local.str={ends[1].fileno()}", pass_fds=[ends[1].fileno()])
    lan = Lan(unix("a", *paths), f"dgram,id=b,local.type=fd,local.str={ends[0].fileno()}")
    qemu.process.send_signal(signal.SIGSTOP)
    os.waitpid(qemu.process.pid, os.WUNTRACED)
    frames = [frame(i, 1514) for i in range(1000)]
    lan.ports[0].send(frames)
    assert lan.clients[0].queued > 0
    assert lan.net.pump() == 0
    qemu.process.send_signal(signal.SIGCONT)
    got: list[bytes] = []
    while len(got) < 1000:
        got += lan.recv(1, 1)
    assert sorted(got) == frames                        # QEMU lets a fresh frame overtake one that it queued (B24)
    stop(lan, qemu, *ends)


# ------------------------------------------------------------------------------------------------------------ the same words


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    q = Qemu()
    yield q
    q.close()


def inet(host: str, port: str, **more: Any) -> dict[str, Any]:
    return {"type": "inet", "host": host, "port": port, **more}


def path(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "unix", "path": name, **more}


def fd(text: str) -> dict[str, Any]:
    return {"type": "fd", "str": text}


LOCAL = inet("127.0.0.1", "5010")
REFUSED: list[dict[str, Any]] = [
    {},
    {"local": LOCAL},
    {"local": path("/nonexistent/x")},
    {"remote": LOCAL},
    {"remote": path("/nonexistent/x")},
    {"remote": fd("5")},
    {"remote": inet("230.0.0.1", "5011"), "local": path("/nonexistent/x")},
    {"remote": inet("230.0.0.1", "5011"), "local": {"type": "vsock", "cid": "2", "port": "1"}},
    {"remote": LOCAL, "local": fd("99")},
    {"local": fd("99")},
    {"local": fd("nope")},
    {"local": LOCAL, "remote": path("/x")},
    {"local": path("/x"), "remote": LOCAL},
    {"local": LOCAL, "remote": fd("7")},
    {"local": LOCAL, "remote": inet("127.0.0.1", "http")},
    {"local": inet("127.0.0.1", ""), "remote": LOCAL},
    {"local": inet("192.0.2.77", "5012"), "remote": LOCAL},
    {"local": inet("1.2.3.4.5", "5012"), "remote": LOCAL},
    {"local": LOCAL, "remote": inet("224.0.0.256", "1")},
    {"local": path("/nonexistent/x"), "remote": path("/nonexistent/y")},
    {"local": {"type": "vsock", "cid": "2", "port": "1"}, "remote": {"type": "vsock", "cid": "2", "port": "1"}},
    {"local": {"type": "bogus"}},
    {"local": {"host": "x"}},
    {"local": LOCAL | {"path": "x"}},
    {"local": {"type": "inet", "host": "x"}},
    {"local": "x"},
    {"bogus": 1},
]


@pytest.mark.root
def test_what_is_refused(tmp_path: Path) -> None:
    """In QEMU's words, each with a hint where one helps."""
    differ = []
    refused = [
        *REFUSED,
        {"remote": inet("230.0.0.1", "5013"), "local": inet("192.0.2.77", "0")},
        {"local": path(f"{tmp_path}/" + "x" * 200), "remote": path("/x")},          # QEMU 7.2 says so and goes on
    ]
    with namespace():
        theirs = Qemu()
        with Net(clock=VirtualClock()) as net:
            # ids differ, because some errors leave a netdev behind in QEMU 7.2
            for i, arguments in enumerate(refused):
                said = ""
                try:
                    net.netdev_add({"type": "dgram", "id": f"d{i}", **arguments})
                except Error as e:
                    said = e.text
                answer = theirs.error({"type": "dgram", "id": f"d{i}", **arguments})
                assert answer, arguments
                if said != answer:
                    differ.append((arguments, said, answer))
            assert net.stats() == []
        theirs.close()
    assert not differ, "\n".join(map(repr, differ))


@pytest.mark.root
def test_what_is_taken_and_how_it_is_called(tmp_path: Path) -> None:
    # two different hosts are not compared: QEMU 7.2 prints one of them twice
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with namespace(), pair[0], pair[1]:
        udp_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        fds = [pair[0].fileno(), udp_socket.fileno()]
        taken: list[dict[str, Any]] = [
            {"remote": inet("230.0.0.1", "5014")},
            {"remote": inet("230.0.0.1", "5014"), "local": inet("127.0.0.1", "0")},
            {"local": LOCAL, "remote": inet("127.0.0.1", "5015")},
            {"local": LOCAL, "remote": inet("127.0.0.1", "5016", numeric=True, ipv4=True)},
            {"local": inet("localhost", "5017"), "remote": inet("localhost", "5018")},
            {"local": path(f"{tmp_path}/a"), "remote": path(f"{tmp_path}/b")},
            {"local": path(f"{tmp_path}/a"), "remote": path(f"{tmp_path}/b")},
            *({"local": fd(str(number))} for number in fds),
        ]
        theirs = Qemu(pass_fds=fds)
        with Net(clock=VirtualClock()) as net, udp_socket:
            for i, arguments in enumerate(taken):
                assert theirs.error({"type": "dgram", "id": f"d{i}", **arguments}) == ""
                net.netdev_add({"type": "dgram", "id": f"d{i}", **arguments})
            assert net.info_network() == theirs.info()
        theirs.close()


def test_dotted_keys_and_help(tmp_path: Path) -> None:
    from qnet.kinds import netdev_help

    assert [line.split()[0] for line in netdev_help("dgram").splitlines()[1:]] == ["local=<group>", "remote=<group>"]
    with Net(clock=VirtualClock()) as net:
        for text, said in (
            (f"dgram,id=a,local.type=unix,local.path={tmp_path}/a", "type=inet or type=unix requires remote parameter"),
            ("dgram,id=a,local.type=inet,local.host=127.0.0.1,local.port=5,remote", "Expected '=' after parameter 'remote'"),
            ("dgram,id=a,local=x", "Invalid parameter type for 'local', expected: object"),
            ("dgram,id=a,local.type=unix,local.path=,remote.type=unix,remote.path=/x", "UNIX socket path '' is not valid"),
            ("dgram,id=a,remote.type=inet,remote.host=ff02::7,remote.port=5", "host address 'ff02::7' is not a valid IPv4 address"),
            (udp("a", 5, 70000), "port number '70000' is invalid"),
            (udp("a", 5, 6, "::zz"), "can't resolve host address '::zz'"),
        ):
            with pytest.raises(Error) as e:
                net.netdev_add(text)
            assert e.value.text == said
        # QEMU 7.2 says the first, and crashes soon after
        with open(os.devnull) as file, pytest.raises(Error, match="Unable to query local socket address: Socket operation on non-socket"):
            net.netdev_add(f"dgram,id=a,local.type=fd,local.str={file.fileno()}")
        with socket.socket() as stream, pytest.raises(Error) as e:
            net.netdev_add(f"dgram,id=a,local.type=fd,local.str={stream.fileno()}")
        assert e.value.hint == "the stream netdev takes stream sockets"
