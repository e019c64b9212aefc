"""The driver side of an e1000, without a CPU: what an operating system's driver does to the card, in plain Python.

    memory = bytearray(16 << 20)            # the guest memory that the card sees
    guest = E1000Guest(nic, memory)
    guest.init()
    guest.send([frame])
    frames = guest.receive()

It touches the card only as a driver can: configuration space, BAR 0, and descriptors and buffers in guest memory. Section numbers are
those of Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from mmap import mmap
from typing import NamedTuple, Protocol

# Registers (13.4), offsets in BAR 0.
CTRL, STATUS, EERD, MDIC = 0x0000, 0x0008, 0x0014, 0x0020
FCAL, FCAH, FCT, VET, FCTTV = 0x0028, 0x002C, 0x0030, 0x0038, 0x0170
ICR, ITR, ICS, IMS, IMC = 0x00C0, 0x00C4, 0x00C8, 0x00D0, 0x00D8
RCTL, TCTL, TIPG = 0x0100, 0x0400, 0x0410
RDBAL, RDBAH, RDLEN, RDH, RDT, RDTR = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x2820
TDBAL, TDBAH, TDLEN, TDH, TDT, TIDV = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820
MPC, GPRC, GPTC, RNBC, TPR, TPT = 0x4010, 0x4074, 0x4080, 0x40A0, 0x40D0, 0x40D4
RXCSUM, MTA, RAL, RAH = 0x5000, 0x5200, 0x5400, 0x5404

CTRL_ASDE, CTRL_SLU, CTRL_RST, CTRL_VME = 1 << 5, 1 << 6, 1 << 26, 1 << 30
STATUS_LU = 1 << 1
RCTL_EN, RCTL_UPE, RCTL_MPE, RCTL_LPE, RCTL_BAM, RCTL_SECRC = 1 << 1, 1 << 3, 1 << 4, 1 << 5, 1 << 15, 1 << 26
RCTL_BSIZE = {  # BSIZE and BSEX for a size of receive buffers
    2048: 0 << 16, 1024: 1 << 16, 512: 2 << 16, 256: 3 << 16,
    16384: 1 << 16 | 1 << 25, 8192: 2 << 16 | 1 << 25, 4096: 3 << 16 | 1 << 25,
}  # fmt: skip
TCTL_EN, TCTL_PSP, TCTL_CT, TCTL_COLD = 1 << 1, 1 << 3, 0x0F << 4, 0x40 << 12
RXCSUM_IPOFLD, RXCSUM_TUOFLD = 1 << 8, 1 << 9

# Interrupt causes (13.4.17).
TXDW, TXQE, LSC, RXDMT0, RXO, RXT0, MDAC = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 9

# Transmit descriptors (3.3): command byte, then options of data descriptors and the TUCMD bits of context descriptors.
CMD_EOP, CMD_IFCS, CMD_IC, CMD_TSE, CMD_RS, CMD_DEXT, CMD_VLE = 0x01, 0x02, 0x04, 0x04, 0x08, 0x20, 0x40
DTYP_CONTEXT, DTYP_DATA = 0x0, 0x1
IXSM, TXSM = 0x01, 0x02
TUCMD_TCP, TUCMD_IP, TUCMD_TSE = 0x01, 0x02, 0x04

# Receive descriptors (3.2.3): status and errors.
RX_DD, RX_EOP, RX_IXSM, RX_VP, RX_TCPCS, RX_IPCS = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
RX_TCPE, RX_IPE = 0x20, 0x40

DESCRIPTOR = 16


class Nic(Protocol):
    """What the guest sees of the card."""

    def bar_read(self, bar: int, offset: int, size: int) -> int: ...
    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None: ...
    def cfg_read(self, offset: int, size: int) -> int: ...
    def cfg_write(self, offset: int, size: int, value: int) -> None: ...


class Received(NamedTuple):
    """A received frame with what its last descriptor tells."""

    data: bytes
    status: int
    errors: int
    vlan: int
    """The tag that the card took off; holds if `status` has RX_VP."""


class Headers(NamedTuple):
    """Where the headers of a frame are that the card is to work on."""

    ip: int
    ip_version: int
    l4: int
    tcp: bool
    payload: int


def parse(frame: bytes | bytearray) -> Headers:
    """Find the IP and the TCP or UDP header. ValueError for other frames."""
    ip, ethertype = 14, int.from_bytes(frame[12:14], "big")
    while ethertype in (0x8100, 0x88A8):
        ip, ethertype = ip + 4, int.from_bytes(frame[ip + 2 : ip + 4], "big")
    if ethertype == 0x0800:
        version, proto, l4 = 4, frame[ip + 9], ip + (frame[ip] & 0xF) * 4
    elif ethertype == 0x86DD:
        version, proto, l4 = 6, frame[ip + 6], ip + 40
    else:
        raise ValueError(f"not IP: ethertype {ethertype:#06x}")
    if proto not in (6, 17):
        raise ValueError(f"neither TCP nor UDP: protocol {proto}")
    tcp = proto == 6
    return Headers(ip, version, l4, tcp, l4 + ((frame[l4 + 12] >> 4) * 4 if tcp else 8))


def pseudo_sum(frame: bytes | bytearray, h: Headers, length: int) -> int:
    """Sum of the TCP/UDP pseudo header, folded, not complemented; `length` 0 for segmentation (3.5.7)."""
    addresses = frame[h.ip + 12 : h.ip + 20] if h.ip_version == 4 else frame[h.ip + 8 : h.ip + 40]
    total: int = sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + (6 if h.tcp else 17) + length
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class E1000Guest:
    """A driver with one receive and one transmit ring.

    `memory` is the guest's memory, or a part of it, whose first byte has the guest physical address `gpa`; rings and buffers are laid
    out from there: `ring` descriptors each (a multiple of 8), one buffer for each, receive buffers of `rx_buffer` bytes (a size in
    RCTL_BSIZE) and transmit buffers of `tx_buffer`. ValueError if that does not fit. close() lets go of the memory.
    """

    def __init__(
        self,
        nic: Nic,
        memory: bytearray | memoryview | mmap,
        gpa: int = 0,
        *,
        ring: int = 256,
        rx_buffer: int = 2048,
        tx_buffer: int = 2048,
    ) -> None:
        if ring % 8 or not 8 <= ring <= 4096:
            raise ValueError(f"a ring has 8 to 4096 descriptors, a multiple of 8, not {ring}")
        if rx_buffer not in RCTL_BSIZE:
            raise ValueError(f"no such size of receive buffers: {rx_buffer}")
        self.nic, self.ring, self.rx_buffer, self.tx_buffer, self.gpa = nic, ring, rx_buffer, tx_buffer, gpa
        self.memory = memoryview(memory).cast("B")
        # offsets in `memory`; addresses in descriptors are these plus gpa
        self.rx_ring = -gpa % 16
        self.tx_ring = self.rx_ring + ring * DESCRIPTOR
        self.rx_buffers = self.tx_ring + ring * DESCRIPTOR
        self.tx_buffers = self.rx_buffers + ring * rx_buffer
        if self.tx_buffers + ring * tx_buffer > len(self.memory):
            raise ValueError(f"needs {self.tx_buffers + ring * tx_buffer} bytes of guest memory, not {len(self.memory)}")
        self.rx_next = 0
        self.rx_partial = b""
        self.tx_next = 0
        self.tx_clean = 0
        self.tx_head = 0
        self.mac = b""

    def close(self) -> None:
        """Let go of the memory. The card may still use it: stop it first, with disable()."""
        self.memory.release()

    # ---- registers

    def read(self, register: int) -> int:
        return self.nic.bar_read(0, register, 4)

    def write(self, register: int, value: int) -> None:
        self.nic.bar_write(0, register, 4, value)

    def eeprom(self, word: int) -> int:
        """Read a word of the EEPROM through EERD (5.3.1)."""
        self.write(EERD, word << 8 | 1)
        for _ in range(1000):
            value = self.read(EERD)
            if value & 0x10:
                return value >> 16
        raise TimeoutError("EERD.DONE does not come")

    @property
    def link(self) -> bool:
        """Whether STATUS tells that the link is up."""
        return bool(self.read(STATUS) & STATUS_LU)

    # ---- initialisation (section 14)

    def init(self, *, promiscuous: bool = False, long_frames: bool = False, checksum: bool = False, vlan: bool = False) -> None:
        """Reset the card, read its address from the EEPROM and start both directions, interrupts masked.

        `promiscuous`: takes every frame; `long_frames`: more than 1522 bytes; `checksum`: the card checks IP, TCP and UDP checksums of
        what it receives; `vlan`: it takes VLAN tags off and puts them on.
        """
        self.nic.cfg_write(0x04, 2, self.nic.cfg_read(0x04, 2) | 0x6)  # memory space, bus master
        self.write(IMC, 0xFFFFFFFF)
        self.write(RCTL, 0)
        self.write(TCTL, TCTL_PSP)
        self.write(CTRL, self.read(CTRL) | CTRL_RST)
        self.write(IMC, 0xFFFFFFFF)  # the reset clears the mask, 14.3 asks for it all the same
        self.read(ICR)
        self.mac = struct.pack("<3H", *(self.eeprom(i) for i in range(3)))
        self.write(CTRL, self.read(CTRL) & ~CTRL_RST | CTRL_SLU | CTRL_ASDE | (CTRL_VME if vlan else 0))
        for register in (FCAL, FCAH, FCT, FCTTV):
            self.write(register, 0)
        self.write(VET, 0x8100)
        self._init_rx(promiscuous, long_frames, checksum)
        self._init_tx()

    def _init_rx(self, promiscuous: bool, long_frames: bool, checksum: bool) -> None:
        """14.4"""
        low, high = struct.unpack("<IH", self.mac)
        self.write(RAL, low)
        self.write(RAH, high | 1 << 31)
        for i in range(128):
            self.write(MTA + 4 * i, 0)
        for i in range(self.ring):
            self._post(i)
        self._set_ring(RDBAL, self.rx_ring)
        self.write(RDT, self.ring - 1)
        self.rx_next, self.rx_partial = 0, b""
        self.write(RXCSUM, RXCSUM_IPOFLD | RXCSUM_TUOFLD if checksum else 0)
        self.write(
            RCTL,
            RCTL_EN
            | RCTL_BAM
            | RCTL_SECRC
            | RCTL_BSIZE[self.rx_buffer]
            | (RCTL_UPE | RCTL_MPE if promiscuous else 0)
            | (RCTL_LPE if long_frames else 0),
        )

    def _init_tx(self) -> None:
        """14.5"""
        self.memory[self.tx_ring : self.tx_ring + self.ring * DESCRIPTOR] = bytes(self.ring * DESCRIPTOR)
        self._set_ring(TDBAL, self.tx_ring)
        self.write(TDT, 0)
        self.tx_next = self.tx_clean = self.tx_head = 0
        self.write(TIPG, 10 | 8 << 10 | 6 << 20)
        self.write(TCTL, TCTL_EN | TCTL_PSP | TCTL_CT | TCTL_COLD)

    def _set_ring(self, base: int, offset: int) -> None:
        """The registers of both rings have the same distances: base low, base high, length, head."""
        self.write(base, (self.gpa + offset) & 0xFFFFFFFF)
        self.write(base + 4, (self.gpa + offset) >> 32)
        self.write(base + 8, self.ring * DESCRIPTOR)
        self.write(base + 0x10, 0)

    def disable(self) -> None:
        """Stop both directions and mask the interrupts."""
        self.write(IMC, 0xFFFFFFFF)
        self.write(RCTL, 0)
        self.write(TCTL, TCTL_PSP)

    # ---- interrupts

    def enable_interrupts(self, causes: int = TXDW | LSC | RXDMT0 | RXO | RXT0) -> None:
        self.write(IMS, causes)

    def disable_interrupts(self) -> None:
        self.write(IMC, 0xFFFFFFFF)

    def causes(self) -> int:
        """Read ICR, which acknowledges what it tells: what an interrupt handler does first."""
        return self.read(ICR)

    # ---- transmit

    def send(
        self,
        frames: Iterable[bytes],
        *,
        checksum: bool = False,
        mss: int = 0,
        vlan: int | None = None,
        legacy: bool = False,
        insert: tuple[int, int] | None = None,
        report: bool = True,
        kick: bool = True,
    ) -> int:
        """Put frames into the ring and, with `kick`, tell the card once. Returns how many found room.

        `checksum`: the card fills in the IPv4 and TCP/UDP checksums; `mss`: it also segments the TCP frame, that many payload bytes a
        segment; `vlan`: it inserts this tag. These use a context and data descriptors, plain frames data descriptors alone, or
        legacy ones if `legacy`. `insert`: (start, at), checksum insertion of legacy descriptors. `report`: ask for DD (RS), without
        which the driver does not see descriptors come back. A frame longer than a transmit buffer takes several descriptors.
        """
        sent = 0
        for frame in frames:
            if not self._put(bytearray(frame), checksum or mss > 0, mss, vlan, legacy or insert is not None, insert, report):
                break
            sent += 1
        if kick:
            self.kick()
        return sent

    def kick(self) -> None:
        """Write TDT: the card sends what is in the ring."""
        self.write(TDT, self.tx_next)

    def tx_room(self, wanted: int) -> bool:
        """Whether `wanted` descriptors may be filled; one always stays empty (3.4). Reads TDH only when it has to."""
        if (self.tx_head - self.tx_next - 1) % self.ring < wanted:
            self.tx_head = self.read(TDH)
        return (self.tx_head - self.tx_next - 1) % self.ring >= wanted

    def _put(
        self, frame: bytearray, checksum: bool, mss: int, vlan: int | None, legacy: bool, insert: tuple[int, int] | None, report: bool
    ) -> bool:
        pieces = [frame[i : i + self.tx_buffer] for i in range(0, len(frame), self.tx_buffer)] or [bytearray()]
        if not self.tx_room(len(pieces) + checksum):
            return False
        options = 0
        if checksum:
            h = parse(frame)
            options = TXSM | (IXSM if h.ip_version == 4 else 0)
            self._prepare_headers(frame, h, mss)
            pieces[0][:] = frame[: len(pieces[0])]
            self._put_context(h, len(frame), mss, report)
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            command = CMD_IFCS | (CMD_RS if report else 0) | (CMD_EOP if last else 0) | (CMD_VLE if vlan is not None and last else 0)
            at = self.tx_buffers + self.tx_next * self.tx_buffer
            self.memory[at : at + len(piece)] = piece
            if legacy:
                start, field = insert or (0, 0)
                command |= CMD_IC if insert else 0
                self._put_descriptor(struct.pack("<QHBBBBH", self.gpa + at, len(piece), field, command, 0, start, vlan or 0))
            else:
                command |= CMD_DEXT | (CMD_TSE if mss else 0)
                lower = len(piece) | DTYP_DATA << 20 | command << 24
                self._put_descriptor(struct.pack("<QIBBH", self.gpa + at, lower, 0, options, vlan or 0))
        return True

    def _prepare_headers(self, frame: bytearray, h: Headers, mss: int) -> None:
        """What the card expects to find in the headers (3.5.7, 3.6): the pseudo-header sum as seed; fields it fills in are zero."""
        field = h.l4 + (16 if h.tcp else 6)
        if h.ip_version == 4:
            struct.pack_into(">H", frame, h.ip + 10, 0)
        if mss and h.ip_version == 4:
            struct.pack_into(">H", frame, h.ip + 2, 0)
        elif mss:
            struct.pack_into(">H", frame, h.ip + 4, 0)
        struct.pack_into(">H", frame, field, pseudo_sum(frame, h, 0 if mss else len(frame) - h.l4))

    def _put_context(self, h: Headers, size: int, mss: int, report: bool) -> None:
        """3.3.6"""
        field = h.l4 + (16 if h.tcp else 6)
        command = CMD_DEXT | (CMD_RS if report else 0)
        command |= (TUCMD_TCP if h.tcp else 0) | (TUCMD_IP if h.ip_version == 4 else 0) | (TUCMD_TSE if mss else 0)
        payload = size - h.payload if mss else 0
        self._put_descriptor(
            struct.pack(
                "<BBHBBHIBBH", h.ip, h.ip + 10, h.l4 - 1, h.l4, field, 0, payload | DTYP_CONTEXT << 20 | command << 24, 0, h.payload, mss
            )
        )

    def _put_descriptor(self, descriptor: bytes) -> None:
        at = self.tx_ring + self.tx_next * DESCRIPTOR
        self.memory[at : at + DESCRIPTOR] = descriptor
        self.tx_next = (self.tx_next + 1) % self.ring

    def tx_done(self) -> int:
        """Descriptors that came back with DD since the last call."""
        n = 0
        while self.tx_clean != self.tx_next and self.memory[self.tx_ring + self.tx_clean * DESCRIPTOR + 12] & 1:
            self.tx_clean = (self.tx_clean + 1) % self.ring
            n += 1
        return n

    # ---- receive

    def _post(self, i: int) -> None:
        """Give descriptor i an empty buffer (3.2.3)."""
        struct.pack_into("<QQ", self.memory, self.rx_ring + i * DESCRIPTOR, self.gpa + self.rx_buffers + i * self.rx_buffer, 0)

    def receive_all(self) -> list[Received]:
        """Whole frames that have arrived; their buffers go back to the card with one write of RDT."""
        out = []
        first = self.rx_next
        while True:
            at = self.rx_ring + self.rx_next * DESCRIPTOR
            _, length, _, status, errors, special = struct.unpack_from("<QHHBBH", self.memory, at)
            if not status & RX_DD:
                break
            buffer = self.rx_buffers + self.rx_next * self.rx_buffer
            self.rx_partial += bytes(self.memory[buffer : buffer + length])
            if status & RX_EOP:
                out.append(Received(self.rx_partial, status, errors, special))
                self.rx_partial = b""
            self._post(self.rx_next)
            self.rx_next = (self.rx_next + 1) % self.ring
        if self.rx_next != first:
            self.write(RDT, (self.rx_next - 1) % self.ring)
        return out

    def receive(self) -> list[bytes]:
        """As receive_all, the frames' bytes alone, without FCS."""
        return [frame.data for frame in self.receive_all()]
