"""The floor under both: the memory work of a case alone, in C, in the same run on pages of the same kind."""

import ctypes
import mmap
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from peer_driver import RAM_SIZE, Shape, rx_buffers, rx_ring, tx_ring

SOURCE = Path(__file__).with_name("floor.c")


def build() -> ctypes.CDLL | None:
    """floor.c, compiled; None without a C compiler."""
    with tempfile.TemporaryDirectory(prefix="qnet-floor-") as tmp:
        out = f"{tmp}/floor.so"
        try:
            cc = shlex.split(os.environ.get("CC", "cc"))
            subprocess.run([*cc, "-O3", "-shared", "-fPIC", "-o", out, str(SOURCE)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return ctypes.CDLL(out)


class FloorJob:
    """As a Job: kick() does the memory work of one kick, idle() none."""

    def __init__(self, library: ctypes.CDLL, shape: Shape, receivers: int) -> None:
        fd = os.memfd_create("peer-ram", 0)
        os.ftruncate(fd, RAM_SIZE)
        self.mem = mmap.mmap(fd, RAM_SIZE, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        os.close(fd)
        self.packets = shape.packets
        self.receivers = receivers
        self.buffer = (ctypes.c_char * RAM_SIZE).from_buffer(self.mem)
        words = [shape.base, shape.slot, shape.slots, shape.buffers, shape.length, shape.piece, shape.descriptors, shape.summed]
        self.shape = (ctypes.c_uint64 * len(words))(*words)
        self.nothing = (ctypes.c_uint64 * len(words))(*words[:3], 0, *words[4:])
        self.call = library.kick
        self.call.restype = ctypes.c_uint64
        self.call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_uint64] * 5]

    def _run(self, shape: ctypes.Array[ctypes.c_uint64]) -> int:
        where = (tx_ring(0), self.receivers, rx_ring(1), rx_buffers(1), rx_buffers(2) - rx_buffers(1))
        memory, call, clock = ctypes.addressof(self.buffer), self.call, time.thread_time_ns
        start = clock()
        call(memory, shape, *where)
        return clock() - start

    def kick(self) -> int:
        return self._run(self.shape)

    def idle(self) -> int:
        return self._run(self.nothing)

    def finish(self) -> None:
        del self.buffer
        self.mem.close()
