"""A hub: what enters one port leaves by all others."""

from typing import Any

import pytest

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.backends._hub import Hub, HubPort
from qnet.testing import Source

PACKETS = 6400


@pytest.mark.parametrize("others", [1, 2, 8])
def bench_hub(cost: Any, keep: Any, loop: Loop, others: int) -> None:
    """ns a sent packet; it arrives `others` times."""
    hub, source = Hub(loop, 0), keep(Source(loop, size=60))
    source.pair(keep(HubPort(loop, hub, "in")))
    sinks = [keep(NullClient(loop)) for _ in range(others)]
    for i, sink in enumerate(sinks):
        sink.pair(keep(HubPort(loop, hub, f"out{i}")))
    done = cost(f"hub.60.to{others}", lambda: source.drive(PACKETS), PACKETS, still=loop)
    for sink in sinks:
        assert (sink.stats()["rx_packets"], sink.stats()["rx_bytes"]) == (done * PACKETS, done * PACKETS * 60)


def bench_unpeered(cost: Any, keep: Any, loop: Loop) -> None:
    """The cheapest sink of all: a port that leads nowhere."""
    hub, source = Hub(loop, 0), keep(Source(loop, size=60))
    source.pair(keep(HubPort(loop, hub, "in")))
    idle = keep(HubPort(loop, hub, "idle"))
    done = cost("hub.60.unpeered", lambda: source.drive(PACKETS), PACKETS, still=loop)
    assert idle.stats()["drops"] == {"no-peer": done * PACKETS}
