"""Link state and auto-negotiation (4.6, Y4: L1 to L3)."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.testing import guest_e1000 as g

LINK, DONE, ACK = 0x0004, 0x0020, 0x4000
RESTART, AN_EN = 0x0200, 0x1000
HALF_A_SECOND = 500_000_000


def phy(card: Any, reg: int) -> int:
    card.w(g.MDIC, 1 << 21 | 0x08000000 | reg << 16)
    return card.r(g.MDIC) & 0xFFFF


def set_phy_control(card: Any, value: int) -> None:
    card.w(g.MDIC, 1 << 21 | 0x04000000 | value)


def link(card: Any) -> tuple[bool, bool, bool, bool]:
    """STATUS.LU, the PHY's link bit, negotiation complete, partner's acknowledge."""
    return bool(card.r(g.STATUS) & g.STATUS_LU), bool(phy(card, 1) & LINK), bool(phy(card, 1) & DONE), bool(phy(card, 5) & ACK)


DOWN = (False, False, False, False)


def test_after_reset_it_is_up(card: Any) -> None:
    assert link(card) == (True, True, False, False)


def test_down(card: Any) -> None:
    """L1, S55: with LSC."""
    card.wire.set_link(False)
    assert link(card) == DOWN
    assert card.r(g.ICR) == g.LSC


def test_up_again_after_negotiation(card: Any) -> None:
    """L2: negotiation takes 500 ms; LSC when it is over."""
    card.wire.set_link(False)
    card.r(g.ICR)
    card.wire.set_link(True)
    assert link(card) == DOWN
    assert card.r(g.ICR) == 0
    card.advance(HALF_A_SECOND - 1)
    assert link(card) == DOWN
    card.advance(1)
    assert link(card) == (True, True, True, True)
    assert card.r(g.ICR) == g.LSC


def test_up_again_without_negotiation(make_card: Callable[..., Any]) -> None:
    """L2: autonegotiation=off, or the PHY's bit cleared: at once."""
    for card in (make_card(autonegotiation=False), make_card()):
        set_phy_control(card, 0)
        card.wire.set_link(False)
        card.r(g.ICR)
        card.wire.set_link(True)
        assert link(card) == (True, True, False, False)
        assert card.r(g.ICR) == g.LSC


def test_up_again_once_negotiated(card: Any) -> None:
    """L1 clears what was negotiated, so the next link-up negotiates anew."""
    set_phy_control(card, AN_EN | RESTART)
    card.advance(HALF_A_SECOND)
    assert link(card) == (True, True, True, True)
    card.wire.set_link(False)
    card.wire.set_link(True)
    assert link(card) == DOWN
    card.advance(HALF_A_SECOND)
    assert link(card) == (True, True, True, True)


def test_restart(card: Any) -> None:
    """Y4: the link goes down without LSC, and comes back with it 500 ms later."""
    set_phy_control(card, AN_EN | RESTART)
    assert link(card) == DOWN
    assert card.r(g.ICR) == 0
    card.advance(HALF_A_SECOND)
    assert link(card) == (True, True, True, True)
    assert card.r(g.ICR) == g.LSC


def test_restart_again_starts_over(card: Any) -> None:
    set_phy_control(card, AN_EN | RESTART)
    card.advance(HALF_A_SECOND // 2)
    set_phy_control(card, AN_EN | RESTART)
    card.advance(HALF_A_SECOND - 1)
    assert link(card) == DOWN
    card.advance(1)
    assert link(card)[0]


@pytest.mark.parametrize(("options", "control"), [({}, RESTART), ({"autonegotiation": False}, AN_EN | RESTART)])
def test_restart_that_does_nothing(make_card: Callable[..., Any], options: dict[str, bool], control: int) -> None:
    """Y4: negotiation is not enabled, or the property is off."""
    card = make_card(**options)
    set_phy_control(card, control)
    assert link(card) == (True, True, False, False)


def test_negotiation_with_the_link_down_fails(card: Any) -> None:
    """Y4: nothing at the end of the 500 ms if nobody is there; link-up later negotiates again."""
    set_phy_control(card, AN_EN | RESTART)
    card.wire.set_link(False)
    card.advance(HALF_A_SECOND)
    assert link(card) == DOWN
    card.wire.set_link(True)
    card.advance(HALF_A_SECOND)
    assert link(card) == (True, True, True, True)


def test_forced_link_bits_do_nothing(card: Any) -> None:
    """L3: SLU, ILOS, forced speed and duplex."""
    for value in (0, 0x40, 0x80, 0xB01, 0x1840):
        card.w(g.CTRL, value)
        assert card.r(g.STATUS) == 0x80080783


def test_nothing_arrives_while_it_is_down(card: Any, t: Any) -> None:
    """RX3: dropped by the network's rule (S19), not queued."""
    card.rx_init()
    card.wire.set_link(False)
    card.arrive(t.frame())
    assert (card.r(g.RDH), card.nic.queued) == (0, 0)


def test_frames_wait_for_negotiation(card: Any, t: Any) -> None:
    """Y4: the queue is flushed when the link comes up."""
    card.rx_init()
    set_phy_control(card, AN_EN | RESTART)
    card.arrive(t.frame())
    assert card.r(g.RDH) == 0
    card.advance(HALF_A_SECOND)
    assert card.received(0) == t.frame()


def test_no_interrupt_without_a_change(card: Any) -> None:
    """L1, L2: LSC only if STATUS changed."""
    set_phy_control(card, AN_EN | RESTART)
    card.advance(HALF_A_SECOND)
    card.r(g.ICR)
    card.wire.set_link(True)
    assert card.r(g.ICR) == 0
    card.wire.set_link(False)
    card.wire.set_link(False)
    assert card.r(g.ICR) == g.LSC
    assert card.r(g.ICR) == 0


def test_link_up_before_the_first_negotiation_negotiates(card: Any) -> None:
    """L2: enabled and never completed since reset, so the link bounces: LSC now and when it is over."""
    card.wire.set_link(True)
    assert link(card) == DOWN
    assert card.r(g.ICR) == g.LSC
    card.advance(HALF_A_SECOND)
    assert link(card) == (True, True, True, True)
    assert card.r(g.ICR) == g.LSC
