"""Checksum insertion, segmentation and what of it a peer may be given to do (T4, T5, T8, T9; manual 3.3.3, 3.3.6, 3.5, 3.6).

Whatever the peer takes, the frames on the wire are the same: those of scapy's own arithmetic.
"""

import itertools
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from qnet.testing import Port
from qnet.testing import guest_e1000 as g

TX_RING, TX_BUF = 0x110000, 0x180000
TSCTC, TSCTFC = 0x40F8, 0x40FC
EOP = g.CMD_EOP | g.CMD_RS


def guest(card: Any, **options: Any) -> g.E1000Guest:
    """A driver on the card."""
    driver = g.E1000Guest(card.nic, card.view, ring=64, tx_buffer=16384)
    driver.init(**options)
    return driver


def build(version: int, proto: type[Packet], payload: bytes, **fields: Any) -> Packet:
    ip = IP(src="10.0.0.1", dst="10.0.0.2", id=0x1234) if version == 4 else IPv6(src="fd00::1", dst="fd00::2")
    ports = {"sport": 1000, "dport": 2000}
    return Ether(src="52:54:00:12:34:56", dst="52:54:00:12:34:57") / ip / proto(**ports, **fields) / Raw(payload)


def checked(frame: bytes) -> bytes:
    """The frame with its checksums computed anew by scapy."""
    packet = Ether(frame)
    for layer in (IP, TCP, UDP):
        if layer in packet:
            del packet[layer].chksum
    return bytes(packet)


def resolve(wire: Port) -> list[bytes]:
    """Frames as they leave the host: what the card left to this peer is done here, by scapy."""
    out = []
    for frame, off in zip(wire.recv(), wire.offloads, strict=True):
        if off["gso_type"] & 0x7F:
            out += segments(frame, off["gso_size"])
        elif off["flags"] & 1:
            start, at = off["csum_start"], off["csum_start"] + off["csum_offset"]
            data = frame[start:] + b"\0" * (len(frame) - start & 1)
            total = sum(struct.unpack(f">{len(data) // 2}H", data))
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            out.append(frame[:at] + struct.pack(">H", ~total & 0xFFFF or 0xFFFF) + frame[at + 2 :])
        else:
            out.append(frame)
    return out


def segments(frame: bytes, mss: int) -> list[bytes]:
    """What TCP segmentation makes of a frame (3.5.7), by scapy."""
    packet = Ether(frame)
    tcp = packet[TCP]
    payload = bytes(tcp.payload)
    head = frame[: len(frame) - len(payload)]
    out = []
    for n, start in enumerate(range(0, len(payload), mss)):
        one = Ether(head)
        last = start + mss >= len(payload)
        one[TCP].seq = (tcp.seq + start) & 0xFFFFFFFF
        gone = ("" if last else "FP") + ("C" if n else "")
        one[TCP].flags = "".join(flag for flag in str(tcp.flags) if flag not in gone)
        if IP in one:
            one[IP].id = (packet[IP].id + n) & 0xFFFF
            del one[IP].len
        else:
            del one[IPv6].plen
        out.append(checked(bytes(one / Raw(payload[start : start + mss]))))
    return out


# ---- checksums

@pytest.mark.parametrize("takes", ["plain", "csum", "all"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("proto", [TCP, UDP])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1399, 1400])
def test_checksums(make_card: Callable[..., Any], takes: str, version: int, proto: type[Packet], size: int) -> None:
    """3.6: IP and TCP or UDP, for peers that take unfinished ones and peers that do not."""
    card = make_card(port={"takes": takes})
    frame = bytes(build(version, proto, random.Random(size).randbytes(size)))
    driver = guest(card)
    assert driver.send([frame], checksum=True) == 1
    assert resolve(card.wire) == [checked(frame)] == [frame]
    driver.close()


@pytest.mark.parametrize("options", [{}, {"options": [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]}])
def test_checksums_behind_options_and_tags(card: Any, options: dict[str, Any]) -> None:
    frame = bytes(
        Ether(dst="52:54:00:12:34:57") / Dot1Q(vlan=7) / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP()] * 4) /
        TCP(sport=1, dport=2, **options) / Raw(b"x" * 77)
    )  # fmt: skip
    driver = guest(card)
    driver.send([frame], checksum=True)
    assert card.sent == [frame]
    driver.close()


