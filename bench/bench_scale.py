"""One hub with ever more ports: what a delivered frame costs shall not grow with their number."""

import resource
from collections.abc import Iterator
from typing import Any

import pytest

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.backends._hub import Hub, HubPort
from qnet.backends.socketpair import SocketPair
from qnet.testing import Source

BURST = 8
SIZE = 60


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for two of them for each of 512 socketpairs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("ports", [2, 8, 64, 512])
def bench_socketpairs(cost: Any, keep: Any, loop: Loop, descriptors: None, ports: int) -> None:
    """From one port to sockets behind all others: a system call for each of them and eight frames. What reads them is not timed."""
    hub, source = Hub(loop, 0), keep(Source(loop, size=SIZE))
    source.pair(keep(HubPort(loop, hub, "in")))
    ends = [keep(SocketPair(loop, f"s{i}")) for i in range(ports - 1)]
    for i, end in enumerate(ends):
        end.socket.setblocking(False)
        end.pair(keep(HubPort(loop, hub, f"out{i}")))
    got = 0

    def read() -> None:
        nonlocal got
        for end in ends:
            try:
                while True:
                    got += len(end.socket.recv(2 * SIZE)) == SIZE
            except BlockingIOError:
                pass

    done = cost(f"hub.{ports}.socketpairs", lambda: source.drive(BURST), BURST * len(ends), still=loop, prepare=read, per="delivery")
    read()
    assert source.sent == done * BURST
    assert got == done * BURST * len(ends)
    for end in ends:
        stats = end.stats()
        assert (stats["rx_packets"], stats["syscalls"], stats["drops"]) == (done * BURST, done, {})


@pytest.mark.parametrize("ports", [2, 8, 64, 512])
def bench_hub_alone(cost: Any, keep: Any, loop: Loop, ports: int) -> None:
    """The same without the kernel's part: sinks behind the ports."""
    hub, source = Hub(loop, 0), keep(Source(loop, size=SIZE))
    source.pair(keep(HubPort(loop, hub, "in")))
    sinks = [keep(NullClient(loop)) for _ in range(ports - 1)]
    for i, sink in enumerate(sinks):
        sink.pair(keep(HubPort(loop, hub, f"out{i}")))
    done = cost(f"hub.{ports}.sinks", lambda: source.drive(BURST), BURST * len(sinks), still=loop, per="delivery")
    assert all(sink.stats()["rx_packets"] == done * BURST for sink in sinks)
