from collections.abc import Mapping

from qnet._client import Context, NetClient

class Source(NetClient):
    size: int
    def __init__(
        self,
        context: Context,
        name: str = ...,
        model: str = ...,
        *,
        size: int = ...,
        pieces: int = ...,
        frame: bytes | None = ...,
        numbered: bool = ...,
        flow_control: bool = ...,
        offload: Mapping[str, int] | None = ...,
    ) -> None: ...
    def drive(self, n: int, burst: int = ...) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def sent(self) -> int: ...

class Sink(NetClient):
    def __init__(
        self,
        context: Context,
        name: str = ...,
        model: str = ...,
        *,
        takes: str = ...,
        checksum: bool = ...,
        numbered: bool = ...,
        max_frame: int = ...,
    ) -> None: ...
    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sum(self) -> int: ...
    @property
    def misordered(self) -> int: ...

class LoopBack(NetClient):
    def __init__(self, context: Context, name: str = ..., model: str = ..., *, takes: str = ...) -> None: ...
