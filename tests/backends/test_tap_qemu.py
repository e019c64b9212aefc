"""The same options to a real QEMU and to a Net: the same words come back. Differences stand here by name."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from qnet import Error, Net

pytestmark = [pytest.mark.root, pytest.mark.qemu]

TEXTS = [
    *(f"tap,id=x,script=no,downscript=no{rest}" for rest in (
        "", ",ifname=", ",ifname=eth7", ",ifname=a%db", ",ifname=lo", ",ifname=veth0", ",ifname=a/b", ",ifname=single", ",ifname=multi",
        ",queues=1", ",queues=2", ",queues=3,ifname=mq%d", ",queues=2,ifname=single", ",queues=2,ifname=multi", ",queues=-1", ",queues=x",
        ",sndbuf=0", ",sndbuf=1k", ",sndbuf=4G", ",sndbuf=x", ",sndbuf=-1", ",vnet_hdr=on", ",vnet_hdr=off", ",vnet_hdr=x", ",br=zz",
        ",poll-us=5", ",poll-us=x", ",vhost=off", ",vhost=x", ",vhostfds=3", ",vhost=off,vhostfd=5", ",foo=1", ",vnet-hdr=on")),
    "tap,id=x,script=,downscript=", "tap,id=x,script=/bin/true,downscript=/bin/true", "tap,id=x,script=/bin/false",
    "tap,id=x,script=/nonexistent", "tap,id=x,script=no", "tap,id=x,downscript=no,script=no",
    *(f"tap,id=x,fd=5,{rest}" for rest in (
        "ifname=a", "script=no", "downscript=no", "vnet_hdr=on", "helper=a", "queues=1", "fds=1", "vhostfds=1")),
    *(f"tap,id=x,fds=5:6,{rest}" for rest in (
        "ifname=a", "script=no", "downscript=no", "vnet_hdr=on", "helper=a", "queues=2", "vhostfd=1", "vhostfds=3", "vhostfds=3:4:5")),
    *(f"tap,id=x,helper=/bin/false{rest}" for rest in (
        "", ",ifname=a", ",script=no", ",downscript=no", ",vnet_hdr=on", ",queues=1", ",vhostfds=1", ",br=zz")),
    *(f"tap,id=x,fd={fd}" for fd in ("nosuch", "-1", "", "5x", "4000000")),
    "tap,id=x,helper=/nonexistent",
    *(f"bridge,id=x{rest}" for rest in (",helper=/bin/false", ",helper=/nonexistent", ",br=averyveryverylongname", ",foo=1")),
]  # fmt: skip

class Qemu:
    """A QEMU that never runs its machine, and its monitor; in the namespace of who makes it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-M", "none",
                 "-chardev", f"socket,fd={theirs.fileno()},id=q", "-mon", "chardev=q,mode=control"],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self.socket, self.lines = ours, ours.makefile("r")
        self.lines.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: object) -> Any:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer

    def hmp(self, line: str) -> str:
        text: str = self.qmp("human-monitor-command", **{"command-line": line})["return"]
        return text.replace("\r\n", "\n")

    def close(self) -> None:
        self.lines.close()
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def qemu(ns: Any) -> Iterator[Qemu]:
    for command in (
        "ip link add veth0 type veth peer name veth1",
        "ip tuntap add dev single mode tap",
        "ip tuntap add dev multi mode tap multi_queue",
    ):
        ns.run(command)
    with ns:
        qemu = Qemu()
    yield qemu
    qemu.close()


def say(net: Net, text: str) -> str:
    try:
        net.netdev_add(text)
    except Error as e:
        return e.text
    return ""


def shown_by(text: str) -> str:
    """QEMU gives the queues of a netdev their numbers when a NIC takes it, qnet at once."""
    return re.sub(r"index=\d+", "index=N", text)


def test_the_same_words(qemu: Qemu, net: Net, ns: Any) -> None:
    differ = []
    for text in TEXTS:
        theirs = qemu.hmp(f"netdev_add {text}").split("\n")[0].removeprefix("Error: ")
        shown = qemu.hmp("info network")
        if shown:
            qemu.qmp("netdev_del", id="x")
        with ns:
            ours = (say(net, text), shown_by(net.info_network()))
        if net.clients:
            net.netdev_del("x")
        if ours != (theirs, shown_by(shown)):
            differ.append((text, ours, (theirs, shown)))
    assert not differ, "\n".join(map(repr, differ))


def test_the_same_words_for_who_has_no_privileges(net: Net, ns: Any) -> None:
    """Both in a child that has given them up."""
    code = (
        "import json, sys, qnet\nwith qnet.Net() as net:\n for text in sys.argv[1:]:\n"
        "  try: net.netdev_add(text)\n  except qnet.Error as e: print(e.text)\n"
    )
    texts = ["tap,id=x,script=no", "tap,id=x,script=no,ifname=eth7", "tap,id=x,script=no,ifname=e%d", "tap,id=x,queues=2"]
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    python = os.path.realpath("/proc/self/exe")
    with ns:
        ours = subprocess.run([*drop, python, "-c", code, *texts], capture_output=True, text=True, check=True).stdout.splitlines()
        theirs = []
        for text in texts:
            run = [*drop, "qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-M", "none", "-netdev", text]
            said = subprocess.run(run, capture_output=True, text=True, check=False).stderr
            theirs.append(said.strip().removeprefix(f"qemu-system-x86_64: -netdev {text}: "))
    assert ours == theirs
