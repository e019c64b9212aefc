"""The board: everything the firmware finds around the CPU. CPU back ends plug in from below, a NIC from above; neither knows the other.

It is just enough of a PC (i440FX and PIIX3, a 16550, CMOS, fw_cfg) for unmodified SeaBIOS. Sources: PCI Local Bus Specification 3.0
(configuration mechanism #1: 3.2.2.3.2), the 82371SB, 16550 and MC146818A data sheets, QEMU's fw_cfg specification.
"""

import mmap
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from qnet.models.e1000 import E1000
from qnet.models.pci import PciFunction


class Region(NamedTuple):
    """Registers of a device, or a ROM for the CPU to map. Offsets count from `start`; values are `size` (1, 2, 4 or 8) bytes wide."""

    start: int
    length: int
    read: Callable[[int, int], int] = lambda offset, size: -1
    write: Callable[[int, int, int], None] = lambda offset, size, value: None
    image: bytes = b""


class Space:
    """Port or memory space: which region answers where. Where none does, reads give all ones and writes go nowhere."""

    def __init__(self) -> None:
        self._regions: dict[int, Region] = {}

    def add(self, region: Region) -> None:
        self._regions[region.start] = region

    def remove(self, start: int) -> Region:
        return self._regions.pop(start)

    def read(self, address: int, size: int) -> int:
        value = -1
        for region in self._regions.values():
            if 0 <= address - region.start < region.length:
                value = region.read(address - region.start, size)
        return value & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        for region in list(self._regions.values()):  # a copy: writing to configuration space moves regions
            if 0 <= address - region.start < region.length:
                region.write(address - region.start, size, value)


class Cpu(Space):
    """A CPU back end, which is memory space as well. `set_irq` and `stop` may be called on any thread, the rest only where `run` runs."""

    def __init__(self, ram: mmap.mmap, ports: Space) -> None:
        super().__init__()
        self.ram, self.ports = ram, ports

    def set_irq(self, line: int, level: int) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...


class NicSlot:
    """The slot a qnet NIC sits in: passes configuration cycles through, and moves the NIC's windows to where the guest puts them."""

    def __init__(self, nic: E1000, cpu: Cpu, ports: Space) -> None:
        self.read, self._write = nic.cfg_read, nic.cfg_write
        rom = Region(0, len(nic.rom), image=nic.rom)
        self._windows: list[tuple[Callable[[], int | None], Space, Region]] = [(nic.rom_address, cpu, rom)]
        for bar, (length, kind) in enumerate(nic.bars):
            region = Region(0, length, partial(nic.bar_read, bar), partial(nic.bar_write, bar))
            self._windows.append((partial(nic.bar_address, bar), cpu if kind == "mem" else ports, region))
        self._placed: list[int | None] = [None] * len(self._windows)

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(offset, size, value)
        for n, (wanted, space, region) in enumerate(self._windows):
            before, self._placed[n] = self._placed[n], wanted()
            if before != self._placed[n]:
                if before is not None:
                    space.remove(before)
                if (start := self._placed[n]) is not None:
                    space.add(region._replace(start=start))


