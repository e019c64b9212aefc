"""An e1000 that sends: one doorbell for a whole ring, to a sink behind a hub. Frames, payload and checksums are checked by peer_cases."""

from typing import Any

import pytest
from peer_cases import RING, SMALL_RING, Job, checksum_job, tso_sink_job, tx_job
from peer_qnet import Qnet


def run(cost: Any, case: str, job: Job[Qnet], system: Qnet, per: str = "packet") -> None:
    cost(case, job.doorbell, job.packets, still=system.net.loop, prepare=job.prepare, idle=job.idle, per=per)
    job.finish()


@pytest.mark.parametrize("ring", [SMALL_RING, RING])
@pytest.mark.parametrize("size", [60, 1514])
def bench_tx(cost: Any, size: int, ring: int) -> None:
    job = tx_job(Qnet, size, ring)
    run(cost, f"e1000_tx.{size}.ring{ring}", job, job.system)


@pytest.mark.parametrize("size", [60, 1514])
def bench_checksum(cost: Any, size: int) -> None:
    job = checksum_job(Qnet, size, SMALL_RING)
    run(cost, f"e1000_tx.{size}.checksum", job, job.system)


def bench_tso(cost: Any) -> None:
    job = tso_sink_job(Qnet, 1514, RING)
    run(cost, "e1000_tx.tso", job, job.system, "frame")
