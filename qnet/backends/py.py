"""py: a client that is Python. Frames come in batches, by a callable, by recv() or by `async for`, and leave by send_many()."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._libpcap import compile_filter
from qnet.backends._pyclient import PyClient
from qnet.errors import OptionError
from qnet.options import ANY, BOOL, SIZE, STR, UINT32, opt
from qnet.rooms import Network

__all__ = ["Options", "PyPort", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    on_frames: Callable[[list[memoryview]], object] | None = opt(ANY, help="callable that is given the frames, batch by batch")
    filter: str | None = opt(STR, help="take only frames that match: tcp port 80, as tcpdump says it (libpcap)")
    max_packets: int = opt(UINT32, default=4096, help="frames that may wait for Python")
    max_bytes: int = opt(SIZE, default=8 << 20, help="bytes that may wait for Python")
    offloads: bool = opt(BOOL, default=False, help="on: packets come unsegmented, with checksums still to fill in, and a record of that")


class PyPort(PyClient):
    """A client that is Python: PyClient, with filters in words and `async for frames in port`."""

    def __init__(self, loop: Loop, name: str = "", model: str = "py", *, max_packets: int = 4096, max_bytes: int = 8 << 20,
                 offloads: bool = False) -> None:  # fmt: skip
        super().__init__(loop, name, model, max_packets=max_packets, max_bytes=max_bytes, offloads=offloads)
        self._filter: str | None = None
        self.closing: Callable[[], object] | None = None        # called once it is closed, by who closes it: it may hold locks

    @property
    def filter(self) -> str | None:
        """Only frames that match come to Python, the others are counted as "address"; None: all come. tcpdump's words, compiled by
        libpcap, or a program of one's own: (code, jt, jf, k) for each instruction, as `tcpdump -ddd` prints them."""
        return self._filter

    @filter.setter
    def filter(self, value: str | Iterable[tuple[int, int, int, int]] | None) -> None:
        if value is None:
            self.set_program(None)
        elif isinstance(value, str):
            self.set_program(compile_filter(value))
        else:
            program = [tuple(instruction) for instruction in value]
            self.set_program(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
            value = f"{len(program)} instructions"
        self._filter = value
        self.info_str = f"filter={value}" if value is not None else ""

    def __aiter__(self) -> AsyncIterator[list[memoryview]]:
        """Batches as they come, until the client is closed. One loop over a client at a time, and no on_frames beside it."""
        if self.on_frames is not None or self.on_readable is not None:
            raise RuntimeError(f"{self.name} has a reader already")
        return _Reader(self)

    def close(self) -> None:
        super().close()
        if self.closing is not None:
            self.closing()


class _Reader(AsyncIterator[list[memoryview]]):
    """It holds the client only while somebody waits, so a loop that was cancelled, or left, has let go of everything."""

    def __init__(self, port: PyPort) -> None:
        self.port = port
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """From any thread."""
        try:
            self.loop.call_soon_threadsafe(self.woken)
        except RuntimeError:                # the loop is closed
            return

    def woken(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    async def __anext__(self) -> list[memoryview]:
        port = self.port
        await asyncio.sleep(0)              # whoever else runs on this loop has a turn between two batches
        while not (frames := port.recv()):
            if port.closed:
                raise StopAsyncIteration
            if port.on_frames is not None or port.on_readable is not None:
                raise RuntimeError(f"{port.name} has a reader already")
            self.future = self.loop.create_future()
            port.closing = self.wake
            port.on_readable = self.wake
            try:
                await self.future
            finally:
                self.future = None
                port.on_readable = None
                port.closing = None
        return frames


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    if options.on_frames is not None and not callable(options.on_frames):
        raise OptionError("Invalid parameter type for 'on-frames', expected: callable", 'netdev_add("py", id="p0", on_frames=callable)')
    if options.max_packets == 0 or options.max_bytes == 0:
        raise OptionError("py requires max-packets= and max-bytes= above 0", "the defaults are 4096 and 8M")
    port = PyPort(net.loop, name, max_packets=options.max_packets, max_bytes=options.max_bytes, offloads=options.offloads)
    try:
        port.filter = options.filter
    except BaseException:
        port.close()
        raise
    port.on_frames = options.on_frames
    return [port]
