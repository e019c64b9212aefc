"""The cases of peer.py with a tap: an e1000's frames into the host's kernel, and the kernel's into an e1000. Needs root.

Each system has a tap in a network namespace of its own. A packet is one that the card sent or received, also where segments pass
the tap whole.
"""

import ctypes
import fcntl
import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peer_cases import (
    RING,
    TSO_FRAMES,
    TSO_MSS,
    TSO_PAYLOAD,
    TSO_PIECE,
    TSO_SEGMENTS,
    Case,
    Goal,
    Job,
    MakeSystem,
    segment_ring,
    tso_descriptors,
)
from peer_driver import (
    IP_DST,
    IP_SRC,
    MACS,
    SLOT,
    TCP_HEADERS,
    TPR,
    TPT,
    TSO_BUFFERS,
    TSO_SLOT,
    TX_BUFFERS,
    Card,
    Shape,
    check,
    checksums_right,
    legacy,
    ones_sum,
    raw_frame,
    tcp_frame,
)

from qnet.testing import Namespace

TAP = "qnetpeer0"
RX_FRAMES = 4000                # a kick
ETH_P_ALL, PACKET_OUTGOING = 3, 4
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP_NO_PI_VNET_HDR, TUN_F_ALL = 0x5002, 0xF
SEGMENT = struct.pack("=BBHHHH", 1, 1, TCP_HEADERS, TSO_MSS, 34, 16)        # virtio_net_hdr: NEEDS_CSUM, TCPV4


def segment(seq: int) -> bytes:
    """As tcp_frame, with the length in the pseudo-header sum: what a kernel wants of a segment."""
    frame = bytearray(tcp_frame(TSO_PAYLOAD, seq, segment=True))
    seed = ones_sum(IP_SRC + IP_DST + struct.pack(">BBH", 0, 6, 20 + TSO_PAYLOAD))
    frame[50:52] = struct.pack(">H", seed)
    frame[24:26] = struct.pack(">H", ~ones_sum(bytes(frame[14:34])) & 0xFFFF)
    return MACS[0] + MACS[1] + bytes(frame[12:])


class Wire:
    """The kernel's end of a tap, in a namespace of its own."""

    def __init__(self) -> None:
        self.ns = Namespace()
        self.socket: socket.socket | None = None

    def up(self) -> None:
        self.ns.run(f"ip link set {TAP} txqueuelen 8192 up")

    def open(self) -> socket.socket:
        """Its frames, each behind a virtio_net_hdr."""
        with self.ns:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            self.socket.setsockopt(socket.SOL_SOCKET, option, 256 << 20)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.settimeout(30)
        return self.socket

    def received(self) -> tuple[int, int]:
        """(frames, bytes) that came out of the tap into the kernel."""
        [link] = json.loads(self.ns.run(f"ip -s -j link show {TAP}"))
        return link["stats64"]["rx"]["packets"], link["stats64"]["rx"]["bytes"]

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.ns.close()


def sender(wire: Wire) -> Callable[[bytes], int]:
    """What puts frames, each behind a virtio_net_hdr, into the tap."""
    source = wire.open()
    source.bind((TAP, 0))
    return source.send


