from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from typing_extensions import Buffer

from qnet._client import NetClient
from qnet._loop import Loop

class OffloadRecord(NamedTuple):
    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

class FrameMemory: ...

class PyClient(NetClient):
    on_frames: Callable[[list[memoryview]], object] | None
    on_readable: Callable[[], object] | None
    on_writable: Callable[[], object] | None
    paused: bool
    def __init__(
        self, loop: Loop, name: str = "", model: str = "py", *, max_packets: int = 4096, max_bytes: int = 8388608, offloads: bool = False
    ) -> None: ...
    @property
    def offloads(self) -> bool: ...
    @property
    def records(self) -> list[OffloadRecord | None]: ...
    @property
    def waiting(self) -> tuple[int, int]: ...
    @property
    def writable(self) -> bool: ...
    def recv(self) -> list[memoryview]: ...
    def send(self, frame: Buffer) -> bool: ...
    def send_many(self, frames: Iterable[Buffer], records: Iterable[Sequence[int] | None] | None = None) -> int: ...
    def set_program(self, program: Buffer | None) -> None: ...

def callable_or_none(value: object) -> object: ...
