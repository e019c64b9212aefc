"""A netmap device in shared memory: rings laid out as netmap(4) says, in a memfd, with the kernel's part played in Python."""

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from typing import Any

from qnet import Net
from qnet._client import NetClient
from qnet.backends import netmap

NS_MOREFRAG = 0x20
NIOCTXSYNC, NIOCRXSYNC = 0x6994, 0x6995
RING, SLOT = 256, 16                # bytes of a ring's header, and of a slot
SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong)


class Ring:
    """A ring in shared memory, as the kernel sees it."""

    def __init__(self, memory: mmap.mmap, at: int, slots: int, buffers: int, first: int, buf_size: int, *, tx: bool) -> None:
        self.memory, self.at, self.slots, self.buf_size = memory, at, slots, buf_size
        self.buffers = buffers
        struct.pack_into("=qIIHHIII", memory, at, buffers - at, slots, buf_size, 0, not tx, 0, 0, slots - 1 if tx else 0)
        for i in range(slots):
            struct.pack_into("=IHHQ", memory, self.slot(i), first + i, 0, 0, 0)
        self.next = 0               # tx: the slot to send next

    def slot(self, i: int) -> int:
        return self.at + RING + SLOT * (i % self.slots)

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("=I", self.memory, self.at + offset)[0])

    @property
    def head(self) -> int:
        return self.word(20)

    @property
    def cur(self) -> int:
        return self.word(24)

    @property
    def tail(self) -> int:
        return self.word(28)

    @tail.setter
    def tail(self, value: int) -> None:
        struct.pack_into("=I", self.memory, self.at + 28, value)

    def buffer(self, i: int) -> int:
        return self.buffers + int(struct.unpack_from("=I", self.memory, self.slot(i))[0]) * self.buf_size


