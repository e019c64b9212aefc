"""A guest that means harm: rings, heads, descriptors and contexts that make no sense (6.1). Whatever it does: no exception, an end, no byte
outside its memory; and a card that works once it is set up as it should be.
"""

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet.testing import guest_e1000 as g

TX_RING, RX_RING, TX_BUF, RX_BUF = 0x110000, 0x140000, 0x180000, 0x200000
MEMORY = 4 << 20
EOP = g.CMD_EOP | g.CMD_RS
SBP, VFE = 0x4, 0x40000


def works(card: Any, t: Any) -> None:
    """The card does its job once a driver sets it up."""
    card.w(g.CTRL, g.CTRL_RST)
    card.w(g.MDIC, 1 << 21 | 0x04000000 | 0x1140)
    card.put(0, bytes(MEMORY))
    card.tx_init(8)
    card.rx_init(8)
    card.sent                                           # noqa: B018 - what went out before
    assert card.send(t.frame(100)) == [t.frame(100)]
    card.arrive(t.frame(100))
    assert card.received(0) == t.frame(100)


# ---- transmit rings

@pytest.mark.parametrize("tail", [0, 1, 7, 8, 200, 0xFFFF])
@pytest.mark.parametrize("head", [0, 7, 8, 100, 0xFFFF])
@pytest.mark.parametrize("length", [0, 128])
def test_heads_and_tails_outside_the_ring(card: Any, t: Any, length: int, head: int, tail: int) -> None:
    """T2, CVE-2016-1981: a ring's worth of descriptors at most; one if the head is outside or the ring has none."""
    card.tx_init(8, tctl=0)
    for i in range(8):
        card.put(TX_RING + 16 * i, t.legacy(card.put(TX_BUF + 64 * i, t.frame(60, fill=i)), 60))
    for i in (8, 100, 0xFFFF):
        card.put(TX_RING + 16 * i, t.legacy(card.put(TX_BUF + 0x1000, t.frame(61)), 61))
    card.write_all([(g.TDLEN, length), (g.TDH, head), (g.TDT, tail), (g.TCTL, g.TCTL_EN)])
    sent = card.sent
    if head == tail:
        assert sent == []
    elif length == 0 or head >= 8:
        assert len(sent) == 1
        assert card.r(g.TDH) == 0
    else:
        assert len(sent) == ((tail - head) % 8 if tail < 8 else 8)
    works(card, t)


def test_a_ring_of_no_length_sends_one_a_doorbell(card: Any, t: Any) -> None:
    """T2: Zephyr's driver relies on it."""
    card.tx_init(8)
    card.w(g.TDLEN, 0)
    for i in range(5):
        card.put(TX_RING, t.legacy(card.put(TX_BUF, t.frame(60 + i)), 60 + i))
        card.w(g.TDT, 1)
        assert card.sent == [t.frame(60 + i)]
        assert card.r(g.TDH) == 0


@pytest.mark.parametrize("base", [0x7F000000, MEMORY - 64, MEMORY - 8, 0xFFFFFFFF_FFFFFFF0, 0xFFFFFFFF_00000000])
def test_transmit_rings_that_are_not_memory(card: Any, t: Any, base: int) -> None:
    """Wholly or from somewhere on, or round the end of the address space."""
    card.tx_init(8)
    card.write_all([(g.TDBAL, base & 0xFFFFFFFF), (g.TDBAH, base >> 32), (g.TDT, 7)])
    assert card.sent == []
    assert card.r(g.TDH) == 7
    works(card, t)


@pytest.mark.parametrize("base", [0x7F000000, MEMORY - 64, MEMORY - 8, 0xFFFFFFFF_FFFFFFF0])
def test_receive_rings_that_are_not_memory(card: Any, t: Any, base: int) -> None:
    card.rx_init(8)
    card.write_all([(g.RDBAL, base & 0xFFFFFFFF), (g.RDBAH, base >> 32)])
    for _ in range(10):
        card.arrive(t.frame(100))
        card.w(g.RDT, (card.r(g.RDH) - 1) % 8)
    assert card.r(g.MPC) == 10
    works(card, t)


