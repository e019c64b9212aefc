"""How taps are opened: by name, as descriptors, of macvtaps; and what is left when that fails, or when they are closed (2.3)."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qnet import HostError, Net, OptionError
from qnet.testing import Port

pytestmark = pytest.mark.root

ETHERTYPE = 0x88B5
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5" + bytes(50)
QUIET = "script=no,downscript=no"
TUNSETIFF, TUNSETVNETHDRSZ, TUNGETVNETHDRSZ = 0x400454CA, 0x400454D8, 0x800454D7
TUN, TAP, NO_PI, VNET_HDR, MULTI_QUEUE = 1, 2, 0x1000, 0x4000, 0x100


def interfaces(ns: Any) -> set[str]:
    return {line.split(":")[1].split("@")[0].strip() for line in ns.run("ip -o link").splitlines()} - {"lo"}


@pytest.fixture
def opened(ns: Any) -> Iterator[Callable[..., int]]:
    """opened(name, flags) -> the descriptor of a tap made outside qnet."""
    fds: list[int] = []

    def make(name: str, flags: int = TAP | NO_PI | VNET_HDR) -> int:
        with ns:
            fds.append(os.open("/dev/net/tun", os.O_RDWR))
            fcntl.ioctl(fds[-1], TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


NAMES = [("", "tap0"), (",ifname=", "tap0"), (",ifname=mine", "mine"), (",ifname=v%dm", "v0m"), (",ifname=fifteen-letters",) * 2]


@pytest.mark.parametrize(("options", "name"), [(options, name.removeprefix(",ifname=")) for options, name in NAMES])
def test_a_name_is_what_it_becomes(net: Net, ns: Any, options: str, name: str) -> None:
    with ns:
        client = net.netdev_add(f"tap,id=t,{QUIET}{options}")
    assert net.info_network() == f"t: index=0,type=tap,ifname={name},script=no,downscript=no\n"
    assert interfaces(ns) == {name}
    assert client.ifname == name  # type: ignore[attr-defined]
    net.netdev_del("t")
    assert interfaces(ns) == set()


def test_numbers_go_up(net: Net, ns: Any) -> None:
    with ns:
        for i in range(3):
            net.netdev_add(f"tap,id=t{i},ifname=q%d,{QUIET}")
    assert interfaces(ns) == {"q0", "q1", "q2"}


def test_json_and_keywords(net: Net, ns: Any) -> None:
    with ns:
        net.netdev_add({"type": "tap", "id": "a", "ifname": "a", "script": "no", "downscript": "no", "vnet_hdr": False, "sndbuf": 1 << 20})
        net.netdev_add("tap", id="b", ifname="b", script="no", downscript="no", vnet_hdr=False, poll_us=5)
    assert [client.vnet_hdr_len for client in net.clients] == [0, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("sndbuf", ["0", "1", "1M", "8G"])
def test_any_sndbuf_will_do(net: Net, ns: Any, sndbuf: str) -> None:
    with ns:
        net.netdev_add(f"tap,id=t,{QUIET},sndbuf={sndbuf}")


def test_one_that_is_there_stays_there(net: Net, ns: Any) -> None:
    ns.run("ip tuntap add dev mine mode tap")
    with ns:
        net.netdev_add(f"tap,id=t,ifname=mine,{QUIET}")
    net.netdev_del("t")
    assert interfaces(ns) == {"mine"}


def test_legacy_net_is_on_a_hub(net: Net, ns: Any) -> None:
    with ns:
        net.net_add(f"tap,{QUIET}")
        assert net.check_clients() == ["hub 0 with no nics"]
        with pytest.raises(OptionError, match="Multiqueue tap cannot be used with hubs"):
            net.net_add(f"tap,queues=2,{QUIET}")
    assert interfaces(ns) == {"tap0"}


REFUSED = [
    ("ifname=busy", errno.EBUSY, "another program has it open"),
    ("ifname=veth0", errno.EINVAL, "no tap, or one with other flags: "),
    ("ifname=single,queues=2", errno.EINVAL, "no tap, or one with other flags: "),
    ("ifname=multi", errno.EINVAL, "no tap, or one with other flags: "),
    ("ifname=lo", errno.EINVAL, "no tap, or one with other flags: "),
    ("ifname=a/b", errno.EINVAL, ""),
    ("ifname=%d%d", errno.EINVAL, ""),
]


@pytest.mark.parametrize(("options", "number", "hint"), REFUSED)
def test_what_cannot_be_opened(net: Net, ns: Any, opened: Any, options: str, number: int, hint: str) -> None:
    opened("busy")
    ns.run("ip link add veth0 type veth peer name veth1")
    ns.run("ip tuntap add dev single mode tap")
    ns.run("ip tuntap add dev multi mode tap multi_queue")
    there = interfaces(ns)
    with ns, pytest.raises(HostError) as raised:
        net.netdev_add(f"tap,id=t,{QUIET},{options}")
    name = options.split(",")[0].removeprefix("ifname=")
    assert raised.value.text == f"could not configure /dev/net/tun ({name}): {os.strerror(number)}"
    assert raised.value.errno == number
    assert raised.value.hint.startswith(hint)
    assert net.clients == ()
    assert interfaces(ns) == there


# ------------------------------------------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("number", [str, int])
def test_a_descriptor_of_ones_own(net: Net, ns: Any, opened: Any, number: Any, pump_until: Any) -> None:
    fd = opened("mine")
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 12))      # as another program may have left it
    client = net.netdev_add("tap", id="t", fd=number(fd))
    assert net.info_network() == f"t: index=0,type=tap,fd={fd}\n"
    assert struct.unpack("i", fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4))) == (10,)
    port = Port(net.loop, "port")
    port.pair(client)
    ns.run("ip link set mine up")
    with ns, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
        s.bind(("mine", 0))
        s.send(FRAME)
        pump_until(net, lambda: FRAME in port.recv())
    net.netdev_del("t")
    port.close()
    assert interfaces(ns) == {"mine"}, "the caller's descriptor holds it"


def test_a_descriptor_without_a_header(net: Net, opened: Any) -> None:
    client = net.netdev_add("tap", id="t", fd=opened("mine", TAP | NO_PI))
    assert client.vnet_hdr_len == 0  # type: ignore[attr-defined]
    assert client.offloads == ()  # type: ignore[attr-defined]


def test_a_descriptor_of_a_tun_is_refused(net: Net, opened: Any) -> None:
    """QEMU takes its packets for frames."""
    fd = opened("mine", TUN | NO_PI)
    with pytest.raises(HostError, match=f"Can't use file descriptor {fd}: Invalid argument; it carries IP packets"):
        net.netdev_add("tap", id="t", fd=fd)
    assert net.clients == ()


def test_descriptors_of_several_queues(net: Net, ns: Any, opened: Any) -> None:
    fds = [opened("mine", TAP | NO_PI | VNET_HDR | MULTI_QUEUE) for _ in range(3)]
    first = net.netdev_add("tap", id="t", fds=fds)
    assert net.info_network() == "".join(f"t: index={i},type=tap,fd={fd}\n" for i, fd in enumerate(fds))
    assert net.clients[0] is first
    net.netdev_del("t")
    net.netdev_add(f"tap,id=t,fds={':'.join(map(str, fds))}:")


def test_descriptors_that_differ(net: Net, opened: Any) -> None:
    fds = [opened("a"), opened("b", TAP | NO_PI)]
    with pytest.raises(OptionError) as raised:
        net.netdev_add("tap", id="t", fds=fds)
    assert raised.value.text == "vnet_hdr not consistent across given tap fds"
    assert net.clients == ()


def test_a_bad_descriptor_among_good_ones(net: Net, opened: Any) -> None:
    fd = opened("mine")
    for text, said in ((f"{fd}::{fd}", "File descriptor named '' has not been found"), (f"{fd}:7x", "Invalid file descriptor number '7x'")):
        with pytest.raises(OptionError) as raised:
            net.netdev_add("tap", id="t", fds=text)
        assert raised.value.text == said
        assert net.clients == ()


# ----------------------------------------------------------------------------------------------------------------- macvtap


@pytest.mark.parametrize("options", ["", ",vnet_hdr=off"])
def test_macvtap(net: Net, ns: Any, pump_until: Any, rests: Any, options: str) -> None:
    index = 1_000_000 + 2 * os.getpid() + len(options) % 2     # of the host's devices, this is the test's
    for command in (
        "ip link add low type veth peer name far",
        f"ip link add mac0 index {index} link low type macvtap mode bridge",
        "ip link set low up",
        "ip link set far up",
        "ip link set mac0 up",
    ):
        ns.run(command)
    with ns:
        client = net.netdev_add(f"tap,id=t,ifname=mac0,{QUIET}{options}")
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    assert client.ifname == "mac0"  # type: ignore[attr-defined]
    assert net.info_network() == "t: index=0,type=tap,ifname=mac0,script=no,downscript=no\n"
    port = Port(net.loop, "port")
    port.pair(client)
    with far:
        far.bind(("far", ETHERTYPE))
        far.settimeout(30)
        port.send([FRAME])
        assert far.recv(2000) == FRAME
        far.send(FRAME)
        pump_until(net, lambda: FRAME in port.recv())
        ns.run("ip link del mac0")                  # it does not tell
        port.send([FRAME])
        rests(net)
    net.netdev_del("t")
    port.close()