def test_ip_alone_and_tcp_alone(card: Any, t: Any) -> None:
    """T5: IXSM and TXSM."""
    frame = bytearray(bytes(build(4, UDP, b"abc")))
    good = bytes(frame)
    frame[24:26] = b"\0\0"
    for popts, field in ((g.IXSM, 24), (g.TXSM, 40), (0, None)):
        card.tx_init()
        card.queue(t.context(ipcss=14, ipcso=24, ipcse=33, tucss=34, tucso=40))
        (sent,) = card.tx(t.data(card.put(TX_BUF, bytes(frame)), len(frame), EOP, popts))
        changed = [i for i in range(len(sent)) if sent[i] != frame[i]]
        assert changed == [] if field is None else set(changed) <= {field, field + 1}
        assert popts != g.IXSM or sent[24:26] == good[24:26]


def test_options_of_the_first_descriptor_count(card: Any, t: Any) -> None:
    """T5: POPTS of later ones do not."""
    frame = bytearray(bytes(build(4, UDP, b"abcd")))
    good = bytes(frame)
    frame[24:26] = b"\0\0"
    card.tx_init()
    card.put(TX_BUF, bytes(frame))
    card.queue(t.context(ipcss=14, ipcso=24, ipcse=33))
    assert card.tx(t.data(TX_BUF, 20, 0, g.IXSM), t.data(TX_BUF + 20, len(frame) - 20, EOP, 0)) == [good]
    assert card.tx(t.data(TX_BUF, 20, 0, 0), t.data(TX_BUF + 20, len(frame) - 20, EOP, g.IXSM)) == [bytes(frame)]


def test_a_context_serves_until_the_next(card: Any, t: Any) -> None:
    """3.3.6; T4: the two sets, with and without TSE, do not touch each other."""
    frames = [bytes(build(4, UDP, bytes([i]) * 20)) for i in range(3)]
    card.tx_init()
    card.queue(t.context(ipcss=14, ipcso=24, ipcse=33, tucss=34, tucso=40))
    card.queue(t.context(ipcss=1, ipcso=2, ipcse=3, tucss=4, tucso=5, hdr_len=54, mss=1000, cmd=g.TUCMD_TSE))
    for i, frame in enumerate(frames):
        blank = frame[:24] + b"\0\0" + frame[26:]
        card.queue(t.data(card.put(TX_BUF + 0x1000 * i, blank), len(blank), EOP, g.IXSM))
    card.w(g.TDT, card.tx_next)
    assert card.sent == frames


def test_a_sum_of_zero_is_sent_as_ones(card: Any, t: Any) -> None:
    """T9; RFC 768: a UDP checksum that comes out as 0 is 0xFFFF."""
    frame = t.frame(14) + struct.pack(">HHH", 0, 0x8000, 0x7FFF) + bytes(40)
    card.tx_init()
    card.queue(t.context(ipcss=14, ipcso=14))
    (sent,) = card.tx(t.data(card.put(TX_BUF, frame), len(frame), EOP, g.IXSM))
    assert sent[14:16] == b"\xff\xff"


OUTSIDE = [
    {"ipcss": 14, "ipcso": 59}, {"ipcss": 14, "ipcso": 60}, {"ipcss": 14, "ipcso": 255}, {"ipcss": 14, "ipcso": 33, "ipcse": 33},
    {"ipcss": 14, "ipcso": 40, "ipcse": 33}, {"ipcss": 14, "ipcso": 10, "ipcse": 5},
]  # fmt: skip


@pytest.mark.parametrize("fields", OUTSIDE)
def test_a_field_outside_its_range_is_not_written(card: Any, t: Any, fields: dict[str, int]) -> None:
    """T9: the field must lie before the end of what is summed."""
    frame = t.frame(60)
    card.tx_init()
    card.queue(t.context(**fields, **{name.replace("ip", "tu"): value for name, value in fields.items()}))
    assert card.tx(t.data(card.put(TX_BUF, frame), 60, EOP, g.IXSM | g.TXSM)) == [frame]


# ---- legacy insertion

@pytest.mark.parametrize("takes", ["plain", "csum"])
def test_legacy_insertion(make_card: Callable[..., Any], takes: str) -> None:
    """3.3.3, B11: from CSS to the end of the packet, stored at CSO."""
    card = make_card(port={"takes": takes})
    frame = bytes(build(4, TCP, b"legacy"))
    driver = guest(card)
    h = g.parse(frame)
    seeded = frame[:50] + struct.pack(">H", g.pseudo_sum(frame, h, len(frame) - h.l4)) + frame[52:]
    driver.send([seeded], insert=(34, 50))
    assert resolve(card.wire) == [frame]
    driver.close()


