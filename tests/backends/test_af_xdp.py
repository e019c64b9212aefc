"""af-xdp against the kernel: veth pairs with a packet socket at the other end, flow control, the interface going down and away (2.9)."""

import ctypes
import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from qnet import HostError, Net, OptionError
from qnet.backends import af_xdp
from qnet.backends.af_xdp import AfXdp, Program, put_into_map
from qnet.testing import Port

pytestmark = pytest.mark.root

ETHERTYPE = 0x88B5                          # IEEE 802 local experimental
AF_XDP = 44
MAX_FRAME = 4096
libc = ctypes.CDLL(None)
RING = 2048


def frame(n: int, size: int = 60) -> bytes:
    return (b"\xff" * 6 + b"\x02\0\0\0\0\1" + struct.pack("!HI", ETHERTYPE, n) + bytes(range(256)) * 300)[:size]


def veth(ns: Any, queues: int = 1, mtu: int = 1500) -> None:
    both = f"mtu {mtu} numtxqueues {queues} numrxqueues {queues}"
    ns.run(f"ip link add v0 {both} type veth peer name v1 {both}")
    for name in ("v0", "v1"):
        ns.run(f"ip link set {name} up")


FLOWS = [bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / IP(dst="10.0.0.1") / UDP(sport=i + 1000, dport=7)) for i in range(200)]


class Wire:
    """port == af-xdp on v0 | veth | v1, where a socket sees the frames."""

    def __init__(self, net: Net, ns: Any, options: str = "", queues: int = 1, mtu: int = 1500, **port: Any) -> None:
        self.net, self.ns = net, ns
        veth(ns, queues, mtu)
        self.socket = self.listen("v1")
        self.ports: list[Port] = []
        self.xdp, self.port = self.add(f"ifname=v0{options}", **port)

    def add(self, options: str, **port: Any) -> tuple[AfXdp, Port]:
        n = len(self.ports)
        with self.ns:
            client = self.net.netdev_add(f"af-xdp,id=x{n},{options}")
        assert isinstance(client, AfXdp)
        self.ports.append(Port(self.net.loop, f"port{n}", **port))
        self.ports[-1].pair(client)
        return client, self.ports[-1]

    def listen(self, name: str) -> socket.socket:
        with self.ns:
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        s.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)        # SO_RCVBUFFORCE
        s.bind((name, ETHERTYPE))
        s.settimeout(30)
        return s

    def send_flows(self) -> None:
        """The kernel spreads them over the queues."""
        for flow in FLOWS:
            self.socket.sendto(flow, ("v1", 0x0800))

    def program(self, name: str = "v0") -> str:
        """How the XDP program of an interface is attached: xdp, xdpgeneric, or ""."""
        found = re.search(r" mtu \d+ (xdp\w*) ", self.ns.run(f"ip link show {name}"))
        return found[1] if found else ""

    def drops(self) -> dict[str, int]:
        drops = self.xdp.stats()["drops"]
        assert isinstance(drops, dict)
        return drops

    def close(self) -> None:
        self.socket.close()
        for port in self.ports:
            port.close()
        self.net.close()
        vars(self).clear()


@pytest.fixture
def wire(net: Net, ns: Any) -> Iterator[Callable[..., Wire]]:
    made: list[Wire] = []

    def make(options: str = "", **more: Any) -> Wire:
        made.append(Wire(net, ns, options, **more))
        return made[-1]

    yield make
    for w in made:
        w.close()


def received(s: socket.socket) -> list[bytes]:
    """What a socket holds now."""
    got = []
    s.setblocking(False)
    try:
        while True:
            got.append(s.recv(5000))
    except BlockingIOError:
        return got
    finally:
        s.settimeout(30)


def take(wire: Wire, port: Port, n: int, pump_until: Callable[..., None]) -> list[bytes]:
    got: list[bytes] = []

    def enough() -> bool:
        got.extend(port.recv())
        return len(got) >= n

    pump_until(wire.net, enough)
    return got


