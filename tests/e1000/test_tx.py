"""The transmit ring: legacy and plain data descriptors, write-back, tags, counters (4.7: T1 to T3, T6, T7, T10 to T13; manual 3.3, 3.4)."""

import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.testing import Sink
from qnet.testing import guest_e1000 as g

TX_RING, TX_BUF = 0x110000, 0x180000
DD, EC, LC, TU = 1, 2, 4, 8
RPS = 0x10


# ---- the ring

@pytest.mark.parametrize("kind", ["legacy", "data"])
@pytest.mark.parametrize("size", [1, 6, 14, 59, 60, 1514, 9000, 65535])
def test_a_frame_goes_out_as_it_is(card: Any, t: Any, kind: str, size: int) -> None:
    """T11: no padding on the wire, no minimum; the peer pads if it wants to."""
    card.tx_init()
    card.put(TX_BUF, t.frame(size))
    assert card.tx(getattr(t, kind)(TX_BUF, size)) == [t.frame(size)]
    assert card.r(g.TDH) == 1
    assert card.tx_status(0) == DD


def test_a_data_descriptor_has_twenty_bits_of_length(card: Any, t: Any) -> None:
    """3.3.7: the legacy one has 16 and CSO behind them."""
    card.tx_init()
    card.put(TX_BUF, t.frame(60))
    assert card.tx(t.legacy(TX_BUF, 60, cso=1)) == [t.frame(60)]
    assert [len(f) for f in card.tx(t.data(TX_BUF, 0x10010))] == [65536]


def test_a_frame_in_pieces(card: Any, t: Any) -> None:
    """T11: nothing before EOP; pieces of any size, also none."""
    frame = t.frame(1000)
    card.tx_init()
    card.put(TX_BUF, frame)
    cuts = [0, 1, 1, 14, 500, 999, 1000]
    descs = [t.legacy(TX_BUF + a, b - a, g.CMD_RS | (g.CMD_EOP if b == 1000 else 0)) for a, b in itertools.pairwise(cuts)]
    assert card.tx(*descs[:-1]) == []
    assert [card.tx_status(i) for i in range(6)] == [DD] * 5 + [0]
    assert card.tx(descs[-1]) == [frame]


def test_pieces_may_change_once_they_came_back(card: Any, t: Any) -> None:
    """A driver that sees DD reuses the buffer: the bytes were taken by then (T12)."""
    card.tx_init()
    card.put(TX_BUF, b"A" * 30)
    assert card.tx(t.legacy(TX_BUF, 30, g.CMD_RS)) == []
    assert card.tx_status(0) == DD
    card.put(TX_BUF, b"B" * 30)
    assert card.tx(t.legacy(TX_BUF, 30)) == [b"A" * 30 + b"B" * 30]


@pytest.mark.parametrize("pieces", [62, 63, 64, 65, 200, 255])
def test_many_pieces(card: Any, t: Any, pieces: int) -> None:
    """More elements than a packet may have: the chip gathers them itself."""
    card.tx_init(256)
    card.put(TX_BUF, t.frame(20 * pieces))
    card.queue(*(t.legacy(TX_BUF + 20 * i, 20, g.CMD_EOP | g.CMD_RS if i == pieces - 1 else g.CMD_RS) for i in range(pieces)))
    card.w(g.TDT, card.tx_next)
    assert card.sent == [t.frame(20 * pieces)]
    assert all(card.tx_status(i) == DD for i in range(pieces))


def test_several_frames_of_many_pieces(card: Any, t: Any) -> None:
    """Gathered frames share a buffer of the chip: none may overwrite another."""
    card.tx_init(1024)
    frames = [t.frame(70 * 5 + i, fill=i) for i in range(8)]
    for i, frame in enumerate(frames):
        at = card.put(TX_BUF + 0x1000 * i, frame)
        card.queue(*(t.legacy(at + 5 * k, 5, 0) for k in range(70)), t.legacy(at + 350, i) if i else t.legacy(at, 0))
    card.w(g.TDT, card.tx_next)
    assert card.sent == frames


