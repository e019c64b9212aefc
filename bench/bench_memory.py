"""What a client without traffic takes: resident memory of a process that makes many, measured in a process of its own."""

import subprocess
import sys
from typing import Any

import pytest

from qnet._client import NullClient, live
from qnet._loop import Loop

IDLE_LIMIT = 16 << 10
SCRIPT = """
import gc, resource
from qnet._client import NullClient
from qnet._host import GuestMemory, IrqLine
from qnet._loop import Loop, VirtualClock
from qnet.backends._hub import Hub, HubPort
from qnet.models.e1000 import E1000, Options

loop = Loop(VirtualClock())
hub, memory, options = Hub(loop, 0), GuestMemory(bytearray(4096)), Options()
make = {
    "null": lambda i: NullClient(loop, f"n{i}"),
    "hubport": lambda i: HubPort(loop, hub, f"n{i}"),
    "e1000": lambda i: E1000(loop, f"n{i}", "e1000", options, bytes(6), memory, IrqLine()),
}[%r]

def resident():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

kept = [make(i) for i in range(8)]
before = resident()
kept += [make(i) for i in range(%d)]
print((resident() - before) // %d)
assert loop.allocations == 0
"""


@pytest.mark.parametrize(
    ("kind", "clients", "limit"), [("null", 2000, IDLE_LIMIT), ("hubport", 2000, IDLE_LIMIT), ("e1000", 50, 256 << 10)]
)
def bench_idle_client(benchmark: Any, kind: str, clients: int, limit: int) -> None:
    """Bytes; an e1000 is its registers (128 KiB of address space) and the buffers of one burst, too."""

    def measure() -> int:
        out = subprocess.run([sys.executable, "-c", SCRIPT % (kind, clients, clients)], capture_output=True, text=True, check=True)
        return int(out.stdout)

    size = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["bytes"] = size
    assert 0 < size < limit


def bench_create(cost: Any, loop: Loop) -> None:
    """Making a client and letting it go."""
    before = live()

    def work() -> None:
        for i in range(100):
            NullClient(loop, f"n{i}").close()

    cost("client.create", work, 100, still=loop, per="client")
    assert live() == before