# ------------------------------------------------------------------------------------------------------------------ traffic


@pytest.mark.parametrize(("mode", "attached"), [("", "xdp"), (",mode=native", "xdp"), (",mode=skb", "xdpgeneric")])
@pytest.mark.parametrize("copy", ["", ",force-copy=on"])
def test_frames_both_ways(wire: Any, pump_until: Any, mode: str, attached: str, copy: str) -> None:
    w = wire(mode + copy)
    assert w.program() == attached
    for size in (14, 60, 61, 1000, 1514):
        w.socket.send(frame(size, size))
        assert take(w, w.port, 1, pump_until) == [frame(size, size)]
        w.port.send([[frame(size, size)[:1], frame(size, size)[1:14], frame(size, size)[14:]]])
        assert w.socket.recv(5000) == frame(size, size)
    assert w.drops() == {}
    w.net.netdev_del("x0")
    assert w.program() == ""


def test_thousands_of_frames_in_order(wire: Any, pump_until: Any, rests: Any) -> None:
    w = wire()
    got = []
    for first in range(0, 8000, 200):
        for i in range(200):
            w.socket.send(frame(first + i, 1514))
        got += take(w, w.port, 200, pump_until)
        w.port.send([frame(first + i, 1514) for i in range(200)])
        assert [w.socket.recv(5000) for _ in range(200)] == [frame(first + i, 1514) for i in range(200)]
    assert got == [frame(i, 1514) for i in range(8000)]
    stats = w.xdp.stats()
    assert stats["wakeups"] < 800
    assert stats["syscalls"] < 1000
    rests(w.net)
    assert w.xdp.stats()["wakeups"] == stats["wakeups"]


def test_super_frames_leave_as_segments(wire: Any) -> None:
    """The core segments for it; oversize is what does not fit a frame of the UMEM, runt what is shorter than a header."""
    w = wire(",mode=skb", mtu=9000)
    ip = bytes.fromhex("4500000000010000400600000a0000010a000002")
    tcp = bytes.fromhex("0001000200000001000000005010ffff00000000")
    offload = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    w.socket.bind(("v1", 0x0003))                           # all protocols
    w.port.send([bytes(12) + b"\x08\x00" + ip + tcp + bytes(3000)], offload=offload)
    assert [len(w.socket.recv(5000)) - 54 for _ in range(3)] == [1460, 1460, 80]
    w.port.send([frame(1, MAX_FRAME + 1), frame(2, 13), frame(3, MAX_FRAME)])
    assert w.socket.recv(5000) == frame(3, MAX_FRAME)
    assert w.drops() == {"oversize": 1, "malformed": 1}


def test_queues(wire: Any, pump_until: Any) -> None:
    """Each queue is a client; together they get all flows."""
    w = wire(",queues=2,start-queue=1", queues=4)
    clients = [client for client in w.net._clients if client.name == "x0"]
    assert [client.info_str for client in clients] == ["af-xdp0 to v0", "af-xdp1 to v0"]
    second = Port(w.net.loop, "second")
    second.pair(clients[1])
    w.ports.append(second)
    with w.listen("v0") as kernel:
        kernel.bind(("v0", 0x0800))
        w.send_flows()
        got: list[list[bytes]] = [[], [], []]

        def all_there() -> bool:
            got[0] += w.port.recv()
            got[1] += second.recv()
            got[2] += received(kernel)
            return sum(map(len, got)) >= len(FLOWS)

        pump_until(w.net, all_there)
    assert all(len(part) > 10 for part in got)
    assert sorted(got[0] + got[1] + got[2]) == sorted(FLOWS)
    second.send([frame(1)])
    w.port.send([frame(2)])
    assert [w.socket.recv(5000), w.socket.recv(5000)] == [frame(1), frame(2)]
    w.net.netdev_del("x0")
    assert w.program() == ""