@pytest.mark.parametrize("ring", [8, 16, 256, 4096])
def test_it_wraps(card: Any, t: Any, ring: int) -> None:
    """3.4"""
    card.tx_init(ring)
    card.write_all([(g.TDH, ring - 2), (g.TDT, ring - 2)])
    card.tx_next = ring - 2
    frames = [t.frame(60 + i) for i in range(5)]
    for i, frame in enumerate(frames):
        card.queue(t.legacy(card.put(TX_BUF + 0x1000 * i, frame), len(frame)))
    card.w(g.TDT, 3)
    assert card.sent == frames
    assert card.r(g.TDH) == 3
    assert [card.tx_status(i % ring) for i in range(ring - 2, ring + 3)] == [DD] * 5


def test_a_whole_ring_in_one_doorbell(card: Any, t: Any) -> None:
    """T1: everything up to the tail, synchronously; one interrupt evaluation."""
    card.tx_init(4096)
    card.w(g.IMS, g.TXDW)
    card.put(TX_BUF, t.frame(60))
    card.queue(*[t.legacy(TX_BUF, 60)] * 4095)
    card.w(g.TDT, card.tx_next)
    assert card.sent == [t.frame(60)] * 4095
    assert card.r(g.TDH) == 4095
    assert all(card.tx_status(i) == DD for i in range(4095))
    assert card.irq.rises == 1


def test_tctl_starts_it_too(card: Any, t: Any) -> None:
    """T1"""
    card.tx_init(tctl=0)
    card.put(TX_BUF, t.frame())
    assert card.tx(t.legacy(TX_BUF, 60)) == []
    assert card.r(g.TDH) == 0
    card.w(g.TCTL, g.TCTL_EN)
    assert card.sent == [t.frame()]


def test_bus_master_starts_it_too(card: Any, t: Any) -> None:
    """Descriptors posted while the chip could not reach memory are sent once it can."""
    card.tx_init()
    card.enable(0x3)
    card.put(TX_BUF, t.frame())
    assert card.tx(t.legacy(TX_BUF, 60)) == []
    assert card.tx_status(0) == 0
    card.enable(0x7)
    assert card.sent == [t.frame()]
    assert card.tx_status(0) == DD


@pytest.mark.parametrize("base", [0x10_0000_0000, 0xFFFF_FFFF_0000_0000])
def test_a_ring_and_buffers_above_4_gib(base: int, t: Any) -> None:
    """TDBAH; 64-bit buffer addresses."""
    from qnet._host import GuestMemory, IrqLine
    from qnet._loop import Loop, VirtualClock
    from qnet.models.e1000 import E1000, Options
    from qnet.testing import Port

    loop, memory = Loop(VirtualClock()), bytearray(0x10000)
    host = GuestMemory([(base, memory)])
    nic = E1000(loop, "nic", "e1000", Options(), bytes(6), host, IrqLine())
    wire = Port(loop, "wire")
    nic.pair(wire)
    memory[0x1000 : 0x1000 + 60] = t.frame()
    memory[:16] = t.legacy(base + 0x1000, 60)
    nic.cfg_write(4, 2, 4)
    for reg, value in ((g.TDBAL, base & 0xFFFFFFFF), (g.TDBAH, base >> 32), (g.TDLEN, 128), (g.TCTL, g.TCTL_EN), (g.TDT, 1)):
        nic.bar_write(0, reg, 4, value)
    assert wire.recv() == [t.frame()]
    assert memory[12] == DD
    for it in (nic, wire, host, loop):
        it.close()


def test_the_low_bits_of_the_base_do_not_count(make_card: Callable[..., Any], t: Any) -> None:
    """4.2: storage in QEMU, reserved in the manual; not used in either."""
    card = make_card(compat="qemu")
    card.tx_init()
    card.w(g.TDBAL, TX_RING | 15)
    assert card.send(t.frame()) == [t.frame()]


# ---- write-back

