"""The PHY behind MDIC (4.5: Y1 to Y6; manual 13.4.11 and 13.5)."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.testing import guest_e1000 as g

WRITE, READ, READY, INT_EN, ERROR = 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
ADDRESS = 1 << 21

# Y3: register, value after reset, writable
REGISTERS = [
    (0, 0x1140, True), (1, 0x794D, False), (2, 0x0141, False), (3, 0x0C20, False), (4, 0x0DE1, True), (5, 0x01E0, False), (6, 0, False),
    (9, 0x0E00, True), (10, 0x3C00, False), (16, 0x0360, True), (17, 0xAC00, False), (20, 0x0D60, True), (21, 0, False),
]  # fmt: skip
ABSENT = sorted(set(range(32)) - {reg for reg, _, _ in REGISTERS})


def read(card: Any, reg: int) -> int:
    card.w(g.MDIC, ADDRESS | READ | reg << 16)
    value = card.r(g.MDIC)
    assert value & ~0xFFFF == ADDRESS | READ | READY | reg << 16, hex(value)
    return value & 0xFFFF


def write(card: Any, reg: int, value: int) -> int:
    card.w(g.MDIC, ADDRESS | WRITE | reg << 16 | value)
    return card.r(g.MDIC)


@pytest.mark.parametrize(("reg", "reset", "writable"), REGISTERS)
def test_registers(card: Any, reg: int, reset: int, writable: bool) -> None:
    assert read(card, reg) == reset
    answer = write(card, reg, 0xA5A5 & ~0x8200)
    assert bool(answer & ERROR) is not writable
    expected = 0x25A5 if writable else reset
    assert read(card, reg) == (expected & ~0x3F if reg == 0 else expected)


@pytest.mark.parametrize("reg", ABSENT)
def test_what_is_not_there_is_an_error(card: Any, reg: int) -> None:
    """Y2"""
    for op in (READ, WRITE):
        card.w(g.MDIC, ADDRESS | op | reg << 16 | 0x1234)
        assert card.r(g.MDIC) == ADDRESS | op | reg << 16 | 0x1234 | READY | ERROR


@pytest.mark.parametrize(("model", "id2"), [("e1000", 0x0C20), ("e1000-82544gc", 0x0C30), ("e1000-82545em", 0x0C20)])
def test_identity(make_card: Callable[..., Any], model: str, id2: int) -> None:
    """4.1"""
    card = make_card(model)
    assert (read(card, 2), read(card, 3)) == (0x0141, id2)


@pytest.mark.parametrize("phy", [0, 2, 31])
def test_another_address_is_an_error_with_the_old_value(card: Any, phy: int) -> None:
    """Y2"""
    before = read(card, 2)
    card.w(g.MDIC, phy << 21 | READ | 4 << 16 | 0xFFFF)
    assert card.r(g.MDIC) == ADDRESS | READ | 2 << 16 | before | READY | ERROR


def test_neither_operation_is_stored(card: Any) -> None:
    """Y2"""
    card.w(g.MDIC, ADDRESS | 4 << 16 | 0x1234)
    assert card.r(g.MDIC) == ADDRESS | 4 << 16 | 0x1234 | READY
    assert read(card, 4) == 0x0DE1


def test_interrupt(card: Any) -> None:
    """Y1: INT_EN raises MDAC at once, errors included."""
    for value in (ADDRESS | READ | INT_EN, ADDRESS | READ | INT_EN | 7 << 16, INT_EN):
        card.w(g.MDIC, value)
        assert card.r(g.ICR) == g.MDAC
    card.w(g.MDIC, ADDRESS | READ)
    assert card.r(g.ICR) == 0


def test_control_bits_that_clear_themselves(card: Any) -> None:
    """Y4: RESET, RESTART and the six reserved bits do not stick; the reset bit resets nothing."""
    write(card, 4, 0x0001)
    write(card, 0, 0x823F)
    assert read(card, 0) == 0
    assert read(card, 4) == 0x0001


@pytest.mark.parametrize("value", [0x0800, 0x8000, 0x2100, 0x0040, 0x0000])
def test_power_down_reset_and_speed_do_not_touch_the_link(card: Any, value: int) -> None:
    """Y6"""
    write(card, 0, value)
    assert card.r(g.STATUS) == 0x80080783
    assert read(card, 1) == 0x794D
