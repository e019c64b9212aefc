"""netdev user: a network behind a NAT in this process, by libslirp. No privileges needed.

The guest finds a gateway, a DNS server, DHCP and TFTP in 10.0.2.0/24 and fec0::/64, and reaches what this process can reach. Here
is the client with its forwards; _usernet reads the options, _libslirp finds the library, frames go through _slirp.
"""

import asyncio
import errno
import os
import pwd
import shlex
import shutil
import socket
import stat
import struct
import tempfile
import weakref
from collections.abc import Iterable
from typing import NoReturn

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._guestfwd import Handler, LoopThread, Server
from qnet.backends._libslirp import library, slirp_config
from qnet.backends._slirp import SlirpClient
from qnet.backends._usernet import Options, addresses, check_text, ipv4, parse_guestfwd, parse_hostfwd
from qnet.errors import Error, OptionError, Unavailable
from qnet.rooms import Network

__all__ = ["Handler", "Options", "UserClient", "hostfwd_add", "hostfwd_remove", "info_usernet", "open"]


class _Leavings:
    """What a client leaves outside libslirp: servers, a loop, directories, socket files."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.loop: LoopThread | None = None
        self.directories: list[str] = []
        self.paths: dict[str, tuple[int, int]] = {}

    def close(self) -> None:
        for server in self.servers:
            server.close()
        if self.loop is not None:
            self.loop.close()
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
        for path in list(self.paths):
            self.unlink(path)
        self.servers, self.loop, self.directories = [], None, []

    def unlink(self, path: str) -> None:
        """Remove a forward's socket file, unless another one has its name by now."""
        mine = self.paths.pop(path, None)
        try:
            st = os.lstat(path)
            if (st.st_dev, st.st_ino) == mine:
                os.unlink(path)
        except OSError:
            return


# ---------------------------------------------------------------------------------------------------------------------- client


