"""The event loop: watches, pollers, the three ways to run it, and closing it in every state."""

import asyncio
import contextlib
import gc
import logging
import os
import select
import socket
import threading
import time
import weakref

import pytest

from qnet._loop import Loop, VirtualClock
from qnet.errors import HostError
from qnet.testing import FdProbe, PollProbe, Port, Source

IN, OUT, ERR, HUP = 1, 4, 8, 16


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


def wait_for(condition, what="it"):
    """Until `condition()`; a lost wake-up fails here."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail(f"{what} does not come")


# ------------------------------------------------------------------------------------------------------------- watches


def test_a_ready_fd_is_handled_by_pump(net, pipe):
    r, w = pipe()
    probe = FdProbe(net, r)
    assert net.pump() == 0
    os.write(w, b"12345")
    assert net.pump() == 1
    assert (probe.calls, probe.bytes, probe.last) == (1, 5, IN)
    assert net.pump() == 0
    probe.close()


def test_watches_are_level_triggered(net, pipe):
    r, w = pipe()
    probe = FdProbe(net, r, reads=False)
    os.write(w, b"x")
    for i in range(3):
        assert net.pump() == 1
        assert probe.calls == i + 1
    probe.close()
    assert net.pump() == 0


def test_events_can_be_changed_and_with_none_only_errors_come(net, pipe):
    r, w = pipe()
    probe = FdProbe(net, r, reads=False)
    os.write(w, b"x")
    probe.events(0)
    assert net.pump() == 0
    probe.events(IN)
    assert net.pump() == 1
    probe.events(0)
    os.close(w)
    assert net.pump() == 1
    assert probe.last == HUP
    probe.close()


def test_a_writable_fd(net, pipe):
    _, w = pipe()
    probe = FdProbe(net, w, OUT, reads=False)
    assert net.pump() == 1
    assert probe.last == OUT
    probe.close()


def test_an_event_collected_for_an_fd_that_was_removed_meanwhile_is_not_delivered(net, pipe):
    (r1, w1), (r2, w2) = pipe(), pipe()
    first, second = FdProbe(net, r1), FdProbe(net, r2)
    first.kill(second)
    second.kill(first)
    os.write(w1, b"x")
    os.write(w2, b"x")
    assert net.pump() == 1
    assert sorted([first.calls, second.calls]) == [0, 1]
    assert sorted([first.watched, second.watched]) == [False, True]
    first.close()
    second.close()


def test_a_new_file_under_an_old_number_is_not_taken_for_the_old_one(net, pipe):
    r, w = pipe()
    old = FdProbe(net, r)
    old.close()
    kept = os.dup(r)                                                            # the old file lives on under another number
    other, w2 = pipe()
    os.dup2(other, r)
    new = FdProbe(net, r)
    os.write(w, b"x")
    assert net.pump() == 0
    os.write(w2, b"xy")
    assert net.pump() == 1
    assert (old.calls, new.bytes) == (0, 2)
    new.close()
    os.close(kept)


def test_a_high_fd_number(net, pipe):
    r, w = pipe()
    high = 900
    os.dup2(r, high)
    try:
        probe = FdProbe(net, high)
        os.write(w, b"x")
        assert net.pump() == 1
        probe.close()
    finally:
        os.close(high)


def test_what_cannot_be_watched_is_told(net, pipe, tmp_path):
    r, w = pipe()
    probe = FdProbe(net, r)
    with pytest.raises(HostError, match="File exists"):
        FdProbe(net, r)
    with pytest.raises(HostError, match="Invalid argument"):
        FdProbe(net, -1)
    os.close(w)
    with pytest.raises(HostError, match="Bad file descriptor"):
        FdProbe(net, w)
    with open(tmp_path / "regular", "wb") as f, pytest.raises(HostError, match="Operation not permitted"):
        FdProbe(net, f.fileno())
    probe.close()
    probe.close()
    with pytest.raises(HostError, match="No such file"):
        probe.events(IN)


def test_more_ready_fds_than_one_wake_up_handles(net):
    pairs = [socket.socketpair() for _ in range(100)]
    probes = [FdProbe(net, a.fileno()) for a, _ in pairs]
    for _, b in pairs:
        b.send(b"x")
    assert net.pump() + net.pump() == 100
    assert [p.bytes for p in probes] == [1] * 100
    for probe in probes:
        probe.close()
    for pair in pairs:
        for s in pair:
            s.close()


# -------------------------------------------------------------------------------------------------------------- pollers


def test_a_poller_is_asked_once_before_the_lock_is_dropped_however_often_it_was_touched(net):
    first, second = PollProbe(net), PollProbe(net)
    assert (first.prepared, second.prepared) == (1, 1)                          # when it joins
    first.touch(1000)
    assert (first.prepared, second.prepared) == (2, 1)
    net.pump()
    assert (first.prepared, second.prepared) == (2, 1)
    first.close()
    first.close()
    first.touch()
    second.touch()
    assert (first.prepared, second.prepared) == (2, 2)
    second.close()


# --------------------------------------------------------------------------------------------------------------- thread


def test_a_network_with_its_own_thread(net, pipe):
    r, w = pipe()
    probe = FdProbe(net, r)
    done = threading.Event()
    net.start()
    assert {"qnet"} <= {t.name for t in threading.enumerate()}
    os.write(w, b"x")
    wait_for(lambda: probe.calls == 1, "the event")
    net.call_later(0, done.set)
    assert done.wait(10)
    net.stop()
    assert "qnet" not in {t.name for t in threading.enumerate()}
    os.write(w, b"x")
    assert net.pump() == 1                                                      # nothing was lost; now it runs by hand
    probe.close()


def test_an_idle_network_does_not_wake_up(net, make):
    a, b = make(Port), make(Port)
    a.pair(b)
    net.start()
    net.call_later(0, lambda: None)
    net.call_later(3_600_000_000_000, lambda: None)
    a.send([b"x" * 60])
    wakeups, same = -1, 0
    while same < 3:                                                             # until the start has settled
        same = same + 1 if net.wakeups == wakeups else 0
        wakeups = net.wakeups
        time.sleep(0.05)
    time.sleep(0.3)
    assert net.wakeups == wakeups
    net.stop()


def test_traffic_that_needs_no_loop_does_not_wake_it(net, make):
    source, sink = make(Source), make(Port)
    source.pair(sink)
    wakeups = net.wakeups
    source.drive(1000)
    assert net.wakeups == wakeups
    assert select.select([net.fileno()], [], [], 0)[0] == []


def test_start_and_stop_again_and_again(net):
    for _ in range(50):
        net.start()
        with pytest.raises(RuntimeError, match="runs already"):
            net.start()
        net.stop()
        net.stop()


def test_stop_is_heard_even_if_somebody_elses_pump_takes_the_wake_up(net):
    halt = threading.Event()

    def pump():
        while not halt.is_set():
            net.pump()

    thread = threading.Thread(target=pump)
    thread.start()
    for _ in range(20):
        net.start()
        net.stop()
    halt.set()
    thread.join()


def test_a_callback_on_the_networks_thread_may_stop_it_and_start_it(net):
    ran = []
    done = threading.Event()

    def restart():
        net.stop()
        net.start()
        net.call_later(0, lambda: (ran.append(threading.current_thread()), done.set()))

    net.start()
    net.call_later(0, restart)
    assert done.wait(10)
    net.stop()
    wait_for(lambda: "qnet" not in {t.name for t in threading.enumerate()}, "the end of the first thread")
    assert len(ran) == 1


def test_callbacks_run_without_the_lock(net, make):
    """A callable may use the network, and so may another thread meanwhile."""
    a, b = make(Port), make(Port)
    a.pair(b)
    done = threading.Event()

    def callback():
        a.send([b"x" * 60])
        other = threading.Thread(target=lambda: a.send([b"y" * 60]))
        other.start()
        other.join()
        net.call_later(0, done.set)

    net.start()
    net.call_later(0, callback)
    assert done.wait(10)
    net.stop()
    assert b.recv() == [b"x" * 60, b"y" * 60]


def test_a_callback_that_raises_is_logged_and_stops_nothing(net, caplog):
    done = threading.Event()
    with caplog.at_level(logging.ERROR, "qnet.loop"):
        net.start()
        net.call_later(0, lambda: 1 // 0)
        net.call_later(0, done.set)
        assert done.wait(10)
        net.stop()
    assert "timer callable failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# -------------------------------------------------------------------------------------------------------------- asyncio


def test_a_network_in_an_asyncio_loop(net, pipe):
    r, w = pipe()
    probe = FdProbe(net, r)

    async def main():
        loop, order = asyncio.get_running_loop(), []
        loop.add_reader(net.fileno(), net.pump)
        done = loop.create_future()
        net.call_later(2_000_000, lambda: order.append("b"))
        net.call_later(1_000_000, lambda: order.append("a"))
        net.call_later(3_000_000, lambda: done.set_result(order))
        os.write(w, b"xyz")
        order = await asyncio.wait_for(done, 10)
        loop.remove_reader(net.fileno())
        return order

    assert asyncio.run(main()) == ["a", "b"]
    assert probe.bytes == 3
    probe.close()


def test_fileno_is_readable_exactly_while_there_is_something_to_do(net, pipe):
    def readable():
        return bool(select.select([net.fileno()], [], [], 0)[0])

    r, w = pipe()
    probe = FdProbe(net, r)
    assert not readable()
    os.write(w, b"x")
    assert readable()
    net.pump()
    assert not readable()
    net.call_later(0, lambda: None)
    assert select.select([net.fileno()], [], [], 10)[0]
    assert net.pump() == 1
    assert not readable()
    net.wake()
    assert readable()
    assert net.pump() == 0
    assert not readable()
    probe.close()


# -------------------------------------------------------------------------------------------------------------- closing


def test_closing_twice_and_using_it_afterwards(net):
    net.close()
    net.close()
    net.wake()
    net.stop()
    for use in (net.fileno, net.pump, net.start, lambda: net.run_until(1), lambda: net.call_later(0, print)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_closing_while_its_thread_runs(net):
    net.start()
    net.close()
    assert "qnet" not in {t.name for t in threading.enumerate()}


def test_closing_from_a_callback_on_its_own_thread(net):
    closed = threading.Event()
    net.start()
    net.call_later(0, lambda: (net.close(), closed.set()))
    assert closed.wait(10)
    wait_for(lambda: "qnet" not in {t.name for t in threading.enumerate()}, "the end of the thread")


@pytest.mark.parametrize("clock", [None, VirtualClock()])
def test_closing_with_timers_watches_and_pollers_still_set(clock, pipe):
    """Their owners may come later and remove them: that must find nothing rather than freed memory."""
    net = Loop(clock=clock)
    r, _ = pipe()
    probe, poller = FdProbe(net, r), PollProbe(net)
    handles = [net.call_later(i * 1_000_000_000, lambda: pytest.fail("too late")) for i in range(20)]
    net.close()
    assert not probe.watched
    for handle in handles:
        handle.cancel()
    poller.touch()
    poller.close()
    probe.close()


def test_clients_may_be_closed_after_their_network(make, net):
    a, b = make(Port, capacity=0), make(Port, capacity=0)
    a.pair(b)
    a.send([b"x" * 60])
    net.close()
    a.send([b"y" * 60])
    assert b.queued == 2
    a.close()
    b.close()


def test_a_network_that_is_forgotten_leaves_nothing(pipe):
    r, _ = pipe()
    net = Loop()
    a = Port(net)
    probe, poller = FdProbe(net, r), PollProbe(net)
    net.call_later(10**18, lambda: None)
    gone = weakref.ref(net)
    del net, a, probe, poller
    gc.collect()
    assert gone() is None


def test_a_clock_of_the_wrong_type_leaves_nothing():
    with pytest.raises(TypeError, match="VirtualClock, not int"):
        Loop(clock=5)


def test_watching_after_the_end_is_refused(net, pipe):
    r, _ = pipe()
    net.close()
    with pytest.raises(HostError, match="Bad file descriptor"):
        FdProbe(net, r)
