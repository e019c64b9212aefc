"""The conformance suite's adapters: for each kind of netdev how it is opened, and what its other end does with raw frames.

A kind joins the suite with a subclass of Adapter and its row in ADAPTERS. Traffic stays in this process, in programs the adapter starts,
and in namespaces it makes.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.utils import RawPcapReader

from qnet import Net
from qnet._client import NetClient
from qnet.testing import Port

from .conftest import Namespace, bridge_helper
from .netmap_rings import NetmapEnd

PATIENCE = 30                       # seconds after which something that was expected did not happen
MAX_FRAME = 69632
BROADCAST = b"\xff" * 6
SOURCE = b"\x02\0\0\0\0\x01"


def frame(n: int, size: int = 60) -> bytes:
    """A numbered broadcast of `size` bytes, as far as they go."""
    return (BROADCAST + SOURCE + b"\x88\xb5" + struct.pack("!I", n)).ljust(size, b"\xa5")[:size]


class Adapter:
    """A netdev "n0" of one kind in a network, and what is at its other end."""

    marks: tuple[pytest.MarkDecorator, ...] = ()
    raw = True                      # the other end sends and receives any frames: put() and take()
    sizes: tuple[int, ...] = (1, 2, 13, 14, 15, 17, 18, 59, 60, 61, 64, 1500, 1514, 1518, 9000, 65535, MAX_FRAME)
    mortal = True                   # the other end can die: kill() and revive()
    stalls = True                   # the other end can stop receiving: stall() and go_on()
    lossless = True                 # what n0 has handed over arrives, however much it is
    burst = 8                       # frames at once that arrive for sure
    holds = True                    # while n0's peer has no room, nothing from the other end is lost
    model = ""                      # of n0, where it is not the kind's name
    needs = ""                      # options that must be given, each with a comma behind it
    bad: tuple[tuple[str, str], ...] = ()       # more options of this kind that are wrong, and the error's text

    def __init__(self, net: Net, path: Path) -> None:
        self.net = net
        self.path = path

    def open(self) -> NetClient:
        """Add the netdev, and its other end if there is none."""
        raise NotImplementedError

    def fds(self) -> list[int]:
        """What to wait for besides the network."""
        return []

    def put(self, frames: list[bytes]) -> int:
        """The other end sends: how many found room."""
        raise NotImplementedError

    def take(self) -> list[bytes]:
        """What the other end has received by now."""
        raise NotImplementedError

    def ping(self, rig: "Rig") -> None:
        """Prove that the way is open, in both directions where there are two."""
        rig.round_trip([frame(7)])

    def kill(self) -> None:
        raise NotImplementedError

    def revive(self) -> None:
        """The other end is back. By itself n0 comes back too, or it is deleted and added again."""
        self.net.netdev_del("n0")
        self.open()

    def push(self) -> None:
        """Go on with what put() has half sent."""

    def stall(self) -> None:
        """It receives nothing until go_on(); by itself it receives only what take() asks for."""

    def go_on(self) -> None:
        pass

    def close(self) -> None:
        """The other end's own things; the network closes n0."""


def batches(port: Any) -> Iterator[bytes]:
    while frames := port.recv():
        yield from map(bytes, frames)


class Null(Adapter):
    raw = mortal = stalls = False

    def open(self) -> NetClient:
        return self.net.netdev_add("null,id=n0")

    def ping(self, rig: "Rig") -> None:
        before = rig.n0.stats()["rx_packets"]
        rig.nic.send([frame(1)])
        assert rig.n0.stats()["rx_packets"] == before + 1


class Hubport(Adapter):
    """The other end is behind another port of the hub."""

    mortal = False
    needs = "hubid=9,"

    def open(self) -> NetClient:
        n0 = self.net.netdev_add("hubport,id=n0,hubid=9")
        if not any(client.name == "far" for client in self.net.clients):
            self.far: Any = self.net.client("py", id="far")
            self.net.netdev_add("hubport,id=farport,hubid=9,netdev=far")
        return n0

    def put(self, frames: list[bytes]) -> int:
        return int(self.far.send_many(frames))

    def take(self) -> list[bytes]:
        return list(batches(self.far))

    def stall(self) -> None:
        self.far.paused = True

    def go_on(self) -> None:
        self.far.paused = False


