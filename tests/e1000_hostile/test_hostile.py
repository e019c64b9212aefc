"""What a hostile guest or network has done to emulated e1000s (CVEs and bugs of the project's notes), and what this one answers."""

import struct
from itertools import product

import pytest

from qnet._host import GuestMemory
from qnet.backends._hub import Hub, HubPort
from qnet.testing import Port
from qnet.testing import guest_e1000 as g

EOP, RS, TSE, VLE, IC = g.CMD_EOP, g.CMD_RS, g.CMD_TSE, g.CMD_VLE, g.CMD_IC
LOOPBACK = 0x4000                       # PHY control
LBM = 1 << 6                            # RCTL
SBP, LPE = 1 << 2, g.RCTL_LPE
TOP = 1 << 64
TCP4 = {"ip": (14, 24, 33), "tu": (34, 50, 0), "hdr_len": 54}


def loopback(rig, how):
    if how == "phy":
        rig.w(g.MDIC, 0x04000000 | 1 << 21 | LOOPBACK | 0x1140)
    else:
        rig.w(g.RCTL, rig.r(g.RCTL) | LBM)


# ---------------------------------------------------------------------------------------------------- rings, heads and tails


@pytest.mark.parametrize("length", [0, 128])
@pytest.mark.parametrize("head", [0, 7, 8, 100, 0xFFFF])
@pytest.mark.parametrize("tail", [0, 1, 7, 8, 200, 0xFFFF])
def test_transmit_ends_wherever_head_and_tail_are(rig, m, length, head, tail):
    """CVE-2016-1981, T2: from a head outside the ring one descriptor is handled; from inside at most the whole ring."""
    rig.put(rig.TX_BUF, m.frame(60))
    rig.tx_ring([m.legacy(rig.TX_BUF, 60)] * 8, length=length, head=head, tail=tail)
    sent = rig.wire.recv()
    n = length // 16
    if head == tail:
        assert len(sent) == 0
    elif head >= n:
        assert len(sent) == (1 if head < 8 else 0)      # behind the eight there is nothing to send
        assert rig.r(g.TDH) == 0
    else:
        assert len(sent) == ((tail - head) % n if tail < n else n)
    assert set(sent) <= {m.frame(60)}


def test_a_ring_of_length_0_sends_one_descriptor_a_doorbell(rig, m):
    """T2: Zephyr's driver relies on it."""
    rig.put(rig.TX_BUF, m.frame(60))
    rig.tx_ring([m.legacy(rig.TX_BUF, 60)], length=0)
    assert rig.wire.recv() == [m.frame(60)]
    rig.w(g.TDT, 1)
    assert rig.wire.recv() == [m.frame(60)]


@pytest.mark.parametrize("head", [0, 7, 8, 100, 0xFFFF])
@pytest.mark.parametrize("tail", [0, 1, 8, 200, 0xFFFF])
@pytest.mark.parametrize("size", [60, 1500, 9000])
def test_receive_ends_wherever_head_and_tail_are(rig, m, head, tail, size):
    """CVE-2016-1981, RX11."""
    rig.rx_ring(8, size=256, rctl=LPE)
    rig.w(g.RDH, head)
    rig.w(g.RDT, tail)
    for _ in range(3):
        rig.wire.send([m.frame(size)])
    s, wire = rig.nic.stats(), rig.wire.stats()
    assert wire["tx_packets"] == 3
    assert s["rx_packets"] + s["queued"] == 3


@pytest.mark.parametrize("length", [0, 128])
def test_a_ring_of_null_receive_buffers_ends(rig, m, length):
    """CVE-2016-1981, CVE-2020-28916, RX11: all descriptors are skipped, the frame is lost and counted."""
    rig.rx_ring(8, null=True)
    rig.w(g.RDLEN, length)
    rig.wire.send([m.frame(60)])
    assert rig.drops() == {"no-buffer": 1}
    assert rig.r(g.MPC) == 1
    assert rig.r(g.ICR) & g.RXO
    if length:
        assert [rig.rx_desc(i)[1:3] for i in range(8)] == [(0, g.RX_DD)] * 7 + [(0, 0)]


