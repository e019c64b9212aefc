"""hostfwd, guestfwd and smb: the world comes to the guest, and the guest to programs and coroutines of this host."""

import asyncio
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Raw

from qnet.backends import _guestfwd, user
from qnet.errors import Error, OptionError, Unavailable

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


def forwards(g: Any) -> list[tuple[str, str, int, str, int]]:
    """(protocol, host address, host port, guest address, guest port) of each rule, from `info usernet`."""
    rows = re.findall(r"^ +(\w+)\[HOST_FORWARD\] +\d+ +(\S+) +(\d+) +(\S+) +(\d+)", g.client.connection_info(), re.M)
    return [(proto, host, int(port), to, int(to_port)) for proto, host, port, to, to_port in rows]


def port_of(g: Any) -> int:
    """The host port of the only rule."""
    (rule,) = forwards(g)
    return rule[2]


# -------------------------------------------------------------------------------------------------------------------- hostfwd


@pytest.mark.parametrize("mode", ["pump", "thread", "manual"])
@pytest.mark.parametrize(
    ("rule", "family", "address"),
    [("tcp::0-:22", socket.AF_INET, "127.0.0.1"), (":127.0.0.1:0-10.0.2.15:22", socket.AF_INET, "127.0.0.1"),
     ("tcp:[::1]:0-[fec0::15]:22", socket.AF_INET6, "::1")],
)  # fmt: skip
def test_hostfwd_tcp(guest: Callable[..., Any], mode: str, rule: str, family: int, address: str) -> None:
    g = guest(mode, hostfwd=[rule])
    port = next(int(line.split()[3]) for line in g.client.connection_info().splitlines() if "HOST_FORWARD" in line)
    with socket.socket(family, STREAM) as s:
        s.settimeout(20)
        s.connect((address, port))
        s.sendall(b"to the guest")
        tcp = g.accept(22)
        assert tcp.recv(12) == b"to the guest"
        tcp.send(b"and back")
        g.until(lambda: len(s.recv(8, socket.MSG_PEEK)) == 8 if readable(s) else False)
        assert s.recv(8) == b"and back"
        s.shutdown(socket.SHUT_WR)
        assert tcp.recv_all() == b""
        tcp.shutdown()
        g.until(lambda: readable(s))
        assert s.recv(1) == b""


def readable(s: socket.socket) -> bool:
    import select

    return bool(select.select([s], [], [], 0)[0])


@pytest.mark.parametrize(
    ("rule", "family", "address"),
    [("udp::0-:53", socket.AF_INET, "127.0.0.1"), ("udp:[::1]:0-[fec0::15]:53", socket.AF_INET6, "::1")],
)
def test_hostfwd_udp(guest: Callable[..., Any], rule: str, family: int, address: str) -> None:
    g = guest(hostfwd=[rule])
    port = next(int(line.split()[3]) for line in g.client.connection_info().splitlines() if "HOST_FORWARD" in line)
    with socket.socket(family, DGRAM) as s:
        s.sendto(b"question", (address, port))
        p = g.wait(lambda p: UDP in p and p[UDP].dport == 53)
        assert bytes(p[UDP].payload)[:8] == b"question"
        g.send(g.to(p.payload.src) / UDP(sport=53, dport=p[UDP].sport) / Raw(b"answer"))
        g.until(lambda: readable(s))
        assert s.recv(100) == b"answer"


