"""Causes, mask, level and mitigation (4.3: I1 to I5; manual 13.4.17 to 13.4.21), on a virtual clock: windows are exact."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.testing import guest_e1000 as g

TADV = 0x382C
RADV = 0x282C
UNIT = 256                                              # ns
SHORTEST = 500 * UNIT                                   # 128 us: 7813 interrupts a second
IDE = 0x80


@pytest.fixture
def plain(make_card: Callable[..., Any]) -> Any:
    """A card without mitigation."""
    return make_card(mitigation=False)


# ---- causes

def test_reading_icr_clears_it_and_lowers_the_line(plain: Any) -> None:
    plain.w(g.IMS, 0x5)
    plain.w(g.ICS, 0x7)
    assert plain.levels == [1]
    assert plain.r(g.ICR) == 0x7
    assert plain.levels == [1, 0]
    assert plain.r(g.ICR) == 0


def test_ics_sets_and_shows_without_clearing(plain: Any) -> None:
    plain.w(g.ICS, 0x81)
    plain.w(g.ICS, 0x10)
    assert plain.r(g.ICS) == 0x91
    assert plain.r(g.ICS) == 0x91
    assert plain.levels == []


def test_writing_ones_to_icr_clears_them(plain: Any) -> None:
    plain.w(g.ICS, 0x97)
    plain.w(g.ICR, 0x06)
    assert plain.r(g.ICS) == 0x91


def test_no_bit_is_made_up(plain: Any) -> None:
    """I1: bit 31 is what ICS put there."""
    plain.w(g.IMS, 1)
    plain.w(g.ICS, 1)
    assert plain.r(g.ICR) == 1


def test_ims_sets_imc_clears(plain: Any) -> None:
    plain.w(g.IMS, 0x0F)
    plain.w(g.IMS, 0xF0)
    plain.w(g.IMC, 0x3C)
    assert plain.r(g.IMS) == 0xC3
    assert plain.r(g.IMC) == 0


def test_the_level_is_cause_and_mask(plain: Any) -> None:
    """I2: re-evaluated on every change of either; the line moves only when the level does."""
    plain.w(g.ICS, g.RXT0)
    plain.w(g.IMS, g.LSC)
    assert plain.levels == []
    plain.w(g.IMS, g.RXT0)
    assert plain.levels == [1]
    plain.w(g.ICS, g.LSC)
    assert plain.levels == [1]
    plain.w(g.IMC, g.RXT0)
    assert plain.levels == [1]
    plain.w(g.ICR, g.LSC)
    assert plain.levels == [1, 0]
    assert plain.nic.irq_level == 0
    assert plain.irq.rises == 1


def test_pci_status_and_interrupt_disable(plain: Any) -> None:
    """PCI 2.3: STATUS bit 3 tells what the chip asks for, COMMAND bit 10 keeps the line down."""
    plain.enable()
    plain.w(g.IMS, g.LSC)
    plain.w(g.ICS, g.LSC)
    assert (plain.level, plain.nic.irq_level) == (1, 1)
    plain.enable(0x407)
    assert (plain.level, plain.nic.irq_level) == (1, 0)
    plain.enable(0x007)
    assert (plain.level, plain.nic.irq_level) == (1, 1)
    plain.r(g.ICR)
    assert (plain.level, plain.levels) == (0, [1, 0, 1, 0])


# ---- mitigation

@pytest.fixture
def armed(card: Any) -> Any:
    """A card whose LSC and RXT0 and TX causes interrupt."""
    card.enable()
    card.w(g.IMS, g.LSC | g.RXT0 | g.TXDW)
    return card


def window(card: Any) -> int:
    """How long after this moment, at which a rise opened a window, the next rise comes."""
    assert card.nic.irq_level == 1
    card.r(g.ICR)
    assert card.nic.irq_level == 0
    rises = card.irq.rises
    card.w(g.ICS, g.LSC)
    start = card.loop.now()
    low, high = 0, 1 << 26
    while card.irq.rises == rises:
        assert card.loop.now() - start < high
        card.advance(UNIT // 4)
        low += 1
    return card.loop.now() - start


def test_the_first_edge_is_not_delayed(armed: Any) -> None:
    """I3"""
    armed.w(g.ICS, g.LSC)
    assert armed.levels == [1]


def test_an_edge_inside_the_window_waits_for_its_end(armed: Any) -> None:
    """I3, I4: 500 units of 256 ns without any timer set; falls apply at once."""
    armed.w(g.ICS, g.LSC)
    armed.r(g.ICR)
    assert armed.levels == [1, 0]
    armed.w(g.ICS, g.LSC)
    armed.advance(SHORTEST - 1)
    assert armed.levels == [1, 0]
    armed.advance(1)
    assert armed.levels == [1, 0, 1]


def test_the_late_edge_opens_a_window_of_its_own(armed: Any) -> None:
    armed.w(g.ICS, g.LSC)
    armed.r(g.ICR)
    armed.w(g.ICS, g.LSC)
    armed.advance(SHORTEST)
    armed.r(g.ICR)
    armed.w(g.ICS, g.LSC)
    armed.advance(SHORTEST - 1)
    assert armed.irq.rises == 2
    armed.advance(1)
    assert armed.irq.rises == 3


def test_a_cause_that_is_gone_at_the_end_makes_no_edge(armed: Any) -> None:
    armed.w(g.ICS, g.LSC)
    armed.r(g.ICR)
    armed.w(g.ICS, g.LSC)
    armed.r(g.ICR)
    armed.advance(10 * SHORTEST)
    assert armed.levels == [1, 0]


def test_after_the_window_edges_are_immediate(armed: Any) -> None:
    armed.w(g.ICS, g.LSC)
    armed.r(g.ICR)
    armed.advance(SHORTEST)
    armed.w(g.ICS, g.LSC)
    assert armed.levels == [1, 0, 1]


@pytest.mark.parametrize(("itr", "units"), [(0, 500), (1, 500), (499, 500), (500, 500), (501, 501), (4000, 4000), (0xFFFF, 0xFFFF)])
def test_itr(armed: Any, itr: int, units: int) -> None:
    """I4: in units of 256 ns, and never shorter than 500 of them."""
    armed.w(g.ITR, itr)
    armed.w(g.ICS, g.LSC)
    assert window(armed) == units * UNIT


@pytest.mark.parametrize(
    ("rdtr", "radv", "itr", "units"),
    [
        (0, 1000, 0, 500),                              # RDTR 0: RADV does not count
        (1, 1000, 0, 4000),                             # RADV is in units of 1.024 us
        (1, 1000, 2000, 2000),                          # the shortest counts
        (1, 300, 2000, 1200),
        (1, 0, 2000, 2000),                             # 0: not set
        (0xFFFF, 0, 0, 500),                            # I5: RDTR alone delays nothing
    ],
)
def test_receive_delay(armed: Any, t: Any, rdtr: int, radv: int, itr: int, units: int) -> None:
    """I4: RADV counts if RDTR is set and RXT0 is what interrupts."""
    armed.rx_init()
    armed.write_all([(g.RDTR, rdtr), (RADV, radv), (g.ITR, itr)])
    armed.arrive(t.frame())
    assert window(armed) == units * UNIT


def test_receive_delay_is_for_receive_interrupts(armed: Any) -> None:
    armed.write_all([(g.RDTR, 1), (RADV, 1000)])
    armed.w(g.ICS, g.LSC)
    assert window(armed) == SHORTEST


@pytest.mark.parametrize(("ide", "tadv", "itr", "units"), [(IDE, 1000, 0, 4000), (0, 1000, 0, 500), (IDE, 1000, 600, 600), (IDE, 0, 0, 500)])
def test_transmit_delay(armed: Any, t: Any, ide: int, tadv: int, itr: int, units: int) -> None:
    """I4: TADV counts if a descriptor asked for delay (IDE)."""
    armed.tx_init()
    armed.r(g.ICR)
    armed.advance(SHORTEST)
    armed.write_all([(TADV, tadv), (g.ITR, itr)])
    armed.send(t.frame(), g.CMD_EOP | g.CMD_RS | ide)
    assert window(armed) == units * UNIT


def test_ide_is_forgotten_once_used(armed: Any, t: Any) -> None:
    """I4"""
    armed.tx_init()
    armed.r(g.ICR)
    armed.advance(SHORTEST)
    armed.w(TADV, 1000)
    armed.send(t.frame(), g.CMD_EOP | g.CMD_RS | IDE)
    armed.r(g.ICR)
    armed.advance(4000 * UNIT)
    armed.send(t.frame())
    assert window(armed) == SHORTEST


def test_without_the_property_there_is_no_delay(plain: Any) -> None:
    """I5: mitigation=off"""
    plain.w(g.IMS, g.LSC)
    for _ in range(5):
        plain.w(g.ICS, g.LSC)
        plain.r(g.ICR)
    assert plain.levels == [1, 0] * 5


def test_unmasking_a_pending_cause_inside_the_window_waits_too(armed: Any) -> None:
    armed.w(g.ICS, g.LSC)
    armed.w(g.IMC, 0xFFFFFFFF)
    assert armed.levels == [1, 0]
    armed.w(g.IMS, g.LSC)
    assert armed.levels == [1, 0]
    armed.advance(SHORTEST)
    assert armed.levels == [1, 0, 1]


# ---- where they come from

def test_causes_of_transmit(plain: Any, t: Any) -> None:
    """T12: TXDW with RS or RPS, TXQE at the end of every run, also of one with nothing to send."""
    plain.tx_init()
    assert plain.r(g.ICR) == g.TXQE
    plain.send(t.frame(), g.CMD_EOP)
    assert plain.r(g.ICR) == g.TXQE
    plain.send(t.frame(), g.CMD_EOP | g.CMD_RS)
    assert plain.r(g.ICR) == g.TXQE | g.TXDW
    plain.send(t.frame(), g.CMD_EOP | 0x10)
    assert plain.r(g.ICR) == g.TXQE | g.TXDW
    plain.w(g.TDT, plain.r(g.TDT))
    assert plain.r(g.ICR) == g.TXQE
    plain.w(g.TCTL, 0)
    plain.w(g.TDT, 0)
    assert plain.r(g.ICR) == 0


def test_one_interrupt_for_a_burst(plain: Any, t: Any) -> None:
    """A burst is one wake-up (3.2; design section 3)."""
    plain.w(g.IMS, g.RXT0)
    plain.rx_init(64)
    plain.arrive(*[t.frame()] * 20)
    assert plain.levels == [1]
    assert plain.r(g.RDH) == 20


@pytest.mark.parametrize(("rdmts", "free"), [(0, 8), (1, 4), (2, 2), (3, 1)])
def test_minimum_threshold(plain: Any, t: Any, rdmts: int, free: int) -> None:
    """RX12: RXDMT0 once free descriptors are 1/2, 1/4, 1/8 of the ring or fewer (3 is reserved: QEMU makes it 1/16)."""
    plain.rx_init(16, rctl=rdmts << 8)
    plain.r(g.ICR)
    seen = {}
    for i in range(15):
        plain.arrive(t.frame())
        seen[14 - i] = bool(plain.r(g.ICR) & g.RXDMT0)
    assert seen == {left: left <= free for left in range(15)}
