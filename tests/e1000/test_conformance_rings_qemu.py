"""Descriptors and frames beside a real QEMU (7.2 of Debian 12): the same ring contents and frames are given to both, and what goes out, what
is written back, where the heads stand and what is counted must be equal. What differs on purpose is in DIFFERENCES, each with a test of its own.
"""

import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from qnet.testing import guest_e1000 as g

pytestmark = pytest.mark.qemu

TX_RING, RX_RING, TX_BUF, RX_BUF = 0x110000, 0x140000, 0x180000, 0x200000
MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400123457")
BROADCAST = b"\xff" * 6
GROUP = bytes.fromhex("333300000001")

VET, VFTA, ROC, BPRC, MPRC, PTC64, MPTC, BPTC, TSCTC = 0x38, 0x5600, 0x40AC, 0x4078, 0x407C, 0x40D8, 0x40F0, 0x40F4, 0x40F8
OCTETS_OUT = (0x4090, 0x40C8)                           # low halves of GOTC and TOT
RX_COUNTERS = (g.MPC, *range(0x405C, 0x4074, 4), g.GPRC, 0x4088, 0x408C, g.RNBC, 0x40C0, 0x40C4, g.TPR)
TX_COUNTERS = (g.GPTC, 0x4094, 0x40CC, *OCTETS_OUT, g.TPT, *range(PTC64, 0x40F0, 4), MPTC, BPTC, TSCTC, 0x40FC)
STATE = (g.ICR, g.RDH, g.RDT, g.TDH, g.TDT, g.STATUS)


# ---- frames

def ip(version: int, proto: int, payload: bytes) -> bytes:
    if version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0x1234, 0, 64, proto, 0) + bytes([10, 0, 0, 1, 10, 0, 0, 2])
    else:
        head = struct.pack(">IHBB", 6 << 28, len(payload), proto, 64) + bytes(range(32))
    return head + payload


