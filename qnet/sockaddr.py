"""Socket addresses as QEMU's options have them (addr.type=inet, unix, vsock, fd), and what sockets are made of."""

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qnet.errors import HostError, OptionError
from qnet.options import BOOL, STR, UINT16, Union, opt

__all__ = ["SOCKET_ADDRESS", "Fd", "Inet", "Place", "SocketAddress", "Unix", "Vsock", "describe", "fd_number", "host_error", "is_name",
           "listen_inet", "listen_unix", "resolve", "stream_socket", "uri"]  # fmt: skip

SUN_PATH = 108                          # bytes of struct sockaddr_un's path, see unix(7)
BACKLOG = 1                             # one connection counts; others wait there


@dataclass(frozen=True, kw_only=True)
class Inet:
    host: str = opt(STR, required=True, help="name or address; empty: any address, to listen on")
    port: str = opt(STR, required=True, help="number or name of the port; 0: any that is free, to listen on")
    numeric: bool = opt(BOOL, default=False, help="host is an address: no name is looked up")
    to: int | None = opt(UINT16, help="listen on the first free port from port to this one")
    ipv4: bool | None = opt(BOOL, help="use IPv4; only IPv4 unless ipv6 is on too")
    ipv6: bool | None = opt(BOOL, help="use IPv6; only IPv6 unless ipv4 is on too")
    keep_alive: bool = opt(BOOL, default=False, help="let TCP notice a dead peer while nothing is sent (SO_KEEPALIVE)")
    mptcp: bool = opt(BOOL, default=False, help="multipath TCP")


@dataclass(frozen=True, kw_only=True)
class Unix:
    path: str = opt(STR, required=True, help="path of the socket")
    abstract: bool = opt(BOOL, default=False, help="a name in Linux's abstract namespace, no file")
    tight: bool = opt(BOOL, default=True, help="abstract: the name is as long as path; off: filled up with zeros")


@dataclass(frozen=True, kw_only=True)
class Vsock:
    cid: str = opt(STR, required=True, help="context id of the host or guest")
    port: str = opt(STR, required=True, help="port")


@dataclass(frozen=True, kw_only=True)
class Fd:
    str: str = opt(STR, required=True, help="number of a socket's file descriptor")


SocketAddress = Inet | Unix | Vsock | Fd
SOCKET_ADDRESS = Union("type", inet=Inet, unix=Unix, vsock=Vsock, fd=Fd)


class Place(NamedTuple):
    """What socket() and then bind() or connect() take."""

    family: int
    protocol: int
    address: Any
    v6only: bool = False


def fd_number(text: str) -> int:
    """The file descriptor that `text` names; OptionError when it is not a number."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise OptionError(f"File descriptor named '{text}' has not been found", "give its number")
    return int(text)


def _unix(addr: Unix) -> Place:
    path = os.fsencode(addr.path)
    most = SUN_PATH - 1 if addr.abstract else SUN_PATH
    if len(path) > most or (len(path) == most and not addr.abstract):
        raise OptionError(f"UNIX socket path '{addr.path}' is too long", f"Path must be less than {most} bytes")
    if b"\0" in path or not path:
        raise OptionError(f"UNIX socket path '{addr.path}' is not valid", "it needs a character, and no NUL")
    if addr.abstract:
        path = b"\0" + (path if addr.tight else path.ljust(SUN_PATH - 1, b"\0"))
    return Place(socket.AF_UNIX, 0, path)


def is_name(addr: SocketAddress) -> bool:
    """Whether resolve() may have to ask a server, and wait."""
    if not isinstance(addr, Inet) or addr.numeric or not addr.host:
        return False
    try:
        socket.getaddrinfo(addr.host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return True
    return False


def _family(addr: Inet) -> int:
    if addr.ipv4 is False and addr.ipv6 is False:
        raise OptionError("Cannot disable IPv4 and IPv6 at same time", "ipv4=on or ipv6=on")
    if addr.ipv4 is addr.ipv6:
        return socket.AF_UNSPEC
    return socket.AF_INET6 if addr.ipv6 or addr.ipv4 is False else socket.AF_INET


def _inet(addr: Inet, passive: bool) -> list[Place]:
    family = _family(addr)
    where = f"{addr.host}:{addr.port}"
    if addr.port.isascii() and addr.port.isdigit() and int(addr.port[:9]) > 65535:
        raise OptionError(f"address resolution failed for {where}: Servname not supported for ai_socktype", "ports end at 65535")
    if not addr.host and not passive:
        raise OptionError(f"address resolution failed for {where}: Name or service not known", "host= is whom to connect to")
    flags = (socket.AI_NUMERICHOST if addr.numeric else 0) | (socket.AI_PASSIVE if passive else socket.AI_V4MAPPED)
    try:
        found = socket.getaddrinfo(addr.host or None, addr.port or "0", family, socket.SOCK_STREAM, 0, flags)
    except (socket.gaierror, UnicodeError) as e:
        text = e.strerror if isinstance(e, socket.gaierror) else "Name or service not known"
        raise OptionError(f"address resolution failed for {where}: {text}") from None
    dual = addr.ipv4 is addr.ipv6
    protocol = socket.IPPROTO_MPTCP if addr.mptcp else 0
    return [Place(family, protocol, address, v6only=family == socket.AF_INET6 and not dual) for family, _, _, _, address in found]


def resolve(addr: Inet | Unix, *, passive: bool) -> list[Place]:
    """Where to listen (passive) or to connect to, the first choice first. OptionError with QEMU's text."""
    return [_unix(addr)] if isinstance(addr, Unix) else _inet(addr, passive)


