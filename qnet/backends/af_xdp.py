"""af-xdp: queues of a network interface, taken from the kernel by AF_XDP sockets.

A small XDP program redirects what arrives on those queues to the sockets, and lets everything else pass. It hangs on a bpf link that
belongs to this process: the kernel takes it off the interface when the last queue goes, or the process, however it ends.
"""

import errno
import os
import platform
import socket
import struct
import sys
import time
import weakref
from dataclasses import dataclass
from typing import Any

import cffi  # type: ignore[import-untyped]

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._afxdp import XskClient, bpf
from qnet.errors import OptionError, Unavailable, check
from qnet.options import BOOL, INT32, INT64, STR, Choice, opt
from qnet.rooms import Network

__all__ = ["AfXdp", "Options", "open"]

# linux/bpf.h
BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD, BPF_OBJ_GET, BPF_LINK_CREATE = 0, 2, 5, 7, 28
BPF_PROG_TYPE_XDP, BPF_MAP_TYPE_XSKMAP, BPF_XDP = 6, 17, 37
BPF_FUNC_redirect_map, XDP_PASS = 51, 2
# linux/if_link.h, linux/if_xdp.h
XDP_FLAGS = {"native": 1 << 2, "skb": 1 << 1}
XDP_COPY, XDP_USE_NEED_WAKEUP = 1 << 1, 1 << 3

PATIENCE = 1.0                      # seconds to wait for a queue to become free
MAP_SIZE = 1024                     # queues of an interface that the program knows
TAKEN = "the queue has a socket already, or the interface another program's XDP program: ip link show; inhibit=on goes with it"
HINTS = {
    errno.EPERM: "it needs CAP_NET_RAW, and without inhibit=on CAP_NET_ADMIN and CAP_BPF too",
    errno.ENOBUFS: "16 MiB for each queue stay in memory: raise the limit (ulimit -l), or CAP_IPC_LOCK",
    errno.EAFNOSUPPORT: "this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)",
    errno.ENOTSOCK: "sock-fds= takes AF_XDP sockets",
    errno.ENOPROTOOPT: "sock-fds= takes AF_XDP sockets",
    errno.EBUSY: TAKEN,
    errno.EEXIST: TAKEN,
    errno.EINVAL: "is there such a queue? ethtool -l tells; veth has one for each numrxqueues",
    errno.EOPNOTSUPP: "mode=skb works on every interface",
    errno.ENOENT: "a pinned map lies in a bpf file system: bpftool map pin",
}

ffi = cffi.FFI()


@dataclass(frozen=True, kw_only=True)
class Options:
    ifname: str = opt(STR, required=True, help="name of the interface")
    mode: str | None = opt(Choice("native", "skb"), help="of the XDP program; native, and if the driver has none, skb")
    force_copy: bool = opt(BOOL, default=False, help="copy frames even if the driver could do without")
    queues: int = opt(INT64, default=1, help="number of queues")
    start_queue: int = opt(INT64, default=0, help="the first of them")
    inhibit: bool = opt(BOOL, default=False, help="load no XDP program: somebody else did")
    sock_fds: str | None = opt(STR, help="AF_XDP sockets, one for each queue, that are in that program's map: 3:4:5")
    map_path: str | None = opt(STR, help="path of that program's pinned map, which the sockets are put into")
    map_start_index: int | None = opt(INT32, help="where in that map, for the first queue; 0 when not given")


def _attr(layout: str, *values: int) -> bytearray:
    return bytearray(struct.pack("=" + layout, *values).ljust(128, b"\0"))


def _address(data: Any) -> int:
    return int(ffi.cast("uintptr_t", data))


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = dst | src << 4 if sys.byteorder == "little" else src | dst << 4
    return struct.pack("=BBhi", code, registers, offset, value)


def put_into_map(map_fd: int, index: int, fd: int) -> int:
    """0 or -errno."""
    key, value = ffi.new("uint32_t *", index), ffi.new("uint32_t *", fd)
    return bpf(BPF_MAP_UPDATE_ELEM, _attr("IIQQQ", map_fd, 0, _address(key), _address(value), 0))


