"""Which frames are taken (RX6; manual 13.4.22, 13.5)."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.testing import guest_e1000 as g

MAC = bytes.fromhex("525400123456")
BROADCAST = b"\xff" * 6
OTHER = bytes.fromhex("525400123457")
GROUP = bytes.fromhex("01005e7f0102")
VFE, VFTA = 0x40000, 0x5600


def taken(card: Any, *frames: bytes) -> list[bool]:
    """Which of the frames the card takes."""
    out = []
    for frame in frames:
        before = card.r(g.RDH)
        card.arrive(frame)
        out.append(card.r(g.RDH) != before)
        card.w(g.RDT, (card.r(g.RDH) - 1) % card.rx_n)
    return out


def set_address(card: Any, i: int, address: bytes, valid: bool = True) -> None:
    low, high = struct.unpack("<IH", address)
    card.write_all([(g.RAL + 8 * i, low), (g.RAH + 8 * i, high | (1 << 31 if valid else 0))])


@pytest.mark.parametrize(
    ("rctl", "mine", "other", "group", "broadcast"),
    [
        (0, True, False, False, False),
        (g.RCTL_BAM, True, False, False, True),
        (g.RCTL_UPE, True, True, False, False),
        (g.RCTL_MPE, True, False, True, False),
        (g.RCTL_UPE | g.RCTL_MPE | g.RCTL_BAM, True, True, True, True),
    ],
)
def test_modes(card: Any, t: Any, rctl: int, mine: bool, other: bool, group: bool, broadcast: bool) -> None:
    """Unicast and multicast promiscuous, broadcast accept: each for its own kind of address; B13: MPE lets no broadcast in."""
    card.rx_init(rctl=g.RCTL_BAM ^ rctl)
    assert taken(card, *(t.frame(60, dst=dst) for dst in (MAC, OTHER, GROUP, BROADCAST))) == [mine, other, group, broadcast]


@pytest.mark.parametrize("i", range(16))
def test_sixteen_exact_addresses(card: Any, t: Any, i: int) -> None:
    """13.5.2: each with its valid bit; group and broadcast addresses among them."""
    card.rx_init(rctl=g.RCTL_BAM)
    for address in (OTHER, GROUP, BROADCAST):
        set_address(card, i, address)
        assert taken(card, t.frame(60, dst=address)) == [True]
        set_address(card, i, address, valid=False)
        assert taken(card, t.frame(60, dst=address)) == [False]


@pytest.mark.parametrize("byte", range(6))
def test_every_byte_of_an_address_counts(card: Any, t: Any, byte: int) -> None:
    card.rx_init()
    dst = bytearray(MAC)
    dst[byte] ^= 0x80
    assert taken(card, t.frame(60, dst=bytes(dst))) == [False]


@pytest.mark.parametrize(("mo", "shift"), [(0, 4), (1, 3), (2, 2), (3, 0)])
def test_multicast_hash(card: Any, t: Any, mo: int, shift: int) -> None:
    """13.5.1: 12 bits of the last two bytes, chosen by RCTL.MO."""
    card.rx_init(rctl=mo << 12)
    for group in (GROUP, bytes.fromhex("3333ff00fffe"), bytes.fromhex("0180c2000000")):
        value = ((group[5] << 8 | group[4]) >> shift) & 0xFFF
        assert taken(card, t.frame(60, dst=group)) == [False]
        card.w(g.MTA + 4 * (value >> 5), 1 << (value & 31))
        assert taken(card, t.frame(60, dst=group)) == [True]
        card.w(g.MTA + 4 * (value >> 5), ~(1 << (value & 31)) & 0xFFFFFFFF)
        assert taken(card, t.frame(60, dst=group)) == [False]
        card.w(g.MTA + 4 * (value >> 5), 0)


def test_the_hash_is_for_multicast_only(card: Any, t: Any) -> None:
    """13.5.1: the multicast table lets no unicast frame in."""
    card.rx_init()
    card.write_all([(g.MTA + 4 * i, 0xFFFFFFFF) for i in range(128)])
    assert taken(card, t.frame(60, dst=OTHER), t.frame(60, dst=GROUP)) == [False, True]


@given(group=st.binary(min_size=6, max_size=6), mo=st.integers(0, 3))
def test_any_group_matches_its_own_bit_alone(t: Any, group: bytes, mo: int) -> None:
    group = bytes([group[0] | 1]) + group[1:]
    card = t.card()
    try:
        card.connect()
        card.rx_init(rctl=g.RCTL_BAM | mo << 12)
        value = ((group[5] << 8 | group[4]) >> (4, 3, 2, 0)[mo]) & 0xFFF
        card.w(g.MTA + 4 * (value >> 5), 1 << (value & 31))
        assert taken(card, t.frame(60, dst=group)) == [True]
        card.write_all([(g.MTA + 4 * i, 0xFFFFFFFF) for i in range(128)])
        card.w(g.MTA + 4 * (value >> 5), ~(1 << (value & 31)) & 0xFFFFFFFF)
        assert taken(card, t.frame(60, dst=group)) == [False]
    finally:
        card.close()


@pytest.mark.parametrize("vid", [0, 1, 31, 32, 100, 4095])
def test_vlan_filter(card: Any, t: Any, vid: int) -> None:
    """13.5.4: a bit for each VLAN; priority bits do not count; untagged frames are not its business."""
    card.rx_init(rctl=VFE)
    frame = t.tagged(t.frame(60), 0xE000 | vid)
    assert taken(card, frame, t.frame(60)) == [False, True]
    card.w(VFTA + 4 * (vid >> 5), 1 << (vid & 31))
    assert taken(card, frame, t.tagged(t.frame(60), vid ^ 1)) == [True, False]


def test_vlan_filter_is_off_without_vfe(card: Any, t: Any) -> None:
    card.rx_init()
    assert taken(card, t.tagged(t.frame(60), 5)) == [True]


def test_vlan_filter_by_vet(card: Any, t: Any) -> None:
    card.rx_init(rctl=VFE)
    card.w(g.VET, 0x88A8)
    assert taken(card, t.tagged(t.frame(60), 5), t.tagged(t.frame(60), 5, 0x88A8)) == [True, False]


def test_vlan_filter_comes_before_promiscuous_modes(card: Any, t: Any) -> None:
    """RX6"""
    card.rx_init(rctl=VFE | g.RCTL_UPE | g.RCTL_MPE)
    assert taken(card, *(t.tagged(t.frame(60, dst=dst), 5) for dst in (MAC, OTHER, GROUP, BROADCAST))) == [False] * 4


@pytest.mark.parametrize("first", [1, 5, 6, 13, 14, 17, 18])
def test_addresses_and_tags_over_several_pieces(card: Any, t: Any, first: int) -> None:
    """Whatever elements a frame comes in, the filter sees its first 18 bytes."""
    card.rx_init(rctl=VFE | g.RCTL_BAM)
    card.w(VFTA, 1 << 5)
    for dst, vid, expected in ((MAC, 5, True), (MAC, 6, False), (OTHER, 5, False), (BROADCAST, 5, False)):
        frame = t.tagged(t.frame(60, dst=dst), vid)
        before = card.r(g.RDH)
        card.wire.send([[frame[:first], frame[first:]]])
        assert (card.r(g.RDH) != before) is expected


@pytest.mark.parametrize("size", range(1, 20))
def test_frames_too_short_for_the_filter(card: Any, t: Any, size: int) -> None:
    """6.1: 1 to 18 bytes with VME and VFE: padded zeros decide, nothing beyond the frame."""
    card.rx_init(rctl=VFE | g.RCTL_UPE | g.RCTL_MPE)
    card.w(g.CTRL, g.CTRL_VME)
    whole = t.tagged(t.frame(60, dst=MAC), 5)
    frame = whole[:size].ljust(60, b"\0")
    card.w(VFTA, 1 << 5 if size >= 16 else 1)           # VLAN 5, or 0 where the VLAN is padding
    assert taken(card, whole[:size]) == [True]
    assert card.received(0) == (frame[:12] + frame[16:] if size >= 13 else frame)