def test_hostfwd_unix(guest: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "vm-sock"
    g = guest(hostfwd=[f"unix:{path}-:22"])
    assert stat.S_ISSOCK(path.stat().st_mode)
    with socket.socket(socket.AF_UNIX, STREAM) as s:
        s.connect(str(path))
        s.sendall(b"hello")
        assert g.accept(22).recv(5) == b"hello"
    g.net.netdev_del("n0")
    assert not path.exists()


def test_hostfwd_binds_loopback_unless_told(guest: Callable[..., Any]) -> None:
    """A departure from QEMU, which binds 0.0.0.0."""
    g = guest(hostfwd=["tcp::0-:1", "udp::0-:2", "tcp:0.0.0.0:0-:3"])
    hosts = {(proto, guest_port): host for proto, host, _, _, guest_port in forwards(g)}
    assert hosts == {("TCP", 1): "127.0.0.1", ("UDP", 2): "127.0.0.1", ("TCP", 3): "*"}


def test_hostfwd_goes_to_the_first_dhcp_address(guest: Callable[..., Any]) -> None:
    g = guest(net="10.9.0.0/16", dhcpstart="10.9.9.9", hostfwd=["tcp::0-:22"])
    assert forwards(g)[0][3:] == ("10.9.9.9", 22)


def test_a_connection_made_before_the_guest_is_up_waits_for_it(guest: Callable[..., Any]) -> None:
    g = guest("manual", hostfwd=["tcp::0-:22"])
    g.answers = False
    with socket.create_connection(("127.0.0.1", port_of(g))) as s:
        s.sendall(b"early")
        for _ in range(5):
            g.step()
        g.answers = True
        g.inbox.clear()
        g.net.run_until(g.net.now() + 8_000_000_000)
        assert g.accept(22).recv(5) == b"early"


def test_conflicting_hostfwd_leaves_nothing_behind(guest: Callable[..., Any]) -> None:
    g = guest()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        with pytest.raises(OptionError, match=f"Could not set up host forwarding rule 'tcp::{port}-:22'; Address already in use"):
            g.net.netdev_add("user", id="n9", hostfwd=[f"tcp::{free}-:22", f"tcp::{port}-:22"])
        with socket.create_server(("127.0.0.1", free)):
            assert "n9" not in g.net.info_network()
        g.net.netdev_add("user", id="n9", hostfwd=[f"tcp::{free}-:22"])


def test_hostfwd_comes_and_goes_at_run_time(guest: Callable[..., Any]) -> None:
    g = guest()
    for family, host in (("", "127.0.0.1"), ("[::1]", "::1")):
        with socket.socket(socket.AF_INET6 if family else socket.AF_INET, STREAM) as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        g.client.hostfwd_add(f"tcp:{family}:{port}-:22")
        with socket.create_connection((host, port)) as s:
            g.step()
            g.client.hostfwd_remove(f"tcp:{family}:{port}")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, port)).close()
            s.sendall(b"connections stay")
        with pytest.raises(Error, match=re.escape(f"host forwarding rule for tcp:{family}:{port} not found")):
            g.client.hostfwd_remove(f"tcp:{family}:{port}")


def test_the_monitors_commands(guest: Callable[..., Any]) -> None:
    """Arguments and answers as HMP's hostfwd_add, hostfwd_remove and info usernet."""
    a = guest()
    b = guest(on=a.net)
    clients = [a.client, b.client]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert user.hostfwd_add(clients, f"tcp::{port}-:22") == ""
    assert user.hostfwd_add(clients, f"n1 udp::{port}-:22") == ""
    text = user.info_usernet(clients)
    head = "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n"
    tables = re.fullmatch(rf"Hub -1 \(n0\):\n{re.escape(head)}(.*\n)Hub -1 \(n1\):\n{re.escape(head)}(.*\n)", text)
    assert tables is not None
    assert re.fullmatch(rf"  TCP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +{port} +10\.0\.2\.15 +22 +0 +0\n", tables[1])
    assert re.fullmatch(rf"  UDP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +{port} +10\.0\.2\.15 +22 +0 +0\n", tables[2])
    assert re.search(r"TCP.HOST_FORWARD.*127\.0\.0\.1\s+(\d+)\s+10\.", text)                # what QEMU's own tests look for
    assert user.hostfwd_remove(clients, f"n1 udp::{port}") == f"host forwarding rule for udp::{port} removed\n"
    for words, complaint in (
        (f"n1 udp::{port}", f"host forwarding rule for udp::{port} not found"),
        ("n7 tcp::1", "unrecognized netdev id 'n7'"),
        ("foo", "invalid format"),
        ("tcp:", "invalid format"),
        ("", "invalid format"),
    ):
        with pytest.raises(Error) as e:
            user.hostfwd_remove(clients, words)
        assert e.value.text == complaint
    with pytest.raises(Error, match="user mode network stack not in use"):
        user.hostfwd_add([], "tcp::1-:1")


def test_info_usernet_names_the_hub(guest: Callable[..., Any]) -> None:
    g = guest()
    g.port.unpair()
    g.net.netdev_add("hubport,id=p0,hubid=3,netdev=n0")
    assert user.info_usernet([g.client]).startswith("Hub 3 (n0):\n")