@pytest.mark.parametrize(("cmd", "reported"), [(0, False), (g.CMD_RS, True), (RPS, True), (g.CMD_RS | RPS, True), (g.CMD_IFCS, False)])
def test_only_who_asks_is_reported(card: Any, t: Any, cmd: int, reported: bool) -> None:
    """T12: RS, or RPS of the 82544."""
    card.tx_init()
    card.r(g.ICR)
    card.send(t.frame(), g.CMD_EOP | cmd)
    assert card.tx_status(0) == (DD if reported else 0)
    assert bool(card.r(g.ICR) & g.TXDW) is reported


def test_write_back_touches_the_status_byte_alone(card: Any, t: Any) -> None:
    """T12: DD is set, EC, LC and TU cleared; the rest of the descriptor stays as it was."""
    card.tx_init()
    card.put(TX_BUF, t.frame())
    before = struct.pack("<QHBBBBH", TX_BUF, 60, 0x5A, g.CMD_EOP | g.CMD_RS, 0xF0 | EC | LC | TU, 0xA5, 0x1234)
    card.tx(before)
    assert card.get(TX_RING, 16) == before[:12] + bytes([0xF0 | DD]) + before[13:]


def test_context_descriptors_are_written_back_too(card: Any, t: Any) -> None:
    """T4"""
    card.tx_init()
    card.tx(t.context(cmd=g.CMD_RS), t.context())
    assert (card.tx_status(0), card.tx_status(1)) == (DD, 0)


def test_frames_are_out_before_they_come_back(make_card: Callable[..., Any], t: Any) -> None:
    """T12: who sees DD may reuse the buffer, so the peer is done with it. The peer's answer is received into the descriptor itself: DD lies on
    top of it, not under it."""
    card = make_card(port={"reaction": "echo"})
    card.rx_init()
    card.put(0x140000, struct.pack("<Q", TX_RING))
    card.tx_init()
    card.send(t.frame(60))
    answer = t.frame(60)
    assert card.get(TX_RING, 60) == answer[:12] + bytes([DD]) + answer[13:]


def test_the_senders_memory_is_never_written(card: Any, t: Any) -> None:
    """B16, B23: tags and checksums go into copies of the header."""
    frame = t.frame(200)
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    card.put(TX_BUF, frame)
    card.tx(t.context(ipcss=14, ipcso=24, ipcse=33, tucss=34, tucso=50), t.data(TX_BUF, 200, g.CMD_EOP | g.CMD_VLE, g.IXSM | g.TXSM, 0x123))
    assert card.get(TX_BUF, 200) == frame


# ---- tags

TAG = 0x6123


@pytest.mark.parametrize("kind", ["legacy", "data"])
@pytest.mark.parametrize(("vme", "vle", "tagged"), [(True, True, True), (True, False, False), (False, True, False)])
def test_vlan_insertion(card: Any, t: Any, kind: str, vme: bool, vle: bool, tagged: bool) -> None:
    """T10: both CTRL.VME and VLE."""
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME if vme else 0)
    card.put(TX_BUF, t.frame(100))
    sent = card.tx(getattr(t, kind)(TX_BUF, 100, g.CMD_EOP | (g.CMD_VLE if vle else 0), special=TAG))
    assert sent == [t.tagged(t.frame(100), TAG) if tagged else t.frame(100)]


def test_vet_is_the_ethertype_of_the_tag(card: Any, t: Any) -> None:
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    card.w(g.VET, 0x88A8)
    assert card.send(t.frame(60), g.CMD_EOP | g.CMD_VLE, special=5) == [t.tagged(t.frame(60), 5, 0x88A8)]


def test_the_tag_is_that_of_the_last_descriptor(card: Any, t: Any) -> None:
    """T10: of the one with EOP."""
    frame = t.frame(60)
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    card.put(TX_BUF, frame)
    first, last = t.data(TX_BUF, 7, g.CMD_VLE, special=1), t.data(TX_BUF + 7, 53, g.CMD_EOP | g.CMD_VLE, special=2)
    assert card.tx(first, last) == [t.tagged(frame, 2)]
    assert card.tx(first, t.data(TX_BUF + 7, 53, g.CMD_EOP, special=2)) == [frame]


