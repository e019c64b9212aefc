"""The same commands to a real QEMU and to a Net: the same words come back. Differences stand here by name."""

import json
import re
import socket
import subprocess

import pytest

from qnet.errors import Error
from qnet.net import Net

from .conftest import MEMORY

pytestmark = pytest.mark.qemu


class Qemu:
    """A QEMU that never runs its machine, and its monitor."""

    def __init__(self, *args):
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-M", "pc", *args,
             "-chardev", f"socket,fd={theirs.fileno()},id=q", "-mon", "chardev=q,mode=control"],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()
        self.socket, self.lines = ours, ours.makefile("r")
        self.lines.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer

    def hmp(self, line):
        return self.qmp("human-monitor-command", **{"command-line": line})["return"].replace("\r\n", "\n")

    def close(self):
        self.lines.close()
        self.socket.close()
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture
def qemu():
    running = []

    def start(*args):
        running.append(Qemu(*args))
        return running[-1]

    yield start
    for one in running:
        one.close()


def complaint(*args):
    """Why QEMU does not start with these arguments, or nothing."""
    done = subprocess.run(["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-M", "none", "-monitor", "stdio", *args],
                          input="quit\n", capture_output=True, text=True, timeout=60)  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if "warning: " not in line and not line.startswith("Please use")]
    return errors[0].removeprefix("qemu-system-x86_64: ").removeprefix(f"-object {args[-1]}: ") if errors else ""


def normal(text):
    return re.sub(r"#net\d+", "#net", text)


def say(call, *args):
    """The text of the error, or nothing."""
    try:
        call(*args)
    except Error as e:
        return e.text
    return ""


LAYOUTS = [
    ["-netdev hubport,id=h0,hubid=3", "-device e1000,netdev=h0", "-netdev hubport,id=h1,hubid=3", "-netdev hubport,id=a,hubid=-1"],
    ["-netdev hubport,id=a,hubid=0", "-netdev hubport,id=b,hubid=1,netdev=a", "-device e1000", "-device e1000,id=n,mac=52:54:00:12:34:56"],
    ["-nic hubport,hubid=2,model=e1000", "-nic hubport,hubid=2,model=e1000,mac=52:54:00:12:34:58", "-nic hubport,hubid=1,model=e1000"],
    ["-net nic,model=e1000", "-net nic,model=e1000,macaddr=52-54-0-12-34-56", "-net nic,model=e1000-82544gc,macaddr=0x112233"],
    ["-netdev hubport,id=h,hubid=0", "-device e1000,netdev=h", "-object filter-dump,id=f,netdev=h,file=/dev/null",
     "-object filter-dump,id=g,netdev=h,file=/dev/null,maxlen=99,queue=rx,position=id=f,insert=before,status=off",
     "-object filter-dump,id=i,netdev=h,file=/dev/null,position=head"],
    ["-netdev hubport,id=h,hubid=0", "-net nic,model=e1000", "-net nic,netdev=h,model=e1000,id=foo"],
]


