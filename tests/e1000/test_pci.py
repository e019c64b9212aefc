"""The PCI function: identity, BARs, sizing, ROM, COMMAND and STATUS (4.1: E1, E2, E4; PCI 3.0 chapter 6)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.errors import OptionError
from qnet.models.e1000 import MODELS, Options
from qnet.models.pci import Bar, PciFunction
from qnet.testing import guest_e1000 as g


@pytest.mark.parametrize(("model", "device"), [("e1000", 0x100E), ("e1000-82544gc", 0x100C), ("e1000-82545em", 0x100F)])
def test_identity(make_card: Callable[..., Any], model: str, device: int) -> None:
    """E1"""
    card = make_card(model)
    assert MODELS[model].device == device
    assert card.cfg_read(0, 4) == device << 16 | 0x8086
    assert card.cfg_read(8, 4) == 0x02000003
    assert card.cfg_read(0x2C, 4) == 0x11001AF4
    assert (card.cfg_read(0x3D, 1), card.cfg_read(0x0C, 1), card.cfg_read(0x0E, 1), card.cfg_read(0x34, 1)) == (1, 0, 0, 0)
    assert card.nic.model == model


def test_bars(card: Any) -> None:
    """E2: 128 KiB of memory, 64 ports; found by writing ones."""
    assert card.nic.bars == [(0x20000, "mem"), (64, "io")]
    for i, (size, flags) in enumerate([(0x20000, 0), (64, 1), (0, 0), (0, 0), (0, 0), (0, 0)]):
        card.cfg_write(0x10 + 4 * i, 4, 0xFFFFFFFF)
        assert card.cfg_read(0x10 + 4 * i, 4) == (-size & 0xFFFFFFFF) | flags
    card.enable(0)
    assert card.nic.bar_address(0) is None


def test_decoding(card: Any) -> None:
    """The COMMAND bits decide, and an address must have been given."""
    card.cfg_write(0x10, 4, 0xFEB00000)
    card.cfg_write(0x14, 4, 0xC001)
    for command, memory, ports in [(0, None, None), (1, None, 0xC000), (2, 0xFEB00000, None), (3, 0xFEB00000, 0xC000), (4, None, None)]:
        card.enable(command)
        assert (card.nic.bar_address(0), card.nic.bar_address(1)) == (memory, ports)
    card.cfg_write(0x10, 4, 0)
    assert card.nic.bar_address(0) is None


WINDOWS = [(0x10, 0xFFFFFFFF, None), (0x10, 0xFFFE0000, None), (0x10, 0xFFFC0000, 0xFFFC0000), (0x10, 0, None),
           (0x14, 0xFFFFFFFF, None), (0x14, 0xFFFFFF81, 0xFFFFFF80), (0x14, 0xFFC1, 0xFFC0), (0x14, 1, None),
           (0x30, 0xFFFFFFFF, None), (0x30, 0xFFFE0001, None), (0x30, 0xFFFC0001, 0xFFFC0000), (0x30, 1, None)]  # fmt: skip


@pytest.mark.parametrize(("register", "value", "address"), WINDOWS)
def test_a_window_at_the_end_is_not_decoded(
    make_card: Callable[..., Any], tmp_path: Path, register: int, value: int, address: int | None
) -> None:
    """Sizing with decoding on must not cover what else is there, as the firmware."""
    image = tmp_path / "rom"
    image.write_bytes(bytes(0x20000))
    card = make_card(romfile=str(image))
    card.enable(3)
    card.cfg_write(register, 4, value)
    assert (card.nic.rom_address() if register == 0x30 else card.nic.bar_address((register - 0x10) // 4)) == address


@pytest.mark.qemu
def test_a_real_qemu_decodes_the_same_windows(make_qemu: Callable[..., Any], tmp_path: Path) -> None:
    """Memory and ROM; no port that the processor has lies at the end."""
    image = tmp_path / "rom"
    image.write_bytes(b"\x5a" * 0x20000)
    qemu = make_qemu(romfile=str(image))
    for register, value, address in WINDOWS:
        if register == 0x14:
            continue
        qemu.cfg_write(0x10, 4, 0)
        qemu.cfg_write(0x30, 4, 0)
        qemu.cfg_write(register, 4, value)
        place = (value & 0xFFFE0000) or 0xFFFC0000
        there = {0x10: 0x80080783, 0x30: 0x5A5A5A5A}[register]           # STATUS, or the image
        assert (qemu.ask(f"readl {place + 8:#x}") == [there]) is (address is not None), (hex(register), hex(value))


@pytest.mark.parametrize(("size", "rounded"), [(1, 2048), (2048, 2048), (2049, 4096), (100_000, 131072)])
def test_rom(make_card: Callable[..., Any], tmp_path: Path, size: int, rounded: int) -> None:
    """6.2.5.2: a power of two of at least 2 KiB; decoded by its own bit and COMMAND's."""
    image = tmp_path / "rom"
    image.write_bytes(bytes(i % 251 for i in range(size)))
    card = make_card(romfile=str(image))
    assert card.nic.rom == image.read_bytes().ljust(rounded, b"\xff")
    card.cfg_write(0x30, 4, 0xFFFFFFFF)
    assert card.cfg_read(0x30, 4) == (-rounded & 0xFFFFFFFF) | 1
    card.cfg_write(0x30, 4, 0xFEA00001)
    assert card.nic.rom_address() is None
    card.enable(2)
    assert card.nic.rom_address() == 0xFEA00000
    card.cfg_write(0x30, 4, 0xFEA00000)
    assert card.nic.rom_address() is None


