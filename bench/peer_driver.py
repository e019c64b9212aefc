"""The driver's side of peer.py: the layout of guest memory, the frames, and an e1000 as its driver sees it (Intel 8254x manual).

Everything here is the same for QEMU and for qnet: a System (peer_qemu.py, peer_qnet.py) is a piece of memory, registers to read
and write, and how many frames its sink got.
"""

import struct
from collections.abc import Callable
from mmap import mmap
from typing import ClassVar, NamedTuple, Protocol

RAM_SIZE = 112 << 20
TX_BUFFERS = 0x02000000         # 2 KiB slots: 8 MiB with a ring of 4096, which no L2 cache holds
TSO_BUFFERS = 0x06000000
SLOT = 2048
TSO_SLOT = 0x11000
TSO_SLOTS = 128


def tx_ring(nic: int) -> int:
    return 0x01000000 + nic * 0x00200000


def rx_ring(nic: int) -> int:
    return 0x01100000 + nic * 0x00200000


def rx_buffers(nic: int) -> int:
    return 0x03000000 + nic * 0x01000000


class Shape(NamedTuple):
    """The data of one kick."""

    base: int                               # of the first buffer
    slot: int                               # from buffer to buffer
    slots: int                              # buffers before they come again
    buffers: int                            # a kick
    length: int                             # bytes of each
    descriptors: int = 1                    # a buffer
    piece: int = 1 << 16                    # bytes of a frame, at most; else the buffer is one frame
    headers: int = 0                        # bytes before each piece
    summed: bool = False                    # the card fills in checksums

    @property
    def packets(self) -> int:
        return self.buffers * -(-self.length // self.piece)

    @property
    def octets(self) -> int:
        """Bytes on the wire."""
        return self.buffers * self.length + self.packets * self.headers


class System(Protocol):
    """`nics` e1000s on one hub; with `sink`, one more port that leads to nobody who cares. With `netdev`, what
    stands behind QEMU's -netdev: one e1000 at that, whose id is n0."""

    label: ClassVar[str]
    mem: mmap                               # guest memory; offset == guest physical address

    def __init__(self, nics: int, sink: bool, netdev: str = "") -> None: ...
    def read(self, nic: int, register: int) -> int: ...
    def writer(self, nic: int) -> Callable[[int, int], object]:
        """write(register, value), which returns once all that it caused is done."""
    def clock(self) -> int:
        """CPU time of who does the work, ns: on a busy machine a long kick is interrupted more often than a short one."""
    def settle(self) -> None:
        """Wait until a receiver takes frames after a write to RCTL."""
    def turn(self) -> None:
        """Let it do what it has to do by itself."""
    def hold(self) -> None:
        """Do nothing until run()."""
    def run(self, done: Callable[[], object]) -> int:
        """Work until `done()`; ns of CPU time that it took."""
    def delivered(self) -> tuple[int, int] | None:
        """(frames, bytes) that reached the sink, where the system can tell."""
    def close(self) -> None: ...


class CheckError(Exception):
    """The work was not what the case claims."""


def check(condition: object, what: str) -> None:
    if not condition:
        raise CheckError(what)


# ----------------------------------------------------------------------------------------------------------------- frames

MACS = [bytes.fromhex(f"5254000000{i:02x}") for i in (0x10, 0x11, 0x12)]
BROADCAST = b"\xff" * 6
TCP_HEADERS = 54                            # Ethernet, IPv4, TCP
IP_SRC, IP_DST = bytes([10, 9, 8, 7]), bytes([10, 9, 8, 6])
FLAG_PSH_ACK = 0x18


def raw_frame(size: int, seq: int, dst: bytes = MACS[1]) -> bytes:
    """Of the local experimental EtherType; number and payload differ from frame to frame."""
    head = dst + MACS[0] + b"\x88\xb5" + struct.pack(">I", seq)
    body = bytes((seq * 7 + k) & 0xFF for k in range(64))
    return (head + body * (size // 64 + 1))[:size]


def ones_sum(data: bytes, start: int = 0) -> int:
    """Folded one's complement sum of 16-bit words (RFC 1071)."""
    if len(data) & 1:
        data += b"\0"
    total: int = start + sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_frame(payload: int, seq: int, *, segment: bool = False) -> bytes:
    """What a driver hands to a card that is to fill in the checksums: a pseudo-header sum as seed, without the length if the card
    is to segment too (3.5.7, 3.6)."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, (40 + payload) & 0xFFFF, seq & 0xFFFF, 0x4000, 64, 6, 0, IP_SRC, IP_DST)
    seed = ones_sum(IP_SRC + IP_DST + struct.pack(">BBH", 0, 6, 0 if segment else 20 + payload))
    tcp = struct.pack(">HHIIBBHHH", 5001, 5002, 1000 + seq, 1, 0x50, FLAG_PSH_ACK, 0xFFFF, seed, 0)
    body = bytes((seq * 11 + k * 3) & 0xFF for k in range(251))
    return MACS[1] + MACS[0] + b"\x08\x00" + ip + tcp + (body * (payload // 251 + 1))[:payload]


def checksums_right(frame: bytes) -> bool:
    """IPv4 header and TCP checksum."""
    ip, segment = frame[14:34], frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
    pseudo = ip[12:20] + struct.pack(">BBH", 0, 6, len(segment))
    return ones_sum(ip) == 0xFFFF and ones_sum(segment, ones_sum(pseudo)) == 0xFFFF


# ------------------------------------------------------------------------------------------------------------------ e1000

CTRL, STATUS, ICR, IMC = 0x0000, 0x0008, 0x00C0, 0x00D8
RCTL, TCTL = 0x0100, 0x0400
RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
TDBAL, TDBAH, TDLEN, TDH, TDT = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
TPR, TPT = 0x40D0, 0x40D4                   # packets received and transmitted, clear on read

EOP, IFCS, TSE, RS, DEXT = 0x01, 0x02, 0x04, 0x08, 0x20
IXSM_TXSM = 0x03


def legacy(address: int, length: int) -> bytes:
    return struct.pack("<QHBBBBH", address, length, 0, EOP | IFCS | RS, 0, 0, 0)


def data(address: int, length: int, *, last: bool = True, tse: bool = False) -> bytes:
    command = DEXT | IFCS | (EOP | RS if last else 0) | (TSE if tse else 0)
    return struct.pack("<QII", address, length | 1 << 20 | command << 24, IXSM_TXSM << 8)


def context(payload: int = 0, mss: int = 0) -> bytes:
    """TCP in IPv4 behind an Ethernet header; with `mss`, segmentation of `payload` bytes."""
    command = DEXT | 0x01 | 0x02 | (TSE if mss else 0)
    return struct.pack("<BBHBBHIBBH", 14, 24, 33, 34, 50, 0, payload | command << 24, 0, TCP_HEADERS if mss else 0, mss)


class Card:
    """One e1000, initialised. `tx`, `rx`: descriptors in its rings, multiples of 8; one of each ring stays empty."""

    def __init__(self, system: System, nic: int, tx: int, rx: int = 0) -> None:
        self.system, self.nic, self.tx, self.rx = system, nic, tx, rx
        self.mem, self.write, self.clock = system.mem, system.writer(nic), system.clock
        self.tail = self.sent = 0
        self.rx_head = self.rx_tail = 0
        write = self.write
        write(IMC, 0xFFFFFFFF)
        self.read(ICR)
        write(CTRL, 0x41)                   # set link up, full duplex
        check(self.read(STATUS) & 2, "no link")
        self._ring(TDBAL, tx_ring(nic), tx)
        write(TDT, 0)
        write(TCTL, 1 << 1 | 1 << 3 | 0x0F << 4 | 0x40 << 12)
        if rx:
            self.empty_ring = b"".join(struct.pack("<QQ", rx_buffers(nic) + k * SLOT, 0) for k in range(rx))
            self.mem[rx_ring(nic) : rx_ring(nic) + rx * 16] = self.empty_ring
            self._ring(RDBAL, rx_ring(nic), rx)
            write(RDT, 0)
            write(RCTL, 1 << 1 | 1 << 15 | 1 << 26)     # enable, accept broadcast, 2048-byte buffers, strip the CRC
            system.settle()

    def _ring(self, base: int, address: int, n: int) -> None:
        for register, value in ((base, address), (base + 4, 0), (base + 8, n * 16), (base + 0x10, 0)):
            self.write(register, value)

    def read(self, register: int) -> int:
        return self.system.read(self.nic, register)

    def load(self, descriptors: bytes) -> None:
        """Fill the whole transmit ring."""
        check(len(descriptors) == self.tx * 16, "the descriptors do not fill the ring")
        self.mem[tx_ring(self.nic) : tx_ring(self.nic) + len(descriptors)] = descriptors

    def kick(self, descriptors: int) -> int:
        """One doorbell for so many descriptors more; ns that it took."""
        self.tail = tail = (self.tail + descriptors) % self.tx
        write, clock = self.write, self.clock
        start = clock()
        write(TDT, tail)
        return clock() - start

    def check_sent(self, packets: int) -> None:
        """So many packets left since the last time, and the ring says so."""
        last = self.mem[tx_ring(self.nic) + 16 * ((self.tail - 1) % self.tx) + 12]
        check(last & 1, "the last descriptor is not done")
        check(self.read(TDH) == self.tail, "TDH has not reached TDT")
        got = self.read(TPT)
        check(got == packets, f"TPT counts {got} packets, not {packets}")

    def offer(self, n: int) -> None:
        """n fresh receive buffers."""
        self.mem[rx_ring(self.nic) : rx_ring(self.nic) + self.rx * 16] = self.empty_ring
        self.rx_head, self.rx_tail = self.rx_tail, (self.rx_tail + n) % self.rx
        self.write(RDT, self.rx_tail)

    def status_at(self, k: int) -> int:
        """Where the status of the k-th descriptor since offer() is; bit 0: done."""
        return rx_ring(self.nic) + 16 * ((self.rx_head + k) % self.rx) + 12

    def received(self, k: int) -> bytes:
        """The k-th frame since offer()."""
        slot = (self.rx_head + k) % self.rx
        at = rx_ring(self.nic) + 16 * slot + 8
        length, _, status, errors = struct.unpack("<HHBB", self.mem[at : at + 6])
        check(status & 3 == 3 and not errors, f"receiver {self.nic}, frame {k}: status {status:#x}, errors {errors:#x}")
        at = rx_buffers(self.nic) + slot * SLOT
        return self.mem[at : at + length]
