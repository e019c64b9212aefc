"""A card on a virtual clock, guest memory between canaries, and a Port at the other end of the wire.

Tests reach the card as a driver does: BAR 0, configuration space, and rings and buffers in guest memory. Registers by name are those of
qnet.testing.guest_e1000; what that module does not name is an offset in the test.
"""

import mmap
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qnet._host import GuestMemory, IrqLine
from qnet._loop import Loop, VirtualClock
from qnet.models.e1000 import E1000, Options
from qnet.testing import guest_e1000 as g
from qnet.testing._port import Port

MAC = bytes.fromhex("525400123456")
CANARY = bytes(range(7, 256)) * 64
MEMORY = 4 << 20

TX_RING, RX_RING, TX_BUF, RX_BUF = 0x110000, 0x140000, 0x180000, 0x200000  # above the PC's first MiB
ms = 1_000_000


class RxDesc(NamedTuple):
    """A receive descriptor as the driver finds it (3.2.3)."""

    addr: int
    length: int
    checksum: int
    status: int
    errors: int
    special: int


def legacy(addr: int, length: int, cmd: int = g.CMD_EOP | g.CMD_RS, cso: int = 0, css: int = 0, special: int = 0) -> bytes:
    """A legacy transmit descriptor (3.3.3)."""
    return struct.pack("<QHBBBBH", addr, length, cso, cmd, 0, css, special)


def data(addr: int, length: int, cmd: int = g.CMD_EOP | g.CMD_RS, popts: int = 0, special: int = 0) -> bytes:
    """A data descriptor (3.3.7); DEXT is implied."""
    return struct.pack("<QIBBH", addr, length | g.DTYP_DATA << 20 | (cmd | g.CMD_DEXT) << 24, 0, popts, special)


def context(
    *, ipcss: int = 0, ipcso: int = 0, ipcse: int = 0, tucss: int = 0, tucso: int = 0, tucse: int = 0, paylen: int = 0, hdr_len: int = 0,
    mss: int = 0, cmd: int = 0,
) -> bytes:  # fmt: skip
    """A context descriptor (3.3.6); DEXT is implied."""
    return struct.pack("<BBHBBHIBBH", ipcss, ipcso, ipcse, tucss, tucso, tucse, paylen | (cmd | g.CMD_DEXT) << 24, 0, hdr_len, mss)