def test_two_netdevs_share_an_interface(wire: Any, pump_until: Any) -> None:
    """The program is loaded once, and goes with the last of them."""
    w = wire(queues=2)
    x1, port1 = w.add("ifname=v0,start-queue=1")
    w.send_flows()
    pump_until(w.net, lambda: w.xdp.stats()["tx_packets"] + x1.stats()["tx_packets"] == len(FLOWS))
    assert w.port.recv()
    assert port1.recv()
    w.net.netdev_del("x0")
    assert w.program() == "xdp"
    port1.send([frame(1)])
    assert w.socket.recv(5000) == frame(1)
    w.net.netdev_del("x1")
    assert w.program() == ""


# ------------------------------------------------------------------------------------------------------------- flow control


def test_while_the_peer_has_no_room_nothing_is_read(wire: Any, pump_until: Any, rests: Any) -> None:
    """The ring holds what comes meanwhile, and the kernel drops what does not fit."""
    w = wire(capacity=3)
    for i in range(3000):
        w.socket.send(frame(i))
    assert take(w, w.port, 3, pump_until) == [frame(i) for i in range(3)]
    rests(w.net)
    wakeups = w.xdp.stats()["wakeups"]
    w.socket.send(frame(9999))
    rests(w.net)
    assert w.xdp.stats()["wakeups"] == wakeups
    assert w.port.queued == 0
    w.port.room(5)
    assert w.port.recv() == [frame(i) for i in range(3, 8)]
    w.port.room(None)
    got = take(w, w.port, RING - 7, pump_until)
    assert got == [*(frame(i) for i in range(8, RING)), frame(9999)]        # three had been consumed when the last one came
    w.socket.send(frame(3))
    assert take(w, w.port, 1, pump_until) == [frame(3)]
    assert w.port.breaches == []


def test_a_peer_that_flushes_in_its_receive_does_not_recurse(wire: Any, pump_until: Any) -> None:
    w = wire(capacity=1, asks=False, reaction="flush")
    for i in range(200):
        w.socket.send(frame(i))
    assert take(w, w.port, 200, pump_until) == [frame(i) for i in range(200)]
    assert w.port.breaches == []


