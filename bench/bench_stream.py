"""Two networks in this process, each with a thread of its own, joined by a stream netdev: frames one way. The floor under it:
the same bytes in writes of as many, through a bare socket between two threads."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qnet import Net
from qnet.testing import Sink, Source

PACKETS = 64 * 1000
BURST = 64                          # frames of one write
READ = 256 << 10


def joined(kind: str, path: Path) -> tuple[Net, Net, Any, Any]:
    left, right = Net(), Net()
    if kind == "unix":
        addr = {"type": "unix", "path": f"{path}/s"}
        server: Any = right.netdev_add("stream", id="n0", server=True, addr=addr)
    else:
        server = right.netdev_add("stream", id="n0", server=True, addr={"type": "inet", "host": "127.0.0.1", "port": "0"})
        addr = {"type": "inet", "host": "127.0.0.1", "port": server.bound["port"]}
    client: Any = left.netdev_add("stream", id="n0", addr=addr)
    left.start()
    right.start()
    while not (client.attached and server.attached):
        time.sleep(0.001)
    return left, right, client, server


@pytest.mark.parametrize("kind", ["unix", "inet"])
@pytest.mark.parametrize("size", [60, 1514])
def bench_two_networks(cost: Any, tmp_path: Path, kind: str, size: int) -> None:
    left, right, client, server = joined(kind, tmp_path)
    source, sink = Source(left.loop, size=size, flow_control=True), Sink(right.loop)
    source.pair(client)
    sink.pair(server)
    expected = 0

    def work() -> None:
        nonlocal expected
        expected += PACKETS
        source.drive(PACKETS, BURST)
        while sink.packets < expected:
            time.sleep(0.0001)

    try:
        done = cost(f"two networks, {kind}, {size}", work, PACKETS, still=None)
        assert done
        assert (sink.packets, sink.bytes) == (expected, expected * size)
        for end in client, server:
            assert end.stats()["drops"] == {}
    finally:
        source.close()
        sink.close()
        left.close()
        right.close()


@pytest.mark.parametrize("size", [60, 1514])
def bench_bare_socket(cost: Any, size: int) -> None:
    near, far = socket.socketpair()
    burst = bytes((4 + size) * BURST)
    expected = got = 0
    buffer = bytearray(READ)

    def read() -> None:
        nonlocal got
        while n := far.recv_into(buffer):
            got += n

    thread = threading.Thread(target=read)
    thread.start()

    def work() -> None:
        nonlocal expected
        expected += len(burst) * (PACKETS // BURST)
        for _ in range(PACKETS // BURST):
            near.sendall(burst)
        while got < expected:
            time.sleep(0.0001)

    try:
        cost(f"a bare socket, unix, {size}", work, PACKETS, still=None)
    finally:
        near.close()
        thread.join()
        far.close()
    assert got == expected
