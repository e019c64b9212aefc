"""qnet as the system under test: the same devices and the same wires in this process."""

import mmap
import os
from collections.abc import Callable

from peer_driver import MACS, RAM_SIZE

from qnet._fastpath import NullClient
from qnet._host import GuestMemory, IrqLine
from qnet._loop import Loop, VirtualClock
from qnet.backends._hub import Hub, HubPort
from qnet.models.e1000 import E1000, Options


class Qnet:
    """`nics` e1000s on a hub and, with `sink`, one more port. Behind that port is a client that takes plain frames only, so that
    frames are delivered and checksums and segments computed, where QEMU hands them to a port without a peer."""

    label = "qnet"

    def __init__(self, nics: int, sink: bool) -> None:
        # a memfd as for QEMU, so that both work on pages of the same kind
        fd = os.memfd_create("peer-ram", 0)
        os.ftruncate(fd, RAM_SIZE)
        self.mem = mmap.mmap(fd, RAM_SIZE, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        os.close(fd)
        self.loop = Loop(VirtualClock())
        self.memory = GuestMemory(self.mem)
        self.hub = Hub(self.loop, 0)
        self.nics: list[E1000] = []
        self.sink: NullClient | None = None
        for i in range(nics):
            nic = E1000(self.loop, f"nic{i}", "e1000", Options(), MACS[i], self.memory, IrqLine())
            nic.pair(HubPort(self.loop, self.hub, f"n{i}"))
            nic.cfg_write(0x04, 2, 0x7)
            self.nics.append(nic)
        if sink:
            self.sink = NullClient(self.loop, "sink", offloads=False)
            self.sink.pair(HubPort(self.loop, self.hub, "idle"))

    def close(self) -> None:
        for client in (*self.nics, *self.hub.ports, self.sink):
            if client is not None:
                client.close()
        self.memory.close()
        self.loop.close()
        self.mem.close()

    def read(self, nic: int, register: int) -> int:
        value: int = self.nics[nic].bar_read(0, register, 4)
        return value

    def writer(self, nic: int) -> Callable[[int, int], object]:
        bar_write = self.nics[nic].bar_write
        return lambda register, value: bar_write(0, register, 4, value)

    def settle(self) -> None:
        """Reception begins with the write to RCTL."""

    def delivered(self) -> tuple[int, int] | None:
        if self.sink is None:
            return None
        stats = self.sink.stats()
        assert isinstance(stats["rx_packets"], int)
        assert isinstance(stats["rx_bytes"], int)
        return stats["rx_packets"], stats["rx_bytes"]
