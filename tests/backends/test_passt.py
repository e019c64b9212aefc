"""netdev passt (2.10): its command line, a real passt's DHCP and TCP both ways, its end, and ours."""

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from qnet import Net
from qnet.backends.passt import Options, command
from qnet.errors import Error, OptionError, Unavailable
from qnet.options import Form, parse_pairs, read_options
from qnet.testing import Port

from .conftest import Namespace
from .stream_world import until

MAC = "52:54:00:12:34:56"


def line(text: str) -> list[str]:
    return command(read_options(Options, Form.OPTS, parse_pairs(text)), "PID", 3)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("", "--quiet"),
        ("quiet=off", ""),
        ("mtu=1400", "--quiet --mtu 1400"),
        ("address=10.0.0.5,netmask=255.0.0.0,gateway=10.0.0.1", "--quiet --address 10.0.0.5 --netmask 255.0.0.0 --gateway 10.0.0.1"),
        ("mac=52:54:00:00:00:01", "--quiet --mac-addr 52:54:00:00:00:01"),
        ("interface=e0,outbound=1.2.3.4,outbound-if4=e1,outbound-if6=e2",
         "--quiet --interface e0 --outbound 1.2.3.4 --outbound-if4 e1 --outbound-if6 e2"),
        ("dns=1.1.1.1,fqdn=a.b,dns-forward=2.2.2.2,dns-host=3.3.3.3",
         "--quiet --dns 1.1.1.1 --fqdn a.b --dns-forward 2.2.2.2 --dns-host 3.3.3.3"),
        ("map-host-loopback=1.2.3.4,map-guest-addr=none", "--quiet --map-host-loopback 1.2.3.4 --map-guest-addr none"),
        ("dhcp-dns=off,dhcp-search=off", "--quiet --no-dhcp-dns --no-dhcp-search"),
        ("tcp=off,udp=off,icmp=off", "--quiet --no-tcp --no-udp --no-icmp"),
        ("dhcp=off,ndp=off,dhcpv6=off,ra=off", "--quiet --no-dhcp --no-ndp --no-dhcpv6 --no-ra"),
        ("tcp=on,dhcp=on,ipv4=on,ipv6=on,freebind=off", "--quiet"),
        ("freebind=on", "--quiet --freebind"),
        ("ipv4=off", "--quiet --ipv6-only"),
        ("ipv6=off", "--quiet --ipv4-only"),
        ("tcp-ports=22,tcp-ports=80:8080,udp-ports=53", "--quiet --tcp-ports 22,80:8080 --udp-ports 53"),
        ("param=--trace,param=-1", "--quiet --trace -1"),
    ],
)
def test_the_command_line(options: str, arguments: str) -> None:
    assert line(options) == ["passt", *arguments.split(), "--pid", "PID", "--fd", "3"]


