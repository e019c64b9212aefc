"""Sends, flushes and resumes from within a receive or a resume: S24; never a recursive delivery, never an endless one."""

import threading

import pytest

from qnet._client import NullClient
from qnet.testing import Gate, LoopBack, Port, Sink, Source


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4)


def test_s24_an_answer_from_within_receive_is_delivered(link):
    a, b = link(b={"reaction": "echo"})
    frames = [frame(i) for i in range(100)]
    a.send(frames)
    assert a.recv() == b.recv() == frames


def test_s24_packets_that_come_back_to_a_receiver_wait_until_its_receive_is_over(link):
    """b echoes into a, which sends its backlog from within that receive: b must not be entered again meanwhile."""
    a, b = link(a={"reaction": "send"}, b={"reaction": "echo"})
    a.post([frame(i) for i in range(1, 5)])
    a.send([frame(0)])
    assert b.recv() == [frame(i) for i in range(5)]
    assert a.recv() == [frame(i) for i in range(5)]


def test_a_burst_goes_in_front_of_what_is_sent_while_it_is_delivered(link):
    a, b = link(a={"reaction": "send"}, b={"reaction": "echo", "capacity": 10})
    a.post([frame(100)])
    a.send([frame(i) for i in range(20)])
    b.room(None)
    assert b.recv() == [*(frame(i) for i in range(20)), frame(100)]


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("flow_control", [True, False])
@pytest.mark.parametrize("filtered", [True, False])
def test_a_flush_from_within_receive_stalls_nothing(link, asks, flow_control, filtered):
    a, b = link(a={"flow_control": flow_control}, b={"reaction": "flush", "capacity": 3, "asks": asks})
    gate = Gate(b)
    if filtered:
        gate.insert()
    frames = [frame(i) for i in range(1000)]
    a.post(frames)
    assert b.recv() == frames
    assert (b.queued, a.backlog) == (0, 0)
    gate.remove()


def test_a_resume_for_each_packet_does_not_recurse(link):
    """One packet a call, a flush in each, and a sender that goes on from resume: a stack per packet would overflow."""
    a, b = link(a={"flow_control": True}, b={"reaction": "flush", "capacity": 1, "asks": False})
    gate = Gate(a)
    gate.insert()
    done = []

    def run():
        a.post([frame(i) for i in range(100_000)])
        done.append(a.backlog)

    size = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert done == [0]
    assert len(b.recv()) == 100_000
    gate.remove()


def test_two_clients_that_throw_a_packet_to_and_fro_do_not_hold_the_lock_for_ever(make):
    a, b, source = make(LoopBack), make(LoopBack), make(Port)
    a.pair(b)
    gate = Gate(a, "hold")
    gate.insert("rx")
    # start it: a frame held by the gate is set free between the two
    b.unpair()
    source.pair(a)
    source.send([frame(1)])
    a.unpair()
    a.pair(b)
    gate.mode = "pass"
    assert gate.release() == 1
    drops = [client.stats()["drops"] for client in (a, b)]
    assert sum(d.get("queue-full", 0) for d in drops) == 1
    assert a.queued == b.queued == 0
    gate.remove()


def test_a_storm_does_not_spoil_what_comes_later(make):
    """The limit is one for each hold of the lock."""
    a, b = make(LoopBack), make(Port, reaction="keep")
    a.pair(b)
    for _ in range(3):
        b.send([frame(1)])
    assert b.recv() == [frame(1)] * 3


def test_a_long_queue_is_no_storm(link):
    a, b = link(b={"capacity": 0})
    b.queue_limits = (1 << 21, 1 << 30)
    a.send([b"x"] * ((1 << 20) + 1000))
    b.room(None)
    assert b.stats()["rx_packets"] == (1 << 20) + 1000
    assert b.stats()["drops"] == {}


def test_a_client_that_sends_to_a_full_one_from_within_its_receive(make):
    """source -> loopback -> source's own receive: what comes back is taken or dropped, and counted."""
    source, back = make(Source), make(LoopBack)
    source.pair(back)
    source.drive(1000)
    assert source.stats()["rx_packets"] == 1000


def test_the_null_client_takes_everything(make):
    source, null = make(Source), make(NullClient)
    source.pair(null)
    source.drive(1000)
    assert null.stats()["rx_packets"] == 1000
    assert null.stats()["drops"] == {}


def test_a_sink_cannot_be_entered_twice_by_its_own_filter(make):
    """A filter that holds and lets go from its status hook sends from under the lock as any other client."""
    a, sink = make(Port), make(Sink)
    a.pair(sink)
    gate = Gate(sink, "hold")
    gate.insert()
    a.send([frame(i) for i in range(10)])
    assert sink.packets == 0
    gate.on = False
    assert sink.packets == 10
    gate.remove()