def packet(rng: random.Random, payload: int, version: int, tcp: bool, tag: bool = False) -> bytes:
    body = (rng.randbytes(61) * (payload // 61 + 1))[:payload]
    if tcp:
        l4 = struct.pack(">HHIIBBHHH", 1, 2, rng.getrandbits(32), 5, 0x50, rng.choice([0x10, 0x18, 0x19]), 100, 0, 0) + body
    else:
        l4 = struct.pack(">HHHH", 1, 2, 8 + payload, 0) + body
    ethertype = (b"\x81\x00\x00\x05" if tag else b"") + (b"\x08\x00" if version == 4 else b"\x86\xdd")
    return rng.choice([BROADCAST, GROUP, OTHER]) + MAC + ethertype + ip(version, 6 if tcp else 17, l4)


def context_fields(frame: bytes, mss: int) -> dict[str, int]:
    """What a driver puts into the context descriptor for this frame (3.3.6)."""
    h = g.parse(frame)
    command = (g.TUCMD_TCP if h.tcp else 0) | (g.TUCMD_IP if h.ip_version == 4 else 0) | (g.TUCMD_TSE if mss else 0)
    return {
        "ipcss": h.ip, "ipcso": h.ip + 10, "ipcse": h.l4 - 1, "tucss": h.l4, "tucso": h.l4 + (16 if h.tcp else 6), "tucse": 0,
        "paylen": len(frame) - h.payload, "hdr_len": h.payload, "mss": mss, "cmd": command,
    }  # fmt: skip


def seeded(frame: bytes, mss: int) -> bytes:
    """The frame as a driver hands it over: pseudo-header sum in place, the fields that the card fills in zero (3.5.7)."""
    out, h = bytearray(frame), g.parse(frame)
    if h.ip_version == 4:
        struct.pack_into(">H", out, h.ip + 10, 0)
    if mss:
        struct.pack_into(">H", out, h.ip + (2 if h.ip_version == 4 else 4), 0)
    struct.pack_into(">H", out, h.l4 + (16 if h.tcp else 6), g.pseudo_sum(frame, h, 0 if mss else len(frame) - h.l4))
    return bytes(out)


class Script:
    """What is done to a card's transmit ring: buffers, descriptors and doorbells, in this order."""

    def __init__(self, t: Any, rng: random.Random) -> None:
        self.t, self.rng, self.at = t, rng, TX_BUF
        self.steps: list[tuple[str, int, bytes]] = []

    def buffer(self, data: bytes) -> int:
        at = self.at
        self.steps.append(("put", at, data))
        self.at += len(data) + self.rng.randrange(16)
        return at

    def desc(self, desc: bytes) -> None:
        self.steps.append(("desc", 0, desc))

    def kick(self) -> None:
        self.steps.append(("kick", 0, b""))

    def pieces(self, frame: bytes, kinds: list[Callable[..., bytes]], most: int, cmd: int, **fields: int) -> None:
        """A frame in up to `most` descriptors."""
        cuts = sorted(self.rng.randrange(len(frame) + 1) for _ in range(self.rng.randrange(most)))
        for start, end in zip([0, *cuts], [*cuts, len(frame)], strict=True):
            kind, last = self.rng.choice(kinds), end == len(frame)
            extra = fields if kind is self.t.data else {"special": fields.get("special", 0)}
            self.desc(kind(self.buffer(frame[start:end]), end - start, cmd | (g.CMD_EOP if last else 0), **extra))
            if last:
                break

    def run(self, card: Any, vme: bool, counters: tuple[int, ...]) -> list[Any]:
        """Do it; what can be seen."""
        card.put(TX_BUF, bytes(RX_BUF - TX_BUF))
        card.w(g.TCTL, 0)
        card.tx_init(256, tctl=0)
        card.w(g.CTRL, card.r(g.CTRL) & ~g.CTRL_VME | (g.CTRL_VME if vme else 0))
        card.w(g.TCTL, g.TCTL_EN)
        card.read_all((*STATE, *TX_COUNTERS))
        seen: list[Any] = []
        for step, at, data in self.steps:
            if step == "put":
                card.put(at, data)
            elif step == "desc":
                card.queue(data)
            else:
                card.w(g.TDT, card.tx_next)
                seen.append(card.sent)
                seen.append(dict(zip((*STATE, *counters), card.read_all((*STATE, *counters)), strict=True)))
        seen.append(card.get(TX_RING, 256 * 16))
        seen.append(card.get(TX_BUF, RX_BUF - TX_BUF))
        return seen


def transmit_script(t: Any, rng: random.Random, wild: bool) -> Script:
    """Frames of all kinds a driver sends; `wild`: checksum contexts that make no sense, too."""
    s = Script(t, rng)
    for _ in range(rng.randrange(1, 6)):
        cmd = rng.choice([0, g.CMD_RS, 0x10, g.CMD_RS | 0x80]) | rng.choice([0, 0, g.CMD_VLE])
        special = rng.getrandbits(16)
        match rng.choice(["legacy", "several", "checksum", "wild" if wild else "tso"]):
            case "legacy":
                size = rng.choice([14, 17, 59, 60, 61, 64, 65, 123, 124, 251, 252, 507, 508, 1019, 1020, 1514, 1518, 9000])
                frame = t.frame(size, dst=rng.choice([BROADCAST, GROUP, OTHER]))
                s.desc(t.legacy(s.buffer(frame), size, cmd | g.CMD_EOP, special=special))
            case "several":
                s.pieces(t.frame(rng.choice([60, 300, 1514, 5000])), [t.legacy, t.data], 5, cmd, special=special)
            case "tso":
                size, mss = rng.choice([(1, 100), (101, 100), (1459, 1460), (3000, 536), (9999, 1000), (40001, 1460)])
                frame = packet(rng, size, 4, True, tag=rng.random() < 0.2)
                s.desc(t.context(**context_fields(frame, mss) | {"cmd": context_fields(frame, mss)["cmd"] | cmd & 0x98}))
                s.pieces(seeded(frame, mss), [t.data], 4, cmd | g.CMD_TSE, popts=g.IXSM | g.TXSM, special=special)
            case kind:
                frame = packet(rng, rng.choice([0, 1, 2, 17, 100, 1000, 1400]), rng.choice([4, 6]), rng.random() < 0.5, rng.random() < 0.2)
                fields = context_fields(frame, 0)
                popts = g.TXSM | (g.IXSM if g.parse(frame).ip_version == 4 else 0)
                if kind == "wild":
                    for name in rng.sample(["ipcss", "ipcso", "ipcse", "tucss", "tucso", "tucse"], rng.randrange(1, 4)):
                        fields[name] = rng.choice([0, 1, rng.randrange(256), rng.randrange(80), rng.randrange(80)])
                    popts = rng.randrange(4)
                s.desc(t.context(**fields))
                s.pieces(seeded(frame, 0), [t.data], 4, cmd, popts=popts, special=special)
        if rng.random() < 0.3:
            s.kick()
    s.kick()
    return s


@pytest.fixture
def pair(make_qemu: Callable[..., Any], make_card: Callable[..., Any]) -> tuple[Any, Any]:
    """The two cards, without mitigation: QEMU's clock is not this test's."""
    return make_qemu(mitigation="off"), make_card(compat="qemu", mitigation=False)


@pytest.mark.parametrize("wild", [False, True])
def test_transmit(pair: tuple[Any, Any], t: Any, wild: bool) -> None:
    """T1 to T13: legacy, context and data descriptors in any mix; checksums, segmentation, tags, write-back, counters."""
    for seed in range(150):
        rng = random.Random(seed)
        script, vme = transmit_script(t, rng, wild), rng.random() < 0.5
        counters = tuple(c for c in TX_COUNTERS if not (vme and c in OCTETS_OUT))       # "octets of the tag"
        qemu, ours = (script.run(card, vme, counters) for card in pair)
        assert ours == qemu, f"seed {seed}"


def test_transmit_ring(pair: tuple[Any, Any], t: Any) -> None:
    """T2, T12: heads and tails in and outside the ring, any ring length with zero among them, TDT written with nothing to send."""
    seen = []
    for card in pair:
        card.enable()
        for i in range(64):
            card.put(TX_RING + 16 * i, t.legacy(card.put(TX_BUF + 64 * i, t.frame(60, fill=i)), 60))
        card.w(g.TDBAL, TX_RING)
        mine = []
        for length, head, tail in [(8, 0, 3), (8, 6, 2), (8, 7, 0), (8, 3, 3), (8, 100, 5), (8, 2, 200), (8, 9, 8), (0, 0, 5), (0, 3, 0), (0, 0, 1)]:
            card.write_all([(g.TCTL, 0), (g.TDLEN, 16 * length), (g.TDH, head), (g.TDT, tail)])
            card.r(g.ICR)
            card.w(g.TCTL, g.TCTL_EN)
            mine.append([card.sent, card.read_all((g.TDH, g.TDT, g.ICR))])
        card.w(g.TDT, card.r(g.TDH))
        mine.append([card.sent, card.read_all((g.TDH, g.TDT, g.ICR)), card.get(TX_RING, 1024)])
        seen.append(mine)
    assert seen[0] == seen[1]


# ---- receive

class Arrivals(NamedTuple):
    """A receive set-up and what comes over the wire."""

    rctl: int
    registers: list[tuple[int, int]]
    null: list[int]
    frames: list[bytes]


RING = 256


def receive_script(t: Any, rng: random.Random) -> Arrivals:
    size = rng.choice(list(g.RCTL_BSIZE))
    rctl = g.RCTL_EN | g.RCTL_BSIZE[size] | rng.randrange(4) << 12 | rng.randrange(3) << 8
    for bit in (4, g.RCTL_UPE, g.RCTL_MPE | g.RCTL_BAM, g.RCTL_LPE, g.RCTL_BAM, 0x40000, g.RCTL_SECRC):     # SBP, VFE
        rctl |= bit if rng.random() < 0.5 else 0
    mine = b"\x02" + rng.randbytes(5)
    group = b"\x01\x00\x5e" + bytes(rng.randrange(4) for _ in range(3))
    registers = [(VET, 0x8100), (g.CTRL, 0x140240 | rng.choice([0, g.CTRL_VME]))]
    for i, address in ((1, mine), (2, group)):
        low, high = struct.unpack("<IH", address)
        registers += [(g.RAL + 8 * i, low), (g.RAH + 8 * i, high | rng.choice([0, 1 << 31]))]
    registers += [(g.MTA + 4 * rng.randrange(128), rng.getrandbits(32)) for _ in range(rng.randrange(6))]
    registers += [(VFTA + 4 * rng.randrange(4), rng.getrandbits(32)) for _ in range(rng.randrange(3))]
    frames = []
    for _ in range(rng.randrange(1, 6)):
        unicast = [MAC, mine, b"\x02" * 6]
        address = rng.choice([BROADCAST, group, b"\x01\x00\x5e" + rng.randbytes(3), b"\x33\x33" + rng.randbytes(4), *unicast])
        # not 1519 to 1522 and 16381 to 16384: "frames with FCS"; unicast addresses are none that MTA may hold: "unicast hash"
        sizes = [60, 61, 64, 65, 100, 123, 124, 128, 255, 256, 257, 512, 1023, 1024, 1514, 1518, 1523, 2044, 2048, 4000, 9000, 16380, 16385]
        frame = t.frame(rng.choice(sizes), dst=address)
        frames.append(t.tagged(frame, rng.getrandbits(16) & 0x707F)[: max(60, len(frame))] if rng.random() < 0.4 else frame)
    null = [i for i in range(RING) if rng.random() < 0.1] if rng.random() < 0.3 else []
    return Arrivals(rctl, registers, null, frames)


def receive(card: Any, a: Arrivals) -> list[Any]:
    """What can be seen after each frame. MPRC, BPRC and ROC: "counted by address"."""
    card.enable()
    card.w(g.RCTL, 0)
    card.put(RX_BUF, bytes(0x180000))
    for i in range(RING):
        card.put(RX_RING + 16 * i, struct.pack("<QQ", 0 if i in a.null else RX_BUF + i % 64 * 0x4000, 0))
    card.write_all([(g.MTA + 4 * i, 0) for i in range(128)] + [(VFTA + 4 * i, 0) for i in range(128)] + a.registers)
    card.write_all([(g.RDBAL, RX_RING), (g.RDBAH, 0), (g.RDLEN, 16 * RING), (g.RDH, 0), (g.RDT, RING - 1)])
    lost = card.read_all((g.MPC, g.RNBC))
    card.read_all((*STATE, *RX_COUNTERS))
    card.w(g.RCTL, a.rctl)
    card.settle()
    seen: list[Any] = []
    for frame in a.frames:
        card.arrive(frame)
        registers = dict(zip((*STATE, *RX_COUNTERS), card.read_all((*STATE, *RX_COUNTERS)), strict=True))
        registers[g.MPC] -= lost[0]
        registers[g.RNBC] -= lost[1]
        seen.append((registers, card.get(RX_RING, 16 * RING)))
    seen.append(card.get(RX_BUF, 0x180000))
    return seen


def test_receive(pair: tuple[Any, Any], t: Any) -> None:
    """RX1 to RX13: filters, tags, all buffer sizes, several descriptors, null descriptors, jumbo frames, counters."""
    for seed in range(100):
        arrivals = receive_script(t, random.Random(seed))
        assert receive(pair[1], arrivals) == receive(pair[0], arrivals), f"seed {seed}"


def test_receive_thresholds(pair: tuple[Any, Any], t: Any) -> None:
    """RX12: RXDMT0 at 1/2, 1/4 and 1/8 of the ring, and what is written back, frame by frame until the ring is full."""
    for rdmts in range(4):
        seen = []
        for card in pair:
            card.w(g.RCTL, 0)
            card.rx_init(16, rctl=rdmts << 8)
            card.r(g.ICR)
            mine = []
            for i in range(15):
                card.arrive(t.frame(60 + i))
                mine.append(card.read_all((g.ICR, g.RDH)))
            seen.append((mine, card.get(RX_RING, 256)))
        assert seen[0] == seen[1]


def test_loopback(pair: tuple[Any, Any], t: Any) -> None:
    """Y5: the PHY's loopback, by frames of all sizes."""
    seen = []
    for card in pair:
        card.tx_init(64)
        card.rx_init(64)
        card.w(g.MDIC, 1 << 21 | 0x04000000 | 0x4140)
        sent = [card.send(t.frame(size)) for size in (14, 17, 18, 59, 60, 61, 1514)]
        seen.append((sent, card.get(RX_RING, 1024), card.get(RX_BUF, 64 * 2048), card.read_all((*STATE, g.GPRC, g.TPR, g.TPT))))
    assert seen[0] == seen[1]


# ---- on purpose

class Difference(NamedTuple):
    """What differs from QEMU whatever compat says, why, a script that shows it, and what it returns on either side."""

    name: str
    why: str
    show: Callable[[Any, Any], Any]
    qemu: Any
    qnet: Any


def send_tso(card: Any, t: Any, frame: bytes, mss: int, popts: int) -> list[bytes]:
    card.tx_init(64)
    card.queue(t.context(**context_fields(frame, mss)))
    return card.tx(t.data(card.put(TX_BUF, seeded(frame, mss)), len(frame), g.CMD_EOP | g.CMD_TSE, popts))


def tso_ipv6_lengths(card: Any, t: Any) -> list[int]:
    frames = send_tso(card, t, packet(random.Random(1), 301, 6, True), 100, g.TXSM)
    return [int.from_bytes(frame[18:20], "big") for frame in frames]


def tso_exact(card: Any, t: Any) -> list[int]:
    return [len(frame) for frame in send_tso(card, t, packet(random.Random(1), 300, 4, True), 100, g.TXSM | g.IXSM)]


def tso_of_udp(card: Any, t: Any) -> int:
    card.r(TSCTC)
    send_tso(card, t, packet(random.Random(1), 301, 4, False), 100, g.TXSM | g.IXSM)
    return card.r(TSCTC)


def tso_cwr(card: Any, t: Any) -> list[int]:
    frame = bytearray(packet(random.Random(1), 301, 4, True))
    frame[14 + 20 + 13] = 0x90                          # CWR, ACK
    return [frame[14 + 20 + 13] for frame in send_tso(card, t, bytes(frame), 100, g.TXSM | g.IXSM)]


def octets_of_the_tag(card: Any, t: Any) -> int:
    card.tx_init()
    card.w(g.CTRL, card.r(g.CTRL) | g.CTRL_VME)
    card.read_all((0x40C8, 0x40CC))
    card.send(t.frame(60), g.CMD_EOP | g.CMD_VLE)
    return card.r(0x40C8)


def tag_of_a_runt(card: Any, t: Any) -> list[int]:
    card.tx_init()
    card.w(g.CTRL, card.r(g.CTRL) | g.CTRL_VME)
    return [len(frame) for frame in card.send(t.frame(6), g.CMD_EOP | g.CMD_VLE)]


def beyond_the_buffer(card: Any, t: Any) -> list[int]:
    card.tx_init()
    card.queue(*(t.legacy(TX_BUF, 0x4100, g.CMD_EOP if i == 4 else 0) for i in range(5)))
    return [len(frame) for frame in card.tx(t.legacy(TX_BUF, 60))]


def no_memory(card: Any, t: Any) -> list[int]:
    card.tx_init()
    return [len(frame) for frame in card.tx(t.legacy(0x7F000000, 60))]


def descriptor_of_before(card: Any, t: Any) -> bytes:
    card.rx_init()
    card.put(RX_RING + 8, b"\xa5" * 8)
    card.arrive(t.frame(60))
    return card.get(RX_RING + 8, 8)


def unicast_hash(card: Any, t: Any) -> int:
    card.w(g.MTA + 4 * (0x020 >> 5), 1)                 # the hash of an address that ends in 02:02 is 0x020
    card.rx_init()
    card.arrive(t.frame(60, dst=b"\x02" * 6))
    return card.r(g.RDH)


def frames_with_fcs(card: Any, t: Any) -> int:
    card.rx_init()
    card.arrive(t.frame(1519))
    return card.r(g.RDH)


def promiscuous_multicast(card: Any, t: Any) -> int:
    card.rx_init(rctl=g.RCTL_BAM | g.RCTL_MPE)          # BAM off
    card.arrive(t.frame(60))
    return card.r(g.RDH)


def counted_by_address(card: Any, t: Any) -> tuple[int, int]:
    low, high = struct.unpack("<IH", GROUP)
    card.write_all([(g.RAL + 8, low), (g.RAH + 8, high | 1 << 31)])
    card.rx_init()
    card.arrive(t.frame(60, dst=GROUP))
    return card.r(g.RDH), card.r(MPRC)


def a_frame_waits_for_room(card: Any, t: Any) -> tuple[int, int]:
    card.rx_init(size=256, posted=2)
    card.arrive(t.frame(1000))
    card.w(g.RDT, 6)
    card.settle()
    return card.r(g.RDH), card.r(g.MPC)


DIFFERENCES = [
    Difference("tso ipv6", "IPv6's payload length does not count the IPv6 header (RFC 8200 3; 3.5.6). QEMU's does.",
               tso_ipv6_lengths, [160, 160, 160, 61], [120, 120, 120, 21]),
    Difference("tso exact", "A payload that is a multiple of MSS ends with a full segment. QEMU sends an empty one after it.",
               tso_exact, [154, 154, 154, 54], [154, 154, 154]),
    Difference("tso of udp", "TSCTC counts UDP segmentation, too (13.7.61).", tso_of_udp, 0, 1),
    Difference("tso cwr", "Only the first segment carries CWR (RFC 3168 6.1.2), as Linux segments.",
               tso_cwr, [0x90, 0x90, 0x90, 0x90], [0x90, 0x10, 0x10, 0x10]),
    Difference("octets of the tag", "An inserted tag is part of the octets sent (13.7.34).", octets_of_the_tag, 64, 68),
    Difference("tag of a runt", "A tag goes behind two addresses; a frame without them gets none, not memory that is not its own.",
               tag_of_a_runt, [10], [6]),
    Difference("beyond the buffer", "Of a packet of more than 64 KiB, 64 KiB are sent (T7). QEMU's count wraps there, so it sends the end of it.",
               beyond_the_buffer, [0x4100, 60], [65536, 60]),
    Difference("no memory", "A frame whose bytes do not exist is dropped and counted, not sent with bytes made up.", no_memory, [60], []),
    Difference("write-back whole", "The checksum and errors fields are written (3.2.3), not what stood there before.",
               descriptor_of_before, bytes.fromhex("3c00a5a5a7a50000"), bytes.fromhex("3c00000007000000")),
    Difference("unicast hash", "MTA is the multicast table (13.5.1): it does not let unicast frames in.", unicast_hash, 1, 0),
    Difference("frames with FCS", "Limits are 1522 and 16384 bytes with FCS (13.4.22), 1518 and 16380 without. New QEMUs agree.",
               frames_with_fcs, 1, 0),
    Difference("promiscuous multicast", "RCTL.MPE is for multicast, broadcast needs BAM (13.4.22). QEMU agrees from 8.1 on.",
               promiscuous_multicast, 1, 0),
    Difference("counted by address", "MPRC counts multicast frames however they passed the filter (13.7.32). QEMU agrees from 8.1 on.",
               counted_by_address, (1, 0), (1, 1)),
    Difference("a frame waits for room", "B25: what finds too few buffers waits for RDT. QEMU drops it and counts it as missed.",
               a_frame_waits_for_room, (0, 1), (4, 0)),
]  # fmt: skip


@pytest.mark.parametrize("difference", DIFFERENCES, ids=[d.name for d in DIFFERENCES])
def test_on_purpose(pair: tuple[Any, Any], t: Any, difference: Difference) -> None:
    assert difference.why
    assert difference.show(pair[1], t) == difference.qnet
    assert difference.show(pair[0], t) == difference.qemu
