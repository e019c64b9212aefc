"""The cases of peer.py with a socket: frames that wait in it go into an e1000, an e1000's frames go out through it. Needs root.

Each system and its socket are in a network namespace of their own, where a queue may be as long as a kick.
"""

import ctypes
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from peer_cases import RING, Case, Goal, Job, MakeSystem
from peer_driver import MACS, SLOT, TPR, TX_BUFFERS, Card, Shape, check, legacy, raw_frame

from qnet.testing import Namespace

RX_FRAMES = 4000                # a kick
UDP_RX_FRAMES = 64              # what QEMU's socket holds, whose buffer has the host's default size
SO_SNDBUFFORCE = 32
QLEN = Path("/proc/sys/net/unix/max_dgram_qlen")


class Wire:
    """A socket, and at its other end a netdev. `spec`: what stands behind -netdev, for QEMU and qnet alike."""

    spec: str
    rx_frames = RX_FRAMES
    header = b""                    # in front of each frame

    def __init__(self, kind: socket.SocketKind, family: socket.AddressFamily = socket.AF_UNIX) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="qnet-peer-")
        self.path = self.directory.name
        self.socket = socket.socket(family, kind)

    def connect(self, turn: Callable[[], object]) -> None:
        """The netdev is open; turn() lets it do what it has to do by itself."""

    def send(self, frames: Sequence[bytes]) -> None:
        raise NotImplementedError

    def other_end(self) -> socket.socket:
        """A socket as the netdev's, for the floor."""
        raise NotImplementedError

    def widen(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
        self.socket.settimeout(30)

    def close(self) -> None:
        self.socket.close()
        self.directory.cleanup()


class UnixDgram(Wire):
    def __init__(self) -> None:
        super().__init__(socket.SOCK_DGRAM)
        self.socket.bind(f"{self.path}/peer")
        self.spec = f"dgram,id=n0,local.type=unix,local.path={self.path}/own,remote.type=unix,remote.path={self.path}/peer"

    def connect(self, turn: Callable[[], object]) -> None:
        self.widen()
        self.socket.connect(f"{self.path}/own")

    def send(self, frames: Sequence[bytes]) -> None:
        send = self.socket.send
        for frame in frames:
            send(frame)

    def other_end(self) -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(f"{self.path}/own")
        return receiver


class UnixStream(Wire):
    def __init__(self) -> None:
        super().__init__(socket.SOCK_STREAM)
        self.listener = self.socket
        self.listener.bind(f"{self.path}/s")
        self.listener.listen(1)
        self.listener.settimeout(30)
        self.spec = f"stream,id=n0,server=off,addr.type=unix,addr.path={self.path}/s"

    def connect(self, turn: Callable[[], object]) -> None:
        turn()
        self.socket, _ = self.listener.accept()
        self.widen()
        turn()

    def send(self, frames: Sequence[bytes]) -> None:
        self.socket.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))

    def other_end(self) -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX)
        receiver.connect(f"{self.path}/s")
        return receiver

    def close(self) -> None:
        self.listener.close()
        super().close()


class Udp(Wire):
    """On loopback, to a socket that nobody reads: the kernel drops what it cannot keep."""

    def __init__(self) -> None:
        super().__init__(socket.SOCK_DGRAM, socket.AF_INET)
        self.socket.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            own, peer = free.getsockname()[1], self.socket.getsockname()[1]
        local, remote = (f"{end}.type=inet,{end}.host=127.0.0.1,{end}.port=" for end in ("local", "remote"))
        self.spec = f"dgram,id=n0,{local}{own},{remote}{peer}"

    def other_end(self) -> socket.socket:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(self.socket.getsockname())
        return sender


