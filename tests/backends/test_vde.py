"""vde: frames over Debian's vde_switch to other ports and to vde_plug; flow control; the switch's end, in every state (2.9)."""

import errno
import grp
import os
import pwd
import select
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qnet import HostError, Net, OptionError, Unavailable
from qnet.backends import vde
from qnet.testing import Port

pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="libvdeplug uses RTLD_DEEPBIND, with which the sanitizer ends the process"
)
PATIENCE = 30                   # seconds after which a test gives up waiting


def frame(n: int, size: int = 60) -> bytes:
    return (b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + struct.pack("!I", n)).ljust(size, b"\xa5")[:size]


class Switch:
    """A vde_switch; it ends with its stdin, so nothing of it outlives this process."""

    def __init__(self, path: Path, *args: str) -> None:
        self.sock = str(path)
        self.process = subprocess.Popen(
            ["vde_switch", "-s", self.sock, "-n", "8", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("showinfo")

    def ask(self, command: str) -> str:
        """What the switch's console says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        said = ""
        for line in self.process.stdout:
            said += line
            if line.startswith("1") and line[4:5] == " ":
                return said
        raise AssertionError(f"vde_switch ended: {said}")

    def stop(self) -> None:
        """Returns when it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class World:
    """nic0 -- n0 == switch == n1 -- nic1."""

    def __init__(self, path: Path) -> None:
        self.switch = Switch(path)
        self.net = Net()
        self.nics: list[Port] = []

    def add(self, options: str = "", **port: Any) -> tuple[Any, Port]:
        """A new netdev and a client in place of its NIC."""
        n = len(self.nics)
        netdev = self.net.netdev_add(f"vde,id=n{n},sock={self.switch.sock}{options}")
        self.nics.append(Port(self.net.loop, f"nic{n}", **port))
        self.nics[-1].pair(netdev)
        return netdev, self.nics[-1]

    def pump(self, until: Callable[[], Any]) -> None:
        while not until():
            assert select.select([self.net.fileno()], [], [], PATIENCE)[0], "nothing happens"
            self.net.pump()

    def rest(self) -> None:
        """Handle what is ready."""
        while self.net.pump():
            pass

    def frames(self, nic: Port, n: int) -> list[bytes]:
        """The next n frames."""
        got: list[bytes] = []

        def enough() -> bool:
            got.extend(nic.recv())
            return len(got) >= n

        self.pump(enough)
        return got

    def close(self) -> None:
        for nic in self.nics:
            nic.close()
        self.net.close()
        self.switch.close()
        vars(self).clear()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    w = World(tmp_path / "switch")
    yield w
    w.close()


# -------------------------------------------------------------------------------------------------------------- traffic


def test_frames_between_two_ports(world: World) -> None:
    """The switch cuts what is longer than 1518 bytes."""
    _, nic0 = world.add()
    _, nic1 = world.add()
    for size in (14, 60, 61, 1514, 1518):
        nic0.send([[frame(size, size)[:1], frame(size, size)[1:]]])
        assert world.frames(nic1, 1) == [frame(size, size)]
        nic1.send([frame(size, size)])
        assert world.frames(nic0, 1) == [frame(size, size)]
    assert nic0.recv() == []
    nic0.send([frame(2, 9000), frame(3, 69632)])
    assert world.frames(nic1, 2) == [frame(2, 1518), frame(3, 1518)]
    assert [client["drops"] for client in world.net.stats()] == [{}, {}]


def test_frames_to_and_from_vde_plug(world: World) -> None:
    """Another program's port: vde_plug puts each frame's length in two bytes in front."""
    _, nic0 = world.add()
    with subprocess.Popen(["vde_plug", world.switch.sock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as plug:
        assert plug.stdin is not None
        assert plug.stdout is not None
        plug.stdin.write(struct.pack("!H", 100) + frame(1, 100))
        assert world.frames(nic0, 1) == [frame(1, 100)]
        nic0.send([frame(2, 1514)])
        got = b""
        while len(got) < 2 + 1514:
            got += plug.stdout.read(4096) or b""
        assert got == struct.pack("!H", 1514) + frame(2, 1514)
        plug.kill()


def test_thousands_of_frames_in_order(world: World) -> None:
    """What one port sends, in bursts the switch keeps up with, the other receives: all of it, in order."""
    _, nic0 = world.add()
    n1, nic1 = world.add()
    got = []
    for first in range(0, 4000, 8):
        nic0.send([frame(first + i, 1514) for i in range(8)])
        got += world.frames(nic1, 8)
    assert got == [frame(i, 1514) for i in range(4000)]
    assert n1.stats()["tx_packets"] == 4000


def test_a_super_frame_leaves_as_segments(world: World) -> None:
    _, nic0 = world.add()
    _, nic1 = world.add()
    ip = bytes.fromhex("4500000000010000400600000a0000010a000002")
    tcp = bytes.fromhex("0001000200000001000000005010ffff00000000")
    offload = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
    nic0.send([b"\xff" * 6 + b"\x02\0\0\0\0\x01\x08\x00" + ip + tcp + bytes(3000)], offload=offload)
    assert [len(f) - 54 for f in world.frames(nic1, 3)] == [1460, 1460, 80]


def test_in_the_networks_own_thread(world: World) -> None:
    world.add(reaction="echo")
    with subprocess.Popen(["vde_plug", world.switch.sock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as plug:
        assert plug.stdin is not None
        assert plug.stdout is not None
        world.net.start()
        for i in range(50):
            plug.stdin.write(struct.pack("!H", 60) + frame(i))
            assert plug.stdout.read(100) == struct.pack("!H", 60) + frame(i)
        world.net.stop()
        plug.kill()


# --------------------------------------------------------------------------------------------------------- flow control


def test_what_finds_no_room_waits_and_follows_in_order(world: World) -> None:
    """QEMU loses it. The switch takes every frame once it goes on; what it then cannot pass on is its own loss."""
    n0, nic0 = world.add()
    n1, nic1 = world.add()
    world.switch.stop()
    nic0.send([frame(i, 1514) for i in range(2000)])
    assert 1000 < n0.queued < 2000
    wakeups = n0.stats()["wakeups"]
    assert world.net.pump() == 0
    assert n0.stats()["wakeups"] == wakeups
    world.switch.go_on()
    world.pump(lambda: n0.queued == 0)
    assert n0.stats()["rx_packets"] == 2000
    world.switch.ask("showinfo")
    world.switch.ask("showinfo")                            # it has dealt with all of them
    world.rest()
    got = nic1.recv()
    nic0.send([frame(2000)])
    while not got or got[-1] != frame(2000):
        got += world.frames(nic1, 1)
    assert got == sorted(got)
    assert len(got) > 10
    assert (n0.stats()["drops"], n1.stats()["drops"]) == ({}, {})


def test_while_the_peer_has_no_room_nothing_is_read(world: World) -> None:
    """QEMU reads on. No wake-ups meanwhile, and other ports go on; nothing that came in is lost."""
    _, nic0 = world.add()
    n1, slow = world.add(capacity=3)
    _, nic2 = world.add()
    nic0.send([frame(i) for i in range(8)])
    assert world.frames(nic2, 8) == [frame(i) for i in range(8)]
    assert world.frames(slow, 3) == [frame(i) for i in range(3)]
    world.rest()
    wakeups = n1.stats()["wakeups"]
    nic0.send([frame(8)])
    assert world.frames(nic2, 1) == [frame(8)]
    assert n1.stats()["wakeups"] == wakeups
    assert slow.queued == 0
    got: list[bytes] = []
    while len(got) < 6:
        slow.room(2)
        got += world.frames(slow, 2)
    assert got == [frame(i) for i in range(3, 9)]
    assert slow.breaches == []


def test_a_peer_that_flushes_in_its_receive_does_not_recurse(world: World) -> None:
    _, nic0 = world.add()
    _, nic1 = world.add(capacity=1, asks=False, reaction="flush")
    nic0.send([frame(i) for i in range(8)])
    assert world.frames(nic1, 8) == [frame(i) for i in range(8)]
    assert nic1.breaches == []


# ------------------------------------------------------------------------------------------------------ the switch's end


def test_the_switch_goes(world: World) -> None:
    """The link goes down, and the NIC's with it; what came before the end is received; nobody waits for anything any more."""
    n0, nic0 = world.add(is_nic=True)
    n1, nic1 = world.add()
    nic1.send([frame(1)])
    world.pump(lambda: n1.stats()["rx_packets"])
    world.switch.ask("showinfo")                            # it has passed the frame on
    world.switch.kill()
    world.pump(lambda: n0.link_down and n1.link_down)
    assert nic0.recv() == [frame(1)]
    assert (n0.connected, n0.error, nic0.link_down, nic0.link_changes) == (False, None, True, 1)
    wakeups = n0.stats()["wakeups"]
    nic1.send([frame(2)])
    assert n1.stats()["drops"] == {"link-down": 1}
    world.net.set_link("n1", True)
    nic1.send([frame(3)])
    assert n1.stats()["drops"] == {"link-down": 1, "io": 1}
    assert world.net.pump() == 0
    assert n0.stats()["wakeups"] == wakeups
    world.net.netdev_del("n0")


def test_the_switch_goes_while_frames_wait_both_ways(world: World) -> None:
    n0, nic0 = world.add(capacity=1)
    _, nic1 = world.add()
    nic1.send([frame(i) for i in range(4)])
    assert world.frames(nic0, 1) == [frame(0)]
    world.switch.ask("showinfo")
    world.rest()
    world.switch.stop()
    nic0.send([frame(i, 1514) for i in range(2000)])
    waiting = n0.queued
    assert waiting > 0
    world.switch.kill()
    world.pump(lambda: n0.link_down)
    assert n0.queued == 0
    drops = n0.stats()["drops"]
    assert set(drops) <= {"io", "link-down"}
    assert waiting <= sum(drops.values()) <= waiting + 3
    nic0.room(None)
    assert nic0.recv() == []
    assert world.net.pump() == 0


def test_a_new_switch_needs_a_new_netdev(world: World) -> None:
    n0, _ = world.add()
    world.switch.kill()
    world.pump(lambda: n0.link_down)
    again = Switch(Path(world.switch.sock))
    world.net.netdev_del("n0")
    other = world.net.netdev_add(f"vde,id=n0,sock={again.sock}")
    assert other.connected
    again.close()


@pytest.mark.parametrize("state", ["idle", "unread", "peer full", "switch full", "gone", "unpaired"])
@pytest.mark.parametrize("collected", [False, True])
def test_it_can_be_closed_in_every_state(world: World, state: str, collected: bool) -> None:
    """nothing_left sees to it that the library's descriptors go with it, closed or collected; the switch sees its port go."""
    _, nic1 = world.add()
    [n0] = vde.open(world.net, "n", vde.Options(sock=world.switch.sock))
    nic0 = Port(world.net.loop, "nic", capacity=2)
    nic0.pair(n0)
    world.switch.ask("showinfo")
    if state in ("unread", "peer full"):
        nic1.send([frame(i) for i in range(8)])
        world.switch.ask("showinfo")
    if state == "peer full":
        world.frames(nic0, 2)
    if state == "switch full":
        world.switch.stop()
        nic0.send([frame(i, 1514) for i in range(1000)])
        assert n0.queued
        world.switch.go_on()
    if state == "gone":
        world.switch.kill()
        world.pump(lambda: n0.link_down)
    if state == "unpaired":
        n0.unpair()
    nic0.close()
    if collected:
        del n0
    else:
        n0.close()
        n0.close()
        assert not n0.connected                             # type: ignore[attr-defined]
    if state != "gone":
        world.switch.ask("showinfo")
        assert world.switch.ask("port/allprint").count("endpoint ID") == 1


# --------------------------------------------------------------------------------------------------------------- options


def test_options(world: World) -> None:
    n0, _ = world.add()
    n1, _ = world.add(f",port=5,mode=0660,group={grp.getgrgid(os.getegid()).gr_name}")
    assert n0.info_str == f"sock={world.switch.sock},fd={n0.info_str.rpartition('=')[2]}"
    assert os.readlink(f"/proc/self/fd/{n0.info_str.rpartition('=')[2]}").startswith("socket:")
    said = world.switch.ask("port/allprint")
    assert "Port 0005 untagged_vlan=0000 ACTIVE" in said.replace(" - ", " ")
    assert said.count(f": QEMU user={pwd.getpwuid(os.geteuid()).pw_name}") == 2
    sockets = {os.stat(p).st_mode & 0o777 for p in Path(world.switch.sock).iterdir() if p.name != "ctl"}
    assert sockets == {0o700, 0o660}
    assert n1.model == "vde"
    n0.unpair()
    assert f"n0: index=0,type=vde,{n0.info_str}\n" in world.net.info_network()


def test_a_url_as_the_library_takes_it(world: World) -> None:
    url = f"vde://{world.switch.sock}"
    assert world.net.netdev_add("vde", id="n0", sock=url).info_str.startswith(f"sock={url},fd=")


def test_the_librarys_default(world: World, tmp_path: Path) -> None:
    """Without sock= the library looks in the home directory; info is QEMU's, as a real one prints it."""
    script = f"""
        import os
        os.makedirs({str(tmp_path)!r} + "/.vde2")
        os.symlink({world.switch.sock!r}, {str(tmp_path)!r} + "/.vde2/default.switch")
        from qnet import Net
        with Net() as net:
            print(net.netdev_add("vde,id=n0").info_str.partition(",")[0])
        """
    env = {**os.environ, "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=env)
    assert (run.stdout, run.returncode) == ("sock=(null)\n", 0), run.stderr


def test_one_network_beside_another(world: World) -> None:
    other = Net()
    n0 = world.net.netdev_add(f"vde,id=n0,sock={world.switch.sock}")
    n1 = other.netdev_add(f"vde,id=n0,sock={world.switch.sock}")
    assert n0.connected
    assert n1.connected
    other.close()


@pytest.mark.parametrize(
    ("options", "error", "text", "hint"),
    [
        ("sock=/nonexistent/qnet", HostError, "Could not open vde: No such file or directory", "vde_switch -s DIR"),
        ("sock=foo://x", HostError, "Could not open vde: Protocol not supported", "no module of this name"),
        ("sock={sock},port=70000", OptionError, "Parameter 'port' expects uint16_t", "from 0 to 65535"),
        ("sock={sock},port=-1", OptionError, "Parameter 'port' expects a uint64 value", ""),
        ("sock={sock},mode=0999", OptionError, "Parameter 'mode' expects a uint64 value", ""),
        ("sock={sock},mode=99999", OptionError, "Parameter 'mode' expects uint16_t", ""),
        ("sock={sock},foo=1", OptionError, "Invalid parameter 'foo'", "known: "),
    ],
)
def test_bad_options(world: World, options: str, error: type[Exception], text: str, hint: str) -> None:
    with pytest.raises(error) as e:
        world.net.netdev_add("vde,id=n0," + options.format(sock=world.switch.sock))
    assert (e.value.text, hint in e.value.hint) == (text, True)        # type: ignore[attr-defined]


def test_a_switch_that_is_gone(world: World) -> None:
    world.switch.kill()
    with pytest.raises(HostError, match=r"Could not open vde: Connection refused; .* its vde_switch is gone"):
        world.add()


@pytest.mark.parametrize("why", ["no such port", "stopped"])
def test_a_switch_that_does_not_answer(world: World, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """QEMU waits for ever: a vde_switch never answers who asks for a port it has not got."""
    monkeypatch.setattr(vde, "PATIENCE", 0.2)
    if why == "stopped":
        world.switch.stop()
    with pytest.raises(HostError) as e:
        world.net.netdev_add(f"vde,id=n0,sock={world.switch.sock},port={7 if why == 'stopped' else 8}")
    assert e.value.text == "Could not open vde: Connection timed out"
    assert e.value.errno == errno.ETIMEDOUT
    assert "no port of this number" in e.value.hint
    world.switch.go_on()
    world.net.netdev_add(f"vde,id=n0,sock={world.switch.sock},port=7")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vde, "SONAME", "libvdeplug-not-there.so.2")
    vde.library.cache_clear()
    with Net() as net, pytest.raises(Unavailable, match="apt install libvdeplug2") as e:
        net.netdev_add("vde,id=n0")
    assert e.value.text == "network backend 'vde' is not compiled into this binary"
    vde.library.cache_clear()