def describe(family: int, address: Any) -> dict[str, Any]:
    """An address of a socket as QMP's SocketAddress."""
    if family == socket.AF_UNIX:
        name = os.fsencode(address) if isinstance(address, str) else address
        if name[:1] == b"\0":
            return {"type": "unix", "path": os.fsdecode(name[1:].rstrip(b"\0")), "abstract": True, "tight": name[-1:] != b"\0"}
        return {"type": "unix", "path": os.fsdecode(name)}
    version = "ipv6" if family == socket.AF_INET6 else "ipv4"
    return {"type": "inet", "host": address[0], "port": str(address[1]), version: True}


def uri(described: Mapping[str, Any]) -> str:
    """unix:PATH or tcp:HOST:PORT, as `info network` shows it."""
    if described["type"] == "unix":
        return f"unix:{described['path']}"
    return f"tcp:{described['host']}:{described['port']}"


# -------------------------------------------------------------------------------------------------------------------- sockets


def host_error(e: OSError, doing: str, hint: str = "") -> HostError:
    return HostError(e.errno or errno.EIO, doing, hint)


def stream_socket(fd: int, *, listening: bool) -> socket.socket:
    """A duplicate of the stream socket `fd`, which must be connected or must listen; OptionError or HostError."""
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        raise OptionError(f"File descriptor '{fd}' is not a socket", "an open stream socket, or a listening one with server=on") from None
    try:
        if sock.type != socket.SOCK_STREAM:
            raise OptionError(f"File descriptor '{fd}' is not a stream socket", "datagram sockets go with dgram")
        if bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) != listening:
            raise OptionError(f"File descriptor '{fd}' is {'not ' if listening else ''}listening", "server=on takes one that listens")
        if not listening:
            sock.getpeername()
    except OptionError:
        sock.close()
        raise
    except OSError as e:
        sock.close()
        raise host_error(e, f"File descriptor '{fd}'", "connect it first") from None
    return sock


def _listen(place: Place, address: Any) -> socket.socket:
    sock = socket.socket(place.family, socket.SOCK_STREAM, place.protocol)
    try:
        if place.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, place.v6only)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_inet(addr: Inet, places: Sequence[Place]) -> socket.socket:
    """A socket that listens on the first of these places, and of the ports from port to `to`, that is free. HostError."""
    worst = OSError(errno.EADDRNOTAVAIL, "")
    for place in places:
        first = place.address[1]
        for port in range(first, max(first, addr.to or 0) + 1):
            try:
                return _listen(place, (place.address[0], port, *place.address[2:]))
            except OSError as e:
                worst = e
                if e.errno != errno.EADDRINUSE:
                    break
    if worst.errno == errno.EADDRINUSE:
        raise host_error(worst, "Failed to find an available port", "port=0 takes any that is free, to= gives a range")
    raise host_error(worst, "Failed to bind socket", "ports below 1024 need CAP_NET_BIND_SERVICE" if worst.errno == errno.EACCES else "")


def _is_stale(path: bytes) -> bool:
    """Whether this is a socket that nobody listens to: what a killed process leaves behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return path[:1] != b"\0" and stat.S_ISSOCK(os.lstat(path).st_mode)
        except OSError:
            return False
        return False


def listen_unix(place: Place) -> socket.socket:
    """A socket that listens there. A socket's file that nobody listens to is replaced; QEMU replaces any file. HostError."""
    try:
        try:
            return _listen(place, place.address)
        except OSError as e:
            if e.errno != errno.EADDRINUSE or not _is_stale(place.address):
                raise
            os.unlink(place.address)
            return _listen(place, place.address)
    except OSError as e:
        hint = "somebody listens there, or it is no socket" if e.errno == errno.EADDRINUSE else ""
        raise host_error(e, f"Failed to bind socket to {os.fsdecode(place.address.strip(bytes(1)))}", hint) from None
