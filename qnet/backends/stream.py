"""netdev stream: frames over a TCP or unix connection, each behind its length in 4 bytes, most significant first (X1).

One end listens (server=on), the other connects; with reconnect-ms for ever. The other end is another network, a QEMU or any program
that speaks these frames. Here is what users see; _connect gets connections, _stream carries the frames.
"""

from dataclasses import dataclass
from typing import Any

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._connect import Ground, Link, Listener, Reaching
from qnet.backends._stream import StreamClient
from qnet.errors import OptionError
from qnet.options import BOOL, UINT32, opt
from qnet.rooms import Network
from qnet.sockaddr import SOCKET_ADDRESS, Fd, SocketAddress, Vsock, describe, fd_number, stream_socket, uri

__all__ = ["Options", "StreamNetdev", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    addr: SocketAddress = opt(SOCKET_ADDRESS, required=True, help="socket address to listen on (server=on) or to connect to")
    server: bool = opt(BOOL, default=False, help="listen, and accept one peer at a time")
    reconnect: int | None = opt(UINT32, help="as reconnect-ms, in seconds")
    reconnect_ms: int | None = opt(UINT32, help="ms to the next attempt after a loss or a failure; 0: none", name="reconnect-ms")


class StreamNetdev(StreamClient):
    """The netdev. `bound` is where it listens, `remote` the other end: as QMP's SocketAddress, or None."""

    def __init__(self, loop: Loop, name: str) -> None:
        super().__init__(loop, name, "stream")
        self.link: Link | None = None

    @property
    def bound(self) -> dict[str, Any] | None:
        return dict(self.link.bound) if isinstance(self.link, Listener) and self.link.bound else None

    @property
    def remote(self) -> dict[str, Any] | None:
        return dict(self.link.remote) if self.link is not None and self.link.remote else None

    def close(self) -> None:
        """As any client's, and ends the connection, the listening and the trying."""
        if self.link is not None:
            self.link.close()
        super().close()


class _Seen(Link):
    """What users see of a connection."""

    def connected(self, remote: dict[str, Any]) -> None:
        self.client.info_str = uri(remote)
        self.net.event("NETDEV_STREAM_CONNECTED", {"netdev-id": self.client.name, "addr": remote})

    def ended(self) -> None:
        self.client.info_str = ""
        self.net.event("NETDEV_STREAM_DISCONNECTED", {"netdev-id": self.client.name})


class _Server(_Seen, Listener):
    def listening(self) -> None:
        self.client.info_str = "listening"


class _Client(_Seen, Reaching):
    def connecting(self) -> None:
        self.client.info_str = "connecting"


class _Given(_Seen):
    """A connection that is there already."""

    def __init__(self, net: Ground, client: StreamClient, fd: int) -> None:
        super().__init__(net, client)
        self.fd = fd

    def begin(self) -> None:
        sock = stream_socket(self.fd, listening=False)
        self.adopt(sock, describe(sock.family, sock.getpeername()))


def _reconnect(options: Options) -> int:
    """Nanoseconds between attempts, 0: no second one."""
    if options.reconnect is not None and options.reconnect_ms is not None:
        raise OptionError("'reconnect' and 'reconnect-ms' are mutually exclusive", "reconnect-ms= says it in milliseconds")
    if options.server and (options.reconnect is not None or options.reconnect_ms is not None):
        raise OptionError(
            "'reconnect' and 'reconnect-ms' options are incompatible with socket in server mode", "a server listens again by itself"
        )
    return (options.reconnect or 0) * 1_000_000_000 + (options.reconnect_ms or 0) * 1_000_000


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    reconnect = _reconnect(options)
    addr = options.addr
    if isinstance(addr, Vsock):
        raise OptionError("only support inet, unix or fd type", "vsock has no streams of frames")
    fd = fd_number(addr.str) if isinstance(addr, Fd) else -1
    client = StreamNetdev(net.loop, name)
    client.info_str = "initializing"
    if options.server:
        client.link = _Server(net, client, fd if isinstance(addr, Fd) else addr)
    elif isinstance(addr, Fd):
        client.link = _Given(net, client, fd)
    else:
        client.link = _Client(net, client, addr, reconnect)
    try:
        client.link.start()
    except BaseException:
        client.close()
        raise
    return [client]