def test_legacy_insertion_in_qemus_way_is_none(make_card: Callable[..., Any], t: Any) -> None:
    """B11, legacy_checksum=off"""
    card = make_card(legacy_checksum=False)
    card.tx_init()
    assert card.send(t.frame(60), EOP | g.CMD_IC, cso=20, css=14) == [t.frame(60)]


@pytest.mark.parametrize(("css", "cso"), [(60, 20), (255, 20), (14, 59), (14, 60), (14, 255), (60, 255)])
def test_legacy_insertion_out_of_range_is_none(card: Any, t: Any, css: int, cso: int) -> None:
    """3.3.3: CSS must be below the length, CSO below the length less one."""
    card.tx_init()
    assert card.send(t.frame(60), EOP | g.CMD_IC, cso=cso, css=css) == [t.frame(60)]


def test_legacy_insertion_in_a_packet_of_several_descriptors(card: Any, t: Any) -> None:
    """3.3.3: CSS is that of the first descriptor, CSO that of the last."""
    frame = bytes(build(4, TCP, b"in pieces"))
    h = g.parse(frame)
    seeded = frame[:50] + struct.pack(">H", g.pseudo_sum(frame, h, len(frame) - h.l4)) + frame[52:]
    card.tx_init()
    card.put(TX_BUF, seeded)
    first = t.legacy(TX_BUF, 40, g.CMD_IC, cso=1, css=34)
    assert card.tx(first, t.legacy(TX_BUF + 40, len(frame) - 40, EOP | g.CMD_IC, cso=50, css=1)) == [frame]


def test_insertion_and_tag_together(card: Any, t: Any) -> None:
    """3.3.3: offsets do not count the tag that the card inserts."""
    frame = bytes(build(4, TCP, b"tagged"))
    h = g.parse(frame)
    seeded = frame[:50] + struct.pack(">H", g.pseudo_sum(frame, h, len(frame) - h.l4)) + frame[52:]
    card.tx_init()
    card.w(g.CTRL, g.CTRL_VME)
    assert card.send(seeded, EOP | g.CMD_IC | g.CMD_VLE, cso=50, css=34, special=9) == [t.tagged(frame, 9)]


# ---- segmentation

TAKES = ["plain", "csum", "csum tso4 tso6", "all"]


@pytest.mark.parametrize("takes", TAKES)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("size", "mss"), [(1, 1460), (1460, 1460), (1461, 1460), (2920, 1460), (10000, 536), (40000, 1460), (65000, 8960), (300, 7)])
def test_segmentation(make_card: Callable[..., Any], takes: str, version: int, size: int, mss: int) -> None:
    """T8: lengths, identification, sequence numbers, flags, checksums, whoever does the cutting."""
    card = make_card(port={"takes": takes})
    frame = bytes(build(version, TCP, random.Random(size).randbytes(size), seq=0xFFFFF000, flags="FPA"))
    driver = guest(card)
    assert driver.send([frame], mss=mss) == 1
    assert resolve(card.wire) == segments(frame, mss)
    driver.close()


def test_a_peer_that_takes_it_gets_one_packet(make_card: Callable[..., Any]) -> None:
    """Design section 3: the offload record says what to do."""
    card = make_card(port={"takes": "all"})
    driver = guest(card)
    driver.send([bytes(build(4, TCP, b"z" * 5000))], mss=1000)
    (frame,) = card.wire.recv()
    (off,) = card.wire.offloads
    assert len(frame) == 54 + 5000
    assert {name: off[name] for name in ("flags", "gso_type", "gso_size", "hdr_len", "csum_start", "csum_offset")} == {
        "flags": 1, "gso_type": 1, "gso_size": 1000, "hdr_len": 54, "csum_start": 34, "csum_offset": 16,
    }  # fmt: skip
    assert int.from_bytes(frame[16:18], "big") == 5040
    assert frame[24:26] == checked(frame)[24:26]
    driver.close()


@pytest.mark.parametrize("takes", ["plain", "all"])
def test_segments_carry_the_tag(make_card: Callable[..., Any], t: Any, takes: str) -> None:
    """T10"""
    card = make_card(port={"takes": takes})
    frame = bytes(build(4, TCP, b"v" * 3000))
    driver = guest(card, vlan=True)
    driver.send([frame], mss=1000, vlan=0x2005)
    assert resolve(card.wire) == [t.tagged(segment, 0x2005) for segment in segments(frame, 1000)]
    driver.close()


