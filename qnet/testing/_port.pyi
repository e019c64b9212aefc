from collections.abc import Mapping, Sequence
from typing import TypeAlias

from qnet._fastpath import Context, NetClient

BREACH_NAMES: dict[int, str]
REACTION_NAMES: tuple[str, ...]

_Frames: TypeAlias = Sequence[bytes | Sequence[bytes]]
_Offload: TypeAlias = Mapping[str, int] | Sequence[Mapping[str, int] | None] | None

class Port(NetClient):
    def __init__(
        self,
        context: Context,
        name: str = ...,
        model: str = ...,
        *,
        capacity: int | None = ...,
        asks: bool = ...,
        flow_control: bool = ...,
        takes: str = ...,
        min_frame: int = ...,
        max_frame: int = ...,
        reaction: str = ...,
        is_nic: bool = ...,
    ) -> None: ...
    def send(self, frames: _Frames, offload: _Offload = ...) -> int: ...
    def send_claim(self, size: int, iovcnt: int = ...) -> int: ...
    def loopback(self, frames: _Frames, offload: _Offload = ...) -> int: ...
    def post(self, frames: _Frames, offload: _Offload = ...) -> None: ...
    def recv(self) -> list[bytes]: ...
    def room(self, n: int | None) -> None: ...
    @property
    def offloads(self) -> list[dict[str, int]]: ...
    @property
    def capacity_left(self) -> int | None: ...
    @property
    def backlog(self) -> int: ...
    @property
    def breaches(self) -> list[str]: ...
    @property
    def bursts(self) -> int: ...
    @property
    def resumed(self) -> int: ...
    @property
    def link_changes(self) -> int: ...
    @property
    def blocked(self) -> bool: ...
    flow_control: bool
    @property
    def takes(self) -> int: ...
    @takes.setter
    def takes(self, value: str) -> None: ...
    min_frame: int
    max_frame: int
    reaction: str