class L2tpv3(Wire):
    """Over UDP on loopback."""

    rx_frames = UDP_RX_FRAMES
    header = b"\0\3\0\0\0\0\0\1"

    def __init__(self) -> None:
        super().__init__(socket.SOCK_DGRAM, socket.AF_INET)
        self.socket.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.own, peer = free.getsockname(), self.socket.getsockname()
        ports = f"srcport={self.own[1]},dstport={peer[1]}"
        self.spec = f"l2tpv3,id=n0,src=127.0.0.1,dst=127.0.0.1,udp=on,{ports},txsession=1"

    def send(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.socket.sendto(self.header + frame, self.own)

    def other_end(self) -> socket.socket:
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.bind(self.own)
        end.connect(self.socket.getsockname())
        return end


@contextmanager
def wired(make: MakeSystem[Any], make_wire: Callable[[], Wire]) -> Iterator[tuple[Wire, Any]]:
    """A system with a socket netdev; both are closed if the block raises."""
    with ExitStack() as undo:
        ns = undo.enter_context(own_namespace())
        with ns:
            wire = make_wire()
            undo.callback(wire.close)
            system = make(1, False, netdev=wire.spec)
            undo.callback(system.close)
            wire.connect(system.turn)
        yield wire, system
        undo.pop_all()


@contextmanager
def own_namespace() -> Iterator[Namespace]:
    """One with long queues and a loopback. It goes with the last socket in it."""
    ns = Namespace()
    try:
        ns.run("ip link set lo up")
        with ns:
            QLEN.write_text(str(2 * RX_FRAMES))
        yield ns
    finally:
        ns.close()


class SocketFloor:
    """The system calls of a kick alone, on a socket of the same kind."""

    def __init__(self, library: ctypes.CDLL, job: "SocketTx | SocketRx") -> None:
        self.job, self.library, self.packets = job, library, job.packets
        with own_namespace() as ns, ns:
            self.wire = job.make_wire()
            self.socket = self.wire.other_end()
            self.wire.connect(lambda: None)
        self.socket.setblocking(False)
        self.buffer = ctypes.create_string_buffer(4 << 20)
        self.ring = ctypes.create_string_buffer(bytes(RING * SLOT), RING * SLOT)
        for call in (library.send_messages, library.receive_messages, library.receive_stream):
            call.restype = ctypes.c_uint64

    def timed(self, call: Callable[..., int], want: int, *arguments: Any) -> int:
        start = time.thread_time_ns()
        done = call(self.socket.fileno(), self.buffer, *arguments)
        took = time.thread_time_ns() - start
        check(done == want, f"the floor's socket moved {done}, not {want}")
        return took

    def kick(self) -> int:
        return self.job.floor_kick(self, 1)

    def idle(self) -> int:
        return self.job.floor_kick(self, 0)

    def finish(self) -> None:
        self.socket.close()
        self.wire.close()


class SocketTx(Job[Any]):
    """One doorbell; its frames leave by the socket."""

    def __init__(self, wire: Wire, make_wire: Callable[[], Wire], system: Any, sender: Card, shape: Shape, first: bytes) -> None:
        super().__init__(system, sender, [], shape)
        self.wire, self.make_wire = wire, make_wire
        self.kick()
        wire.socket.settimeout(30)
        check(wire.socket.recv(1 << 16) == wire.header + first, "another frame came out than was sent")

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.wire.close()

    def floor(self, library: ctypes.CDLL) -> SocketFloor:
        return SocketFloor(library, self)

    def floor_kick(self, floor: SocketFloor, kicks: int) -> int:
        count = self.shape.buffers * kicks
        size = len(self.wire.header) + self.shape.length
        return floor.timed(floor.library.send_messages, count, ctypes.c_uint64(size), ctypes.c_uint64(count))


class SocketRx:
    """Frames wait in the socket; what counts is the time to get them into the receive ring, less that for a single one."""

    def __init__(self, wire: Wire, make_wire: Callable[[], Wire], system: Any, frames: list[bytes]) -> None:
        self.wire, self.make_wire, self.system, self.frames = wire, make_wire, system, frames
        self.packets = len(frames) - 1
        self.card = Card(system, 0, 8, RING)
        self.total = 0
        self.card.read(TPR)
        self.kick()

    def _receive(self, frames: list[bytes]) -> int:
        self.card.offer(len(frames))
        self.system.hold()
        self.wire.send(frames)
        self.total += len(frames)
        memory, status = self.system.mem, self.card.status_at(len(frames) - 1)
        return int(self.system.run(lambda: memory[status] & 1))

    def kick(self) -> int:
        return self._receive(self.frames)

    def idle(self) -> int:
        return self._receive(self.frames[:1])

    def finish(self) -> None:
        try:
            got = self.card.read(TPR)
            check(got == self.total, f"the card counts {got} packets, not {self.total}")
        finally:
            self.system.close()
            self.wire.close()

    def floor(self, library: ctypes.CDLL) -> SocketFloor:
        return SocketFloor(library, self)

    def floor_kick(self, floor: SocketFloor, kicks: int) -> int:
        frames = self.frames if kicks else self.frames[:1]
        floor.wire.send(frames)
        slots = ctypes.c_uint64(RING)
        if isinstance(self.wire, UnixStream):
            size, piece = sum(4 + len(frame) for frame in frames), ctypes.c_uint64(4 + len(frames[0]))
            return floor.timed(floor.library.receive_stream, size, ctypes.c_uint64(size), floor.ring, slots, piece)
        return floor.timed(floor.library.receive_messages, len(frames), ctypes.c_uint64(len(frames)), floor.ring, slots)


def tx_job(make_wire: Callable[[], Wire]) -> Callable[[MakeSystem[Any], int, int], SocketTx]:
    """Legacy descriptors, one kick of ring - 1 frames."""

    def job(make: MakeSystem[Any], size: int, ring: int) -> SocketTx:
        with wired(make, make_wire) as (wire, system):
            sender = Card(system, 0, ring)
            frames = [raw_frame(size, k) for k in range(ring)]
            for k, frame in enumerate(frames):
                system.mem[TX_BUFFERS + k * SLOT : TX_BUFFERS + k * SLOT + size] = frame
            sender.load(b"".join(legacy(TX_BUFFERS + k * SLOT, size) for k in range(ring)))
            return SocketTx(wire, make_wire, system, sender, Shape(TX_BUFFERS, SLOT, ring, ring - 1, size), frames[0])

    return job


def rx_job(make_wire: Callable[[], Wire]) -> Callable[[MakeSystem[Any], int, int], SocketRx]:
    def job(make: MakeSystem[Any], size: int, ring: int) -> SocketRx:
        with wired(make, make_wire) as (wire, system):
            frames = [raw_frame(size, k, MACS[0]) for k in range(min(wire.rx_frames, ring - 1))]
            found = SocketRx(wire, make_wire, system, frames)
            for k, frame in enumerate(frames):
                check(found.card.received(k) == frame, f"frame {k}: other bytes than were sent")
            return found

    return job


CASES = [
    Case("d1.1514", "unix dgram to e1000", rx_job(UnixDgram), 1514, RING, Goal(3027, 450, 700)),
    Case("d2.1514", "unix stream to e1000", rx_job(UnixStream), 1514, RING, Goal(857, 200, 280)),
    Case("d3.1514", "e1000 TX, ring of 4096, to UDP on loopback", tx_job(Udp), 1514, RING, Goal(1151, 400, 600)),
    Case("d4.1400", "e1000 TX, ring of 4096, to l2tpv3 over UDP on loopback", tx_job(L2tpv3), 1400, RING, Goal(3, 1.5, 2)),
    Case("d5.1400", "l2tpv3 over UDP on loopback to e1000", rx_job(L2tpv3), 1400, RING, Goal(3, 1.5, 2)),
]
