"""netdev passt: the network of passt(1), a program that gives a guest the host's network by sockets of its own, without privileges (2.10).

It is started here and spoken to over a socket pair, in stream's frames; when it ends it is started again.
"""

import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._connect import Ground, Link
from qnet.backends._stream import StreamClient
from qnet.errors import Error, OptionError, Unavailable
from qnet.options import BOOL, INT64, STR, ListOf, fields_of, opt
from qnet.rooms import Network

__all__ = ["Options", "PasstNetdev", "command", "open"]

PATIENCE = 10.0                         # seconds for passt to start
SHORT = 1_000_000_000                   # ns: one that ended sooner is started again after as long


@dataclass(frozen=True, kw_only=True)
class Options:
    path: str = opt(STR, default="passt", help="program to start")
    quiet: bool = opt(BOOL, default=True, help="no informational messages")
    vhost_user: bool = opt(BOOL, default=False, help="speak vhost-user; not supported here")
    mtu: int | None = opt(INT64, help="MTU told to the guest by DHCP and NDP; 0: none")
    address: str | None = opt(STR, help="IPv4 or IPv6 address for the guest; the host's otherwise")
    netmask: str | None = opt(STR, help="IPv4 netmask for the guest")
    mac: str | None = opt(STR, help="Ethernet address that passt itself uses")
    gateway: str | None = opt(STR, help="IPv4 or IPv6 address of the guest's gateway")
    interface: str | None = opt(STR, help="interface whose addresses and routes are taken")
    outbound: str | None = opt(STR, help="source address of outgoing connections")
    outbound_if4: str | None = opt(STR, help="interface of outgoing IPv4 connections")
    outbound_if6: str | None = opt(STR, help="interface of outgoing IPv6 connections")
    dns: str | None = opt(STR, help="address of the guest's DNS server")
    search: tuple[str, ...] = opt(ListOf(STR), help="search domains for the guest")
    fqdn: str | None = opt(STR, help="the guest's full name, told by DHCP")
    dhcp_dns: bool | None = opt(BOOL, help="DNS servers in DHCP, DHCPv6 and NDP")
    dhcp_search: bool | None = opt(BOOL, help="search domains in DHCP, DHCPv6 and NDP")
    map_host_loopback: str | None = opt(STR, help="address by which the guest reaches the host's loopback")
    map_guest_addr: str | None = opt(STR, help="address by which the guest reaches its own address on the host")
    dns_forward: str | None = opt(STR, help="address whose DNS queries passt forwards")
    dns_host: str | None = opt(STR, help="host's DNS server for those")
    tcp: bool | None = opt(BOOL, help="TCP")
    udp: bool | None = opt(BOOL, help="UDP")
    icmp: bool | None = opt(BOOL, help="ICMP echo")
    dhcp: bool | None = opt(BOOL, help="DHCP server")
    ndp: bool | None = opt(BOOL, help="NDP answers")
    dhcpv6: bool | None = opt(BOOL, help="DHCPv6 server")
    ra: bool | None = opt(BOOL, help="router advertisements")
    freebind: bool | None = opt(BOOL, help="forward addresses that are not on the host yet")
    ipv4: bool | None = opt(BOOL, help="IPv4; off: IPv6 only")
    ipv6: bool | None = opt(BOOL, help="IPv6; off: IPv4 only")
    tcp_ports: tuple[str, ...] = opt(ListOf(STR), help="TCP ports of the host forwarded to the guest, as passt's --tcp-ports")
    udp_ports: tuple[str, ...] = opt(ListOf(STR), help="UDP ports of the host forwarded to the guest, as passt's --udp-ports")
    param: tuple[str, ...] = opt(ListOf(STR), help="passed to passt as it is")


OURS = ("path", "quiet", "vhost-user", "param", "ipv4", "ipv6", "freebind")        # of which command() knows more than the table says
SEPARATORS = {"search": " ", "tcp-ports": ",", "udp-ports": ","}


def command(options: Options, pid_file: str, fd: int) -> list[str]:
    """passt's command line."""
    argv = [options.path, *(["--quiet"] if options.quiet else [])]
    for name, spec in fields_of(Options).items():
        value = getattr(options, spec.attribute)
        if name in OURS or value is None or value == ():
            continue
        if value is False:
            argv.append(f"--no-{name}")
        elif value is not True:
            argv += [f"--{'mac-addr' if name == 'mac' else name}", SEPARATORS[name].join(value) if name in SEPARATORS else str(value)]
    argv += ["--freebind"] if options.freebind else []
    argv += ["--ipv6-only"] if options.ipv4 is False else ["--ipv4-only"] if options.ipv6 is False else []
    return [*argv, *options.param, "--pid", pid_file, "--fd", str(fd)]


