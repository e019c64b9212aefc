"""Registers as a driver reads and writes them: reset values, what is writable, what clears on read (4.2; manual chapter 13)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qnet.models._e1000 import registers
from qnet.testing import guest_e1000 as g

ALL = 0xFFFFFFFF


class Row(NamedTuple):
    """One or more dwords from `offset` on that behave alike. mask: bits that keep what is written."""

    offset: int
    count: int
    reset: int
    mask: int


# Plain storage. Registers with effects have tests of their own; counters are read-only.
STORAGE = [
    Row(0x0014, 1, 0, ALL & ~1), Row(0x0018, 1, 0, ALL), Row(0x0028, 1, 0x00C28001, ALL), Row(0x002C, 1, 0x0100, 0xFFFF),
    Row(0x0030, 1, 0x8808, 0xFFFF), Row(0x0038, 1, 0x8100, 0xFFFF), Row(0x00C4, 1, 0, 0xFFFF), Row(0x0170, 1, 0, 0xFFFF),
    Row(0x0178, 1, 0, 0xC000FFFF), Row(0x0410, 1, 0, 0x3FFFFFFF), Row(0x0458, 1, 0, 0xFFFF), Row(0x0E00, 1, 0x0602, ALL),
    Row(0x1000, 1, 0x00100030, ALL), Row(0x2160, 1, 0, 0x8000FFF8), Row(0x2168, 1, 0, 0xFFF8),
    Row(0x2410, 1, 0, 0x1FFF), Row(0x2418, 1, 0, 0x1FFF), Row(0x2420, 1, 0, 0x1FFF), Row(0x2428, 1, 0, 0x1FFF), Row(0x2430, 1, 0, 0x1FFF),
    Row(0x2800, 1, 0, 0xFFFFFFF0), Row(0x2804, 1, 0, ALL), Row(0x2808, 1, 0, 0xFFF80), Row(0x2810, 1, 0, 0xFFFF), Row(0x2818, 1, 0, 0xFFFF),
    Row(0x2820, 1, 0, 0xFFFF), Row(0x2828, 1, 0, 0x013F3F3F), Row(0x282C, 1, 0, 0xFFFF), Row(0x2C00, 1, 0, 0xFFF), Row(0x5000, 1, 0, 0x7FF),
    Row(0x3410, 1, 0, 0x7FF), Row(0x3418, 1, 0, 0x7FF), Row(0x3420, 1, 0, 0x1FFF), Row(0x3428, 1, 0, 0x1FFF), Row(0x3430, 1, 0, 0x1FFF),
    Row(0x3800, 1, 0, 0xFFFFFFF0), Row(0x3804, 1, 0, ALL), Row(0x3808, 1, 0, 0xFFF80), Row(0x3810, 1, 0, 0xFFFF), Row(0x3818, 1, 0, 0xFFFF),
    Row(0x3820, 1, 0, 0xFFFF), Row(0x3828, 1, 0, ALL), Row(0x382C, 1, 0, 0xFFFF), Row(0x3830, 1, 0x01000400, ALL),
    Row(0x4058, 1, 0, ALL), Row(0x5200, 128, 0, ALL), Row(0x5600, 128, 0, ALL), Row(0x5800, 1, 0, ALL), Row(0x5808, 1, 0, ALL),
    Row(0x5810, 1, 0, ALL), Row(0x5838, 1, 0, ALL), Row(0x5840, 7, 0, ALL), Row(0x5880, 4, 0, ALL), Row(0x5A00, 32, 0, ALL),
    Row(0x5B50, 1, 0, ALL), Row(0x5F00, 7, 0, 0x7FF), Row(0x9000, 255, 0, 0xF), Row(0x9800, 255, 0, ALL), Row(0x10000, 16384, 0, ALL),
]  # fmt: skip
READ_ONLY = [
    Row(0x0008, 1, 0x80080783, 0), Row(0x0180, 1, 0, 0), Row(0x4000, 22, 0, 0), Row(0x405C, 10, 0, 0), Row(0x4088, 4, 0, 0),
    Row(0x40A0, 24, 0, 0), Row(0x5820, 1, 0x00222300, 0),
]  # fmt: skip
# With effects: CTRL, EECD, MDIC, ICR, ICS, IMS, IMC, RCTL, TCTL, RA
SPECIAL = [0x0000, 0x0010, 0x0020, 0x00C0, 0x00C8, 0x00D0, 0x00D8, 0x0100, 0x0400, *range(0x5400, 0x5480, 4)]


def dwords(rows: list[Row]) -> dict[int, Row]:
    return {row.offset + 4 * i: row for row in rows for i in range(row.count)}


def test_what_is_decoded() -> None:
    """The chip's own table lists what this file lists, and nothing else."""
    table = {reg["offset"] + 4 * i for reg in registers() for i in range(reg["count"])}
    assert table == set(dwords(STORAGE)) | set(dwords(READ_ONLY)) | set(SPECIAL)


