"""From e1000 to e1000 over a hub, one kick into fresh receive buffers."""

from typing import Any

import pytest
from peer_cases import RING, SMALL_RING, broadcast_job, pair_job, tso_pair_job
from peer_qnet import Qnet


@pytest.mark.parametrize("ring", [SMALL_RING, RING])
@pytest.mark.parametrize("size", [60, 1514])
def bench_pair(cost: Any, size: int, ring: int) -> None:
    job = pair_job(Qnet, size, ring)
    cost(f"e1000_pair.{size}.ring{ring}", job.doorbell, job.packets, still=job.system.net.loop, prepare=job.prepare, idle=job.idle)
    job.finish()


def bench_broadcast(cost: Any) -> None:
    """To two receivers, ns a sent packet."""
    job = broadcast_job(Qnet, 60, SMALL_RING)
    cost("e1000_pair.60.broadcast", job.doorbell, job.packets, still=job.system.net.loop, prepare=job.prepare, idle=job.idle)
    job.finish()


def bench_tso(cost: Any) -> None:
    """Segmented straight into the receive ring, ns a frame."""
    job = tso_pair_job(Qnet, 1514, RING)
    cost("e1000_pair.tso", job.doorbell, job.packets, still=job.system.net.loop, prepare=job.prepare, idle=job.idle, per="frame")
    job.finish()
