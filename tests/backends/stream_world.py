"""Peers for stream netdevs: a network with a Port behind the netdev, plain sockets that speak its frames, and a QEMU that is a hub."""

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from qnet import Net
from qnet.testing import Port

MAX_FRAME = 69632
PATIENCE = 30.0                         # seconds until a test that waits for something gives up


def frame(n: int, size: int = 60) -> bytes:
    return (struct.pack("!I", n) + b"\x02" * 8 + b"\x88\xb5").ljust(size, b"\xa5")[:size]


def framed(frames: list[bytes]) -> bytes:
    return b"".join(struct.pack("!I", len(f)) + f for f in frames)


def unframed(stream: bytes, *, whole: bool = True) -> list[bytes]:
    """The frames of a stream; whole: fails if it ends in the middle of one."""
    frames = []
    while len(stream) >= 4:
        (size,) = struct.unpack_from("!I", stream)
        assert 0 < size <= MAX_FRAME, "no frame begins here"
        if len(stream) < 4 + size:
            break
        frames.append(stream[4 : 4 + size])
        stream = stream[4 + size :]
    assert not (stream and whole)
    return frames


def until(condition: Callable[[], Any], *nets: Net) -> None:
    """Pump these networks until it is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not come"
        select.select([net.fileno() for net in nets], [], [], 0.02)
        for net in nets:
            net.pump()


class World:
    """nic -- n0, a netdev of any kind that is a stream."""

    def __init__(self, spec: Any = None, *, clock: Any = None, port: dict[str, Any] | None = None) -> None:
        self.net = Net(clock=clock)
        self.nic = Port(self.net.loop, "nic", **(port or {}))
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.net.on_event(lambda name, data: self.events.append((name, data)))
        if spec is not None:
            self.open(spec)

    def open(self, spec: Any) -> Any:
        self.n0: Any = self.net.netdev_add(spec)
        self.nic.pair(self.n0)
        return self.n0

    def until(self, condition: Callable[[], Any]) -> None:
        until(condition, self.net)

    def connected(self) -> None:
        self.until(lambda: self.n0.attached)

    def lost(self) -> None:
        self.until(lambda: not self.n0.attached)

    def received(self, n: int) -> list[bytes]:
        """The next n frames that come to nic."""
        got: list[bytes] = []

        def enough() -> bool:
            got.extend(self.nic.recv())
            return len(got) >= n

        self.until(enough)
        assert len(got) == n
        return got

    def read(self, sock: socket.socket, n: int) -> bytes:
        """The next n bytes that come out of a socket."""
        got = b""
        sock.setblocking(False)

        def enough() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += sock.recv(n - len(got))
            return len(got) >= n

        self.until(enough)
        return got

    def names(self) -> list[str]:
        return [name.removeprefix("NETDEV_STREAM_") for name, _ in self.events]

    def close(self) -> None:
        self.net.close()
        self.nic.close()


def client_of(n0: Any) -> socket.socket:
    """A socket connected to a netdev that listens."""
    where = n0.bound
    if where["type"] == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.connect(("\0" if where.get("abstract") else "") + where["path"])
        return s
    return socket.create_connection((where["host"], int(where["port"])))


class Repeater:
    """A QEMU that is a hub and nothing else: what comes from its netdev `a` goes out of `wire`, one message a frame, and back."""

    def __init__(self, netdev: str, fds: tuple[int, ...] = ()) -> None:
        kind, _, options = netdev.partition(",")
        self.wire, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
        self.wire.settimeout(PATIENCE)
        self.monitor, monitor = socket.socketpair()
        self.monitor.settimeout(PATIENCE)
        self.lines = self.monitor.makefile("r")
        self.events: list[tuple[str, dict[str, Any]]] = []
        try:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--",        # it ends when we do, however
                 "qemu-system-x86_64", "-nodefaults", "-display", "none", "-M", "none",
                 "-netdev", f"{kind},id=a,{options}", "-netdev", f"socket,id=b,fd={theirs.fileno()}",
                 "-netdev", "hubport,id=pa,hubid=0,netdev=a", "-netdev", "hubport,id=pb,hubid=0,netdev=b",
                 "-chardev", f"socket,id=q,fd={monitor.fileno()}", "-mon", "chardev=q,mode=control"],
                pass_fds=[theirs.fileno(), monitor.fileno(), *fds], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            theirs.close()
            monitor.close()
        self.lines.readline()                               # it is up: its netdevs have begun to connect or listen
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: Any) -> Any:
        self.monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer.get("return", answer)
            self.events.append((answer["event"], answer.get("data", {})))

    def info(self) -> str:
        """What it says about `a`."""
        text = self.qmp("human-monitor-command", **{"command-line": "info network"}).replace("\r\n", "\n")
        return next(str(line).split("type=")[1].partition(",")[2] for line in text.splitlines() if " a: index" in line)

    def kill(self) -> None:
        """As by the host: without a word."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.lines.close()
        self.monitor.close()
        self.wire.close()

    close = kill


def joined(spec: str) -> Net:
    """A network with a netdev on a hub with a socketpair `s`, whose other end is `.socket`."""
    net = Net()
    net.netdev_add("socketpair,id=s")
    net.netdev_add("hubport,id=hs,hubid=0,netdev=s")
    client = net.netdev_add(spec)
    net.netdev_add(f"hubport,id=h0,hubid=0,netdev={client.name}")
    return net


def exists(path: str) -> bool:
    return os.path.lexists(path)


def resolvers_end() -> None:
    """Nothing else waits for the threads that look up names."""
    for thread in threading.enumerate():
        if thread.name == "qnet-resolve":
            thread.join()