def test_reset_values(card: Any) -> None:
    """4.2, after reset; RA0 holds the address."""
    expected = {offset: row.reset for offset, row in (dwords(STORAGE) | dwords(READ_ONLY)).items()}
    expected |= {0x0000: 0x00140240, 0x0010: 0x188, 0x5400: 0x12005452, 0x5404: 0x80005634}
    assert [(hex(reg), hex(value)) for reg in range(0, 0x20000, 4) if (value := card.r(reg)) != expected.get(reg, 0)] == []


@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x5555AAAA, 0x12345678])
def test_write_masks(card: Any, value: int) -> None:
    """4.2: a register keeps the bits it has."""
    for offset, row in dwords(STORAGE).items():
        card.w(offset, value if offset != g.EERD else value & ~1)
        assert card.r(offset) == value & row.mask, hex(offset)
        card.w(offset, 0)
        assert card.r(offset) == 0, hex(offset)


def test_read_only_registers_ignore_writes(card: Any) -> None:
    """E8"""
    for offset, row in dwords(READ_ONLY).items():
        card.w(offset, 0xFFFFFFFF)
        assert card.r(offset) == row.reset, hex(offset)


def test_what_is_not_there_reads_zero_and_ignores_writes(card: Any) -> None:
    """E8, R2: no register, no alias of older chips (0x108, 0x420, 0x0004)."""
    there = set(dwords(STORAGE)) | set(dwords(READ_ONLY)) | set(SPECIAL)
    for offset in sorted(set(range(0, 0x20000, 4)) - there):
        card.w(offset, 0xFFFFFFFF)
        assert card.r(offset) == 0, hex(offset)


def test_the_window_repeats(card: Any) -> None:
    """E8: the index is (address & 0x1ffff) / 4."""
    card.w(0x20000 + g.VET, 0x9100)
    assert card.r(g.VET) == card.r(0x40000 + g.VET) == 0x9100


def test_station_address(card: Any) -> None:
    """13.5.3: AV, AS and 16 address bits; RAH0 changes what `info network` shows (M12)."""
    card.w(g.RAL, 0x0A080602)
    card.w(g.RAH, 0xFFFFFFFF)
    assert card.r(g.RAH) == 0x8003FFFF
    card.w(g.RAH, 0x80000E0C)
    assert card.nic.info_str == "model=e1000,macaddr=02:06:08:0a:0c:0e"
    assert card.nic.station_address == bytes.fromhex("0206080a0c0e")
    assert card.nic.receive_addresses == [bytes.fromhex("0206080a0c0e")]


def test_counters_that_clear_when_read(card: Any, t: Any) -> None:
    """13.7: TPT, GPTC, PTC64 and BPTC clear; MPC does not; reading a high half clears both."""
    card.tx_init()
    for _ in range(3):
        card.send(t.frame(60))
    for offset in (0x40D4, 0x4080, 0x40D8, 0x40F4):
        assert (card.r(offset), card.r(offset)) == (3, 0), hex(offset)
    for low in (0x4090, 0x40C8):
        assert (card.r(low), card.r(low), card.r(low + 4), card.r(low)) == (192, 192, 0, 0), hex(low)


MITIGATION = [0x00C4, 0x2820, 0x282C, 0x382C]
OLD = [0x4000, 0x4074, 0x40D0, 0x40D4, 0x4080, 0x40C0, 0x40C8]


def test_old_machines_lack_registers(make_card: Callable[..., Any], t: Any) -> None:
    """E5: what mitigation=off and extra_mac_registers=off take away, and what they leave."""
    card = make_card(mitigation=False, extra_mac_registers=False)
    groups = {reg["offset"] + 4 * i: reg["group"] for reg in registers() for i in range(reg["count"])}
    assert {offset for offset, group in groups.items() if group == "mitigation"} == set(MITIGATION)
    assert all(groups[offset] is None for offset in OLD)
    for offset, row in dwords(STORAGE).items():
        card.w(offset, row.mask)
        assert (card.r(offset) == row.mask) == (groups[offset] is None), hex(offset)
    card.tx_init()
    card.send(t.frame(60))
    assert card.r(0x40D4) == 1
    assert card.r(0x40D8) == 0


def test_initial_vet(make_card: Callable[..., Any]) -> None:
    """E5: init_vet=off: VET is 0 after reset, as before QEMU 6.1."""
    card = make_card(init_vet=False)
    assert card.r(g.VET) == 0
    card.w(g.VET, 0x8100)
    card.nic.reset()
    assert card.r(g.VET) == 0


def test_the_documented_table_is_the_chips() -> None:
    """docs/e1000-registers.md lists every row of the table."""
    text = (Path(__file__).parents[2] / "docs/e1000-registers.md").read_text()
    documented = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in text.splitlines() if line.startswith("| 0x")]
    assert documented == [
        (
            f"0x{reg['offset']:05X}",
            reg["name"] + (f" x{reg['count']}" if reg["count"] > 1 else ""),
            f"{reg['reset']:08X}",
            f"{reg['mask']:08X}" if reg["mask"] else "-",
            "not decoded" if reg["qemu_mask"] is None else "" if reg["qemu_mask"] == reg["mask"] else f"{reg['qemu_mask']:08X}",
            reg["group"] or "",
        )
        for reg in sorted(registers(), key=lambda reg: reg["offset"])
    ]
