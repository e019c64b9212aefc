"""What every test is held to: nothing it opened is left over, and a tool it needs is there (in CI: or it fails)."""

import gc
import os
import shutil
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings

from qnet import _fastpath

# Time is not what tests are about, and a machine may be slow.
settings.register_profile("qnet", deadline=None)
settings.load_profile("qnet")

NEEDS = {
    "root": (lambda: os.geteuid() == 0, "needs root"),
    "kvm": (lambda: os.access("/dev/kvm", os.R_OK | os.W_OK), "needs /dev/kvm"),
    "qemu": (lambda: shutil.which("qemu-system-x86_64") is not None, "needs qemu-system-x86_64"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (there, why) in NEEDS.items():
        if item.get_closest_marker(marker) and not there():
            # A runner without /dev/kvm is no mistake of the runner's; a missing program is.
            if os.environ.get("CI") == "true" and marker != "kvm":
                pytest.fail(f"{why}; in CI that is an error")
            pytest.skip(why)


def pytest_collection_finish() -> None:
    """What was imported stays; without it in its way, a collection after each test costs nothing."""
    gc.collect()
    gc.freeze()


def open_fds() -> dict[str, str]:
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue                            # the directory's own
    return fds


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Clients, threads and file descriptors are back to what they were once the test is over."""
    clients, fds, threads = _fastpath.live(), open_fds(), set(threading.enumerate())
    yield
    gc.collect()
    left = {fd: what for fd, what in open_fds().items() if fds.get(fd) != what}
    running = {t.name for t in set(threading.enumerate()) - threads}
    assert _fastpath.live() == clients, f"{_fastpath.live() - clients} clients left"
    assert not running, f"threads left: {running}"
    assert not left, f"file descriptors left: {left}"
