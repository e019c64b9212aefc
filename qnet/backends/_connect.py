"""How a stream gets its connection: listening, or connecting and perhaps again and again. Slow path only, on the network's loop.

A Link is driven by its client's on_lost, by watches and by timers, each of which comes without locks on any thread: every entry
takes the control plane's lock and then asks whether it still counts.
"""

import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Protocol

from qnet._loop import Loop, TimerHandle, WatchHandle
from qnet.backends._stream import StreamClient
from qnet.errors import Error
from qnet.sockaddr import Inet, Place, Unix, describe, host_error, is_name, listen_inet, listen_unix, resolve, stream_socket

__all__ = ["Ground", "Link", "Listener", "Reaching"]

log = logging.getLogger("qnet.stream")

RETRY = 100_000_000                     # ns until the next try when the host lacks something, such as descriptors


class Ground(Protocol):
    """What is needed of the network."""

    @property
    def loop(self) -> Loop: ...
    @property
    def lock(self) -> AbstractContextManager[None]: ...
    def event(self, name: str, data: Mapping[str, Any]) -> None: ...


class Link:
    """Holds a client, and gives it connections. Subclasses say how; `connected` and `ended` may be overridden for what users see."""

    def __init__(self, net: Ground, client: StreamClient) -> None:
        self.net = net
        self.client = client
        self.remote: dict[str, Any] | None = None           # the other end, while connected
        self.error: Error | None = None                     # why there is no connection
        self.closed = False
        self.persists = False                               # tries again after a failure
        self.started = False
        self._handle: TimerHandle | WatchHandle | None = None
        client.on_lost = self._lost

    # -- for subclasses

    def connected(self, remote: dict[str, Any]) -> None:
        """A connection is there."""

    def ended(self) -> None:
        """It is gone."""

    def begin(self) -> None:
        """Start with it."""
        raise NotImplementedError

    def again(self) -> None:
        """A connection ended: what now?"""

    def explained(self, error: Error) -> Error:
        """What a user is told of it."""
        return error

    def stop(self) -> None:
        """Let go of everything but the connection. Idempotent."""

    # -- common

    def start(self) -> None:
        """Begin. What fails at once raises, unless it is tried again."""
        self.begin()
        self.started = True
        if self.error is not None and not self.persists:
            raise self.error

    def failed(self, error: Error) -> None:
        """There is no connection, and none will come unless it is tried again."""
        error = self.explained(error)
        said = self.error is not None and self.error.text == error.text
        self.error = error.with_traceback(None)             # which would hold the frames it came through
        self.client.info_str = f"error: {error.text}"
        if not said and (self.started or self.persists):
            log.warning("%s: %s", self.client.name, str(error))

    def close(self) -> None:
        """End it all. Idempotent."""
        with self.net.lock:
            self.closed = True
            self.client.on_lost = None
            self.client.detach()
            self.wait_for(None)
            self.stop()

    def wait_for(self, handle: TimerHandle | WatchHandle | None) -> None:
        """There is one thing at a time that the link waits for."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = handle

    def later(self, ns: int, callback: Callable[[], object]) -> None:
        """Call it then, unless the link waits for something else by that time."""
        handle: TimerHandle | None = None

        def due() -> None:
            with self.net.lock:
                if self._handle is handle:
                    self._handle = None
                    callback()

        self.wait_for(None)
        handle = self.net.loop.call_later(ns, due)
        self._handle = handle

    def watch(self, fd: int, events: int, callback: Callable[[], object]) -> None:
        """Call it whenever the descriptor is ready, as long as the link waits for nothing else."""
        handle: WatchHandle | None = None

        def ready(_: int) -> None:
            with self.net.lock:
                if self._handle is handle:
                    callback()

        self.wait_for(None)
        handle = self.net.loop.watch(fd, events, ready)
        self._handle = handle

    def adopt(self, sock: socket.socket, remote: dict[str, Any], keep_alive: bool = False) -> bool:
        """The client gets the connected socket. False when it turns out to be gone already."""
        with sock:
            try:
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if keep_alive:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self.client.attach(sock.fileno())
            except OSError as e:
                self.error = host_error(e, "Failed to use a connection")
                return False
        self.error = None
        self.remote = remote
        self.connected(remote)
        return True

    def _lost(self) -> None:
        with self.net.lock:
            if self.closed or self.client.attached or self.remote is None:
                return
            self.remote = None
            self.ended()
            self.again()

    def resolve(self, addr: Inet | Unix, passive: bool, done: Callable[[list[Place]], None], failed: Callable[[Error], None]) -> None:
        """Find out addresses, without waiting: a name is looked up by a thread, and the network goes on meanwhile."""
        if not is_name(addr):
            try:
                places = resolve(addr, passive=passive)
            except Error as e:
                failed(e)
            else:
                done(places)
            return
        self.wait_for(None)

        def look_up() -> None:
            try:
                found: list[Place] | Error = resolve(addr, passive=passive)
            except Error as e:
                found = e
            with suppress(ValueError):                      # the network was closed meanwhile
                self.net.loop.call_later(0, lambda: tell(found))

        def tell(found: list[Place] | Error) -> None:
            with self.net.lock:
                if not self.closed:
                    failed(found) if isinstance(found, Error) else done(found)

        try:
            threading.Thread(target=look_up, name="qnet-resolve", daemon=True).start()
        except RuntimeError as e:
            failed(Error(f"address resolution failed: {e}"))


class Listener(Link):
    """Accepts one peer at a time (B19); while it is there others wait in the backlog."""

    def __init__(self, net: Ground, client: StreamClient, addr: Inet | Unix | int) -> None:
        super().__init__(net, client)
        self.addr = addr                                    # a number: a listening file descriptor
        self.listener: socket.socket | None = None
        self.bound: dict[str, Any] | None = None            # where it listens
        self._refused: int | None = None                    # errno of the last accept()
        self._file: tuple[str, int, int] | None = None      # path, device and inode of a unix socket of ours

    def listening(self) -> None:
        """Nobody is connected, and somebody may come. For subclasses."""

    def begin(self) -> None:
        if isinstance(self.addr, int):
            self._listen_on(stream_socket(self.addr, listening=True))
        else:
            self.resolve(self.addr, True, self._bind, self.failed)

    def _bind(self, places: list[Place]) -> None:
        assert not isinstance(self.addr, int)
        try:
            sock = listen_unix(places[0]) if isinstance(self.addr, Unix) else listen_inet(self.addr, places)
        except Error as e:
            self.failed(e)
            return
        if isinstance(self.addr, Unix) and not self.addr.abstract:
            st = os.lstat(self.addr.path)
            self._file = (self.addr.path, st.st_dev, st.st_ino)
        self._listen_on(sock)

    def _listen_on(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.listener = sock
        self.bound = describe(sock.family, sock.getsockname())
        self.again()

    def again(self) -> None:
        assert self.listener is not None
        self.watch(self.listener.fileno(), select.EPOLLIN, self._accept)
        self.listening()

    def _accept(self) -> None:
        assert self.listener is not None
        try:
            sock, address = self.listener.accept()
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.ECONNABORTED):
                return                                      # whoever it was has gone
            if e.errno != self._refused:                    # out of descriptors, most likely: it stays ready, and must not be asked at once
                self._refused = e.errno
                log.warning("%s: accept: %s", self.client.name, e.strerror)
            self.later(RETRY, self.again)
            return
        self._refused = None
        self.wait_for(None)
        remote = self.bound if sock.family == socket.AF_UNIX and self.bound is not None else describe(sock.family, address)
        if not self.adopt(sock, remote, isinstance(self.addr, Inet) and self.addr.keep_alive):
            self.later(RETRY, self.again)

    def stop(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if self._file is not None:
            path, device, inode = self._file
            self._file = None
            with suppress(OSError):
                st = os.lstat(path)
                if (st.st_dev, st.st_ino) == (device, inode):           # nobody else has taken the name
                    os.unlink(path)


class Reaching(Link):
    """Connects; with `reconnect`, in ns, again after a failure or a loss, for ever."""

    def __init__(self, net: Ground, client: StreamClient, addr: Inet | Unix, reconnect: int = 0) -> None:
        super().__init__(net, client)
        self.addr = addr
        self.reconnect = reconnect
        self._places: list[Place] = []
        self._socket: socket.socket | None = None           # being connected
        self.persists = reconnect > 0

    def connecting(self) -> None:
        """An attempt begins. For subclasses."""

    def begin(self) -> None:
        self._attempt()

    def again(self) -> None:
        if self.reconnect:
            self.later(self.reconnect, self._attempt)

    def _attempt(self) -> None:
        self.connecting()
        self.resolve(self.addr, False, self._resolved, self.failed)

    def _resolved(self, places: list[Place]) -> None:
        self._places = places
        self._next(OSError(errno.EADDRNOTAVAIL, ""))

    def _next(self, error: OSError) -> None:
        """Try one address after the other."""
        self.stop()
        while self._places:
            place = self._places[0]
            try:
                sock = self._socket = socket.socket(place.family, socket.SOCK_STREAM, place.protocol)
                sock.setblocking(False)
                rc = sock.connect_ex(place.address)
                if rc == errno.EINPROGRESS:
                    self.watch(sock.fileno(), select.EPOLLOUT, self._writable)
                    return
            except OSError as e:
                rc = e.errno or errno.EIO
            if rc == 0:
                self._done(place)
                return
            self.stop()
            error = OSError(rc, "")
            if rc == errno.EAGAIN:                          # AF_UNIX: the backlog is full
                self.later(RETRY, partial(self._next, error))
                return
            self._places.pop(0)
        where = self.addr.path if isinstance(self.addr, Unix) else f"{self.addr.host}:{self.addr.port}"
        hints = ["nobody listens there"] if error.errno in (errno.ECONNREFUSED, errno.ENOENT) else []
        hints += [] if self.persists else ["reconnect-ms= tries again"]
        self.failed(host_error(error, f"Failed to connect to '{where}'", "; ".join(hints)))

    def _writable(self) -> None:
        assert self._socket is not None
        self.wait_for(None)
        rc = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if rc == 0:
            self._done(self._places[0])
        else:
            self._places.pop(0)
            self._next(OSError(rc, ""))

    def _done(self, place: Place) -> None:
        sock, self._socket = self._socket, None
        assert sock is not None
        self._places = []
        if not self.adopt(sock, describe(place.family, place.address), isinstance(self.addr, Inet) and self.addr.keep_alive):
            assert self.error is not None
            self.failed(self.error)

    def failed(self, error: Error) -> None:
        self.stop()
        super().failed(error)
        self.again()

    def stop(self) -> None:
        if self._socket is not None:
            self.wait_for(None)
            self._socket.close()
            self._socket = None