@pytest.mark.parametrize("size", [12, 13, 14, 15, 16, 17])
def test_a_tag_in_a_short_frame(card: Any, t: Any, size: int) -> None:
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    assert card.send(t.frame(size), g.CMD_EOP | g.CMD_VLE, special=TAG) == [t.tagged(t.frame(size), TAG)]


@pytest.mark.parametrize("size", range(1, 12))
def test_a_frame_without_addresses_gets_no_tag(card: Any, t: Any, size: int) -> None:
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    assert card.send(t.frame(size), g.CMD_EOP | g.CMD_VLE, special=TAG) == [t.frame(size)]


# ---- counters

@pytest.mark.parametrize(
    ("size", "counter"),
    [(60, 0), (61, 1), (123, 1), (124, 2), (251, 2), (252, 3), (507, 3), (508, 4), (1019, 4), (1020, 5), (1514, 5), (9000, 5)],
)
def test_size_counters(card: Any, t: Any, size: int, counter: int) -> None:
    """T13: by size with FCS; PTC64 to PTC1522."""
    card.tx_init()
    card.send(t.frame(size))
    assert card.read_all(range(0x40D8, 0x40F0, 4)) == [int(i == counter) for i in range(6)]


def test_a_runt_has_no_size_counter(card: Any, t: Any) -> None:
    """PTC64 counts frames of exactly 64 bytes (13.7.55)."""
    card.tx_init()
    card.send(t.frame(59))
    assert card.read_all([g.TPT, g.GPTC, *range(0x40D8, 0x40F0, 4)]) == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("dst", "mptc", "bptc"), [(b"\xff" * 6, 0, 1), (b"\x01\x00\x5e\x00\x00\x01", 1, 0), (b"\x02" * 6, 0, 0), (b"\xff" * 5 + b"\xfe", 1, 0)]
)
def test_destination_counters(card: Any, t: Any, dst: bytes, mptc: int, bptc: int) -> None:
    """T13"""
    card.tx_init()
    card.send(t.frame(60, dst=dst))
    assert card.read_all([0x40F0, 0x40F4]) == [mptc, bptc]


def test_totals(card: Any, t: Any) -> None:
    """T13: TPT and GPTC count frames, TOT and GOTC octets with FCS, each of its own: reading one leaves the other."""
    card.tx_init()
    for size in (60, 100, 1514):
        card.send(t.frame(size))
    assert card.r(g.TPT) == 3
    assert card.r(g.GPTC) == 3
    assert card.r(0x40C8, 8) == 1686
    assert card.r(0x4090, 8) == 1686


def test_an_inserted_tag_counts(card: Any, t: Any) -> None:
    """13.7.34: octets on the wire."""
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    card.send(t.frame(60), g.CMD_EOP | g.CMD_VLE)
    assert card.r(0x40C8) == 68
    assert card.read_all(range(0x40D8, 0x40F0, 4)) == [0, 1, 0, 0, 0, 0]


# ---- what does not go out

def test_an_empty_frame_is_dropped_and_done(card: Any, t: Any) -> None:
    """B26: no 0-byte frame on the wire, and the ring goes on."""
    card.tx_init()
    card.put(TX_BUF, t.frame())
    assert card.tx(t.legacy(TX_BUF, 0), t.legacy(TX_BUF, 60)) == [t.frame()]
    assert card.tx_status(0) == DD
    assert card.drops() == {"empty": 1}


@pytest.mark.parametrize("addr", [0x7F000000, 0x3FFFFC, 0xFFFFFFFFFFFFFFF0, 1 << 63])
def test_a_frame_outside_memory_is_dropped_and_done(card: Any, t: Any, addr: int) -> None:
    """Also one that runs out of memory, or round the end of the address space."""
    card.tx_init()
    card.put(TX_BUF, t.frame())
    assert card.tx(t.legacy(addr, 60), t.legacy(TX_BUF, 60)) == [t.frame()]
    assert card.tx_status(0) == DD
    assert card.drops() == {"dma": 1}


