"""Net.on_event(): what a network tells of its own accord."""

import logging
import threading

import pytest


@pytest.fixture
def seen(net):
    events = []
    net.on_event(lambda name, data: events.append((name, data)))
    return events


def test_an_event_is_told_once_the_lock_is_free(net, seen):
    with net.lock:
        net.event("NETDEV_X", {"netdev-id": "a"})
        with net.lock:
            net.event("NETDEV_Y", {})
        assert seen == []
    assert seen == [("NETDEV_X", {"netdev-id": "a"}), ("NETDEV_Y", {})]


def test_nobody_listens(net):
    with net.lock:
        net.event("NETDEV_X", {})
    later = []
    net.on_event(lambda name, data: later.append(name))
    with net.lock:
        net.event("NETDEV_Y", {})
    assert later == ["NETDEV_Y"]


def test_listeners_come_and_go(net):
    first, second = [], []

    def one(name, data):
        first.append(name)

    def two(name, data):
        second.append(name)
        data["spoilt"] = True

    net.on_event(two)
    net.on_event(one)
    net.on_event(one)
    with net.lock:
        net.event("X", {})
    net.off_event(one)
    net.off_event(one)
    with net.lock:
        net.event("Y", {})
    assert (first, second) == (["X"], ["X", "Y"])


def test_each_listener_has_data_of_its_own(net):
    got = []
    net.on_event(lambda name, data: data.clear())
    net.on_event(lambda name, data: got.append(data))
    with net.lock:
        net.event("X", {"a": 1})
    assert got == [{"a": 1}]


def test_one_that_raises_is_logged_and_hides_nothing_from_the_others(net, caplog):
    got = []

    def bad(name, data):
        raise RuntimeError("mine")

    net.on_event(bad)
    net.on_event(lambda name, data: got.append(name))
    with caplog.at_level(logging.ERROR, "qnet.events"), net.lock:
        net.event("X", {})
        net.event("Y", {})
    assert got == ["X", "Y"]
    assert "event callable failed at X" in caplog.text


def test_a_callable_may_use_the_network_and_cause_events(net):
    """They are told after this one, in order."""
    got = []

    def callback(name, data):
        got.append(name)
        if name == "X":
            net.netdev_add("null,id=n0")
            with net.lock:
                net.event("Y", {})
            got.append("end of X")

    net.on_event(callback)
    with net.lock:
        net.event("X", {})
    assert got == ["X", "end of X", "Y"]
    assert net.client("n0").model == "null"


def test_the_lock_is_free_in_a_callable(net):
    """Another thread can use the network meanwhile; its events are told by this one, later."""
    got = []

    def other():
        with net.lock:
            net.event("Y", {})

    def callback(name, data):
        got.append((name, threading.current_thread() is threading.main_thread()))
        if name == "X":
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            got.append("joined")

    net.on_event(callback)
    with net.lock:
        net.event("X", {})
    assert got == [("X", True), "joined", ("Y", True)]


def test_events_of_many_threads_are_told_one_at_a_time_and_all(net):
    got, inside = [], []

    def callback(name, data):
        inside.append(1)
        assert len(inside) == 1
        got.append((name, data["n"]))
        inside.pop()

    def work(name):
        for n in range(200):
            with net.lock:
                net.event(name, {"n": n})

    net.on_event(callback)
    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 800
    for i in range(4):
        assert [n for name, n in got if name == str(i)] == list(range(200))
