"""Receiving: buffers, several descriptors, write-back, room, tags, checksums, counters (4.8: RX1 to RX5, RX7 to RX14; manual 3.2)."""

import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from qnet.backends._hub import Hub, HubPort
from qnet.testing import Port
from qnet.testing import guest_e1000 as g

RX_RING, RX_BUF = 0x140000, 0x200000
DD, EOP, IXSM, VP = g.RX_DD, g.RX_EOP, g.RX_IXSM, g.RX_VP
DONE = DD | EOP | IXSM
SBP, VFE = 0x4, 0x40000
ROC, RUC, RFC, RJC, BPRC, MPRC = 0x40AC, 0x40A4, 0x40A8, 0x40B0, 0x4078, 0x407C


# ---- buffers and descriptors

@pytest.mark.parametrize("secrc", [True, False])
@pytest.mark.parametrize("size", list(g.RCTL_BSIZE))
def test_all_buffer_sizes(card: Any, t: Any, size: int, secrc: bool) -> None:
    """RX4, RX8: a frame that fits, one that just fits, one byte more, and one over three buffers. The FCS is counted, not stored."""
    for length in (60, size - 4, size, size + 1, 2 * size + 1):
        if not 60 <= length <= 16380:
            continue
        card.put(RX_BUF, bytes(8 * size))
        card.rx_init(8, size=size, rctl=g.RCTL_LPE | (0 if secrc else g.RCTL_SECRC))
        card.arrive(t.frame(length))
        total = length if secrc else length + 4
        wanted = -(-total // size)
        descs = [card.rx_desc(i) for i in range(8)]
        assert [d.length for d in descs] == [size] * (wanted - 1) + [total - size * (wanted - 1)] + [0] * (8 - wanted)
        assert [d.status for d in descs] == [DD] * (wanted - 1) + [DONE] + [0] * (8 - wanted)
        assert all((d.checksum, d.errors, d.special) == (0, 0, 0) for d in descs)
        assert card.get(RX_BUF, length + 8) == t.frame(length) + bytes(8)
        assert card.r(g.RDH) == wanted


def test_buffer_size_zero_with_bsex_is_2048(card: Any, t: Any) -> None:
    """RX8: 00 with BSEX is reserved."""
    card.rx_init(rctl=g.RCTL_LPE | 1 << 25)
    card.arrive(t.frame(3000))
    assert [card.rx_desc(i).length for i in (0, 1)] == [2048, 952]


@pytest.mark.parametrize("size", [1, 14, 17, 18, 59, 60])
def test_short_frames_are_padded(card: Any, t: Any, size: int) -> None:
    """RX4, S28: to 60 bytes, with zeros, whatever lay in the buffer."""
    card.put(RX_BUF, b"\xa5" * 64)
    card.rx_init(rctl=g.RCTL_UPE | g.RCTL_MPE)
    card.arrive(t.frame(size))
    assert card.received(0) == t.frame(size).ljust(60, b"\0")
    assert card.get(RX_BUF + 60, 4) == b"\xa5" * 4


def test_it_wraps(card: Any, t: Any) -> None:
    """RX11"""
    card.rx_init(8)
    for i in range(20):
        card.arrive(t.frame(60 + i))
        assert card.received(i % 8) == t.frame(60 + i)
        card.w(g.RDT, i % 8)
    assert card.r(g.RDH) == 20 % 8


def test_a_frame_across_the_rings_end(card: Any, t: Any) -> None:
    card.rx_init(8, size=256)
    card.write_all([(g.RDH, 6), (g.RDT, 5)])
    card.arrive(t.frame(1000))
    assert [card.rx_desc(i).length for i in (6, 7, 0, 1)] == [256, 256, 256, 232]
    assert b"".join(card.received(i) for i in (6, 7, 0, 1)) == t.frame(1000)
    assert card.r(g.RDH) == 2


def test_null_descriptors_are_skipped(card: Any, t: Any) -> None:
    """RX10: done, with nothing in them."""
    card.rx_init(16, size=256)
    for i in (0, 1, 3):
        card.put(RX_RING + 16 * i, bytes(16))
    card.arrive(t.frame(600))
    assert [(card.rx_desc(i).length, card.rx_desc(i).status) for i in range(7)] == [
        (0, DD), (0, DD), (256, DD), (0, DD), (256, DD), (88, DONE), (0, 0),
    ]  # fmt: skip
    assert card.r(g.RDH) == 6


def test_the_whole_descriptor_is_written(card: Any, t: Any) -> None:
    """3.2.3: whatever stood in it; the address stays."""
    card.rx_init()
    card.put(RX_RING + 8, b"\xff" * 8)
    card.arrive(t.frame())
    assert card.rx_desc(0) == (RX_BUF, 60, 0, DONE, 0, 0)


def test_dd_comes_last(t: Any) -> None:
    """RX10: a descriptor that is a buffer, too: the frame's bytes are below what is written back."""
    card = t.card()
    try:
        card.connect()
        card.rx_init()
        card.put(RX_RING, struct.pack("<QQ", RX_RING, 0))
        card.arrive(t.frame(60))
        assert card.get(RX_RING, 60) == t.frame(60)[:8] + struct.pack("<HHBBH", 60, 0, DONE, 0, 0) + t.frame(60)[16:]
    finally:
        card.close()


# ---- room

def test_rx_waits_for_its_conditions(card: Any, t: Any) -> None:
    """RX1, RX14: bus master, link, RDH != RDT. What comes before waits, and goes on with each of them."""
    card.rx_init(posted=0)
    card.arrive(t.frame(60))
    assert card.nic.queued == 1
    card.w(g.RDT, 4)
    assert card.received(0) == t.frame(60)
    card.enable(0x3)
    card.arrive(t.frame(61))
    assert card.nic.queued == 1
    card.enable(0x7)
    assert card.received(1) == t.frame(61)


@pytest.mark.parametrize(("options", "queued", "dropped"), [({}, 0, {"disabled": 2}), ({"rx_disabled_drops": False}, 2, {})])
def test_a_receiver_that_is_off(make_card: Callable[..., Any], t: Any, options: dict[str, bool], queued: int, dropped: dict[str, int]) -> None:
    """RCTL.EN (13.4.22): what arrives is lost; in QEMU's way it waits (RX1)."""
    card = make_card(**options)
    card.rx_init(rctl=g.RCTL_EN)
    card.arrive(t.frame(), t.frame())
    assert card.nic.queued == queued
    assert card.drops() == dropped
    card.w(g.RCTL, card.r(g.RCTL) | g.RCTL_EN)
    assert card.r(g.RDH) == queued


def test_forty_frames_into_four_buffers(card: Any, t: Any) -> None:
    """B25: QEMU loses 32 of them. Here all arrive, in order, as buffers come."""
    card.rx_init(64, posted=4)
    frames = [t.frame(60 + i) for i in range(40)]
    card.arrive(*frames)
    assert card.r(g.RDH) == 4
    got = [card.received(i) for i in range(4)]
    for tail in range(8, 44, 4):
        card.w(g.RDT, tail)
        got += [card.received(i) for i in range(tail - 4, tail)]
    assert got == frames
    assert card.read_all([g.MPC, g.RNBC]) == [0, 0]
    assert card.drops() == {}


def test_too_few_buffers_for_a_frame(card: Any, t: Any) -> None:
    """RX9, B25: it waits as a whole, and nothing overtakes it."""
    card.rx_init(16, size=256, posted=2)
    card.arrive(t.frame(600), t.frame(60))
    assert card.r(g.RDH) == 0
    card.w(g.RDT, 5)
    assert b"".join(card.received(i) for i in range(3)) == t.frame(600)
    assert card.received(3) == t.frame(60)


def test_a_frame_that_no_ring_could_hold_is_dropped(card: Any, t: Any) -> None:
    """RX9: RXO, RNBC, MPC; it would block the ring for ever."""
    card.rx_init(8, size=256, rctl=g.RCTL_LPE)
    card.r(g.ICR)
    card.arrive(t.frame(3000), t.frame(60))
    assert card.r(g.ICR) & g.RXO
    assert card.read_all([g.MPC, g.RNBC]) == [1, 1]
    assert card.drops() == {"no-buffer": 1}
    assert card.received(0) == t.frame(60)


def test_missed_frames_are_counted_for_good(card: Any, t: Any) -> None:
    """4.2: MPC does not clear on read."""
    card.rx_init(8, size=256, rctl=g.RCTL_LPE)
    card.arrive(t.frame(3000))
    assert card.read_all([g.MPC, g.MPC]) == [1, 1]


def test_a_buffer_outside_memory_loses_the_frame(card: Any, t: Any) -> None:
    """The descriptor comes back, the frame is counted as missed, the next one arrives."""
    card.rx_init()
    card.put(RX_RING, struct.pack("<Q", 0x7F000000))
    card.arrive(t.frame(60), t.frame(61))
    assert card.rx_desc(0).status == DONE
    assert card.received(1) == t.frame(61)
    assert card.r(g.MPC) == 1
    assert card.drops() == {"no-buffer": 1}


# ---- the second of silence

def test_qemus_second_of_silence(make_card: Callable[..., Any], t: Any) -> None:
    """RX2, B9, rx_at_once=off: each RCTL write starts it anew; what arrives meanwhile waits."""
    card = make_card(rx_at_once=False)
    card.rx_init()
    card.arrive(t.frame())
    card.advance(500_000_000)
    card.w(g.RCTL, card.r(g.RCTL))
    card.advance(999_999_999)
    assert card.r(g.RDH) == 0
    card.advance(1)
    assert card.received(0) == t.frame()


def test_no_silence_otherwise(card: Any, t: Any) -> None:
    card.rx_init()
    card.arrive(t.frame())
    card.w(g.RCTL, card.r(g.RCTL))
    card.arrive(t.frame())
    assert card.r(g.RDH) == 2


# ---- long frames

@pytest.mark.parametrize("sbp", [False, True])
@pytest.mark.parametrize("lpe", [False, True])
@pytest.mark.parametrize("length", [1518, 1519, 2049, 16380, 16381, 20000, 69632])
def test_long_frames(card: Any, t: Any, length: int, lpe: bool, sbp: bool) -> None:
    """RX5, CVE-2012-6075: limits are 1522 and 16384 with FCS, SBP lifts both; never a byte past the posted buffers."""
    card.rx_init(64, rctl=(g.RCTL_LPE if lpe else 0) | (SBP if sbp else 0))
    card.put(RX_BUF + 63 * 2048, b"\xa5" * 4096)
    card.arrive(t.frame(length))
    fits = sbp or length <= (16380 if lpe else 1518)
    assert card.r(ROC) == (0 if fits else 1)
    assert card.drops() == ({} if fits else {"oversize": 1})
    used = -(-length // 2048) if fits else 0
    assert card.r(g.RDH) == used
    assert b"".join(card.received(i) for i in range(used)) == (t.frame(length) if fits else b"")
    assert card.get(RX_BUF + 63 * 2048, 4096) == b"\xa5" * 4096


# ---- tags

TAG = 0x6123


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_tags_are_taken_off(card: Any, t: Any, pieces: int) -> None:
    """RX7: VP and the TCI in the descriptor, also of a frame that comes in several elements."""
    card.rx_init()
    card.w(g.CTRL, g.CTRL_VME)
    frame = t.tagged(t.frame(200), TAG)
    cuts = [0, *(3 + 7 * i for i in range(pieces - 1)), len(frame)]
    card.wire.send([[frame[a:b] for a, b in itertools.pairwise(cuts)]])
    assert card.rx_desc(0) == (RX_BUF, 200, 0, DONE | VP, 0, TAG)
    assert card.received(0) == t.frame(200)


def test_tags_stay_without_vme_or_with_another_ethertype(card: Any, t: Any) -> None:
    card.rx_init()
    frame = t.tagged(t.frame(200), TAG)
    card.arrive(frame)
    card.write_all([(g.CTRL, g.CTRL_VME), (g.VET, 0x88A8)])
    card.arrive(frame, t.tagged(t.frame(200), TAG, 0x88A8))
    assert [card.received(i) for i in range(3)] == [frame, frame, t.frame(200)]
    assert [card.rx_desc(i).status & VP for i in range(3)] == [0, 0, VP]


def test_a_short_tagged_frame_keeps_56_bytes(card: Any, t: Any) -> None:
    """60 on the wire, 4 of them the tag."""
    card.rx_init()
    card.w(g.CTRL, g.CTRL_VME)
    card.arrive(t.tagged(t.frame(20), TAG))
    assert card.received(0) == t.frame(20).ljust(56, b"\0")


def test_taking_a_tag_off_changes_nobody_elses_frame(make_card: Callable[..., Any], t: Any) -> None:
    """B16: two cards on a hub, both strip; QEMU's second one gets a frame that lost four bytes of its addresses."""
    one = make_card(connect=False)
    cards = [one, *(make_card(loop=one.loop, connect=False) for _ in range(2))]
    hub, source = Hub(one.loop, 0), Port(one.loop, "source")
    ports = [HubPort(one.loop, hub) for _ in range(4)]
    source.pair(ports[0])
    for card, port in zip(cards, ports[1:], strict=True):
        card.nic.pair(port)
        card.rx_init()
        card.w(g.CTRL, g.CTRL_VME)
    source.send([t.tagged(t.frame(200), TAG)])
    for card in cards:
        assert card.received(0) == t.frame(200)
        assert (card.rx_desc(0).status, card.rx_desc(0).special) == (DONE | VP, TAG)
    for client in (source, *ports):
        client.close()


def test_the_tag_is_in_each_descriptor_of_the_frame(card: Any, t: Any) -> None:
    card.rx_init(size=256)
    card.w(g.CTRL, g.CTRL_VME)
    card.arrive(t.tagged(t.frame(600), TAG))
    assert [(card.rx_desc(i).status, card.rx_desc(i).special) for i in range(3)] == [(DD | VP, TAG), (DD | VP, TAG), (DONE | VP, TAG)]


# ---- checksums

IP4 = IP(src="10.0.0.1", dst="10.0.0.2")
IP6 = IPv6(src="fd00::1", dst="fd00::2")
IPCS, TCPCS = g.RX_IPCS, g.RX_TCPCS


def bad(packet: Any, layer: type) -> bytes:
    """The packet with a wrong checksum in this layer."""
    packet = Ether(bytes(packet))
    packet[layer].chksum ^= 0x0101
    return bytes(packet)


ETH = Ether(dst="ff:ff:ff:ff:ff:ff", src="52:54:00:00:00:01")
GOOD_TCP, GOOD_UDP, GOOD_TCP6 = (ETH / IP4 / TCP() / Raw(b"x" * 51), ETH / IP4 / UDP() / Raw(b"y" * 33), ETH / IP6 / TCP() / Raw(b"z" * 20))
SUMS = {
    "tcp": (bytes(GOOD_TCP), IPCS | TCPCS, 0),
    "udp": (bytes(GOOD_UDP), IPCS | TCPCS, 0),
    "tcp over ipv6": (bytes(GOOD_TCP6), TCPCS, 0),
    "with options": (bytes(ETH / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP()] * 4) / TCP(options=[("NOP", None)] * 4)), IPCS | TCPCS, 0),
    "behind a tag": (bytes(ETH / Dot1Q(vlan=5) / IP4 / UDP() / Raw(b"t")), IPCS | TCPCS, 0),
    "bad ip": (bad(GOOD_TCP, IP), IPCS | TCPCS, g.RX_IPE),
    "bad tcp": (bad(GOOD_TCP, TCP), IPCS | TCPCS, g.RX_TCPE),
    "bad udp": (bad(GOOD_UDP, UDP), IPCS | TCPCS, g.RX_TCPE),
    "bad tcp over ipv6": (bad(GOOD_TCP6, TCP), TCPCS, g.RX_TCPE),
    "udp without": (bytes(ETH / IP4 / UDP(chksum=0) / Raw(b"n" * 20)), IPCS, 0),
    "a fragment": (bytes(ETH / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP() / Raw(b"f" * 24)), IPCS, 0),
    "another protocol": (bytes(ETH / IP(src="10.0.0.1", dst="10.0.0.2", proto=89) / Raw(b"o" * 24)), IPCS, 0),
    "not ip": (bytes(ETH) + b"\x88\xb5" + bytes(46), IXSM, 0),
}


