"""Captures in trouble: killed processes, full disks, FIFOs without a reader. The file stays readable and the traffic goes on."""

import errno
import logging
import os
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qnet import HostError, Net, VirtualClock
from qnet._loop import Loop
from qnet.backends._dump import DumpClient
from qnet.filters._filters import DumpFilter
from qnet.testing import Port

REPORT = "network dump write error - stopping dump"


def frame(n: int, size: int = 60) -> bytes:
    return (b"\x52\x54\x00\x12\x34\x57" b"\x52\x54\x00\x12\x34\x56" b"\x88\xb5" + struct.pack("!I", n)).ljust(size, b"\xa5")[:size]


def numbers(path: Path) -> tuple[list[int], str]:
    """The numbers of the frames that tshark reads, and its complaints."""
    run = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", "-e", "eth.dst", "-e", "data.data"], capture_output=True, text=True
    )
    complaints = [line for line in run.stderr.splitlines() if not line.startswith("Running as user")]
    return [int(line.split("\t")[1][:8], 16) for line in run.stdout.splitlines()], "\n".join(complaints)


class World:
    def __init__(self) -> None:
        self.loop = Loop(clock=VirtualClock())
        self.n0, self.nic = Port(self.loop, "n0"), Port(self.loop, "nic0")
        self.n0.pair(self.nic)
        self.dumps: list[DumpFilter] = []

    def dump(self, path: Path, **options: Any) -> DumpFilter:
        f = DumpFilter(self.n0, path, **options)
        f.insert()
        self.dumps.append(f)
        return f

    def close(self) -> None:
        for f in self.dumps:
            f.close()
        self.n0.close()
        self.nic.close()
        self.loop.close()
        vars(self).clear()


@pytest.fixture
def world() -> Iterator[World]:
    w = World()
    yield w
    w.close()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk is full after `size` bytes, for any user: the write that crosses the limit is short, the next one fails."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def run(script: str, *args: object) -> subprocess.Popen[str]:
    code = textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ------------------------------------------------------------------------------------------------------ killed processes