def run(net, line):
    option, _, text = line.partition(" ")
    adders = {"-netdev": net.netdev_add, "-device": net.device_add, "-nic": net.nic_add, "-net": net.net_add, "-object": net.object_add}
    adders[option](text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_info_network(qemu, probes, layout):
    theirs = qemu(*(word for line in layout for word in line.split(" ", 1)))
    with Net(memory=MEMORY) as net:
        # QEMU makes netdevs first, then the NICs of its table, then devices, in whatever order they were given (M9)
        for option in ("-netdev", "-nic", "-net", "-device", "-object"):
            if option == "-device":
                for slot in net.nic_table:
                    net.nic_init(slot)
            for line in layout:
                if line.startswith(option + " "):
                    run(net, line)
        ours = net.check_clients()
        assert normal(net.info_network()) == normal(theirs.hmp("info network"))
        theirs.lines.close()
        theirs.socket.close()
        theirs.process.terminate()
        said = re.findall(r"warning: (.*)", theirs.process.communicate(timeout=30)[1])
        assert [normal(line) for line in ours] == [normal(line) for line in said]


NETDEVS = [
    "user", "user,id=", "user,id=1a", "user,id=a%", "bogus,id=a", "id=a", ",id=a", "user,,x,id=a", "none,id=a", "nic,id=a",
    "hubport,id=a", "hubport,id=a,hubid=x", "hubport,id=a,hubid=", "hubport,id=a,hubid=1k", "hubport,id=a,hubid=5 ",
    "hubport,id=a,hubid=99999999999", "hubport,id=a,hubid=99999999999999999999", "hubport,id=a,hubid=1.0", "hubport,id=a,hubid=0,x=1",
    "hubport,id=a,hubid=0,netdev=zz", "hubport,id=a,hubid=0,=3", "hubport,id=a,hubid=0,ipv6-net=x/64", "hubport,id=a,hubid=0,ipv6-net=x/y",
    "hubport,id=there,hubid=1", "hubport,id=ok1,hubid=0x10", "hubport,id=ok2,hubid=-010", "hubport,hubid=+5,id=ok3,id=ok4",
]  # fmt: skip
JSON = [
    {"type": "hubport", "id": "a"},
    {"id": "a"},
    {"type": "hubport"},
    {"type": "nope", "id": "a"},
    {"type": "none", "id": "a"},
    {"type": "hubport", "id": "a", "hubid": "0"},
    {"type": "hubport", "id": "a", "hubid": 1.5},
    {"type": "hubport", "id": "a", "hubid": True},
    {"type": "hubport", "id": "a", "hubid": 1 << 40},
    {"type": "hubport", "id": 1, "hubid": 1},
    {"type": "hubport", "id": "1a", "hubid": 1},
    {"type": "hubport", "id": "a", "hubid": 1, "foo": 1},
    {"type": "hubport", "id": "there", "hubid": 1},
    {"type": "hubport", "id": "ok5", "hubid": 3},
]
DEVICES = [
    {"driver": "e1000", "netdev": "zz"}, {"driver": "e1000", "netdev": "busy"}, {"driver": "nope"}, {}, {"driver": "e1000", "id": "9"},
    {"driver": "e1000", "id": "nic"}, {"driver": "e1000", "foo": 1}, {"driver": "e1000", "mac": "zz"},
    {"driver": "e1000", "mac": "1-2-3-4-5-6"}, {"driver": "e1000", "bootindex": "x"}, {"driver": "e1000", "bootindex": 1 << 40},
    {"driver": "e1000", "mitigation": "maybe"}, {"driver": "e1000", "id": "ok6", "mitigation": "on", "mac": "52-54-00-12:34:60"},
]  # fmt: skip

OBJECTS = [
    "nope,id=g", "id=g", "filter-dump", "filter-dump,id=g,netdev=there", "filter-dump,id=g,file=/dev/null",
    "filter-dump,id=g,netdev=zz,file=/dev/null", "filter-dump,id=g,netdev=nic,file=/dev/null", "filter-dump,netdev=there,id",
    "filter-dump,id=g", "filter-dump,id=", "nope,id=1", "filter-dump,id=1,id=g", "filter-dump,id=g,foo=1,netdev=there",
    "nope,qom-type=filter-dump,id=g,netdev=zz,file=/dev/null", "filter-dump,qom-type=nope,id=g,netdev=there,file=/dev/null",
    *(f"filter-dump,netdev=there,file=/dev/null,{rest}" for rest in (
        "id=ok7", "id=g,foo=1", "id=g,queue=x", "id=g,maxlen=x", "id=g,maxlen=-1", "id=g,maxlen=1k", "id=g,maxlen=0",
        "id=ok8,position=id=ok7,insert=before,status=off", "id=g,position=x", "id=g,position=id=zz", "id=g,insert=x", "id=g,status=x",
        "id=1", "id=g,foo", "id=g,nofoo", "id=g,a.b=1", "id=g,queue.x=rx", "id=g,.=1", "id=g,=1", "id=g,queue", "id=g,maxlen",
        "id=ok7", "id=ok7,foo=1", "id=g,filter-dump", "id=g,id=1,queue=x", "id=g,foo=1,queue=x")),
]  # fmt: skip


def test_error_texts(qemu, probes):
    theirs = qemu("-netdev", "hubport,id=there,hubid=0", "-netdev", "hubport,id=busy,hubid=0", "-device", "e1000,id=nic,netdev=busy")
    differ = []

    def compare(what, ours, answer):
        if ours != answer:
            differ.append((what, ours, answer))

    with Net(memory=MEMORY) as net:
        for line in ("-netdev hubport,id=there,hubid=0", "-netdev hubport,id=busy,hubid=0", "-device e1000,id=nic,netdev=busy"):
            run(net, line)
        for text in NETDEVS:
            answer = theirs.hmp(f"netdev_add {text}").split("\n")[0].removeprefix("Error: ")
            while answer.startswith(("Try", "Identifiers", "warning: ")):        # errors of parsing go to stderr
                answer = theirs.process.stderr.readline().rstrip("\n").removeprefix("qemu-system-x86_64: ")
            compare(text, say(net.netdev_add, text.rstrip() if text.endswith(" ") else text), answer)
        for command, method, table in (("netdev_add", net.netdev_add, JSON), ("device_add", net.device_add, DEVICES)):
            for arguments in table:
                compare(arguments, say(method, arguments), theirs.qmp(command, **arguments).get("error", {}).get("desc", ""))
        made = ["-netdev", "hubport,id=there,hubid=0"]
        for text in OBJECTS:
            answer = complaint(*made, "-object", text)                          # the monitor's object_add has dotted keys
            compare(text, say(net.object_add, text), answer)
            if not answer:
                made += ["-object", text]
                theirs.hmp(f"object_add {text}")
        for name in ("zz", "ok7"):
            compare(("object-del", name), say(net.object_del, name), theirs.qmp("object-del", id=name).get("error", {}).get("desc", ""))
        for name in ("zz", "nic", "ok1", "ok1"):
            compare(("netdev_del", name), say(net.netdev_del, name), theirs.qmp("netdev_del", id=name).get("error", {}).get("desc", ""))
        for name in ("zz", "nic", "busy"):
            answer = theirs.qmp("set_link", name=name, up=False).get("error", {}).get("desc", "")
            compare(("set_link", name), say(net.set_link, name, False), answer)
        for name in ("zz", "there", "nic"):
            answer = theirs.qmp("query-rx-filter", name=name).get("error", {}).get("desc", "")
            compare(("query-rx-filter", name), say(net.query_rx_filter, name), answer)
        assert net.query_rx_filter() == theirs.qmp("query-rx-filter")["return"] == []
        assert net.info_network() == theirs.hmp("info network")
    assert not differ, "\n".join(map(repr, differ))
