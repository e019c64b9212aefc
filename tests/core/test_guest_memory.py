"""Guest memory as devices see it: regions, bounds at the access, dirty pages, callables."""

import contextlib
import ctypes
import gc
import logging
import mmap
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet._client import live
from qnet._host import GuestMemory
from qnet._loop import Loop
from qnet.testing import DeviceProbe, Port

PAGE = 4096


def test_one_buffer_starts_at_address_zero():
    data = bytearray(range(256))
    memory = GuestMemory(data)
    assert memory.regions == [(0, 256)]
    assert memory.read(10, 5) == bytes(range(10, 15))
    memory.write(100, b"abc")
    assert data[100:103] == b"abc"
    memory.close()


@pytest.mark.parametrize("kind", ["bytearray", "mmap", "memfd", "memoryview", "array", "address"])
def test_any_writable_memory_will_do(kind):
    keep = None
    if kind == "bytearray":
        buffer = bytearray(8192)
    elif kind == "mmap":
        buffer = mmap.mmap(-1, 8192)
    elif kind == "memfd":
        fd = os.memfd_create("guest")
        os.ftruncate(fd, 8192)
        buffer = mmap.mmap(fd, 8192)
        os.close(fd)
    elif kind == "memoryview":
        buffer = memoryview(bytearray(10000))[500:8692]
    elif kind == "array":
        buffer = (ctypes.c_uint32 * 2048)()
    else:
        keep = ctypes.create_string_buffer(8192)
        buffer = keep
    memory = GuestMemory([(0x1000, ctypes.addressof(keep), 8192)] if keep else [(0x1000, buffer)])
    assert memory.regions == [(0x1000, 8192)]
    memory.write(0x1FFE, b"wxyz")
    assert bytes(memoryview(buffer).cast("B")[0xFFE:0x1002]) == b"wxyz"
    assert memory.read(0x1FFD, 6) == b"\0wxyz\0"
    memory.close()
    if isinstance(buffer, mmap.mmap):
        buffer.close()


def test_a_buffer_stays_exported_until_close():
    data = bytearray(100)
    memory = GuestMemory(data)
    with pytest.raises(BufferError):
        data.append(1)
    memory.close()
    data.append(1)
    assert memory.regions == []
    with pytest.raises(IndexError):
        memory.read(0, 1)
    memory.close()


@pytest.mark.parametrize("regions", [
    [(0, bytearray(10)), (9, bytearray(10))], [(9, bytearray(10)), (0, bytearray(10))], [(5, bytearray(1)), (0, bytearray(10))],
    [(0, bytearray(10)), (0, bytearray(10))], [(2**64 - 5, bytearray(6))], [(0, bytearray())], [(0, 0, 10)], [(0, b"readonly")],
])  # fmt: skip
def test_regions_that_overlap_or_do_not_fit_are_refused(regions):
    with pytest.raises(ValueError):
        GuestMemory(regions)


def test_what_is_no_memory_is_refused():
    with pytest.raises(ValueError, match="needs a buffer"):
        GuestMemory()
    with pytest.raises(ValueError, match="go together"):
        GuestMemory(read=lambda gpa, n: b"")
    with pytest.raises(ValueError, match="contiguous"):
        GuestMemory(memoryview(bytearray(100))[::2])
    with pytest.raises(TypeError):
        GuestMemory(5)


def test_regions_are_sorted_and_may_touch():
    parts = {0x3000: bytearray(b"c" * 16), 0x1000: bytearray(b"a" * 0x1000), 0x2000: bytearray(b"b" * 0x1000)}
    memory = GuestMemory(list(parts.items()))
    assert memory.regions == [(0x1000, 0x1000), (0x2000, 0x1000), (0x3000, 16)]
    assert memory.read(0x1FFE, 4) == b"aabb"
    memory.write(0x1FFF, b"x" * 0x1002)
    assert (parts[0x1000][-1:], parts[0x2000], parts[0x3000]) == (b"x", b"x" * 0x1000, b"x" + b"c" * 15)
    memory.close()