@pytest.mark.parametrize("base", [0x00FFFFF0, 0xFFFFFFF0, 0xFFFFFFFF_00000000, TOP - 16, TOP - 64])
def test_rings_outside_memory_move_nothing(rig, m, base):
    """At the top of the address space a ring does not wrap around to address 0."""
    before = rig.get(0, rig.MEMORY)
    rig.w(g.TDBAL, base & 0xFFFFFFFF)
    rig.w(g.TDBAH, base >> 32)
    rig.w(g.TDLEN, 128)
    rig.w(g.TCTL, g.TCTL_EN)
    rig.w(g.TDT, 7)
    assert rig.r(g.TDH) == 7
    rig.w(g.RDBAL, base & 0xFFFFFFFF)
    rig.w(g.RDBAH, base >> 32)
    rig.w(g.RDLEN, 128)
    rig.w(g.RDT, 7)
    rig.w(g.RCTL, g.RCTL_EN | g.RCTL_BAM)
    rig.wire.send([m.frame(60)] * 3)
    assert rig.wire.recv() == []
    assert sum(rig.drops().values()) + rig.nic.queued == 3
    assert rig.get(0, rig.MEMORY) == before


def test_a_ring_that_leaves_memory_halfway(rig, m):
    """The descriptors that are memory are handled, the others are nothing."""
    at = rig.MEMORY - 64
    rig.put(rig.TX_BUF, m.frame(60))
    rig.tx_ring([m.legacy(rig.TX_BUF, 60)] * 4, at=at, length=128, tail=7)
    assert rig.wire.recv() == [m.frame(60)] * 4
    assert [rig.get(at + 16 * i + 12, 1)[0] & 1 for i in range(4)] == [1] * 4
    assert rig.r(g.TDH) == 7


# -------------------------------------------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("addr", [0, 1 << 20, (1 << 20) - 30, 1 << 32, TOP - 30, TOP - 1])
@pytest.mark.parametrize("kind", ["legacy", "data"])
def test_a_frame_that_is_not_all_memory_is_not_sent(rig, m, addr, kind):
    """What it lacks is not made up: the frame is dropped, its descriptor done."""
    rig.put(rig.TX_BUF, m.frame(30))
    sent = rig.tx(m.legacy(rig.TX_BUF, 30, RS), getattr(m, kind)(addr, 60))
    if addr == 0:
        assert sent == [m.frame(30) + bytes(60)]
    else:
        assert sent == []
        assert rig.drops() == {"dma": 1}
    assert rig.get(rig.TX_RING + 16 + 12, 1)[0] & 1
    rig.put(rig.TX_BUF, m.frame(60))
    assert rig.tx(m.legacy(rig.TX_BUF, 60)) == [m.frame(60)]


def test_a_buffer_that_is_the_cards_own_registers(make_rig, m):
    """DMA into the own BAR (re-entrancy bugs of 2021 to 2023): device memory is no guest memory, whatever the BAR's address."""
    rig = make_rig()
    rig.nic.cfg_write(0x10, 4, 0xFEB00000)
    assert rig.nic.bar_address(0) == 0xFEB00000
    assert rig.tx(m.legacy(0xFEB00000 + g.TDT, 60), m.data(0xFEB00000, 60)) == []
    assert rig.drops() == {"dma": 2}
    rig.rx_ring(8, buf=0xFEB00000 + g.TDT)
    rig.wire.send([m.frame(1000)])
    assert rig.drops() == {"dma": 2, "no-buffer": 1}
    rig.tx_ring([], at=rig.TX_RING, tail=0)
    rig.w(g.TDBAL, 0xFEB00000)
    rig.w(g.TDT, 3)
    assert rig.wire.recv() == []


@pytest.mark.parametrize("buf", [1 << 20, (1 << 20) - 30, TOP - 2048, TOP - 1])
@pytest.mark.parametrize("size", [60, 1514])
def test_a_receive_buffer_outside_memory(rig, m, buf, size):
    rig.rx_ring(8)
    rig.put(rig.RX_RING, struct.pack("<Q", buf))
    low = rig.get(0, 256)
    rig.wire.send([m.frame(size)])
    assert rig.drops() == {"no-buffer": 1}
    assert rig.get(0, 256) == low                               # no wrap to address 0
    rig.wire.send([m.frame(size)])                              # the next descriptor is good
    addr, length, status, _, _ = rig.rx_desc(1)
    assert (rig.get(addr, length - 4), status & 3) == (m.frame(size), g.RX_DD | g.RX_EOP)


