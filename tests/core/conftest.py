"""A network and clients that are closed when the test is over; and no client may have seen the core break the packet contract."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qnet._client import NetClient
from qnet._loop import Loop
from qnet.testing import Port


@pytest.fixture
def net() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def make(net: Loop) -> Iterator[Callable[..., Any]]:
    """make(cls=Port, **options) -> client."""
    clients: list[NetClient] = []

    def make(cls: type[NetClient] = Port, *args: Any, **options: Any) -> NetClient:
        client = cls(net, *args, **options)
        clients.append(client)
        return client

    yield make
    breaches = [(repr(client), client.breaches) for client in clients if isinstance(client, Port) and client.breaches]
    for client in clients:
        client.close()
        del client
    clients.clear()
    assert not breaches
    assert net.queued == 0, "the core's count of queued packets is wrong"


@pytest.fixture
def link(make: Callable[..., Any]) -> Callable[..., tuple[Port, Port]]:
    """link(a=options of a, b=options of b) -> two Ports that are peers."""

    def link(a: dict[str, Any] | None = None, b: dict[str, Any] | None = None) -> tuple[Port, Port]:
        first, second = make(Port, "a", **(a or {})), make(Port, "b", **(b or {}))
        first.pair(second)
        return first, second

    return link
