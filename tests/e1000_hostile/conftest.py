"""A card whose guest memory lies between canaries, and what hostile descriptors are made of."""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from qnet._host import GuestMemory, IrqLine
from qnet._loop import Loop, VirtualClock
from qnet.models.e1000 import E1000, Options
from qnet.testing import Port
from qnet.testing import guest_e1000 as g

MAC = bytes.fromhex("525400123456")
CANARY = b"\xc5" * 8192
MEMORY = 1 << 20
TX_RING, RX_RING, TX_BUF, RX_BUF = 0x1000, 0x4000, 0x10000, 0x80000
FILL = 0xA7                             # what receive buffers hold before


class Rig:
    """One card, its memory, a Port on the wire. `memory`: bytes at guest address 0, or a GuestMemory of the test's own."""

    MAC, MEMORY, TX_RING, RX_RING, TX_BUF, RX_BUF, FILL = MAC, MEMORY, TX_RING, RX_RING, TX_BUF, RX_BUF, FILL

    def __init__(self, memory: GuestMemory | None = None, *, loop: Loop | None = None, peer: Any = None, **options: Any) -> None:
        self.space = bytearray(CANARY + bytes(MEMORY) + CANARY)
        self.view = memoryview(self.space)[len(CANARY) : -len(CANARY)]
        self.own_loop = loop is None
        self.loop = loop or Loop(VirtualClock())
        self.memory = memory or GuestMemory(self.view)
        self.irq = IrqLine()
        self.nic = E1000(self.loop, "nic", "e1000", Options(**options), MAC, self.memory, self.irq)
        self.wire = Port(self.loop, "wire") if peer is None else peer
        self.nic.pair(self.wire)
        self.nic.cfg_write(4, 2, 7)

    def r(self, reg: int) -> int:
        return self.nic.bar_read(0, reg, 4)

    def w(self, reg: int, value: int) -> None:
        self.nic.bar_write(0, reg, 4, value)

    def put(self, addr: int, data: bytes) -> int:
        self.memory.write(addr, data)
        return addr

    def get(self, addr: int, n: int) -> bytes:
        return self.memory.read(addr, n)

    def drops(self, client: Any = None) -> dict[str, int]:
        drops = (client or self.nic).stats()["drops"]
        assert isinstance(drops, dict)
        return drops

    def tx_ring(self, descs: Sequence[bytes], *, at: int = TX_RING, length: int | None = None, head: int = 0,
                tail: int | None = None) -> None:
        """Lay a ring out and send from it."""
        self.put(at & (1 << 64) - 1, b"".join(descs))
        self.w(g.TCTL, 0)
        self.w(g.TDBAL, at & 0xFFFFFFFF)
        self.w(g.TDBAH, at >> 32)
        self.w(g.TDLEN, 16 * max(8, -(-len(descs) // 8) * 8) if length is None else length)
        self.w(g.TDH, head)
        self.w(g.TDT, len(descs) if tail is None else tail)
        self.w(g.TCTL, g.TCTL_EN)               # a doorbell too: one run, from a head that the test chose

    def tx(self, *descs: bytes) -> list[bytes]:
        """What a packet or more of at most 7 descriptors make on the wire."""
        self.tx_ring(descs)
        return self.wire.recv()

    def rx_ring(self, n: int = 8, *, size: int = 2048, rctl: int = 0, posted: int | None = None, at: int = RX_RING, buf: int = RX_BUF,
                null: bool = False) -> None:
        self.w(g.RCTL, 0)
        for i in range(n):
            self.put(at + 16 * i, struct.pack("<QQ", 0 if null else buf + i * size, 0))
        self.w(g.RDBAL, at & 0xFFFFFFFF)
        self.w(g.RDBAH, at >> 32)
        self.w(g.RDLEN, 16 * n)
        self.w(g.RDH, 0)
        self.w(g.RDT, n - 1 if posted is None else posted)
        self.w(g.RCTL, g.RCTL_EN | g.RCTL_UPE | g.RCTL_MPE | g.RCTL_BAM | g.RCTL_BSIZE[size] | rctl)

    def rx_desc(self, i: int, at: int = RX_RING) -> tuple[int, int, int, int, int]:
        """(address, length, status, errors, special)"""
        addr, length, _, status, errors, special = struct.unpack("<QHHBBH", self.get(at + 16 * i, 16))
        return addr, length, status, errors, special

    def received(self, n: int, fcs: int = 4) -> list[bytes]:
        """The whole frames in the first n descriptors."""
        out, data = [], b""
        for i in range(n):
            addr, length, status, _, _ = self.rx_desc(i)
            if not status & g.RX_DD:
                break
            data += self.get(addr, length) if length else b""
            if status & g.RX_EOP:
                out.append(data[: len(data) - fcs] if fcs else data)
                data = b""
        return out

    def close(self) -> None:
        self.nic.close()
        self.wire.close()
        self.memory.close()
        self.view.release()
        if self.own_loop:
            self.loop.close()
        del self.nic, self.wire, self.irq, self.memory, self.loop       # pytest keeps the rig a little longer
        assert self.space[: len(CANARY)] == CANARY
        assert self.space[-len(CANARY) :] == CANARY


class Make:
    """Descriptors (3.3) and frames."""

    @staticmethod
    def legacy(addr: int, length: int, cmd: int = g.CMD_EOP | g.CMD_RS, cso: int = 0, css: int = 0, special: int = 0) -> bytes:
        return struct.pack("<QHBBBBH", addr, length, cso, cmd & ~g.CMD_DEXT, 0, css, special)

    @staticmethod
    def data(addr: int, length: int, cmd: int = g.CMD_EOP | g.CMD_RS, popts: int = 0, special: int = 0) -> bytes:
        return struct.pack("<QIBBH", addr, length & 0xFFFFF | 1 << 20 | (cmd | g.CMD_DEXT) << 24, 0, popts, special)

    @staticmethod
    def context(ip: tuple[int, int, int] = (0, 0, 0), tu: tuple[int, int, int] = (0, 0, 0), *, paylen: int = 0, hdr_len: int = 0,
                mss: int = 0, cmd: int = 0) -> bytes:
        return struct.pack("<BBHBBHIBBH", *ip, *tu, paylen & 0xFFFFF | (cmd | g.CMD_DEXT) << 24, 0, hdr_len, mss)

    @staticmethod
    def frame(size: int, dst: bytes = b"\xff" * 6, ethertype: bytes = b"\x88\xb5", fill: int = 0) -> bytes:
        return (dst + b"\x52\x54\x00\x00\x00\x01" + ethertype + bytes((7 * i + fill) & 0xFF for i in range(max(0, size - 14))))[:size]

    @staticmethod
    def tcp(payload: int, version: int = 4) -> bytes:
        """A TCP frame as a driver hands it over for segmentation: lengths 0, the seed of the pseudo header in the checksum."""
        if version == 4:
            ip = bytes.fromhex("4500 0000 0001 0000 40 06 0000 0a000001 0a000002")
        else:
            ip = bytes.fromhex("60000000 0000 06 40") + bytes(15) + b"\1" + bytes(15) + b"\2"
        head = b"\x52\x54\x00\x00\x00\x02" + MAC + (b"\x08\x00" if version == 4 else b"\x86\xdd") + ip
        return head + bytes.fromhex("04d2 0050 00000001 00000000 5018 1000 0000 0000") + bytes(i & 0xFF for i in range(payload))


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*args: Any, **options: Any) -> Rig:
        rigs.append(Rig(*args, **options))
        return rigs[-1]

    yield make
    for rig in sorted(rigs, key=lambda rig: rig.own_loop):      # those that made a loop come last
        rig.close()
    rigs.clear()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture(scope="session")
def m() -> type[Make]:
    return Make


@pytest.fixture(scope="session")
def rig_type() -> type[Rig]:
    return Rig
