"""A conventional PCI function: configuration space, base address registers, expansion ROM (PCI local bus specification 3.0, chapter 6)."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

__all__ = ["COMMAND_BUS_MASTER", "COMMAND_INTX_DISABLE", "COMMAND_IO", "COMMAND_MEMORY", "Bar", "PciFunction"]

VENDOR, DEVICE, COMMAND, STATUS, REVISION, CLASS = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
CACHE_LINE, LATENCY, BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM, ROM = 0x0C, 0x0D, 0x10, 0x2C, 0x2E, 0x30
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D

COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2
COMMAND_BUS_MASTER = 0x4
COMMAND_INTX_DISABLE = 0x400
COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | 0x100 | COMMAND_INTX_DISABLE  # 0x100: SERR#
STATUS_INTERRUPT = 0x8
ROM_ENABLE = 1
ROM_ADDRESS = 0xFFFFF800
MAX_ROM = 16 << 20  # what 6.2.5.2 lets a function ask for
# A window that reaches it is not decoded: it is what a sizing write leaves for a moment, with decoding on (a real QEMU does the same).
LAST_BYTE = 0xFFFFFFFF


def _window(address: int, size: int) -> int | None:
    return address if address and address + size - 1 < LAST_BYTE else None


class Bar(NamedTuple):
    """A base address register: size in bytes, a power of two."""

    size: int
    kind: Literal["mem", "io"]


class PciFunction:
    """256 bytes of configuration space that behave: sizing writes, read-only fields, decoding.

    `changed(command)` is called after a write that touches the COMMAND register; `interrupt()` gives the level behind STATUS bit 3.
    rom: image bytes, padded with 0xFF to a power of two.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        revision: int,
        device_class: int,
        subsystem_vendor: int = 0x1AF4,
        subsystem: int = 0x1100,
        bars: Sequence[Bar] = (),
        rom: bytes = b"",
        pin: int = 1,
        changed: Callable[[int], None] = lambda command: None,
        interrupt: Callable[[], int] = lambda: 0,
    ) -> None:
        if len(rom) > MAX_ROM:
            raise ValueError(f"an expansion ROM has at most {MAX_ROM} bytes, not {len(rom)}")
        self.bars = tuple(bars)
        self.rom = rom.ljust(max(2048, 1 << (len(rom) - 1).bit_length()), b"\xff") if rom else b""
        self._changed = changed
        self._interrupt = interrupt
        self._config = bytearray(256)
        self._mask = bytearray(256)  # writable bits
        self._clear = bytearray(256)  # bits that a 1 clears
        self._put(VENDOR, 2, vendor)
        self._put(DEVICE, 2, device)
        self._put(REVISION, 1, revision)
        self._put(CLASS, 3, device_class)
        self._put(SUBSYSTEM_VENDOR, 2, subsystem_vendor)
        self._put(SUBSYSTEM, 2, subsystem)
        self._put(INTERRUPT_PIN, 1, pin)
        self._writable(COMMAND, 2, COMMAND_WRITABLE)
        self._writable(CACHE_LINE, 1, 0xFF)
        self._writable(INTERRUPT_LINE, 1, 0xFF)
        self._clear[STATUS + 1] = 0xF9
        for i, bar in enumerate(self.bars):
            self._writable(BAR0 + 4 * i, 4, -bar.size & 0xFFFFFFFF)
            self._put(BAR0 + 4 * i, 4, 1 if bar.kind == "io" else 0)
        if self.rom:
            self._writable(ROM, 4, (-len(self.rom) & ROM_ADDRESS) | ROM_ENABLE)

    def _put(self, offset: int, size: int, value: int) -> None:
        self._config[offset : offset + size] = value.to_bytes(size, "little")

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._config[offset : offset + size], "little")

    def _writable(self, offset: int, size: int, mask: int) -> None:
        self._mask[offset : offset + size] = mask.to_bytes(size, "little")

    @property
    def command(self) -> int:
        return self._get(COMMAND, 2)

    @property
    def stored(self) -> bytes:
        """The 256 bytes as they are kept: what a saved state holds."""
        return bytes(self._config)

    @stored.setter
    def stored(self, data: bytes) -> None:
        """Restore writable and clearable bits; the rest stays this function's own."""
        if len(data) != 256:
            raise ValueError(f"a configuration space has 256 bytes, not {len(data)}")
        for i, byte in enumerate(data):
            keep = self._mask[i] | self._clear[i]
            self._config[i] = (self._config[i] & ~keep) | (byte & keep)
        self._changed(self.command)

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, little-endian; all ones beyond the 256 bytes."""
        data = bytearray(self._config[offset : offset + size]) if offset >= 0 else bytearray()
        if offset <= STATUS < offset + len(data) and self._interrupt():
            data[STATUS - offset] |= STATUS_INTERRUPT
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset`; read-only bits stay, what lies beyond the 256 bytes is ignored."""
        for i, byte in enumerate((value & ((1 << 8 * size) - 1)).to_bytes(size, "little")):
            at = offset + i
            if 0 <= at < 256:
                mask = self._mask[at]
                self._config[at] = ((self._config[at] & ~mask) | (byte & mask)) & ~(byte & self._clear[at])
        if offset < COMMAND + 2 and offset + size > COMMAND:
            self._changed(self.command)

    def bar_address(self, bar: int) -> int | None:
        """Where the BAR is decoded now; None while the COMMAND bit is off or no address is set."""
        kind = self.bars[bar].kind
        address = self._get(BAR0 + 4 * bar, 4) & (~3 if kind == "io" else ~15) & 0xFFFFFFFF
        on = self.command & (COMMAND_IO if kind == "io" else COMMAND_MEMORY)
        return _window(address, self.bars[bar].size) if on else None

    def rom_address(self) -> int | None:
        """Where the expansion ROM is decoded now, or None."""
        value = self._get(ROM, 4)
        if not self.rom or not value & ROM_ENABLE or not self.command & COMMAND_MEMORY:
            return None
        return _window(value & ROM_ADDRESS, len(self.rom))

    def reset(self) -> None:
        """RST#: everything writable goes to 0."""
        for i in range(256):
            self._config[i] &= ~(self._mask[i] | self._clear[i]) & 0xFF
        self._changed(self.command)