class Driver:
    """What a driver does to a card, whichever card it is. Subclasses say how to reach registers, memory and the wire."""

    tx_n = rx_n = tx_next = tx_at = rx_at = 0
    rx_size = 2048

    def r(self, reg: int, size: int = 4) -> int:
        raise NotImplementedError

    def w(self, reg: int, value: int, size: int = 4) -> None:
        raise NotImplementedError

    def cfg_read(self, offset: int, size: int) -> int:
        raise NotImplementedError

    def cfg_write(self, offset: int, size: int, value: int) -> None:
        raise NotImplementedError

    def put(self, addr: int, data: bytes) -> int:
        """Write guest memory; returns the address."""
        raise NotImplementedError

    def get(self, addr: int, n: int) -> bytes:
        raise NotImplementedError

    def arrive(self, *frames: bytes) -> None:
        """Frames come over the wire."""
        raise NotImplementedError

    @property
    def sent(self) -> list[bytes]:
        """Frames that went out since the last look."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait for what the card does by itself."""

    def enable(self, command: int = 7) -> None:
        """The COMMAND register: I/O, memory, bus master."""
        self.cfg_write(4, 2, command)

    @property
    def level(self) -> int:
        """The interrupt line, as PCI STATUS tells it."""
        return self.cfg_read(6, 2) >> 3 & 1

    def batch(self, accesses: Iterable[tuple[int, int | None]]) -> list[int]:
        """Register accesses one after the other: (register, value) writes, (register, None) reads. What the reads answered."""
        answers = []
        for reg, value in accesses:
            if value is None:
                answers.append(self.r(reg))
            else:
                self.w(reg, value)
        return answers

    def write_all(self, registers: Iterable[tuple[int, int]]) -> None:
        self.batch(registers)

    def read_all(self, registers: Iterable[int]) -> list[int]:
        return self.batch((reg, None) for reg in registers)

    # ---- transmit

    def tx_init(self, n: int = 64, tctl: int = g.TCTL_EN, at: int = TX_RING) -> None:
        self.enable()
        self.tx_n, self.tx_next, self.tx_at = n, 0, at
        self.put(at, bytes(16 * n))
        self.write_all([(g.TDBAL, at), (g.TDBAH, 0), (g.TDLEN, 16 * n), (g.TDH, 0), (g.TDT, 0), (g.TCTL, tctl)])

    def queue(self, *descs: bytes) -> None:
        """Put descriptors into the ring, without a doorbell."""
        for d in descs:
            self.put(self.tx_at + 16 * self.tx_next, d)
            self.tx_next = (self.tx_next + 1) % self.tx_n

    def tx(self, *descs: bytes) -> list[bytes]:
        """Put descriptors into the ring, ring the doorbell; what went out."""
        self.queue(*descs)
        self.w(g.TDT, self.tx_next)
        return self.sent

    def send(self, frame: bytes, cmd: int = g.CMD_EOP | g.CMD_RS, **fields: int) -> list[bytes]:
        """One frame in one legacy descriptor."""
        return self.tx(legacy(self.put(TX_BUF, frame), len(frame), cmd, **fields))

    def tx_status(self, i: int) -> int:
        return self.get(self.tx_at + 16 * i + 12, 1)[0]

    # ---- receive

    def rx_init(self, n: int = 8, size: int = 2048, rctl: int = 0, posted: int | None = None, at: int = RX_RING) -> None:
        """A ring of n descriptors, `posted` of them given to the card; RCTL: enabled, broadcast, no FCS, bits of
        `rctl` the other way round."""
        self.enable()
        self.rx_n, self.rx_size, self.rx_at = n, size, at
        for i in range(n):
            self.put(at + 16 * i, struct.pack("<QQ", RX_BUF + i * size, 0))
        tail = n - 1 if posted is None else posted
        self.write_all([(g.RDBAL, at), (g.RDBAH, 0), (g.RDLEN, 16 * n), (g.RDH, 0), (g.RDT, tail)])
        self.w(g.RCTL, (g.RCTL_EN | g.RCTL_BAM | g.RCTL_SECRC | g.RCTL_BSIZE[size]) ^ rctl)
        self.settle()

    def rx_desc(self, i: int) -> RxDesc:
        return RxDesc(*struct.unpack("<QHHBBH", self.get(self.rx_at + 16 * i, 16)))

    def received(self, i: int) -> bytes:
        """The bytes of descriptor i's buffer that the card says it filled."""
        d = self.rx_desc(i)
        return self.get(d.addr, d.length)


class Card(Driver):
    """qnet's e1000 on a virtual clock, and what is around it."""

    def __init__(self, model: str = "e1000", mac: bytes = MAC, loop: Loop | None = None, memory: int = MEMORY, **options: Any) -> None:
        self.owns_loop = loop is None
        self.loop = loop or Loop(VirtualClock())
        self.space = bytearray(CANARY + bytes(memory) + CANARY)
        self.view = memoryview(self.space)[len(CANARY) : -len(CANARY)]
        self.guest_memory = GuestMemory(self.view)
        self.levels: list[int] = []
        self.irq = IrqLine(self.levels.append)
        self.nic = E1000(self.loop, "nic", model, Options(**options), mac, self.guest_memory, self.irq)
        self.wire: Port | None = None
        self.stalls = options.get("compat") == "qemu"

    def settle(self) -> None:
        """QEMU's way receives nothing for a second after an RCTL write (RX2)."""
        if self.stalls:
            self.advance(1_000_000_000)

    def connect(self, **port: Any) -> Port:
        self.wire = Port(self.loop, "wire", **port)
        self.nic.pair(self.wire)
        return self.wire

    @property
    def sent(self) -> list[bytes]:
        return self.wire.recv() if self.wire else []

    def drops(self) -> dict[str, int]:
        """Drops of the card by reason, those that happened."""
        drops = self.nic.stats()["drops"]
        assert isinstance(drops, dict)
        return {reason: n for reason, n in drops.items() if n}

    def r(self, reg: int, size: int = 4) -> int:
        return self.nic.bar_read(0, reg, size)

    def w(self, reg: int, value: int, size: int = 4) -> None:
        self.nic.bar_write(0, reg, size, value)

    def cfg_read(self, offset: int, size: int) -> int:
        return self.nic.cfg_read(offset, size)

    def cfg_write(self, offset: int, size: int, value: int) -> None:
        self.nic.cfg_write(offset, size, value)

    def advance(self, ns: int) -> None:
        self.loop.run_until(self.loop.now() + ns)

    def put(self, addr: int, data: bytes) -> int:
        self.view[addr : addr + len(data)] = data
        return addr

    def get(self, addr: int, n: int) -> bytes:
        return bytes(self.view[addr : addr + n])

    def arrive(self, *frames: bytes, offload: Any = None) -> None:
        assert self.wire is not None
        self.wire.send(frames, offload)

    def canaries(self) -> bool:
        return bytes(self.space[: len(CANARY)]) == CANARY and bytes(self.space[-len(CANARY) :]) == CANARY

    def close(self) -> None:
        assert self.wire is None or not self.wire.breaches, self.wire.breaches
        self.nic.close()
        if self.wire is not None:
            self.wire.close()
        self.guest_memory.close()
        self.view.release()
        if self.owns_loop:
            self.loop.close()
        del self.nic, self.wire, self.irq, self.guest_memory, self.loop     # pytest keeps the card a little longer
        assert self.canaries(), "bytes outside guest memory were written"