def test_congestion_bits(make_card: Callable[..., Any]) -> None:
    """RFC 3168 6.1.2: CWR on the first segment only."""
    for takes in ("plain", "csum tso4 tso6", "all"):
        card = make_card(port={"takes": takes})
        frame = bytes(build(4, TCP, b"e" * 250, flags="CEA"))
        driver = guest(card)
        driver.send([frame], mss=100)
        assert [str(Ether(f)[TCP].flags) for f in resolve(card.wire)] == ["AEC", "AE", "AE"]
        driver.close()


@pytest.mark.parametrize("takes", ["plain", "all"])
def test_udp_segmentation(make_card: Callable[..., Any], t: Any, takes: str) -> None:
    """T8: by the context: a UDP header in each segment, with its length and checksum."""
    card = make_card(port={"takes": takes})
    payload = bytes(i & 0xFF for i in range(250))
    frame = bytearray(bytes(build(4, UDP, payload)))
    frame[24:26] = b"\0\0"
    frame[40:42] = struct.pack(">H", g.pseudo_sum(frame, g.parse(frame), 0))
    card.tx_init()
    card.queue(t.context(ipcss=14, ipcso=24, ipcse=33, tucss=34, tucso=40, paylen=250, hdr_len=42, mss=100, cmd=g.TUCMD_TSE | g.TUCMD_IP))
    card.queue(t.data(card.put(TX_BUF, bytes(frame)), len(frame), EOP | g.CMD_TSE, g.IXSM | g.TXSM))
    card.w(g.TDT, card.tx_next)
    sent = card.sent
    assert [len(f) - 42 for f in sent] == [100, 100, 50]
    for n, f in enumerate(sent):
        packet = Ether(f)
        assert (packet[IP].id, packet[IP].len, packet[UDP].len) == (0x1234 + n, len(f) - 14, len(f) - 34)
        assert bytes(packet[UDP].payload) == payload[100 * n : 100 * n + 100]
        assert checked(f) == f


def test_segment_counters(card: Any) -> None:
    """T13: TSCTC counts segmented packets, TPT and sizes their frames."""
    driver = guest(card)
    driver.send([bytes(build(4, TCP, b"c" * 2500)), bytes(build(4, TCP, b"c" * 10))], mss=1000)
    assert card.read_all([g.TPT, TSCTC, TSCTFC, 0x40D8, 0x40DC, 0x40E8, 0x40EC]) == [4, 1, 0, 0, 1, 1, 2]
    driver.close()


@pytest.mark.parametrize("takes", ["plain", "all"])
def test_counters_do_not_tell_who_cut(make_card: Callable[..., Any], takes: str) -> None:
    card = make_card(port={"takes": takes})
    driver = guest(card)
    driver.send([bytes(build(4, TCP, b"c" * 7777))], mss=1460)
    assert card.read_all([g.TPT, g.GPTC, TSCTC, 0x40EC, 0x40E8]) == [6, 6, 1, 5, 1]
    assert card.r(0x40C8, 8) == 7777 + 6 * 58
    driver.close()


def test_odd_pieces_make_the_same_segments(card: Any, t: Any) -> None:
    """The header split over descriptors, and payload in pieces of odd sizes (hdr_len does not have to end with one)."""
    frame = bytes(build(4, TCP, bytes(range(256)) * 12))
    context, seeded = prepared(t, frame, 700)
    card.tx_init()
    card.put(TX_BUF, seeded)
    cuts = [0, 1, 13, 15, 33, 54, 55, 1000, 1001, len(frame)]
    card.queue(context)
    for a, b in itertools.pairwise(cuts):
        card.queue(t.data(TX_BUF + a, b - a, g.CMD_TSE | (EOP if b == len(frame) else 0), g.IXSM | g.TXSM))
    card.w(g.TDT, card.tx_next)
    assert card.sent == segments(frame, 700)