# ------------------------------------------------------------------------------------------------------------------- guestfwd


def test_guestfwd_runs_a_command_for_each_connection(guest: Callable[..., Any]) -> None:
    g = guest(guestfwd=["tcp:10.0.2.101:7-cmd:cat"])
    for payload in (b"first", b"second" * 100):
        tcp = g.connect("10.0.2.101", 7)
        tcp.send(payload)
        assert tcp.recv(len(payload)) == payload
        tcp.close()


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()


def test_guestfwd_to_a_coroutine(guest: Callable[..., Any]) -> None:
    g = guest()
    g.client.guestfwd("tcp:10.0.2.100:80", shout)
    first, second = g.connect("10.0.2.100", 80), g.connect("10.0.2.100", 80, sport=31000)
    first.send(b"one")
    second.send(b"two")
    assert first.recv(3) == b"ONE"
    assert second.recv(3) == b"TWO"
    data = os.urandom(200_000).hex().encode()
    second.send(data)
    assert second.recv(len(data)) == data.upper()
    first.close()
    second.shutdown()
    assert second.recv_all() == b""


def test_guestfwd_to_a_coroutine_on_the_callers_loop_that_pumps_the_network(guest: Callable[..., Any]) -> None:
    g = guest()
    seen = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(threading.current_thread())
        writer.write(b"hello " + await reader.readexactly(5))

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        g.client.guestfwd("tcp:10.0.2.100:80", handler, loop=loop)
        loop.add_reader(g.net.fileno(), g.net.pump)
        tcp = await asyncio.to_thread(g.connect, "10.0.2.100", 80)
        await asyncio.to_thread(tcp.send, b"guest")
        data = await asyncio.to_thread(tcp.recv_all)
        loop.remove_reader(g.net.fileno())
        return bytes(data)

    g.mode = "thread"                                       # the loop pumps
    assert asyncio.run(main()) == b"hello guest"
    assert seen == [threading.main_thread()]


def test_guestfwd_pushes_back(guest: Callable[..., Any]) -> None:
    """A handler that does not read closes the guest's window; nothing piles up in between."""
    g = guest()
    go = threading.Event()
    total = []

    async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not go.is_set():
            await asyncio.sleep(0.01)
        total.append(len(await reader.read(-1)))

    g.client.guestfwd("tcp:10.0.2.100:80", lazy)
    tcp = g.connect("10.0.2.100", 80)
    sent = 0
    deadline = time.monotonic() + 20
    while tcp.window - (tcp.snd - tcp.acked) >= 1000:
        tcp.guest.send(tcp.segment("A", bytes(1000)))
        tcp.snd += 1000
        sent += 1000
        tcp.take()
        assert time.monotonic() < deadline
        assert sent < 5_000_000
    go.set()
    tcp.send(bytes(500_000))
    tcp.close()
    assert total == [sent + 500_000]