class _Daemon:
    """A passt that runs, or is being started. It goes to the background by itself; then its pid file says who it is."""

    def __init__(self) -> None:
        self.directory = ""
        self.launcher: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.pid = 0

    def launch(self, options: Options) -> socket.socket:
        """Begin; our end of the socket pair."""
        self.directory = tempfile.mkdtemp(prefix="qnet-passt-")
        ours, theirs = socket.socketpair()
        pid_file = os.path.join(self.directory, "pid")
        try:
            with open_file(pid_file), open_file(os.path.join(self.directory, "log")) as log, theirs:
                if os.geteuid() == 0:                       # which passt gives up, before it writes the file
                    with suppress(KeyError):
                        os.chown(pid_file, pwd.getpwnam("nobody").pw_uid, -1)
                    os.chmod(self.directory, 0o711)
                self.launcher = subprocess.Popen(
                    command(options, pid_file, theirs.fileno()), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=log,
                )  # fmt: skip
        except OSError as e:
            ours.close()
            self.close()
            hint = "apt install passt, or path=" if isinstance(e, FileNotFoundError) else ""
            raise Unavailable(f"Failed to execute child process “{options.path}” ({e.strerror})", hint) from None
        return ours

    def launched(self, code: int) -> None:
        """The launcher has ended. Error: not well."""
        with suppress(OSError, ValueError), open_file(os.path.join(self.directory, "pid"), os.O_RDONLY) as f:
            self.pid = int(os.read(f, 20))
            if code == 0:
                self.pidfd = os.pidfd_open(self.pid)
        if self.pidfd < 0:
            with open_file(os.path.join(self.directory, "log"), os.O_RDONLY) as f:
                said = os.read(f, 4096).decode(errors="replace").strip().splitlines()
            raise Error(f"passt: exit code {code}", " ".join(line for line in said if "syslog" not in line and "as root" not in line))

    def close(self) -> None:
        """End it, and remove its files. Idempotent."""
        if self.launcher is not None:
            if self.launcher.poll() is None:
                self.launcher.kill()
            self.launcher.wait()
            self.launcher = None
        if self.pidfd >= 0:
            for number in signal.SIGTERM, signal.SIGKILL:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, number)
                if select.select([self.pidfd], [], [], 1.0)[0]:
                    break
            os.close(self.pidfd)
            self.pidfd = -1
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = ""


class open_file:                        # noqa: N801
    """A file descriptor for the time of a block."""

    def __init__(self, path: str, flags: int = os.O_RDWR | os.O_CREAT | os.O_EXCL) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


class PasstNetdev(StreamClient):
    """The netdev. `pid` is passt's, None while there is none."""

    def __init__(self, loop: Loop, name: str) -> None:
        super().__init__(loop, name, "passt")
        self.link: _Passt | None = None

    @property
    def pid(self) -> int | None:
        return self.link.daemon.pid if self.link is not None and self.attached else None

    def close(self) -> None:
        """As any client's, and ends passt."""
        if self.link is not None:
            self.link.close()
        super().close()


class _Passt(Link):
    def __init__(self, net: Ground, client: StreamClient, options: Options) -> None:
        super().__init__(net, client)
        self.options = options
        self.daemon = _Daemon()
        self._born = 0
        self._launcher_fd = -1
        self._finalizer = weakref.finalize(client, self.daemon.close)

    def begin(self) -> None:
        sock = self.daemon.launch(self.options)
        assert self.daemon.launcher is not None
        try:
            self._ready(sock, self.daemon.launcher.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            sock.close()
            raise Error("passt: it does not start", f"within {PATIENCE:.0f} s") from None
        self.persists = True

    def _ready(self, sock: socket.socket, code: int) -> None:
        try:
            self.daemon.launched(code)
        except Error:
            sock.close()
            raise
        self._born = self.net.loop.now()
        self.adopt(sock, {"type": "passt"})

    def connected(self, remote: dict[str, object]) -> None:
        self.client.info_str = f"stream,connected to pid {self.daemon.pid}"

    def again(self) -> None:
        """It has ended, or closed its socket: a new one. The network goes on while that starts."""
        self.client.info_str = ""
        self.daemon.close()
        age = self.net.loop.now() - self._born
        if age < SHORT:
            self.later(SHORT, self._respawn)
        else:
            self._respawn()

    def _respawn(self) -> None:
        self._born = self.net.loop.now()
        try:
            sock = self.daemon.launch(self.options)
        except Error as e:
            self._failed(e)
            return
        sock.setblocking(False)
        assert self.daemon.launcher is not None
        self._launcher_fd = os.pidfd_open(self.daemon.launcher.pid)
        self._pending = sock
        self.watch(self._launcher_fd, select.EPOLLIN, self._exited)

    def _exited(self) -> None:
        sock, launcher = self._pending, self.daemon.launcher
        assert launcher is not None
        self._forget()
        try:
            self._ready(sock, launcher.wait())
        except Error as e:
            self._failed(e)

    def _failed(self, error: Error) -> None:
        self.failed(error)
        self.daemon.close()
        self.later(SHORT, self._respawn)

    def _forget(self) -> None:
        self.wait_for(None)
        os.close(self._launcher_fd)
        self._launcher_fd = -1

    def stop(self) -> None:
        if self._launcher_fd >= 0:
            self._forget()
            self._pending.close()
        self._finalizer()


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    if options.vhost_user:
        raise OptionError("vhost-user=on is not supported", "frames go over the socket: leave it out")
    if options.ipv4 is False and options.ipv6 is False:
        raise OptionError("ipv4=off and ipv6=off leave nothing", "one of the two")
    client = PasstNetdev(net.loop, name)
    client.link = _Passt(net, client, options)
    try:
        client.link.start()
    except BaseException:
        client.close()
        raise
    return [client]
