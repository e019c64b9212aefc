"""netdev tap: a network interface of the host whose other end is this client.

Here is everything but the frames: options, opening, scripts. Frames go through _tap.
"""

import errno
import logging
import os
import socket
import subprocess
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._bridge_helper import BRIDGE, NAME_MAX, run_helper
from qnet.backends._tap import TapClient, attach, features
from qnet.errors import Error, HostError, OptionError, Unavailable, check
from qnet.options import BOOL, SIZE, STR, UINT32, Form, Kind, opt
from qnet.rooms import Network

__all__ = ["Options", "Tap", "open"]

log = logging.getLogger("qnet.tap")

TUN = "/dev/net/tun"
IFUP, IFDOWN = "/etc/qemu-ifup", "/etc/qemu-ifdown"
INT_MAX = (1 << 31) - 1
NO_VHOST = "vhost-net requested but could not be initialized"


class _Descriptors(Kind):
    """QEMU's text, "5" or "5:6:7"; from Python numbers will do."""

    label = "str"

    def read(self, form: Form, path: str, value: Any) -> str:
        items = [value] if isinstance(value, int | str) else value
        if form is Form.JSON and isinstance(items, Sequence) and items and all(type(item) is int for item in items):
            return ":".join(map(str, items))
        return STR.read(form, path, value)


FDS = _Descriptors()


@dataclass(frozen=True, kw_only=True)
class Options:
    ifname: str | None = opt(STR, help="name of the interface; a %d in it becomes a free number (default: tap%d)")
    fd: str | None = opt(FDS, help="an open tap")
    fds: str | None = opt(FDS, help="the queues of an open tap, joined by ':'")
    script: str | None = opt(STR, help=f"run with the interface's name once it is there; no: none (default: {IFUP})")
    downscript: str | None = opt(STR, help=f"run with the interface's name before it goes; no: none (default: {IFDOWN})")
    br: str | None = opt(STR, help=f"bridge, for the helper (default: {BRIDGE})")
    helper: str | None = opt(STR, help="program that makes the tap on a bridge")
    sndbuf: int | None = opt(SIZE, help="bytes under way into the host before frames wait (default and 0: no limit)")
    vnet_hdr: bool | None = opt(BOOL, name="vnet_hdr", help="checksums and segmentation are left to who has use for them (default: on)")
    vhost: bool | None = opt(BOOL, help="the host's kernel drives the guest's rings: not here")
    vhostfd: str | None = opt(FDS, help="an open vhost device")
    vhostfds: str | None = opt(FDS, help="open vhost devices, joined by ':'")
    vhostforce: bool | None = opt(BOOL, help="fail if there is no vhost")
    queues: int | None = opt(UINT32, help="queues, each a client of its own (default: 1)")
    poll_us: int | None = opt(UINT32, help="microseconds that vhost may poll")


# ---------------------------------------------------------------------------------------------------------------- scripts


def _script(path: str, ifname: str) -> None:
    """Run a script and wait for it; the network goes on meanwhile. Error with QEMU's text, which has the status as wait(2) tells it."""
    hint = ""
    try:
        code = subprocess.run([path, ifname], stdin=subprocess.DEVNULL, check=False).returncode
        status = -code if code < 0 else code << 8
    except OSError as e:
        status, hint = 256, f"{e.strerror}; script=no and downscript=no run none"
    if status:
        raise Error(f"network script {path} failed with status {status}", hint)


def _down(path: str, ifname: str, pid: int) -> None:
    if os.getpid() != pid:                          # a child of this process ends: the interface is none of its business
        return
    try:
        _script(path, ifname)
    except Error as e:
        log.warning("%s", str(e))                   # not the exception, which would keep the client alive in the record


def _named(script: str | None) -> bool:
    return script not in (None, "", "no")


