"""Frames to Python and from it, 64 at a time. The source takes the lock for each burst; the callable looks at the length of the batch."""

from typing import Any

import pytest

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.backends.py import PyPort
from qnet.testing import Source

PACKETS = 6400


@pytest.mark.parametrize("size", [60, 1514])
def bench_frames_to_python(cost: Any, keep: Any, loop: Loop, size: int) -> None:
    """The goal is 120 ns. One C copy into the batch's memory, one memoryview, and its end."""
    source, port = keep(Source(loop, size=size)), keep(PyPort(loop, "p0"))
    source.pair(port)
    batches = frames = 0

    def on_frames(batch: list[memoryview]) -> None:
        nonlocal batches, frames
        batches += 1
        frames += len(batch)

    port.on_frames = on_frames

    def work() -> None:
        for _ in range(PACKETS // 64):
            source.drive(64)

    work()                              # the first batch takes memory, the others use it again
    done = cost(f"py.in.{size}", work, PACKETS, still=loop) + 1
    assert (frames, batches) == (done * PACKETS, done * PACKETS // 64)
    stats = port.stats()
    assert (stats["rx_packets"], stats["rx_bytes"], stats["drops"]) == (frames, frames * size, {})


@pytest.mark.parametrize("matching", [True, False])
def bench_filter(cost: Any, keep: Any, loop: Loop, matching: bool) -> None:
    """What a filter costs: 12 instructions for "tcp port 80", of which a frame of another protocol meets a few."""
    source, port = keep(Source(loop, size=60)), keep(PyPort(loop, "p0"))
    source.pair(port)
    frames = 0

    def on_frames(batch: list[memoryview]) -> None:
        nonlocal frames
        frames += len(batch)

    port.on_frames = on_frames
    port.filter = "ether proto 0x88b5" if matching else "tcp port 80"

    def work() -> None:
        for _ in range(PACKETS // 64):
            source.drive(64)

    work()
    done = cost(f"py.filter.{'match' if matching else 'other'}", work, PACKETS, still=loop) + 1
    assert frames == (done * PACKETS if matching else 0)
    assert port.stats()["drops"] == ({} if matching else {"address": done * PACKETS})


@pytest.mark.parametrize("kind", [bytes, memoryview])
def bench_frames_from_python(cost: Any, keep: Any, loop: Loop, kind: type) -> None:
    """send_many() of 64 frames."""
    port, sink = keep(PyPort(loop, "p0")), keep(NullClient(loop))
    port.pair(sink)
    frames = [kind(bytes(1514)) for _ in range(64)]

    def work() -> None:
        for _ in range(PACKETS // 64):
            port.send_many(frames)

    done = cost(f"py.out.{kind.__name__}", work, PACKETS, still=loop)
    assert (sink.stats()["rx_packets"], sink.stats()["rx_bytes"]) == (done * PACKETS, done * PACKETS * 1514)
