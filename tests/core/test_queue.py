"""Queues: S4, S14 to S18, S20, S22, strict FIFO (B24), asking for room (B25), bounds, flow control."""

import pytest

from qnet.testing import Sink, Source


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4)


asking = pytest.mark.parametrize("asks", [True, False], ids=["asks", "finds-out"])


@asking
def test_s14_what_finds_no_room_queues_and_arrives_after_a_flush(link, asks):
    a, b = link(b={"capacity": 3, "asks": asks})
    frames = [frame(i) for i in range(10)]
    assert a.send(frames) == 10                                                 # without flow control it is the core's business
    assert b.recv() == frames[:3]
    assert b.queued == b.stats()["queued"] == 7
    b.room(2)
    assert b.recv() == frames[3:5]
    b.room(None)
    assert b.recv() == frames[5:]
    assert b.queued == 0


@asking
def test_b24_a_fresh_frame_never_overtakes_a_queued_one(link, asks):
    a, b = link(b={"capacity": 1, "asks": asks})
    for i in range(5):
        a.send([frame(i)])
    b.room(1)
    a.send([frame(5)])
    b.room(None)
    a.send([frame(6)])
    assert b.recv() == [frame(i) for i in range(7)]


def test_b24_not_even_when_the_receiver_has_room_and_has_not_flushed_yet(link, net):
    a, b = link()
    net.running = False
    a.send([frame(0)])
    net.running = True
    a.send([frame(1)])
    b.flush()
    assert b.recv() == [frame(0), frame(1)]


def test_s22_a_receiver_that_ran_out_of_room_is_not_called_before_it_flushes(link):
    a, b = link(b={"capacity": 1, "asks": False})
    a.send([frame(0), frame(1)])
    calls = b.bursts
    a.send([frame(2)] * 100)
    assert b.bursts == calls
    assert not b.can_receive


def test_b25_room_is_asked_for_before_each_burst_of_a_flush(link):
    a, b = link(b={"capacity": 4})
    a.send([frame(i) for i in range(40)])
    for _ in range(9):
        b.room(4)
    assert b.recv() == [frame(i) for i in range(40)]                            # QEMU drops 32 of them
    assert b.stats()["drops"] == {}


def test_s16_the_queue_is_bounded_in_packets(link):
    a, b = link(b={"capacity": 0})
    assert b.queue_limits == (10000, 16 << 20)
    b.queue_limits = (5, 1 << 20)
    assert a.send([frame(i) for i in range(8)]) == 8
    assert b.queued == 5
    assert b.stats()["drops"] == {"queue-full": 3}
    b.room(None)
    assert b.recv() == [frame(i) for i in range(5)]


def test_s16_the_default_bound_is_10000_packets(link):
    a, b = link(b={"capacity": 0})
    a.send([b"x"] * 10100)
    assert b.queued == 10000
    assert b.stats()["drops"] == {"queue-full": 100}


def test_the_queue_is_bounded_in_bytes(link):
    a, b = link(b={"capacity": 0})
    b.queue_limits = (1000, 1000)
    a.send([frame(0, 600), frame(1, 600), frame(2, 400)])
    b.room(None)
    assert b.recv() == [frame(0, 600), frame(2, 400)]
    assert b.stats()["drops"] == {"queue-full": 1}


@asking
def test_s17_while_the_vm_is_stopped_nothing_is_received(link, net, asks):
    a, b = link(b={"asks": asks})
    net.running = False
    assert not b.can_receive
    a.send([frame(0), frame(1)])
    b.flush()
    assert b.recv() == []
    assert b.queued == 2
    net.running = True
    b.flush()
    assert b.recv() == [frame(0), frame(1)]


@asking
def test_s18_a_sender_with_flow_control_keeps_what_finds_no_room_and_is_resumed_once(link, asks):
    a, b = link(a={"flow_control": True}, b={"capacity": 3, "asks": asks})
    assert a.send([frame(i) for i in range(10)]) == 3
    assert a.blocked
    assert a.send([frame(3)]) == 0
    assert (b.queued, a.resumed) == (0, 0)
    b.room(1)
    assert (a.resumed, a.blocked) == (1, False)
    assert a.send([frame(3)]) == 1
    assert b.recv() == [frame(i) for i in range(4)]
    assert a.stats()["tx_packets"] == 4


@asking
def test_s18_a_sender_that_sends_from_resume_gets_all_through(link, asks):
    a, b = link(a={"flow_control": True}, b={"capacity": 0, "asks": asks})
    frames = [frame(i) for i in range(500)]
    a.post(frames)
    got = []
    for i in range(200):
        b.room(i % 7)
        got += b.recv()
    assert got == frames
    assert (a.backlog, b.queued) == (0, 0)


def test_a_sender_with_flow_control_waits_behind_packets_that_queued_before_it_had_it(link):
    a, b = link(b={"capacity": 0})
    a.send([frame(0), frame(1)])
    a.flow_control = True
    assert a.send([frame(2)]) == 0
    b.room(1)
    assert a.resumed == 0                                                       # one still queued
    b.room(5)
    assert a.resumed == 1
    assert a.send([frame(2)]) == 1
    assert b.recv() == [frame(0), frame(1), frame(2)]


def test_a_source_goes_on_by_itself_when_there_is_room(make):
    from qnet.testing import Port

    source, port = make(Source, flow_control=True), make(Port, capacity=100)
    source.pair(port)
    assert source.drive(1000) == 100
    assert source.pending == 900
    port.room(None)
    assert (source.pending, source.sent, len(port.recv())) == (0, 1000, 1000)


def test_nothing_is_allocated_while_nothing_queues(make, net):
    source, sink = make(Source, size=1514), make(Sink)
    source.pair(sink)
    source.drive(100000)
    assert (sink.packets, net.allocations) == (100000, 0)


def test_a_queued_packet_is_a_copy_with_its_offload_record(link, net):
    a, b = link(b={"capacity": 0, "takes": "csum tso4"})
    record = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1448, "csum_start": 34, "csum_offset": 16}
    a.send([[b"abc" * 100, b"", b"def" * 100]], record)
    assert net.allocations == net.queued == 1
    b.room(None)
    assert b.recv() == [b"abc" * 100 + b"def" * 100]
    assert b.offloads == [record]
