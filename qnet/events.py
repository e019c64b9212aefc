"""What a network tells its users of its own accord: named events with their data, as QMP's."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["EventCallback", "Events"]

log = logging.getLogger("qnet.events")

EventCallback = Callable[[str, dict[str, Any]], object]


class Events:
    """Events wait here until the locks are free. Callables are called one at a time and in the order of the events."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._callbacks: list[EventCallback] = []
        self._delivering = threading.Lock()

    def add(self, callback: EventCallback) -> None:
        """Call it at each event from now on; once, however often it is added."""
        if callback not in self._callbacks:
            self._callbacks.append(callback)

    def remove(self, callback: EventCallback) -> None:
        """Nothing when it was not added."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def put(self, name: str, data: Mapping[str, Any]) -> None:
        """An event happened; deliver() tells of it."""
        if self._callbacks:
            self._waiting.append((name, dict(data)))

    def deliver(self) -> None:
        """Tell the callables. Without locks; if another call is at it, or this one comes from a callable, that call does it."""
        while self._waiting and self._delivering.acquire(blocking=False):
            try:
                while self._waiting:
                    name, data = self._waiting.popleft()
                    for callback in list(self._callbacks):
                        self._tell(callback, name, dict(data))
            finally:
                self._delivering.release()

    def _tell(self, callback: EventCallback, name: str, data: dict[str, Any]) -> None:
        try:
            callback(name, data)
        except Exception:
            log.exception("event callable failed at %s", name)
