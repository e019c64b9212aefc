"""netdev socket: QEMU's older way of joining networks (2.5): listen and connect as stream, mcast and udp as dgram, and fd for either.

IPv4 only. stream and dgram say more; the frames on the wire are the same.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._connect import Ground, Link, Listener, Reaching
from qnet.backends._datagram import inet, inet_text, multicast_socket, port_number, sockaddr, udp_socket
from qnet.backends._dgram import DgramClient
from qnet.backends._stream import StreamClient
from qnet.errors import Error, HostError, OptionError
from qnet.options import STR, opt
from qnet.rooms import Network
from qnet.sockaddr import Inet, describe, fd_number, stream_socket

__all__ = ["Options", "SocketNetdev", "open"]

Client = StreamClient | DgramClient


@dataclass(frozen=True, kw_only=True)
class Options:
    fd: str | None = opt(STR, help="number of a descriptor: a connected stream or datagram socket")
    listen: str | None = opt(STR, help="[HOST]:PORT to listen on")
    connect: str | None = opt(STR, help="[HOST]:PORT to connect to")
    mcast: str | None = opt(STR, help="GROUP:PORT of a multicast group")
    localaddr: str | None = opt(STR, help="with mcast: address of the interface to use; with udp: HOST:PORT to receive on")
    udp: str | None = opt(STR, help="HOST:PORT to send to")


class SocketNetdev(StreamClient):
    """listen=, connect= and fd= of a stream. `bound` is where it listens: as QMP's SocketAddress, or None."""

    def __init__(self, loop: Loop, name: str) -> None:
        super().__init__(loop, name, "socket")
        self.link: Link | None = None

    @property
    def bound(self) -> dict[str, Any] | None:
        return dict(self.link.bound) if isinstance(self.link, Listener) and self.link.bound else None

    def close(self) -> None:
        """As any client's, and ends the connection, the listening and the trying."""
        if self.link is not None:
            self.link.close()
        super().close()


class _Seen(Link):
    """What users see of a connection."""

    what = ""

    def connected(self, remote: dict[str, Any]) -> None:
        self.client.info_str = f"socket: {self.what} {remote['host']}:{remote['port']}"

    def ended(self) -> None:
        self.client.info_str = ""

    def explained(self, error: Error) -> Error:
        addr = getattr(self, "addr", None)
        if isinstance(error, HostError) and isinstance(addr, Inet):
            doing = f"can't bind ip={addr.host or '0.0.0.0'} to socket" if isinstance(self, Listener) else "can't connect socket"
            return HostError(error.errno or 0, doing, error.hint if isinstance(self, Listener) else f"to {addr.host}:{addr.port}")
        if isinstance(addr, Inet) and "resolution failed" in error.text:
            return OptionError(f"can't resolve host address '{addr.host}'", "socket has IPv4 only; stream has IPv6 too")
        return error


class _Server(_Seen, Listener):
    what = "connection from"

    def listening(self) -> None:
        self.client.info_str = ""


class _Client(_Seen, Reaching):
    what = "connect to"


class _Given(_Seen):
    def __init__(self, net: Ground, client: StreamClient, fd: int) -> None:
        super().__init__(net, client)
        self.fd = fd

    def connected(self, remote: dict[str, Any]) -> None:
        self.client.info_str = f"socket: fd={self.fd}"

    def begin(self) -> None:
        sock = stream_socket(self.fd, listening=False)
        self.adopt(sock, describe(sock.family, sock.getpeername()))


def _split(text: str) -> tuple[str, str]:
    host, colon, port = text.partition(":")
    if not colon:
        raise OptionError(f"host address '{text}' doesn't contain ':' separating host from port", "such as 127.0.0.1:1234, or :1234")
    return host, port


def _place(text: str, nobody: str) -> Inet:
    """[HOST]:PORT of a stream; `nobody`: the host when there is none."""
    host, port = _split(text)
    number = port_number(port)
    if host[:1].isdigit():
        try:
            host = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            raise OptionError(f"host address '{host}' is not a valid IPv4 address", "such as 192.0.2.1") from None
    return Inet(host=host or nobody, port=str(number), ipv4=True)


def _dgram(net: Network, name: str, sock: socket.socket, remote: bytes, info: str) -> DgramClient:
    with sock:
        client = DgramClient(net.loop, name, "socket", sock.fileno(), remote=remote, coalesce=bool(remote))
    client.info_str = f"socket: {info}"
    return client


def _fd(net: Network, name: str, text: str) -> Client:
    fd = fd_number(text)
    try:
        copy = os.dup(fd)
    except OSError as e:
        raise HostError(e.errno or 0, f"{name}: Can't use file descriptor {fd}") from None
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise OptionError("can't get socket option SO_TYPE", f"descriptor {fd} is no socket") from None
    with sock:
        if sock.type == socket.SOCK_DGRAM:
            family = {socket.AF_UNIX: " unix", socket.AF_INET: " inet", socket.AF_INET6: " inet"}.get(sock.family, "")
            return _dgram(net, name, sock, b"", f"fd={fd}{family}")
        if sock.type != socket.SOCK_STREAM:
            kind = int(sock.type)
            raise OptionError(f"socket type={kind} for fd={fd} must be either SOCK_DGRAM or SOCK_STREAM", "dgram takes SOCK_SEQPACKET")
    client = SocketNetdev(net.loop, name)
    return _started(client, _Given(net, client, fd))


def _started(client: SocketNetdev, link: Link) -> SocketNetdev:
    client.link = link
    try:
        link.start()
    except BaseException:
        client.close()
        raise
    return client


def _mcast(net: Network, name: str, text: str, local: str | None) -> DgramClient:
    group = inet(*_split(text))
    if local is not None:
        try:
            local = socket.inet_ntoa(socket.inet_aton(local))
        except OSError:
            raise OptionError(f"localaddr '{local}' is not a valid IPv4 address", "the address of an interface of this host") from None
    return _dgram(net, name, multicast_socket(group, local), sockaddr(group), f"mcast={inet_text(group)}")


def _udp(net: Network, name: str, text: str, local: str) -> DgramClient:
    ours, theirs = inet(*_split(local)), inet(*_split(text))
    return _dgram(net, name, udp_socket(ours), sockaddr(theirs), f"udp={inet_text(theirs)}")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    given = [options.fd, options.listen, options.connect, options.mcast, options.udp]
    if sum(value is not None for value in given) != 1:
        raise OptionError("exactly one of listen=, connect=, mcast= or udp= is required", "or fd=")
    if options.localaddr is not None and options.mcast is None and options.udp is None:
        raise OptionError("localaddr= is only valid with mcast= or udp=", "listen= names its address itself")
    if options.fd is not None:
        return [_fd(net, name, options.fd)]
    if options.mcast is not None:
        return [_mcast(net, name, options.mcast, options.localaddr)]
    if options.udp is not None:
        if options.localaddr is None:
            raise OptionError("localaddr= is mandatory with udp=", "HOST:PORT to receive on")
        return [_udp(net, name, options.udp, options.localaddr)]
    if options.listen is not None:
        addr = _place(options.listen, "0.0.0.0")
        client = SocketNetdev(net.loop, name)
        return [_started(client, _Server(net, client, addr))]
    assert options.connect is not None
    addr = _place(options.connect, "127.0.0.1")
    client = SocketNetdev(net.loop, name)
    return [_started(client, _Client(net, client, addr))]
