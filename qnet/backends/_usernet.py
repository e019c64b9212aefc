"""The user netdev's options, and how their text becomes addresses and forwarding rules: defaults, checks, QEMU's texts."""

import ipaddress
import os
import re
import socket
import struct
from dataclasses import dataclass, fields
from typing import NoReturn

from qnet.errors import OptionError
from qnet.options import BOOL, INT64, STR, ListOf, opt

__all__ = [
    "Addresses", "HostForward", "Options", "addresses", "check_text", "inferred_prefixlen", "ipv4", "parse_guestfwd", "parse_hostfwd",
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Facts 2.2. Absent addresses follow from net and ipv6-prefix."""

    hostname: str | None = opt(STR, help="the guest's name, told by DHCP")
    restrict: bool = opt(BOOL, default=False, help="keep the guest from reaching the host and the outside; forwards still work")
    ipv4: bool | None = opt(BOOL, help="have IPv4; alone, ipv4=on means without IPv6")
    ipv6: bool | None = opt(BOOL, help="have IPv6; alone, ipv6=on means without IPv4")
    ip: str | None = opt(STR, help="old name of net, for an address whose mask is /24")
    net: str | None = opt(STR, help="network, ADDR[/MASK] with MASK as 255.255.255.0 or 24 (default 10.0.2.0/24)")
    host: str | None = opt(STR, help="the host as the guest sees it: the gateway (default x.x.x.2)")
    tftp: str | None = opt(STR, help="directory that the built-in TFTP server offers for reading")
    tftp_server_name: str | None = opt(STR, help="server name told by DHCP, option 66")
    bootfile: str | None = opt(STR, help="boot file told by DHCP")
    dhcpstart: str | None = opt(STR, help="first address that the DHCP server gives away (default x.x.x.15)")
    dns: str | None = opt(STR, help="name server as the guest sees it; its queries go to the host's (default x.x.x.3)")
    dnssearch: tuple[str, ...] = opt(ListOf(STR), help="domain to search, told by DHCP")
    domainname: str | None = opt(STR, help="the guest's domain, told by DHCP")
    ipv6_prefix: str | None = opt(STR, help="IPv6 network (default fec0::); in text, ipv6-net=PREFIX[/LEN] is both")
    ipv6_prefixlen: int | None = opt(INT64, help="its length (default 64)")
    ipv6_host: str | None = opt(STR, help="the host's IPv6 address as the guest sees it (default PREFIX::2)")
    ipv6_dns: str | None = opt(STR, help="the name server's IPv6 address as the guest sees it (default PREFIX::3)")
    smb: str | None = opt(STR, help="directory that the guest finds as \\\\smbserver\\qemu; needs smbd")
    smbserver: str | None = opt(STR, help="address of the SMB server (default x.x.x.4)")
    hostfwd: tuple[str, ...] = opt(
        ListOf(STR), help="[tcp|udp|unix]:[[hostaddr]:hostport|path]-[guestaddr]:guestport; binds 127.0.0.1 unless told otherwise"
    )
    guestfwd: tuple[str, ...] = opt(ListOf(STR), help="[tcp]:server:port-cmd:COMMAND, run for each connection")


# ------------------------------------------------------------------------------------------------------------------- addresses


@dataclass(frozen=True)
class Addresses:
    """What libslirp is told of the network; None: that family is off."""

    net: ipaddress.IPv4Address
    mask: ipaddress.IPv4Address
    host: ipaddress.IPv4Address
    dhcp: ipaddress.IPv4Address
    dns: ipaddress.IPv4Address
    prefix: ipaddress.IPv6Address
    prefixlen: int
    host6: ipaddress.IPv6Address
    dns6: ipaddress.IPv6Address
    in_enabled: bool
    in6_enabled: bool


def ipv4(text: str, complaint: str) -> ipaddress.IPv4Address:
    """An address as inet_aton reads it (10.0.2.2, 10.2, 0x0a000202)."""
    try:
        if re.fullmatch(r"[0-9A-Fa-fxX.]+", text):          # inet_aton itself stops at a blank
            return ipaddress.IPv4Address(socket.inet_aton(text))
    except OSError:
        pass
    raise OptionError(complaint, f"'{text}' is no IPv4 address")


def ipv6(text: str, complaint: str) -> ipaddress.IPv6Address:
    try:
        return ipaddress.IPv6Address(socket.inet_pton(socket.AF_INET6, text))
    except (OSError, ValueError):
        raise OptionError(complaint, f"'{text}' is no IPv6 address") from None


def inferred_prefixlen(address: int) -> int:
    """The mask of a network given without one: private and benchmark networks first, then classes A, B and C, then /28."""
    for base, length, result in (
        (0x00000000, 1, 8),                 # class A, and 10.0.0.0/8
        (0xAC100000, 12, 12),               # RFC 1918
        (0x80000000, 2, 16),                # class B
        (0xC0A80000, 16, 16),               # RFC 1918
        (0xC6120000, 15, 15),               # RFC 2544
        (0xC0000000, 3, 24),                # class C; QEMU tests for 224.0.0.0 and up instead (B5)
    ):
        if address >> 32 - length == base >> 32 - length:
            return result
    return 28


def _network(text: str) -> tuple[int, int]:
    """(network, mask) of ADDR[/MASK]."""
    name, slash, mask_text = text.partition("/")
    net = int(ipv4(name, "Failed to parse netmask"))
    if not slash:
        length = inferred_prefixlen(net)
    elif "/" in mask_text:
        raise OptionError("Failed to parse netmask (trailing chars)", f"'{text}': an address, '/' and a mask")
    elif "." in mask_text:
        mask = int(ipv4(mask_text, "Failed to parse netmask"))
        return net & mask, mask
    else:
        if re.fullmatch(r"[0-9]{1,3}", mask_text) is None or not 4 <= int(mask_text) <= 32:
            raise OptionError("Invalid netmask provided (must be in range 4-32)", f"got '{mask_text}'")
        length = int(mask_text)
    mask = 0xFFFFFFFF << 32 - length & 0xFFFFFFFF
    return net & mask, mask


def addresses(o: Options) -> Addresses:
    """Defaults and checks of the address options, with QEMU's texts."""
    have4 = o.ipv6 is not True if o.ipv4 is None else o.ipv4
    have6 = o.ipv4 is not True if o.ipv6 is None else o.ipv6
    if not have4 and (o.net or o.ip or o.host or o.dns):
        raise OptionError("IPv4 disabled but netmask/host/dns provided", "say ipv4=on too")
    if not have6 and (o.ipv6_prefix or o.ipv6_host or o.ipv6_dns):
        raise OptionError("IPv6 disabled but prefix/host6/dns6 provided", "say ipv6=on too")
    if not have4 and not have6:
        raise OptionError("IPv4 and IPv6 disabled", "turn one of them on")

    net, mask = _network(o.net if o.net is not None else f"{o.ip}/24" if o.ip is not None else "10.0.2.0/24")
    spell = f"{ipaddress.IPv4Address(net)}/{ipaddress.IPv4Address(mask)}"

    def inside(text: str | None, low: int, what: str, check: bool = True, name: str = "") -> int:
        if text is None:
            return net | low & ~mask
        address = int(ipv4(text, f"Failed to parse {what}"))
        if check and address & mask != net:
            raise OptionError(f"{name or what} doesn't belong to network", f"the network is {spell}")
        return address

    host = inside(o.host, 0x0202, "host", name="Host")
    dns = inside(o.dns, 0x0203, "DNS", check=o.restrict)
    dhcp = inside(o.dhcpstart, 0x020F, "DHCP start address", name="DHCP")
    if dns == host:
        raise OptionError("DNS must be different from host", f"both are {ipaddress.IPv4Address(host)}")
    if dhcp in (host, dns):
        raise OptionError("DHCP must be different from host and DNS", f"dhcpstart is {ipaddress.IPv4Address(dhcp)}")

    prefix = int(ipv6("fec0::" if o.ipv6_prefix is None else o.ipv6_prefix, "Failed to parse IPv6 prefix"))
    prefixlen = 64 if o.ipv6_prefixlen is None else o.ipv6_prefixlen
    if not 0 <= prefixlen <= 126:
        raise OptionError("Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)", f"got {prefixlen}")

    def inside6(text: str | None, low: int, what: str, check: bool, name: str) -> int:
        address = prefix | low if text is None else int(ipv6(text, f"Failed to parse IPv6 {what}"))
        if check and address >> 128 - prefixlen != prefix >> 128 - prefixlen:
            raise OptionError(f"IPv6 {name} doesn't belong to network", f"it is {ipaddress.IPv6Address(prefix)}/{prefixlen}")
        return address

    host6 = inside6(o.ipv6_host, 2, "host", True, "Host")
    dns6 = inside6(o.ipv6_dns, 3, "DNS", o.restrict, "DNS")
    v4, v6 = ipaddress.IPv4Address, ipaddress.IPv6Address
    return Addresses(v4(net), v4(mask), v4(host), v4(dhcp), v4(dns), v6(prefix), prefixlen, v6(host6), v6(dns6), have4, have6)


def check_text(o: Options) -> None:
    """The limits of the text options."""
    for what, text in (("domainname", o.domainname), ("vhostname", o.hostname), ("tftp-server-name", o.tftp_server_name)):
        if text is not None and len(os.fsencode(text)) > 255:
            raise OptionError(f"'{what}' parameter cannot exceed 255 bytes", "DHCP options hold no more")
    if o.domainname == "":
        raise OptionError("'domainname' parameter cannot be empty", "leave it away")
    if o.bootfile is not None and len(os.fsencode(o.bootfile)) > 127:
        raise OptionError("'bootfile' parameter cannot exceed 127 bytes", "the field of a BOOTP packet holds no more (RFC 951)")
    for f in fields(o):
        value = getattr(o, f.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and "\0" in text:
                raise OptionError(f"Parameter '{f.name.replace('_', '-')}' contains a NUL character", "C strings end there")


# -------------------------------------------------------------------------------------------------------------------- forwards


def _refuse(rule: str, reason: str, hint: str = "hostfwd=[tcp|udp|unix]:[[hostaddr]:hostport|path]-[guestaddr]:guestport") -> NoReturn:
    raise OptionError(f"Invalid host forwarding rule '{rule}' ({reason})", hint)


def _port(text: str, low: int) -> int | None:
    m = re.fullmatch(r"\s*\+?([0-9]{0,9})", text)
    number = int(m[1] or "0") if m is not None else -1
    return number if low <= number <= 65535 else None


def _split_address(text: str) -> tuple[str, str, str]:
    """ADDR:REST, where an IPv6 address stands in brackets: (address, ':' or '', rest)."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if bracket and rest.startswith(":"):
            return f"[{address}]", ":", rest[1:]
    return text.partition(":")


def _address(rule: str, text: str, reason: str) -> tuple[int, bytes]:
    """(family, packed) of an address as text; IPv6 in brackets."""
    try:
        if text.startswith("["):
            return socket.AF_INET6, ipv6(text[1:-1] or "::", reason).packed
        return socket.AF_INET, ipv4(text, reason).packed
    except OptionError:
        _refuse(rule, reason)


def _sockaddr(family: int, address: bytes, port: int) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    if family == socket.AF_INET6:
        return struct.pack("=H", family) + struct.pack("!HI16sI", port, 0, address, 0)
    return struct.pack("=H", family) + struct.pack("!H4s8x", port, address)


UDP, V6ONLY = 1, 2                          # libslirp.h: SLIRP_HOSTFWD_*


@dataclass(frozen=True)
class HostForward:
    """A rule as libslirp takes it."""

    host: bytes
    guest: bytes
    flags: int
    path: str = ""                          # of a unix rule


def parse_hostfwd(rule: str, with_guest: bool = True) -> HostForward:
    """[tcp|udp|unix]:[[hostaddr]:hostport|path]-[guestaddr]:guestport; without the guest's part as hostfwd_remove takes it."""
    protocol, colon, rest = rule.partition(":")
    if not colon:
        _refuse(rule, "No : separators")
    if protocol not in ("", "tcp", "udp", "unix"):
        _refuse(rule, "Bad protocol name", "tcp, udp or unix")
    flags = UDP if protocol == "udp" else 0
    family: int = socket.AF_INET
    guest_text, path = "", ""
    if protocol == "unix":
        path, dash, guest_text = rest.rpartition("-") if with_guest else (rest, "-", "")
        if not dash:
            _refuse(rule, "Bad host port separator")
        if not path or len(os.fsencode(path)) > 107 or "\0" in path:
            _refuse(rule, "Bad host path", "1 to 107 bytes")
        host = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(path))
    else:
        address, colon, rest = _split_address(rest)
        if not colon:
            _refuse(rule, "Missing : separator")
        port_text, dash, guest_text = rest.partition("-")
        # QEMU binds 0.0.0.0; a guest's port that the whole network reaches should be asked for.
        family, packed = _address(rule, address or "127.0.0.1", "Bad host address")
        if with_guest and not dash:
            _refuse(rule, "Bad host port separator")
        port = _port(port_text, 0)
        if port is None:
            _refuse(rule, "Bad host port", "0 to 65535, 0: any that is free")
        host = _sockaddr(family, packed, port)
        if family == socket.AF_INET6:
            flags |= V6ONLY
    if not with_guest:
        return HostForward(host, b"", flags, path)
    address, colon, port_text = _split_address(guest_text)
    if not colon:
        _refuse(rule, "Missing guest address")
    guest_family, packed = _address(rule, address or ("[::]" if family == socket.AF_INET6 else "0.0.0.0"), "Bad guest address")
    guest_port = _port(port_text, 1)
    if guest_port is None:
        _refuse(rule, "Bad guest port", "1 to 65535")
    return HostForward(host, _sockaddr(guest_family, packed, guest_port), flags, path)


def parse_guestfwd(rule: str) -> tuple[int, int, str]:
    """[tcp]:server:port[-what]: (address, 0 if it was left out, port, what)."""
    m = re.fullmatch(r"(?:tcp)?:([^:]*):([^-]*)(?:-(.*))?", rule, re.DOTALL)
    port = _port(m[2], 1) if m is not None else None
    try:
        address = ipv4(m[1] or "0.0.0.0", "") if m is not None else None
    except OptionError:
        address = None
    if m is None or port is None or address is None:
        raise OptionError(f"Invalid guest forwarding rule '{rule}'", "guestfwd=[tcp]:server:port-cmd:COMMAND, an IPv4 address")
    return int(address), port, m[3] or ""