@pytest.mark.tshark
@pytest.mark.parametrize("name", ["a.pcap", "a.pcapng"])
def test_a_killed_process_leaves_a_readable_file(tmp_path: Path, name: str) -> None:
    """It is killed while it writes one burst after another; nothing is flushed, nothing is closed."""
    path = tmp_path / name
    child = run(
        """
        import struct, sys
        from qnet._loop import Loop
        from qnet.filters._filters import DumpFilter
        from qnet.testing import Port

        loop = Loop()
        n0, nic = Port(loop, "n0"), Port(loop, "nic0")
        n0.pair(nic)
        f = DumpFilter(n0, sys.argv[1])
        f.insert()
        print("go", flush=True)
        n = 0
        while True:
            head = bytes(12) + bytes([0x88, 0xb5])
            n0.send([head + struct.pack("!I", n + i) + bytes(i * 23) for i in range(64)])
            nic.recv()
            n += 64
        """,
        path,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < 1 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    seen, complaints = numbers(path)
    assert len(seen) >= 1000
    assert seen == list(range(len(seen)))
    assert complaints == "" or "cut short" in complaints     # the kernel may stop in the middle of the last write


def test_what_was_sent_is_in_the_file_at_once(world: World, tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    world.dump(path)
    for i in range(3):
        world.n0.send([frame(i)])
        assert path.read_bytes().endswith(frame(i))


# ------------------------------------------------------------------------------------------------------------ full disks


@pytest.mark.tshark
@pytest.mark.parametrize("name", ["a.pcap", "a.pcapng"])
@pytest.mark.parametrize("size", [150, 20_000, 50_001, 50_002, 50_003])
def test_a_full_disk_ends_the_file_after_a_whole_frame(
    world: World, tmp_path: Path, name: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As QEMU: told once, stopped, counted. Room that comes back changes nothing; the frames themselves all arrive."""
    path = tmp_path / name
    f = world.dump(path)
    with largest_file(size), caplog.at_level(logging.ERROR):
        for k in range(10):
            world.n0.send([frame(64 * k + i, 500) for i in range(64)])
    world.n0.send([frame(640)])
    assert len(world.nic.recv()) == 641
    assert [r.message for r in caplog.records] == [f"{REPORT}: {path}: File too large"]
    assert f.error == os.strerror(errno.EFBIG)
    seen, complaints = numbers(path)
    assert complaints == ""
    assert seen == list(range(f.frames))
    assert f.frames + f.missed == 641
    assert size - 600 < path.stat().st_size <= size
    assert f.size == path.stat().st_size


@pytest.mark.root
@pytest.mark.tshark
def test_a_full_tmpfs(tmp_path: Path) -> None:
    """A real ENOSPC, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.fail("needs unshare")
    (tmp_path / "small").mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import logging, struct, sys
        from qnet._loop import Loop
        from qnet.filters._filters import DumpFilter
        from qnet.testing import Port

        logging.basicConfig(format="%(message)s")
        loop = Loop()
        n0, nic = Port(loop, "n0"), Port(loop, "nic0")
        n0.pair(nic)
        f = DumpFilter(n0, sys.argv[1])
        f.insert()
        for k in range(20):
            n0.send([bytes(12) + bytes([0x88, 0xb5]) + struct.pack("!I", 64 * k + i) + bytes(400) for i in range(64)])
        print(f.frames, f.missed, f.error, len(nic.recv()))
        """)
    )
    small = tmp_path / "small"
    shell = 'mount -t tmpfs -o size=128k none "$1" && "$2" "$3" "$1/a.pcapng" && cp "$1/a.pcapng" "$4"'
    args = ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", small, sys.executable, script, tmp_path / "a.pcapng"]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    frames, missed, *error, arrived = done.stdout.split()
    assert (" ".join(error), arrived) == ("No space left on device", "1280")
    assert done.stderr.count(REPORT) == 1
    seen, complaints = numbers(tmp_path / "a.pcapng")
    assert complaints == ""
    assert seen == list(range(int(frames)))
    assert int(frames) > 200
    assert int(frames) + int(missed) == 1280


def test_a_rotation_that_fails_loses_nothing_written(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.pcap.1").mkdir()
    f = world.dump(tmp_path / "a.pcap", rotate_size=300, rotate_count=1)
    for i in range(10):
        world.n0.send([frame(i, 100)])
    assert f.error == os.strerror(errno.EISDIR)
    assert (f.frames, f.missed) == (2, 8)
    assert (tmp_path / "a.pcap").read_bytes().endswith(frame(1, 100))
    assert [r.message for r in caplog.records] == [f"{REPORT}: {tmp_path / 'a.pcap'}: Is a directory"]


def test_the_dump_netdev_stops_as_well(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sender = Port(world.loop, "n1")
    client = DumpClient(world.loop, "d0", tmp_path / "a.pcap")
    sender.pair(client)
    with largest_file(1000):
        for i in range(20):
            sender.send([frame(i, 100)])
    assert client.error == "File too large"
    assert (client.frames, client.missed) == (8, 12)
    assert [r.message for r in caplog.records] == [f"{REPORT}: {client.path}: File too large"]
    client.close()
    sender.close()


# ------------------------------------------------------------------------------------------------------------------ FIFOs


def drain(fd: int) -> bytes:
    parts = []
    while True:
        try:
            parts.append(os.read(fd, 1 << 20))
        except BlockingIOError:
            return b"".join(parts)
        if not parts[-1]:
            return b"".join(parts)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_fifo_without_a_reader_is_refused(fifo: Path) -> None:
    with Net() as net:
        net.netdev_add("null,id=n0")
        with pytest.raises(HostError, match="start its reader first"):
            net.object_add(f"filter-dump,id=f0,netdev=n0,file={fifo}")


def test_a_fifo_does_not_rotate(fifo: Path) -> None:
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with Net() as net:
            net.netdev_add("null,id=n0")
            with pytest.raises(HostError, match="rotate-size= needs a regular file"):
                net.object_add(f"filter-dump,id=f0,netdev=n0,file={fifo},rotate-size=1K")
    finally:
        os.close(fd)


@pytest.mark.tshark
@pytest.mark.parametrize("size", [60, 1500, 5000, 65536])
def test_a_slow_reader_misses_frames_but_sees_no_torn_one(world: World, tmp_path: Path, fifo: Path, size: int) -> None:
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        f = world.dump(fifo, format="pcapng")
        taken = b""
        n = 0
        for burst in (1, 64, 3, 64, 64, 2, 64, 1, 1):
            for _ in range(20):
                world.n0.send([frame(n + i, size) for i in range(burst)])
                n += burst
            taken += drain(fd)
        # The FIFO is empty: the next frames fit, and the rest of a torn one goes before them.
        for _ in range(2):
            world.nic.send([frame(n, 60)])
            n += 1
        f.close()
        taken += drain(fd)
    finally:
        os.close(fd)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert f.missed > 0
    assert f.error is None
    assert f.frames + f.missed == n
    (tmp_path / "a.pcapng").write_bytes(taken)
    seen, complaints = numbers(tmp_path / "a.pcapng")
    assert complaints == ""
    assert len(seen) == f.frames
    assert seen == sorted(set(seen))
    assert seen[-2:] == [n - 2, n - 1]
    assert len(world.nic.recv()) == n - 2


def test_a_reader_that_goes_ends_the_capture_not_the_process(fifo: Path) -> None:
    """Even where SIGPIPE has its default action, and one that somebody else raised stays pending."""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    child = run(
        """
        import logging, signal, sys
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        from qnet._loop import Loop, VirtualClock
        from qnet.filters._filters import DumpFilter
        from qnet.testing import Port

        logging.basicConfig(format="%(message)s")
        loop = Loop(clock=VirtualClock())
        n0, nic = Port(loop, "n0"), Port(loop, "nic0")
        n0.pair(nic)
        f = DumpFilter(n0, sys.argv[1])
        f.insert()
        print("go", flush=True)
        import time
        while f.error is None:
            n0.send([bytes(60)])
            time.sleep(0.001)
        n0.send([bytes(60)])
        assert not signal.sigpending()
        print(len(nic.recv()) == f.frames + f.missed, f.error, flush=True)
        """,
        fifo,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        os.close(fd)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert out == "True Broken pipe\n"
    assert err.count(REPORT) == 1


def test_a_write_error_in_the_networks_own_thread_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The report waits for nobody: it runs when the lock is free."""
    loop = Loop()
    n0, nic = Port(loop, "n0"), Port(loop, "nic0")
    n0.pair(nic)
    f = DumpFilter(n0, tmp_path / "a.pcap")
    f.insert()
    with largest_file(100):
        loop.start()
        loop.call_later(0, lambda: n0.send([frame(1, 200)]))
        deadline = time.monotonic() + 30
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.001)
        loop.stop()
    f.close()
    n0.close()
    nic.close()
    loop.close()
    assert [r.message for r in caplog.records] == [f"{REPORT}: {f.path}: File too large"]
    assert nic.recv() == [frame(1, 200)]
