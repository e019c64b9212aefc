"""Packets that must wait: copied into a queue while the network is stopped, delivered when it runs again, dropped beyond the bounds."""

from typing import Any

import pytest

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.testing import Source

PACKETS = 6400


def link(keep: Any, loop: Loop, size: int) -> tuple[Source, NullClient]:
    source, sink = keep(Source(loop, size=size)), keep(NullClient(loop))
    source.pair(sink)
    return source, sink


@pytest.mark.parametrize("size", [60, 1514])
def bench_queue(cost: Any, keep: Any, loop: Loop, size: int) -> None:
    """In and out again."""
    source, sink = link(keep, loop, size)

    def work() -> None:
        loop.running = False
        source.drive(PACKETS)
        loop.running = True
        sink.flush()

    done = cost(f"queue.{size}", work, PACKETS, still=None)
    assert sink.stats()["rx_packets"] == loop.allocations == done * PACKETS, "one node a packet"
    assert sink.stats()["rx_bytes"] == done * PACKETS * size
    assert loop.queued == sink.queued == 0


@pytest.mark.parametrize(
    ("limits", "size", "held"),
    [((1000, 1 << 30), 60, 1000), ((1 << 20, 100 * 1514), 1514, 100), ((1 << 20, 100 * 1514 - 1), 1514, 99)],
    ids=["packets", "bytes", "bytes-exactly"],
)
def bench_full(cost: Any, keep: Any, loop: Loop, limits: tuple[int, int], size: int, held: int) -> None:
    """A full queue holds no more than it may, and what it refuses is dropped without a copy."""
    source, sink = link(keep, loop, size)
    sink.queue_limits = limits
    loop.running = False
    source.drive(held)
    done = cost(f"queue.full.{size}", lambda: source.drive(PACKETS), PACKETS, still=loop)
    assert (sink.queued, loop.queued, loop.allocations) == (held, held, held)
    assert sink.stats()["drops"] == {"queue-full": done * PACKETS}
    loop.running = True
    sink.flush()
    assert sink.stats()["rx_packets"] == held
