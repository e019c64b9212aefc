"""netmap: an interface or a port of a VALE switch by netmap(4), for hosts whose kernel has it."""

import errno
import fcntl
import mmap
import os
import re
import struct
from dataclasses import dataclass
from typing import Any

from qnet._client import NetClient
from qnet.backends._netmap import NetmapPort
from qnet.errors import check
from qnet.options import STR, opt
from qnet.rooms import Network

__all__ = ["Device", "Netmap", "Options", "open"]

# net/netmap.h
NETMAP_API = 11
NIOCREGIF = 0xC03C6992              # _IOWR('i', 146, struct nmreq)
NMREQ = struct.Struct("=16s5I6H3I")
NETMAP_BDG_VNET_HDR = 5
NETMAP_NO_TX_POLL = 0x1000
NR_REG_ALL_NIC, NR_REG_SW, NR_REG_NIC_SW, NR_REG_ONE_NIC, NR_REG_PIPE_MASTER, NR_REG_PIPE_SLAVE = 1, 2, 3, 4, 5, 6
NR_ACCEPT_VNET_HDR = 0x8000

SUFFIXES = {"": NR_REG_ALL_NIC, "^": NR_REG_SW, "*": NR_REG_NIC_SW, "-": NR_REG_ONE_NIC, "{": NR_REG_PIPE_MASTER, "}": NR_REG_PIPE_SLAVE}
HINTS = {
    errno.ENOENT: "netmap's kernel module is not loaded here (modprobe netmap), or devname= is wrong",
    errno.ENXIO: "no interface of this name that netmap can have; a port of a VALE switch is valeSWITCH:PORT",
    errno.EACCES: "it needs root, or rights on the device",
    errno.EBUSY: "another program has the port",
    errno.EINVAL: "NAME, netmap:NAME or valeSWITCH:PORT, at most 15 bytes; behind it -N (one ring), ^ (the host's), *, {N or }N (pipes)",
    errno.ENODEV: "the device does not do what netmap(4) says",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    ifname: str = opt(STR, required=True, help="interface, or port of a VALE switch: valeSWITCH:PORT")
    devname: str = opt(STR, default="/dev/netmap", help="netmap's device")


class Device:
    """The calls by which a port is opened. Tests put another one in its place: no kernel of theirs has netmap."""

    sync = 0                        # address of a function in place of ioctl(2) for NIOCTXSYNC and NIOCRXSYNC

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, number: int, request: bytearray) -> None:
        fcntl.ioctl(fd, number, request)

    def mmap(self, fd: int, size: int) -> Any:
        return mmap.mmap(fd, size)


device = Device()


class Netmap(NetmapPort):
    """`vnet_hdr_len`: bytes of the virtio-net header by which a VALE switch hands over offloads; 0: none."""

    vnet_hdr_len = 0


def _request(name: str, ring: int, flags: int, cmd: int = 0, arg1: int = 0) -> bytearray:
    return bytearray(NMREQ.pack(os.fsencode(name), NETMAP_API, 0, 0, 0, 0, 0, 0, ring, cmd, arg1, 0, 0, flags, 0))


def _header(fd: int, name: str) -> int:
    """Ask for a virtio-net header on the port; its length, 0: it has none."""
    for length in (12, 10) if name.startswith("vale") else ():
        try:
            device.ioctl(fd, NIOCREGIF, _request(name, 0, 0, NETMAP_BDG_VNET_HDR, length))
        except OSError:
            continue
        return length
    return 0


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    doing = f"Failed to nm_open() {options.ifname}"
    m = re.fullmatch(r"(?:netmap:)?([^{}^*-]+(?:-[^{}^*-]*[^{}^*0-9-][^{}^*-]*)*)(?:([-{}])([0-9]{1,3})|([*^]?))", options.ifname)
    if m is None or len(os.fsencode(m[1])) > 15 or "\0" in options.ifname:
        check(-errno.EINVAL, doing, HINTS)
    assert m is not None
    ring, mode = int(m[3] or 0), SUFFIXES[m[2] or m[4] or ""]
    try:
        fd = device.open(options.devname)
        try:
            request = _request(m[1], ring | NETMAP_NO_TX_POLL, mode | NR_ACCEPT_VNET_HDR)
            device.ioctl(fd, NIOCREGIF, request)
            _, _, offset, size = NMREQ.unpack(request)[:4]
            header = _header(fd, m[1])
            client = Netmap(net.loop, name, "netmap", fd, device.mmap(fd, size), offset, header, device.sync)
            client.vnet_hdr_len = header
        finally:
            os.close(fd)
    except OSError as e:
        check(-(e.errno or errno.EIO), doing, HINTS)
        raise
    except ValueError:                                      # a size of 0, or rings that are none
        check(-errno.ENODEV, doing, HINTS)
        raise
    return [client]