class Slow:
    """port == af-xdp on m0 | macvlan over v0, which a token bucket makes slow | veth | v1."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        wire.net.netdev_del("x0")
        self.run = wire.ns.run
        self.run("ip link add m0 link v0 type macvlan mode private")
        self.run("ip link set m0 up")
        self.run("tc qdisc add dev v0 root tbf rate 8kbit burst 2000 limit 100000000")
        self.xdp, self.port = wire.add("ifname=m0")


@pytest.fixture
def slow(wire: Any) -> Iterator[Slow]:
    made = Slow(wire())
    yield made
    vars(made).clear()


@pytest.mark.parametrize("n", [500, 4000])
def test_what_finds_no_room_waits_and_follows_in_order(slow: Slow, pump_until: Any, rests: Any, n: int) -> None:
    """The UMEM has frames that the interface has not sent, as many as it takes: nothing spins meanwhile, and nothing is lost. With 500
    the socket counts as writable all the time."""
    w = slow.wire
    slow.port.send([frame(i, 1000) for i in range(n)])
    assert slow.xdp.queued >= n - RING - 64
    assert slow.xdp.queued > 0 or n == 500
    w.net.pump()
    wakeups = slow.xdp.stats()["wakeups"]
    rests(w.net)
    assert slow.xdp.stats()["wakeups"] - wakeups < 20
    slow.run("tc qdisc change dev v0 root tbf rate 10gbit burst 10mb limit 100000000")
    got: list[bytes] = []

    def all_there() -> bool:
        got.extend(received(w.socket))
        return len(got) == n

    pump_until(w.net, all_there)
    assert sorted(got) == [frame(i, 1000) for i in range(n)]        # the kernel sends on two processors, while tc changes the rate
    assert slow.xdp.queued == 0
    assert slow.xdp.stats()["drops"] == {}
    rests(w.net)


@pytest.mark.parametrize("what", ["down", "gone", "closed"])
def test_the_interface_ends_while_frames_wait(slow: Slow, pump_until: Any, rests: Any, what: str) -> None:
    w = slow.wire
    slow.port.send([frame(i, 1000) for i in range(4000)])
    waiting = slow.xdp.queued
    assert waiting
    if what == "down":
        slow.run("ip link set m0 down")
        pump_until(w.net, lambda: slow.xdp.queued == 0)
        assert slow.xdp.stats()["drops"] == {"io": waiting}
        assert not slow.xdp.link_down
        slow.run("tc qdisc del dev v0 root")
        slow.run("ip link set m0 up")
        pump_until(w.net, lambda: not w.net.pump())
        slow.port.send([frame(9999)])
        while w.socket.recv(5000) != frame(9999):           # in front of it, what was with the kernel
            pass
    elif what == "gone":
        slow.run("ip link del m0")
        pump_until(w.net, lambda: slow.xdp.link_down)
        assert slow.xdp.queued == 0
        assert slow.xdp.stats()["drops"] in ({"link-down": waiting}, {"io": waiting})
    else:
        w.net.netdev_del("x1")
        assert w.program("m0") == ""
    rests(w.net)


# -------------------------------------------------------------------------------------------------------- the interface's end


def test_down_and_up(wire: Any, pump_until: Any, rests: Any) -> None:
    """What is sent while it is down waits with the kernel, as far as the UMEM goes."""
    w = wire()
    w.ns.run("ip link set v0 down")
    w.port.send([frame(i) for i in range(RING + 100)])
    assert w.drops() == {"io": 100}
    rests(w.net)
    w.ns.run("ip link set v0 up")
    rests(w.net)
    assert [w.socket.recv(5000) for _ in range(RING)] == [frame(i) for i in range(RING)]
    w.socket.send(frame(1))
    assert take(w, w.port, 1, pump_until) == [frame(1)]
    w.port.send([frame(2)])
    assert w.socket.recv(5000) == frame(2)


def test_the_interface_goes(wire: Any, pump_until: Any, rests: Any) -> None:
    """The link goes down, the NIC's too; QEMU does not notice."""
    w = wire(is_nic=True)
    w.ns.run("ip link add o0 type veth peer name o1")
    w.ns.run("ip link del o0")                           # is none of its business
    rests(w.net)
    assert w.xdp.connected
    w.ns.run("ip link del v1")
    pump_until(w.net, lambda: w.xdp.link_down)
    assert (w.xdp.connected, w.port.link_down, w.port.link_changes) == (False, True, 1)
    w.net.set_link("x0", True)
    w.port.send([frame(1)])
    assert w.drops() == {"io": 1}
    rests(w.net)
    w.net.netdev_del("x0")


def test_the_interface_moves_to_another_namespace(wire: Any, pump_until: Any, namespace: Any) -> None:
    w = wire()
    other = namespace()
    w.ns.run(f"ip link set v0 netns /proc/{os.getpid()}/fd/{other._fd}")
    pump_until(w.net, lambda: w.xdp.link_down)
    w.net.netdev_del("x0")
    assert "prog/xdp" not in other.run("ip link show v0")


