import os
from typing import Self

from qnet._client import Filter, NetClient

class DumpFilter(Filter):
    path: str
    maxlen: int
    def __new__(
        cls,
        client: NetClient,
        path: str | os.PathLike[str],
        *,
        format: str = "",
        maxlen: int = 65536,
        rotate_size: int = 0,
        rotate_count: int = 8,
        drops: bool = True,
    ) -> Self: ...
    def __init__(
        self,
        client: NetClient,
        path: str | os.PathLike[str],
        *,
        format: str = "",
        maxlen: int = 65536,
        rotate_size: int = 0,
        rotate_count: int = 8,
        drops: bool = True,
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def format(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def frames(self) -> int: ...
    @property
    def missed(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def writes(self) -> int: ...
