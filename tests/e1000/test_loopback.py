"""Loopback in the PHY and in the MAC (Y5, CVE-2021-3416, CVE-2025-12464; manual 13.4.22 LBM, 13.5.1 control register)."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.testing import guest_e1000 as g

TX_BUF, RX_RING, RX_BUF = 0x180000, 0x140000, 0x200000
PHY_LOOPBACK = 1 << 21 | 0x04000000 | 0x4140


@pytest.fixture(params=["phy", 0x40, 0xC0], ids=["phy", "lbm01", "lbm11"])
def looped(request: pytest.FixtureRequest, card: Any) -> Any:
    """A card that hears itself."""
    card.tx_init()
    card.rx_init(64, rctl=0 if request.param == "phy" else request.param)
    if request.param == "phy":
        card.w(g.MDIC, PHY_LOOPBACK)
    return card


def test_frames_come_back_and_do_not_go_out(looped: Any, t: Any) -> None:
    """Y5"""
    for i, size in enumerate((60, 61, 1514)):
        assert looped.send(t.frame(size)) == []
        assert looped.received(i) == t.frame(size)
        assert looped.tx_status(i) == 1
    assert looped.read_all([g.TPT, g.TPR]) == [3, 3]


@pytest.mark.parametrize("size", range(1, 60))
def test_short_frames_are_padded(looped: Any, t: Any, size: int) -> None:
    """CVE-2025-12464: 60 bytes, zeros behind the frame."""
    looped.w(g.RCTL, looped.r(g.RCTL) | g.RCTL_UPE | g.RCTL_MPE)
    looped.put(RX_BUF, b"\xa5" * 128)
    looped.send(t.frame(size))
    assert looped.rx_desc(0).length == 60
    assert looped.get(RX_BUF, 128) == t.frame(size).ljust(60, b"\0") + b"\xa5" * 68


def test_an_empty_frame_does_not_come_back(looped: Any) -> None:
    looped.send(b"")
    assert looped.r(g.RDH) == 0


def test_the_filter_applies(looped: Any, t: Any) -> None:
    looped.send(t.frame(60, dst=b"\x02" * 6))
    assert looped.r(g.RDH) == 0


def test_a_full_ring_drops(looped: Any, t: Any) -> None:
    """S36: no queue in between; the sender does not wait."""
    looped.w(g.RDT, 2)
    looped.put(TX_BUF, t.frame(60))
    looped.tx(*[t.legacy(TX_BUF, 60)] * 5)
    assert looped.r(g.TDH) == 5
    assert looped.r(g.RDH) == 2
    looped.w(g.RDT, 10)
    assert looped.r(g.RDH) == 2
    assert sum(looped.drops().values()) == 3


def test_a_disabled_receiver_gets_nothing(looped: Any, t: Any) -> None:
    looped.w(g.RCTL, looped.r(g.RCTL) & ~g.RCTL_EN)
    looped.send(t.frame(60))
    assert looped.r(g.RDH) == 0


def test_a_whole_ring(looped: Any, t: Any) -> None:
    """CVE-2021-3416: as deep as one call, whatever the number of frames."""
    looped.tx_init(1024)
    looped.rx_init(1024, rctl=looped.r(g.RCTL) & 0xC0)
    looped.put(TX_BUF, t.frame(60))
    looped.queue(*[t.legacy(TX_BUF, 60)] * 1000)
    looped.w(g.TDT, looped.tx_next)
    assert looped.r(g.RDH) == 1000


def test_offloads_are_done(looped: Any, t: Any) -> None:
    """Segments and checksums come back finished, tags inserted and taken off again."""
    driver = g.E1000Guest(looped.nic, looped.view, ring=64, tx_buffer=16384)
    lbm = looped.r(g.RCTL) & 0xC0
    driver.init(vlan=True, checksum=True)
    looped.w(g.RCTL, looped.r(g.RCTL) | lbm)
    payload = bytes(range(256)) * 10
    head = bytes.fromhex("525400123456525400123456080045000028123400004006000000000000000000000001000200000001000000005010000000000000")
    driver.send([head + payload], mss=1000, vlan=7)
    got = driver.receive_all()
    assert b"".join(r.data[54:] for r in got) == payload
    assert all(r.vlan == 7 and r.status & (g.RX_VP | g.RX_TCPCS | g.RX_IPCS) == g.RX_VP | g.RX_TCPCS | g.RX_IPCS for r in got)
    assert all(r.errors == 0 for r in got)
    driver.close()


@pytest.mark.parametrize("overlap", [0, 1, 7, 30, 59])
def test_the_receive_buffer_is_the_transmit_buffer(looped: Any, t: Any, overlap: int) -> None:
    """The frame is copied over itself, shifted or not."""
    import struct

    looped.put(TX_BUF, t.frame(60))
    looped.put(RX_RING, struct.pack("<QQ", TX_BUF + overlap, 0))
    looped.tx(t.legacy(TX_BUF, 60))
    assert looped.get(TX_BUF + overlap, 60) == t.frame(60)


def test_loopback_ends(looped: Any, t: Any) -> None:
    looped.w(g.MDIC, 1 << 21 | 0x04000000 | 0x0140)
    looped.w(g.RCTL, looped.r(g.RCTL) & ~0xC0)
    assert looped.send(t.frame(60)) == [t.frame(60)]


@pytest.mark.parametrize(("options", "lbm"), [({}, 0x80), ({"mac_loopback": False}, 0x40), ({"mac_loopback": False}, 0xC0)])
def test_no_loopback(make_card: Callable[..., Any], t: Any, options: dict[str, bool], lbm: int) -> None:
    """LBM 10 is undefined; in QEMU's way LBM is ignored (Y5)."""
    card = make_card(**options)
    card.tx_init()
    card.rx_init(rctl=lbm)
    assert card.send(t.frame(60)) == [t.frame(60)]
    assert card.r(g.RDH) == 0


def test_phy_loopback_in_qemus_way(make_card: Callable[..., Any], t: Any) -> None:
    card = make_card(compat="qemu")
    card.tx_init()
    card.rx_init()
    card.w(g.MDIC, PHY_LOOPBACK)
    assert card.send(t.frame(60)) == []
    assert card.received(0) == t.frame(60)


def test_without_a_peer(make_card: Callable[..., Any], t: Any) -> None:
    """A driver's self test needs no network."""
    card = make_card(connect=False)
    card.tx_init()
    card.rx_init()
    card.w(g.MDIC, PHY_LOOPBACK)
    card.send(t.frame(60))
    assert card.received(0) == t.frame(60)