def test_the_top_of_the_address_space_does_not_wrap_around(net):
    top = bytearray(16)
    memory = GuestMemory([(0, bytearray(64)), (2**64 - 16, top)])
    probe = DeviceProbe(net, memory)
    assert probe.dma_write(2**64 - 4, b"1234")
    assert top[12:] == b"1234"
    for n in (5, 20, 64):
        assert not probe.dma_write(2**64 - 4, b"x" * n)
        assert probe.dma_read(2**64 - 4, n) is None
        assert not probe.can_map(2**64 - 4, n)
    assert memory.read(0, 64) == bytes(64)
    assert not probe.can_map(2**64 - 4, 2**64 - 1)
    assert not probe.can_map(0, 2**64 - 1)
    memory.close()


def test_readonly_regions_are_read_and_not_written(net):
    memory = GuestMemory([(0, bytearray(100))])
    memory.add(100, b"r" * 50, readonly=True)
    probe = DeviceProbe(net, memory)
    assert memory.read(98, 4) == b"\0\0rr"
    assert not probe.can_map(120, 1, write=True)
    assert probe.can_map(120, 1)
    with pytest.raises(IndexError):
        memory.write(100, b"x")
    assert not probe.dma_write(98, b"wwww")                                     # a part may be written: the device counts a fault
    assert memory.read(100, 4) == b"rrrr"
    memory.close()


def test_a_range_can_be_used_in_place_only_within_one_region(net):
    memory = GuestMemory([(0x1000, bytearray(0x1000)), (0x2000, bytearray(0x1000))])
    probe = DeviceProbe(net, memory)
    assert probe.can_map(0x1000, 0x1000, write=True)
    assert not probe.can_map(0x1001, 0x1000)
    assert not probe.can_map(0xFFF, 1)
    assert probe.dma_read(0x1FFF, 2) == b"\0\0"
    assert probe.dma_read(0x2FFF, 2) is None
    memory.close()


accesses = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 300), st.booleans()), max_size=30)


@given(spans=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 200)), max_size=6), accesses=accesses)
def test_memory_behaves_as_a_sparse_array(spans, accesses):
    """Whatever the regions: an access succeeds exactly where every byte is memory, and bytes beside it stay."""
    memory = GuestMemory([(10_000, bytearray(1))])
    model = {10_000: 0}
    for gpa, size in spans:
        if not any(gpa <= at < gpa + size for at in model):
            memory.add(gpa, bytearray(size))
            model |= dict.fromkeys(range(gpa, gpa + size), 0)
    for i, (gpa, n, write) in enumerate(accesses):
        there = all(at in model for at in range(gpa, gpa + n))
        if write and there:
            memory.write(gpa, bytes([i + 1]) * n)
            model |= dict.fromkeys(range(gpa, gpa + n), i + 1)
        elif there:
            assert memory.read(gpa, n) == bytes(model[at] for at in range(gpa, gpa + n))
        else:
            with pytest.raises(IndexError):
                memory.read(gpa, n)
    for gpa, size in memory.regions:
        assert memory.read(gpa, size) == bytes(model[at] for at in range(gpa, gpa + size))
    memory.close()


# ----------------------------------------------------------------------------------------------------------- dirty pages


def test_dirty_pages_are_those_that_devices_wrote(net):
    memory = GuestMemory([(0, bytearray(40 * PAGE)), (0x100_0000, bytearray(3 * PAGE + 5))])
    probe = DeviceProbe(net, memory)
    probe.dma_write(0, b"before")
    assert memory.dirty_pages() == []
    memory.track_dirty()
    assert memory.dirty_pages() == []
    probe.dma_read(0, 40 * PAGE)
    probe.dma_write(PAGE - 1, b"ab")
    probe.dma_write(9 * PAGE, b"")
    probe.dma_write(17 * PAGE, bytes(PAGE))
    probe.dma_write(0x100_0000 + 3 * PAGE + 4, b"z")
    assert probe.can_map(39 * PAGE, 10, write=True)
    expected = [0, PAGE, 17 * PAGE, 39 * PAGE, 0x100_0000 + 3 * PAGE]
    assert memory.dirty_pages(clear=False) == expected
    assert memory.dirty_pages() == expected
    assert memory.dirty_pages() == []
    memory.track_dirty(False)
    probe.dma_write(0, b"after")
    assert memory.dirty_pages() == []
    memory.close()


