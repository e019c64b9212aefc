"""socketpair: a netdev whose other end is a socket in this process, for tests, benches and fuzzing. One message is one frame."""

import socket
from dataclasses import dataclass

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.backends._dgram import DgramClient
from qnet.errors import HostError
from qnet.options import Choice, opt
from qnet.rooms import Network

__all__ = ["Options", "SocketPair", "open"]

TYPES = {"seqpacket": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM}


@dataclass(frozen=True, kw_only=True)
class Options:
    socket_type: str = opt(
        Choice(*TYPES), default="seqpacket", help="seqpacket tells when an end is closed, dgram does not", extra=True
    )


class SocketPair(DgramClient):
    """`socket` is the other end: send() puts a frame on the network, recv() takes one from it. It is closed with the client."""

    def __init__(self, loop: Loop, name: str, socket_type: str = "seqpacket") -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, TYPES[socket_type])
        with ours:
            super().__init__(loop, name, "socketpair", ours.fileno(), ends=True)
        self.info_str = f"type={socket_type}"

    def close(self) -> None:
        """As any client's, and closes `socket`."""
        super().close()
        self.socket.close()


def open(net: Network, name: str, options: Options) -> list[NetClient]:
    try:
        return [SocketPair(net.loop, name, options.socket_type)]
    except OSError as e:
        raise HostError(e.errno or 0, "can't create a socket pair") from None
