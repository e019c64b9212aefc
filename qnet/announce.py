"""Self-announcement: after a NIC moved (migration, failover), rounds of frames tell the switches where it is (facts A1 to A4)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from qnet._loop import Loop, TimerHandle

__all__ = ["Announcer", "Parameters"]

MILLISECOND = 1_000_000


class Parameters(NamedTuple):
    """Delays in milliseconds; the defaults are those of a migration. interfaces: names of NICs, None: all."""

    initial: int = 50
    max: int = 550
    rounds: int = 5
    step: int = 100
    interfaces: tuple[str, ...] | None = None

    def delay(self, remaining: int) -> int:
        """Milliseconds to the next round, when so many are left (A2)."""
        ms = self.initial + (self.rounds - remaining - 1) * self.step
        return self.max if ms < 0 or ms > self.max else ms


@dataclass(eq=False)
class _Timer:
    parameters: Parameters
    remaining: int
    handle: TimerHandle | None = None


class Announcer:
    """The named announcement timers of one network. `send(parameters)` does one round; it is called with `lock` held."""

    def __init__(self, loop: Loop, lock: AbstractContextManager[object], send: Callable[[Parameters], None]) -> None:
        self._loop = loop
        self._lock = lock
        self._send = send
        self._timers: dict[str, _Timer] = {}

    def start(self, name: str, parameters: Parameters) -> None:
        """The first round now, the others in time. A timer of that name is replaced; rounds=0 only ends it (A4)."""
        with self._lock:
            self.cancel(name)
            if parameters.rounds > 0:
                timer = self._timers[name] = _Timer(parameters, parameters.rounds)
                self._round(name, timer)

    def _round(self, name: str, timer: _Timer) -> None:
        with self._lock:
            if self._timers.get(name) is not timer:         # replaced while this call waited for the lock
                return
            timer.remaining -= 1
            if timer.remaining:
                delay = timer.parameters.delay(timer.remaining) * MILLISECOND
                timer.handle = self._loop.call_later(delay, lambda: self._round(name, timer))
            else:
                del self._timers[name]
            self._send(timer.parameters)

    def pending(self) -> dict[str, int]:
        """Rounds still to come, by timer."""
        with self._lock:
            return {name: timer.remaining for name, timer in self._timers.items()}

    def cancel(self, name: str) -> None:
        """End a timer; nothing when there is none."""
        with self._lock:
            timer = self._timers.pop(name, None)
            if timer is not None and timer.handle is not None:
                timer.handle.cancel()

    def close(self) -> None:
        """End all timers."""
        for name in list(self._timers):
            self.cancel(name)