class Py(Adapter):
    """The other end is the client's own Python."""

    mortal = False
    bad = (("max-packets=0", "py requires max-packets= and max-bytes= above 0"), ("filter=tcp prt 80", "Parameter 'filter' expects"))

    def open(self) -> NetClient:
        self.port: Any = self.net.netdev_add("py,id=n0")
        return self.port

    def put(self, frames: list[bytes]) -> int:
        return int(self.port.send_many(frames))

    def take(self) -> list[bytes]:
        return list(batches(self.port))

    def stall(self) -> None:
        self.port.paused = True

    def go_on(self) -> None:
        self.port.paused = False


class Socketpair(Adapter):
    bad = (("socket-type=stream", "does not accept value 'stream'"),)

    def open(self) -> NetClient:
        n0: Any = self.net.netdev_add("socketpair,id=n0")
        self.socket: socket.socket = n0.socket
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return n0

    def fds(self) -> list[int]:
        return [self.socket.fileno()] if self.socket.fileno() >= 0 else []

    def put(self, frames: list[bytes]) -> int:
        for i, f in enumerate(frames):
            try:
                self.socket.send(f)
            except BlockingIOError:
                return i
        return len(frames)

    def take(self) -> list[bytes]:
        got = []
        try:
            while len(got) < 64 and (f := self.socket.recv(1 << 17)):
                got.append(f)
        except BlockingIOError:
            pass
        return got

    def kill(self) -> None:
        self.socket.close()


class Pipe(Adapter):
    """A stream socket; each frame behind its length."""

    stream: socket.socket | None = None
    bad = (("rfd=-1", "Parameter 'rfd' doesn't take value '-1'"), ("", "pipe requires rfd= or wfd="))

    def open(self) -> NetClient:
        self.close()
        theirs, ours = socket.socketpair()
        with ours:
            n0 = self.net.netdev_add(f"pipe,id=n0,rfd={ours.fileno()},wfd={ours.fileno()}")
        self.adopt(theirs)
        return n0

    def adopt(self, stream: socket.socket) -> None:
        self.stream: socket.socket | None = stream
        stream.setblocking(False)
        self.out = bytearray()
        self.got = bytearray()

    def fds(self) -> list[int]:
        return [self.stream.fileno()] if self.stream is not None else []

    def push(self) -> None:
        if self.stream is not None:
            self.put([])

    def put(self, frames: list[bytes]) -> int:
        assert self.stream is not None
        n = 0
        while True:
            try:
                while self.out:
                    del self.out[: self.stream.send(self.out)]
            except BlockingIOError:
                return n
            if n == len(frames):
                return n
            self.out += b"".join(struct.pack("!I", len(f)) + f for f in frames[n : n + 16])
            n = min(n + 16, len(frames))

    def take(self) -> list[bytes]:
        assert self.stream is not None
        with contextlib.suppress(BlockingIOError):
            self.got += self.stream.recv(1 << 18)
        frames = []
        while len(self.got) >= 4 and len(self.got) >= 4 + (size := struct.unpack_from("!I", self.got)[0]):
            frames.append(bytes(self.got[4 : 4 + size]))
            del self.got[: 4 + size]
        return frames

    def kill(self) -> None:
        self.close()

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None


class Stream(Pipe):
    """n0 listens, the other end connects."""

    needs = "addr.type=unix,addr.path=/nonexistent/socket,"
    bad = (("addr.type=unix,addr.path=/nonexistent/socket", "No such file or directory"), ("server=on", "Parameter 'addr' is missing"))

    def open(self) -> NetClient:
        self.close()
        n0 = self.net.netdev_add(f"stream,id=n0,server=on,addr.type=unix,addr.path={self.path}/n0.sock")
        self.connect()
        return n0

    def connect(self) -> None:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(f"{self.path}/n0.sock")
        self.adopt(stream)
        while self.net.client("n0").info_str == "listening":
            assert select.select([self.net.fileno()], [], [], PATIENCE)[0]
            self.net.pump()

    def revive(self) -> None:
        """n0 listens again by itself."""
        self.connect()


