from qnet._client import NetClient
from qnet._loop import Loop

FUNCTIONS: tuple[str, ...]

class VdePort(NetClient):
    def __init__(
        self, loop: Loop, name: str, model: str, functions: dict[str, int], conn: int, datafd: int, ctlfd: int
    ) -> None: ...
    @property
    def connected(self) -> bool: ...
    @property
    def error(self) -> str | None: ...