@pytest.mark.parametrize("name", SUMS)
def test_receive_checksums(card: Any, name: str) -> None:
    """3.2.9: what was checked, and whether it was right; IXSM if nothing was."""
    frame, status, errors = SUMS[name]
    card.rx_init()
    card.w(g.RXCSUM, g.RXCSUM_IPOFLD | g.RXCSUM_TUOFLD)
    card.arrive(frame)
    d = card.rx_desc(0)
    assert (d.status, d.errors) == (DD | EOP | status, errors)


@pytest.mark.parametrize(("rxcsum", "status", "errors"), [
    (0, IXSM, 0), (g.RXCSUM_IPOFLD, IPCS, g.RX_IPE), (g.RXCSUM_TUOFLD, TCPCS, g.RX_TCPE),
])  # fmt: skip
def test_each_checksum_has_its_switch(card: Any, rxcsum: int, status: int, errors: int) -> None:
    card.rx_init()
    card.w(g.RXCSUM, rxcsum)
    card.arrive(bad(Ether(bad(GOOD_TCP, IP)), TCP))
    d = card.rx_desc(0)
    assert (d.status, d.errors) == (DD | EOP | status, errors)


def test_no_receive_checksums_in_qemus_way(make_card: Callable[..., Any]) -> None:
    """RX10, rx_checksum=off"""
    card = make_card(rx_checksum=False)
    card.rx_init()
    card.w(g.RXCSUM, g.RXCSUM_IPOFLD | g.RXCSUM_TUOFLD)
    card.arrive(bad(GOOD_TCP, TCP))
    assert (card.rx_desc(0).status, card.rx_desc(0).errors) == (DONE, 0)


