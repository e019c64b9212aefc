"""Reset: of the PCI bus, by CTRL.RST, and QEMU's CTRL.RST that does nothing (4.9, B8, B10; manual 13.4.1, 4.6)."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.testing import guest_e1000 as g

RA = range(g.RAL, g.RAL + 0x80, 4)


def everything(card: Any) -> list[int]:
    return card.read_all(range(0, 0x20000, 4))


def disturb(card: Any) -> None:
    """Change every register that a driver can change, and use both rings."""
    card.tx_init()
    card.rx_init()
    card.send(bytes(60))
    card.write_all([(reg, 0xA5A5A5A5 & ~(1 << 26)) for reg in range(0, 0x20000, 4) if reg not in (g.TDT, g.TCTL, g.MDIC, g.RCTL)])


@pytest.mark.parametrize("how", ["ctrl", "bus"])
def test_reset_brings_every_register_back(card: Any, how: str) -> None:
    fresh = everything(card)
    disturb(card)
    assert everything(card) != fresh
    if how == "ctrl":
        card.w(g.CTRL, g.CTRL_RST)
    else:
        card.nic.reset()
    card.w(0x10, 0)                                     # EECD's lines are no part of it (P5)
    assert everything(card) == fresh


def test_ctrl_rst_clears_itself_and_the_rest_of_the_write_is_lost(card: Any) -> None:
    """13.4.1: RST reads 0; the reset wins over the value written with it."""
    card.w(g.CTRL, g.CTRL_RST | g.CTRL_VME)
    assert card.r(g.CTRL) == 0x00140240


def test_ctrl_rst_in_qemus_way_does_nothing(make_card: Callable[..., Any]) -> None:
    """B10, ctrl_reset=off: the bit is taken off the value stored."""
    card = make_card(ctrl_reset=False)
    card.w(g.VET, 0x9100)
    card.w(g.CTRL, g.CTRL_RST | g.CTRL_VME)
    assert card.r(g.CTRL) == g.CTRL_VME
    assert card.r(g.VET) == 0x9100


def test_the_phy_survives_ctrl_rst_and_not_the_bus(card: Any) -> None:
    """13.4.1: RST does not reach the PHY."""
    card.w(g.MDIC, 1 << 21 | 4 << 16 | 0x04000000 | 0x0101)
    for how, left in ((lambda: card.w(g.CTRL, g.CTRL_RST), 0x0101), (card.nic.reset, 0x0DE1)):
        how()
        card.w(g.MDIC, 1 << 21 | 4 << 16 | 0x08000000)
        assert card.r(g.MDIC) & 0xFFFF == left


def test_the_microwire_state_survives(card: Any) -> None:
    """P5: a read of the EEPROM that a reset interrupts goes on."""
    card.w(0x10, 2)
    for bit in "110000000":
        card.write_all([(0x10, 2 | (4 if bit == "1" else 0)), (0x10, 3 | (4 if bit == "1" else 0))])
    card.nic.reset()
    value = 0
    for _ in range(16):
        card.write_all([(0x10, 2), (0x10, 3)])
        value = value << 1 | card.r(0x10) >> 3 & 1
    assert value == 0x5452


def test_the_address_comes_from_the_eeprom(card: Any) -> None:
    for reg in RA:
        card.w(reg, 0xFFFFFFFF)
    card.w(g.CTRL, g.CTRL_RST)
    assert [card.r(reg) for reg in RA] == [0x12005452, 0x80005634] + [0] * 30


def test_reset_lowers_the_line_and_ends_the_window(card: Any) -> None:
    """4.9: causes, mask and mitigation are gone: the next interrupt comes at once."""
    card.w(g.IMS, g.LSC)
    card.w(g.ICS, g.LSC)
    card.w(g.CTRL, g.CTRL_RST)
    assert card.levels == [1, 0]
    card.w(g.IMS, g.LSC)
    card.w(g.ICS, g.LSC)
    assert card.levels == [1, 0, 1]


def test_reset_ends_auto_negotiation(card: Any) -> None:
    """4.9: the bus reset brings the link back at once; nothing happens when the time would have been up."""
    card.w(g.MDIC, 1 << 21 | 0x04000000 | 0x1340)
    assert not card.r(g.STATUS) & g.STATUS_LU
    card.nic.reset()
    assert card.r(g.STATUS) & g.STATUS_LU
    card.advance(10**9)
    assert card.r(g.ICS) == 0


def test_ctrl_rst_leaves_auto_negotiation_running(card: Any) -> None:
    """The PHY is not reset: the link comes when it is done."""
    card.w(g.MDIC, 1 << 21 | 0x04000000 | 0x1340)
    card.w(g.CTRL, g.CTRL_RST)
    assert not card.r(g.STATUS) & g.STATUS_LU
    card.advance(500_000_000)
    assert card.r(g.STATUS) & g.STATUS_LU
    assert card.r(g.ICS) == g.LSC


@pytest.mark.parametrize("how", ["ctrl", "bus"])
def test_a_link_that_is_down_stays_down(card: Any, how: str) -> None:
    card.wire.set_link(False)
    card.w(g.CTRL, g.CTRL_RST) if how == "ctrl" else card.nic.reset()
    assert not card.r(g.STATUS) & g.STATUS_LU


def test_half_a_packet_is_forgotten(card: Any, t: Any) -> None:
    """TX state is zeroed: descriptors before the reset are no part of the next frame, offload contexts are gone."""
    card.tx_init()
    card.tx(t.context(ipcss=14, ipcso=24, ipcse=33), t.data(card.put(0x180000, b"lost"), 4, 0))
    card.w(g.CTRL, g.CTRL_RST)
    card.tx_init()
    assert card.send(t.frame(60)) == [t.frame(60)]


def test_frames_for_the_driver_that_is_gone_are_dropped(card: Any, t: Any) -> None:
    """A full ring holds frames back; after a reset nobody waits for them."""
    card.rx_init(posted=0)
    card.arrive(t.frame(60), t.frame(60))
    assert card.nic.queued == 2
    card.w(g.CTRL, g.CTRL_RST)
    assert card.nic.queued == 0
    assert card.drops() == {"disabled": 2}


def test_bus_reset_clears_the_command(card: Any, t: Any) -> None:
    """Without bus master the chip reads and writes no memory."""
    card.tx_init()
    card.nic.reset()
    assert card.nic.cfg_read(4, 2) == 0
    card.write_all([(g.TDBAL, 0x110000), (g.TDLEN, 128), (g.TCTL, 2), (g.TDT, 3)])
    assert card.r(g.TDH) == 0


def test_the_buffer_size_is_reset(card: Any, t: Any) -> None:
    """B8: QEMU keeps the last one; here it is what RCTL says."""
    card.w(g.RCTL, g.RCTL_BSIZE[256])
    card.w(g.CTRL, g.CTRL_RST)
    card.rx_init(size=2048)
    card.arrive(t.frame(1000))
    assert card.rx_desc(0).length == 1000