def test_buffers_that_are_the_ring_itself(rig, m):
    """A frame over the ring's own descriptors, both ways: whatever then stands there, it ends."""
    rig.tx_ring([m.legacy(rig.TX_RING, 128)] * 8, length=128, tail=7)
    assert [len(f) for f in rig.wire.recv()] == [128] * 7
    for size in (60, 1514, 4000):
        rig.rx_ring(8, size=256, rctl=LPE, buf=rig.RX_RING)
        rig.wire.send([m.frame(size)] * 8)
        assert rig.nic.stats()["rx_packets"] + rig.nic.queued == rig.wire.stats()["tx_packets"]


def test_loopback_into_the_buffer_it_comes_from(rig, m):
    """Source and destination overlap in guest memory."""
    rig.rx_ring(8, buf=rig.TX_BUF + 7)
    loopback(rig, "phy")
    rig.put(rig.TX_BUF, m.frame(1000))
    assert rig.tx(m.legacy(rig.TX_BUF, 1000)) == []
    assert rig.get(rig.TX_BUF + 7, 1000) == m.frame(1000)


def test_read_only_memory_stays_as_it_is(make_rig, m):
    """Rings and receive buffers in ROM: nothing is written, the frame is lost or delivered without a write-back."""
    rom, ram = bytearray(1 << 16), bytearray(1 << 16)
    memory = GuestMemory([(0, ram)])
    memory.add(0x100000, rom, readonly=True)
    rig = make_rig(memory)
    rom[0:60] = m.frame(60)
    rom[0x1000:0x1010] = m.legacy(0x100000, 60)
    before = bytes(rom)
    rig.w(g.TDBAL, 0x101000)
    rig.w(g.TDLEN, 128)
    rig.w(g.TCTL, g.TCTL_EN)
    rig.w(g.TDT, 1)
    assert rig.wire.recv() == [m.frame(60)]                     # reading ROM is all right
    rig.rx_ring(8, buf=0x100000)
    rig.wire.send([m.frame(60)])
    assert rig.drops() == {"no-buffer": 1}
    rig.w(g.RDBAL, 0x102000)
    rig.wire.send([m.frame(60)] * 3)
    assert rom == before


@pytest.mark.parametrize("step", [1500, 4096, 65535])
def test_more_than_64_kib_without_eop(rig, m, step):
    """CVE-2012-0029, T7: 65536 bytes go out, the rest is lost."""
    rig.put(rig.TX_BUF, bytes(i * 3 & 0xFF for i in range(65536)))
    n = 200000 // step
    rig.tx_ring([m.legacy(rig.TX_BUF, step, 0)] * n + [m.legacy(rig.TX_BUF, 60)], length=16 * 256)
    whole = rig.get(rig.TX_BUF, step)
    assert rig.wire.recv() == [(whole * (n + 1))[:65536]]


def test_data_descriptors_of_a_mebibyte(rig, m):
    """Lengths have 20 bits: no more than 64 KiB of them are taken."""
    sent = rig.tx(m.data(0, 0xFFFFF, RS), m.data(0, 0xFFFFF, RS), m.data(0, 0xFFFFF))
    assert [len(f) for f in sent] == [65536]


def test_a_packet_of_more_fragments_than_a_burst_holds(rig, m):
    rig.put(rig.TX_BUF, m.frame(3000))
    rig.tx_ring([m.legacy(rig.TX_BUF + i, 1, 0) for i in range(2999)] + [m.legacy(rig.TX_BUF + 2999, 1)], at=0x20000, length=16 * 3008)
    assert rig.wire.recv() == [m.frame(3000)]


def test_b26_an_empty_frame_mutes_nobody(rig, m):
    """B26, T11: a descriptor of 0 bytes with EOP."""
    rig.put(rig.TX_BUF, m.frame(60))
    assert rig.tx(m.legacy(rig.TX_BUF, 0), m.data(rig.TX_BUF, 0), m.legacy(rig.TX_BUF, 60)) == [m.frame(60)]
    assert rig.drops() == {"empty": 2}
    assert rig.tx(m.legacy(rig.TX_BUF, 1)) == [m.frame(1)]
    assert rig.tx(m.legacy(rig.TX_BUF, 60)) == [m.frame(60)]


# ------------------------------------------------------------------------------------------------- segmentation and checksums