@pytest.mark.parametrize("tail", [0, 1, 7, 8, 200, 0xFFFF])
@pytest.mark.parametrize("head", [0, 7, 8, 100, 0xFFFF])
@pytest.mark.parametrize("length", [0, 128])
@pytest.mark.parametrize("size", [60, 1400])
def test_receive_heads_and_tails_outside_the_ring(card: Any, t: Any, size: int, length: int, head: int, tail: int) -> None:
    """RX11, CVE-2016-1981: each frame ends, and none is written beyond where descriptors point."""
    card.rx_init(8, size=256)
    for i in (8, 100, 0xFFFF):
        card.put(RX_RING + 16 * i, struct.pack("<QQ", RX_BUF + 0x4000, 0))
    card.write_all([(g.RDLEN, length), (g.RDH, head), (g.RDT, tail)])
    for _ in range(30):
        card.arrive(t.frame(size))
    assert not any(card.get(RX_BUF + 0x800, 0x3800))
    assert not any(card.get(RX_BUF + 0x4100, 0x1000))
    works(card, t)


def test_null_receive_descriptors_everywhere(card: Any, t: Any) -> None:
    """RX11: a ring of them holds no frame; overrun, and an end."""
    card.rx_init(8)
    card.put(RX_RING, bytes(128))
    card.r(g.ICR)
    for _ in range(10):
        card.arrive(t.frame(60))
        card.w(g.RDT, (card.r(g.RDH) - 1) % 8)
    assert card.r(g.ICR) & g.RXO
    assert card.r(g.MPC) == 10
    works(card, t)


def test_receive_descriptors_in_their_own_ring(card: Any, t: Any) -> None:
    """Frames over descriptors: each descriptor is read once, when its turn comes."""
    card.rx_init(16, size=256)
    for i in range(16):
        card.put(RX_RING + 16 * i, struct.pack("<QQ", RX_RING + 16 * (i ^ 1), 0))
    for size in (60, 255, 256, 257, 1000, 60, 60):
        card.arrive(t.frame(size, fill=size))
        card.w(g.RDT, (card.r(g.RDH) - 1) % 16)
    works(card, t)


def test_transmit_descriptors_as_data(card: Any, t: Any) -> None:
    """Frames made of the ring itself, while it is written back."""
    card.tx_init(256)
    card.queue(*(t.legacy(TX_RING, 256 * 16 - 1) for _ in range(200)))
    card.w(g.TDT, card.tx_next)
    assert len(card.sent) == 200
    works(card, t)


def test_rings_on_top_of_each_other(card: Any, t: Any) -> None:
    """Transmit and receive share descriptors, and what is sent comes back into them."""
    card.tx_init(64)
    card.rx_init(64, rctl=g.RCTL_UPE | g.RCTL_MPE | 0x40, at=TX_RING)
    card.queue(*(t.legacy(TX_RING + 16 * i, 60) for i in range(60)))
    card.w(g.TDT, card.tx_next)
    assert card.r(g.TDH) == 60
    works(card, t)


# ---- contexts

def test_the_context_changes_within_a_packet(card: Any, t: Any) -> None:
    """CVE-2021-20257: also between checksum and segmentation contexts, and TSE on and off from piece to piece."""
    rng = random.Random(5)
    for _ in range(200):
        card.tx_init(64)
        card.put(TX_BUF, rng.randbytes(4096))
        for i in range(rng.randrange(2, 40)):
            if rng.random() < 0.3:
                fields = {name: rng.choice([0, 1, 14, 34, 54, 255]) for name in ("ipcss", "ipcso", "tucss", "tucso", "hdr_len")}
                ends = {name: rng.choice([0, 1, 33, 60, 0xFFFF]) for name in ("ipcse", "tucse", "mss")}
                card.queue(t.context(**fields, **ends, paylen=rng.getrandbits(20), cmd=rng.randrange(16)))
            else:
                cmd = rng.choice([0, g.CMD_TSE]) | (g.CMD_EOP if rng.random() < 0.2 or i == 39 else 0)
                card.queue(t.data(TX_BUF + rng.randrange(2048), rng.randrange(2048), cmd, rng.randrange(4)))
        card.w(g.TDT, card.tx_next)
        assert card.r(g.TDH) == card.tx_next
    works(card, t)


