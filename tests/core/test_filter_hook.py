"""The filter chain in the send path: S13, F2, F4, F5; what filters hear of drops; filters that remove themselves."""

import gc

import pytest

from qnet.testing import Gate


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4)


@pytest.fixture
def gate():
    gates = []

    def gate(client, mode="pass", queue="all", before=None):
        g = Gate(client, mode)
        g.insert(queue, before)
        gates.append(g)
        return g

    yield gate
    for g in gates:
        g.remove()
    gates.clear()


def test_f2_directions_are_the_watched_clients(link, gate):
    a, b = link()
    every, tx, rx = gate(a), gate(a, queue="tx"), gate(a, queue="rx")
    a.send([frame(0)] * 3)
    b.send([frame(1)] * 2)
    assert (every.seen, tx.seen, rx.seen) == ((3, 2), (3, 0), (0, 2))
    assert len(a.recv()) == 2
    assert len(b.recv()) == 3


def test_s13_senders_filters_front_to_back_then_receivers_back_to_front(link, gate):
    a, b = link()
    chain = [gate(a), gate(a), gate(b), gate(b)]
    order = [chain[0], chain[1], chain[3], chain[2]]
    for i, stop in enumerate(order):
        stop.mode = "drop"
        before = [g.seen for g in order]
        a.send([frame(0)])
        after = [g.seen for g in order]
        assert [x != y for x, y in zip(before, after, strict=True)] == [j <= i for j in range(4)]
        stop.mode = "pass"
    a.send([frame(9)])
    assert b.recv() == [frame(9)]


def test_f1_a_filter_can_be_put_in_front_of_another(link, gate):
    a, b = link()
    last = gate(a)
    first = gate(a, "drop", before=last)
    a.send([frame(0)])
    assert (first.seen, last.seen) == ((1, 0), (0, 0))
    assert b.recv() == []


def test_f1_only_in_front_of_a_filter_of_the_same_client(link, gate):
    a, b = link()
    other = gate(b)
    g = Gate(a)
    with pytest.raises(ValueError, match="different clients"):
        g.insert("all", other)
    with pytest.raises(KeyError):
        g.insert("sideways")
    g.insert()
    with pytest.raises(ValueError, match="inserted already"):
        g.insert()
    g.remove()
    g.remove()


def test_f4_a_filter_that_is_off_lets_everything_pass_unseen(link, gate):
    a, b = link()
    g = gate(a, "drop")
    g.on = False
    a.send([frame(0)])
    assert (b.recv(), g.seen, g.on) == ([frame(0)], (0, 0), False)
    g.on = True
    a.send([frame(0)])
    assert b.recv() == []


def test_f5_a_held_packet_goes_on_through_the_filters_behind_only(link, gate):
    a, b = link()
    first, middle, last, far = gate(a), gate(a, "hold"), gate(a), gate(b)
    a.send([frame(i) for i in range(3)])
    b.send([frame(9)])
    assert [g.seen for g in (first, middle, last, far)] == [(3, 0), (3, 1), (0, 1), (1, 0)]
    middle.mode = "pass"
    assert middle.release() == 4
    assert [g.seen for g in (first, middle, last, far)] == [(3, 1), (3, 1), (3, 1), (1, 3)]
    assert b.recv() == [frame(i) for i in range(3)]
    assert a.recv() == [frame(9)]


def test_f5_what_a_filter_lets_go_queues_when_there_is_no_room(link, gate):
    a, b = link(a={"flow_control": True}, b={"capacity": 0})
    g = gate(b, "hold")
    b.room(1)
    assert a.send([frame(0)]) == 1
    b.recv()
    g.mode = "pass"
    a.send([frame(1)])
    g.release()
    assert b.queued + len(b.recv()) == 2                                        # a filter sees a packet once: nobody gets it back
    b.room(None)
    assert b.queued == 0


def test_f5_without_a_link_what_was_held_is_dropped_and_counted(link, gate):
    a, b = link()
    g = gate(a, "hold")
    a.send([frame(0)] * 2)
    a.set_link(False)
    assert g.release() == 2
    assert a.stats()["drops"] == {"link-down": 2}
    assert b.recv() == []


def test_f5_after_the_client_is_gone_nothing_is_released(link, gate):
    a, b = link()
    g = gate(a, "hold")
    a.send([frame(0)])
    b.send([frame(0)])
    a.close()
    assert not g.inserted
    assert g.release() == 0
    g.on = False
    g.remove()
    assert b.recv() == []


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_filter_that_removes_itself_from_within_its_receive_hides_nothing_from_the_others(link, gate, position, direction):
    a, b = link()
    gates = [gate(a, "leave" if i == position else "pass") for i in range(3)]
    sender, receiver = (a, b) if direction == "tx" else (b, a)
    sender.send([frame(0)])
    sender.send([frame(1)])
    seen = [g.seen[direction == "rx"] for g in gates]
    assert seen == [1 if i == position else 2 for i in range(3)]
    assert [g.inserted for g in gates] == [i != position for i in range(3)]
    assert receiver.recv() == [frame(0), frame(1)]


def test_filters_hear_of_drops_on_their_link_with_the_reason(link, gate):
    a, b = link(b={"capacity": 0, "max_frame": 100})
    on_a, on_b = gate(a), gate(b)
    b.queue_limits = (2, 1000)
    a.send([frame(i) for i in range(3)])
    b.room(None)
    a.send([frame(0, 120)])
    a.send([b""])
    b.set_link(False)
    a.send([frame(0)])
    assert on_a.dropped == on_b.dropped == {"queue-full": 1, "oversize": 1, "empty": 1, "link-down": 1}


def test_no_filter_sees_a_packet_that_the_core_refuses(link, gate):
    a, b = link()
    g = gate(a)
    a.send([b"", frame(1), b""])
    a.send_claim(69633)
    a.send_claim(0xFFFFFFFF)
    a.send_claim(64, iovcnt=65)
    assert g.seen == (1, 0)
    assert b.recv() == [frame(1)]
    assert b.stats()["drops"] == {"empty": 2, "oversize": 3}


@pytest.mark.parametrize("asks", [True, False])
def test_flow_control_works_through_filters(link, gate, asks):
    a, b = link(a={"flow_control": True}, b={"capacity": 5, "asks": asks})
    gate(a)
    gate(b)
    frames = [frame(i) for i in range(300)]
    a.post(frames)
    assert a.backlog > 0
    got = []
    for i in range(150):
        b.room(i % 5)
        got += b.recv()
    assert got == frames
    assert b.stats()["drops"] == {}


def test_the_offload_record_reaches_the_filter_and_the_receiver(link, gate):
    a, b = link(b={"takes": "all"})
    g = gate(a, "hold")
    record = {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 100, "csum_start": 34, "csum_offset": 16}
    a.send([bytes(500)], record)
    g.release()
    b.recv()
    assert b.offloads == [record]


def test_a_filter_that_nobody_holds_leaves_the_chain(link):
    a, b = link()
    Gate(a, "drop").insert()
    gc.collect()
    a.send([frame(0)])
    assert b.recv() == [frame(0)]
