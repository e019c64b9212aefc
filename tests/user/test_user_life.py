"""Closing the user netdev in every state: conftest.py sees to it that no client, descriptor or thread is left; here the rest."""

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP

from qnet.backends import user
from qnet.net import Net
from qnet.testing import Port


@contextlib.contextmanager
def tcp_connecting(g: Any, tmp_path: Path) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        g.send(g.to("10.0.2.2") / TCP(sport=4000, dport=listener.getsockname()[1], flags="S"))
        yield


@contextlib.contextmanager
def tcp_established_with_data_both_ways(g: Any, tmp_path: Path) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp = g.connect("10.0.2.2", listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            connection.send(bytes(100_000))
            g.port.room(0)
            tcp.guest.send(tcp.segment("PA", b"x" * 1000))
            g.step()
            yield


@contextlib.contextmanager
def tcp_half_closed(g: Any, tmp_path: Path) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp = g.connect("10.0.2.2", listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            connection.shutdown(socket.SHUT_WR)
            g.step()
            tcp.take()
            yield


@contextlib.contextmanager
def udp_and_fragments(g: Any, tmp_path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        g.udp("10.0.2.2", s.getsockname()[1], b"x")
        yield


@contextlib.contextmanager
def forwards_with_a_connection_nobody_answers(g: Any, tmp_path: Path) -> Iterator[None]:
    g.answers = False
    path = tmp_path / "s"
    for rule in ("tcp::0-:22", "udp::0-:53", "tcp:[::1]:0-:22", f"unix:{path}-:22"):
        g.client.hostfwd_add(rule)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(path))
        s.sendall(b"hello")
        g.step()
        yield
    assert not path.exists()


@contextlib.contextmanager
def handler_that_waits(g: Any, tmp_path: Path) -> Iterator[None]:
    started, ended = threading.Event(), threading.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    g.client.guestfwd("tcp:10.0.2.100:80", handler)
    g.connect("10.0.2.100", 80)
    assert started.wait(10)
    yield
    assert ended.wait(10)


def runs(pid: int) -> bool:
    """Not so a zombie, which init will reap when it likes."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def command_that_runs(g: Any, tmp_path: Path) -> Iterator[None]:
    pid_file = tmp_path / "pid"
    script = tmp_path / "run"
    script.write_text(f"#!/bin/sh\necho $$ >{pid_file}\nexec cat\n")
    script.chmod(0o755)
    g.client.guestfwd(f"tcp:10.0.2.100:80-cmd:{script}")
    g.connect("10.0.2.100", 80)
    g.until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    pid = int(pid_file.read_text())
    assert runs(pid)
    yield
    deadline = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < deadline, "the command still runs"
        time.sleep(0.01)


STATES = [
    tcp_connecting, tcp_established_with_data_both_ways, tcp_half_closed, udp_and_fragments, forwards_with_a_connection_nobody_answers,
    handler_that_waits, command_that_runs,
]  # fmt: skip


@pytest.mark.parametrize("how", ["netdev_del", "close", "close from a callable"])
@pytest.mark.parametrize("mode", ["pump", "thread"])
@pytest.mark.parametrize("state", STATES, ids=[state.__name__ for state in STATES])
def test_close_leaves_nothing(guest: Callable[..., Any], tmp_path: Path, state: Any, mode: str, how: str) -> None:
    g = guest(mode)
    before = set(os.listdir("/proc/self/fd"))
    with state(g, tmp_path):
        if how == "netdev_del":
            g.net.netdev_del("n0")
        elif how == "close":
            g.net.close()
        elif mode == "thread":
            done = threading.Event()
            g.net.loop.call_later(0, lambda: (g.net.netdev_del("n0"), done.set()))
            assert done.wait(10)
        else:
            g.net.loop.call_later(0, lambda: g.net.netdev_del("n0"))
            g.until(lambda: g.client.closed)
        assert g.client.closed
        with pytest.raises(ValueError, match="closed"):
            g.client.connection_info()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_forgotten_without_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    net = Net()
    client = user.UserClient(net.loop, "n0", user.Options(hostfwd=()))
    client.hostfwd_add(f"unix:{tmp_path}/s-:22")
    client.guestfwd("tcp:10.0.2.100:80", handler)
    assert len(list(tmp_path.iterdir())) == 2
    del client
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    net.close()


def test_a_socket_file_that_was_replaced_is_not_ours(guest: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "s"
    g = guest(hostfwd=[f"unix:{path}-:22"])
    path.unlink()
    path.write_text("somebody else's")
    g.net.netdev_del("n0")
    assert path.read_text() == "somebody else's"


def test_a_closed_client_refuses_and_drops(guest: Callable[..., Any]) -> None:
    g = guest()
    g.net.netdev_del("n0")
    for call in (lambda: g.client.hostfwd_add("tcp::0-:22"), lambda: g.client.guestfwd("tcp:10.0.2.100:80-cmd:cat")):
        with pytest.raises(ValueError):
            call()
    g.client.close()
    assert user.info_usernet([g.client]) == ""


def test_a_handler_that_will_not_end_does_not_hang_the_close(guest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that needs the network while that is being closed."""
    g = guest()
    started, go = threading.Event(), threading.Event()
    monkeypatch.setattr("qnet.backends._guestfwd.PATIENCE", 0.1)

    async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        go.wait()                                           # blocks its loop
        g.net.info_network()

    g.client.guestfwd("tcp:10.0.2.100:80", stubborn)
    g.connect("10.0.2.100", 80)
    assert started.wait(10)
    loop_thread = next(t for t in threading.enumerate() if t.name == "qnet-guestfwd-loop")
    g.net.netdev_del("n0")
    go.set()
    loop_thread.join(10)
    assert not loop_thread.is_alive()


def test_open_and_close_many_times() -> None:
    with Net() as net:
        port = Port(net.loop, "guest")
        for i in range(200):
            client = net.netdev_add("user", id="n0", hostfwd=["tcp::0-:22"])
            client.pair(port)
            net.netdev_del("n0")
            assert port.peer is None, i
        port.close()


def test_opening_in_many_threads_at_once() -> None:
    """slirp_new and slirp_cleanup touch what is common to all instances."""
    errors = []

    def work() -> None:
        try:
            for _ in range(20):
                with Net() as net:
                    net.netdev_add("user", id="n0", hostfwd=["tcp::0-:22"])
                    net.pump()
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