class Fake(netmap.Device):
    """The device and its kernel: what the client sends is in `sent`; put() makes it receive."""

    def __init__(self, slots: int = 16, buf_size: int = 2048, rx_rings: int = 1, headers: tuple[int, ...] = ()) -> None:
        self.requests: list[tuple[Any, ...]] = []
        self.paths: list[str] = []
        self.headers = headers
        self.header = 0
        self.stalled = False
        self.fails = 0              # errno of the syncs
        self.sent: list[bytes] = []
        self.backlog: list[tuple[int, bytes]] = []
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        rings = 1 + rx_rings
        ring_size = RING + SLOT * slots
        self.offset = 64
        first = self.offset + 56 + 8 * (rings + 2)
        buffers = (first + rings * ring_size + 2047) // 2048 * 2048
        size = buffers + rings * slots * buf_size
        with open(os.memfd_create("rings"), "r+b") as f:
            f.truncate(size)
            self.memory = mmap.mmap(f.fileno(), size)
        struct.pack_into("=16s8I", self.memory, self.offset, b"fake", 14, 0, 1, rx_rings, 0, 1, 1, 0)
        places = [first + i * ring_size for i in range(rings)]
        table = [places[0], 0, *places[1:], 0]                  # no host rings
        struct.pack_into(f"={rings + 2}q", self.memory, self.offset + 56, *(at and at - self.offset for at in table))
        made = [Ring(self.memory, at, slots, buffers, i * slots, buf_size, tx=i == 0) for i, at in enumerate(places)]
        self.tx, self.rx = made[0], made[1:]
        self.callback = SYNC(self.on_sync)
        self.sync = ctypes.cast(self.callback, ctypes.c_void_p).value or 0

    def open(self, path: str) -> int:
        self.paths.append(path)
        return os.dup(self.fd)

    def ioctl(self, fd: int, number: int, request: bytearray) -> None:
        assert number == netmap.NIOCREGIF
        fields = list(netmap.NMREQ.unpack(request))
        self.requests.append(tuple(fields))
        if fields[9] == netmap.NETMAP_BDG_VNET_HDR:
            if fields[10] not in self.headers:
                raise OSError(errno.EINVAL, "")
            self.header = fields[10]
            return
        fields[2:4] = [self.offset, len(self.memory)]
        request[:] = netmap.NMREQ.pack(*fields)

    def mmap(self, fd: int, size: int) -> Any:
        assert size == len(self.memory)
        return self.memory

    def on_sync(self, fd: int, what: int) -> int:
        if self.fails:
            return -self.fails
        if what == NIOCTXSYNC:
            self.transmit()
        else:
            assert what == NIOCRXSYNC
            self.fill()
        return 0

    def transmit(self, most: int = 1 << 30) -> None:
        """Send what is in the tx ring."""
        r, data = self.tx, b""
        while r.next != r.head and most and not self.stalled:
            _, size, flags, _ = struct.unpack_from("=IHHQ", self.memory, r.slot(r.next))
            data += self.memory[r.buffer(r.next) : r.buffer(r.next) + size]
            r.next = (r.next + 1) % r.slots
            if not flags & NS_MOREFRAG:
                self.sent.append(data)
                data = b""
                most -= 1
        r.tail = (r.next - 1) % r.slots

    def go_on(self, most: int = 1 << 30) -> None:
        """The device sends again, and tells who waits for room."""
        self.stalled = False
        self.transmit(most)
        self.stalled = most < 1 << 30
        os.eventfd_write(self.fd, 1)
        os.eventfd_read(self.fd)
        self.signal()

    def put(self, frames: list[bytes], ring: int = 0) -> None:
        self.backlog += [(ring, f) for f in frames]
        self.fill()

    def fill(self) -> None:
        """Move frames into rx rings, as far as there is room."""
        for entry in list(self.backlog):
            ring, data = entry
            r = self.rx[ring]
            pieces = [data[at : at + r.buf_size] for at in range(0, len(data), r.buf_size)] or [b""]
            if (r.head - 1 - r.tail) % r.slots < len(pieces):
                break
            for piece in pieces[:-1]:
                self.piece(r, piece, NS_MOREFRAG)
            self.piece(r, pieces[-1], 0)
            self.backlog.remove(entry)
        self.signal()

    def piece(self, r: Ring, data: bytes, flags: int, size: int | None = None, index: int | None = None) -> None:
        """One slot, told as it is or with lies."""
        at = r.buffer(r.tail)
        self.memory[at : at + len(data)] = data
        struct.pack_into("=HH", self.memory, r.slot(r.tail) + 4, len(data) if size is None else size, flags)
        if index is not None:
            struct.pack_into("=I", self.memory, r.slot(r.tail), index)
        r.tail = (r.tail + 1) % r.slots

    def signal(self) -> None:
        """Readable while there is something to read."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        if any(r.cur != r.tail for r in self.rx):
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)
        vars(self).clear()


class NetmapEnd:
    """What the conformance suite asks of the other end."""

    net: Net
    fake: Fake | None = None

    @property
    def device(self) -> Fake:
        assert self.fake is not None
        return self.fake

    def open(self) -> NetClient:
        if self.fake is None:
            self.fake, self.real = Fake(slots=128), netmap.device
            netmap.device = self.fake
        return self.net.netdev_add("netmap,id=n0,ifname=x")

    def put(self, frames: list[bytes]) -> int:
        for i, f in enumerate(frames):
            if self.device.backlog:
                return i
            self.device.put([f])
        return len(frames)

    def take(self) -> list[bytes]:
        got, self.device.sent = self.device.sent, []
        return got

    def stall(self) -> None:
        self.device.stalled = True

    def go_on(self) -> None:
        self.device.go_on()

    def kill(self) -> None:
        self.device.fails = errno.ENXIO
        os.eventfd_write(self.device.fd, 1)

    def come_back(self) -> None:
        """A port that is registered anew has empty rings."""
        self.device.fails = 0
        self.device.stalled = False
        self.device.transmit()
        self.device.sent.clear()
        self.device.signal()

    def close(self) -> None:
        netmap.device = self.real
        self.device.close()