def test_its_namespace_is_deleted(net: Net, pump_until: Any) -> None:
    """It only loses its name: the netdev keeps it alive."""
    name = f"qnet-test-{os.getpid()}"

    def run(command: str) -> None:
        subprocess.run(command.split(), check=True)

    def enter(path: str) -> None:
        with open(path) as f:
            assert libc.setns(f.fileno(), 0) == 0

    run(f"ip netns add {name}")
    with open("/proc/thread-self/ns/net") as home:
        try:
            run(f"ip -n {name} link add v0 type veth peer name v1")
            run(f"ip -n {name} link set v0 up")
            run(f"ip -n {name} link set v1 up")
            enter(f"/run/netns/{name}")
            client = net.netdev_add("af-xdp,id=x,ifname=v0")
            other = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            other.bind(("v1", ETHERTYPE))
        finally:
            assert libc.setns(home.fileno(), 0) == 0
            run(f"ip netns del {name}")
    port = Port(net.loop, "port")
    port.pair(client)
    with other:
        other.settimeout(30)
        port.send([frame(1)])
        assert other.recv(5000) == frame(1)
        other.send(frame(2))
        pump_until(net, lambda: port.recv() == [frame(2)])
    port.close()


@pytest.mark.parametrize("state", ["idle", "unread", "peer full", "down", "gone", "unpaired"])
@pytest.mark.parametrize("collected", [False, True])
def test_it_can_be_closed_in_every_state(wire: Any, pump_until: Any, state: str, collected: bool) -> None:
    """Descriptors, mappings and the program go with it, closed or collected."""
    w = wire()
    w.net.netdev_del("x0")
    with w.ns:
        [client] = af_xdp.open(w.net, "x", af_xdp.Options(ifname="v0"))
    port = Port(w.net.loop, "port", capacity=2)
    port.pair(client)
    if state in ("unread", "peer full"):
        for i in range(100):
            w.socket.send(frame(i))
    if state == "peer full":
        pump_until(w.net, lambda: len(port.recv()) == 2)
    if state == "down":
        w.ns.run("ip link set v0 down")
        port.send([frame(1)])
    if state == "gone":
        w.ns.run("ip link del v0")
        pump_until(w.net, lambda: client.link_down)
    if state == "unpaired":
        client.unpair()
    port.close()
    if collected:
        del client
    else:
        client.close()
        client.close()
        assert not client.connected
    with open("/proc/self/maps") as maps:
        assert "socket:" not in maps.read()
    if state != "gone":
        assert w.program() == ""


def test_it_is_opened_and_closed_many_times(wire: Any) -> None:
    """All of its memory comes back."""
    w = wire()

    def size() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    before = 0
    for i in range(30):
        if i == 5:
            before = size()
        w.net.netdev_del(f"x{0 if i == 0 else 'again'}")
        with w.ns:
            w.net.netdev_add("af-xdp,id=xagain,ifname=v0")
    assert size() - before < 16 << 20