def test_a_failing_handler_resets_the_connection_and_is_logged(guest: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    g = guest()

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise RuntimeError("broken on purpose")

    g.client.guestfwd("tcp:10.0.2.100:80", broken)
    for _ in range(2):
        tcp = g.connect("10.0.2.100", 80)
        g.until(lambda tcp=tcp: tcp.take() or tcp.eof or tcp.reset)
    assert caplog.text.count("broken on purpose") >= 2


def test_more_connections_than_the_handlers_loop_can_start(guest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """libslirp's connect blocks when the backlog is full, and the caller's loop stands still while a guest opens connections."""
    monkeypatch.setattr(_guestfwd, "BACKLOG", 2)
    g = guest()

    async def main() -> None:
        g.client.guestfwd("tcp:10.0.2.100:80", shout, loop=asyncio.get_running_loop())
        tcps = [g.connect("10.0.2.100", 80, sport=20000 + i) for i in range(60)]         # without an await
        tcps[-1].send(b"x")
        g.mode = "thread"
        g.net.start()
        assert await asyncio.to_thread(tcps[-1].recv, 1) == b"X"
        g.net.stop()
        g.net.close()
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_guestfwd_refuses_what_is_taken(guest: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    g = guest(guestfwd=["tcp:10.0.2.100:80-cmd:cat"])
    for rule in ("tcp:10.0.2.100:80", "tcp:10.0.2.2:80", "tcp:10.0.2.3:80", "tcp:10.9.9.9:80"):
        with pytest.raises(OptionError, match="Conflicting/invalid host:port in guest forwarding rule") as e:
            g.client.guestfwd(rule, shout)
        assert repr(rule) in e.value.text
    assert list(tmp_path.iterdir()) == []
    g.client.guestfwd("tcp:10.0.2.100:81", shout)
    (directory,) = tmp_path.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    g.net.netdev_del("n0")
    assert list(tmp_path.iterdir()) == []


def test_leavings_of_a_killed_process_do_not_matter(guest: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    code = (
        "import os, signal\nfrom qnet.net import Net\nasync def h(r, w): pass\nnet = Net()\n"
        f"c = net.netdev_add('user,id=n0,hostfwd=unix:{tmp_path}/s-:22')\nc.guestfwd('tcp:10.0.2.100:80', h)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2                   # they are there
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    g = guest(hostfwd=[f"unix:{tmp_path}/s-:22"])
    g.client.guestfwd("tcp:10.0.2.100:80", shout)
    tcp = g.connect("10.0.2.100", 80)
    tcp.send(b"x")
    assert tcp.recv(1) == b"X"


def test_a_path_too_long_for_a_socket_is_put_elsewhere(guest: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr("tempfile.tempdir", None)
    g = guest()
    g.client.guestfwd("tcp:10.0.2.100:80", shout)
    tcp = g.connect("10.0.2.100", 80)
    tcp.send(b"x")
    assert tcp.recv(1) == b"X"
    assert list(deep.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------------------ smb


def fake_smbd(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smbd = directory / "smbd"
    smbd.write_text('#!/bin/sh\necho "$1 $2 $3 $4"\ncat "$4"\n')
    smbd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


def test_smb_starts_smbd_for_each_connection(guest: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smbd(tmp_path, monkeypatch)
    share = tmp_path / "a share"
    share.mkdir()
    g = guest(smb=str(share))
    texts = [g.connect("10.0.2.4", port).recv_all().decode() for port in (139, 445)]
    assert texts[0] == texts[1]
    arguments, _, conf = texts[0].partition("\n")
    flag_l, private, flag_s, path = arguments.split()
    assert (flag_l, flag_s, path) == ("-l", "-s", f"{private}/smb.conf")
    assert f"path = {share}\n" in conf
    assert "[qemu]" in conf
    assert stat.S_IMODE(os.stat(private).st_mode) == 0o700
    g.net.netdev_del("n0")
    assert not os.path.exists(private)


def test_smb_errors(guest: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *args, **kwargs: None)
    with pytest.raises(Unavailable) as missing:
        guest(smb=str(tmp_path))
    assert missing.value.text == "Could not find '/usr/sbin/smbd', please install it"
    assert "apt install samba" in missing.value.hint
    monkeypatch.undo()
    fake_smbd(tmp_path, monkeypatch)
    with pytest.raises(OptionError, match="Error accessing shared directory '/nonexistent'"):
        guest(smb="/nonexistent")
    with pytest.raises(OptionError, match="Conflicting/invalid smbserver address"):
        guest(smb=str(tmp_path), smbserver="10.0.2.2")
    with pytest.raises(OptionError, match="Failed to parse SMB address"):
        guest(smbserver="server")




# ------------------------------------------------------------------------------------------------------------------- restrict


def test_forwards_and_tftp_work_for_a_guest_that_is_kept_in(guest: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "boot").write_bytes(b"image")
    g = guest(restrict=True, tftp=str(tmp_path), hostfwd=["tcp::0-:22"], guestfwd=["tcp:10.0.2.100:7-cmd:cat"])
    assert g.tftp("boot") == b"image"
    g.client.guestfwd("tcp:10.0.2.101:80", shout)
    for address, port, answer in (("10.0.2.100", 7, b"x"), ("10.0.2.101", 80, b"X")):
        tcp = g.connect(address, port)
        tcp.send(b"x")
        assert tcp.recv(1) == answer
    with socket.create_connection(("127.0.0.1", port_of(g))) as s:
        s.sendall(b"hello")
        assert g.accept(22).recv(5) == b"hello"