def test_one_lost_piece_loses_the_frame(card: Any, t: Any) -> None:
    card.tx_init()
    card.put(TX_BUF, t.frame())
    assert card.tx(t.legacy(TX_BUF, 30, 0), t.legacy(0x7F000000, 10, 0), t.legacy(TX_BUF, 30)) == []
    assert card.drops() == {"dma": 1}
    assert card.send(t.frame()) == [t.frame()]


def test_what_is_over_64_kib_is_lost(card: Any, t: Any) -> None:
    """T7, CVE-2012-0029"""
    card.tx_init()
    card.put(TX_BUF, t.frame(0x8000))
    sent = card.tx(*(t.legacy(TX_BUF, 0x8000, g.CMD_EOP if i == 39 else 0) for i in range(40)), t.legacy(TX_BUF, 60))
    assert sent == [t.frame(0x8000) * 2, t.frame(0x8000)[:60]]


def test_a_full_peer_holds_no_frame_back(card: Any, t: Any) -> None:
    """T11: the chip does not wait; the network's queue takes what the peer has no room for."""
    card.wire.close()
    card.connect(capacity=2)
    card.tx_init()
    card.put(TX_BUF, t.frame())
    assert card.tx(*[t.legacy(TX_BUF, 60)] * 5) == [t.frame()] * 2
    assert card.r(g.TDH) == 5
    card.wire.room(None)
    assert card.sent == [t.frame()] * 3


def test_without_a_peer_frames_are_dropped(make_card: Callable[..., Any], t: Any) -> None:
    """S10: and the driver does not notice."""
    card = make_card(connect=False)
    card.tx_init()
    card.send(t.frame())
    assert card.tx_status(0) == DD
    assert card.drops() == {"no-peer": 1}


# ---- any mix

@given(
    pieces=st.lists(st.tuples(st.integers(0, 3000), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60),
    kicks=st.sets(st.integers(0, 59)),
)
def test_any_frames_in_any_pieces(t: Any, pieces: list[tuple[int, bool, bool, bool]], kicks: set[int]) -> None:
    """What goes out is the bytes between EOPs, in order, whatever the descriptors' kinds, sizes and doorbells."""
    card = t.card()
    try:
        card.connect()
        card.tx_init(64)
        expected, frame = [], b""
        for i, (size, eop, report, kind) in enumerate(pieces):
            body = bytes((i * 31 + k) & 0xFF for k in range(size))
            at = card.put(TX_BUF + 0x1000 * i, body)
            card.queue((t.data if kind else t.legacy)(at, size, (g.CMD_EOP if eop else 0) | (g.CMD_RS if report else 0)))
            frame += body
            if eop:
                expected += [frame[:65536]] if frame else []
                frame = b""
            if i in kicks:
                card.w(g.TDT, card.tx_next)
        card.w(g.TDT, card.tx_next)
        assert card.sent == expected
        assert [card.tx_status(i) for i in range(len(pieces))] == [DD if report else 0 for _, _, report, _ in pieces]
    finally:
        card.close()


def test_a_burst_reaches_a_sink_whole(make_card: Callable[..., Any], t: Any) -> None:
    """No frame is lost or doubled at any ring length around the sizes of bursts."""
    for n in (1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000):
        card = make_card(connect=False)
        sink = Sink(card.loop, "sink", checksum=True)
        card.nic.pair(sink)
        card.tx_init(1024)
        card.put(TX_BUF, t.frame(60))
        card.queue(*[t.legacy(TX_BUF, 60)] * n)
        card.w(g.TDT, card.tx_next)
        assert (sink.packets, sink.bytes, sink.sum) == (n, 60 * n, sum(t.frame(60)) * n)
        sink.close()