def test_a_frame_vouched_for_is_good(card: Any) -> None:
    """Offload record: DATA_VALID, and unfinished checksums that the network completes."""
    card.rx_init()
    card.w(g.RXCSUM, g.RXCSUM_IPOFLD | g.RXCSUM_TUOFLD)
    card.arrive(bytes(GOOD_TCP), offload={"flags": 2})
    frame = bytes(GOOD_TCP)
    seeded = frame[:50] + struct.pack(">H", g.pseudo_sum(frame, g.parse(frame), len(frame) - 34)) + frame[52:]
    card.arrive(seeded, offload={"flags": 1, "csum_start": 34, "csum_offset": 16})
    assert [card.received(i) for i in (0, 1)] == [frame, frame]
    assert [card.rx_desc(i).status for i in (0, 1)] == [DD | EOP | IPCS | TCPCS] * 2


def test_checksum_bits_are_those_of_the_last_descriptor(card: Any) -> None:
    card.rx_init(size=256)
    card.w(g.RXCSUM, g.RXCSUM_IPOFLD | g.RXCSUM_TUOFLD)
    card.arrive(bad(ETH / IP4 / UDP() / Raw(b"q" * 400), UDP))
    assert [(card.rx_desc(i).status, card.rx_desc(i).errors) for i in (0, 1)] == [(DD, 0), (DD | EOP | IPCS | TCPCS, g.RX_TCPE)]