class Tap(TapClient):
    """One queue of a tap. `downscript`: what close() runs; so does the end of the process."""

    def __init__(self, loop: Loop, name: str, fd: int, lead: TapClient | None = None, downscript: str = "") -> None:
        super().__init__(loop, name, "tap", fd, lead)
        self._finalizer = weakref.finalize(self, _down, downscript, self.ifname, os.getpid()) if _named(downscript) else None

    def close(self) -> None:
        """As any client's; runs the downscript first. The interface goes with the last descriptor of it, unless it is persistent."""
        if self._finalizer is not None:
            self._finalizer()
        super().close()


# ---------------------------------------------------------------------------------------------------------------- opening

OPEN_HINTS = {
    errno.ENOENT: "modprobe tun, or give the container this device; or use user",
    errno.ENODEV: "modprobe tun; or use user",
    errno.EACCES: "it must be readable and writable; or pass fd=, or use user",
    errno.EPERM: "the container may not use this device; or pass fd=, or use user",
}
ATTACH_HINTS = {
    errno.EPERM: "needs CAP_NET_ADMIN, or pass fd=, or use user",
    errno.EBUSY: "another program has it open",
    errno.EINVAL: "no tap, or one with other flags: ip tuntap add dev NAME mode tap, and multi_queue if queues= is more than 1",
    errno.E2BIG: "a tap has no more queues than that",
}


