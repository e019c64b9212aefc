"""Through the kernel and back: a frame is sent by one client and read by another one at the other end of a pipe or a socket."""

import os
import socket
from typing import Any

import pytest

from qnet._loop import Loop
from qnet.backends._dgram import DgramClient
from qnet.backends._stream import StreamClient
from qnet.testing import Sink, Source

PACKETS = 640


@pytest.mark.parametrize("size", [60, 1514])
def bench_stream(cost: Any, keep: Any, loop: Loop, size: int) -> None:
    """A pipe that holds 64 KiB: bursts as long as it has room for."""
    r, w = os.pipe()
    out, back = keep(StreamClient(loop, "out", "pipe", wfd=w)), keep(StreamClient(loop, "back", "pipe", rfd=r))
    os.close(r)
    os.close(w)
    through(cost, keep, loop, f"stream.{size}", out, back, size, 32)


@pytest.mark.parametrize("size", [60, 1514])
def bench_dgram(cost: Any, keep: Any, loop: Loop, size: int) -> None:
    """Connected UDP sockets on the loopback interface: 32 frames each by one sendmmsg and one recvmmsg."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        a.connect(b.getsockname())
        b.connect(a.getsockname())
        out, back = keep(DgramClient(loop, "out", "dgram", a.fileno())), keep(DgramClient(loop, "back", "dgram", b.fileno()))
    through(cost, keep, loop, f"dgram.{size}", out, back, size, 32)


def through(cost: Any, keep: Any, loop: Loop, case: str, out: Any, back: Any, size: int, burst: int) -> None:
    source, sink = keep(Source(loop, size=size)), keep(Sink(loop))
    source.pair(out)
    back.pair(sink)

    def work() -> None:
        for _ in range(PACKETS // burst):
            source.drive(burst, burst)
            loop.pump()

    done = cost(case, work, PACKETS, still=loop)
    assert (sink.packets, sink.bytes) == (done * PACKETS, done * PACKETS * size)
    for client in out, back:
        stats = client.stats()
        assert stats["drops"] == {}
        assert stats["syscalls"] <= 2 * done * PACKETS // burst
