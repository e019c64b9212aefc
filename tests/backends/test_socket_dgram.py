"""The datagram modes of the socket netdev: udp=, mcast= and fd= (2.5); QEMU as the other end, and its words."""

import socket
from pathlib import Path
from typing import Any

import pytest

from qnet import Net, VirtualClock
from qnet.errors import Error

from .dgram_peers import Lan, Qemu, frame, free_ports, messages, namespace, stop, unix

GROUP = "socket,id=m,mcast=230.0.0.1:5021"


def udp(name: str, ours: int, theirs: int) -> str:
    return f"socket,id={name},udp=127.0.0.1:{theirs},localaddr=127.0.0.1:{ours}"


def test_udp_between_two_nets() -> None:
    ports = free_ports(2)
    a, b = Lan(udp("n0", *ports)), Lan(udp("n1", *reversed(ports)))
    assert a.client.info_str == f"socket: udp=127.0.0.1:{ports[1]}"
    frames = [frame(i, 1514) for i in range(40)] + [frame(40), frame(41, 65000)]
    for one, other in ((a, b), (b, a)):
        one.port.send(frames)
        got: list[bytes] = []
        while len(got) < len(frames):
            got += other.recv(1)
        assert got == frames
    assert a.drops() == b.drops() == {}
    stop(a, b)


def test_an_empty_datagram_and_a_peer_that_is_gone() -> None:
    """B21: QEMU's is mute after the first."""
    ports = free_ports(2)
    lan = Lan(udp("n0", *ports))
    lan.port.send([frame(1)])
    lan.pump()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", ports[1]))
        for message in (b"", frame(2), b""):
            s.sendto(message, ("127.0.0.1", ports[0]))
        assert lan.recv(1) == [frame(2)]
        lan.pump()
        assert lan.drops() == {"empty": 2}
        lan.port.send([frame(3)])
        assert messages(s) == [frame(3)]
    lan.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_socket_that_is_open_already(family: int) -> None:
    if family == socket.AF_UNIX:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    else:
        a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for s in a, b:
            s.bind(("127.0.0.1", 0))
        a.connect(b.getsockname())
        b.connect(a.getsockname())
    with a, b:
        lan = Lan(f"socket,id=n0,fd={a.fileno()}")
        assert lan.client.info_str == f"socket: fd={a.fileno()} {'unix' if family == socket.AF_UNIX else 'inet'}"
        b.send(frame(1))
        assert lan.recv(1) == [frame(1)]
        lan.port.send([frame(2)])
        assert b.recv(100) == frame(2)
        b.close()
        for _ in range(3):
            lan.port.send([frame(3)])
            lan.pump()
        assert lan.drops()["io"] > 0
        assert lan.client.connected
        lan.close()


@pytest.mark.root
def test_a_multicast_group() -> None:
    with namespace():
        lans = [Lan(GROUP), Lan(GROUP + ",localaddr=127.0.0.1")]
        for sender in lans:
            sender.port.send([frame(i, 1000) for i in range(20)])
            for lan in lans:
                assert lan.client.info_str == "socket: mcast=230.0.0.1:5021"
                assert lan.recv(20) == [frame(i, 1000) for i in range(20)]
        stop(*lans)


@pytest.mark.qemu
@pytest.mark.root
def test_a_qemu_of_each_kind(tmp_path: Path) -> None:
    """udp to udp, mcast to mcast; what enters QEMU by one of its netdevs leaves it by the other."""
    with namespace():
        for ours, theirs in (
            (udp("m", 5022, 5023), udp("m", 5023, 5022)),
            (GROUP, GROUP),
            (udp("m", 5024, 5025), "dgram,id=m,local.type=inet,local.host=127.0.0.1,local.port=5025,"
                                   "remote.type=inet,remote.host=127.0.0.1,remote.port=5024"),
        ):  # fmt: skip
            paths = tmp_path / "a", tmp_path / "b"
            qemu = Qemu(theirs, unix("u", *reversed(paths)))
            lan = Lan(ours, unix("u", *paths))
            for a, b in ((0, 1), (1, 0)):
                for i in range(5):
                    lan.ports[a].send([frame(i, 1400)])
                    assert lan.recv(1, b)[0] == frame(i, 1400)
                    while lan.ports[a].recv():          # a group's members hear themselves
                        pass
                lan.pump()
                for port in lan.ports:
                    port.recv()
            stop(lan, qemu)


REFUSED: list[dict[str, Any]] = [
    {},
    {"mcast": "230.0.0.1:5026", "udp": "127.0.0.1:5"},
    {"fd": "7", "mcast": "230.0.0.1:5026"},
    {"fd": "7", "localaddr": "127.0.0.1:5"},
    {"fd": "99"}, {"fd": "name"}, {"fd": "-1"},
    {"mcast": "127.0.0.1:5026"}, {"mcast": "230.0.0.1"}, {"mcast": "230.0.0.1:x"}, {"mcast": ":5026"},
    {"mcast": "230.0.0.1:5026", "localaddr": "127.0.0.1:9"},
    {"mcast": "230.0.0.1:5026", "localaddr": "192.0.2.77"},
    {"mcast": "230.0.0.1:5026", "localaddr": "nobody"},
    {"udp": "127.0.0.1:5"},
    {"udp": "127.0.0.1:5", "localaddr": "127.0.0.1"},
    {"udp": "127.0.0.1", "localaddr": "127.0.0.1:5026"},
    {"udp": "127.0.0.1:5", "localaddr": "192.0.2.77:5026"},
    {"udp": "1.2.3.4.5:5", "localaddr": "127.0.0.1:5026"},
    {"listen": ":5026", "localaddr": "127.0.0.1:5"},
]  # fmt: skip


@pytest.mark.qemu
@pytest.mark.root
def test_what_is_refused() -> None:
    differ = []
    with namespace(), Net(clock=VirtualClock()) as net:
        theirs = Qemu()
        for i, arguments in enumerate(REFUSED):
            said, answer = "", theirs.error({"type": "socket", "id": f"d{i}", **arguments})
            assert answer, arguments
            try:
                net.netdev_add({"type": "socket", "id": f"d{i}", **arguments})
            except Error as e:
                said = e.text
            if said != answer:
                differ.append((arguments, said, answer))
        assert net.stats() == []
        theirs.close()
    assert not differ, "\n".join(map(repr, differ))


@pytest.mark.qemu
@pytest.mark.root
def test_how_they_are_called() -> None:
    taken = [{"mcast": "230.0.0.1:5027"}, {"mcast": "230.0.0.1:5027", "localaddr": "127.0.0.1"},
             {"udp": "127.0.0.1:5028", "localaddr": "127.0.0.1:5029"}, {"udp": "localhost:5028", "localaddr": ":5030"}]  # fmt: skip
    with namespace(), Net(clock=VirtualClock()) as net:
        theirs = Qemu()
        for i, arguments in enumerate(taken):
            assert theirs.error({"type": "socket", "id": f"d{i}", **arguments}) == ""
            net.netdev_add({"type": "socket", "id": f"d{i}", **arguments})
        assert net.info_network() == theirs.info()
        theirs.close()