# ---- counters

@pytest.mark.parametrize(
    ("size", "counter"), [(60, 0), (61, 1), (123, 1), (124, 2), (251, 2), (252, 3), (507, 3), (508, 4), (1019, 4), (1020, 5), (1518, 5)]
)
def test_size_counters(card: Any, t: Any, size: int, counter: int) -> None:
    """RX13: by size with FCS."""
    card.rx_init(rctl=g.RCTL_SECRC)
    card.arrive(t.frame(size))
    assert card.read_all(range(0x405C, 0x4074, 4)) == [int(i == counter) for i in range(6)]


def test_size_counters_without_fcs(card: Any, t: Any) -> None:
    """RX13: with SECRC the FCS does not count, so a frame of 60 bytes is none of 64."""
    card.rx_init()
    card.arrive(t.frame(60), t.frame(64), t.frame(65))
    assert card.read_all(range(0x405C, 0x4074, 4)) == [1, 1, 0, 0, 0, 0]


def test_totals(card: Any, t: Any) -> None:
    """RX13: octets with FCS; GPRC and TPR of their own."""
    card.rx_init()
    card.arrive(t.frame(60), t.frame(1000))
    assert card.read_all([g.TPR, g.GPRC, g.TPR]) == [2, 2, 0]
    assert card.r(0x4088, 8) == card.r(0x40C0, 8) == 1068


