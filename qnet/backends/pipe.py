"""pipe: frames over pipes or sockets that are open already, each behind its length in 4 bytes, most significant first (X1).

What QEMU's stream and socket netdevs speak, without the connecting: for tests, benches and fuzzing.
"""

import errno
from dataclasses import dataclass

from qnet._client import NetClient
from qnet.backends._stream import StreamClient
from qnet.errors import HostError, OptionError
from qnet.options import INT32, opt
from qnet.rooms import Network

__all__ = ["Options", "open"]


@dataclass(frozen=True, kw_only=True)
class Options:
    rfd: int | None = opt(INT32, help="file descriptor that frames are read from")
    wfd: int | None = opt(INT32, help="file descriptor that frames are written to")


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    given = {key: fd for key, fd in (("rfd", options.rfd), ("wfd", options.wfd)) if fd is not None}
    text = ",".join(f"{key}={fd}" for key, fd in given.items())
    if not given:
        raise OptionError("pipe requires rfd= or wfd=", "descriptors of pipes or stream sockets; both may be one socket")
    for key, fd in given.items():
        if fd < 0:
            raise OptionError(f"Parameter '{key}' doesn't take value '{fd}'", "a file descriptor is 0 or more")
    try:
        client = StreamClient(net.loop, name, "pipe", **given)
    except OSError as e:
        hint = "it takes pipes and sockets, not files" if e.errno == errno.EPERM else ""
        raise HostError(e.errno or 0, f"pipe: can't use {text}", hint) from None
    client.info_str = text
    return [client]