class PciBus:
    """Configuration mechanism #1: the address register at port 0xCF8, the data window at 0xCFC. One bus, no bridges."""

    def __init__(self) -> None:
        self._address = 0  # bit 31 enables; then bus, slot and function (here only bus 0 and functions 0), register
        self.slots: dict[int, PciFunction | NicSlot] = {}

    def _selected(self) -> PciFunction | NicSlot | None:
        return self.slots.get(self._address >> 11 & 31) if self._address & 0x80FF_0700 == 0x8000_0000 else None

    def read(self, offset: int, size: int) -> int:
        if offset < 4:
            return self._address >> 8 * offset
        function = self._selected()
        return -1 if function is None else function.read(self._address & 0xFC | offset & 3, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:  # narrower writes do not reach this register (3.2.2.3.2)
            self._address = value
        elif offset >= 4 and (function := self._selected()) is not None:
            function.write(self._address & 0xFC | offset & 3, size, value)


class Selector:
    """An index register and behind it a stream of bytes: CMOS without clock and writing, and QEMU's fw_cfg."""

    def __init__(self, items: dict[int, bytes]) -> None:
        self._items = items
        self._stream = iter(b"")

    def read(self, offset: int, size: int) -> int:
        return next(self._stream, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._stream = iter(self._items.get(value, b""))


def fw_cfg(files: dict[str, bytes]) -> dict[int, bytes]:
    """The items of fw_cfg: a signature, the files, and under key 0x19 their directory."""
    entries = (struct.pack(">IHH56s", len(content), 0x20 + n, 0, name.encode()) for n, (name, content) in enumerate(files.items()))
    items = {0: b"QEMU", 0x19: struct.pack(">I", len(files)) + b"".join(entries)}
    return items | {0x20 + n: content for n, content in enumerate(files.values())}


class Serial:
    """A 16550 that is always ready to send. Bytes sent go to `on_byte`; what `keys` holds comes up the receive side."""

    def __init__(self, on_byte: Callable[[int], None]) -> None:
        self._on_byte = on_byte
        self._registers = bytearray(8)
        self.keys = bytearray()

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return self.keys.pop(0) if self.keys else 0
        if offset == 2:  # what interrupts, if enabled in register 1: the transmitter is empty
            return 2 if self._registers[1] & 2 else 1
        return 0x60 | bool(self.keys) if offset == 5 else self._registers[offset]  # 0x60: empty, too; 1: a byte has come

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and not self._registers[3] & 0x80:  # with that bit it is the divisor, of no use here
            self._on_byte(value)
        self._registers[offset] = value


class Machine:
    """RAM, BIOS, ports and PCI bus around a CPU.

    RAM is one piece from address 0, the hole at 0xA0000 included. The BIOS stands read-only below 4 GiB, and its last 128 KiB are already
    copied to 0xE0000, so the chipset's shadow registers (PAM) need no remapping behind them.
    """

    def __init__(self, ram_size: int, bios: bytes, cpu: type[Cpu], on_serial: Callable[[int], None]) -> None:
        self.ram = mmap.mmap(-1, ram_size)
        self.ram[0xE0000:0x100000] = bios[-0x20000:]
        self._ticks = memoryview(self.ram)[0x46C:0x470].cast("I")  # BIOS data area; cast: the guest never sees half a store
        self._ticks_from = time.monotonic(), 0
        self.ports, self.pci, self.serial, self.interrupts = Space(), PciBus(), Serial(on_serial), 0
        self.cpu = cpu(self.ram, self.ports)
        self.cpu.add(Region((1 << 32) - len(bios), len(bios), image=bios))
        # SeaBIOS wants to see an i440FX; for a PIIX3 it also makes the lines of PCI interrupts level-triggered.
        for slot, device, device_class in (0, 0x1237, 0x060000), (1, 0x7000, 0x060100):
            self.pci.slots[slot] = PciFunction(vendor=0x8086, device=device, revision=0, device_class=device_class, pin=0)
        ram = ((ram_size >> 16) - 256).to_bytes(2, "little")  # 64 KiB blocks above 16 MiB; to be found in CMOS cells 0x34 and 0x35
        cmos = Selector({0x80 | 0x34: ram[:1], 0x80 | 0x35: ram[1:]})  # 0x80: no NMI meanwhile
        options = Selector(fw_cfg({"etc/sercon-port": struct.pack("<Q", 0x3F8), "etc/show-boot-menu": bytes(8)}))
        self.ports.add(Region(0x70, 2, cmos.read, cmos.write))
        self.ports.add(Region(0x3F8, 8, self.serial.read, self.serial.write))
        self.ports.add(Region(0x510, 2, options.read, options.write))
        self.ports.add(Region(0xCF8, 8, self.pci.read, self.pci.write))

    def plug(self, nic: E1000) -> None:
        self._nic = nic
        self.pci.slots[3] = NicSlot(nic, self.cpu, self.ports)

    def set_intx(self, level: int) -> None:
        """The NIC's INTA# pin, at the interrupt line that the firmware noted down in configuration space."""
        self.interrupts += level
        self.cpu.set_irq(self._nic.cfg_read(0x3C, 1), level)

    def keep_bios_clock(self) -> None:
        """Bring the BIOS tick count forward to the wall clock; to be called some twenty times a second.

        iPXE tells the time by this count, but lets interrupts in for only two instructions at a time. A real CPU never misses those; one
        that looks for interrupts between slices does, and so does a KVM that has to emulate such code.
        """
        now, count, (begin, first) = time.monotonic(), self._ticks[0], self._ticks_from
        due = first + int((now - begin) * 1193182 / 65536)
        if not 0 <= due - count < 100:  # the guest has set its clock, or midnight has
            self._ticks_from = now, count
        elif due > count:
            self._ticks[0] = due
