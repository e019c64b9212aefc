"""Network namespaces of a test's own, and the wait for what a network is about to do."""

import ctypes
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qnet import Net
from qnet.backends._bridge_helper import default_helper

CLONE_NEWNET = 0x40000000
TIMEOUT = 30.0                      # seconds after which something that was expected did not happen

libc = ctypes.CDLL(None, use_errno=True)


def _check(rc: int) -> None:
    if rc < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """`with ns:` the calling thread, what it opens and what it starts are in it. It has no name, so that a killed run leaves nothing;
    interfaces, routes and sockets in it go with it. No IPv6, which would speak unasked."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(libc.unshare(CLONE_NEWNET))
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _check(libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)
        self._back: list[int] = []
        self.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        self.run("ip link set lo up")

    def __enter__(self) -> "Namespace":
        self._back.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        _check(libc.setns(self._fd, CLONE_NEWNET))
        return self

    def __exit__(self, *exc: object) -> None:
        back = self._back.pop()
        _check(libc.setns(back, CLONE_NEWNET))
        os.close(back)

    def run(self, command: str) -> str:
        """Run a command in it, split at blanks; its output. AssertionError when it fails."""
        with self:
            done = subprocess.run(command.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def close(self) -> None:
        os.close(self._fd)


# The helper reads /etc/qemu/bridge.conf: it is given an /etc of its own, in a mount namespace that ends with it.
WRAPPER = """#!/bin/sh
conf=$(cat {conf}; echo .)
export conf
exec unshare -m /bin/sh -c '
    mount -t tmpfs none /etc && mkdir /etc/qemu && printf %s "${{conf%.}}" >/etc/qemu/bridge.conf && exec {helper} "$@"
' helper "$@"
"""


def bridge_helper(path: Path, *lines: str) -> str:
    """The path of a qemu-bridge-helper that obeys a list of these lines; it is put into the directory `path`."""
    real = default_helper()
    assert shutil.which(real), "Debian package qemu-system-common"
    conf, program = path / "bridge.conf", path / "helper"
    conf.write_text("".join(line + "\n" for line in lines))
    program.write_text(WRAPPER.format(conf=conf, helper=real))
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def namespace() -> Iterator[Callable[[], Namespace]]:
    """namespace() -> a new one."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for ns in made:
        ns.close()


@pytest.fixture
def ns(namespace: Callable[[], Namespace]) -> Namespace:
    return namespace()


@pytest.fixture
def net() -> Iterator[Net]:
    with Net(memory=bytearray(4 << 20)) as net:
        yield net


@pytest.fixture
def pump_until() -> Callable[[Net, Callable[[], object]], None]:
    """pump_until(net, condition): move a network that nobody runs until the condition holds."""

    def pump_until(net: Net, condition: Callable[[], object]) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            left = end - time.monotonic()
            assert left > 0, "it never happened"
            select.select([net.fileno()], [], [], min(left, 0.1))
            net.pump()

    return pump_until


@pytest.fixture
def rests() -> Callable[[Net], None]:
    """rests(net): a network that nobody runs has nothing to do, and would not be woken."""

    def rests(net: Net) -> None:
        for _ in range(1000):
            if not net.pump():
                break
        assert select.select([net.fileno()], [], [], 0.05)[0] == [], "the loop is woken again and again"

    return rests
