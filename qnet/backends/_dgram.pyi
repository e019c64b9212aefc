from qnet._client import NetClient
from qnet._loop import Loop

class DgramClient(NetClient):
    def __init__(
        self, loop: Loop, name: str, model: str, fd: int, *, remote: bytes = b"", ends: bool = False, coalesce: bool = False
    ) -> None: ...
    @property
    def connected(self) -> bool: ...
    @property
    def error(self) -> str | None: ...
