"""Accesses of 1, 2, 4 and 8 bytes at any offset (E6; design section 5)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.testing import guest_e1000 as g

MTA = g.MTA


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(8))
def test_a_read_is_the_bytes_at_its_address(card: Any, size: int, offset: int) -> None:
    card.write_all([(MTA + 4 * i, 0x03020100 + 0x04040404 * i) for i in range(4)])
    assert card.r(MTA + offset, size) == int.from_bytes(bytes(range(offset, offset + size)), "little")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(8))
def test_a_write_changes_the_bytes_at_its_address(card: Any, size: int, offset: int) -> None:
    before = bytearray(range(16))
    card.write_all([(MTA + 4 * i, int.from_bytes(before[4 * i : 4 * i + 4], "little")) for i in range(4)])
    value = 0xF7F6F5F4F3F2F1F0 & (1 << 8 * size) - 1
    card.w(MTA + offset, value, size)
    before[offset : offset + size] = value.to_bytes(size, "little")
    assert b"".join(card.r(MTA + 4 * i).to_bytes(4, "little") for i in range(4)) == bytes(before)


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_other_sizes_are_a_mistake_of_the_vmm(card: Any, size: int) -> None:
    for bar in (0, 1):
        with pytest.raises(ValueError, match=f"1, 2, 4 or 8 bytes, not {size}"):
            card.nic.bar_read(bar, 0, size)
        with pytest.raises(ValueError, match=f"1, 2, 4 or 8 bytes, not {size}"):
            card.nic.bar_write(bar, 0, size, 0)


def test_a_byte_of_an_interrupt_register_orders_its_bits_only(card: Any) -> None:
    """Writing 1 to a bit is an order there: the bits beside it must not be given again."""
    card.w(g.IMS, 0x80)
    card.w(g.IMS, 0x04, 1)
    assert card.r(g.IMS) == 0x84
    card.w(g.IMC, 0x80, 1)
    assert card.r(g.IMS) == 0x04
    card.w(g.ICS, 0x0201)
    card.w(g.ICR, 0x02, 1)
    assert card.r(g.ICS) == 0x201
    card.w(g.ICR + 1, 0x02, 1)
    assert card.r(g.ICS) == 0x001


def test_a_pair_of_dwords_is_two_accesses_low_one_first(card: Any) -> None:
    """A 64-bit ring base, and a counter whose high half clears both."""
    card.w(g.TDBAL, 0x1_2345_6780, 8)
    assert (card.r(g.TDBAL), card.r(g.TDBAH)) == (0x23456780, 1)
    assert card.r(g.TDBAL, 8) == 0x1_2345_6780


def test_a_counter_is_read_once(card: Any, t: Any) -> None:
    """Registers that clear on read are touched once per access, whatever its width."""
    card.tx_init()
    card.send(t.frame(60))
    assert card.r(0x40C8, 8) == 64
    assert card.r(0x40C8, 8) == 0
    assert card.r(0x40D4, 1) == 1
    assert card.r(0x40D4, 2) == 0


def test_beyond_the_last_register_it_wraps(card: Any) -> None:
    card.w(0x1FFFC, 0xAABBCCDD)
    assert card.r(0x1FFFC, 8) == 0xAABBCCDD | card.r(0) << 32


def test_values_are_cut_to_the_access(card: Any) -> None:
    card.nic.bar_write(0, MTA, 4, 0xFFFFFFFF_12345678)
    assert card.r(MTA) == 0x12345678


def test_there_is_no_third_bar(card: Any) -> None:
    card.nic.bar_write(2, 0, 4, 0xFFFFFFFF)
    assert card.nic.bar_read(2, 0, 4) == 0


def test_accesses_are_counted(card: Any) -> None:
    reads, writes = card.nic.accesses
    card.r(g.STATUS)
    card.r(g.MTA, 8)
    card.w(g.VET, 0)
    assert card.nic.accesses == (reads + 2, writes + 1)


@given(writes=st.lists(st.tuples(st.integers(0, 63), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=30))
def test_storage_is_memory(t: Any, writes: list[tuple[int, int, int]]) -> None:
    """Any accesses to storage registers are those of 512 bytes of memory."""
    card = t.card()
    try:
        memory = bytearray(128)
        for offset, size, value in writes:
            value &= (1 << 8 * size) - 1
            card.w(MTA + offset, value, size)
            memory[offset : offset + size] = value.to_bytes(size, "little")
            assert card.r(MTA + offset, size) == value
        assert b"".join(card.r(MTA + i, 1).to_bytes(1, "little") for i in range(128)) == bytes(memory)
    finally:
        card.close()