class TapFloor:
    """The system calls of a kick alone, on a tap of the same kind; received frames are copied to as many buffers as the card has."""

    def __init__(self, library: ctypes.CDLL, job: "TapTx | TapRx") -> None:
        self.job, self.library, self.packets = job, library, job.packets
        self.wire = Wire()
        with self.wire.ns:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), IFF_TAP_NO_PI_VNET_HDR))
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, TUN_F_ALL)
        self.wire.up()
        self.send = sender(self.wire)
        self.buffer = ctypes.create_string_buffer(1 << 17)
        self.ring = mmap.mmap(-1, RING * SLOT, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        for call in (library.write_frames, library.read_frames):
            call.restype = ctypes.c_uint64

    def timed(self, call: Callable[..., int], *arguments: Any) -> tuple[int, int]:
        start = time.thread_time_ns()
        result = call(*arguments)
        return time.thread_time_ns() - start, result

    def kick(self) -> int:
        return self.job.floor_kick(self, 1)

    def idle(self) -> int:
        return self.job.floor_kick(self, 0)

    def finish(self) -> None:
        os.close(self.fd)
        self.wire.close()
        self.ring.close()


# -------------------------------------------------------------------------------------------------------- out of the card


class TapTx(Job[Any]):
    """One doorbell; its frames come out of the tap. `frames`, `header`: what should, and what before each if they come whole."""

    def __init__(self, wire: Wire, system: Any, sender: Card, shape: Shape, frames: list[bytes], header: bytes) -> None:
        super().__init__(system, sender, [], shape)
        self.wire, self.header = wire, header
        wire.up()
        sink = wire.open()
        sink.bind((TAP, ETH_P_ALL))
        self.kick()
        got: list[bytes] = []
        self.whole, wanted = False, 1
        while len(got) < wanted:
            data, address = sink.recvfrom(1 << 17)
            if address[2] != PACKET_OUTGOING:
                got.append(data)
                self.whole = self.whole or len(data) == 10 + shape.headers + shape.length > 10 + shape.headers + shape.piece
                wanted = shape.buffers if self.whole else shape.packets
        sink.close()
        (self._check_whole if self.whole else self._check_frames)(got, frames)
        self.before_tap, self.kicks = wire.received(), 0
        sender.read(TPT)

    def _check_frames(self, got: list[bytes], frames: list[bytes]) -> None:
        """As the card sends them; what it segmented has right checksums."""
        if self.header == bytes(10):
            check([data[10:] for data in got] == frames, "other frames came out of the tap than were sent")
            return
        check(len(got) == self.packets, "segments got lost")
        for i, whole in enumerate(frames):
            parts = [data[10:] for data in got[i * TSO_FRAMES : (i + 1) * TSO_FRAMES]]
            check(b"".join(part[TCP_HEADERS:] for part in parts) == whole[TCP_HEADERS:], f"segment {i}: other payload than was sent")
            check(all(map(checksums_right, parts)), f"segment {i}: wrong checksums")

    def _check_whole(self, got: list[bytes], frames: list[bytes]) -> None:
        for i, (data, whole) in enumerate(zip(got, frames, strict=True)):
            check(data[:10] == self.header, f"segment {i}: header {data[:10].hex()}")
            check(data[10 + TCP_HEADERS :] == whole[TCP_HEADERS:], f"segment {i}: other payload than was sent")
            check(data[10 + 50 : 10 + 52] == segment(0)[50:52], f"segment {i}: wrong seed of the TCP checksum")

    def finish(self) -> None:
        shape = self.shape
        frames, octets = shape.packets, shape.octets
        if self.whole:
            frames, octets = shape.buffers, shape.buffers * (shape.headers + shape.length)
        try:
            now = self.wire.received()
            got = (now[0] - self.before_tap[0], now[1] - self.before_tap[1])
            want = (self.kicks * frames, self.kicks * octets)
            check(got == want, f"{got[0]} frames and {got[1]} bytes came out of the tap, not {want[0]} and {want[1]}")
        finally:
            self.wire.close()
            super().finish()

    def floor(self, library: ctypes.CDLL) -> TapFloor:
        return TapFloor(library, self)

    def floor_kick(self, floor: TapFloor, kicks: int) -> int:
        words = [*self.shape[:3], self.shape.buffers * kicks, self.shape.length + self.shape.headers, *self.shape[5:7], 0]
        shape = (ctypes.c_uint64 * len(words))(*words)
        header = ctypes.create_string_buffer(self.header, 10)
        memory = (ctypes.c_char * len(self.system.mem)).from_buffer(self.system.mem)
        call, base = floor.library.write_frames, ctypes.c_void_p(ctypes.addressof(memory))
        sizes = ctypes.c_uint64(self.shape.headers or 1 << 16), ctypes.c_uint64(TSO_PIECE)
        took, refused = floor.timed(call, floor.fd, base, shape, header, *sizes)
        del memory
        check(refused == 0, f"the floor's tap refused {refused} frames")
        return took


@contextmanager
def tapped(make: MakeSystem[Any]) -> Iterator[tuple[Wire, Any]]:
    """A system with a tap; both are closed if the block raises."""
    with ExitStack() as undo:
        wire = Wire()
        undo.callback(wire.close)
        with wire.ns:
            system = make(1, False, netdev=f"tap,id=n0,ifname={TAP},script=no,downscript=no")
        undo.callback(system.close)
        yield wire, system
        undo.pop_all()


def tx_tap_job(make: MakeSystem[Any], size: int, ring: int) -> TapTx:
    """e1: legacy descriptors, one kick of ring - 1 frames."""
    with tapped(make) as (wire, system):
        sender = Card(system, 0, ring)
        frames = [raw_frame(size, k) for k in range(ring)]
        for k, frame in enumerate(frames):
            system.mem[TX_BUFFERS + k * SLOT : TX_BUFFERS + k * SLOT + size] = frame
        sender.load(b"".join(legacy(TX_BUFFERS + k * SLOT, size) for k in range(ring)))
        return TapTx(wire, system, sender, Shape(TX_BUFFERS, SLOT, ring, ring - 1, size), frames[: ring - 1], bytes(10))


def tso_tap_job(make: MakeSystem[Any], size: int, ring: int) -> TapTx:
    """e2: TSO."""
    ring, per, slots, segments = segment_ring(ring)
    with tapped(make) as (wire, system):
        sender = Card(system, 0, ring)
        frames = [tcp_frame(TSO_PAYLOAD, k, segment=True) for k in range(slots)]
        for k, frame in enumerate(frames):
            at = TSO_BUFFERS + k * TSO_SLOT
            system.mem[at : at + len(frame)] = frame
        sender.load(b"".join(tso_descriptors(TSO_BUFFERS + (k % slots) * TSO_SLOT) for k in range(ring // per)))
        shape = Shape(TSO_BUFFERS, TSO_SLOT, slots, segments, TSO_PAYLOAD, per, TSO_MSS, TCP_HEADERS, summed=True)
        return TapTx(wire, system, sender, shape, [frames[k % slots] for k in range(segments)], SEGMENT)


# ---------------------------------------------------------------------------------------------------------- into the card


class TapRx:
    """Frames wait in the tap; what counts is the time to get them into the receive ring, less that for a single one."""

    def __init__(self, wire: Wire, system: Any, frames: list[bytes], header: bytes, packets: int) -> None:
        """`packets`: that a kick's frames become."""
        self.wire, self.system, self.header = wire, system, header
        self.frames, self.single = [header + frame for frame in frames], bytes(10) + raw_frame(60, 0, MACS[0])
        self.all, self.packets = packets, packets - 1
        self.card = Card(system, 0, 8, RING)
        wire.up()
        self.send = sender(wire)
        self.total = 0
        self.card.read(TPR)
        self.kick()

    def _receive(self, frames: list[bytes], packets: int) -> int:
        self.card.offer(packets)
        self.system.hold()
        for frame in frames:
            self.send(frame)
        self.total += packets
        memory, status = self.system.mem, self.card.status_at(packets - 1)
        return int(self.system.run(lambda: memory[status] & 1))

    def kick(self) -> int:
        return self._receive(self.frames, self.all)

    def idle(self) -> int:
        return self._receive([self.single], 1)

    def finish(self) -> None:
        try:
            got = self.card.read(TPR)
            check(got == self.total, f"the card counts {got} packets, not {self.total}")
        finally:
            self.wire.close()
            self.system.close()

    def floor(self, library: ctypes.CDLL) -> TapFloor:
        return TapFloor(library, self)

    def floor_kick(self, floor: TapFloor, kicks: int) -> int:
        frames = self.frames if kicks else [self.single]
        for frame in frames:
            floor.send(frame)
        ring = (ctypes.c_char * len(floor.ring)).from_buffer(floor.ring)
        words = map(ctypes.c_uint64, (RING, TSO_MSS if self.header[0] else SLOT, TCP_HEADERS))
        took, got = floor.timed(floor.library.read_frames, floor.fd, floor.buffer, ctypes.c_uint64(1 << 17), ring, *words)
        del ring
        check(got == len(frames), f"{got} frames came into the floor's tap, not {len(frames)}")
        return took


def rx_tap_job(make: MakeSystem[Any], size: int, ring: int) -> TapRx:
    """e3: plain frames."""
    frames = [raw_frame(size, k, MACS[0]) for k in range(min(RX_FRAMES, ring - 1))]
    with tapped(make) as (wire, system):
        job = TapRx(wire, system, frames, bytes(10), len(frames))
        for k, frame in enumerate(frames):
            check(job.card.received(k) == frame, f"frame {k}: other bytes than were sent")
        return job


def rx_segments_job(make: MakeSystem[Any], size: int, ring: int) -> TapRx:
    """e5: segments, which the kernel hands over whole to who takes them."""
    count = min(TSO_SEGMENTS, (ring - 1) // TSO_FRAMES)
    frames = [segment(k) for k in range(count)]
    with tapped(make) as (wire, system):
        job = TapRx(wire, system, frames, SEGMENT, count * TSO_FRAMES)
        for i, whole in enumerate(frames):
            parts = [job.card.received(i * TSO_FRAMES + k) for k in range(TSO_FRAMES)]
            check(b"".join(part[TCP_HEADERS:] for part in parts) == whole[TCP_HEADERS:], f"segment {i}: other payload than was sent")
            check(all(map(checksums_right, parts)), f"segment {i}: wrong checksums")
        return job


CASES = [
    Case("e1.60", "e1000 TX, ring of 4096, to a tap", tx_tap_job, 60, RING),
    Case("e1.1514", "e1000 TX, ring of 4096, to a tap", tx_tap_job, 1514, RING, Goal(579, 420, 450)),
    Case("e2", "e1000 TSO 64000/1460 to a tap, a frame", tso_tap_job, 1514, RING, Goal(996, 50, 70)),
    Case("e3.60", "tap to e1000, plain frames", rx_tap_job, 60, RING),
    Case("e3.1514", "tap to e1000, plain frames", rx_tap_job, 1514, RING, Goal(1487, 380, 500)),
    Case("e5", "tap to e1000, segments of 64000/1460, a frame", rx_segments_job, 1514, RING, Goal(1487, 90, 130)),
]
