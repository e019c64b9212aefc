"""The program that makes a tap on a bridge for those who may not: QEMU's qemu-bridge-helper, or another one that speaks as it does.

It is called with `--use-vnet --fd=N --br=NAME`, N being a unix socket, and sends one byte with the tap's descriptor over it.
"""

import os
import shlex
import socket
import subprocess
import tempfile

from qnet.errors import Error, OptionError, Unavailable

__all__ = ["BRIDGE", "NAME_MAX", "default_helper", "run_helper"]

BRIDGE = "br0"
NAME_MAX = 15                                   # bytes of an interface's name
PLACES = ("/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper", "/usr/local/libexec/qemu-bridge-helper")
PACKAGE = "Debian: apt install qemu-system-common; helper= names another one"


def default_helper() -> str:
    """Where the distribution has it."""
    return next((path for path in PLACES if os.path.exists(path)), PLACES[0])


def run_helper(helper: str, bridge: str) -> int:
    """The descriptor of a new tap on `bridge`, which is the caller's to close. A `helper` with a blank in it is a shell command.

    OptionError: `bridge` is no name. Unavailable: the helper is not there. Error: it failed, or sent nothing; what it said is in the
    hint.
    """
    if not 0 < len(os.fsencode(bridge)) <= NAME_MAX or "/" in bridge or bridge.split() != [bridge]:
        raise OptionError("bridge helper failed", f"'{bridge}' is no interface: a name has 1 to {NAME_MAX} bytes, no blank and no '/'")
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile("w+", errors="replace") as errors:
        with theirs:
            fd = theirs.fileno()
            if " " in helper or "\t" in helper:
                name = "" if "--br=" in helper else f" --br={shlex.quote(bridge)}"
                command = ["/bin/sh", "-c", f"{helper} --use-vnet --fd={fd}{name}"]
            else:
                command = [helper, "--use-vnet", f"--fd={fd}", f"--br={bridge}"]
            try:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors, pass_fds=[fd])
            except OSError as e:
                raise Unavailable("bridge helper failed", f"{helper}: {e.strerror}; {PACKAGE}") from None
        fds: list[int] = []
        try:
            with child:
                _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            errors.seek(0)
            said = " / ".join(errors.read().split("\n")).strip(" /")
            if child.returncode:
                raise Error("bridge helper failed", said or f"{helper} ended with status {child.returncode}")
            if not fds:
                raise Error("failed to recv file descriptor", said or f"{helper} sent none")
            return fds.pop()
        finally:
            for unused in fds:
                os.close(unused)
