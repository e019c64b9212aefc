"""e1000, e1000-82544gc, e1000-82545em: the PCI function around the chip in _e1000.pyx (facts E1 to E8, P1)."""

import dataclasses
import os
import struct
from typing import Any, NamedTuple

from qnet._host import GuestMemory, IrqLine
from qnet.errors import Error, OptionError
from qnet.models._e1000 import FEATURES, WAYS, E1000Chip
from qnet.models._e1000_state import pack, unpack
from qnet.models.pci import COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, Bar, PciFunction
from qnet.options import BOOL, STR, Choice, NicOptions, opt

__all__ = ["MODELS", "E1000", "Options", "realize"]


class Model(NamedTuple):
    """What tells the three devices apart (E1)."""

    device: int
    phy_id2: int
    summary: str


MODELS = {
    "e1000": Model(0x100E, 0x0C20, "Intel Gigabit Ethernet (82540EM)"),
    "e1000-82544gc": Model(0x100C, 0x0C30, "Intel Gigabit Ethernet (82544GC copper)"),
    "e1000-82545em": Model(0x100F, 0x0C20, "Intel Gigabit Ethernet (82545EM copper)"),
}


def _way(help: str) -> Any:
    return opt(BOOL, default=None, help=help, extra=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(NicOptions):
    """Properties. The last group is where this model departs from QEMU's; compat=qemu turns all of it off."""

    romfile: str = opt(STR, default="", help="expansion ROM image; empty: none")
    rombar: bool = opt(BOOL, default=True, help="off: the ROM has no BAR")
    autonegotiation: bool = opt(BOOL, default=True, help="restarting auto-negotiation takes the link down for 500 ms")
    mitigation: bool = opt(BOOL, default=True, help="interrupt mitigation and its registers")
    extra_mac_registers: bool = opt(BOOL, default=True, name="extra_mac_registers", help="statistics and storage registers of QEMU 2.5")
    migrate_tso_props: bool = opt(BOOL, default=True, name="migrate_tso_props", help="save both sets of offload contexts")
    init_vet: bool = opt(BOOL, default=True, help="VET is 0x8100 after reset")
    compat: str = opt(Choice("none", "qemu"), default="none", help="qemu: behave as QEMU's e1000 where a property says how", extra=True)
    ctrl_reset: bool | None = _way("CTRL.RST resets the chip")
    mac_loopback: bool | None = _way("RCTL.LBM loops frames back")
    legacy_checksum: bool | None = _way("legacy descriptors insert checksums")
    rx_checksum: bool | None = _way("RXCSUM and the receive checksum bits work")
    io_window: bool | None = _way("the I/O BAR gives access to the registers")
    full_decode: bool | None = _way("flow-control, TIPG, TIDV, RXDCTL and CTRL_EXT registers exist, with the manual's write masks")
    rx_at_once: bool | None = _way("off: no frame is received for a second after each write to RCTL")
    rx_disabled_drops: bool | None = _way("a receiver that RCTL.EN switches off drops frames; off: they queue")


def eeprom(mac: bytes, device: int) -> list[int]:
    """The 64 words of the EEPROM (P1; manual 5.6): the address, what drivers look for, and a sum of 0xBABA."""
    words = [0xFFFF] * 64
    words[0:3] = struct.unpack("<3H", mac)
    words[3:11] = [0x0000, 0xFFFF, 0x0000, 0x0000, 0x0000, 0x3000, 0x1000, 0x6403]
    words[11:16] = [device, 0x8086, device, 0x8086, 0x3040]
    words[16:22] = [0x0008, 0x2000, 0x7E14, 0x0048, 0x1000, 0x00D8]
    words[22:31] = [0x0000, 0x2700, 0x6CC9, 0x3150, 0x0722, 0x040B, 0x0984, 0x0000, 0xC000]
    words[31:38] = [0x0706, 0x1008, 0x0000, 0x0F04, 0x7FFF, 0x4D01, 0xFFFF]
    words[48:51] = [0x0100, 0x4000, 0x121C]
    words[63] = (0xBABA - sum(words[:63])) & 0xFFFF
    return words


class E1000(E1000Chip):
    """One e1000: a net client, a PCI function and its registers in one object.

    bar_read(bar, offset, size), bar_write(bar, offset, size, value), cfg_read, cfg_write, bar_address, rom and rom_address are all a VMM
    needs. All of it may be called from any thread.
    """

    mac: bytes
    bootindex: int | None
    pci: PciFunction

    def __init__(self, loop: Any, name: str, model: str, options: Options, mac: bytes, memory: GuestMemory, irq: IrqLine) -> None:
        kind = MODELS[model]
        rom = _rom(options)
        wanted = {way: getattr(options, way.replace("-", "_")) for way in WAYS}
        default = options.compat != "qemu"
        super().__init__(
            loop,
            name,
            model,
            memory,
            irq,
            eeprom=eeprom(mac, kind.device),
            phy_id2=kind.phy_id2,
            ways=sum(WAYS[way] for way, on in wanted.items() if (default if on is None else on)),
            has=sum(bit for feature, bit in FEATURES.items() if getattr(options, feature.replace("-", "_"))),
        )
        self.mac = mac
        self._options = options
        self.bootindex = options.bootindex
        self.pci = PciFunction(
            vendor=0x8086,
            device=kind.device,
            revision=3,
            device_class=0x020000,
            bars=(Bar(0x20000, "mem"), Bar(64, "io")),
            rom=rom,
            changed=self._command,
            interrupt=lambda: self.line_level,
        )

    def _command(self, command: int) -> None:
        self.set_command(bool(command & COMMAND_BUS_MASTER), bool(command & COMMAND_INTX_DISABLE))

    @property
    def info_str(self) -> str:  # type: ignore[override]  # computed here, stored elsewhere
        """What `info network` shows: the model and the address the driver set (M12)."""
        return f"model={self.model},macaddr={':'.join(f'{b:02x}' for b in self.station_address)}"

    @property
    def clients(self) -> list["E1000"]:
        return [self]

    @property
    def bars(self) -> list[tuple[int, str]]:
        """(size in bytes, "mem" or "io") of each BAR."""
        return [(bar.size, bar.kind) for bar in self.pci.bars]

    @property
    def rom(self) -> bytes:
        """The expansion ROM, padded to a power of two; empty without one."""
        return self.pci.rom

    def cfg_read(self, offset: int, size: int) -> int:
        """Read configuration space; all ones beyond its 256 bytes."""
        return self.pci.read(offset, size)

    def cfg_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space; setting bus master moves what waited (E4)."""
        self.pci.write(offset, size, value)

    def bar_address(self, bar: int) -> int | None:
        """Guest address at which the BAR is decoded now, or None."""
        return self.pci.bar_address(bar)

    def rom_address(self) -> int | None:
        """Guest address at which the ROM is decoded now, or None."""
        return self.pci.rom_address()

    def announce(self) -> None:
        """Nothing: this chip has no way to ask its driver to announce itself (A3)."""

    def rx_filter(self) -> None:
        """None: as in QEMU, the chip does not report its receive filter (M13)."""

    def reset(self) -> None:
        """The reset of the PCI bus (4.9)."""
        self.pci.reset()
        self.reset_chip()

    def save(self) -> bytes:
        """The device's state, with a packet in flight and running timers, in QEMU's migration format (docs/e1000.md)."""
        return pack(
            self.get_state(),
            self.pci.stored,
            mitigation=self._options.mitigation,
            full_mac=self._options.extra_mac_registers,
            tso=self._options.migrate_tso_props,
        )

    def load(self, data: bytes) -> None:
        """Take a state that save() of the same model returned. qnet.Error for anything else; the device is as it was then."""
        state, config = unpack(bytes(data), self.get_state())
        if config[:4] != self.pci.stored[:4]:
            found = ":".join(f"{x:04x}" for x in struct.unpack("<HH", config[:4]))
            raise Error(f"state of PCI device {found} does not fit {self.model}", "load it into the model that saved it")
        self.set_state(state)
        self.pci.stored = config


def _rom(options: Options) -> bytes:
    if not options.romfile or not options.rombar:
        return b""
    try:
        with open(options.romfile, "rb") as f:
            image = f.read()
    except OSError as e:
        raise OptionError(
            f"failed to find romfile \"{options.romfile}\"", f"{e.strerror}; romfile= takes the path of a PCI expansion ROM image"
        ) from None
    if not image:
        raise OptionError(f"romfile \"{os.path.basename(options.romfile)}\" is empty")
    return image


def realize(net: Any, name: str, options: Options, memory: GuestMemory, irq: IrqLine, *, model: str, mac: bytes) -> E1000:
    """Make the device (the control plane pairs, names and lists it)."""
    return E1000(net.loop, name, model, options, mac, memory, irq)
