"""A PC's interrupt controllers and timer, for CPUs that do not bring their own (KVM has them in the kernel).

Sources: the 8259A and 8254 data sheets. Of each only what firmware and common kernels use: no rotating priorities, no interrupts inside
handlers; timer channel 0 counts in mode 2, channel 2 in mode 0, both are written low byte first, and nobody reads a counter back.
"""

import time
from functools import partial

from machine import Region, Space

PIT_HZ = 1193182
PCI_LINES = 1 << 10 | 1 << 11  # level-triggered, and all that SeaBIOS gives to this board's PCI interrupts
PRIORITY = 0, 1, *range(8, 16), *range(2, 8)  # of the lines: the second 8259 sits on line 2 of the first


class InterruptController:
    """The two 8259s of a PC as one set of 16 lines."""

    def __init__(self, ports: Space) -> None:
        self._lines = self._edges = self._in_service = 0
        self._mask = 0xFFFF
        self._vectors = [0, 0]  # of the first line of each chip
        self._words: list[list[int]] = [[], []]  # initialization words that each chip still waits for
        for chip, port in enumerate((0x20, 0xA0)):
            ports.add(Region(port, 2, partial(self._read, chip), partial(self._write, chip)))

    def set_line(self, line: int, level: int) -> None:
        self._edges |= (level << line) & ~self._lines
        self._lines = self._lines & ~(1 << line) | level << line

    def take(self) -> int | None:
        """The CPU takes the interrupt that waits for it: its vector, or None if none does."""
        requests = (self._edges & ~PCI_LINES | self._lines & PCI_LINES) & ~self._mask & (0xFF if self._mask & 4 else 0xFFFF)
        line = next((line for line in PRIORITY if requests >> line & 1), None)
        if line is None or self._in_service:
            return None
        self._edges &= ~(1 << line)
        self._in_service = 1 << line | (line > 7) << 2
        return int(self._vectors[line >> 3] + (line & 7))

    def _read(self, chip: int, offset: int, size: int) -> int:
        return (self._mask if offset else self._edges) >> 8 * chip & 0xFF

    def _write(self, chip: int, offset: int, size: int, value: int) -> None:
        own = 0xFF << 8 * chip
        if offset == 0 and value & 0x10:  # ICW1; ICW4 comes if bit 0 says so
            self._words[chip] = [2, 3, 4][: 2 + (value & 1)]
            self._edges, self._in_service, self._mask = self._edges & ~own, self._in_service & ~own, self._mask & ~own
        elif offset == 0 and value & 0x28 == 0x20:  # OCW2, end of interrupt; the only one there is, named or not
            self._in_service &= ~own
        elif offset == 1 and self._words[chip]:
            if self._words[chip].pop(0) == 2:
                self._vectors[chip] = value & 0xF8
        elif offset == 1:  # OCW1
            self._mask = self._mask & ~own | value << 8 * chip


class Timer:
    """The 8254, and the bits of port 0x61 that show its channel 2; computed from the wall clock when somebody looks."""

    def __init__(self, ports: Space, controller: InterruptController) -> None:
        self._controller = controller
        self._counts = [0x10000] * 3
        self._started = [time.monotonic()] * 3
        self._low: int | None = None  # first half of a count being written
        self._tick = 0.0, 0.0  # when channel 0 was started, and the round that `advance` saw last
        ports.add(Region(0x40, 4, write=self._write))
        ports.add(Region(0x61, 1, self._read_61))

    def advance(self) -> float:
        """Raise line 0 if channel 0 came round since the last call, however often. Seconds until it does again."""
        started, period = self._started[0], self._counts[0] / PIT_HZ
        rounds, gone = divmod(time.monotonic() - started, period)
        if rounds and self._tick != (started, rounds):
            self._controller.set_line(0, 1)
            self._controller.set_line(0, 0)
        self._tick = started, rounds
        return period - gone

    def _write(self, channel: int, size: int, value: int) -> None:
        if channel == 3:  # the control word, before a count
            self._low = None
        elif self._low is None:
            self._low = value
        else:
            self._counts[channel] = value << 8 | self._low or 0x10000
            self._started[channel] = time.monotonic()
            self._low = None

    def _read_61(self, offset: int, size: int) -> int:
        expired = (time.monotonic() - self._started[2]) * PIT_HZ >= self._counts[2]
        return expired << 5 | (time.monotonic_ns() // 15_000 & 1) << 4  # bit 4: memory refresh