class QemuCard(Driver):
    """A real QEMU's e1000 behind its qtest server: the same operations on it.

    No CPU runs (the firmware halts it). With virtual time (icount, sleep=off) a timer fires as soon as QEMU is idle; with `realtime`
    it takes its time. The wire is a `stream` netdev whose other end is here. Memory is a file that both map.
    """

    BAR = 0xE0000000
    SLOT = 4

    def __init__(self, model: str = "e1000", *, realtime: bool = False, **options: Any) -> None:
        self.files = tempfile.TemporaryDirectory(prefix="qnet-")    # short: names of sockets have at most 107 bytes
        tmp = Path(self.files.name)
        self.qtest: socket.socket | None = None
        self.net: socket.socket | None = None
        firmware = tmp / "firmware"
        firmware.write_bytes(b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xf4" * 12)  # at the reset vector: cli, hlt, again
        ram = tmp / "ram"
        with ram.open("w+b") as f:
            f.truncate(MEMORY)
            self.memory = mmap.mmap(f.fileno(), MEMORY)
        given = {"addr": self.SLOT, "mac": MAC.hex(":"), "romfile": "", "netdev": "n0", **options}
        device = "".join(f",{name}={on}" for name, on in given.items())
        with socket.socket(socket.AF_UNIX) as qtest, socket.socket(socket.AF_UNIX) as net:
            qtest.bind(str(tmp / "qtest"))
            net.bind(str(tmp / "net"))
            for listener in (qtest, net):
                listener.listen(1)
                listener.settimeout(0.1)
            self.process = subprocess.Popen(
                ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-bios", firmware, "-m", str(MEMORY >> 20), "-smp", "1",
                 "-cpu", "qemu64", "-accel", "tcg,thread=single", *([] if realtime else ["-icount", "shift=4,sleep=off"]),
                 "-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={ram},share=on",
                 "-machine", "q35,memory-backend=ram,pit=off,hpet=off,usb=off",
                 "-qtest", f"unix:{tmp / 'qtest'}", "-qtest-log", "none",
                 "-netdev", f"stream,id=n0,server=off,addr.type=unix,addr.path={tmp / 'net'}",
                 "-device", model + device],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            self.net, self.qtest = self.accept(net), self.accept(qtest)
        self.net.setblocking(False)
        self.stream = bytearray()
        self.answers = self.qtest.makefile("rb")
        self.write_config(0x10, 4, self.BAR)
        self.write_config(4, 2, 7)

    def accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self.process.poll() is not None:
                    errors = self.process.communicate()[1].decode()
                    self.close()
                    raise RuntimeError(f"QEMU does not start: {errors}") from None

    def ask(self, *lines: str) -> list[int]:
        """Send qtest commands, many at once; their values (0 for those that have none)."""
        values: list[int] = []
        for start in range(0, len(lines), 256):             # what fits the socket's buffers
            some = lines[start : start + 256]
            self.qtest.sendall("".join(line + "\n" for line in some).encode())
            while len(values) < start + len(some):
                answer = self.answers.readline().split()
                assert answer, "QEMU is gone"
                assert answer[0] in (b"OK", b"IRQ"), answer
                if answer[0] == b"OK":
                    values.append(int(answer[1], 16) if len(answer) > 1 else 0)
        return values

    WIDTH = {1: "b", 2: "w", 4: "l", 8: "q"}  # noqa: RUF012

    def r(self, reg: int, size: int = 4) -> int:
        return self.ask(f"read{self.WIDTH[size]} {self.BAR + reg:#x}")[0]

    def w(self, reg: int, value: int, size: int = 4) -> None:
        self.ask(f"write{self.WIDTH[size]} {self.BAR + reg:#x} {value:#x}")

    def batch(self, accesses: Iterable[tuple[int, int | None]]) -> list[int]:
        accesses = list(accesses)
        lines = (f"readl {self.BAR + reg:#x}" if value is None else f"writel {self.BAR + reg:#x} {value:#x}" for reg, value in accesses)
        return [answer for answer, (_, value) in zip(self.ask(*lines), accesses, strict=True) if value is None]

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.ask(f"outl 0xcf8 {0x80000000 | self.SLOT << 11 | offset & 0xFC:#x}", f"out{self.WIDTH[size]} {0xCFC + (offset & 3):#x} {value:#x}")

    def cfg_read(self, offset: int, size: int) -> int:
        return self.ask(f"outl 0xcf8 {0x80000000 | self.SLOT << 11 | offset & 0xFC:#x}", f"in{self.WIDTH[size]} {0xCFC + (offset & 3):#x}")[1]

    def cfg_write(self, offset: int, size: int, value: int) -> None:
        self.write_config(offset, size, value)

    def put(self, addr: int, data: bytes) -> int:
        self.memory[addr : addr + len(data)] = data
        return addr

    def get(self, addr: int, n: int) -> bytes:
        return self.memory[addr : addr + n]

    def settle(self) -> None:
        """Round trips through QEMU's event loop: each looks at its timers and sockets."""
        for _ in range(4):
            self.ask("readl 0x100000")
            time.sleep(0.001)

    def arrive(self, *frames: bytes) -> None:
        self.net.sendall(b"".join(struct.pack(">I", len(f)) + f for f in frames))
        self.settle()

    @property
    def sent(self) -> list[bytes]:
        self.ask("readl 0x100000")
        while True:
            try:
                self.stream += self.net.recv(1 << 20)
            except BlockingIOError:
                break
        frames = []
        while len(self.stream) >= 4 and len(self.stream) >= (end := 4 + int.from_bytes(self.stream[:4], "big")):
            frames.append(bytes(self.stream[4:end]))
            del self.stream[:end]
        assert not self.stream, "a frame was cut"
        return frames

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        if self.qtest:
            self.answers.close()
        for end in (self.qtest, self.net, self.memory):
            if end:
                end.close()
        self.files.cleanup()


def frame(size: int = 60, dst: bytes = b"\xff" * 6, ethertype: int = 0x88B5, src: bytes = b"\x52\x54\x00\x00\x00\x01", fill: int = 1) -> bytes:
    """A frame whose payload tells its bytes apart."""
    head = dst + src + struct.pack(">H", ethertype)
    return (head + bytes((i * 7 + fill) & 0xFF for i in range(max(0, size - 14))))[:size]


def tagged(inner: bytes, tci: int, tpid: int = 0x8100) -> bytes:
    return inner[:12] + struct.pack(">HH", tpid, tci) + inner[12:]


@pytest.fixture
def make_card() -> Iterator[Callable[..., Card]]:
    """Cards with options, closed afterwards: make_card(mitigation=False), make_card("e1000-82544gc", compat="qemu")."""
    cards: list[Card] = []

    def make(*args: Any, connect: bool = True, port: dict[str, Any] | None = None, **options: Any) -> Card:
        card = Card(*args, **options)
        cards.append(card)
        if connect:
            card.connect(**(port or {}))
        return card

    yield make
    for card in cards:
        if not card.owns_loop:
            card.close()
    for card in cards:
        if card.owns_loop:
            card.close()


@pytest.fixture
def card(make_card: Callable[..., Card]) -> Card:
    """A card with default options and a Port on the wire."""
    return make_card()


@pytest.fixture
def make_qemu() -> Iterator[Callable[..., QemuCard]]:
    """Cards of a real QEMU: make_qemu(), make_qemu("e1000-82544gc", mitigation="off")."""
    cards: list[QemuCard] = []

    def make(*args: Any, **options: Any) -> QemuCard:
        cards.append(QemuCard(*args, **options))
        return cards[-1]

    yield make
    for card in cards:
        card.close()


class Tools(NamedTuple):
    """What tests build descriptors and frames with."""

    legacy: Callable[..., bytes]
    data: Callable[..., bytes]
    context: Callable[..., bytes]
    frame: Callable[..., bytes]
    tagged: Callable[..., bytes]
    card: type[Card]
    driver: type[Driver]


@pytest.fixture(scope="session")
def t() -> Tools:
    return Tools(legacy, data, context, frame, tagged, Card, Driver)


def pytest_make_parametrize_id(val: object) -> str | None:
    return f"{val:#x}" if isinstance(val, int) and not isinstance(val, bool) and val > 9 else None
