from qnet._loop import Loop
from qnet.backends._dgram import DgramClient

class L2tpClient(DgramClient):
    def __init__(
        self,
        loop: Loop,
        name: str,
        fd: int,
        remote: bytes,
        *,
        tx: bytes,
        rx: bytes,
        udp: bool,
        ip_header: bool = False,
        counter: bool = False,
        pinned: bool = False,
        offset: int = 0,
    ) -> None: ...