@pytest.mark.parametrize("size", [1, 2, 13, 14, 15, 34, 54, 60, 255, 256, 257, 300])
@pytest.mark.parametrize("tse", [False, True])
def test_checksum_offsets_beyond_the_frame(card: Any, t: Any, size: int, tse: bool) -> None:
    """6.1: css, cso and cse wherever, in frames of any size; only bytes of the frame are summed, and nothing grows."""
    frame = t.frame(size)
    edges = sorted({0, 1, 12, 14, 34, max(0, size - 2), max(0, size - 1), size, 254, 255} & set(range(256)))
    for css in edges:
        for cso in edges:
            card.tx_init(8)
            cmd = g.TUCMD_TSE | g.TUCMD_TCP | g.TUCMD_IP if tse else 0
            ends = {"ipcse": 0, "tucse": min(css + 3, 255), "hdr_len": min(size // 2, 255), "mss": 70}
            card.queue(t.context(ipcss=css, ipcso=cso, tucss=cso, tucso=css, cmd=cmd, **ends))
            sent = card.tx(t.data(card.put(TX_BUF, frame), size, EOP | (g.CMD_TSE if tse else 0), 3))
            assert tse or [len(f) for f in sent] == [size]
            assert card.get(TX_BUF, size) == frame
    works(card, t)


@pytest.mark.parametrize("size", [1, 5, 59, 60, 256, 300])
def test_legacy_offsets_beyond_the_frame(card: Any, t: Any, size: int) -> None:
    frame = t.frame(size)
    for css in (0, 1, 58, 59, 60, 254, 255):
        for cso in (0, 1, 58, 59, 60, 254, 255):
            card.tx_init(8)
            assert [len(f) for f in card.send(frame, EOP | g.CMD_IC, cso=cso, css=css)] == [size]
    works(card, t)


@pytest.mark.parametrize(("hdr_len", "mss"), [(0, 0), (0, 1), (1, 0), (1, 1), (54, 1), (255, 1), (255, 0xFFFF), (54, 0xFFFF)])
@pytest.mark.parametrize("size", [1, 54, 55, 255, 256, 3000])
def test_segmentation_ends(card: Any, t: Any, hdr_len: int, mss: int, size: int) -> None:
    """CVE-2015-6815, CVE-2021-20257"""
    card.tx_init(8)
    card.queue(t.context(ipcss=14, ipcso=24, ipcse=33, tucss=34, tucso=50, hdr_len=hdr_len, mss=mss, cmd=7))
    sent = card.tx(t.data(card.put(TX_BUF, t.frame(size)), size, EOP | g.CMD_TSE, 3))
    assert len(sent) <= size
    assert card.r(g.TDH) == 2
    works(card, t)


# ---- the network's side

@pytest.mark.parametrize("rctl", [0, SBP, g.RCTL_LPE, SBP | g.RCTL_LPE])
@pytest.mark.parametrize("size", [256, 2048, 16384])
def test_jumbo_frames_stay_in_their_buffers(card: Any, t: Any, rctl: int, size: int) -> None:
    """CVE-2012-6075: LPE and SBP, any frame, any buffer size: the buffer behind the last one posted is never touched."""
    for length in (1514, 1523, 2049, 9000, 16385, 69632):
        card.rx_init(8, size=size, rctl=rctl, posted=4)
        card.put(RX_BUF, b"\xa5" * (8 * size))
        card.arrive(t.frame(length))
        assert card.get(RX_BUF + 4 * size, 4 * size) == b"\xa5" * (4 * size)
        card.w(g.CTRL, g.CTRL_RST)
    works(card, t)


def test_buffers_that_end_with_memory(card: Any, t: Any) -> None:
    """A buffer of which only the first bytes exist: they may be written, nothing else is."""
    card.rx_init(8)
    for i, left in enumerate((0, 1, 59, 60)):
        card.put(RX_RING + 16 * i, struct.pack("<Q", MEMORY - left))
        card.arrive(t.frame(60))
    assert card.r(g.MPC) == 3
    assert card.get(MEMORY - 60, 60) == t.frame(60)
    assert card.canaries()
    works(card, t)


# ---- anything at all

LAST = 0x10000                                          # the last bytes of the 64-bit address space are memory, too
SMALL = 0x40000
ADDRESSES = st.one_of(
    st.integers(0, SMALL + 64),
    st.integers(2**64 - LAST - 64, 2**64 - 1),
    st.sampled_from([0, 0x1000, 0x2000, SMALL - 1, SMALL - 16, SMALL, 2**32 - 1, 2**63, 2**64 - 1, 2**64 - 16, 2**64 - LAST]),
)
RINGS = [0x1000, 0x2000, SMALL - 32, 2**64 - 64, 2**64 - LAST]
POINTERS = [g.TDH, g.TDT, g.RDH, g.RDT]
CONTROLS = [g.CTRL, g.RCTL, g.TCTL, g.MDIC, g.ICR, g.ICS, g.IMS, g.IMC, g.ITR, g.RXCSUM, g.VET, 0x10, g.EERD, 0x282C, 0x382C, g.RDTR]


def access() -> st.SearchStrategy[tuple[Any, ...]]:
    """What a driver may do to the registers, mostly where something happens."""
    values = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2, 3, 7, 8, 9, 0xFF, 0xFFFF, 0xFFFFFFFF]))
    sizes = st.sampled_from([1, 2, 4, 8])
    rctl = st.integers(0, 2**32 - 1).map(lambda v: v | g.RCTL_EN)
    return st.one_of(
        st.tuples(st.just("w"), st.sampled_from(POINTERS), st.just(4), st.integers(0, 20)),
        st.tuples(st.just("w"), st.sampled_from([*CONTROLS, *POINTERS]), sizes, values),
        st.tuples(st.just("w"), st.just(g.RCTL), st.just(4), rctl),
        st.tuples(st.just("w"), st.sampled_from([g.TDLEN, g.RDLEN]), st.just(4), st.sampled_from([0, 128, 256, 1024, 0xFFF80])),
        st.tuples(st.just("w"), st.sampled_from([g.TDBAL, g.RDBAL]), st.just(8), st.sampled_from(RINGS)),
        st.tuples(st.just("w"), st.integers(0, 0x3FFFF), sizes, values),
        st.tuples(st.just("r"), st.integers(0, 0x3FFFF), sizes),
        st.tuples(st.just("io"), st.integers(0, 70), sizes, values),
        st.tuples(st.just("cfg"), st.integers(0, 260), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("command"), st.sampled_from([7, 7, 7, 6, 3, 0, 0x407])),
    )


