"""Network namespaces of a test's own, so that what it does to interfaces stays there. Needs root."""

import ctypes
import os
import subprocess
from typing import Self

__all__ = ["Namespace"]

CLONE_NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def _check(rc: int) -> None:
    if rc < 0:
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """`with ns:` the calling thread, what it opens and what it starts are in it.

    It has no name: a killed process leaves none. Its interfaces, routes and sockets go with it: with close(), and the last socket and
    process in it. Loopback is up; there is no IPv6, which would speak unasked.
    """

    def __init__(self) -> None:
        home = _here()
        try:
            _check(libc.unshare(CLONE_NEWNET))
            self._fd = _here()
            _check(libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)
        self._back: list[int] = []
        self.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        self.run("ip link set lo up")

    def __enter__(self) -> Self:
        self._back.append(_here())
        _check(libc.setns(self._fd, CLONE_NEWNET))
        return self

    def __exit__(self, *exc: object) -> None:
        back = self._back.pop()
        _check(libc.setns(back, CLONE_NEWNET))
        os.close(back)

    def run(self, command: str) -> str:
        """Run a command in it, split at blanks; its output. RuntimeError when it fails."""
        with self:
            done = subprocess.run(command.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout.strip()}")
        return done.stdout

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
