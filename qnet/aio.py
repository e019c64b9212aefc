"""asyncio: a network on a running loop, and its frames as a transport and a protocol. Works on asyncio's loops and on uvloop's.

    with attach(net):                                       # the loop moves the network
        transport, protocol = await create_frame_endpoint(MyProtocol, net, filter="arp")

attach() is one of the ways to run a network; with net.start() the transports work as well, whatever thread has the frames.
`async for frames in port` needs neither transport nor protocol: see qnet.backends.py.PyPort.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self, TypeVar

from qnet.backends.py import PyPort
from qnet.net import Net

__all__ = ["Attachment", "FrameProtocol", "FrameTransport", "attach", "create_frame_endpoint"]

log = logging.getLogger("qnet.aio")

BATCHES = 16                            # handed over in one go, before whoever else is on the loop has a turn
HIGH_WATER = 1 << 20                    # bytes


class Attachment:
    """A network that a loop moves; made by attach(). It ends with close(), the end of a with block, or with the network."""

    def __init__(self, net: Net, loop: asyncio.AbstractEventLoop) -> None:
        self._net = net
        self._loop = loop
        self._thread = threading.get_ident()
        # A duplicate, so that the loop's selector knows no descriptor that somebody else closes, or has a new meaning already.
        self._fd = os.dup(net.fileno())
        try:
            loop.add_reader(self._fd, self._pump)
        except BaseException:
            os.close(self._fd)
            raise
        net.loop.at_close.append(self.close)

    def _pump(self) -> None:
        if self._fd >= 0:
            self._net.pump()

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """The loop lets go of the network, which may run on in another way. Idempotent; from any thread."""
        if self._fd < 0 or self._loop.is_closed() or threading.get_ident() == self._thread:
            self._detach()
        else:
            with contextlib.suppress(RuntimeError):         # the loop is closed meanwhile
                self._loop.call_soon_threadsafe(self._detach)
                return
            self._detach()

    def _detach(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(ValueError):
            self._net.loop.at_close.remove(self.close)
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0 and self._loop.is_closed():
            os.close(self._fd)


def attach(net: Net, loop: asyncio.AbstractEventLoop | None = None) -> Attachment:
    """Let a loop move the network from now on: the running one, or `loop`, from its own thread."""
    return Attachment(net, loop or asyncio.get_running_loop())


class FrameProtocol(asyncio.BaseProtocol):
    """What a transport calls. A plain asyncio.DatagramProtocol will do as well: its datagram_received(frame, None) gets bytes."""

    def frames_received(self, frames: list[memoryview]) -> None:
        """A batch, as on_frames of PyPort gets it."""


class _Datagrams(Protocol):
    def datagram_received(self, data: bytes, addr: Any) -> None: ...


P = TypeVar("P", bound=asyncio.BaseProtocol)


class FrameTransport(asyncio.DatagramTransport):
    """Frames to and from a `py` netdev, with asyncio's flow control; made by create_frame_endpoint(). Not for other threads.

    sendto() and send_many() keep what the network has no room for, and call pause_writing() and resume_writing() at the limits.
    While reading is paused, the network's senders wait, or lose what the client's queue does not hold.
    get_extra_info() knows "port".
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, port: PyPort, protocol: asyncio.BaseProtocol, release: Callable[[], object] | None = None
    ) -> None:
        super().__init__({"port": port})
        self._loop = loop
        self._thread = threading.get_ident()
        self._port = port
        self._protocol = protocol
        self._release = release
        self._out: deque[bytes] = deque()
        self._size = 0
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._writing_paused = False
        self._closing = False
        self._lost = False
        self._due: set[Callable[[], object]] = set()
        if isinstance(protocol, asyncio.DatagramProtocol) and not hasattr(protocol, "frames_received"):
            self._received = self._datagrams
        elif hasattr(protocol, "frames_received"):
            self._received = protocol.frames_received
        else:
            raise TypeError("the protocol has neither frames_received() nor datagram_received()")
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._protocol.connection_made(self)
        if not self._lost:
            self._port.on_writable = lambda: self._soon(self._flush)
            self._port.on_readable = lambda: self._soon(self._read)
            self._port.closing = lambda: self._soon(self._gone)
            if self._port.closed:
                self._gone()

    def _soon(self, what: Callable[[], object]) -> None:
        """Call it from the loop, once; from any thread."""
        if what in self._due:
            return
        self._due.add(what)
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._run, what)
            else:
                self._loop.call_soon_threadsafe(self._run, what)
        except RuntimeError:                # the loop is closed
            self._due.discard(what)

    def _run(self, what: Callable[[], object]) -> None:
        self._due.discard(what)
        what()

    # ------------------------------------------------------------------------------------------------------------ reading

    def _datagrams(self, frames: list[memoryview]) -> None:
        protocol: Any = self._protocol
        for frame in frames:
            protocol.datagram_received(bytes(frame), None)

    def _read(self) -> None:
        for _ in range(BATCHES):
            if self._closing or self._port.paused or not (frames := self._port.recv()):
                return
            try:
                self._received(frames)
            except Exception as e:
                self._loop.call_exception_handler(
                    {"message": "a protocol failed to receive frames", "exception": e, "transport": self, "protocol": self._protocol}
                )
        self._soon(self._read)

    def pause_reading(self) -> None:
        self._port.paused = True

    def resume_reading(self) -> None:
        if not self._closing:
            self._port.paused = False
            self._soon(self._read)

    def is_reading(self) -> bool:
        return not self._closing and not self._port.paused

    # ------------------------------------------------------------------------------------------------------------ writing

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send one frame; `addr` is for asyncio's sake."""
        self.send_many((data,))

    def send_many(self, frames: Iterable[Any]) -> None:
        """Send frames; what there is no room for now is copied and kept."""
        frames = tuple(frames)
        done = 0
        if self._closing:
            return
        if not self._out:
            done = self._port.send_many(frames)
        for frame in frames[done:]:
            kept = bytes(memoryview(frame))
            self._out.append(kept)
            self._size += len(kept)
        if self._size > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def _flush(self) -> None:
        done = self._port.send_many(self._out) if self._out else 0
        for _ in range(done):
            self._size -= len(self._out.popleft())
        if self._writing_paused and self._size <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._closing and not self._out:
            self._finish()

    def get_write_buffer_size(self) -> int:
        return self._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        high = high if high is not None else 4 * low if low is not None else HIGH_WATER
        low = low if low is not None else high // 4
        if not 0 <= low <= high:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high, self._low = high, low

    # ------------------------------------------------------------------------------------------------------------- closing

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Nothing is received any more; what is kept is sent, then connection_lost(None) is called."""
        if not self._closing:
            self._closing = True
            self._port.on_readable = None
            if not self._out:
                self._finish()

    def abort(self) -> None:
        """As close(), but what is kept is forgotten."""
        self._closing = True
        self._out.clear()
        self._size = 0
        self._finish()

    def _gone(self) -> None:
        """Somebody deleted the netdev, or closed the network."""
        if not self._lost:
            self.abort()

    def _finish(self) -> None:
        if self._lost:
            return
        self._lost = True
        port = self._port
        port.on_readable = port.on_writable = port.closing = None
        self._loop.call_soon(self._protocol.connection_lost, None)
        if self._release is not None and not port.closed:
            self._release()


async def create_frame_endpoint(protocol_factory: Callable[[], P], net: Net | PyPort, **options: Any) -> tuple[FrameTransport, P]:
    """As loop.create_datagram_endpoint(): a transport and the protocol that the factory made.

    With a Net, a `py` netdev is added with these options (id=, filter= ...), and deleted with the transport. With a client from
    net.client("py"), that one is used, and left as it is afterwards.
    """
    loop = asyncio.get_running_loop()
    if isinstance(net, Net):
        port = net.client("py", **(options or {"on_frames": None}))
        name = port.name

        def release() -> None:
            net.netdev_del(name)

        try:
            transport = FrameTransport(loop, port, protocol := protocol_factory(), release)
        except BaseException:
            release()
            raise
        return transport, protocol
    if options:
        raise TypeError(f"a client that exists takes no options: {', '.join(options)}")
    protocol = protocol_factory()
    return FrameTransport(loop, net, protocol), protocol
