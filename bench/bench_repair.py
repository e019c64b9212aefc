"""What the core does for a receiver that does not take what it is sent: checksums, segments, padding."""

from typing import Any

import pytest
from peer_driver import TCP_HEADERS, tcp_frame

from qnet._client import NullClient
from qnet._loop import Loop
from qnet.testing import Port, Sink, Source

PACKETS = 1280
SEGMENTS, PAYLOAD, MSS = 32, 64000, 1460
FRAMES = -(-PAYLOAD // MSS)
TSO4 = {"flags": 1, "gso_type": 1, "gso_size": MSS, "hdr_len": TCP_HEADERS, "csum_start": 34, "csum_offset": 16}


@pytest.mark.parametrize("size", [60, 1514])
def bench_checksum(cost: Any, keep: Any, loop: Loop, size: int) -> None:
    offload = {"flags": 1, "csum_start": 34, "csum_offset": 16}
    source = keep(Source(loop, frame=tcp_frame(size - TCP_HEADERS, 0), numbered=False, offload=offload))
    sink = keep(NullClient(loop, offloads=False))
    source.pair(sink)
    done = cost(f"checksum.{size}", lambda: source.drive(PACKETS), PACKETS, still=loop)
    assert (sink.stats()["rx_packets"], sink.stats()["rx_bytes"]) == (done * PACKETS, done * PACKETS * size)


def bench_tso4(cost: Any, keep: Any, loop: Loop) -> None:
    """ns a wire frame."""
    source = keep(Source(loop, frame=tcp_frame(PAYLOAD, 0, segment=True), numbered=False, offload=TSO4))
    sink = keep(NullClient(loop, offloads=False))
    source.pair(sink)
    done = cost("tso4.64000/1460", lambda: source.drive(SEGMENTS), SEGMENTS * FRAMES, still=loop, per="frame")
    assert sink.stats()["rx_packets"] == done * SEGMENTS * FRAMES
    assert sink.stats()["rx_bytes"] == done * SEGMENTS * (PAYLOAD + FRAMES * TCP_HEADERS)


def bench_tso4_taken(cost: Any, keep: Any, loop: Loop) -> None:
    """To a receiver that segments itself the frame goes whole."""
    source = keep(Source(loop, frame=tcp_frame(PAYLOAD, 0, segment=True), numbered=False, offload=TSO4))
    sink = keep(Sink(loop))
    source.pair(sink)
    done = cost("tso4.taken", lambda: source.drive(SEGMENTS), SEGMENTS * FRAMES, still=loop, per="frame")
    assert (sink.packets, sink.bytes) == (done * SEGMENTS, done * SEGMENTS * (PAYLOAD + TCP_HEADERS))


def bench_padding(cost: Any, keep: Any, loop: Loop) -> None:
    """A receiver that wants frames of 60 bytes or more."""
    source, port = keep(Source(loop, size=42)), keep(Port(loop, min_frame=60))
    source.pair(port)
    done = cost("pad.42to60", lambda: source.drive(64), 64, still=loop, prepare=port.recv)
    assert {len(frame) for frame in port.recv()} == {60}
    assert port.stats()["rx_bytes"] == done * 64 * 60
