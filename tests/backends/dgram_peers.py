"""What the tests of the datagram netdevs share: a QEMU as the other end, a network namespace of the test's own, and waiting for peers."""

import ctypes
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qnet import Net, VirtualClock
from qnet._client import NetClient
from qnet.testing import Port

CLONE_NEWNET = 0x40000000
numbers = itertools.count()


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5").ljust(size, b"\xa5")[:size]


class Lan:
    """A network with one netdev, or more, each with a port where its NIC would be."""

    def __init__(self, *netdevs: str, **port: Any) -> None:
        self.net = Net(clock=VirtualClock())
        self.clients: list[NetClient] = []
        self.ports: list[Port] = []
        try:
            for spec in netdevs:
                self.clients.append(self.net.netdev_add(spec))
                self.ports.append(Port(self.net.loop, f"nic{len(self.ports)}", **port))
                self.ports[-1].pair(self.clients[-1])
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> Any:
        return self.clients[0]

    @property
    def port(self) -> Port:
        return self.ports[0]

    def pump(self) -> None:
        """Until nothing more is ready."""
        for _ in range(10_000):
            if not self.net.pump():
                return
        raise AssertionError("the loop never comes to rest")

    def until(self, done: Callable[[], bool], seconds: float = 10) -> None:
        """Run the network until `done()`: what it waits for comes from another process."""
        while not done():
            if not self.net.pump():
                ready, _, _ = select.select([self.net.fileno()], [], [], seconds)
                assert ready, "nothing comes any more"

    def recv(self, n: int, port: int = 0) -> list[bytes]:
        """The next n frames, and what came with the last of them."""
        got: list[bytes] = []

        def enough() -> bool:
            got.extend(self.ports[port].recv())
            return len(got) >= n

        self.until(enough)
        return got

    def drops(self, client: int = 0) -> Any:
        return self.clients[client].stats()["drops"]

    def close(self) -> None:
        while self.ports:
            self.ports.pop().close()
        self.clients.clear()
        self.net.close()
        del self.net


def stop(*things: Any) -> None:
    for thing in things:
        thing.close()


def end_with_parent() -> None:
    """A test that fails half-way closes nothing: what it started ends with the tests."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)          # PR_SET_PDEATHSIG


class Qemu:
    """A QEMU whose only work is a hub between its netdevs: what enters one leaves by the others."""

    def __init__(self, *netdevs: str, pass_fds: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-M", "none"]
        argv += ["-chardev", f"socket,fd={theirs.fileno()},id=q", "-mon", "chardev=q,mode=control"]
        for i, netdev in enumerate(netdevs):
            argv += ["-netdev", netdev, "-netdev", f"hubport,id=port{i},hubid=0,netdev={netdev.split('id=')[1].split(',')[0]}"]
        with theirs:
            self.process = subprocess.Popen(
                argv, pass_fds=[theirs.fileno(), *pass_fds], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                preexec_fn=end_with_parent,
            )  # fmt: skip
        self.socket, self.lines = ours, ours.makefile("r")
        if not self.lines.readline():
            error = self.process.communicate()[1]
            self.close()
            raise RuntimeError(error)
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: Any) -> Any:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer

    def error(self, arguments: dict[str, Any]) -> str:
        """What netdev_add says; "" when it did it."""
        text: str = self.qmp("netdev_add", **arguments).get("error", {}).get("desc", "")
        return text

    def info(self) -> str:
        text: str = self.qmp("human-monitor-command", **{"command-line": "info network"})["return"]
        return text.replace("\r\n", "\n")

    def kill(self) -> None:
        """As a crash."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.lines.close()
        self.socket.close()
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.process.wait(30)


@contextmanager
def namespace() -> Iterator[None]:
    """This thread is in a network namespace of its own, which has a loopback interface that takes multicast too. Sockets and programs
    that begin there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            for command in ("link set lo up multicast on", "route add 224.0.0.0/4 dev lo"):
                subprocess.run(["ip", *command.split()], check=True)
            yield
        finally:
            if libc.setns(home, CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


def free_ports(n: int) -> list[int]:
    """UDP ports of 127.0.0.1 that nobody uses now."""
    taken = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(n)]
    try:
        for s in taken:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in taken]
    finally:
        stop(*taken)


def unix(name: str, ours: object, theirs: object) -> str:
    return f"dgram,id={name},local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}"


def udp(name: str, ours: int, theirs: int, host: str = "127.0.0.1") -> str:
    return (f"dgram,id={name},local.type=inet,local.host={host},local.port={ours},"
            f"remote.type=inet,remote.host={host},remote.port={theirs}")  # fmt: skip


def messages(s: socket.socket) -> list[bytes]:
    """All that waits in a socket."""
    got = []
    while True:
        try:
            got.append(s.recv(1 << 17, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return got
