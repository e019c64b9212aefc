"""One register access from Python: the lock, the GIL, the decoder. The loop around the calls is taken off."""

from collections.abc import Callable
from typing import Any

import pytest
from peer_driver import ICR, STATUS, TDT, Card
from peer_qnet import Qnet

CALLS = 1000
REGISTERS = range(CALLS)


def empty_loop() -> None:
    for _ in REGISTERS:
        pass


@pytest.mark.parametrize("access", ["tdt", "status", "icr", "window"])
def bench_mmio(cost: Any, access: str) -> None:
    system = Qnet(1, True)
    try:
        card = Card(system, 0, 256)
        nic, tail = system.nics[0], card.tail
        read, write = nic.bar_read, nic.bar_write

        def doorbell() -> None:
            """With nothing to send."""
            for _ in REGISTERS:
                write(0, TDT, 4, tail)

        def status() -> None:
            for _ in REGISTERS:
                read(0, STATUS, 4)

        def causes() -> None:
            for _ in REGISTERS:
                read(0, ICR, 4)

        def window() -> None:
            """IOADDR, as drivers that use the I/O BAR write it."""
            for _ in REGISTERS:
                write(1, 0, 4, TDT)

        work: Callable[[], None] = {"tdt": doorbell, "status": status, "icr": causes, "window": window}[access]
        reads, writes = nic.accesses
        done = cost(f"mmio.{access}", work, CALLS, still=system.net.loop, idle=empty_loop, per="call")
        counted = {"tdt": (0, done * CALLS), "window": (0, 0)}.get(access, (done * CALLS, 0))
        assert (nic.accesses[0] - reads, nic.accesses[1] - writes) == counted
        assert system.delivered() == (0, 0)
    finally:
        system.close()
