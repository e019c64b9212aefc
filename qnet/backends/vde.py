"""vde: a port of a VDE network (Virtual Distributed Ethernet), by libvdeplug: a vde_switch, or whatever else the library reaches."""

import contextlib
import errno
import functools
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cffi  # type: ignore[import-untyped]

from qnet._client import NetClient
from qnet.backends._vde import FUNCTIONS, VdePort
from qnet.errors import Unavailable, check
from qnet.options import STR, UINT16, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]

SONAME = "libvdeplug.so.2"
INTERFACE_VERSION = 1
PATIENCE = 5.0                              # seconds a switch may take to answer

ffi = cffi.FFI()
ffi.cdef(
    """
    struct vde_open_args { int port; char *group; unsigned mode; };
    void *vde_open_real(char *url, char *description, int interface_version, struct vde_open_args *args);
    int vde_datafd(void *conn);
    int vde_ctlfd(void *conn);
    """
    + "".join(f"void {name}(void);\n" for name in FUNCTIONS)
)
opening = threading.Lock()                  # one at a time, so that a connection attempt without answer can be told from others

HINTS = {
    errno.ENOENT: "sock= is the directory a vde_switch was started with: vde_switch -s DIR",
    errno.ECONNREFUSED: "the directory is there, but its vde_switch is gone",
    errno.EPROTONOSUPPORT: "the library has no module of this name: sock=DIR, or sock=vde://DIR",
    errno.ETIMEDOUT: "the switch does not answer: it is stopped, or has no port of this number (vde_switch -n)",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    sock: str | None = opt(STR, help="directory of the switch, or a URL as libvdeplug takes; its default when not given")
    port: int = opt(UINT16, default=0, help="port of the switch; 0: any")
    group: str | None = opt(STR, help="group that the port's socket is given to")
    mode: int = opt(UINT16, default=0o700, help="permissions of the port's socket; octal with a 0 in front")


@functools.cache
def library() -> tuple[Any, dict[str, int]]:
    """libvdeplug and the addresses of FUNCTIONS. Unavailable, with the package's name, when it is missing."""
    try:
        lib = ffi.dlopen(SONAME)
        return lib, {name: int(ffi.cast("uintptr_t", getattr(lib, name))) for name in FUNCTIONS}
    except (OSError, AttributeError) as e:
        raise Unavailable(
            "network backend 'vde' is not compiled into this binary", f"it needs libvdeplug; apt install libvdeplug2 ({e})"
        ) from None


def _sockets() -> dict[int, int]:
    """inode -> fd of this process's sockets."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{name}")
            if what.startswith("socket:["):
                found[int(what[8:-1])] = int(name)
    return found


def _give_up(before: dict[int, int]) -> None:
    """End the control connection that was made since `before`: whoever waits for its answer gets an end of file."""
    for inode, fd in _sockets().items():
        if inode in before:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as s:
            name = s.getpeername() if s.family == socket.AF_UNIX and s.type == socket.SOCK_STREAM else ""
            if isinstance(name, str) and name.endswith("/ctl") and os.fstat(s.fileno()).st_ino == inode:
                s.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _patience() -> Iterator[threading.Event]:
    """The library waits for the switch's answer without end, and a switch does not answer a port it has not got."""
    with opening:
        late = threading.Event()
        before = _sockets()

        def expire() -> None:
            late.set()
            _give_up(before)

        timer = threading.Timer(PATIENCE, expire)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()
            timer.join()



def open(net: Network, name: str, options: Options) -> list[NetClient]:
    lib, functions = library()
    args = ffi.new("struct vde_open_args *")
    url, group = (ffi.NULL if text is None else ffi.new("char[]", os.fsencode(text)) for text in (options.sock, options.group))
    args.port, args.group, args.mode = options.port, group, options.mode
    with _patience() as late:
        conn = lib.vde_open_real(url, ffi.new("char[]", b"QEMU"), INTERFACE_VERSION, args)
        why = ffi.errno
    if conn == ffi.NULL:
        check(-(errno.ETIMEDOUT if late.is_set() else why or errno.EIO), "Could not open vde", HINTS)
    datafd = lib.vde_datafd(conn)
    client = VdePort(net.loop, name, "vde", functions, int(ffi.cast("uintptr_t", conn)), datafd, lib.vde_ctlfd(conn))
    client.info_str = f"sock={'(null)' if options.sock is None else options.sock},fd={datafd}"
    return [client]