def test_no_rom(make_card: Callable[..., Any], tmp_path: Path) -> None:
    image = tmp_path / "rom"
    image.write_bytes(b"\x55\xaa")
    for options in ({}, {"romfile": str(image), "rombar": False}):
        card = make_card(**options)
        card.enable(2)
        card.cfg_write(0x30, 4, 0xFFFFFFFF)
        assert (card.nic.rom, card.cfg_read(0x30, 4), card.nic.rom_address()) == (b"", 0, None)


@pytest.mark.parametrize("problem", ["missing", "empty", "huge"])
def test_bad_roms(t: Any, tmp_path: Path, problem: str) -> None:
    path = tmp_path / "rom"
    if problem == "empty":
        path.touch()
    elif problem == "huge":
        with path.open("wb") as f:
            f.truncate((16 << 20) + 1)
    with pytest.raises((OptionError, ValueError), match=r"romfile|expansion ROM"):
        t.card(romfile=str(path))


def test_read_only_fields(card: Any) -> None:
    before = card.nic.pci.stored
    for offset in (*range(4), *range(6, 12), 0x0D, 0x0E, 0x0F, *range(0x18, 0x3C), *range(0x3D, 0x100)):
        card.cfg_write(offset, 1, 0xFF)
        card.cfg_write(offset, 1, 0)
    assert card.nic.pci.stored == before


def test_writable_fields(card: Any) -> None:
    """COMMAND, cache line size, interrupt line."""
    for offset, size, mask in ((4, 2, 0x0507), (0x0C, 1, 0xFF), (0x3C, 1, 0xFF)):
        card.cfg_write(offset, size, 0xFFFF)
        assert card.cfg_read(offset, size) == mask
        card.cfg_write(offset, size, 0)
        assert card.cfg_read(offset, size) == 0


def test_beyond_the_end(card: Any) -> None:
    """Ones, as from a bus without a device; writes go nowhere."""
    assert card.cfg_read(0xFE, 4) == 0xFFFF0000
    assert card.cfg_read(0x100, 4) == 0xFFFFFFFF
    card.cfg_write(0xFE, 4, 0)
    card.cfg_write(0x1000, 4, 0)


def test_bus_master_lets_go_of_what_waits(card: Any, t: Any) -> None:
    """E4: also by a byte, or a dword that covers COMMAND."""
    for size in (1, 2, 4):
        card.rx_init()
        card.enable(0x2)
        card.arrive(t.frame())
        assert card.r(g.RDH) == 0
        card.cfg_write(4, size, 6)
        assert card.r(g.RDH) == 1


def test_without_bus_master_memory_is_not_touched(card: Any, t: Any) -> None:
    card.rx_init()
    card.tx_init()
    card.put(0x180000, t.frame())
    card.enable(0x2)
    before = bytes(card.view)
    card.queue(t.legacy(0x180000, 60))
    ring = bytes(card.view)
    card.w(g.TDT, 1)
    card.arrive(t.frame())
    assert card.sent == []
    assert bytes(card.view) == ring != before


def test_reset(card: Any) -> None:
    """RST#: BARs, COMMAND, cache line size and interrupt line are 0 again; E1: cache line size reads 0."""
    fresh = card.nic.pci.stored
    for offset in range(256):
        card.cfg_write(offset, 1, 0xFF)
    card.nic.reset()
    assert card.nic.pci.stored == fresh


@given(writes=st.lists(st.tuples(st.integers(0, 300), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)), max_size=20))
def test_any_writes(writes: list[tuple[int, int, int]]) -> None:
    """Whatever is written, in whatever order: only writable bits change, whatever the widths of the accesses."""
    bars = (Bar(0x20000, "mem"), Bar(64, "io"))
    function, bytewise = (PciFunction(vendor=0x8086, device=0x100E, revision=3, device_class=0x020000, bars=bars) for _ in range(2))
    fixed = function.stored
    for offset, size, value in writes:
        function.write(offset, size, value)
        for i, byte in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little")):
            bytewise.write(offset + i, 1, byte)
        assert function.stored == bytewise.stored
        assert function.read(offset, size) == int.from_bytes(
            b"".join(function.read(offset + i, 1).to_bytes(1, "little") for i in range(size)), "little"
        )
    for offset in (0, 1, 2, 3, 8, 9, 10, 11, 0x2C, 0x2D, 0x2E, 0x2F, 0x34, 0x3D, *range(0x40, 256)):
        assert function.stored[offset] == fixed[offset]
    saved = function.stored
    function.reset()
    function.stored = saved
    assert function.stored == saved


def test_options_have_defaults() -> None:
    assert Options().mac is None
    assert Options().romfile == ""