def descriptor(t: Any) -> st.SearchStrategy[bytes]:
    """Descriptors of both rings: a receive descriptor is an address and nothing that counts."""
    lengths = st.one_of(st.integers(0, 300), st.integers(0, 0xFFFF))
    byte = st.one_of(st.integers(0, 255), st.sampled_from([0, 14, 24, 34, 50, 54]))
    command = st.one_of(st.integers(0, 255), st.sampled_from([EOP, EOP | g.CMD_TSE, EOP | g.CMD_IC, g.CMD_TSE, 0]))
    word = st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 33, 100, 1460]))
    legacy = st.builds(t.legacy, ADDRESSES, lengths, command.map(lambda c: c & ~g.CMD_DEXT), byte, byte, word)
    data = st.builds(t.data, ADDRESSES, st.one_of(lengths, st.integers(0, 0xFFFFF)), command, byte, word)
    context = st.builds(
        t.context, ipcss=byte, ipcso=byte, ipcse=word, tucss=byte, tucso=byte, tucse=word, paylen=st.integers(0, 0xFFFFF), hdr_len=byte,
        mss=st.one_of(st.just(0), st.integers(40, 0xFFFF)), cmd=st.integers(0, 255),
    )  # fmt: skip
    return st.one_of(legacy, data, data, context, st.binary(min_size=16, max_size=16))


@settings(max_examples=150)
@given(draw=st.data())
def test_anything(t: Any, draw: st.DataObject) -> None:
    """Any sequence of accesses, memory contents, frames and time."""
    descs = st.lists(descriptor(t), min_size=1, max_size=12).map(b"".join)
    card = t.card(memory=SMALL, **draw.draw(st.sampled_from([{}, {"compat": "qemu"}, {"mitigation": False}])))
    guard = bytes(range(256)) * 4
    last = bytearray(guard + bytes(LAST) + guard)
    end = memoryview(last)[len(guard) : -len(guard)]
    card.guest_memory.add(2**64 - LAST, end)
    try:
        card.connect(takes=draw.draw(st.sampled_from(["plain", "all"])), capacity=draw.draw(st.sampled_from([None, None, 3])))
        card.enable()
        card.write_all([(g.TDBAL, 0x1000), (g.RDBAL, 0x2000), (g.TDLEN, 256), (g.RDLEN, 256), (g.TCTL, 2)])
        for _ in range(draw.draw(st.integers(1, 25))):
            match draw.draw(st.sampled_from(["access", "access", "access", "tx", "rx", "memory", "frames", "time", "link", "reset"])):
                case "access":
                    do(card, draw.draw(access()))
                case "tx":
                    card.put(0x1000, draw.draw(descs))
                    card.w(g.TDT, draw.draw(st.integers(0, 16)))
                case "rx":
                    card.put(0x2000, draw.draw(descs))
                    card.w(g.RDT, draw.draw(st.integers(0, 16)))
                case "memory":
                    end[: 64] = draw.draw(st.binary(min_size=64, max_size=64))
                    card.put(draw.draw(st.integers(0, SMALL - 64)), draw.draw(st.binary(max_size=64)))
                case "frames":
                    sizes = st.one_of(st.integers(1, 70), st.sampled_from([1514, 1518, 1519, 9000, 20000, 69632]))
                    tag = draw.draw(st.booleans())
                    for size in draw.draw(st.lists(sizes, max_size=6)):
                        card.arrive(t.tagged(t.frame(size), 5)[:69632] if tag else t.frame(size))
                case "time":
                    card.advance(draw.draw(st.sampled_from([1, 128_000, 10**9])))
                case "link":
                    card.wire.set_link(draw.draw(st.booleans()))
                case "reset":
                    card.nic.reset()
                    card.enable()
        assert card.nic.queued <= card.nic.queue_limits[0]
        card.wire.set_link(True)
        card.wire.room(None)
        card.advance(10**9)
        card.nic.reset()
        assert card.r(g.TDT) == 0
    finally:
        card.close()
        end.release()
    assert (last[: len(guard)], last[-len(guard) :]) == (guard, guard), "bytes outside guest memory were written"