class Program:
    """An XDP program on an interface and its map: a frame of a queue whose socket is in the map goes there, any other to the kernel."""

    def __init__(self, ifindex: int, mode: str | None, doing: str) -> None:
        self._fds: list[int] = []
        self._finalizer = weakref.finalize(self, _close_all, self._fds)
        try:
            self.map = self._keep(bpf(BPF_MAP_CREATE, _attr("IIII", BPF_MAP_TYPE_XSKMAP, 4, 4, MAP_SIZE)), doing)
            program = self._keep(self._load(), doing)
            for flags in [XDP_FLAGS[mode]] if mode else XDP_FLAGS.values():
                link = bpf(BPF_LINK_CREATE, _attr("IIII", program, ifindex, BPF_XDP, flags))
                if link >= 0 or link in (-errno.EBUSY, -errno.EEXIST):
                    break
            self._keep(link, doing)
        except BaseException:
            self.close()
            raise
        self.native = flags == XDP_FLAGS["native"]

    def _keep(self, fd: int, doing: str) -> int:
        self._fds.append(check(fd, doing, HINTS))
        return fd

    def _load(self) -> int:
        code = ffi.from_buffer(
            _instruction(0x61, dst=2, src=1, offset=16)                             # r2 = ctx->rx_queue_index
            + _instruction(0x18, dst=1, src=1, value=self.map) + _instruction(0)    # r1 = the map
            + _instruction(0xB7, dst=3, value=XDP_PASS)                             # r3 = what to do without a socket
            + _instruction(0x85, value=BPF_FUNC_redirect_map)                       # r0 = bpf_redirect_map(r1, r2, r3)
            + _instruction(0x95)                                                    # return r0
        )
        license = ffi.new("char[]", b"MIT")
        attr = _attr("IIQQ", BPF_PROG_TYPE_XDP, len(code) // 8, _address(code), _address(license))
        attr[48:57] = b"qnet_xsk\0"                                                 # prog_name
        return bpf(BPF_PROG_LOAD, attr)

    def close(self) -> None:
        self._finalizer()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


# (network namespace, interface) -> its program, as long as a client uses it: netdevs of one process may share an interface.
programs: weakref.WeakValueDictionary[tuple[int, int], Program] = weakref.WeakValueDictionary()


def _program(ifindex: int, mode: str | None, doing: str) -> Program:
    key = os.stat("/proc/thread-self/ns/net").st_ino, ifindex
    program = programs.get(key)
    if program is None:
        programs[key] = program = Program(ifindex, mode, doing)
    return program


class AfXdp(XskClient):
    """A queue of an interface; several of one netdev have its name."""

    def __init__(self, loop: Loop, name: str, fd: int = -1) -> None:
        super().__init__(loop, name, "af-xdp", fd)
        self._program: Program | None = None

    def close(self) -> None:
        """As any client's; the last queue takes the XDP program off the interface."""
        super().close()
        self._program = None


def _check(options: Options) -> int:
    """The interface's index, or OptionError."""
    try:
        ifindex = socket.if_nametoindex(options.ifname)
    except (OSError, ValueError) as e:
        code = getattr(e, "errno", None) or errno.ENODEV
        raise OptionError(
            f"failed to get ifindex for '{options.ifname}': {os.strerror(code)}", "ip link shows the interfaces of this network namespace"
        ) from None
    if options.queues < 1:
        raise OptionError(f"invalid number of queues ({options.queues}) for '{options.ifname}'", "1 or more")
    if options.inhibit and options.sock_fds is None and options.map_path is None:
        raise OptionError("'inhibit=on' requires 'sock-fds' or 'map-path'", "how frames get from the XDP program to the netdev")
    if not options.inhibit and (options.sock_fds is not None or options.map_path is not None):
        raise OptionError("'sock-fds' and 'map-path' require 'inhibit=on'", "they belong to an XDP program that is loaded already")
    if options.sock_fds is not None and options.map_path is not None:
        raise OptionError("'sock-fds' and 'map-path' are mutually exclusive", "sockets that come by sock-fds are in the map already")
    if options.map_path is None and options.map_start_index is not None:
        raise OptionError("'map-start-index' requires 'map-path'")
    if (options.map_start_index or 0) < 0:
        raise OptionError(f"'map-start-index' cannot be negative ({options.map_start_index})")
    if options.queues > MAP_SIZE or not 0 <= options.start_queue <= MAP_SIZE - options.queues:
        raise OptionError(
            f"failed to create AF_XDP socket for {options.ifname} queue_id: {options.start_queue}: {os.strerror(errno.EINVAL)}",
            f"queues are numbered from 0 to {MAP_SIZE - 1}",
        )
    return ifindex


def _socket_fds(options: Options) -> list[int]:
    if options.sock_fds is None:
        return [-1] * options.queues
    texts = options.sock_fds.split(":")
    if len(texts) != options.queues:
        raise OptionError(f"expected {options.queues} socket fds, got {len(texts)}", "one for each queue: 3:4:5")
    for text in texts:
        if not text[:1].isdigit():
            raise OptionError(
                f"File descriptor named '{text}' has not been found", "the number of an open file descriptor of this process"
            )
        if not (text.isascii() and text.isdigit()) or int(text) > 0x7FFFFFFF:
            raise OptionError(f"Invalid file descriptor number '{text}'")
    return [int(text) for text in texts]


def _open_map(path: str, doing: str) -> int:
    text = ffi.new("char[]", os.fsencode(path))
    return check(bpf(BPF_OBJ_GET, _attr("QII", _address(text), 0, 0)), doing, HINTS)


def _bind(client: AfXdp, ifindex: int, queue: int, flags: int) -> int:
    """The kernel frees the queue of a socket that was closed only some time later."""
    end = time.monotonic() + PATIENCE
    while (rc := client.bind(ifindex, queue, flags)) == -errno.EBUSY and time.monotonic() < end:
        time.sleep(0.005)
    return rc


def _open_queue(net: Network, name: str, options: Options, index: int, fd: int, ifindex: int, map_fd: int) -> AfXdp:
    queue = options.start_queue + index
    doing = f"failed to create AF_XDP socket for {options.ifname} queue_id: {queue}"
    try:
        client = AfXdp(net.loop, name, fd)
    except OSError as e:
        check(-(e.errno or errno.EIO), doing, HINTS)
        raise
    try:
        check(client.make_umem(), f"failed to create umem for {options.ifname} queue_index: {index}", HINTS)
        copy = options.force_copy
        if not options.inhibit:
            client._program = _program(ifindex, options.mode, doing)
            map_fd = client._program.map
            copy = copy or not client._program.native
        check(_bind(client, ifindex, queue, XDP_USE_NEED_WAKEUP | (XDP_COPY if copy else 0)), doing, HINTS)
        if map_fd >= 0:
            check(put_into_map(map_fd, (options.map_start_index or 0) + index if options.inhibit else queue, client.fd), doing, HINTS)
    except BaseException:
        client.close()
        raise
    client.info_str = f"af-xdp{index} to {options.ifname}"
    return client


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    if platform.system() != "Linux":
        raise Unavailable("network backend 'af-xdp' is not compiled into this binary", "AF_XDP is Linux's")
    ifindex = _check(options)
    fds = _socket_fds(options)
    map_fd = -1
    clients: list[NetClient] = []
    try:
        if options.map_path is not None:
            doing = f"failed to create AF_XDP socket for {options.ifname} queue_id: {options.start_queue}"
            map_fd = _open_map(options.map_path, doing)
        for index, fd in enumerate(fds):
            clients.append(_open_queue(net, name, options, index, fd, ifindex, map_fd))
    except BaseException:
        for client in reversed(clients):
            client.close()
        raise
    finally:
        if map_fd >= 0:
            os.close(map_fd)
    return clients
