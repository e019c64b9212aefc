"""bridge, and tap's helper=: Debian's qemu-bridge-helper on a Linux bridge, its list of who may what, and helpers that misbehave (2.4)."""

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qnet import Error, Net, Unavailable
from qnet.testing import Port

from .conftest import bridge_helper

ETHERTYPE = 0x88B5
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5" + bytes(50)


@pytest.fixture
def helper(tmp_path: Path) -> Callable[..., str]:
    """helper(lines of the list...) -> the path of a helper that obeys it."""
    return partial(bridge_helper, tmp_path)


@pytest.fixture
def bridged(ns: Any) -> Any:
    """A namespace with a bridge br7, one port of which leads to `far`."""
    for command in (
        "ip link add br7 type bridge",
        "ip link add near type veth peer name far",
        "ip link set near master br7",
        "ip link set br7 up mtu 1400",
        "ip link set near up",
        "ip link set far up",
    ):
        ns.run(command)
    return ns


def ports(ns: Any) -> set[str]:
    return {line.split(":")[1].split("@")[0].strip() for line in ns.run("ip -o link show master br7").splitlines()}


@pytest.mark.root
@pytest.mark.parametrize(("kind", "info"), [("bridge", "helper={},br=br7"), ("tap", "helper={}")])
def test_frames_cross_the_bridge(net: Net, bridged: Any, helper: Any, pump_until: Any, kind: str, info: str) -> None:
    path = helper("allow br7")
    with bridged:
        client = net.netdev_add(kind, id="b", br="br7", helper=path)
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    port = Port(net.loop, "port")
    with far:
        far.bind(("far", ETHERTYPE))
        far.settimeout(30)
        assert net.info_network() == f"b: index=0,type=tap,{info.format(path)}\n"
        assert ports(bridged) == {"near", client.ifname}  # type: ignore[attr-defined]
        port.pair(client)
        port.send([FRAME])
        assert far.recv(2000) == FRAME
        far.send(FRAME)
        pump_until(net, lambda: FRAME in port.recv())
    net.netdev_del("b")
    port.close()
    assert ports(bridged) == {"near"}, "the tap is left"


ALLOWED = [["allow br7"], ["allow all"], ["deny br8", "allow all"], ["# a comment", "", "allow br8", "allow br7"]]
DENIED = [["deny br7"], ["deny all"], ["allow br8"], ["deny all", "allow br8"], ["deny br7", "allow all"], []]


@pytest.mark.root
@pytest.mark.parametrize("rules", ALLOWED, ids=" ".join)
def test_who_is_on_the_list_may(net: Net, bridged: Any, helper: Any, rules: list[str]) -> None:
    path = helper(*rules)
    with bridged:
        net.netdev_add("bridge", id="b", br="br7", helper=path)
    assert len(ports(bridged)) == 2


@pytest.mark.root
@pytest.mark.parametrize("rules", DENIED, ids=" ".join)
@pytest.mark.parametrize("kind", ["bridge", "tap"])
def test_who_is_not_is_told_so(net: Net, bridged: Any, helper: Any, kind: str, rules: list[str]) -> None:
    path = helper(*rules)
    with bridged, pytest.raises(Error) as raised:
        net.netdev_add(kind, id="b", br="br7", helper=path)
    assert raised.value.text == "bridge helper failed"
    assert raised.value.hint == "access denied by acl file"
    assert ports(bridged) == {"near"}
    assert net.clients == ()


@pytest.mark.root
def test_a_list_is_included(net: Net, bridged: Any, helper: Any, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("allow br7\n")
    path = helper(f"include {tmp_path}/more")
    with bridged:
        net.netdev_add("bridge", id="b", br="br7", helper=path)
    assert len(ports(bridged)) == 2


@pytest.mark.root
def test_a_bridge_that_is_not_there(net: Net, ns: Any, helper: Any) -> None:
    path = helper("allow all")
    with ns, pytest.raises(Error) as raised:
        net.netdev_add("bridge", id="b", helper=path)
    assert raised.value.text == "bridge helper failed"
    assert "`br0'" in raised.value.hint
    assert "No such device" in raised.value.hint
    assert "tap" not in ns.run("ip -o link"), "the helper's tap is left"


@pytest.mark.root
def test_the_distributions_helper_is_the_default(net: Net, ns: Any) -> None:
    """It is there; whether it lets us depends on the machine."""
    with ns, pytest.raises(Error) as raised:
        net.netdev_add("bridge,id=b,br=nosuchbridge")
    assert raised.value.text == "bridge helper failed"
    assert not isinstance(raised.value, Unavailable)


SENDER = """#!{python}
import array, os, socket, sys
fd = next(int(word[5:]) for word in sys.argv if word.startswith("--fd="))
peer = socket.socket(fileno=fd)
{body}
"""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], str]:
    """fake(body) -> a helper in Python, with `peer` the socket."""

    def make(body: str) -> str:
        path = tmp_path / "fake"
        path.write_text(SENDER.format(python=sys.executable, body=body))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("body", "text", "hint"),
    [
        ("", "failed to recv file descriptor", "sent none"),
        ("peer.send(b'x')", "failed to recv file descriptor", "sent none"),
        ("socket.send_fds(peer, [b'x'], [0])", "Unable to query TUNGETIFF on FD ", "it is no tap"),
        ("socket.send_fds(peer, [b'x'], [0, 1, 2])", "Unable to query TUNGETIFF on FD ", "it is no tap"),
        ("socket.send_fds(peer, [b'x'], [0]); sys.exit('sorry')", "bridge helper failed", "sorry"),
        ("socket.send_fds(peer, [b'x'], [0]); sys.exit(7)", "bridge helper failed", "ended with status 7"),
        ("os.kill(os.getpid(), 9)", "bridge helper failed", "ended with status -9"),
        ("sys.exit('x' * 100000)", "bridge helper failed", "xxx"),
    ],
)
@pytest.mark.parametrize("kind", ["bridge", "tap"])
def test_helpers_that_misbehave_leave_nothing(net: Net, fake: Any, kind: str, body: str, text: str, hint: str) -> None:
    with pytest.raises(Error) as raised:
        net.netdev_add(kind, id="b", helper=fake(body))
    assert raised.value.text.startswith(text)
    assert hint in raised.value.hint
    assert net.clients == ()


def test_a_helper_that_may_not_be_run(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "helper"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(Unavailable) as raised:
        net.netdev_add("bridge", id="b", helper=str(path))
    assert raised.value.hint.startswith(f"{path}: Permission denied; Debian: apt install qemu-system-common")
