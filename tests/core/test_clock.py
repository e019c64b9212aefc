"""Timers and the two clocks: order, cancelling, determinism of the virtual one."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet._loop import Loop, VirtualClock
from qnet.testing import Port

MS = 1_000_000


@pytest.fixture
def virtual():
    loop = Loop(clock=VirtualClock())
    yield loop
    loop.close()


def test_time_stands_still_until_told(virtual):
    assert virtual.now() == 0
    fired = []
    virtual.call_later(5, lambda: fired.append(virtual.now()))
    virtual.pump()
    assert fired == []
    virtual.run_until(4)
    assert (fired, virtual.now()) == ([], 4)
    virtual.run_until(5)
    assert fired == [5]
    virtual.run_until(100)
    assert (fired, virtual.now()) == ([5], 100)


def test_a_virtual_clock_may_start_anywhere():
    loop = Loop(clock=VirtualClock(10**15))
    assert loop.now() == 10**15
    fired = []
    loop.call_later(1, lambda: fired.append(loop.now()))
    loop.run_until(10**15 + 1)
    loop.close()
    assert fired == [10**15 + 1]


def test_each_timer_fires_at_its_own_time_and_equal_ones_in_the_order_they_were_set(virtual):
    fired = []
    for i, t in enumerate([30, 10, 20, 10, 30, 10]):
        virtual.call_later(t, lambda i=i: fired.append((virtual.now(), i)))
    virtual.run_until(1000)
    assert fired == [(10, 1), (10, 3), (10, 5), (20, 2), (30, 0), (30, 4)]


def test_a_timer_set_by_a_timer_fires_in_the_same_run(virtual):
    fired = []

    def tick():
        fired.append(virtual.now())
        if len(fired) < 5:
            virtual.call_later(10, tick)

    virtual.call_later(10, tick)
    virtual.run_until(35)
    assert fired == [10, 20, 30]
    virtual.run_until(100)
    assert fired == [10, 20, 30, 40, 50]


def test_a_timer_for_now_or_earlier_fires_at_once_but_after_those_before_it(virtual):
    fired = []
    virtual.call_later(10, lambda: (fired.append("a"), virtual.call_later(-5, lambda: fired.append("c"))))
    virtual.call_later(10, lambda: fired.append("b"))
    virtual.run_until(10)
    assert fired == ["a", "b", "c"]


def test_a_cancelled_timer_does_not_fire(virtual):
    fired = []
    handles = [virtual.call_later(10 + i, lambda i=i: fired.append(i)) for i in range(10)]
    for i in (0, 3, 9, 3):
        handles[i].cancel()
    virtual.call_later(11, handles[5].cancel)
    virtual.run_until(100)
    assert fired == [1, 2, 4, 6, 7, 8]
    for handle in handles:
        handle.cancel()


def test_a_timer_cancelled_by_another_that_is_due_at_the_same_time_does_not_fire(virtual):
    fired, handles = [], []
    for i in range(3):
        handles.append(virtual.call_later(10, lambda i=i: (fired.append(i), [h.cancel() for h in handles])))
    virtual.run_until(10)
    assert fired == [0]


def test_time_does_not_run_backwards(virtual):
    virtual.run_until(10)
    with pytest.raises(ValueError, match="in the past"):
        virtual.run_until(9)
    virtual.run_until(10)


def test_a_virtual_clock_has_no_thread_and_a_real_one_no_run_until(virtual, net):
    with pytest.raises(RuntimeError, match="virtual clock"):
        virtual.start()
    with pytest.raises(ValueError, match="VirtualClock"):
        net.run_until(5)


@pytest.mark.parametrize("clock", [None, VirtualClock(2**62)])
def test_a_time_beyond_the_end_of_the_clock_is_never_and_not_now(clock):
    loop = Loop(clock=clock)
    fired = []
    loop.call_later(2**63 - 1, lambda: fired.append(1))
    loop.pump()
    if clock is not None:
        loop.run_until(2**62 + 2**61)
    loop.close()
    assert fired == []


@given(st.lists(st.tuples(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 50))), max_size=60), st.lists(st.integers(0, 30)))
def test_timers_behave_as_a_sorted_list(timers, steps):
    """Deadline, order of setting, cancelled at a time before the deadline: the rest fires, in order, on time."""
    loop = Loop(clock=VirtualClock())
    fired, expected = [], []
    for i, (deadline, cancel) in enumerate(timers):
        handle = loop.call_later(deadline, lambda i=i: fired.append((loop.now(), i)))
        if cancel is not None and cancel < deadline:
            loop.call_later(cancel, handle.cancel)
        else:
            expected.append((deadline, i))
    for step in steps:
        loop.run_until(loop.now() + step)
    loop.run_until(max(loop.now(), 100))
    loop.close()
    assert fired == sorted(expected)


def run_once(seed):
    """A network under a script of timers: who got what, and when."""
    rng = random.Random(seed)
    loop = Loop(clock=VirtualClock())
    ports = [Port(loop, str(i), capacity=5) for i in range(4)]
    ports[0].pair(ports[1])
    ports[2].pair(ports[3])
    log = []

    def act():
        port = rng.choice(ports)
        port.send([rng.randbytes(rng.randrange(1, 100))])
        rng.choice(ports).room(rng.randrange(3))
        log.append((loop.now(), [p.recv() for p in ports]))
        loop.call_later(rng.randrange(20), act)

    for _ in range(5):
        act()
    loop.run_until(2000)
    for port in ports:
        port.close()
    loop.close()
    return log


def test_the_same_run_twice_gives_the_same_bytes_at_the_same_time():
    first = run_once(1)
    assert len(first) > 500
    assert run_once(1) == first
    assert run_once(2) != first


def test_real_timers_fire_in_order_and_not_early(net):
    fired, done = [], threading.Event()
    start = net.now()
    for ms in (3, 1, 2):
        net.call_later(ms * MS, lambda ms=ms: fired.append((ms, net.now() - start >= ms * MS)))
    net.call_later(4 * MS, done.set)
    net.start()
    assert done.wait(10)
    net.stop()
    assert fired == [(1, True), (2, True), (3, True)]


def test_an_earlier_timer_set_while_the_network_sleeps_wakes_it(net):
    done = threading.Event()
    net.start()
    far = net.call_later(3600 * 1000 * MS, lambda: None)
    net.call_later(MS, done.set)
    assert done.wait(10)
    far.cancel()
    net.stop()


def test_many_timers_set_and_cancelled_from_many_threads(net):
    fired, lock = [], threading.Lock()

    def work(seed):
        rng = random.Random(seed)
        handles = []
        for i in range(200):
            handles.append(net.call_later(rng.randrange(2 * MS), lambda i=i: note((seed, i))))
            if i % 3 == 0:
                rng.choice(handles).cancel()

    def note(what):
        with lock:
            fired.append(what)

    done = threading.Event()
    net.start()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    net.call_later(3 * MS, done.set)
    assert done.wait(30)
    net.stop()
    assert len(fired) == len(set(fired))
    assert 300 <= len(fired) <= 600