def _device(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        return check(-(e.errno or errno.EIO), f"could not open {path}", OPEN_HINTS)


def _macvtap(ifname: str) -> int | None:
    """A descriptor of the interface's own device; None: it has none."""
    try:
        path = f"/dev/tap{socket.if_nametoindex(ifname)}"
    except OSError:
        return None
    return _device(path) if os.path.exists(path) else None


def _attach(fd: int, ifname: str, options: Options, queues: int) -> tuple[int, str]:
    vnet_hdr, several = features(fd)
    if options.vnet_hdr and not vnet_hdr:
        raise Unavailable("vnet_hdr=1 requested, but no kernel support for IFF_VNET_HDR available", "leave vnet_hdr= out")
    if queues > 1 and not several:
        raise Unavailable("multiqueue required, but no kernel support for IFF_MULTI_QUEUE available", "leave queues= out")
    return attach(fd, os.fsencode(ifname), vnet_hdr and options.vnet_hdr is not False, queues > 1)


def _interface(ifname: str, options: Options, queues: int) -> tuple[int, str]:
    """A descriptor attached to an interface, which is made if there is none of this name, and the interface's name."""
    fd = _device(TUN)
    try:
        rc, actual = _attach(fd, ifname or "tap%d", options, queues)
        if rc == -errno.EINVAL and (own := _macvtap(ifname)) is not None:
            os.close(fd)
            fd = own
            rc, actual = _attach(fd, ifname, options, queues)
            if rc == 0 and actual != ifname:        # another network namespace's
                rc = -errno.EINVAL
        check(rc, f"could not configure {TUN}" + (f" ({ifname})" if ifname else ""), ATTACH_HINTS)
        return fd, actual
    except BaseException:
        os.close(fd)
        raise


def _check_vhost(options: Options) -> None:
    if options.vhost if options.vhost is not None else options.vhostfd is not None or options.vhostforce:
        hint = "there is no vhost here: frames take the way of every other netdev"
        if options.vhostforce:
            raise Unavailable(NO_VHOST, hint)
        log.warning("%s; %s", NO_VHOST, hint)
    elif options.vhostfd is not None or options.vhostfds is not None:
        raise OptionError("vhostfd(s)= is not valid without vhost", "there is no vhost here: leave it out")


def _sndbuf(client: TapClient, options: Options) -> None:
    """Without a limit the kernel takes frames by a shorter way too."""
    try:
        client.set_sndbuf(min(options.sndbuf or INT_MAX, INT_MAX))
    except HostError:
        if options.sndbuf is not None:
            raise


def _descriptor(name: str, text: str) -> int:
    if not text[:1].isdigit():
        raise OptionError(f"File descriptor named '{text}' has not been found", "the number of an open file descriptor of this process")
    if not (text.isascii() and text.isdigit()) or int(text) > INT_MAX:
        raise OptionError(f"Invalid file descriptor number '{text}'")
    fd = int(text)
    try:
        os.set_blocking(fd, False)
    except OSError as e:
        check(-(e.errno or errno.EBADF), f"{name}: Can't use file descriptor {fd}")
    return fd


def _refuse(options: Options, names: str, text: str) -> None:
    """`names`: attributes of the options that must not be given."""
    if any(getattr(options, name) is not None for name in names.split()):
        raise OptionError(text)


def _from_descriptors(net: Network, name: str, options: Options, texts: Sequence[str], clients: list[TapClient]) -> None:
    for text in texts:
        fd = _descriptor(name, text)
        client = Tap(net.loop, name, fd, clients[0] if clients else None)
        clients.append(client)
        client.info_str = f"fd={fd}"
        if (client.vnet_hdr_len > 0) != (clients[0].vnet_hdr_len > 0):
            raise OptionError("vnet_hdr not consistent across given tap fds", "all of them with IFF_VNET_HDR, or none")
        _sndbuf(client, options)


def _from_helper(net: Network, name: str, options: Options, clients: list[TapClient]) -> None:
    assert options.helper is not None
    fd = run_helper(options.helper, options.br if options.br is not None else BRIDGE)
    try:
        clients.append(Tap(net.loop, name, fd))
    finally:
        os.close(fd)
    clients[0].info_str = f"helper={options.helper}"
    _sndbuf(clients[0], options)


def _from_name(net: Network, name: str, options: Options, clients: list[TapClient]) -> None:
    queues = 1 if options.queues is None else options.queues
    if queues == 0:
        raise OptionError("Parameter 'queues' expects a number from 1 on", "leave it out for one queue")
    ifname = options.ifname or ""
    if len(os.fsencode(ifname)) > NAME_MAX:
        raise OptionError(f"Parameter 'ifname' doesn't take value '{ifname}'", f"an interface's name has at most {NAME_MAX} bytes")
    up = IFUP if options.script is None else options.script
    down = IFDOWN if options.downscript is None else options.downscript
    for queue in range(queues):
        fd, ifname = _interface(ifname, options, queues)
        try:
            if queue == 0 and _named(up):
                _script(up, ifname)
            client = Tap(net.loop, name, fd, clients[0] if clients else None, down if queue == 0 else "")
        finally:
            os.close(fd)
        clients.append(client)
        client.info_str = f"ifname={ifname},script={up if queue == 0 else 'no'},downscript={down if queue == 0 else 'no'}"
        _sndbuf(client, options)


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    """One client for each queue, or an exception and nothing left behind."""
    clients: list[TapClient] = []
    try:
        if options.fd is not None:
            _refuse(
                options,
                "ifname script downscript vnet_hdr helper queues fds vhostfds",
                "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd=",
            )
            _check_vhost(options)
            _from_descriptors(net, name, options, [options.fd], clients)
        elif options.fds is not None:
            _refuse(
                options,
                "ifname script downscript vnet_hdr helper queues vhostfd",
                "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with fds=",
            )
            texts = options.fds.removesuffix(":").split(":")
            if options.vhostfds is not None and len(options.vhostfds.removesuffix(":").split(":")) != len(texts):
                raise OptionError("The number of fds passed does not match the number of vhostfds passed")
            _check_vhost(options)
            _from_descriptors(net, name, options, texts, clients)
        elif options.helper is not None:
            _refuse(
                options,
                "ifname script downscript vnet_hdr queues vhostfds",
                "ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper=",
            )
            _check_vhost(options)
            _from_helper(net, name, options, clients)
        else:
            _refuse(options, "vhostfds", "vhostfds= is invalid if fds= wasn't specified")
            _check_vhost(options)
            _from_name(net, name, options, clients)
    except BaseException:
        for client in reversed(clients):
            client.close()
        raise
    return list(clients)