class Socket(Stream):
    """The same over TCP."""

    needs = "listen=127.0.0.1:0,"
    bad = (("listen=127.0.0.1:0,connect=127.0.0.1:1", "exactly one of"), ("listen=nonsense", "doesn't contain ':'"))

    def open(self) -> NetClient:
        self.close()
        self.n0: Any = self.net.netdev_add("socket,id=n0,listen=127.0.0.1:0")
        self.connect()
        return self.n0  # type: ignore[no-any-return]

    def connect(self) -> None:
        self.adopt(socket.create_connection(("127.0.0.1", int(self.n0.bound["port"]))))
        while not self.n0.attached:
            assert select.select([self.net.fileno()], [], [], PATIENCE)[0]
            self.net.pump()


class Passt(Adapter):
    """passt answers what a guest asks. The host it sees is a namespace with a default route."""

    marks = (pytest.mark.root,)
    raw = mortal = stalls = False
    bad = (("vhost-user=on", "not supported"), ("path=/nonexistent/passt", "No such file or directory"))
    ns: Namespace | None = None

    def open(self) -> NetClient:
        if self.ns is None:
            self.ns = Namespace()
            for line in ("link add up0 type veth peer name nobody0", "addr add 192.0.2.2/24 dev up0", "link set nobody0 up",
                         "link set up0 up", "route add default via 192.0.2.1"):  # fmt: skip
                self.ns.run(f"ip {line}")
        with self.ns:
            return self.net.netdev_add("passt,id=n0,ipv6=off")

    def ping(self, rig: "Rig") -> None:
        ask = Ether(src="52:54:00:12:34:56", dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.0.2.2", pdst="192.0.2.1", hwsrc="52:54:00:12:34:56")
        rig.nic.send([bytes(ask)])
        [answer] = rig.at_nic(1)
        assert Ether(answer)[ARP].op == 2

    def close(self) -> None:
        if self.ns is not None:
            self.ns.close()


class Dgram(Socketpair):
    """Two unix sockets that know each other's paths."""

    needs = "local.type=unix,local.path=/nonexistent/a,remote.type=unix,remote.path=/nonexistent/b,"
    bad = (
        ("local.type=unix,local.path=/nonexistent/a,remote.type=unix,remote.path=/nonexistent/b", "No such file or directory"),
        ("", "dgram requires local= parameter"),
    )

    def open(self) -> NetClient:
        ours, theirs = self.path / "ours", self.path / "theirs"
        n0 = self.net.netdev_add(f"dgram,id=n0,local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}")
        self.bind()
        return n0

    def bind(self) -> None:
        self.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path / "theirs"))
        self.socket.connect(str(self.path / "ours"))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def kill(self) -> None:
        self.close()

    def revive(self) -> None:
        """n0 sends to the path, whoever has it."""
        self.bind()

    def close(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
            (self.path / "theirs").unlink(missing_ok=True)


class L2tpv3(Dgram):
    """A UDP socket that puts the header in front of each frame and takes it off. It has no way to say that it is full."""

    stalls = lossless = holds = False
    sizes = (1, 2, 13, 14, 15, 17, 18, 59, 60, 61, 64, 1500, 1514, 1518, 9000, 65507 - 8)
    needs = "src=127.0.0.1,dst=127.0.0.1,txsession=1,"
    bad = (
        ("src=127.0.0.1,dst=127.0.0.1,txsession=1,udp=on", "need both src and dst port for udp"),
        ("src=127.0.0.1,dst=127.0.0.1,txsession=1,txcookie=1", "require both 'rxcookie' and 'txcookie' or neither"),
        ("src=127.0.0.1,dst=127.0.0.1,txsession=1,offset=256", "offset must be less than 256 bytes"),
        ("src=127.0.0.1,dst=127.0.0.1", "'txsession' is missing"),
    )
    header = b"\0\3\0\0\0\0\0\1"

    def open(self) -> NetClient:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
            for s in a, b:
                s.bind(("127.0.0.1", 0))
            self.ports = a.getsockname()[1], b.getsockname()[1]
        ports = f"srcport={self.ports[0]},dstport={self.ports[1]}"
        n0 = self.net.netdev_add(f"l2tpv3,id=n0,src=127.0.0.1,dst=127.0.0.1,udp=on,{ports},txsession=1")
        self.bind()
        return n0

    def bind(self) -> None:
        self.close()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", self.ports[1]))
        self.socket.connect(("127.0.0.1", self.ports[0]))
        self.socket.setblocking(False)

    def put(self, frames: list[bytes]) -> int:
        return super().put([self.header + f for f in frames])

    def take(self) -> list[bytes]:
        return [message[len(self.header) :] for message in super().take()]

    def close(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()


class Tap(Adapter):
    """The kernel's interface in a namespace of its own, and a packet socket on it."""

    marks = (pytest.mark.root,)
    sizes = (14, 15, 17, 18, 59, 60, 61, 64, 1500, 1514, 1518, 9000, 65535)
    stalls = lossless = False       # the kernel takes what it is given, and drops what the socket has no room for
    holds = False                   # the interface's queue has an end
    bad = (("queues=0", "queues"), ("vnet_hdr=on,fd=-1", "fd"), ("ifname=a-name-that-is-too-long", "ifname"))
    options = "tap,id=n0,script=no,downscript=no"
    packets: socket.socket | None = None

    def __init__(self, net: Net, path: Path) -> None:
        super().__init__(net, path)
        self.ns = Namespace()
        self.ends: list[Any] = [self.ns]
        self.prepare()

    def prepare(self) -> None:
        """What is there before the netdev."""

    def open(self) -> NetClient:
        with self.ns:
            n0: Any = self.net.netdev_add(self.options)
        self.ifname = n0.ifname
        self.ns.run(f"ip link set {self.ifname} up mtu 65521 txqueuelen 1000")
        self.listen(self.ifname)
        return n0  # type: ignore[no-any-return]

    def listen(self, ifname: str) -> None:
        if self.packets is not None:
            self.packets.close()
        with self.ns:
            self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self.packets.bind((ifname, 0x88B5))
        self.packets.setblocking(False)

    def fds(self) -> list[int]:
        return [self.packets.fileno()] if self.packets is not None else []

    def put(self, frames: list[bytes]) -> int:
        assert self.packets is not None
        for i, f in enumerate(frames):
            try:
                self.packets.send(f)
            except OSError:                     # EAGAIN, ENOBUFS
                return i
        return len(frames)

    def take(self) -> list[bytes]:
        assert self.packets is not None
        got = []
        try:
            while True:
                got.append(self.packets.recv(1 << 17))
        except BlockingIOError:
            return got

    def kill(self) -> None:
        """The interface goes."""
        assert self.packets is not None
        self.packets.close()
        self.packets = None
        self.ns.run(f"ip link del {self.ifname}")

    def close(self) -> None:
        if self.packets is not None:
            self.packets.close()
            self.packets = None
        while self.ends:
            self.ends.pop().close()


class Bridge(Tap):
    """A port of a Linux bridge; the other end is behind another one."""

    model = "tap"
    sizes = (14, 15, 17, 18, 59, 60, 61, 64, 1500, 1514)
    bad = (("helper=/nonexistent/helper", "/nonexistent/helper"),)

    def prepare(self) -> None:
        self.ns.run("ip link add br7 type bridge mcast_snooping 0")
        self.ns.run("ip link add near type veth peer name far")
        self.ns.run("ip link set near master br7")
        for name in ("br7", "near", "far"):
            self.ns.run(f"ip link set {name} up")
        self.options = f"bridge,id=n0,br=br7,helper={bridge_helper(self.path, 'allow br7')}"

    def open(self) -> NetClient:
        with self.ns:
            n0: Any = self.net.netdev_add(self.options)
        self.ifname = n0.ifname
        self.listen("far")
        return n0  # type: ignore[no-any-return]


class AfXdp(Tap):
    """One end of a veth pair; a packet socket is on the other."""

    sizes = (14, 15, 17, 18, 59, 60, 61, 64, 1500, 1514)
    needs = "ifname=lo,"
    bad = (("ifname=no-such-if", "no-such-if"), ("", "ifname"))

    def open(self) -> NetClient:
        if "v0" not in self.ns.run("ip -o link"):
            self.ns.run("ip link add v0 type veth peer name v1")
            for name in ("v0", "v1"):
                self.ns.run(f"ip link set {name} up")
        with self.ns:
            n0 = self.net.netdev_add("af-xdp,id=n0,ifname=v0")
        self.ifname = "v0"
        self.listen("v1")
        return n0


class User(Adapter):
    """libslirp answers what a guest asks, and sends nothing of its own."""

    raw = mortal = stalls = False
    bad = (("net=nonsense", "net"), ("hostfwd=nonsense", "hostfwd"))

    def open(self) -> NetClient:
        return self.net.netdev_add("user,id=n0")

    def ping(self, rig: "Rig") -> None:
        ask = Ether(src="52:54:00:12:34:56", dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.2.15", pdst="10.0.2.2", hwsrc="52:54:00:12:34:56")
        rig.nic.send([bytes(ask)])
        [answer] = rig.at_nic(1)
        assert Ether(answer)[ARP].op == 2


class Dump(Adapter):
    """Legacy -net dump on hub 0; the other end is the file."""

    raw = mortal = stalls = False

    def open(self) -> NetClient:
        self.net.net_add(f"dump,id=n0,file={self.path}/n0.pcap")
        return self.net.client("n0")

    def ping(self, rig: "Rig") -> None:
        rig.nic.send([frame(5)])
        rig.n0.close()
        with RawPcapReader(f"{self.path}/n0.pcap") as packets:
            assert [data for data, _ in packets] == [frame(5)]


class Vde(Adapter):
    """A switch, and vde_plug at another port of it: each frame behind its length in two bytes. The switch cuts at 1518 bytes."""

    sizes = (14, 15, 17, 18, 59, 60, 61, 64, 1500, 1514, 1518)
    burst = 1
    lossless = holds = False        # the switch drops what a port does not take
    bad = (("sock=/nonexistent/switch", "No such file or directory"), ("port=70000", "port"))

    def open(self) -> NetClient:
        self.sock = str(self.path / "switch")
        if not hasattr(self, "switch"):
            self.start()
        return self.net.netdev_add(f"vde,id=n0,sock={self.sock}")

    def start(self) -> None:
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}      # make asan's
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0, "env": env}
        self.switch = subprocess.Popen(["vde_switch", "-s", self.sock, "-n", "8"], **pipes)
        self.ask("showinfo")
        self.plug = subprocess.Popen(["vde_plug", self.sock], **pipes)
        while "endpoint" not in self.ask("port/allprint").lower():
            assert self.plug.poll() is None, "vde_plug ended"
        self.got = bytearray()
        for f in (self.plug.stdin, self.plug.stdout):
            assert f is not None
            os.set_blocking(f.fileno(), False)

    def ask(self, command: str) -> str:
        """What the switch's console says."""
        assert self.switch.stdin is not None
        assert self.switch.stdout is not None
        self.switch.stdin.write(command.encode() + b"\n")
        said = b""
        while b"\n1000 " not in b"\n" + said:
            more = self.switch.stdout.read(4096)
            assert more, f"vde_switch ended: {said!r}"
            said += more
        return said.decode()

    def fds(self) -> list[int]:
        assert self.plug.stdout is not None
        return [] if self.plug.stdout.closed else [self.plug.stdout.fileno()]

    def put(self, frames: list[bytes]) -> int:
        """One by one: the switch has no patience."""
        assert self.plug.stdin is not None
        self.plug.stdin.write(struct.pack("!H", len(frames[0])) + frames[0])
        return 1

    def take(self) -> list[bytes]:
        assert self.plug.stdout is not None
        self.got += self.plug.stdout.read(1 << 16) or b""
        frames = []
        while len(self.got) >= 2 and len(self.got) >= 2 + (size := struct.unpack_from("!H", self.got)[0]):
            frames.append(bytes(self.got[2 : 2 + size]))
            del self.got[: 2 + size]
        return frames

    def stall(self) -> None:
        self.switch.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.switch.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.switch.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        for process in (self.plug, self.switch):
            process.kill()
            process.wait()
            for f in (process.stdin, process.stdout):
                assert f is not None
                f.close()

    def revive(self) -> None:
        self.start()
        super().revive()

    def close(self) -> None:
        if self.switch.returncode is None:
            self.kill()


class Netmap(NetmapEnd, Adapter):
    """Rings in shared memory; the kernel's part is played in Python."""

    needs = "ifname=x,"
    bad = (("ifname=x,devname=/nonexistent/netmap", "No such file or directory"), ("", "ifname"))

    def revive(self) -> None:
        self.come_back()
        super().revive()


ADAPTERS: dict[str, type[Adapter]] = {
    "af-xdp": AfXdp,
    "bridge": Bridge,
    "dgram": Dgram,
    "dump": Dump,
    "hubport": Hubport,
    "l2tpv3": L2tpv3,
    "netmap": Netmap,
    "null": Null,
    "passt": Passt,
    "pipe": Pipe,
    "py": Py,
    "socket": Socket,
    "socketpair": Socketpair,
    "stream": Stream,
    "tap": Tap,
    "user": User,
    "vde": Vde,
}
WITHOUT = {"nic": "-net nic makes no client: it fills a slot of the NIC table"}
if "libasan" in os.environ.get("LD_PRELOAD", ""):
    del ADAPTERS["vde"]
    WITHOUT["vde"] = "libvdeplug loads its modules with RTLD_DEEPBIND, which ends a process under make asan's sanitizer"


def kinds(**wanted: bool) -> list[Any]:
    """For parametrize: the kinds whose adapters say so."""
    return [
        pytest.param(kind, marks=adapter.marks, id=kind)
        for kind, adapter in ADAPTERS.items()
        if all(getattr(adapter, name) == value for name, value in wanted.items())
    ]


class Rig:
    """nic0 -- n0 == the other end."""

    def __init__(self, kind: str, path: Path, **nic: Any) -> None:
        self.kind = kind
        self.net = Net()
        self.end = ADAPTERS[kind](self.net, path)
        try:
            self.n0 = self.end.open()
        except BaseException:
            self.net.close()
            self.end.close()
            raise
        self.nic = Port(self.net.loop, "nic0", **nic)
        self.plug_in()

    def plug_in(self) -> None:
        """nic0 into n0; a dump has its place on hub 0."""
        plug = self.n0 if self.n0.peer is None else self.net.netdev_add("hubport,id=plug,hubid=0")
        self.nic.pair(plug)

    def rest(self) -> None:
        """Handle what is ready."""
        while self.net.pump():
            pass

    def until(self, done: Callable[[], Any]) -> None:
        while not done():
            assert select.select([self.net.fileno(), *self.end.fds()], [], [], PATIENCE)[0], "nothing happens"
            self.net.pump()
            self.end.push()

    def at_nic(self, n: int) -> list[bytes]:
        """The next n frames that nic0 receives."""
        got: list[bytes] = []

        def enough() -> bool:
            got.extend(self.nic.recv())
            return len(got) >= n

        self.until(enough)
        return got

    def at_end(self, n: int) -> list[bytes]:
        """The next n frames that the other end receives."""
        got: list[bytes] = []

        def enough() -> bool:
            got.extend(self.end.take())
            return len(got) >= n

        self.until(enough)
        return got

    def into_nic(self, frames: list[bytes]) -> list[bytes]:
        """The other end sends; what nic0 receives of it meanwhile and then."""
        got: list[bytes] = []
        left = list(frames)

        def through() -> bool:
            if left:
                del left[: self.end.put(left)]
            self.net.pump()
            got.extend(self.nic.recv())
            return len(got) >= len(frames)

        self.until(through)
        return got

    def round_trip(self, frames: list[bytes]) -> None:
        for f in frames:
            self.nic.send([f])
            assert self.at_end(1) == [f]
            assert self.into_nic([f]) == [f]

    def gets_through(self, f: bytes) -> None:
        """A frame arrives at the other end, in the end: while it is busy it may lose some."""
        for _ in range(10 * PATIENCE):
            self.nic.send([f])
            select.select([self.net.fileno(), *self.end.fds()], [], [], 0 if self.end.lossless else 0.1)
            self.net.pump()
            if f in self.end.take():
                return
        raise AssertionError("it does not arrive")

    def reopen(self) -> None:
        """The other end is back, and with it the way."""
        self.end.revive()
        n0 = self.net.client("n0")
        if n0 is not self.n0:
            self.n0 = n0
            if self.nic.peer is not None:
                self.nic.unpair()
            self.plug_in()

    def drops(self) -> dict[str, int]:
        """Lost at n0 and at nic0, by reason."""
        lost: dict[str, int] = {}
        for client in (self.n0, self.nic):
            for reason, n in client.stats()["drops"].items():
                lost[reason] = lost.get(reason, 0) + n
        return lost

    def close(self) -> None:
        self.nic.close()
        self.net.close()
        self.end.close()
        vars(self).clear()