def test_no_dirty_page_is_lost_between_a_device_and_a_reader(net):
    """Pages are read and cleared while a device writes: each write shows up in some answer."""
    memory = GuestMemory(bytearray(8 * PAGE))
    memory.track_dirty()
    probe = DeviceProbe(net, memory)
    rounds, seen = 48, [0] * 8
    done = threading.Event()

    def device():
        for i in range(rounds):
            probe.dma_write((i % 8) * PAGE, b"x")
            while memory.dirty_pages(clear=False).count((i % 8) * PAGE):        # until the reader took it
                if done.wait(0):
                    return

    thread = threading.Thread(target=device)
    thread.start()
    while thread.is_alive() and sum(seen) < rounds:
        for page in memory.dirty_pages():
            seen[page // PAGE] += 1
    done.set()
    thread.join()
    assert seen == [rounds // 8] * 8
    memory.close()


@pytest.fixture
def slow_write(net):
    """slow_write(memory): context of a device that has mapped page 1 and writes to it at the end of the block, in a thread of its own."""

    @contextlib.contextmanager
    def slow_write(memory):
        probe = DeviceProbe(net, memory)
        (began, begun), (wait, go) = os.pipe(), os.pipe()
        writer = threading.Thread(target=probe.dma_write_slowly, args=(PAGE, b"new", begun, wait))
        writer.start()
        os.read(began, 1)
        try:
            yield
        finally:
            os.write(go, b"x")
            writer.join()
            for fd in (began, begun, wait, go):
                os.close(fd)

    return slow_write


def test_what_is_told_dirty_has_been_written(slow_write):
    """A migration clears the bits, then copies the pages: a write that comes after both would be lost."""
    ram = bytearray(2 * PAGE)
    memory = GuestMemory(ram)
    memory.track_dirty()
    copies = []

    def migrate():
        for page in memory.dirty_pages():
            copies.append((page, bytes(ram[page : page + 3])))

    migration = threading.Thread(target=migrate)
    with slow_write(memory):
        migration.start()
        migration.join(0.2)                                 # it cannot end; if it could, it would
    migration.join()
    assert copies == [(PAGE, b"new")]
    memory.close()


@pytest.mark.parametrize("end", ["start", "stop", "close"])
def test_tracking_starts_and_ends_while_a_device_writes(slow_write, end):
    """Once track_dirty() has returned, what was not tracked is written."""
    ram = bytearray(2 * PAGE)
    memory = GuestMemory(ram)
    seen = []
    if end != "start":
        memory.track_dirty()

    def control():
        memory.close() if end == "close" else memory.track_dirty(end == "start")
        seen.append(bytes(ram[PAGE : PAGE + 3]))

    thread = threading.Thread(target=control)
    with slow_write(memory):
        thread.start()
        thread.join(0.2)
    thread.join()
    assert seen == [b"new"]
    assert memory.dirty_pages() == []
    memory.close()


def test_memory_of_two_networks_and_of_one_that_is_gone(net):
    memory = GuestMemory(bytearray(8 * PAGE))
    memory.track_dirty()
    other, gone = Loop(), Loop()
    probes = [DeviceProbe(net, memory), DeviceProbe(other, memory)]
    DeviceProbe(gone, memory)
    gone.close()
    del gone
    writers = [
        threading.Thread(target=lambda probe=probe, page=page: [probe.dma_write(page * PAGE, b"x") for _ in range(2000)])
        for page, probe in enumerate(probes)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert memory.dirty_pages() == [0, PAGE]
    memory.close()
    del probes
    other.close()


# ------------------------------------------------------------------------------------------------------------- callables


class Backing:
    """Guest memory behind callables."""

    def __init__(self, size):
        self.data = bytearray(size)
        self.calls = []

    def read(self, gpa, n):
        self.calls.append(("read", gpa, n))
        if gpa + n > len(self.data):
            raise ValueError("outside")
        return bytes(self.data[gpa:gpa + n])

    def write(self, gpa, data):
        self.calls.append(("write", gpa, len(data)))
        if gpa + len(data) > len(self.data):
            raise ValueError("outside")
        self.data[gpa:gpa + len(data)] = data


def test_callables_serve_what_no_region_does(net):
    backing, ram = Backing(1000), bytearray(b"r" * 100)
    memory = GuestMemory([(200, ram)], read=backing.read, write=backing.write)
    probe = DeviceProbe(net, memory)
    backing.data[150:350] = b"c" * 200
    assert probe.dma_read(190, 120) == b"c" * 10 + b"r" * 100 + b"c" * 10
    assert backing.calls == [("read", 190, 10), ("read", 300, 10)]
    assert probe.dma_write(199, b"x" * 102)
    assert (backing.data[199], ram, backing.data[300]) == (ord("x"), b"x" * 100, ord("x"))
    assert not probe.can_map(0, 1)
    memory.close()


@pytest.mark.parametrize("bad", [lambda gpa, n: b"short", lambda gpa, n: bytes(n + 1), lambda gpa, n: None, lambda gpa, n: 1 // 0])
def test_a_callable_that_fails_is_a_failed_access_and_logged(net, caplog, bad):
    memory = GuestMemory(read=bad, write=lambda gpa, data: 1 // 0)
    probe = DeviceProbe(net, memory)
    with caplog.at_level(logging.ERROR, "qnet.host"):
        assert probe.dma_read(0, 16) is None
        assert not probe.dma_write(0, b"x" * 16)
    assert caplog.text.count("guest memory callable failed") == 2
    memory.close()


def test_a_garbage_collection_within_a_callable_does_not_deadlock(net, make):
    """Clients found dead there would want the lock, which is held."""
    backing = Backing(4096)

    def read(gpa, n):
        _ = [[] for _ in range(5000)]                                           # enough to start a collection
        return backing.read(gpa, n)

    memory = GuestMemory(read=read, write=backing.write)
    probe = DeviceProbe(net, memory)
    before, thresholds = live(), gc.get_threshold()
    cycle = [Port(net)]
    cycle.append(cycle)
    gc.set_threshold(100, 1, 1)
    try:
        gc.disable()
        del cycle
        gc.enable()
        thread = threading.Thread(target=probe.dma_read, args=(0, 16))
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
        assert gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert live() == before
    memory.close()


def test_callables_under_contention_do_not_deadlock(net, make):
    """They need the GIL while the network's lock is held: nobody may wait for that lock with the GIL in hand."""
    backing = Backing(4096)
    memory = GuestMemory(read=backing.read, write=backing.write)
    probe = DeviceProbe(net, memory)
    a, b = make(Port), make(Port)
    a.pair(b)
    net.start()

    def device(i):
        for k in range(150):
            assert probe.dma_write(i * 256, bytes([k]) * 256)
            assert probe.dma_read(i * 256, 256) == bytes([k]) * 256

    def traffic():
        for k in range(300):
            a.send([b"x" * 60])
            a.stats()
            b.set_link(k % 2 == 0)
            net.call_later(0, lambda: None)
            Port(net).close()

    def collector():
        for _ in range(300):
            Port(net)                                                           # goes without close: in its dealloc
            b.recv()

    threads = [threading.Thread(target=device, args=(i,)) for i in range(2)]
    threads += [threading.Thread(target=traffic), threading.Thread(target=collector)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "deadlock"
    net.stop()
    memory.close()