def _is_stale(path: str) -> bool:
    """Whether this is a socket that nobody listens to: what a killed process leaves behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(os.lstat(path).st_mode)
        except OSError:
            return False
        return False


class UserClient(SlirpClient):
    """The netdev: forwards can be added and removed while it runs."""

    def __init__(self, loop: Loop, name: str, options: Options) -> None:
        check_text(options)
        self.addresses = addresses(options)
        self.options = options
        lib = library()
        with slirp_config(options, self.addresses) as config:
            super().__init__(loop, name, lib, lib.functions, config)
        self._guestfwds: set[tuple[int, int]] = set()
        self._leavings = _Leavings()
        self._finalizer = weakref.finalize(self, self._leavings.close)
        self.info_str = f"net={self.addresses.net},restrict={'on' if options.restrict else 'off'}"

    def close(self) -> None:
        """Close the guest's connections and forwards, end handlers and remove what lies in the file system. Idempotent."""
        super().close()
        self._finalizer()

    def hostfwd_add(self, rule: str) -> None:
        """Forward a host port or unix socket to the guest: "tcp::2222-:22", "udp:[::1]:53-:53", "unix:/run/vm-:22".

        Without a host address it binds 127.0.0.1 (QEMU: 0.0.0.0). OptionError when the rule is ill-formed or cannot be set up.
        """
        f = parse_hostfwd(rule)
        rc = self.add_hostfwd(f.host, f.guest, f.flags)
        if rc == -errno.EADDRINUSE and f.path and _is_stale(f.path):
            os.unlink(f.path)
            rc = self.add_hostfwd(f.host, f.guest, f.flags)
        if rc < 0:
            hint = os.strerror(-rc)
            if rc == -errno.EADDRINUSE and not f.path:
                hint += "; another program or rule has this port; 0 takes any that is free"
            elif rc == -errno.EACCES and not f.path:
                hint += "; ports below 1024 need CAP_NET_BIND_SERVICE"
            raise OptionError(f"Could not set up host forwarding rule '{rule}'", hint)
        if f.path:
            st = os.lstat(f.path)
            self._leavings.paths[f.path] = (st.st_dev, st.st_ino)

    def hostfwd_remove(self, rule: str) -> None:
        """Undo hostfwd_add, given its part before the '-'. Connections made through it stay. Error when there is no such rule."""
        try:
            f = parse_hostfwd(rule, with_guest=False)
        except OptionError as e:
            raise OptionError("invalid format", f"[tcp|udp|unix]:[hostaddr]:hostport; {e.text}") from None
        if self.remove_hostfwd(f.host, f.flags) < 0:
            raise Error(f"host forwarding rule for {rule} not found", "`info usernet` lists the rules")
        self._leavings.unlink(f.path)

    def guestfwd(self, rule: str, handler: Handler | None = None, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Answer what the guest opens to an address and port of its network: "tcp:10.0.2.100:80".

        handler: `async def handler(reader, writer)`, run for each connection on `loop`, or else on a thread's own; when it returns
        the connection is closed. Without a handler the rule says "-cmd:COMMAND", run for each connection with the guest as its
        stdin and stdout.
        """
        address, port, what = parse_guestfwd(rule)
        address = address or int(self.addresses.net) | 0x0204 & ~int(self.addresses.mask)
        if (address, port) in self._guestfwds:                              # libslirp does not notice
            self._conflict(rule)
        if handler is not None:
            if what:
                raise OptionError(f"Invalid guest forwarding rule '{rule}'", "with a handler it ends after the port")
            if loop is None:
                if self._leavings.loop is None:
                    self._leavings.loop = LoopThread()
                loop = self._leavings.loop.loop
            server = Server(handler, loop)
            if self._add_guestfwd(address, port, server.path, False):
                self._leavings.servers.append(server)
                return
            server.close()
        elif what.startswith("cmd:"):
            if self._add_guestfwd(address, port, what[4:], True):
                return
        elif not what:
            raise OptionError(f"Invalid guest forwarding rule '{rule}'", "it needs -cmd:COMMAND, or a handler from Python")
        else:
            raise OptionError(
                f"Could not open guest forwarding device 'guestfwd.tcp.{port}'",
                "there are no character devices here: -cmd:COMMAND, or a handler from Python",
            )
        self._conflict(rule)

    def _add_guestfwd(self, address: int, port: int, target: str, command: bool) -> bool:
        if self.add_guestfwd(struct.unpack("=I", address.to_bytes(4, "big"))[0], port, os.fsencode(target), command) < 0:
            return False
        self._guestfwds.add((address, port))
        return True

    def _conflict(self, rule: str) -> NoReturn:
        raise OptionError(
            f"Conflicting/invalid host:port in guest forwarding rule '{rule}'",
            f"an address of {self.addresses.net} that is neither host nor DNS, and each port once",
        )

    def info_usernet(self) -> str:
        """The hub (-1: none) and the name as QEMU prints them, then libslirp's table of forwards and connections."""
        hub = getattr(self.peer, "hub", None)
        return f"Hub {-1 if hub is None else hub.hub_id} ({self.name}):\n{self.connection_info()}"

    def start_smb(self, directory: str, server: str | None) -> None:
        """Offer a directory as \\\\server\\qemu: smbd, started for each connection to ports 139 and 445."""
        net, mask = int(self.addresses.net), int(self.addresses.mask)
        address = net | 0x0204 & ~mask if server is None else int(ipv4(server, "Failed to parse SMB address"))
        smbd = shutil.which("smbd") or shutil.which("smbd", path="/usr/sbin:/usr/local/sbin")
        if smbd is None:
            raise Unavailable("Could not find '/usr/sbin/smbd', please install it", "apt install samba")
        if not os.access(directory, os.R_OK | os.X_OK):
            raise OptionError(f"Error accessing shared directory '{directory}'", "not there, or not readable")
        private = tempfile.mkdtemp(prefix="qnet-smb-")
        self._leavings.directories.append(private)
        conf = os.path.join(private, "smb.conf")
        with os.fdopen(os.open(conf, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(smb_conf(private, os.path.abspath(directory), pwd.getpwuid(os.geteuid()).pw_name))
        command = shlex.join([smbd, "-l", private, "-s", conf])
        for port in (139, 445):
            if (address, port) in self._guestfwds or not self._add_guestfwd(address, port, command, True):
                raise OptionError(
                    "Conflicting/invalid smbserver address", f"an address of {self.addresses.net} that is neither host nor DNS"
                )


def smb_conf(private: str, directory: str, user: str) -> str:
    """smb.conf(5) for one share that whoever connects uses as `user`, with every file of smbd's in `private`."""
    return f"""[global]
    private dir = {private}
    lock directory = {private}
    state directory = {private}
    cache directory = {private}
    pid directory = {private}
    ncalrpc dir = {private}/ncalrpc
    log file = {private}/log.smbd
    smb passwd file = {private}/smbpasswd
    interfaces = 127.0.0.1
    bind interfaces only = yes
    security = user
    map to guest = Bad User
    load printers = no
    printing = bsd
    disable spoolss = yes
    usershare max shares = 0
[qemu]
    path = {directory}
    read only = no
    guest ok = yes
    force user = {user}
"""


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    """One client, or an exception and nothing left behind."""
    if options.smbserver is not None:
        ipv4(options.smbserver, "Failed to parse SMB address")
    client = UserClient(net.loop, name, options)
    try:
        for rule in options.hostfwd:
            client.hostfwd_add(rule)
        for rule in options.guestfwd:
            client.guestfwd(rule)
        if options.smb is not None:
            client.start_smb(options.smb, options.smbserver)
    except BaseException:
        client.close()
        raise
    return [client]


# ------------------------------------------------------------------------------------------------- the monitor's three commands


def info_usernet(clients: Iterable[NetClient]) -> str:
    """`info usernet`: the forwards and connections of each user netdev among `clients`."""
    return "".join(client.info_usernet() for client in clients if isinstance(client, UserClient) and not client.closed)


def _find(clients: Iterable[NetClient], words: str, what: str) -> tuple[UserClient, str]:
    """The client that a command's arguments mean ("[ID] RULE"), and the rule."""
    args = words.split()
    if not 1 <= len(args) <= 2:
        raise OptionError("invalid format", f"{what} [ID] RULE")
    users = [client for client in clients if isinstance(client, UserClient) and not client.closed]
    if len(args) == 2:
        users = [client for client in users if client.name == args[0]]
        if not users:
            raise Error(f"unrecognized netdev id '{args[0]}'", "`info network` lists them")
    if not users:
        raise Error("user mode network stack not in use", "netdev_add user,id=... makes one")
    return users[0], args[-1]


def hostfwd_add(clients: Iterable[NetClient], words: str) -> str:
    """HMP's hostfwd_add: "[ID] [tcp|udp|unix]:[hostaddr]:hostport-[guestaddr]:guestport"; without ID the first user netdev."""
    client, rule = _find(clients, words, "hostfwd_add")
    client.hostfwd_add(rule)
    return ""


def hostfwd_remove(clients: Iterable[NetClient], words: str) -> str:
    """HMP's hostfwd_remove: "[ID] [tcp|udp|unix]:[hostaddr]:hostport"; what the monitor prints."""
    client, rule = _find(clients, words, "hostfwd_remove")
    client.hostfwd_remove(rule)
    return f"host forwarding rule for {rule} removed\n"
