from collections.abc import Mapping, Sequence
from typing import Self

TAKES: dict[str, int]

def takes_mask(takes: str) -> int: ...

class Burst:
    def __new__(
        cls, frames: Sequence[bytes | Sequence[bytes]], offload: Mapping[str, int] | Sequence[Mapping[str, int] | None] | None
    ) -> Self: ...
