"""The I/O BAR: IOADDR and IODATA (E3; manual 13.2.2)."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.testing import guest_e1000 as g


def out(card: Any, port: int, value: int, size: int = 4) -> None:
    card.nic.bar_write(1, port, size, value)


def inp(card: Any, port: int, size: int = 4) -> int:
    return card.nic.bar_read(1, port, size)


def test_registers_through_the_window(card: Any, t: Any) -> None:
    """As before memory space is mapped: write the address, then read or write the data."""
    out(card, 0, g.STATUS)
    assert inp(card, 0) == g.STATUS
    assert inp(card, 4) == 0x80080783
    out(card, 0, g.VET)
    out(card, 4, 0x9100)
    assert card.r(g.VET) == inp(card, 4) == 0x9100


def test_side_effects_are_the_registers(card: Any, t: Any) -> None:
    card.tx_init()
    card.put(0x180000, t.frame())
    card.queue(t.legacy(0x180000, 60))
    out(card, 0, g.TDT)
    out(card, 4, 1)
    assert card.sent == [t.frame()]
    out(card, 0, g.TPT)
    assert (inp(card, 4), inp(card, 4)) == (1, 0)


def test_the_address_has_twenty_bits(card: Any) -> None:
    """13.2.2.1: 31 to 20 read 0."""
    out(card, 0, 0xFFFFFFFF)
    assert inp(card, 0) == 0xFFFFF


@pytest.mark.parametrize("size", [1, 2])
def test_narrow_writes_are_ignored(card: Any, size: int) -> None:
    """13.2.2.1"""
    out(card, 0, g.VET)
    out(card, 0, 0, size)
    out(card, 4, 0, size)
    assert inp(card, 0) == g.VET
    assert card.r(g.VET) == 0x8100


def test_narrow_reads_give_a_part(card: Any) -> None:
    """13.2.2.1: reads of any size return the dword, of which the processor takes its part."""
    out(card, 0, g.STATUS)
    assert [inp(card, port, 1) for port in (4, 5, 6, 7)] == [0x83, 0x07, 0x08, 0x80]
    assert [inp(card, port, 2) for port in (4, 6)] == [0x0783, 0x8008]
    out(card, 0, 0x12344)
    assert [inp(card, 0, 2), inp(card, 2, 2), inp(card, 1, 1)] == [0x2344, 0x1, 0x23]


@pytest.mark.parametrize("address", [0x20000, 0x7FFFC, 0x80000, 0xFFFFC, 2, 0x1FFFE])
def test_no_flash_and_nothing_undefined(card: Any, address: int) -> None:
    """13.2.2: registers and packet buffer end at 0x1FFFF; there is no flash."""
    out(card, 0, address)
    out(card, 4, 0xFFFFFFFF)
    assert inp(card, 4) == 0


@pytest.mark.parametrize("port", [8, 12, 16, 32, 60, 64, 1 << 40])
def test_other_ports_are_nothing(card: Any, port: int) -> None:
    out(card, port, 0xFFFFFFFF)
    assert inp(card, port) == 0


def test_reset_clears_the_address(card: Any) -> None:
    out(card, 0, g.VET)
    card.nic.reset()
    assert inp(card, 0) == 0


@pytest.mark.parametrize("options", [{"io_window": False}, {"compat": "qemu"}])
def test_qemus_way_is_a_stub(make_card: Callable[..., Any], options: dict[str, Any]) -> None:
    """E3"""
    card = make_card(**options)
    out(card, 0, g.STATUS)
    assert (inp(card, 0), inp(card, 4)) == (0, 0)
    out(card, 0, g.VET)
    out(card, 4, 0)
    assert card.r(g.VET) == 0x8100