def prepared(t: Any, frame: bytes, mss: int) -> tuple[bytes, bytes]:
    """Context descriptor and frame as a driver hands them over."""
    h = g.parse(frame)
    out = bytearray(frame)
    out[h.ip + 2 : h.ip + 4] = out[h.ip + 10 : h.ip + 12] = b"\0\0"
    out[h.l4 + 16 : h.l4 + 18] = struct.pack(">H", g.pseudo_sum(frame, h, 0))
    cmd = g.TUCMD_TCP | g.TUCMD_IP | g.TUCMD_TSE
    fields = {"ipcss": 14, "ipcso": 24, "ipcse": h.l4 - 1, "tucss": h.l4, "tucso": h.l4 + 16, "hdr_len": h.payload, "mss": mss}
    return t.context(**fields, paylen=len(frame) - h.payload, cmd=cmd), bytes(out)


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"hdr_len": 0}, "malformed"), ({"mss": 0}, "malformed"), ({"hdr_len": 0, "mss": 0}, "malformed"), ({"hdr_len": 255}, "malformed")],
)
def test_segmentation_by_zeros(card: Any, t: Any, fields: dict[str, int], why: str) -> None:
    """CVE-2015-6815: ends, sends nothing, counts it; the ring goes on."""
    card.tx_init()
    card.queue(t.context(**{"hdr_len": 54, "mss": 100, "cmd": g.TUCMD_TSE | g.TUCMD_IP | g.TUCMD_TCP, **fields}))
    card.put(TX_BUF, t.frame(200))
    assert card.tx(t.data(TX_BUF, 200, EOP | g.CMD_TSE, 3), t.legacy(TX_BUF, 60)) == [t.frame(200)[:60]]
    assert card.drops() == {why: 1}
    assert card.tx_status(1) == 1


def test_segmentation_of_a_header_alone(card: Any, t: Any) -> None:
    """T8: no payload, no segment."""
    card.tx_init()
    card.queue(t.context(hdr_len=54, mss=100, cmd=g.TUCMD_TSE | g.TUCMD_TCP | g.TUCMD_IP))
    assert card.tx(t.data(card.put(TX_BUF, t.frame(54)), 54, EOP | g.CMD_TSE, 3)) == []
    assert card.drops() == {"malformed": 1}


def test_too_long_to_segment(card: Any, t: Any) -> None:
    """What exceeds 68 KiB is dropped whole: cut short, TCP would send it for ever."""
    card.tx_init()
    card.put(TX_BUF, bytes(0x70000))
    card.queue(t.context(ipcss=14, tucss=34, hdr_len=54, mss=1460, cmd=g.TUCMD_TSE | g.TUCMD_TCP | g.TUCMD_IP))
    assert card.tx(*(t.data(TX_BUF, 0x8000, g.CMD_TSE | (EOP if i == 2 else 0), 3) for i in range(3))) == []
    assert card.drops() == {"oversize": 1}


@settings(max_examples=40)
@given(
    version=st.sampled_from([4, 6]),
    size=st.integers(1, 6000),
    mss=st.integers(64, 9000),
    flags=st.sampled_from(["A", "PA", "FPA", "CPA", "ECA"]),
    takes=st.sampled_from(TAKES),
    tag=st.one_of(st.none(), st.integers(0, 0xFFFF)),
)
def test_any_segmentation(t: Any, version: int, size: int, mss: int, flags: str, takes: str, tag: int | None) -> None:
    """The wire carries scapy's segments, whatever the peer takes."""
    card = t.card()
    try:
        card.connect(takes=takes)
        frame = bytes(build(version, TCP, random.Random(size).randbytes(size), seq=size * 977, flags=flags))
        driver = guest(card, vlan=tag is not None)
        driver.send([frame], mss=mss, vlan=tag)
        assert resolve(card.wire) == [segment if tag is None else t.tagged(segment, tag) for segment in segments(frame, mss)]
        driver.close()
    finally:
        card.close()


def test_from_one_card_to_another(make_card: Callable[..., Any]) -> None:
    """TSO into an e1000 that takes no offload: segments arrive with good checksums, and the receiver's card says so (RXCSUM)."""
    one = make_card(connect=False)
    two = make_card(loop=one.loop, mac=bytes.fromhex("525400123457"), connect=False)
    one.nic.pair(two.nic)
    frame = bytes(build(4, TCP, b"x" * 5000))
    sender, receiver = guest(one), guest(two, checksum=True)
    sender.send([frame], mss=1000)
    got = receiver.receive_all()
    assert [r.data for r in got] == segments(frame, 1000)
    assert all(r.status & (g.RX_IPCS | g.RX_TCPCS) == g.RX_IPCS | g.RX_TCPCS and not r.errors for r in got)
    sender.close()
    receiver.close()
