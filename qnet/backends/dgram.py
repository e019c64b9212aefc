"""dgram: frames as the datagrams of a UDP or unix socket, of a multicast group, or of a socket that is open already."""

import contextlib
import ipaddress
import os
import socket
import stat
import weakref
from dataclasses import dataclass

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._datagram import Where, given_socket, inet, inet_text, multicast_socket, sockaddr, udp_socket
from qnet.backends._dgram import DgramClient
from qnet.errors import HostError, OptionError
from qnet.options import opt
from qnet.rooms import Network
from qnet.sockaddr import SOCKET_ADDRESS, Fd, Inet, SocketAddress, Unix, resolve

__all__ = ["Options", "UnixDgram", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    local: SocketAddress | None = opt(SOCKET_ADDRESS, help="where datagrams are received: inet, unix or fd")
    remote: SocketAddress | None = opt(SOCKET_ADDRESS, help="where datagrams are sent: inet, unix; or a multicast group")


class UnixDgram(DgramClient):
    """Bound to a path, which is removed when the client is closed or collected, unless it is somebody else's by then."""

    def __init__(self, loop: Loop, name: str, sock: socket.socket, path: bytes, remote: bytes) -> None:
        super().__init__(loop, name, "dgram", sock.fileno(), remote=remote)
        self._finalizer = weakref.finalize(self, _unlink, path, _identity(path))

    def close(self) -> None:
        """As any client's, and removes the path."""
        super().close()
        self._finalizer()


def _identity(path: bytes) -> tuple[int, int] | None:
    """Of a socket in the file system; None: there is none."""
    try:
        st = os.lstat(path)
    except (OSError, ValueError):               # ValueError: an abstract name
        return None
    return (st.st_dev, st.st_ino) if stat.S_ISSOCK(st.st_mode) else None


def _unlink(path: bytes, mine: tuple[int, int] | None) -> None:
    if mine is not None and _identity(path) == mine:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _multicast(net: Network, name: str, group: Where, local: SocketAddress | None) -> DgramClient:
    if isinstance(local, Fd):
        fd, sock = given_socket(name, local.str)
        with sock:
            if (sock.family, sock.type) != (socket.AF_INET, socket.SOCK_DGRAM):
                raise OptionError(f"socket fd={fd} must be an IPv4 datagram socket", "to send to a multicast group")
            return _client(net, name, sock, sockaddr(group), f"fd={fd} (mcast={inet_text(group)})", coalesce=False)
    if local is not None and not isinstance(local, Inet):
        raise OptionError("only support inet or fd type for local", "with a multicast group; a local inet address says which interface")
    interface = inet(local.host, local.port)[1][0] if local is not None else None
    with multicast_socket(group, interface) as sock:
        return _client(net, name, sock, sockaddr(group), f"mcast={inet_text(group)}", coalesce=True)


def _inet(net: Network, name: str, local: Inet, remote: Inet) -> DgramClient:
    ours, theirs = inet(local.host, local.port), inet(remote.host, remote.port)
    if ours[0] != theirs[0]:
        raise OptionError("remote and local types must be the same", "either both IPv4 or both IPv6")
    with udp_socket(ours) as sock:
        return _client(net, name, sock, sockaddr(theirs), f"udp={inet_text(ours)}/{inet_text(theirs)}", coalesce=True)


def _unix(net: Network, name: str, local: Unix, remote: Unix) -> DgramClient:
    [ours], [theirs] = ([place.address for place in resolve(end, passive=True)] for end in (local, remote))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        _unlink(ours, _identity(ours))
        try:
            sock.bind(ours)
        except OSError as e:
            hint = "there is something else than a socket, which is left alone" if os.path.lexists(local.path) else ""
            raise HostError(e.errno or 0, f"can't bind unix={local.path} to socket", hint) from None
        try:
            client = UnixDgram(net.loop, name, sock, ours, sockaddr(theirs))
        except BaseException:
            _unlink(ours, _identity(ours))
            raise
    client.info_str = f"udp={local.path}:{remote.path}"
    return client


def _fd(net: Network, name: str, local: Fd) -> DgramClient:
    fd, sock = given_socket(name, local.str)
    with sock:
        if sock.type not in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            raise OptionError(f"socket type={int(sock.type)} for fd={fd} must be SOCK_DGRAM", "the stream netdev takes stream sockets")
        family = {socket.AF_UNIX: " unix", socket.AF_INET: " inet", socket.AF_INET6: " inet"}.get(sock.family, "")
        return _client(net, name, sock, b"", f"fd={fd}{family}", coalesce=False)


def _client(net: Network, name: str, sock: socket.socket, remote: bytes, info: str, *, coalesce: bool) -> DgramClient:
    client = DgramClient(net.loop, name, "dgram", sock.fileno(), remote=remote, coalesce=coalesce)
    client.info_str = info
    return client


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    local, remote = options.local, options.remote
    if isinstance(remote, Inet):
        group = inet(remote.host, remote.port)
        if ipaddress.ip_address(group[1][0].partition("%")[0]).is_multicast:
            if group[0] == socket.AF_INET6:
                raise OptionError(f"host address '{remote.host}' is not a valid IPv4 address", "multicast groups are IPv4's")
            return [_multicast(net, name, group, local)]
    if local is None:
        raise OptionError("dgram requires local= parameter", "only a multicast group as remote= goes without")
    if isinstance(local, Fd):
        if remote is not None:
            raise OptionError("don't set remote with local.fd", "connect the socket instead")
        return [_fd(net, name, local)]
    if remote is None:
        raise OptionError("type=inet or type=unix requires remote parameter", "it says where frames are sent")
    if type(local) is not type(remote):
        raise OptionError("remote and local types must be the same")
    if isinstance(local, Inet) and isinstance(remote, Inet):
        return [_inet(net, name, local, remote)]
    if isinstance(local, Unix) and isinstance(remote, Unix):
        return [_unix(net, name, local, remote)]
    raise OptionError("only support inet or fd type for local", "inet, unix or fd")
