"""script and downscript: when they run, how they fail, and that the network goes on meanwhile (2.3, B18)."""

import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qnet import Error, HostError, Net

pytestmark = pytest.mark.root


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """script(name, body) -> its path; `$log` is a file."""

    def make(name: str, body: str = "") -> str:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nlog={tmp_path}/log\necho "{name} $*" >>$log\n{body}\n')
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def said(tmp_path: Path) -> Callable[[], list[str]]:
    return lambda: (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []


def interfaces(ns: Any) -> str:
    return ns.run("ip -o link")


def test_one_when_it_comes_one_before_it_goes(net: Net, ns: Any, script: Any, said: Any, tmp_path: Path) -> None:
    up, down = script("up", f"ip link set $1 up && cat /proc/self/fd/0 >>{tmp_path}/log"), script("down", 'ip -o link show "$1" >>$log')
    with ns:
        net.netdev_add(f"tap,id=t,ifname=eth7,script={up},downscript={down}")
        assert said() == ["up eth7"]
        assert "UP" in ns.run("ip -o link show eth7").split("<")[1].split(">")[0].split(",")
        assert net.info_network() == f"t: index=0,type=tap,ifname=eth7,script={up},downscript={down}\n"
        net.netdev_del("t")
    lines = said()
    assert lines[1] == "down eth7"
    assert ": eth7: " in lines[2], "it is still there when the downscript runs"
    assert "eth7" not in interfaces(ns)


def test_once_for_all_queues(net: Net, ns: Any, script: Any, said: Any) -> None:
    with ns:
        net.netdev_add(f"tap,id=t,queues=3,script={script('up')},downscript={script('down')}")
        net.netdev_del("t")
    assert said() == ["up tap0", "down tap0"]


@pytest.mark.parametrize("nothing", ["no", ""])
def test_none(net: Net, ns: Any, nothing: str) -> None:
    with ns:
        net.netdev_add(f"tap,id=t,script={nothing},downscript={nothing}")
        assert net.info_network() == f"t: index=0,type=tap,ifname=tap0,script={nothing},downscript={nothing}\n"


def test_the_distributions_are_the_default(net: Net, ns: Any) -> None:
    """Of Debian's QEMU."""
    with ns:
        net.netdev_add("tap,id=t")
        assert "script=/etc/qemu-ifup,downscript=/etc/qemu-ifdown" in net.info_network()
        assert ",UP" in ns.run("ip -o link show tap0")
        net.netdev_del("t")


@pytest.mark.parametrize(("body", "status"), [("exit 1", 256), ("exit 3", 768), ("kill -9 $$", 9)])
def test_one_that_fails(net: Net, ns: Any, script: Any, said: Any, body: str, status: int) -> None:
    up = script("up", body)
    with ns, pytest.raises(Error) as raised:
        net.netdev_add(f"tap,id=t,script={up},downscript={script('down')}")
    assert raised.value.text == f"network script {up} failed with status {status}"
    assert said() == ["up tap0"]
    assert net.clients == ()
    assert "tap0" not in interfaces(ns)


@pytest.mark.parametrize(("mode", "why"), [(None, "No such file or directory"), (0o644, "Permission denied")])
def test_one_that_cannot_be_run(net: Net, ns: Any, tmp_path: Path, mode: int | None, why: str) -> None:
    path = tmp_path / "up"
    if mode is not None:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    with ns, pytest.raises(Error) as raised:
        net.netdev_add(f"tap,id=t,script={path},downscript=no")
    assert str(raised.value) == f"network script {path} failed with status 256; {why}; script=no and downscript=no run none"


def test_what_fails_later_is_undone_by_the_downscript(net: Net, ns: Any, script: Any, said: Any) -> None:
    with ns, pytest.raises(HostError):
        net.netdev_add(f"tap,id=t,queues=300,script={script('up')},downscript={script('down')}")
    assert said() == ["up tap0", "down tap0"]
    assert "tap0" not in interfaces(ns)


def test_a_downscript_that_fails_is_logged(net: Net, ns: Any, script: Any, caplog: pytest.LogCaptureFixture) -> None:
    down = script("down", "exit 1")
    with ns, caplog.at_level(logging.WARNING):
        net.netdev_add(f"tap,id=t,script=no,downscript={down}")
        net.netdev_del("t")
    assert f"network script {down} failed with status 256" in caplog.text
    assert "tap0" not in interfaces(ns)


def test_closed_twice_and_forgotten(net: Net, ns: Any, script: Any, said: Any) -> None:
    with ns:
        client = net.netdev_add(f"tap,id=t,script=no,downscript={script('down')}")
        client.close()
        client.close()
        net.netdev_del("t")
        del client
        gc.collect()
    assert said() == ["down tap0"]


CHILD = """
import os, sys, qnet
net = qnet.Net()
net.netdev_add("tap,id=t,script=no,downscript=" + sys.argv[1])
if not os.fork():
    sys.exit()
os.wait()
assert not os.path.exists(sys.argv[2]), "a child of the process ran the downscript"
{}
"""


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)", "net = None", "raise ValueError"])
def test_the_end_of_the_process(ns: Any, script: Any, said: Any, tmp_path: Path, end: str) -> None:
    with ns:
        run = [sys.executable, "-c", CHILD.format(end), script("down"), str(tmp_path / "log")]
        done = subprocess.run(run, stderr=subprocess.PIPE, text=True, check=False)
    assert "a child" not in done.stderr
    assert said() == ["down tap0"]


def test_the_network_goes_on_while_a_script_runs(net: Net, ns: Any, script: Any, said: Any, tmp_path: Path) -> None:
    """The script waits until frames have passed."""
    os.mkfifo(tmp_path / "go")
    up = script("up", f"read word <{tmp_path}/go")
    ends = [net.netdev_add(f"socketpair,id=s{i}") for i in range(2)]
    for i in range(2):
        net.netdev_add(f"hubport,id=p{i},hubid=0,netdev=s{i}")
    net.start()
    failed: list[BaseException] = []

    def add() -> None:
        try:
            with ns:
                net.netdev_add(f"tap,id=t,script={up},downscript=no")
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=add)
    thread.start()
    with open(tmp_path / "go", "w") as go:                  # opens once the script reads
        assert said() == ["up tap0"]
        a, b = (end.socket for end in ends)  # type: ignore[attr-defined]
        b.settimeout(30)
        for n in range(10):
            a.send(bytes([n]) * 60)
            assert b.recv(100) == bytes([n]) * 60
        assert thread.is_alive()
        go.write("go\n")
    thread.join()
    assert failed == []
    net.stop()
    assert net.client("t").ifname == "tap0"  # type: ignore[attr-defined]