def test_search_domains_are_one_argument_and_the_program_can_be_another() -> None:
    assert line("search=a.example,search=b.example,path=/x/passt")[:4] == ["/x/passt", "--quiet", "--search", "a.example b.example"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (",vhost-user=on", OptionError, "vhost-user=on is not supported"),
        (",ipv4=off,ipv6=off", OptionError, "ipv4=off and ipv6=off leave nothing"),
        (",path=/nonexistent/passt", Unavailable, "Failed to execute child process “/nonexistent/passt” (No such file or directory)"),
        (",path=/bin/false", Error, "passt: exit code 1"),
        (",path=/bin/true", Error, "passt: exit code 0"),
        (",param=--no-such-option", Error, "passt: exit code 1"),
        (",bogus=1", OptionError, "Invalid parameter 'bogus'"),
    ],
)
def test_errors_leave_nothing(options: str, error: type[Error], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Net() as net:
        with pytest.raises(error) as e:
            net.netdev_add("passt,id=n0" + options)
        assert e.value.text == text
        assert net.clients == ()
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- a real passt


def ended(pid: int) -> bool:
    """Gone, or waiting for init to notice."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.fixture
def host(namespace: Callable[[], Namespace]) -> Namespace:
    """What passt takes for the host: an interface with an address and a default route that lead nowhere."""
    ns = namespace()
    ns.run("ip link add up0 type veth peer name nobody0")
    ns.run("ip addr add 192.0.2.2/24 dev up0")
    ns.run("ip link set nobody0 up")
    ns.run("ip link set up0 up")
    ns.run("ip route add default via 192.0.2.1")
    return ns


@pytest.fixture
def passt(host: Namespace) -> Iterator[Callable[..., Any]]:
    """passt(options) -> (net, n0) in the host's namespace."""
    nets: list[Net] = []

    def open_one(options: str = "") -> tuple[Net, Any]:
        net = Net()
        nets.append(net)
        with host:
            return net, net.netdev_add("passt,id=n0,ipv6=off" + options)

    yield open_one
    while nets:
        nets.pop().close()


def discover() -> bytes:
    dhcp = BOOTP(chaddr=bytes.fromhex(MAC.replace(":", "")), xid=7) / DHCP(options=[("message-type", "discover"), "end"])
    return bytes(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / dhcp)


def offer(net: Net, nic: Port) -> dict[str, Any]:
    """What passt's DHCP server says."""
    got: list[bytes] = []
    nic.send([discover()])

    def answered() -> bool:
        got.extend(f for f in nic.recv() if DHCP in Ether(f))
        return bool(got)

    until(answered, net)
    answer = Ether(got[0])
    return {"address": answer[BOOTP].yiaddr, **{o[0]: o[1] for o in answer[DHCP].options if isinstance(o, tuple)}}


@pytest.mark.root
def test_dhcp_and_what_users_see(passt: Callable[..., Any]) -> None:
    net, n0 = passt(",mtu=1400")
    assert n0.info_str == f"stream,connected to pid {n0.pid}"
    nic = Port(net.loop, "nic")
    nic.pair(n0)
    told = offer(net, nic)
    assert (told["address"], told["router"], told["interface-mtu"]) == ("192.0.2.2", "192.0.2.1", 1400)
    nic.close()


@pytest.mark.root
def test_tcp_out_and_in_with_a_kernel_as_guest(passt: Callable[..., Any], host: Namespace, ns: Namespace) -> None:
    """4 MB each way through a tap of another namespace; the host's loopback is reached by the gateway's address."""
    net, _ = passt(",tcp-ports=8080")
    with ns:
        net.netdev_add("tap,id=t0,ifname=tap0,script=no,downscript=no")
    for name in "n0", "t0":
        net.netdev_add(f"hubport,id=h{name},hubid=0,netdev={name}")
    ns.run("ip addr add 192.0.2.2/24 dev tap0")
    ns.run("ip link set tap0 up")
    ns.run("ip route add default via 192.0.2.1")
    with ns:                                                # smaller than its backlog: Debian's passt recovers badly from loss
        Path("/proc/sys/net/ipv4/tcp_rmem").write_text("4096 65536 65536")
    net.start()
    data = os.urandom(1 << 22)

    def serve(server: socket.socket) -> None:
        with server, server.accept()[0] as s:
            got = b""
            while len(got) < len(data):
                got += s.recv(1 << 20)
            s.sendall(hashlib.sha256(got).digest() + got)

    for where, listen, wherefrom, to in [
        (host, ("127.0.0.1", 9090), ns, ("192.0.2.1", 9090)),
        (ns, ("0.0.0.0", 8080), host, ("127.0.0.1", 8080)),
    ]:
        with where:
            server = socket.create_server(listen)
        server.settimeout(30)
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        with wherefrom:
            client = socket.create_connection(to, timeout=30)
        with client:
            client.sendall(data)
            back = b""
            while len(back) < 32 + len(data):
                back += client.recv(1 << 20)
        thread.join()
        assert back == hashlib.sha256(data).digest() + data
    net.stop()


@pytest.mark.root
def test_killed_it_is_started_again(passt: Callable[..., Any]) -> None:
    """At most once a second; the guest finds it again."""
    net, n0 = passt()
    nic = Port(net.loop, "nic")
    nic.pair(n0)
    for _ in range(2):
        offer(net, nic)
        old = n0.pid
        os.kill(old, signal.SIGKILL)
        until(lambda old=old: n0.pid not in (None, old), net)
        assert ended(old)
    offer(net, nic)
    nic.close()


@pytest.mark.root
@pytest.mark.parametrize("state", ["running", "killed", "starting"])
def test_closing(passt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """passt ends, its files are removed, in every state."""
    net, n0 = passt()
    pid, directory = n0.pid, Path(n0.link.daemon.directory)
    assert int((directory / "pid").read_text()) == pid
    if state != "running":
        os.kill(pid, signal.SIGKILL)
        until(lambda: not n0.attached, net)
    if state == "starting":
        until(lambda: n0.link.daemon.launcher is not None, net)
        directory = Path(n0.link.daemon.directory)
    net.netdev_del("n0")
    assert ended(pid)
    assert not directory.exists()
    assert n0.pid is None


@pytest.mark.root
def test_a_program_that_never_stays(host: Namespace, tmp_path: Path) -> None:
    """It is started again, once a second of the network's clock, not in a loop."""
    real = subprocess.run(["which", "passt"], capture_output=True, text=True, check=True).stdout.strip()
    program, count = tmp_path / "passt", tmp_path / "count"
    program.write_text(f'#!/bin/sh\necho x >>{count}\n[ -e {tmp_path}/broken ] && exit 3\nexec {real} "$@"\n')
    program.chmod(0o755)
    with Net() as net:
        with host:
            n0: Any = net.netdev_add(f"passt,id=n0,path={program},ipv6=off")
        (tmp_path / "broken").touch()
        begin = time.monotonic()
        os.kill(n0.pid, signal.SIGKILL)
        until(lambda: "exit code 3" in n0.info_str, net)
        until(lambda: count.read_text().count("x") >= 3, net)
        assert count.read_text().count("x") <= 2 + (time.monotonic() - begin)
        (tmp_path / "broken").unlink()
        until(lambda: n0.pid, net)
