from collections.abc import Mapping, Sequence

TAKES: dict[str, int]

def takes_mask(takes: str) -> int: ...

class Burst:
    def __init__(
        self, frames: Sequence[bytes | Sequence[bytes]], offload: Mapping[str, int] | Sequence[Mapping[str, int] | None] | None
    ) -> None: ...
