"""Software repair of what a receiver does not take: checksums, segmentation, padding (S28), checked against scapy; B16; hostile records.

How a checksum or a segment comes about is csrc's and tested in test_csrc.py. Here: who gets what, that nothing is lost when room runs
out in the middle, and that no Offload record can do harm.
"""

import random
import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import checksum

from qnet._loop import Loop
from qnet.testing import Gate, Port

TCPV4, UFO, TCPV6, USO, ECN = 1, 3, 4, 5, 0x80


class Frame:
    """A TCP or UDP frame with right checksums, and the same as a sender with offload leaves it: a seed in the checksum field."""

    def __init__(self, version: int, tcp: bool, payload: bytes, tags: int = 0) -> None:
        l2 = Ether(src="52:54:00:00:00:01", dst="52:54:00:00:00:02")
        for tag in range(tags):
            l2 /= Dot1Q(vlan=tag + 1)
        ip = IP(src="10.0.0.1", dst="10.0.0.2", id=77) if version == 4 else IPv6(src="fd00::1", dst="fd00::2")
        l4 = TCP(sport=1, dport=2, seq=0xFFFFFF00, flags="PA") if tcp else UDP(sport=1, dport=2)
        self.right = bytes(l2 / ip / l4 / payload)
        self.payload = payload
        self.start = 14 + 4 * tags + len(ip)
        self.offset = 16 if tcp else 6
        self.header = self.start + (20 if tcp else 8)
        self.kind = USO if not tcp else TCPV4 if version == 4 else TCPV6
        addresses = self.right[self.start - (8 if version == 4 else 32) : self.start]
        seed = checksum(addresses + struct.pack(">II", len(self.right) - self.start, 6 if tcp else 17)) ^ 0xFFFF
        data = bytearray(self.right)
        struct.pack_into(">H", data, self.start + self.offset, seed)
        self.data = bytes(data)

    def record(self, gso_size: int = 0, gso_type: int | None = None, flags: int = 1) -> dict[str, int]:
        kind = gso_type if gso_type is not None else self.kind if gso_size else 0
        return {"flags": flags, "gso_type": kind, "hdr_len": self.header if gso_size else 0, "gso_size": gso_size,
                "csum_start": self.start, "csum_offset": self.offset}

    def check_segments(self, segments: list[bytes], gso_size: int, min_frame: int = 0) -> None:
        """They are what the sender would have sent: lengths and checksums are right to scapy, payload is whole and in order."""
        sizes = [gso_size] * (len(self.payload) // gso_size) + [len(self.payload) % gso_size] * (len(self.payload) % gso_size > 0)
        assert [len(s) for s in segments] == [max(self.header + size, min_frame) for size in sizes]
        segments = [s[: self.header + size] for s, size in zip(segments, sizes, strict=True)]
        assert b"".join(s[self.header :] for s in segments) == self.payload
        for segment in segments:
            packet = Ether(segment)
            for layer in (IP, UDP, TCP):
                if layer in packet:
                    packet[layer].delfieldval("chksum")
            assert bytes(packet) == segment


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(p, len(data)) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    """One network for all examples of a property; it has no clients between them."""
    loop = Loop()
    yield loop
    loop.close()


class Pair:
    """Two linked Ports, closed at the end; the receiver must not have seen a breach of the contract."""

    def __init__(self, loop: Loop, **receiver) -> None:
        self.a, self.b = Port(loop, "a"), Port(loop, "b", **receiver)
        self.a.pair(self.b)

    def __enter__(self) -> tuple[Port, Port]:
        return self.a, self.b

    def __exit__(self, *_) -> None:
        breaches = self.b.breaches
        self.a.close()
        self.b.close()
        assert not breaches


payloads = st.builds(lambda seed, n: random.Random(seed).randbytes(n), st.integers(0, 2**32), st.integers(1, 4000))
frames = st.builds(Frame, st.sampled_from([4, 6]), st.booleans(), payloads, st.integers(0, 2))
places = st.lists(st.integers(0, 4100), max_size=63)


@pytest.fixture(autouse=True, scope="module")
def _module_loop_is_no_leak(loop: Loop) -> None:
    """Made before the first test's baseline of open files."""


@given(frame=frames, places=places, min_frame=st.sampled_from([0, 60]))
@example(frame=Frame(4, False, b"x"), places=[], min_frame=60)
@example(frame=Frame(4, True, bytes(3000)), places=list(range(63)), min_frame=0)
@example(frame=Frame(4, True, bytes(3000)), places=list(range(300, 363)), min_frame=0)
def test_a_missing_checksum_is_filled_in_for_who_does_not_take_it(loop, frame, places, min_frame):
    pieces = cut(frame.data, places)
    with Pair(loop, min_frame=min_frame) as (a, b):
        a.send([pieces], frame.record())
        assert b.recv() == [frame.right.ljust(min_frame, b"\0")]
        assert b.offloads[0]["flags"] == 2                                      # verified: the receiver need not look
        assert b"".join(pieces) == frame.data                                   # B16: nobody wrote to the sender's bytes


@given(frame=frames, places=places)
def test_who_takes_checksums_gets_the_packet_as_it_is(loop, frame, places):
    with Pair(loop, takes="csum", min_frame=60) as (a, b):
        a.send([cut(frame.data, places)], frame.record())
        assert b.recv() == [frame.data.ljust(60, b"\0")]
        assert b.offloads == [frame.record()]


@given(frame=frames, gso_size=st.integers(150, 2000), places=places, min_frame=st.sampled_from([0, 60]))
@example(frame=Frame(4, True, bytes(4000)), gso_size=3, places=[], min_frame=0)             # more segments than a burst
@example(frame=Frame(6, False, bytes(4000)), gso_size=1999, places=list(range(62, 125)), min_frame=60)
def test_a_gso_packet_is_segmented_for_who_does_not_take_it(loop, frame, gso_size, places, min_frame):
    pieces = cut(frame.data, places)
    with Pair(loop, min_frame=min_frame) as (a, b):
        a.send([pieces], frame.record(gso_size))
        got = b.recv()
        assert b.stats()["drops"] == {}
        frame.check_segments(got, gso_size, min_frame)
        assert all(o == {"flags": 2, "gso_type": 0, "hdr_len": 0, "gso_size": 0, "csum_start": 0, "csum_offset": 0} for o in b.offloads)
        assert b"".join(pieces) == frame.data                                   # B16


@pytest.mark.parametrize(("kind", "takes", "whole"), [
    (TCPV4, "csum tso4", True), (TCPV4, "csum tso6 uso", False), (TCPV4, "csum", False), (TCPV4, "tso4", False),
    (TCPV6, "csum tso6", True), (TCPV6, "csum tso4 uso", False), (USO, "csum uso", True), (USO, "csum tso4 tso6", False),
    (TCPV4 | ECN, "csum tso4 ecn", True), (TCPV4 | ECN, "csum tso4", False), (TCPV4, "all", True), (USO, "all", True),
])  # fmt: skip
def test_each_kind_goes_whole_to_who_takes_it_and_segmented_to_others(loop, kind, takes, whole):
    frame = Frame(6 if kind == TCPV6 else 4, kind != USO, bytes(range(250)) * 10)
    with Pair(loop, takes=takes) as (a, b):
        a.send([frame.data], frame.record(1000, kind))
        got = b.recv()
        if whole:
            assert got == [frame.data]
            assert b.offloads == [frame.record(1000, kind)]
        else:
            frame.check_segments(got, 1000)


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("reaction", ["keep", "flush"])
@pytest.mark.parametrize("flow_control", [True, False])
@pytest.mark.parametrize("room", [0, 1, 2, 63, 64, 65, 130])
def test_room_that_runs_out_in_the_middle_of_a_gso_packet_loses_nothing(link, asks, reaction, flow_control, room):
    a, b = link(a={"flow_control": flow_control}, b={"capacity": room, "asks": asks, "reaction": reaction})
    first, last = Frame(4, True, bytes(range(256)) * 10), Frame(4, True, b"plain")
    a.post([last.data, first.data, last.data, first.data, last.data],
           [last.record(), first.record(20), last.record(), first.record(2000), last.record()])
    got = []
    for _ in range(600):
        b.room(1)
        got += b.recv()
    assert b.stats()["drops"] == {}
    assert (a.backlog, b.queued) == (0, 0)
    assert [i for i, f in enumerate(got) if f == last.right] == [0, 129, 132]
    first.check_segments(got[1:129], 20)
    first.check_segments(got[130:132], 2000)


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("reaction", ["keep", "flush"])
def test_a_sender_with_flow_control_keeps_the_packets_behind_one_that_was_cut(link, net, asks, reaction):
    """What is not begun is not consumed: it is neither copied into the queue nor, if bad, counted twice."""
    a, b = link(a={"flow_control": True}, b={"capacity": 3, "reaction": reaction, "asks": asks})
    gso, bad, csum = Frame(4, True, bytes(range(250))), bytes(100), Frame(4, True, b"z")
    burst = [gso.data, bad, csum.data, csum.data]
    records = [gso.record(50), {"gso_type": 1}, csum.record(), None]
    assert a.send(burst, records) == 1                                          # 3 of 5 segments; the other 2 are the core's
    assert net.allocations == 2
    b.room(2)
    a.post(burst[1:], records[1:])
    for _ in range(3):
        b.room(1)
    got = b.recv()
    gso.check_segments(got[:5], 50)
    assert got[5:] == [csum.right, csum.data]
    assert b.stats()["drops"] == {"bad-offload": 1}
    assert net.allocations == 2


@pytest.mark.parametrize("asks", [True, False])
def test_a_burst_for_which_there_is_no_room_is_not_copied(link, net, asks):
    a, b = link(a={"flow_control": True}, b={"capacity": 10, "asks": asks})
    frame = Frame(4, True, b"z")
    assert a.send([b"", frame.data, b""] * 20, [None, frame.record(), None] * 20) == 31
    assert net.allocations == 0
    b.room(None)
    assert a.send([b"", frame.data, b""] * 10, [None, frame.record(), None] * 10) == 30
    assert b.recv() == [frame.right] * 20
    assert b.stats()["drops"] == {"empty": 41}


@pytest.mark.parametrize("tightly", [True, False])
def test_segments_never_overtake_each_other_nor_what_is_behind(link, tightly):
    """The receiver takes a few, says "no room" and flushes from within: the rest of the packet still comes before the next one."""
    a, b = link(b={"capacity": 3 if tightly else 50, "reaction": "flush", "asks": False})
    frame = Frame(4, True, bytes(range(256)) * 15)
    a.send([frame.data] * 5, frame.record(30))
    got = b.recv()
    assert len(got) == 5 * 128
    for i in range(5):
        frame.check_segments(got[i * 128 : (i + 1) * 128], 30)


def test_the_core_takes_the_largest_gso_packet_of_the_smallest_segments(link):
    """65 KiB in segments of a byte: bounded work, nothing lost though the receiver has room for one."""
    frame = Frame(4, True, bytes(60000))
    a, b = link(b={"capacity": 1})
    a.send([frame.data], frame.record(1))
    assert b.queued == 59999
    a.send([b"next"])
    b.room(None)
    assert b.stats()["rx_packets"] == 60000                                     # the queue was over its bound: "next" is counted
    assert b.stats()["drops"] == {"queue-full": 1}


@pytest.mark.parametrize(("waiting", "nbytes", "kept"), [(0, 4 * 154 + 100, 4), (0, 0, 0), (1, 1060, 6), (2, 2200, 7)])
def test_segments_that_find_no_room_stay_within_the_byte_bound(link, waiting, nbytes, kept):
    """The first ones wait, the others are counted; also when the packet had waited in the queue itself, with another one behind it."""
    frame = Frame(4, True, bytes(range(250)) * 4)                               # 1054 bytes: 10 segments of 154
    a, b = link(b={"capacity": 0 if waiting else 1, "asks": waiting > 0})
    b.queue_limits = (100, nbytes)
    a.send([frame.data] * (waiting or 1), frame.record(100))
    if waiting:
        assert b.queued == waiting
        b.room(1)
    assert b.queued == kept + (waiting == 2)
    assert b.stats()["drops"] == {"queue-full": 9 - kept}
    b.room(kept)
    assert b"".join(f[54:] for f in b.recv()) == frame.payload[: 100 * (kept + 1)]
    assert b.queued == (waiting == 2)


def test_a_packet_whose_segments_are_too_long_for_the_receiver_is_dropped_whole(link):
    """The short last one alone would be of no use."""
    a, b = link(b={"max_frame": 1000})
    frame, short = Frame(4, True, bytes(2500)), Frame(4, True, bytes(300))
    a.send([frame.data, frame.data, short.data], [frame.record(1000), frame.record(900), short.record(1448)])
    got = b.recv()
    frame.check_segments(got[:3], 900)
    assert got[3:] == [short.right]
    assert b.stats()["drops"] == {"oversize": 1}


def test_a_gso_packet_of_64_pieces_is_segmented_all_the_same(link):
    """That many are legal for the sender; the segment's own header in front makes one more than a packet may have."""
    a, b = link()
    frame = Frame(4, True, bytes(range(256)) * 8)
    pieces = cut(frame.data, list(range(frame.header + 1, frame.header + 64)))
    assert len(pieces) == 64
    a.send([pieces, b"behind"], [frame.record(1900), None])
    *got, last = b.recv()
    frame.check_segments(got, 1900)
    assert last == b"behind"
    a.send([pieces] * 3, frame.record(30))
    got = b.recv()
    for i in range(3):
        frame.check_segments(got[69 * i : 69 * (i + 1)], 30)


def test_a_packet_of_64_pieces_stays_within_64_when_it_is_repaired(link):
    a, b = link(b={"min_frame": 60})
    frame = Frame(4, False, bytes(range(20)))
    a.send([cut(frame.data, list(range(len(frame.data))))[-64:]], frame.record())
    long = Frame(4, True, bytes(9000))
    a.send([cut(long.data, [i * 100 for i in range(1, 64)])], long.record())
    got = b.recv()
    assert got[1:] == [long.right]
    assert b.stats()["drops"] == {}


def test_a_mixed_burst_keeps_its_order(link):
    a, b = link(b={"min_frame": 60})
    gso, csum, plain, short = Frame(4, True, bytes(5000)), Frame(6, False, bytes(300)), b"p" * 100, b"s" * 20
    a.send([plain, gso.data, short, csum.data, gso.data, plain],
           [None, gso.record(1448), None, csum.record(), gso.record(4000), None])
    got = b.recv()
    assert got[0] == got[9] == plain
    gso.check_segments(got[1:5], 1448)
    assert got[5:7] == [short.ljust(60, b"\0"), csum.right]
    gso.check_segments(got[7:9], 4000)
    assert b.bursts == 1


def test_repair_allocates_nothing(link, net):
    a, b = link(b={"min_frame": 60})
    frame = Frame(4, True, bytes(5000))
    for _ in range(100):
        a.send([frame.data, b"short", frame.data], [frame.record(1448), None, frame.record()])
    assert b.stats()["rx_packets"] == 100 * 6
    assert net.allocations == 0


def test_segments_behind_a_filter_that_holds(link):
    """A filter sees the packet as it was sent; the receiver gets segments when the filter lets go."""
    a, b = link()
    gate = Gate(b, "hold")
    gate.insert()
    frame = Frame(4, True, bytes(5000))
    a.send([frame.data], frame.record(1448))
    assert gate.seen == (0, 1)
    gate.release()
    frame.check_segments(b.recv(), 1448)
    gate.remove()


def test_loopback_repairs_too(make):
    a = make(min_frame=60)
    frame = Frame(4, True, bytes(5000))
    a.loopback([frame.data, b"x"], [frame.record(1448), None])
    got = a.recv()
    frame.check_segments(got[:4], 1448)
    assert got[4] == b"x".ljust(60, b"\0")


# ------------------------------------------------------------------------------------------------------------ hostile records

byte, half = st.integers(0, 255), st.one_of(st.integers(0, 70), st.integers(0, 65535), st.sampled_from([0, 1, 65534, 65535]))
records = st.fixed_dictionaries({"flags": byte, "gso_type": byte, "hdr_len": half, "gso_size": half, "csum_start": half,
                                 "csum_offset": half})
kinds = st.sampled_from(["plain", "csum", "csum tso4", "csum tso6 uso", "all", "tso4"])


@given(data=st.one_of(st.binary(min_size=1, max_size=300), frames.map(lambda f: f.data)), record=records, places=places, takes=kinds,
       min_frame=st.sampled_from([0, 60]))
@example(data=bytes(100), record={"flags": 0, "gso_type": 7, "hdr_len": 0, "gso_size": 0, "csum_start": 0, "csum_offset": 0},
         places=[], takes="all", min_frame=0)
@example(data=bytes(100), record={"flags": 1, "gso_type": 0, "hdr_len": 0, "gso_size": 0, "csum_start": 98, "csum_offset": 65535},
         places=[], takes="plain", min_frame=0)
def test_no_record_does_harm(loop, data, record, places, takes, min_frame):
    """6.3, CVE-2010-0741, CVE-2022-23087: any record on any bytes is delivered by the contract or dropped as bad-offload."""
    pieces = cut(data, places)
    with Pair(loop, takes=takes, min_frame=min_frame) as (a, b):
        assert a.send([pieces], record) == 1
        got, drops = b.recv(), b.stats()["drops"]
        assert set(drops) <= {"bad-offload"}
        assert bool(got) != bool(drops)
        assert b"".join(pieces) == data
        if record["flags"] & 1 == 0 and record["gso_type"] == 0:
            assert got == [data.ljust(min_frame, b"\0")]


@pytest.mark.parametrize("change", [
    {"gso_type": 2}, {"gso_type": 6}, {"gso_type": 7}, {"gso_type": 8}, {"gso_type": 16}, {"gso_type": 64}, {"gso_type": 127},
    {"gso_type": ECN}, {"gso_type": UFO}, {"gso_type": USO}, {"gso_type": TCPV6},
    {"gso_size": 0}, {"flags": 0}, {"csum_start": 33}, {"csum_start": 65535}, {"csum_offset": 6}, {"csum_offset": 65535},
], ids=str)  # fmt: skip
def test_a_record_that_does_not_fit_the_frame_is_counted(link, change):
    """Who takes nothing must be protected from what cannot be repaired, UFO included."""
    a, b = link(b={"takes": "csum"})
    frame = Frame(4, True, bytes(5000))
    a.send([frame.data], frame.record(1000) | change)
    assert b.recv() == []
    assert b.stats()["drops"] == {"bad-offload": 1}
    a.send([frame.data], frame.record(1000))
    frame.check_segments(b.recv(), 1000)


@pytest.mark.parametrize("gso_type", [2, 6, 7, 8, 9, 15, 16, 32, 64, 127, 7 | ECN])
def test_a_gso_type_that_does_not_exist_reaches_nobody(link, gso_type):
    """Not even who takes all there is: it could pass it on to a kernel or a guest."""
    a, b = link(b={"takes": "all"})
    frame = Frame(4, True, bytes(5000))
    a.send([frame.data], frame.record(1000, gso_type))
    assert b.recv() == []
    assert b.stats()["drops"] == {"bad-offload": 1}


def test_headers_that_lie_too_deep_for_software_are_counted(link):
    """Checksums further in than NET_MAX_HDR cannot be filled in."""
    a, b = link()
    a.send([bytes(1000)], {"flags": 1, "csum_start": 250, "csum_offset": 4})
    a.send([bytes(1000)], {"flags": 1, "csum_start": 250, "csum_offset": 5})
    assert len(b.recv()) == 1
    assert b.stats()["drops"] == {"bad-offload": 1}