@pytest.mark.parametrize("hdr_len", [0, 1, 8, 54, 255])
def test_segmentation_by_any_header_length_and_mss_ends(rig, m, hdr_len):
    """CVE-2015-6815, T8: nothing is sent where either is 0, never more than one frame a byte of payload."""
    rig.w(g.CTRL, rig.r(g.CTRL) | g.CTRL_VME)
    frame = m.tcp(300)
    rig.put(rig.TX_BUF, frame)
    for mss, flags, vlan, size in product((0, 1, 1460, 0xFFFF), (0, g.TUCMD_IP, g.TUCMD_TCP, 3), (0, VLE), (1, 20, 54, 60, 354)):
        ctx = m.context((14, 24, 33), (34, 50, 0), hdr_len=hdr_len, mss=mss, paylen=300, cmd=TSE | flags)
        sent = rig.tx(ctx, m.data(rig.TX_BUF, size, EOP | RS | TSE | vlan, 3))
        assert len(sent) <= (0 if not hdr_len or not mss else max(0, -(-(size - hdr_len) // mss)))
        assert sum(len(f) - hdr_len - (4 if vlan else 0) for f in sent) in (0, size - hdr_len)
    assert rig.get(rig.TX_BUF, 354) == frame


def test_the_context_may_change_within_a_packet(rig, m):
    """CVE-2021-20257: the size gathered is already beyond the new header and mss."""
    rig.put(rig.TX_BUF, m.tcp(2000))
    big, small = (m.context(**TCP4, mss=mss, cmd=TSE | 3) for mss in (1460, 4))
    rig.tx(big, m.data(rig.TX_BUF, 1000, TSE, 3), small, m.data(rig.TX_BUF + 1000, 1000, TSE, 3), big,
           m.data(rig.TX_BUF, 54, EOP | RS | TSE, 3))
    assert rig.r(g.TDH) == 6
    none = m.context(hdr_len=0, mss=0, cmd=TSE)
    rig.tx(big, m.data(rig.TX_BUF, 1000, TSE, 3), none, m.data(rig.TX_BUF + 1000, 1000, EOP | RS | TSE, 3))
    assert rig.drops() == {"malformed": 1}
    rig.tx(m.data(rig.TX_BUF, 1000, TSE, 3), m.legacy(rig.TX_BUF, 100))           # and segmentation itself
    rig.tx(m.legacy(rig.TX_BUF, 100, 0), m.data(rig.TX_BUF, 1000, EOP | RS | TSE, 3))
    assert rig.r(g.TDH) == 2


def test_segmentation_of_more_than_the_largest_packet_drops_it_whole(rig, m):
    """68 KiB are taken; a cut super-frame would go out with wrong lengths."""
    rig.put(rig.TX_BUF, m.tcp(60000))
    context = m.context(**TCP4, mss=1460, cmd=TSE | 3)
    assert rig.tx(context, m.data(rig.TX_BUF, 60054, TSE, 3), m.data(rig.TX_BUF, 60000, EOP | TSE, 3)) == []
    assert rig.drops() == {"oversize": 1}


@pytest.mark.parametrize("size", [1, 13, 14, 20, 33, 60])
def test_checksum_offsets_beyond_the_frame(rig, m, size):
    """CVE-2022-23087 (bhyve), T9: any css, cso, cse; a field outside changes nothing, one inside only itself."""
    frame = m.frame(60)
    rig.put(rig.TX_BUF, frame)
    for vlan, at, start, end in product((0, VLE), (0, 12, 19, 59, 60, 255), (0, 14, 60, 255), (0, 1, 59, 0xFFFF)):
        rig.w(g.CTRL, rig.r(g.CTRL) | g.CTRL_VME)
        tag = bytes.fromhex("81000123") if vlan and size >= 12 else b""         # no tag without addresses
        field = (start, at, end)
        for popts, ip, tu in ((1, field, (0, 0, 0)), (2, (0, 0, 0), field), (3, field, field)):
            for descs in ((m.context(ip, tu), m.data(rig.TX_BUF, size, EOP | RS | vlan, popts, 0x123)),
                          (m.legacy(rig.TX_BUF, size, EOP | RS | IC | vlan, at, start, 0x123),)):
                [sent] = rig.tx(*descs)
                assert len(sent) == size + len(tag)
                assert sent[12 : 12 + len(tag)] == tag
                plain = sent[:12] + sent[16:] if tag else sent
                assert {i for i in range(size) if plain[i] != frame[i]} <= {at, at + 1}
    assert rig.get(rig.TX_BUF, 60) == frame


@pytest.mark.parametrize("field", range(6))
def test_segmentation_with_checksum_fields_anywhere(rig, m, field):
    """T8: offsets up to 255 and ends up to 65535 touch neither guest memory nor anything else."""
    frame = m.tcp(3000)
    rig.put(rig.TX_BUF, frame)
    for value in (0, 1, 14, 33, 53, 54, 255, 0xFFFF):
        fields = [14, 24, 33, 34, 50, 0]
        fields[field] = value if field in (2, 5) else min(value, 255)
        ctx = m.context(tuple(fields[:3]), tuple(fields[3:]), hdr_len=54, mss=1000, cmd=TSE | 3)
        for takes in ("plain", "all"):
            rig.wire.takes = takes
            sent = rig.tx(ctx, m.data(rig.TX_BUF, len(frame), EOP | RS | TSE, 3))
            assert [len(f) for f in sent] in ([], [1054] * 3, [3054])
    assert rig.get(rig.TX_BUF, len(frame)) == frame


@pytest.mark.parametrize("size", [0, 1, 2, 14, 15, 33, 34, 35, 53, 54, 60])
@pytest.mark.parametrize("version", [4, 6])
def test_received_checksums_trust_no_length(make_rig, m, size, version):
    """CVE-2016-2857: IP and TCP headers that claim more than there is."""
    rig = make_rig()
    rig.w(g.RXCSUM, g.RXCSUM_IPOFLD | g.RXCSUM_TUOFLD)
    rig.rx_ring(8)
    frame = bytearray(m.tcp(100, version))
    at = 16 if version == 4 else 18
    for claimed in (0, 1, 19, 20, 100, 0xFFFF):
        frame[at : at + 2] = claimed.to_bytes(2, "big")
        for ihl in (0, 5, 15):
            if version == 4:
                frame[14] = 0x40 | ihl
            rig.wire.send([bytes(frame[:size])])
            rig.w(g.RDT, (rig.r(g.RDH) + 7) % 8)
    assert rig.nic.stats()["queued"] == 0
    assert rig.r(g.GPRC) == (18 if size else 0)


# ------------------------------------------------------------------------------------------------------------------ receive


@pytest.mark.parametrize("size", [1518, 1519, 1523, 2049, 9000, 16380, 16381, 16385])
@pytest.mark.parametrize("modes", [0, LPE, SBP, LPE | SBP])
@pytest.mark.parametrize("bufsize", [256, 2048, 16384])
def test_long_frames_stay_within_the_posted_buffers(rig, m, size, modes, bufsize):
    """CVE-2012-6075, RX5, RX9: one buffer in two is posted, those between are canaries."""
    n = 8
    stride = 2 * bufsize
    rig.put(rig.RX_BUF, bytes([rig.FILL]) * (n * stride))
    rig.rx_ring(n, size=bufsize, rctl=modes, null=True)
    for i in range(n):
        rig.put(rig.RX_RING + 16 * i, struct.pack("<QQ", rig.RX_BUF + i * stride, 0))
    frame = m.frame(size)
    rig.wire.send([frame])
    for i in range(n):
        assert rig.get(rig.RX_BUF + i * stride + bufsize, bufsize) == bytes([rig.FILL]) * bufsize
    taken = size <= (16380 if modes & LPE else 1518) or modes & SBP
    fits = size + 4 <= 7 * bufsize
    assert rig.received(n) == ([frame] if taken and fits else [])
    assert rig.drops().get("oversize", 0) == (not taken)


@pytest.mark.parametrize("how", ["phy", "mac"])
@pytest.mark.parametrize("kind", ["legacy", "data"])
def test_short_frames_looped_back_arrive_as_60_bytes(rig, m, how, kind):
    """CVE-2025-12464: the padding is zeros, and the frame and its padding are all that is stored."""
    rig.put(rig.TX_BUF, m.frame(60))
    for size in range(60):
        rig.put(rig.RX_BUF, bytes([rig.FILL]) * 2048)
        rig.rx_ring(8)
        loopback(rig, how)
        assert rig.tx(getattr(m, kind)(rig.TX_BUF, size)) == []
        assert rig.received(8) == ([m.frame(60)[:size] + bytes(60 - size)] if size else [])
        assert rig.get(rig.RX_BUF + (60 if size else 0), 100) == bytes([rig.FILL]) * 100


@pytest.mark.parametrize("how", ["phy", "mac"])
def test_loopback_is_one_level_deep(rig, m, how):
    """CVE-2021-3416: what comes back is stored, not sent again; a full ring loses the rest."""
    rig.rx_ring(8)
    loopback(rig, how)
    rig.put(rig.TX_BUF, m.frame(60))
    rig.tx_ring([m.legacy(rig.TX_BUF, 60)] * 1000, at=0x20000, length=16 * 1000)
    assert len(rig.received(8)) == 7
    assert rig.drops() == {"no-buffer": 993}
    assert rig.nic.queued == 0
    assert rig.wire.stats()["rx_packets"] == 0


def test_an_empty_frame_from_the_wire_is_no_frame(rig):
    rig.rx_ring(8)
    rig.wire.send([b""])
    assert rig.received(8) == []
    assert rig.drops() == {"empty": 1}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 11, 12, 13, 14, 15, 16, 17])
@pytest.mark.parametrize("vme", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
def test_frames_shorter_than_a_header(rig, m, size, vme, pieces):
    """Runts from any backend: bytes that are not there count as 0, for the tag too (RX7)."""
    if vme:
        rig.w(g.CTRL, rig.r(g.CTRL) | g.CTRL_VME)
    rig.put(rig.RX_BUF, bytes([rig.FILL]) * 2048)
    rig.rx_ring(8)
    frame = m.frame(18, ethertype=b"\x81\x00")[:size]
    rig.wire.send([[frame[i : i + 1] for i in range(size)]] if pieces else [frame])
    whole = frame + bytes(60 - size)
    stripped = vme and size >= 13                           # 0x81 and a 0 of padding
    assert rig.received(8) == [whole[:12] + whole[16:] if stripped else whole]
    addr, length, status, _, special = rig.rx_desc(0)
    assert bool(status & g.RX_VP) == stripped
    assert special == (int.from_bytes(whole[14:16], "big") if stripped else 0)
    assert rig.get(addr + length - 4, 100) == bytes([rig.FILL]) * 100           # the FCS is counted, not stored


def test_b25_a_burst_into_a_small_ring_arrives_whole(rig, m):
    """B25, RX9: the driver posts four buffers at a time; nothing is lost, nothing overtakes."""
    frames = [m.frame(100, fill=i) for i in range(40)]
    rig.rx_ring(8, posted=4)
    rig.wire.send(frames)
    got = []
    for _ in range(12):
        for _ in range(8):
            head = len(got) % 8
            addr, length, status, _, _ = rig.rx_desc(head)
            if not status & g.RX_DD:
                break
            got.append(rig.get(addr, length - 4))
            rig.put(rig.RX_RING + 16 * head + 8, bytes(8))
        rig.w(g.RDT, (len(got) + 4) % 8)
    assert got == frames
    assert rig.drops() == {}
    assert rig.r(g.MPC) == rig.r(g.RNBC) == 0


@pytest.mark.parametrize("pieces", [False, True])
def test_b16_a_stripped_tag_is_still_there_for_others(make_rig, m, pieces):
    """B16, RX7: two cards behind a hub, one takes tags off; the other gets the frame whole, whichever comes first."""
    first = make_rig()
    loop = first.loop
    hub = Hub(loop, 0)
    ports = [HubPort(loop, hub, f"p{i}") for i in range(3)]
    first.nic.unpair()
    first.nic.pair(ports[0])
    second = make_rig(loop=loop, peer=ports[1])
    first.wire.pair(ports[2])
    frame = m.frame(60)[:12] + bytes.fromhex("81000064") + m.frame(100)[12:]
    for tagless, whole in ((first, second), (second, first)):
        for rig in (first, second):
            rig.w(g.CTRL, rig.r(g.CTRL) & ~g.CTRL_VME)
            rig.rx_ring(8)
        tagless.w(g.CTRL, tagless.r(g.CTRL) | g.CTRL_VME)
        first.wire.send([[frame[:13], frame[13:15], frame[15:]]] if pieces else [frame])
        assert whole.received(8) == [frame]
        assert tagless.received(8) == [frame[:12] + frame[16:]]
        assert tagless.rx_desc(0)[4] == 0x64
    for port in ports:
        port.close()
    ports.clear()
    del port


# ------------------------------------------------------------------------------------------------------------- guest memory


def small_regions(size):
    """Memory in regions of 4093 bytes: every ring and most buffers cross borders."""
    memory = GuestMemory([(0, bytearray(4093))])
    for at in range(4093, size, 4093):
        memory.add(at, bytearray(min(4093, size - at)))
    return memory


def by_callables(size):
    data = bytearray(size)

    def read(gpa, n):
        if gpa + n > size:
            raise IndexError
        return bytes(data[gpa : gpa + n])

    def write(gpa, what):
        data[gpa : gpa + len(what)] = what

    return GuestMemory(read=read, write=write)


@pytest.mark.parametrize("kind", [small_regions, by_callables])
def test_any_form_of_memory_works_the_same(make_rig, m, kind):
    """One region, many, and callables: same frames out, same bytes, descriptors, statistics and interrupts in."""
    answers = []
    for memory in (None, kind(1 << 20)):
        rig = make_rig(memory)
        out = []
        frame, tcp = m.frame(1514), m.tcp(20000)
        rig.put(rig.TX_BUF, frame)
        rig.put(rig.TX_BUF + 0x8000, tcp)
        rig.tx_ring([m.legacy(rig.TX_BUF + i, 1514 - i) for i in range(300)], at=0x1FF0, length=16 * 304)
        out += [rig.wire.recv(), rig.get(0x1FF0, 16 * 304)]
        out.append(rig.tx(m.legacy(rig.TX_BUF, 700, RS), m.legacy(rig.TX_BUF + 700, 800, RS), m.data(rig.TX_BUF + 1500, 14)))
        out.append(rig.tx(m.context(**TCP4, mss=1460, cmd=TSE | 3), m.data(rig.TX_BUF + 0x8000, 54, TSE, 3),
                          m.data(rig.TX_BUF + 0x8036, 20000, EOP | RS | TSE, 3)))
        out.append(rig.tx(m.context((14, 24, 33), (34, 50, 0)), m.data(rig.TX_BUF + 0x8000, 1000, EOP | RS, 3)))
        rig.rx_ring(504, size=256, rctl=LPE, at=0x1FF0)
        rig.wire.send([m.frame(n, fill=n) for n in (60, 300, 1514, 9000)] * 10)
        out += [rig.get(0x1FF0, 16 * 504), rig.get(rig.RX_BUF, 504 * 256)]
        out += [rig.r(reg) for reg in (g.TDH, g.RDH, g.GPRC, g.GPTC, g.MPC, g.ICR)]
        assert rig.r(g.RDH) > 400
        answers.append(out)
    assert answers[0] == answers[1]


def test_callables_that_fail_are_faults(make_rig, m, caplog):
    """A frame is lost, no exception leaves the register access."""

    def broken(*args):
        raise RuntimeError("no memory today")

    rig = make_rig(GuestMemory([(0, bytearray(0x20000))], read=broken, write=broken))
    assert rig.tx(m.legacy(0x40000, 60), m.legacy(rig.TX_BUF, 60)) == [bytes(60)]
    rig.rx_ring(8, buf=0x40000)
    rig.wire.send([m.frame(60)])
    assert rig.drops() == {"dma": 1, "no-buffer": 1}
    assert "guest memory callable failed" in caplog.text


def test_memory_closed_under_the_card(make_rig, m):
    rig = make_rig()
    rig.rx_ring(8)
    rig.tx_ring([m.legacy(rig.TX_BUF, 60)], tail=0)
    rig.memory.close()
    rig.w(g.TDT, 5)
    rig.wire.send([m.frame(60)])
    assert rig.wire.recv() == []
    assert rig.drops() == {"no-buffer": 1}


def test_two_cards_on_one_wire_and_one_memory(make_rig, m):
    """A frame copied from guest memory to guest memory, over itself."""
    first = make_rig()
    first.nic.unpair()
    second = make_rig(first.memory, loop=first.loop, peer=Port(first.loop, "spare"))
    second.nic.unpair()
    second.nic.pair(first.nic)
    second.rx_ring(8, buf=first.TX_BUF + 10)
    first.put(first.TX_BUF, m.frame(1500))
    first.tx_ring([m.legacy(first.TX_BUF, 1500)])
    assert first.get(first.TX_BUF + 10, 1500) == m.frame(1500)
