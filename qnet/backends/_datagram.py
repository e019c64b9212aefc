"""Datagram sockets for dgram, socket and l2tpv3: addresses as those options say them, and sockets bound, joined or given."""

import os
import re
import socket
import struct

from qnet.errors import HostError, OptionError
from qnet.sockaddr import fd_number

__all__ = ["Where", "given_socket", "inet", "inet_text", "multicast_socket", "port_number", "sockaddr", "udp_socket"]

Where = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]       # family, and address as Python's sockets have it


def port_number(text: str) -> int:
    """OptionError with QEMU's text when it is none. (QEMU takes what begins with a digit, and numbers modulo 65536.)"""
    if re.fullmatch("[0-9]{1,6}", text) is None or int(text) > 0xFFFF:
        raise OptionError(f"port number '{text}' is invalid", "a number up to 65535")
    return int(text)


def inet(host: str, port: str) -> Where:
    """IPv4, as QEMU's dgram and socket; or an IPv6 address, which they refuse. OptionError with QEMU's text."""
    if ":" in host:
        number = port_number(port)
        try:
            [(_, _, _, _, address), *_] = socket.getaddrinfo(host, number, socket.AF_INET6, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)
        except OSError:
            raise OptionError(f"can't resolve host address '{host}'", "not an IPv6 address") from None
        return socket.AF_INET6, (str(address[0]), number, *(int(x) for x in address[2:]))  # type: ignore[return-value]
    if not host:
        ip = "0.0.0.0"
    elif host[0].isdigit():
        try:
            ip = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            raise OptionError(f"host address '{host}' is not a valid IPv4 address", "such as 192.0.2.1") from None
    else:
        try:
            ip = socket.gethostbyname(host)
        except OSError as e:
            raise OptionError(f"can't resolve host address '{host}'", str(e.strerror or e)) from None
    return socket.AF_INET, (ip, port_number(port))


def inet_text(where: Where) -> str:
    """192.0.2.1:7, [fec0::1]:7"""
    family, address = where
    return f"[{address[0]}]:{address[1]}" if family == socket.AF_INET6 else f"{address[0]}:{address[1]}"


def sockaddr(where: Where | bytes) -> bytes:
    """struct sockaddr of an address, or of a path, or of an abstract name behind its zero."""
    if isinstance(where, bytes):
        return struct.pack("=H", socket.AF_UNIX) + (where if where[:1] == b"\0" else where + b"\0")
    family, address = where
    ip = socket.inet_pton(family, address[0].partition("%")[0])
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack("!H4s8x", address[1], ip)
    scope = address[3] if len(address) == 4 else 0
    return struct.pack("=H", family) + struct.pack("!HI16s", address[1], 0, ip) + struct.pack("=I", scope)


def given_socket(name: str, text: str) -> tuple[int, socket.socket]:
    """The socket that an option names by number, and its duplicate, for the caller to close. `name` is the netdev's."""
    fd = fd_number(text)
    try:
        copy = os.dup(fd)
    except OSError as e:
        raise HostError(e.errno or 0, f"{name}: Can't use file descriptor {fd}") from None
    try:
        return fd, socket.socket(fileno=copy)
    except OSError as e:
        os.close(copy)
        raise HostError(e.errno or 0, "Unable to query local socket address", f"file descriptor {fd} is no socket") from None


def udp_socket(ours: Where) -> socket.socket:
    """A socket bound to an address (2.5, 2.7). HostError with QEMU's text."""
    sock = socket.socket(ours[0], socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(ours[1])
        except OSError as e:
            raise HostError(e.errno or 0, f"can't bind ip={ours[1][0]} to socket", "an address of this host, and a free port") from None
    except BaseException:
        sock.close()
        raise
    return sock


def multicast_socket(group: Where, interface: str | None) -> socket.socket:
    """A socket that is a member of the group, and whose own datagrams come back to this host; to it, too (2.5).

    interface: IPv4 address of the interface that the group is joined on and sent to; None: where the routes lead. OptionError and
    HostError with QEMU's texts.
    """
    address, port = group[1][:2]
    if not 0xE0 <= (first := socket.inet_aton(address))[0] < 0xF0:
        raise OptionError(
            f"specified mcastaddr {address} (0x{first.hex()}) does not contain a multicast address", "224.0.0.0 to 239.255.255.255"
        )
    sock = udp_socket((group[0], (address, port)))
    try:
        where = socket.inet_aton(interface or "0.0.0.0")
        try:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, first + where)
        except OSError as e:
            hint = "no interface has the local address" if interface else "no route leads to the group"
            raise HostError(e.errno or 0, f"can't add socket to multicast group {address}", hint) from None
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        if interface is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, where)
    except BaseException:
        sock.close()
        raise
    return sock
