"""An e1000 that receives from a peer without a ring of its own."""

from typing import Any

import pytest
from peer_driver import MACS, TPR, Card
from peer_qnet import Qnet

from qnet.testing import Source

RING = 256


@pytest.mark.parametrize(("size", "received"), [(42, 60), (60, 60), (1514, 1514)], ids=["padded", "60", "1514"])
def bench_rx(cost: Any, size: int, received: int) -> None:
    system = Qnet(1, False)
    nic, n = system.nics[0], RING - 1
    source = Source(system.net.loop, frame=(MACS[0] + MACS[1] + b"\x88\xb5" + bytes(8) + bytes(range(256)) * 6)[:size])
    try:
        nic.unpair()
        nic.pair(source)
        card = Card(system, 0, 8, RING)
        card.read(TPR)
        done = cost(
            f"e1000_rx.{size}", lambda: source.drive(n), n,
            still=system.net.loop, prepare=lambda: card.offer(n), idle=lambda: source.drive(0),
        )
        assert card.read(TPR) == source.sent == done * n
        for k in range(n):
            frame = card.received(k)
            assert len(frame) == received
            assert int.from_bytes(frame[14:22], "little") == (done - 1) * n + k
    finally:
        source.close()
        system.close()
