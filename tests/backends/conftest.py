"""Network namespaces of a test's own, and the wait for what a network is about to do."""

import select
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qnet import Net
from qnet.backends._bridge_helper import default_helper
from qnet.testing import Namespace

TIMEOUT = 30.0                      # seconds after which something that was expected did not happen


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
