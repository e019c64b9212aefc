"""The EEPROM: its words, EERD, and the four-wire interface behind EECD (4.4: P1 to P5; manual 5.3, 5.6)."""

from collections.abc import Callable
from typing import Any

import pytest

from qnet.models.e1000 import eeprom
from qnet.testing import guest_e1000 as g

EECD, SK, CS, DI, DO = 0x10, 1, 2, 4, 8


def words(card: Any) -> list[int]:
    out = []
    for i in range(64):
        card.w(g.EERD, i << 8 | 1)
        value = card.r(g.EERD)
        assert value & 0xFFFF == i << 8 | 0x10
        out.append(value >> 16)
    return out


@pytest.mark.parametrize(("model", "device"), [("e1000", 0x100E), ("e1000-82544gc", 0x100C), ("e1000-82545em", 0x100F)])
def test_words(make_card: Callable[..., Any], model: str, device: int) -> None:
    """P1: address, identity and a sum of 0xBABA."""
    found = words(make_card(model, mac=bytes.fromhex("0202030405fe")))
    assert found[:3] == [0x0202, 0x0403, 0xFE05]
    assert found[11:15] == [device, 0x8086, device, 0x8086]
    assert sum(found) & 0xFFFF == 0xBABA
    assert found[4] == 0xFFFF
    assert found[8:11] == [0x3000, 0x1000, 0x6403]
    assert found[48:51] == [0x0100, 0x4000, 0x121C]
    assert found == eeprom(bytes.fromhex("0202030405fe"), device)


def test_eerd_without_start_is_storage(card: Any) -> None:
    """P2"""
    card.w(g.EERD, 0x00050600)
    assert card.r(g.EERD) == 0x00050600


@pytest.mark.parametrize("word", [0x40, 0x7F, 0xFF, 0xFFFF])
def test_eerd_beyond_the_last_word(card: Any, word: int) -> None:
    """P2: done, with no data."""
    card.w(g.EERD, word << 8 | 1)
    assert card.r(g.EERD) == word << 8 | 0x10


def test_eecd_tells_present_and_granted(card: Any) -> None:
    """P3: and the lines as last written: SK, CS, DI, FWE, REQ."""
    assert card.r(EECD) == 0x188
    for lines in (0, 0x77, 0x40, 0x30):
        card.w(EECD, lines)
        assert card.r(EECD) & ~DO == 0x180 | lines
    card.w(EECD, 0xFFFFFFFF)
    assert card.r(EECD) & ~DO == 0x1F7


class Wire:
    """The driver's side of Microwire: DI is taken on SK's rise, DO moves on its fall."""

    def __init__(self, card: Any) -> None:
        self.card = card

    def select(self) -> None:
        self.card.write_all([(EECD, 0), (EECD, CS)])

    def put(self, bits: str) -> None:
        for bit in bits:
            di = DI if bit == "1" else 0
            self.card.write_all([(EECD, CS | di), (EECD, CS | di | SK)])

    def take(self, n: int) -> str:
        bits = ""
        for _ in range(n):
            self.card.write_all([(EECD, CS), (EECD, CS | SK)])
            bits += "1" if self.card.r(EECD) & DO else "0"
        return bits


@pytest.mark.parametrize("word", [0, 1, 2, 11, 32, 63])
def test_microwire_read(card: Any, word: int) -> None:
    """P4: start bit, opcode 10, six address bits; the word comes most significant bit first."""
    wire = Wire(card)
    wire.select()
    wire.put(f"110{word:06b}")
    assert int(wire.take(16), 2) == words(card)[word]


def test_microwire_reads_on(card: Any) -> None:
    """P4: after the last bit of a word comes the next word; from the last one it goes round."""
    wire = Wire(card)
    wire.select()
    wire.put(f"110{62:06b}")
    bits = wire.take(64)
    assert [int(bits[i : i + 16], 2) for i in range(0, 64, 16)] == [words(card)[i] for i in (62, 63, 0, 1)]


@pytest.mark.parametrize("opcode", ["100", "101", "111", "010", "000"])
def test_other_microwire_commands_answer_ones(card: Any, opcode: str) -> None:
    """P4: DO is 1 when nothing is read; writing and erasing are not there."""
    before = words(card)
    wire = Wire(card)
    wire.select()
    wire.put(opcode + "000000" + "1010101010101010")
    assert wire.take(16) == "1" * 16
    assert words(card) == before


def test_deselecting_ends_a_read(card: Any) -> None:
    """P4: while CS is 0 the clock moves nothing, and its rise starts anew."""
    wire = Wire(card)
    wire.select()
    wire.put("110000000")
    assert wire.take(4) == "0101"
    card.w(EECD, 0)
    for _ in range(5):
        card.write_all([(EECD, SK), (EECD, 0)])
    wire.select()
    assert card.r(EECD) & DO
    wire.put("110000001")
    assert int(wire.take(16), 2) == words(card)[1]


def test_changing_data_alone_moves_nothing(card: Any) -> None:
    """P4: only the edges of SK count."""
    wire = Wire(card)
    wire.select()
    wire.put("110000000")
    for _ in range(9):
        card.write_all([(EECD, CS | SK | DI), (EECD, CS | SK)])
    assert int(wire.take(16), 2) == words(card)[0]
