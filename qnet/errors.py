"""Everything that can go wrong on the control plane, and the one door from -errno to an exception."""

import os
from collections.abc import Mapping

__all__ = ["DeviceNotFound", "DuplicateId", "Error", "HostError", "OptionError", "Unavailable", "check"]


class Error(Exception):
    """Base of qnet's exceptions.

    text: what QEMU says in this place, word for word (QMP's "desc"). hint: what to do about it, or "".
    str(error) is both. qmp_class: the error class QMP reports.
    """

    qmp_class = "GenericError"

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text, hint)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text}; {self.hint}" if self.hint else self.text


class OptionError(Error, ValueError):
    """An option is unknown, missing, of the wrong type, or does not fit the others."""


class DuplicateId(OptionError):
    """The id is taken."""


class DeviceNotFound(Error, LookupError):
    """No client, netdev, NIC or filter has this name (S55, S56)."""

    qmp_class = "DeviceNotFound"

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"Device '{name}' not found", hint)
        self.args = (name, hint)
        self.name = name


class Unavailable(Error, RuntimeError):
    """The host lacks something this kind needs: a library, a program, a kernel feature. The hint names the package."""


class HostError(Error, OSError):
    """The host refused a system call; `errno` and `strerror` say how."""

    def __init__(self, errno: int, doing: str, hint: str = "") -> None:
        strerror = os.strerror(errno)
        super().__init__(f"{doing}: {strerror}" if doing else strerror, hint)
        self.args = (errno, doing, hint)
        self.errno = errno
        self.strerror = strerror


def check(rc: int, doing: str = "", hint: str | Mapping[int, str] = "") -> int:
    """The one door from C's return codes: rc >= 0 is returned, -errno raises HostError.

    doing: what was tried, put in front of the system's text. hint: one text, or one for each errno that has a remedy.
    """
    if rc >= 0:
        return rc
    raise HostError(-rc, doing, hint if isinstance(hint, str) else hint.get(-rc, ""))
