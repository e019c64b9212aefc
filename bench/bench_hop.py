"""From one client to its peer: what every packet pays."""

from typing import Any

import pytest

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.testing import Sink, Source

PACKETS = 6400


@pytest.mark.parametrize("burst", [1, 16, 64])
@pytest.mark.parametrize("size", [60, 1514])
def bench_hop(cost: Any, keep: Any, loop: Loop, size: int, burst: int) -> None:
    """The price is that of the pair: the source numbers each frame, takes the lock once a burst, and a null client takes them."""
    source, sink = keep(Source(loop, size=size)), keep(NullClient(loop))
    source.pair(sink)
    done = cost(f"hop.{size}.burst{burst}", lambda: source.drive(PACKETS, burst), PACKETS, still=loop, idle=lambda: source.drive(0))
    stats = sink.stats()
    assert stats["rx_packets"] == source.sent == done * PACKETS
    assert stats["rx_bytes"] == done * PACKETS * size
    assert stats["drops"] == source.stats()["drops"] == {}


def bench_sink(cost: Any, keep: Any, loop: Loop) -> None:
    """A sink that reads every frame's number: the first touch of the bytes."""
    source, sink = keep(Source(loop, size=60)), keep(Sink(loop, numbered=True))
    source.pair(sink)
    done = cost("hop.60.numbered", lambda: source.drive(PACKETS), PACKETS, still=loop)
    assert (sink.packets, sink.bytes, sink.misordered) == (done * PACKETS, done * PACKETS * 60, 0)


def bench_no_peer(cost: Any, keep: Any, loop: Loop) -> None:
    """Packets to nowhere are dropped and counted."""
    source = keep(Source(loop, size=60))
    done = cost("hop.60.nopeer", lambda: source.drive(PACKETS), PACKETS, still=loop)
    assert source.stats()["drops"] == {"no-peer": done * PACKETS}
