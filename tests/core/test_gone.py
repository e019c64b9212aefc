"""Clients that nobody knows of any more go by themselves, without close(): queues are freed, descriptors closed, peers let go."""

import gc
import socket
import weakref
from typing import Any

import pytest

from qnet._client import NullClient, live
from qnet._loop import Loop
from qnet.backends._dgram import DgramClient
from qnet.backends._hub import Hub, HubPort
from qnet.testing import Gate, Port


class Owner(Port):
    """A subclass in Python, which may be part of other cycles."""

    me: Any = None


@pytest.fixture
def before() -> int:
    gc.collect()
    return live()


def port(net: Loop) -> Port:
    return Port(net, "p", capacity=1)


def cycle(net: Loop) -> Port:
    owner = Owner(net, "o", capacity=1)
    owner.me = [owner]
    return owner


def sock(net: Loop) -> DgramClient:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        return DgramClient(net, "s", "socket", ours.fileno())


def null(net: Loop) -> NullClient:
    return NullClient(net, "n")


def hub(net: Loop) -> HubPort:
    return HubPort(net, Hub(net, 0), "h")


@pytest.mark.parametrize("first", [port, cycle, sock, hub, null])
@pytest.mark.parametrize("second", [port, cycle, sock, hub, null])
def test_two_peers_that_nobody_knows(net: Loop, before: int, first: Any, second: Any) -> None:
    """The fixture of all tests looks after the file descriptors."""
    a, b = first(net), second(net)
    a.pair(b)
    for client in (a, b):
        if isinstance(client, Port):
            client.send([bytes(60)] * 3)
    gone = [weakref.ref(a), weakref.ref(b)]
    del a, b, client
    assert live() == before + 2, "only the garbage collector can find out"
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert live() == before
    assert net.queued == 0


@pytest.mark.parametrize("known", [0, 1])
def test_one_that_is_known_keeps_its_peer(net: Loop, before: int, known: int) -> None:
    ends = [Port(net, "a"), Port(net, "b")]
    ends[0].pair(ends[1])
    kept = ends[known]
    ends.clear()
    gc.collect()
    assert live() == before + 2
    assert kept.peer is not None
    assert kept.peer.peer is kept
    kept.send([bytes(60)])
    assert kept.peer.recv() == [bytes(60)]
    kept.close()
    assert live() == before + 1


def test_a_filter_keeps_the_client_it_watches(net: Loop, before: int) -> None:
    a, b = Port(net, "a"), Port(net, "b")
    a.pair(b)
    gate = Gate(a)
    gate.insert()
    del a, b
    gc.collect()
    assert live() == before + 2
    assert gate.client.send([bytes(60)]) == 1
    assert gate.client.peer.recv() == [bytes(60)]
    del gate
    gc.collect()
    assert live() == before


def test_a_sender_that_waits_is_let_go(net: Loop, before: int) -> None:
    """Its resume runs while it goes."""
    a, b = Port(net, "a", flow_control=True), Port(net, "b", capacity=0)
    a.pair(b)
    a.post([bytes(60)] * 200)
    del a, b
    gc.collect()
    assert live() == before
    assert net.queued == 0


def test_one_that_comes_back_to_life_is_whole(net: Loop, before: int) -> None:
    """Somebody else's finalizer takes it: by then it may have lost its peer, and nothing else."""

    class Keeper:
        def __init__(self, port: Port) -> None:
            self.port, self.me = port, self

        def __del__(self) -> None:
            kept.append(self.port)

    kept: list[Port] = []
    a, b = Port(net, "a"), Port(net, "b")
    a.pair(b)
    keeper = Keeper(a)
    del a, b, keeper
    gc.collect()
    (a,) = kept
    kept.clear()
    other = Port(net, "c")
    if a.peer is None:
        a.pair(other)
    a.send([bytes(60)])
    assert a.peer.recv() == [bytes(60)]
    a.close()
    del a, other
    gc.collect()
    assert live() == before
