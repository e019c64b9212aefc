"""libslirp, looked up when the first user netdev is opened: cffi finds its functions and lays out its configuration.

Nothing is called through cffi but slirp_version_string; the rest is called by address from _slirp, with the network's lock.
"""

import contextlib
import functools
import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cffi  # type: ignore[import-untyped]

from qnet.backends._slirp import FUNCTIONS
from qnet.backends._usernet import Addresses, Options
from qnet.errors import Unavailable

__all__ = ["Library", "library", "slirp_config"]

log = logging.getLogger("qnet.user")

CDEF = """
struct in_addr { uint32_t s_addr; };
struct in6_addr { uint32_t s6_addr32[4]; };
typedef struct SlirpConfig {
    uint32_t version;
    int restricted;
    bool in_enabled;
    struct in_addr vnetwork, vnetmask, vhost;
    bool in6_enabled;
    struct in6_addr vprefix_addr6;
    uint8_t vprefix_len;
    struct in6_addr vhost6;
    const char *vhostname, *tftp_server_name, *tftp_path, *bootfile;
    struct in_addr vdhcp_start, vnameserver;
    struct in6_addr vnameserver6;
    const char **vdnssearch;
    const char *vdomainname;
    size_t if_mtu, if_mru;
    bool disable_host_loopback, enable_emu;
    void *outbound_addr, *outbound_addr6;
    bool disable_dns, disable_dhcp;
} SlirpConfig;
const char *slirp_version_string(void);
""" + "".join(f"void {name}(void);\n" for name in FUNCTIONS)
CONFIG_VERSION = 4                          # of libslirp 4.7; newer ones take older versions
SONAME = "libslirp.so.0"

ffi = cffi.FFI()
ffi.cdef(CDEF)


@dataclass(frozen=True)
class Library:
    """libslirp: the open library, its version, and its functions' addresses by name."""

    lib: Any
    version: str
    functions: dict[str, int]


@functools.cache
def library() -> Library:
    """Open libslirp once. Unavailable, with the package's name, when it is missing or older than 4.7."""
    missing = "network backend 'user' is not compiled into this binary"
    try:
        lib = ffi.dlopen(SONAME)
    except OSError as e:
        raise Unavailable(missing, f"it needs libslirp; apt install libslirp0 ({e})") from None
    try:
        version = os.fsdecode(ffi.string(lib.slirp_version_string()))
        functions = {name: int(ffi.cast("uintptr_t", getattr(lib, name))) for name in FUNCTIONS}
    except AttributeError as e:
        raise Unavailable(missing, f"it needs libslirp 4.7 or newer ({e})") from None
    return Library(lib, version, functions)


@contextlib.contextmanager
def slirp_config(o: Options, a: Addresses) -> Iterator[int]:
    """Address of a SlirpConfig; it and what it points to exist inside the with block."""
    keep: list[Any] = []

    def text(value: str | None) -> Any:
        if value is None:
            return ffi.NULL
        keep.append(ffi.new("char[]", os.fsencode(value)))
        return keep[-1]

    domains = []
    for domain in o.dnssearch:
        if all(0 < len(os.fsencode(label)) < 64 for label in domain.split(".")):
            domains.append(domain)
        else:
            log.warning("failed to parse domain name '%s'", domain)
    c = ffi.new("SlirpConfig *")
    c.version = CONFIG_VERSION
    c.restricted = o.restrict
    c.in_enabled, c.in6_enabled = a.in_enabled, a.in6_enabled
    for name, v4 in (("vnetwork", a.net), ("vnetmask", a.mask), ("vhost", a.host), ("vdhcp_start", a.dhcp), ("vnameserver", a.dns)):
        getattr(c, name).s_addr = struct.unpack("=I", v4.packed)[0]
    for name, v6 in (("vprefix_addr6", a.prefix), ("vhost6", a.host6), ("vnameserver6", a.dns6)):
        getattr(c, name).s6_addr32 = struct.unpack("=4I", v6.packed)
    c.vprefix_len = a.prefixlen
    c.vhostname, c.vdomainname = text(o.hostname), text(o.domainname)
    c.tftp_path, c.tftp_server_name, c.bootfile = text(o.tftp), text(o.tftp_server_name), text(o.bootfile)
    if domains:
        keep.append(ffi.new("const char *[]", [*(text(domain) for domain in domains), ffi.NULL]))
        c.vdnssearch = keep[-1]
    yield int(ffi.cast("uintptr_t", c))
