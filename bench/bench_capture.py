"""What a captured frame costs its sender: filter-dump between a source and a client that takes everything."""

from pathlib import Path
from typing import Any

import pytest

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.filters._filters import DumpFilter
from qnet.testing import Source

PACKETS = 3200


@pytest.mark.parametrize("burst", [1, 64])
@pytest.mark.parametrize("size", [60, 1514])
@pytest.mark.parametrize("name", ["a.pcap", "a.pcapng"])
def bench_filter_dump(cost: Any, keep: Any, loop: Loop, tmp_path: Path, name: str, size: int, burst: int) -> None:
    """Every round has a fresh file, so that it is the page cache that is measured and not the disk."""
    source, sink = keep(Source(loop, "n0", size=size)), keep(NullClient(loop, "nic0"))
    source.pair(sink)
    dumps: list[DumpFilter] = []

    def prepare() -> None:
        while dumps:
            finish(dumps.pop())
        dumps.append(DumpFilter(source, tmp_path / name))
        dumps[0].insert()
        source.drive(burst, burst)                          # the interface block, and the batch's memory

    def finish(dump: DumpFilter) -> None:
        dump.close()
        assert (dump.frames, dump.missed, dump.error) == (PACKETS + burst, 0, None)
        assert dump.size == (tmp_path / name).stat().st_size > (PACKETS + burst) * size
        assert dump.writes <= PACKETS // burst + 1 + 2      # one a burst; the header and the interface

    cost(f"dump.{name[2:]}.{size}.burst{burst}", lambda: source.drive(PACKETS, burst), PACKETS, still=loop, prepare=prepare)
    finish(dumps.pop())
