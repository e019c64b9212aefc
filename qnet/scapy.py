"""scapy on a network: QnetSocket is one of its sockets, so sniff, sr, AnsweringMachine and the rest work on it.

    with QnetSocket(net, hubid=0, filter="arp or icmp") as s:
        answer = s.sr1(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.2.2"), timeout=1)

Importing this module imports scapy, and nothing else of qnet does. The filter runs in C: scapy dissects only what matches.
"""

import contextlib
import errno
import os
import select
import threading
import time
from collections import deque
from typing import Any, cast

from scapy.config import conf
from scapy.data import MTU
from scapy.packet import Packet
from scapy.supersocket import SuperSocket

from qnet._loop import Loop
from qnet.backends.py import PyPort
from qnet.errors import check
from qnet.net import Net

__all__ = ["QnetSocket"]

SEND_PATIENCE = 5.0                     # seconds that send() waits for room


class QnetSocket(SuperSocket):
    """A scapy socket on a `py` netdev.

    QnetSocket(net): a netdev of its own, deleted with the socket; with hubid= plugged into that hub, else `port` is there to be plugged
    into something. QnetSocket(port): one from net.client("py"), which is left alone afterwards. filter: as tcpdump's. basecls: the
    class that frames begin with; Ether when not given.

    While the network is not started, whoever waits on the socket moves it.
    """

    desc = "read/write frames of a qnet network"

    def __init__(
        self, net: Net | PyPort, *, hubid: int | None = None, filter: str | None = None, basecls: type[Packet] | None = None, **options: Any
    ) -> None:
        self.closed = True                      # until it is open
        self._names: list[str] = []
        self._net = net if isinstance(net, Net) else None
        self._fd = -1
        if self._net is not None:
            self.port = self._net.client("py", filter=filter, **options)
            self._names.append(self.port.name)
            try:
                if hubid is not None:
                    name = f"{self.port.name}.port"
                    self._net.netdev_add("hubport", id=name, hubid=hubid, netdev=self.port.name)
                    self._names.append(name)
            except BaseException:
                self._delete()
                raise
        elif isinstance(net, PyPort):
            if options or hubid is not None:
                raise TypeError("a client that exists takes a filter, and no other options")
            self.port = net
            if filter is not None:
                net.filter = filter
        else:
            raise TypeError(f"a Net or a client of net.client('py') is wanted, not {type(net).__name__}")
        self._loop = cast(Loop, self.port.context)
        self._got: deque[memoryview] = deque()
        self._writable = threading.Event()
        self.basecls = basecls or conf.l2types.num2layer[1]
        self.iface = self.port.name
        self.promisc = True
        self.ins = self.outs = self  # type: ignore[assignment]
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.closed = False
        self.port.on_writable = self._writable.set
        self.port.on_readable = self.port.closing = self._readable

    def _readable(self) -> None:
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        """Readable while recv() has something."""
        return self._fd

    def _batch(self) -> bool:
        """Whether there is a frame; the descriptor says so too."""
        if not self._got:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            self._got.extend(self.port.recv())      # after that: what comes meanwhile makes it readable again
            if self._got:
                os.eventfd_write(self._fd, 1)
        return bool(self._got)

    def recv_raw(self, x: int = MTU) -> tuple[type[Packet] | None, bytes | None, float | None]:
        """The next frame, as scapy's sockets return it. Waits for one; EOFError when the client is closed."""
        while not self._batch():
            if self.port.closed or self.closed:
                raise EOFError
            self._wait([self], None)
        frame = bytes(self._got.popleft())
        self._batch()
        return self.basecls, frame[:x], time.time()

    def send(self, x: Any) -> int:
        """Send a packet or bytes; how many bytes that were. HostError (ENOBUFS) when there is no room for five seconds."""
        frame = bytes(x)
        end = time.monotonic() + SEND_PATIENCE
        with contextlib.suppress(AttributeError):
            x.sent_time = time.time()
        while True:
            self._writable.clear()
            if self.port.send(frame):
                return len(frame)
            if self._moved():
                select.select([self._loop.fileno()], [], [], 0.05)
                self._loop.pump()
            else:
                self._writable.wait(0.05)
            if time.monotonic() > end:
                check(-errno.ENOBUFS, f"cannot send to {self.port.name}", "its peer takes nothing: see stats()")

    def _moved(self) -> bool:
        """Whether it is on us to move the network."""
        return not self._loop.started and not self.port.closed

    @staticmethod
    def _wait(sockets: list[Any], remain: float | None) -> list[Any]:
        """select.select over sockets of any kind that have a fileno(), and the networks that nobody else moves."""
        end = None if remain is None else time.monotonic() + remain
        while True:
            loops = {s._loop.fileno(): s._loop for s in sockets if isinstance(s, QnetSocket) and s._moved()}
            closed = [s for s in sockets if s.fileno() < 0 or (isinstance(s, QnetSocket) and s.port.closed)]
            if closed:
                return closed
            left = None if end is None else max(0.0, end - time.monotonic())
            ready, _, _ = select.select([*sockets, *loops], [], [], left)
            for fd in ready:
                if isinstance(fd, int):
                    loops[fd].pump()
            ready = [s for s in ready if not isinstance(s, int)]
            ready += [s for s in sockets if isinstance(s, QnetSocket) and s not in ready and s.fileno() >= 0 and s._batch()]
            if ready or (left is not None and left <= 0):
                return ready

    @staticmethod
    def select(sockets: list[Any], remain: float | None = conf.recv_poll_rate) -> list[Any]:
        """For scapy: those of the sockets that recv() has something of."""
        return QnetSocket._wait(sockets, remain)

    def close(self) -> None:
        """Let go of the client; delete it if it is the socket's own. Idempotent."""
        if getattr(self, "closed", True):
            return
        self.closed = True
        self.port.on_readable = self.port.on_writable = self.port.closing = None
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._got.clear()
        self._delete()

    def _delete(self) -> None:
        while self._names:
            name = self._names.pop()
            with contextlib.suppress(LookupError):          # the network was quicker
                assert self._net is not None
                self._net.netdev_del(name)