def do(card: Any, op: tuple[Any, ...]) -> None:
    match op:
        case "w", reg, size, value:
            card.w(reg, value & (1 << 8 * size) - 1, size)
        case "r", reg, size:
            assert 0 <= card.r(reg, size) < 1 << 8 * size
        case "io", port, size, value:
            card.nic.bar_write(1, port, size, value & (1 << 8 * size) - 1)
            assert 0 <= card.nic.bar_read(1, port, size) < 1 << 8 * size
        case "cfg", offset, size, value:
            card.cfg_write(offset, size, value & (1 << 8 * size) - 1)
            card.cfg_read(offset, size)
        case "command", value:
            card.enable(value)


# ---- memory that fails

def test_memory_given_as_callables_may_fail(t: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A VMM's callable that raises is a part of memory that is not there."""
    from qnet._host import GuestMemory, IrqLine
    from qnet._loop import Loop, VirtualClock
    from qnet.models.e1000 import E1000, Options
    from qnet.testing import Port

    def fail(*args: Any) -> bytes:
        raise RuntimeError("no memory today")

    loop = Loop(VirtualClock())
    nic = E1000(loop, "nic", "e1000", Options(), bytes(6), GuestMemory(read=fail, write=fail), IrqLine())
    wire = Port(loop, "wire")
    nic.pair(wire)
    nic.cfg_write(4, 2, 7)
    for reg, value in ((g.TDLEN, 128), (g.TCTL, 2), (g.TDT, 5), (g.RDLEN, 128), (g.RDT, 5), (g.RCTL, 2 | g.RCTL_BAM)):
        nic.bar_write(0, reg, 4, value)
    wire.send([t.frame(60)])
    assert nic.bar_read(0, g.TDH, 4) == 5
    assert nic.bar_read(0, g.MPC, 4) == 1
    assert "no memory today" in caplog.text
    caplog.clear()                                      # its tracebacks hold the card
    for it in (nic, wire, loop):
        it.close()


def test_memory_given_as_callables_works(t: Any, make_card: Callable[..., Any]) -> None:
    from qnet._host import GuestMemory, IrqLine
    from qnet._loop import Loop, VirtualClock
    from qnet.models.e1000 import E1000, Options
    from qnet.testing import Port

    memory = bytearray(0x10000)

    def write(gpa: int, data: bytes) -> None:
        memory[gpa : gpa + len(data)] = data

    loop = Loop(VirtualClock())
    nic = E1000(loop, "nic", "e1000", Options(), bytes(6), GuestMemory(read=lambda gpa, n: bytes(memory[gpa : gpa + n]), write=write), IrqLine())
    wire = Port(loop, "wire")
    nic.pair(wire)
    nic.cfg_write(4, 2, 7)
    memory[0x4000 : 0x4000 + 1500] = t.frame(1500)
    memory[0x1000:0x1020] = t.legacy(0x4000, 700, 0) + t.legacy(0x4000 + 700, 800)
    memory[0x2000:0x2020] = struct.pack("<QQQQ", 0x5000, 0, 0x6000, 0)
    for reg, value in ((g.TDBAL, 0x1000), (g.TDLEN, 128), (g.TCTL, 2), (g.TDT, 2)):
        nic.bar_write(0, reg, 4, value)
    assert wire.recv() == [t.frame(1500)]
    assert memory[0x101C] == 1
    rctl = g.RCTL_EN | g.RCTL_BAM | g.RCTL_SECRC | g.RCTL_BSIZE[1024]
    for reg, value in ((g.RDBAL, 0x2000), (g.RDLEN, 128), (g.RDT, 5), (g.RCTL, rctl)):
        nic.bar_write(0, reg, 4, value)
    wire.send([t.frame(1500)])
    assert memory[0x5000 : 0x5000 + 1024] + memory[0x6000 : 0x6000 + 476] == t.frame(1500)
    assert struct.unpack_from("<HHB", memory, 0x2018)[0] == 476
    for it in (nic, wire, loop):
        it.close()