@pytest.mark.parametrize(("dst", "mprc", "bprc"), [(b"\xff" * 6, 0, 1), (b"\x01\x00\x5e\x00\x00\x01", 1, 0), (b"\x02" * 6, 0, 0)])
def test_destination_counters(card: Any, t: Any, dst: bytes, mprc: int, bprc: int) -> None:
    card.rx_init(rctl=g.RCTL_UPE | g.RCTL_MPE)
    card.arrive(t.frame(60, dst=dst))
    assert card.read_all([MPRC, BPRC]) == [mprc, bprc]


def test_frames_not_taken_are_not_counted(card: Any, t: Any) -> None:
    card.rx_init()
    card.arrive(t.frame(60, dst=b"\x02" * 6))
    assert card.read_all([g.TPR, g.GPRC, 0x40C0]) == [0, 0, 0]
    assert card.drops() == {"address": 1}
    assert card.r(g.ICR) & (g.RXT0 | g.RXO) == 0


# ---- any frames

@settings(max_examples=50)
@given(
    size=st.sampled_from(list(g.RCTL_BSIZE)),
    lengths=st.lists(st.integers(1, 1518), min_size=1, max_size=30),
    posts=st.lists(st.integers(0, 8), max_size=12),
    vme=st.booleans(),
)
def test_any_frames_arrive_in_order(t: Any, size: int, lengths: list[int], posts: list[int], vme: bool) -> None:
    """Whatever the buffers and whenever they come: all frames, once, in order, or still waiting."""
    card = t.card()
    try:
        card.connect()
        n, tail = 16, 4
        card.rx_init(n, size=size, posted=tail, rctl=g.RCTL_UPE | g.RCTL_MPE)
        card.w(g.CTRL, g.CTRL_VME if vme else 0)
        sent = [t.tagged(t.frame(k, fill=i), i) if i % 3 == 0 and 14 <= k <= 1514 else t.frame(k, fill=i) for i, k in enumerate(lengths)]
        card.arrive(*sent)
        got: list[bytes] = []
        head, part = 0, b""
        for more in [0, *posts, *[8] * (8 * len(lengths))]:
            tail = (tail + more) % n if (tail - head) % n + more < n else tail
            card.w(g.RDT, tail)
            while head != card.r(g.RDH):
                d = card.rx_desc(head)
                part += card.received(head)
                if d.status & EOP:
                    got.append(t.tagged(part, d.special) if d.status & VP else part)
                    part = b""
                card.put(RX_RING + 16 * head + 8, bytes(8))
                head = (head + 1) % n
            if len(got) == len(sent):
                break
        assert got == [frame.ljust(60, b"\0") for frame in sent]
        assert card.nic.queued == 0
    finally:
        card.close()
