"""qnet as the system under test: the same devices and the same wires, in this process."""

import mmap
import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

from peer_driver import MACS, RAM_SIZE, CheckError

from qnet import Net, NetClient, VirtualClock


class Qnet:
    """`nics` e1000s on hub 0 and, with `sink`, one more port. Behind that port is a client that takes plain frames only, so that
    frames are delivered and checksums and segments computed, where QEMU hands them to a port without a peer."""

    label: ClassVar[str] = "qnet"

    def __init__(self, nics: int, sink: bool, netdev: str = "") -> None:
        # a memfd as for QEMU, so that both work on pages of the same kind
        fd = os.memfd_create("peer-ram", 0)
        os.ftruncate(fd, RAM_SIZE)
        self.mem = mmap.mmap(fd, RAM_SIZE, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        os.close(fd)
        self.net = Net(clock=VirtualClock(), memory=self.mem)
        self.nics: list[Any] = []
        self.sink: NetClient | None = None
        for i in range(nics):
            self.net.netdev_add(netdev or f"hubport,id=n{i},hubid=0")
            nic: Any = self.net.device_add(f"e1000,netdev=n{i},mac={MACS[i].hex(':')}")
            nic.cfg_write(0x04, 2, 0x7)
            self.nics.append(nic)
        if sink:
            self.sink = self.net.netdev_add("null,id=sink,offloads=off")
            self.net.netdev_add("hubport,id=idle,hubid=0,netdev=sink")

    def close(self) -> None:
        self.net.close()
        self.nics.clear()
        self.mem.close()

    def read(self, nic: int, register: int) -> int:
        value: int = self.nics[nic].bar_read(0, register, 4)
        return value

    def writer(self, nic: int) -> Callable[[int, int], object]:
        bar_write = self.nics[nic].bar_write
        return lambda register, value: bar_write(0, register, 4, value)

    def clock(self) -> int:
        """Of this thread, which does all the work."""
        return time.thread_time_ns()

    def settle(self) -> None:
        """Reception begins with the write to RCTL."""

    def turn(self) -> None:
        while self.net.pump():
            pass

    def hold(self) -> None:
        """It does nothing but in run()."""

    def run(self, done: Callable[[], object]) -> int:
        """Work until `done`; ns of CPU time."""
        pump, clock = self.net.pump, time.thread_time_ns
        end = time.monotonic() + 30
        start = clock()
        while not done():
            pump()
            if time.monotonic() > end:
                raise CheckError("frames got lost")
        return clock() - start

    def delivered(self) -> tuple[int, int] | None:
        if self.sink is None:
            return None
        stats = self.sink.stats()
        assert isinstance(stats["rx_packets"], int)
        assert isinstance(stats["rx_bytes"], int)
        return stats["rx_packets"], stats["rx_bytes"]