def test_a_killed_run_leaves_nothing(wire: Any, pump_until: Any) -> None:
    w = wire()
    w.net.netdev_del("x0")
    script = """
        import os, signal
        from qnet import Net
        net = Net()
        net.netdev_add("af-xdp,id=x,ifname=v0")
        os.system("ip link show v0")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    with w.ns:
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert "prog/xdp" in run.stdout
    pump_until(w.net, lambda: w.program() == "")            # the kernel takes it off a moment later
    with w.ns:
        assert w.net.netdev_add("af-xdp,id=again,ifname=v0").info_str == "af-xdp0 to v0"


# -------------------------------------------------------------------------------------------------------- somebody else's program


def test_sockets_of_somebody_else(wire: Any, pump_until: Any) -> None:
    """inhibit=on,sock-fds=: a helper with more rights has loaded the program, and put the sockets into its map."""
    w = wire(queues=2)
    w.net.netdev_del("x0")
    with w.ns:
        program = Program(socket.if_nametoindex("v0"), None, "")
        fds = [libc.socket(AF_XDP, socket.SOCK_RAW, 0) for _ in range(2)]
    for i, fd in enumerate(fds):
        assert put_into_map(program.map, i, fd) == 0
    x1, port1 = w.add(f"ifname=v0,inhibit=on,queues=2,sock-fds={fds[0]}:{fds[1]}")
    [second] = [client for client in w.net._clients if client.name == "x1" and client is not x1]
    for fd in fds:
        os.close(fd)                                        # they stay the caller's
    w.send_flows()
    pump_until(w.net, lambda: x1.stats()["tx_packets"] + second.stats()["drops"].get("no-peer", 0) == len(FLOWS))
    port1.send([frame(1)])
    assert w.socket.recv(5000) == frame(1)
    w.net.netdev_del("x1")
    assert w.program() == "xdp"                             # not ours
    program.close()
    assert w.program() == ""


def test_a_pinned_map(ns: Any) -> None:
    """inhibit=on,map-path=,map-start-index=: in a mount namespace of its own, which takes the bpf file system with it."""
    veth(ns, 2)
    script = f"""
        import os, select, socket
        from qnet import Net
        from qnet.backends._afxdp import bpf
        from qnet.backends.af_xdp import Program, _address, _attr, ffi
        from qnet.testing import Port

        os.system("mount --make-rprivate / && mount -t tmpfs t /mnt && mkdir /mnt/bpf && mount -t bpf b /mnt/bpf")
        program = Program(socket.if_nametoindex("v0"), None, "")
        path = ffi.new("char[]", b"/mnt/bpf/xsks")
        assert bpf(6, _attr("QII", _address(path), program.map, 0)) == 0
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        s.bind(("v1", {ETHERTYPE}))
        with Net() as net:
            client = net.netdev_add("af-xdp,id=x,ifname=v0,start-queue=1,inhibit=on,map-path=/mnt/bpf/xsks,map-start-index=1")
            port = Port(net.loop, "port")
            port.pair(client)
            got = []
            for flow in {FLOWS!r}:
                s.sendto(flow, ("v1", 0x0800))
            while not got:
                assert select.select([net], [], [], 30)[0]
                net.pump()
                got += port.recv()
            try:
                net.netdev_add("af-xdp,id=y,ifname=v0,inhibit=on,map-path=/mnt/bpf/nope")
            except OSError as e:
                print(e.text)
            try:
                net.netdev_add("af-xdp,id=y,ifname=v0,inhibit=on,map-path=/mnt/bpf/xsks,map-start-index=1024")
            except OSError as e:
                print(e.text)
            port.close()
        print(len(got) > 0)
        """
    with ns:
        run = subprocess.run(["unshare", "--mount", sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "failed to create AF_XDP socket for v0 queue_id: 0: No such file or directory",
        "failed to create AF_XDP socket for v0 queue_id: 0: Argument list too long",
        "True",
    ]


@pytest.mark.parametrize(("mode", "why"), [("", "Device or resource busy"), (",mode=skb", "File exists")])
def test_a_program_that_is_there_already(wire: Any, mode: str, why: str) -> None:
    """It is left alone."""
    w = wire()
    w.net.netdev_del("x0")
    with w.ns:
        program = Program(socket.if_nametoindex("v0"), None, "")
        with pytest.raises(HostError) as e:
            w.net.netdev_add(f"af-xdp,id=x,ifname=v0{mode}")
    assert e.value.text == f"failed to create AF_XDP socket for v0 queue_id: 0: {why}"
    assert "another program's XDP program" in e.value.hint
    assert w.program() == "xdp"
    program.close()


def test_a_queue_that_is_taken(wire: Any, pump_until: Any) -> None:
    w = wire()
    with w.ns, pytest.raises(HostError) as e:
        w.net.netdev_add("af-xdp,id=y,ifname=v0")
    assert (e.value.text, e.value.errno) == ("failed to create AF_XDP socket for v0 queue_id: 0: Device or resource busy", errno.EBUSY)
    w.socket.send(frame(1))                                 # the other one goes on
    assert take(w, w.port, 1, pump_until) == [frame(1)]


# ------------------------------------------------------------------------------------------------------------------- options

NO_SOCKET = "failed to create AF_XDP socket for v0 queue_id: "


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("", "Parameter 'ifname' is missing"),
        ("ifname=nope", "failed to get ifindex for 'nope': No such device"),
        ("ifname=", "failed to get ifindex for '': No such device"),
        ("ifname=much-too-long-for-a-name", "failed to get ifindex for 'much-too-long-for-a-name': No such device"),
        ("ifname=v0,mode=foo", "Parameter 'mode' does not accept value 'foo'"),
        ("ifname=v0,queues=0", "invalid number of queues (0) for 'v0'"),
        ("ifname=v0,queues=-1", "invalid number of queues (-1) for 'v0'"),
        ("ifname=v0,queues=2", NO_SOCKET + "1: Invalid argument"),
        ("ifname=v0,queues=2000000", NO_SOCKET + "0: Invalid argument"),
        ("ifname=v0,start-queue=1", NO_SOCKET + "1: Invalid argument"),
        ("ifname=v0,start-queue=-1", NO_SOCKET + "-1: Invalid argument"),
        ("ifname=v0,start-queue=9223372036854775807", NO_SOCKET + "9223372036854775807: Invalid argument"),
        ("ifname=v0,inhibit=on", "'inhibit=on' requires 'sock-fds' or 'map-path'"),
        ("ifname=v0,sock-fds=3", "'sock-fds' and 'map-path' require 'inhibit=on'"),
        ("ifname=v0,inhibit=off,map-path=/x", "'sock-fds' and 'map-path' require 'inhibit=on'"),
        ("ifname=v0,inhibit=on,sock-fds=3,map-path=/x", "'sock-fds' and 'map-path' are mutually exclusive"),
        ("ifname=v0,map-start-index=1", "'map-start-index' requires 'map-path'"),
        ("ifname=v0,inhibit=on,sock-fds=3,map-start-index=0", "'map-start-index' requires 'map-path'"),
        ("ifname=v0,inhibit=on,map-path=/x,map-start-index=-1", "'map-start-index' cannot be negative (-1)"),
        ("ifname=v0,inhibit=on,sock-fds=3:4", "expected 1 socket fds, got 2"),
        ("ifname=v0,inhibit=on,queues=2,sock-fds=3", "expected 2 socket fds, got 1"),
        ("ifname=v0,inhibit=on,sock-fds=", "File descriptor named '' has not been found"),
        ("ifname=v0,inhibit=on,sock-fds=abc", "File descriptor named 'abc' has not been found"),
        ("ifname=v0,inhibit=on,sock-fds=1x", "Invalid file descriptor number '1x'"),
        ("ifname=v0,inhibit=on,sock-fds=9999", NO_SOCKET + "0: Bad file descriptor"),
        ("ifname=v0,inhibit=on,sock-fds={file}", "failed to create umem for v0 queue_index: 0: Socket operation on non-socket"),
        ("ifname=v0,inhibit=on,sock-fds={socket}", "failed to create umem for v0 queue_index: 0: Operation not supported"),
        ("ifname=v0,inhibit=on,map-path=/dev/null", NO_SOCKET + "0: Permission denied"),
        ("ifname=v0,foo=1", "Invalid parameter 'foo'"),
    ],
)
def test_bad_options(net: Net, ns: Any, options: str, text: str) -> None:
    veth(ns)
    with ns, open(__file__) as f, socket.socket(socket.AF_UNIX) as s, pytest.raises((OptionError, HostError)) as e:
        net.netdev_add("af-xdp,id=x," + options.format(file=f.fileno(), socket=s.fileno()))
    assert e.value.text == text
    assert "prog/" not in ns.run("ip link show v0")


def test_without_privileges(ns: Any) -> None:
    veth(ns)
    script = """
        from qnet import Net
        with Net() as net:
            try:
                net.netdev_add("af-xdp,id=x,ifname=v0")
            except OSError as e:
                print(e.text, e.hint, sep="\\n")
        """
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", textwrap.dedent(script)]
    with ns:
        run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout.splitlines()[:1] == [NO_SOCKET + "0: Operation not permitted"], run.stderr
    assert "CAP_NET_RAW" in run.stdout
