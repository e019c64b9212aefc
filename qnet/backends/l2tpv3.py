"""l2tpv3: frames in a static L2TPv3 pseudowire (RFC 3931), over UDP or as IP protocol 115, to a router, a host or another network."""

import errno
import os
import socket
from dataclasses import dataclass

from qnet._client import NetClient
from qnet.backends._datagram import Where, sockaddr
from qnet.backends._l2tpv3 import L2tpClient
from qnet.errors import OptionError
from qnet.options import BOOL, STR, UINT32, UINT64, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]

IPPROTO_L2TP = 115


@dataclass(frozen=True, kw_only=True)
class Options:
    src: str = opt(STR, required=True, help="source address: one of this host")
    dst: str = opt(STR, required=True, help="destination address: the other end")
    srcport: str | None = opt(STR, help="source port; with udp=on")
    dstport: str | None = opt(STR, help="destination port; with udp=on")
    ipv6: bool = opt(BOOL, default=False, help="addresses are IPv6")
    udp: bool = opt(BOOL, default=False, help="over UDP; else it is IP protocol 115, which needs CAP_NET_RAW")
    cookie64: bool = opt(BOOL, default=False, help="cookies have 64 bits, not 32")
    counter: bool = opt(BOOL, default=False, help="number the frames")
    pincounter: bool = opt(BOOL, default=False, help="with counter=on: the number stays 0, for peers that go by it wrongly")
    txcookie: int | None = opt(UINT64, help="cookie of what is sent")
    rxcookie: int | None = opt(UINT64, help="cookie of what is received")
    txsession: int = opt(UINT32, required=True, help="session of what is sent")
    rxsession: int | None = opt(UINT32, help="session of what is received; txsession when not given")
    offset: int = opt(UINT32, default=0, help="bytes between header and frame, less than 256")


def _resolve(host: str, port: str | None, text: str, options: Options) -> Where:
    """The first address; OptionError with QEMU's text."""
    family = socket.AF_INET6 if options.ipv6 else socket.AF_INET
    kind, protocol = (socket.SOCK_DGRAM, socket.IPPROTO_UDP) if options.udp else (socket.SOCK_RAW, IPPROTO_L2TP)
    try:
        if port is not None and port.isascii() and port.isdigit() and int(port[:9]) > 0xFFFF:
            raise socket.gaierror(socket.EAI_SERVICE, "Servname not supported for ai_socktype")
        [(_, _, _, _, address), *_] = socket.getaddrinfo(host, port if options.udp else None, family, kind, protocol)
    except (socket.gaierror, UnicodeError) as e:
        why = e.strerror if isinstance(e, socket.gaierror) else "Name or service not known"
        raise OptionError(f"{text} = {why}", "ipv6=on takes IPv6 addresses, else they are IPv4") from None
    return family, address  # type: ignore[return-value]


def _socket(ours: Where, options: Options) -> socket.socket:
    try:
        if options.udp:
            sock = socket.socket(ours[0], socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        else:
            sock = socket.socket(ours[0], socket.SOCK_RAW, IPPROTO_L2TP)
    except OSError as e:
        hint = "raw IP needs CAP_NET_RAW; udp=on does not" if e.errno == errno.EPERM else os.strerror(e.errno or 0)
        raise OptionError(f"socket creation failed, errno = {e.errno}", hint) from None
    try:
        sock.bind(ours[1])
    except OSError as e:
        sock.close()
        raise OptionError(f"could not bind socket err={e.errno}", f"{os.strerror(e.errno or 0)}; src= is an address of this host") from None
    return sock


def _key(session: int, cookie: int | None, options: Options) -> bytes:
    """As it is on the wire. Of a cookie that has too many bits the lower ones count (B1)."""
    if cookie is None:
        return session.to_bytes(4, "big")
    size = 8 if options.cookie64 else 4
    return session.to_bytes(4, "big") + (cookie & (1 << 8 * size) - 1).to_bytes(size, "big")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    if options.offset > 255:
        raise OptionError("offset must be less than 256 bytes", "0 to 255")
    if (options.txcookie is None) != (options.rxcookie is None):
        raise OptionError("require both 'rxcookie' and 'txcookie' or neither", "the other end has them the other way round")
    if options.udp and (options.srcport is None or options.dstport is None):
        raise OptionError("need both src and dst port for udp", "srcport= and dstport=")
    ours = _resolve(options.src, options.srcport, "could not resolve src, errno", options)
    with _socket(ours, options) as sock:
        theirs = _resolve(options.dst, options.dstport, "could not resolve dst, error", options)
        client = L2tpClient(
            net.loop,
            name,
            sock.fileno(),
            sockaddr(theirs),
            tx=_key(options.txsession, options.txcookie, options),
            rx=_key(options.txsession if options.rxsession is None else options.rxsession, options.rxcookie, options),
            udp=options.udp,
            ip_header=not options.udp and not options.ipv6,
            counter=options.counter,
            pinned=options.pincounter,
            offset=options.offset,
        )
    client.info_str = "l2tpv3: connected"
    return [client]
