"""Loop.watch(): Python callables for file descriptors, in each way to run a network."""

import asyncio
import contextlib
import gc
import logging
import os
import select
import socket
import threading
import weakref

import pytest

from qnet._loop import Loop, VirtualClock
from qnet.errors import HostError

IN, OUT, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP


@pytest.fixture
def pipe():
    """pipe() -> (read end, write end), closed at the end."""
    fds = []

    def pipe():
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fds.extend(ends)
        return ends

    yield pipe
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_the_callable_is_told_what_the_fd_is_ready_for(net, pipe):
    r, w = pipe()
    seen = []
    net.watch(r, IN, seen.append)
    assert net.pump() == 0
    os.write(w, b"x")
    assert net.pump() == 1
    assert seen == [IN]
    os.close(w)
    net.pump()
    assert seen == [IN, IN | HUP]


def test_it_is_level_triggered(net, pipe):
    r, w = pipe()
    seen = []
    handle = net.watch(r, IN, seen.append)
    os.write(w, b"x")
    for i in range(3):
        net.pump()
        assert seen == [IN] * (i + 1)
    os.read(r, 1)
    assert net.pump() == 0
    handle.cancel()


def test_a_hang_up_nobody_asked_for_does_not_spin_while_the_callable_runs(net, pipe):
    """Who pumps meanwhile finds nothing to do."""
    r, w = pipe()
    os.close(w)
    inner = []
    net.watch(r, 0, lambda ready: inner.append((ready, net.pump(), net.pump())))
    net.pump()
    assert inner == [(HUP, 0, 0)]


def test_writable(net):
    a, b = socket.socketpair()
    seen = []
    handle = net.watch(a.fileno(), OUT, seen.append)
    net.pump()
    assert seen == [OUT]
    handle.cancel()
    a.close()
    b.close()


def test_cancelled_it_is_not_called_and_the_fd_can_be_watched_again(net, pipe):
    r, w = pipe()
    os.write(w, b"x")
    first, second = [], []
    handle = net.watch(r, IN, first.append)
    with pytest.raises(HostError, match="cannot watch a file descriptor: File exists"):
        net.watch(r, IN, second.append)
    handle.cancel()
    handle.cancel()
    net.watch(r, IN, second.append)
    net.pump()
    assert (first, second) == ([], [IN])


def test_cancelled_between_the_event_and_the_call(net, pipe):
    """Two fds ready in one wake-up; each callable cancels the other: only one is called."""
    (r1, w1), (r2, w2) = pipe(), pipe()
    called = []
    handles = {}
    handles[1] = net.watch(r1, IN, lambda _: (called.append(1), handles[2].cancel()))
    handles[2] = net.watch(r2, IN, lambda _: (called.append(2), handles[1].cancel()))
    os.write(w1, b"x")
    os.write(w2, b"x")
    net.pump()
    net.pump()
    assert called in ([1, 1], [2, 2])


def test_a_callable_may_cancel_itself_close_the_fd_and_watch_another(net, pipe):
    (r1, w1), (r2, w2) = pipe(), pipe()
    seen = []

    def once(ready):
        seen.append("first")
        handle.cancel()
        os.close(r1)
        net.watch(r2, IN, lambda _: seen.append("second"))

    handle = net.watch(r1, IN, once)
    os.write(w1, b"x")
    os.write(w2, b"x")
    net.pump()
    net.pump()
    assert seen == ["first", "second"]


def test_closed_behind_our_back_it_ends(net, pipe):
    r, w = pipe()
    seen = []
    net.watch(r, IN, lambda _: (seen.append(1), os.close(r)))
    os.write(w, b"x")
    net.pump()
    assert net.pump() == 0
    assert seen == [1]


def test_a_callable_that_raises_is_logged_and_ends(net, pipe, caplog):
    r, w = pipe()
    os.write(w, b"x")
    with caplog.at_level(logging.ERROR, "qnet.loop"):
        net.watch(r, IN, lambda _: 1 // 0)
        net.pump()
    assert "watch callable failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert net.pump() == 0


@pytest.mark.parametrize("fd", [-1, 9999])
def test_an_fd_that_is_not_open(net, fd):
    with pytest.raises(HostError, match="cannot watch a file descriptor"):
        net.watch(fd, IN, print)


def test_a_file_cannot_be_waited_for(net):
    with open(__file__) as f, pytest.raises(HostError, match="Operation not permitted"):
        net.watch(f.fileno(), IN, print)


def test_in_its_own_thread(net, pipe):
    r, w = pipe()
    done, seen = threading.Event(), []

    def ready(_):
        seen.append(os.read(r, 10))
        if len(seen) == 3:
            done.set()

    net.start()
    net.watch(r, IN, ready)
    for i in range(3):
        os.write(w, b"%d" % i)
    while not done.wait(0.01) and b"".join(seen) != b"012":
        pass
    net.stop()
    assert b"".join(seen) == b"012"


def test_two_threads_never_run_it_at_once(net, pipe):
    r, w = pipe()
    os.write(w, b"x" * 1000)
    running, overlaps, left = threading.Lock(), [], threading.Event()

    def ready(_):
        if not running.acquire(blocking=False):
            overlaps.append(1)
            return
        try:
            os.read(r, 1)
        except BlockingIOError:
            left.set()
        running.release()

    net.watch(r, IN, ready)
    net.start()
    while not left.is_set() and select.select([r], [], [], 0)[0]:
        net.pump()
    net.stop()
    assert not overlaps


def test_in_an_asyncio_loop(net, pipe):
    r, w = pipe()

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_reader(net.fileno(), net.pump)
        done = loop.create_future()
        net.watch(r, IN, lambda _: done.done() or done.set_result(os.read(r, 10)))
        os.write(w, b"abc")
        got = await asyncio.wait_for(done, 10)
        loop.remove_reader(net.fileno())
        return got

    assert asyncio.run(main()) == b"abc"


def test_with_a_virtual_clock(pipe):
    net = Loop(clock=VirtualClock())
    r, w = pipe()
    seen = []
    net.watch(r, IN, lambda _: seen.append((net.now(), os.read(r, 10))))
    net.call_later(5, lambda: os.write(w, b"x"))
    net.run_until(4)
    assert seen == []
    net.run_until(10)
    assert seen == [(5, b"x")]
    net.close()


def test_closing_the_network_ends_it(pipe):
    net = Loop()
    r, w = pipe()
    handle = net.watch(r, IN, lambda _: pytest.fail("too late"))
    os.write(w, b"x")
    net.close()
    handle.cancel()
    with pytest.raises(ValueError, match="closed"):
        net.watch(r, IN, print)


def test_a_network_that_is_closed_and_forgotten_leaves_nothing(pipe):
    r, _ = pipe()
    net = Loop()
    net.watch(r, IN, lambda _: None)
    net.close()
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
